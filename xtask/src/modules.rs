//! Reads the modules of an unpacked kernel package.
//!
//! Owned here: which files a driver needs, and the `modules.dep` that the guest's modprobe reads (the
//! package has none, because depmod would write it at installation). Not owned: which drivers are wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The modules of one kernel, by name. In a name, `-` and `_` are the same; `_` is used here.
#[derive(Debug)]
pub(crate) struct ModuleTree {
    /// The kernel's release, as `uname -r` says it.
    pub(crate) release: String,
    root: PathBuf,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

/// A module with what it takes to load it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: String,
    /// Its path below the tree's root, without an extension for compression.
    pub(crate) path: String,
    /// The ELF file.
    pub(crate) content: Vec<u8>,
    /// The names of the modules that it needs directly.
    pub(crate) depends: Vec<String>,
}

impl ModuleTree {
    /// The only tree below `lib/modules` or `usr/lib/modules` of an unpacked package.
    pub(crate) fn find(unpacked: &Path) -> Result<Self> {
        let mut roots = Vec::new();
        for place in ["lib/modules", "usr/lib/modules"] {
            if let Ok(entries) = fs::read_dir(unpacked.join(place)) {
                for entry in entries {
                    roots.push(entry?.path());
                }
            }
        }
        ensure!(roots.len() == 1, "expected one kernel's modules, found {roots:?}");
        let root = roots.remove(0);
        let release = root.file_name().and_then(|name| name.to_str()).context("odd kernel release")?.to_owned();

        let mut files = BTreeMap::new();
        collect(&root, &mut files)?;
        let builtin = fs::read_to_string(root.join("modules.builtin")).context("modules.builtin")?;
        let builtin = builtin.lines().filter_map(|line| module_name(Path::new(line))).collect();
        Ok(Self { release, root, files, builtin })
    }

    /// Whether the kernel has this driver, as a module or built in.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.is_module(name) || self.builtin.contains(&underscored(name))
    }

    /// Whether this driver is a module.
    pub(crate) fn is_module(&self, name: &str) -> bool {
        self.files.contains_key(&underscored(name))
    }

    /// The modules of these names and all that they need, each after those that it needs. A driver that
    /// is built in needs no module.
    pub(crate) fn closure(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut ordered = Vec::new();
        for name in names {
            self.visit(&underscored(name), &mut ordered)?;
        }
        Ok(ordered)
    }

    fn visit(&self, name: &str, ordered: &mut Vec<Module>) -> Result<()> {
        if self.builtin.contains(name) || ordered.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let file = self.files.get(name).with_context(|| format!("kernel {} has no module {name}", self.release))?;
        let content = read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let depends = depends(&content).with_context(|| format!("cannot use {}", file.display()))?;
        for needed in &depends {
            self.visit(needed, ordered)?;
        }
        let path = file.strip_prefix(&self.root).expect("collected below the root");
        let path = path.to_str().context("odd module path")?;
        let path = path.strip_suffix(".xz").or_else(|| path.strip_suffix(".zst")).unwrap_or(path);
        ordered.push(Module { name: name.to_owned(), path: path.to_owned(), content, depends });
        Ok(())
    }
}

/// A `modules.dep` for modules in the order of [`ModuleTree::closure`]. Each line names everything that a
/// module needs, also indirectly, the last to be loaded first.
pub(crate) fn modules_dep(modules: &[Module]) -> String {
    let mut needs: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut text = String::new();
    for module in modules {
        let mut all: Vec<&str> = Vec::new();
        for direct in &module.depends {
            let Some(indirect) = needs.get(direct.as_str()) else { continue }; // built in
            let missing: Vec<&str> =
                indirect.iter().copied().chain([direct.as_str()]).filter(|n| !all.contains(n)).collect();
            all.extend(missing);
        }
        text.push_str(&module.path);
        text.push(':');
        for name in all.iter().rev() {
            if let Some(needed) = modules.iter().find(|module| module.name == *name) {
                text.push(' ');
                text.push_str(&needed.path);
            }
        }
        text.push('\n');
        needs.insert(&module.name, all);
    }
    text
}

fn underscored(name: &str) -> String {
    name.replace('-', "_")
}

/// The module's name by its file name: `virtio-rng.ko.xz` is `virtio_rng`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (stem, extension) = file.split_once(".ko")?;
    matches!(extension, "" | ".xz" | ".zst").then(|| underscored(stem))
}

fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let path = entry.path();
        // Not through links: `build` and `source` point out of the tree.
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let tool = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return Ok(fs::read(file)?),
    };
    let output = Command::new(tool)
        .args(["-d", "-c"])
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {tool}"))?;
    ensure!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}

/// The `depends=` entry of a module's `.modinfo` section, which is a run of NUL-terminated strings.
/// Every module has one, if only an empty one.
fn depends(module: &[u8]) -> Result<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let start = module
        .windows(KEY.len())
        .position(|window| window == KEY)
        .context("not a kernel module: it has no depends entry")?
        + KEY.len();
    let value = module[start..].split(|byte| *byte == 0).next().unwrap_or_default();
    let value = std::str::from_utf8(value).context("odd depends entry")?;
    Ok(value.split(',').filter(|name| !name.is_empty()).map(underscored).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree in which `net` needs `ring` and `pci`, `pci` needs `ring`, and `bus` is built in.
    fn tree() -> (tempfile::TempDir, ModuleTree) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("lib/modules/6.0-test");
        fs::create_dir_all(root.join("kernel/virtio")).unwrap();
        for (file, depends) in [("ring.ko", ""), ("virtio-pci.ko", "ring,bus"), ("net.ko", "ring,virtio-pci")] {
            let content = format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0");
            fs::write(root.join("kernel/virtio").join(file), content).unwrap();
        }
        fs::write(root.join("modules.builtin"), "kernel/drivers/bus.ko\n").unwrap();
        let tree = ModuleTree::find(dir.path()).unwrap();
        (dir, tree)
    }

    #[test]
    fn a_closure_loads_what_is_needed_first_and_each_once() {
        let (_dir, tree) = tree();
        assert_eq!(tree.release, "6.0-test");
        let names = |wanted: &[&str]| -> Vec<String> {
            tree.closure(wanted).unwrap().into_iter().map(|module| module.name).collect()
        };
        assert_eq!(names(&["net"]), ["ring", "virtio_pci", "net"]);
        assert_eq!(names(&["virtio_pci", "net", "bus"]), ["ring", "virtio_pci", "net"]);
        assert_eq!(names(&["bus"]), [""; 0]);
        assert!(tree.has("bus") && !tree.is_module("bus"));
        assert!(tree.has("virtio-pci") && tree.is_module("virtio_pci"));
    }

    #[test]
    fn a_driver_that_the_kernel_lacks_is_named() {
        let (_dir, tree) = tree();
        let error = tree.closure(&["sound"]).unwrap_err();
        assert_eq!(error.to_string(), "kernel 6.0-test has no module sound");
        assert!(!tree.has("sound"));
    }

    #[test]
    fn modules_dep_names_indirect_needs_too() {
        let (_dir, tree) = tree();
        let dep = modules_dep(&tree.closure(&["net"]).unwrap());
        assert_eq!(
            dep,
            "kernel/virtio/ring.ko:\n\
             kernel/virtio/virtio-pci.ko: kernel/virtio/ring.ko\n\
             kernel/virtio/net.ko: kernel/virtio/virtio-pci.ko kernel/virtio/ring.ko\n"
        );
    }

    #[test]
    fn a_compressed_module_is_read_as_if_it_were_not() {
        let (dir, _) = tree();
        let plain = dir.path().join("lib/modules/6.0-test/kernel/virtio/net.ko");
        let content = fs::read(&plain).unwrap();
        for (tool, extension) in [("xz", "xz"), ("zstd", "zst")] {
            let status = Command::new(tool).args(["-q", "-k"]).arg(&plain).status().unwrap();
            assert!(status.success());
            let compressed = plain.with_extension(format!("ko.{extension}"));
            assert_eq!(read(&compressed).unwrap(), content);
            assert_eq!(module_name(&compressed).as_deref(), Some("net"));
        }
    }

    #[test]
    fn a_file_that_is_no_module_is_refused() {
        assert!(depends(b"\x7fELF and nothing more").is_err());
    }
}
