//! Builds the tiny guest: Debian's kernel and an initramfs of busybox, drivers, the guest agent and
//! `guests/tiny/rootfs`.
//!
//! Owned here: what is in the image, and how it is booted. Not owned: where packages come from
//! ([`crate::packages`]), and what the guest does once it runs (the scripts of its rootfs).
//!
//! ```text
//! packages (downloaded once) --unpack--> kernel, modules, busybox --+--> vmlinuz, initrd
//! roost-agent, built static ----------------------------------------+
//! guests/tiny/rootfs -----------------------------------------------+
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::agent::static_agent_in;
use crate::cache::{Cache, Inputs};
use crate::cpio::Archive;
use crate::modules::{ModuleTree, modules_dep};
use crate::packages::{self, Packages};
use crate::repository;

/// The line that the guest prints on its console when it is up begins with this.
pub const GUEST_UP: &str = "roost: guest up";

/// The kernel command line that the guest is meant to be booted with. Each part has its reason in
/// `guests/tiny/README.md`.
pub const KERNEL_ARGS: &str = "console=ttyS0 quiet panic=-1 cryptomgr.notests mitigations=off";

/// Loaded at boot: what a VM may be made of, so that nothing has to be detected and hot-plug works.
const BOOT_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "pvpanic_pci",
    // Also the ISA device, which it finds by ACPI.
    "pvpanic_mmio",
    // The power button, and the event device that reports it.
    "button",
    "evdev",
];

/// In the image for modprobe, where the kernel has them.
const OTHER_MODULES: &[&str] = &[
    "virtio_scsi",
    "sd_mod",
    "sr_mod",
    "virtio_mem",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "qemu_fw_cfg",
    "ext4",
    "isofs",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "overlay",
];

/// Where the guest agent is; `start.d/40-agent` runs it.
const AGENT: &str = "sbin/roost-agent";

/// Directories that hold nothing in the archive.
const DIRECTORIES: &[&str] = &["dev", "mnt", "proc", "root", "run", "sys", "tmp", "var"];

/// A guest to boot with `-kernel` and `-initrd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TinyGuest {
    /// A bzImage.
    pub kernel: PathBuf,
    /// An uncompressed cpio archive: it is small, and unpacking would cost time under emulation.
    pub initrd: PathBuf,
}

/// The tiny guest from the user's cache, made first where it is not there.
pub fn tiny_guest() -> Result<TinyGuest> {
    tiny_guest_in(&Cache::from_env()?, &repository().join("guests/tiny/rootfs"))
}

/// The same from another cache and with another root file system, which may hold more drop-ins.
pub fn tiny_guest_in(cache: &Cache, rootfs: &Path) -> Result<TinyGuest> {
    let packages = packages::fetch(cache)?;
    let mut rootfs = read_rootfs(rootfs)?;
    let agent = fs::read(static_agent_in(cache)?).context("the agent")?;
    rootfs.push(RootFile { path: AGENT.to_owned(), executable: true, content: agent });

    let mut inputs = Inputs::new();
    for package in &packages.files {
        inputs.add("package", package.file_name().unwrap_or_default().as_encoded_bytes());
    }
    for file in &rootfs {
        inputs.add(&file.path, &file.content).add("executable", [u8::from(file.executable)]);
    }
    // The program is an input too: a change to what it does gives another image.
    for source in [include_str!("tiny.rs"), include_str!("cpio.rs"), include_str!("modules.rs")] {
        inputs.add("source", source);
    }
    let entry = cache.entry("tiny", &inputs, |dir| build(&packages, rootfs, dir))?;
    Ok(TinyGuest { kernel: entry.join("vmlinuz"), initrd: entry.join("initrd") })
}

/// The kernel command line on microvm under TCG: [`KERNEL_ARGS`], and what cures its boots and reboots that
/// hang (`guests/tiny/README.md` has why). The host's TSC frequency comes from `/proc/cpuinfo`; where that
/// does not say it, it is left out.
pub fn microvm_kernel_args() -> String {
    let mut args = format!("{KERNEL_ARGS} reboot=t");
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if let Some(khz) = tsc_khz(&cpuinfo) {
        args.push_str(&format!(" tsc_early_khz={khz}"));
    }
    args
}

/// The first CPU's frequency.
fn tsc_khz(cpuinfo: &str) -> Option<u32> {
    let mhz = cpuinfo.lines().find_map(|line| line.strip_prefix("cpu MHz")?.split_once(": "))?.1;
    let (whole, thousandths) = mhz.trim().split_once('.')?;
    let thousandths = format!("{thousandths:0<3}");
    Some(whole.parse::<u32>().ok()? * 1000 + thousandths.get(..3)?.parse::<u32>().ok()?)
}

struct RootFile {
    path: String,
    executable: bool,
    content: Vec<u8>,
}

/// The files below a directory, sorted by path. Of their modes only the executable bit counts, so that the
/// umask of a checkout does not show. Names with a leading dot keep a directory in git and are left out.
fn read_rootfs(root: &Path) -> Result<Vec<RootFile>> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let kind = entry.file_type()?;
            if kind.is_dir() {
                directories.push(path);
                continue;
            }
            ensure!(kind.is_file(), "{} is neither a file nor a directory", path.display());
            let relative = path.strip_prefix(root).expect("found below the root").to_str();
            files.push(RootFile {
                path: relative.with_context(|| format!("cannot use {}", path.display()))?.to_owned(),
                executable: entry.metadata()?.permissions().mode() & 0o111 != 0,
                content: fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?,
            });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn build(packages: &Packages, rootfs: Vec<RootFile>, dir: &Path) -> Result<()> {
    let unpacked = dir.join("unpacked");
    for package in &packages.files {
        let status = Command::new("dpkg-deb")
            .arg("-x")
            .args([package, &unpacked])
            .stdin(Stdio::null())
            .status()
            .context("cannot run dpkg-deb")?;
        ensure!(status.success(), "dpkg-deb cannot unpack {}", package.display());
    }
    let modules = ModuleTree::find(&unpacked)?;
    let archive = compose(&modules, &unpacked, rootfs)?;
    fs::write(dir.join("initrd"), archive.to_bytes()?).context("initrd")?;
    let kernel = unpacked.join("boot").join(format!("vmlinuz-{}", modules.release));
    fs::rename(&kernel, dir.join("vmlinuz")).with_context(|| format!("cannot find {}", kernel.display()))?;
    fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))
}

fn compose(modules: &ModuleTree, unpacked: &Path, rootfs: Vec<RootFile>) -> Result<Archive> {
    let mut archive = Archive::new();
    for directory in DIRECTORIES {
        archive.directory(directory)?;
    }
    // The kernel opens it before there is a devtmpfs; without it, init would be mute until it has one.
    archive.char_device("dev/console", 5, 1)?;
    for file in rootfs {
        archive.file(&file.path, file.executable, file.content)?;
    }
    add_busybox(&mut archive, unpacked)?;

    let other: Vec<&str> = OTHER_MODULES.iter().copied().filter(|name| modules.has(name)).collect();
    let closure = modules.closure(&[BOOT_MODULES, &other].concat())?;
    let tree = format!("lib/modules/{}", modules.release);
    archive.file(&format!("{tree}/modules.dep"), false, modules_dep(&closure).into_bytes())?;
    for module in closure {
        archive.file(&format!("{tree}/{}", module.path), false, module.content)?;
    }
    let at_boot: Vec<&str> = BOOT_MODULES.iter().copied().filter(|name| modules.is_module(name)).collect();
    archive.file("etc/roost/modules", false, (at_boot.join("\n") + "\n").into_bytes())?;
    Ok(archive)
}

/// busybox and a link for each of its programs, except where the rootfs has a file of that name.
fn add_busybox(archive: &mut Archive, unpacked: &Path) -> Result<()> {
    let places = ["bin/busybox", "usr/bin/busybox"].map(|place| unpacked.join(place));
    let busybox = places.iter().find(|path| path.is_file()).context("no busybox in its package")?;
    let list = Command::new(busybox)
        .arg("--list-full")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", busybox.display()))?;
    ensure!(list.status.success(), "busybox --list-full ended with {}", list.status);
    let list = String::from_utf8(list.stdout).context("busybox --list-full")?;
    archive.file("bin/busybox", true, fs::read(busybox)?)?;
    for program in list.lines() {
        if !archive.contains(program) {
            archive.symlink(program, "/bin/busybox")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rootfs_is_read_sorted_without_what_keeps_directories() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etc/stop.d")).unwrap();
        fs::write(dir.path().join("etc/stop.d/.gitkeep"), "").unwrap();
        fs::write(dir.path().join("etc/profile"), "a").unwrap();
        fs::write(dir.path().join("init"), "b").unwrap();
        fs::set_permissions(dir.path().join("init"), fs::Permissions::from_mode(0o700)).unwrap();
        let files: Vec<_> = read_rootfs(dir.path())
            .unwrap()
            .into_iter()
            .map(|file| (file.path, file.executable, file.content))
            .collect();
        assert_eq!(files, [("etc/profile".to_owned(), false, b"a".to_vec()), ("init".to_owned(), true, b"b".to_vec())]);
    }

    #[test]
    fn the_scripts_of_the_guest_are_executable_and_its_settings_are_not() {
        for file in read_rootfs(&repository().join("guests/tiny/rootfs")).unwrap() {
            let script = file.content.starts_with(b"#!");
            assert_eq!(file.executable, script, "{}", file.path);
        }
    }

    #[test]
    fn the_tsc_frequency_is_read_in_khz() {
        let cpuinfo = "processor\t: 0\nmodel name\t: X\ncpu MHz\t\t: 2445.432\ncpu MHz\t\t: 1.0\n";
        assert_eq!(tsc_khz(cpuinfo), Some(2_445_432));
        assert_eq!(tsc_khz("cpu MHz\t\t: 800.5\n"), Some(800_500));
        assert_eq!(tsc_khz("cpu MHz\t\t: fast\n"), None);
        assert_eq!(tsc_khz(""), None);
    }

    #[test]
    fn the_marker_is_what_the_guest_prints() {
        let start = repository().join("guests/tiny/rootfs/etc/roost/start");
        assert!(fs::read_to_string(start).unwrap().contains(&format!("echo \"{GUEST_UP} ")));
    }
}
