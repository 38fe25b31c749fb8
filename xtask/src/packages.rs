//! Fetches Debian packages as an ordinary user, with the machine's own apt sources and keys.
//!
//! Owned here: which packages the tiny guest is made from, and where they come from. apt checks their
//! signatures. Nothing is installed. Not owned: unpacking them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cache::{Cache, Inputs};

/// The package that depends on the current kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";
/// A statically linked userland in one file.
const USERLAND: &str = "busybox-static";

/// The packages of the tiny guest, in a directory of the cache.
#[derive(Debug)]
pub(crate) struct Packages {
    /// The paths of the `.deb` files, in the order of their names, which carry the versions.
    pub(crate) files: Vec<PathBuf>,
}

/// The packages, downloaded on the first call for this release of the distribution. They stay at the
/// version of that day until the cache is deleted, so that a test run does not depend on the network.
pub(crate) fn fetch(cache: &Cache) -> Result<Packages> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let mut inputs = Inputs::new();
    inputs.add("format", "1").add("kernel", KERNEL).add("userland", USERLAND);
    for key in ["ID=", "VERSION_CODENAME="] {
        inputs.add(key, release.lines().find(|line| line.starts_with(key)).unwrap_or_default());
    }
    let entry = cache.entry("packages", &inputs, download)?;

    let mut files = Vec::new();
    for file in fs::read_dir(&entry).with_context(|| format!("cannot list {}", entry.display()))? {
        files.push(file?.path());
    }
    files.sort();
    Ok(Packages { files })
}

/// Downloads by the system's package lists; where those are missing, or name versions that the mirror
/// has dropped, by lists of our own, which take some seconds more.
fn download(into: &Path) -> Result<()> {
    let system = Apt { lists: None };
    let Err(first) = system.download(into) else { return Ok(()) };

    let state = into.join(".apt");
    for partial in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(state.join(partial))?;
    }
    let own = Apt { lists: Some(state.clone()) };
    own.run("apt-get", into, &["update"])
        .and_then(|_| own.download(into))
        .with_context(|| format!("with the system's package lists: {first:#}"))
        .with_context(|| format!("cannot download {KERNEL} and {USERLAND} from Debian"))?;
    fs::remove_dir_all(&state).with_context(|| format!("cannot remove {}", state.display()))
}

struct Apt {
    /// Where apt keeps lists and caches, unless in the system's own place.
    lists: Option<PathBuf>,
}

impl Apt {
    fn download(&self, into: &Path) -> Result<()> {
        let shown = self.run("apt-cache", into, &["show", "--no-all-versions", KERNEL])?;
        let kernel =
            kernel_dependency(&shown).with_context(|| format!("{KERNEL} depends on no linux-image package"))?;
        self.run("apt-get", into, &["download", kernel, USERLAND])?;
        Ok(())
    }

    /// Runs a program of apt in `dir` and returns what it printed.
    fn run(&self, program: &str, dir: &Path, args: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        // As root, apt would otherwise drop to a user of its own that cannot write to our directory.
        command.args(["-q", "-o", "APT::Sandbox::User=root"]);
        if let Some(state) = &self.lists {
            for (option, path) in [
                ("Dir::State=", state.clone()),
                ("Dir::State::lists=", state.join("lists")),
                ("Dir::Cache=", state.join("cache")),
            ] {
                let mut setting = OsString::from(option);
                setting.push(path);
                command.arg("-o").arg(setting);
            }
            command.args(["-o", "Acquire::Languages=none"]);
        }
        command.args(args).current_dir(dir).env("LC_ALL", "C").stdin(Stdio::null());
        let output = match command.output() {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
                "there is no {program} here: the tiny guest is made from Debian packages, \
                 so build it on Debian and copy the cache"
            ),
            Err(error) => return Err(error).with_context(|| program.to_owned()),
        };
        ensure!(
            output.status.success(),
            "{program} {} ended with {}: {}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The kernel's package name in the `Depends:` field of `apt-cache show`.
fn kernel_dependency(shown: &str) -> Option<&str> {
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    depends
        .split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|name| name.starts_with("linux-image-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_read_from_the_metapackage() {
        let shown = "Package: linux-image-cloud-amd64\nVersion: 6.1.162-1\n\
                     Depends: initramfs-tools | dracut, linux-image-6.1.0-43-cloud-amd64 (= 6.1.162-1)\n";
        assert_eq!(kernel_dependency(shown), Some("linux-image-6.1.0-43-cloud-amd64"));
        assert_eq!(kernel_dependency("Package: x\nDepends: y\n"), None);
        assert_eq!(kernel_dependency(""), None);
    }
}
