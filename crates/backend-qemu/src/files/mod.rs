//! A VM's files, looked at before QEMU opens them: they are what the user named, and an image is
//! hostile until its header has been read.
//!
//! Owns: whether a file is there, is of the right kind and can be read; kernels ([`kernel`]) and
//! qcow2 headers ([`qcow2`]). Nothing here changes a file.

mod kernel;
mod qcow2;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use roost_backend::BackendError;
use roost_model::VmSpec;
use roost_model::spec::{Disk, DiskFormat};
use rustix::fs::{Mode, OFlags};

/// What the files of a VM turned out to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Checked {
    /// Per disk, in the spec's order: whether it is a block device of the host.
    pub(crate) block_devices: Vec<bool>,
}

/// As much of a file's start as any check reads.
const HEAD: u64 = 64 * 1024;

/// Looks at every file of the spec. Blocks on the file system.
pub(crate) fn check(spec: &VmSpec) -> Result<Checked, BackendError> {
    if let Some(path) = &spec.boot.kernel_path {
        check_kernel(path.as_path()).map_err(|e| e.field("config.boot.kernel_path"))?;
    }
    if let Some(path) = &spec.boot.initrd_path {
        open(path.as_path(), false)
            .map_err(|e| e.unreadable("KERNEL_UNREADABLE", "boot.initrd_path").field("config.boot.initrd_path"))?;
    }
    let at = |(i, disk)| check_disk(disk).map_err(|e: BackendError| e.field(format!("config.storage[{i}].path")));
    let block_devices = spec.storage.iter().enumerate().map(at).collect::<Result<_, _>>()?;
    Ok(Checked { block_devices })
}

fn check_kernel(path: &Path) -> Result<(), BackendError> {
    let unreadable = |e: Refused| e.unreadable("KERNEL_UNREADABLE", "boot.kernel_path");
    let opened = open(path, false).map_err(unreadable)?;
    let (head, _size) = opened.head().map_err(unreadable)?;
    kernel::check(&head).map_err(|problem| {
        BackendError::permanent("IMAGE_FORMAT", format!("boot.kernel_path {} {problem}", path.display()))
            .hint("give a bzImage (vmlinuz) or an ELF image with a PVH entry")
    })
}

fn check_disk(disk: &Disk) -> Result<bool, BackendError> {
    let field = format!("storage {}", disk.id);
    let path = disk.path.as_path();
    let unreadable = |e: Refused| e.unreadable("DISK_UNREADABLE", &field);
    let opened = open(path, !disk.read_only).map_err(unreadable)?;
    if disk.format == DiskFormat::Qcow2 {
        let (head, size) = opened.head().map_err(unreadable)?;
        qcow2::check(&head, size).map_err(|problem| {
            BackendError::permanent("IMAGE_REFUSED", format!("{field}: {} {problem}", path.display()))
                .hint("give a self-contained qcow2 image (`qemu-img convert` makes one), or declare the format raw")
        })?;
    }
    Ok(opened.block)
}

/// A file that is open for reading, and of a kind that QEMU may be given.
struct Opened {
    path: PathBuf,
    file: File,
    block: bool,
}

/// Why a file cannot be used.
struct Refused {
    path: PathBuf,
    problem: String,
}

impl Refused {
    fn unreadable(self, reason: &'static str, field: &str) -> BackendError {
        BackendError::permanent(reason, format!("{field}: {} {}", self.path.display(), self.problem))
            .hint("check the path, and that the daemon's user may use the file")
    }
}

/// Opens without waiting (a pipe) and without side effects (a device), then looks at what it is.
fn open(path: &Path, write: bool) -> Result<Opened, Refused> {
    let refuse = |problem: String| Refused { path: path.to_owned(), problem };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let place = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| refuse(cannot("found", e.into())))?;
    let metadata = File::from(place.try_clone().map_err(|e| refuse(cannot("read", e)))?)
        .metadata()
        .map_err(|e| refuse(cannot("read", e)))?;
    let kind = metadata.file_type();
    let block = kind.is_block_device();
    if kind.is_dir() {
        return Err(refuse("is a directory".to_owned()));
    }
    if !kind.is_file() && !block {
        return Err(refuse("is neither a regular file nor a block device".to_owned()));
    }
    // These name other things in another process: QEMU's own descriptors, not what was looked at here.
    let real = real_path(&place).map_err(|e| refuse(cannot("found", e)))?;
    if ["/proc", "/sys"].iter().any(|dir| real.starts_with(dir))
        || path.starts_with("/dev/fdset")
        || by_descriptor(path)
    {
        return Err(refuse("is not a stored file".to_owned()));
    }
    let mode = if write { OFlags::RDWR } else { OFlags::RDONLY };
    let file = rustix::fs::open(path, mode | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| refuse(cannot(if write { "opened for writing" } else { "read" }, e.into())))?;
    Ok(Opened { path: path.to_owned(), file: File::from(file), block })
}

/// A path through `/proc/<pid>/fd` or `/dev/fd`, whatever it leads to.
fn by_descriptor(path: &Path) -> bool {
    path.starts_with("/dev/fd") || path.starts_with("/proc")
}

fn real_path(place: &OwnedFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

fn cannot(what: &str, error: io::Error) -> String {
    format!("cannot be {what}: {error}")
}

impl Opened {
    /// The file's start, and its size.
    fn head(&self) -> Result<(Vec<u8>, u64), Refused> {
        let refuse = |e: io::Error| Refused { path: self.path.clone(), problem: cannot("read", e) };
        let mut head = Vec::new();
        (&self.file).take(HEAD).read_to_end(&mut head).map_err(refuse)?;
        let size = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0)).map_err(|e| refuse(e.into()))?;
        Ok((head, size))
    }
}

#[cfg(test)]
mod tests {
    use roost_model::Bytes;
    use roost_model::spec::{Boot, Bus, Device, Memory};

    use super::*;

    fn spec_with(disk: &Path, read_only: bool, format: DiskFormat) -> VmSpec {
        let mut spec = VmSpec::minimal(Memory::fixed(Bytes::from_mib(64)), Boot::default());
        spec.storage.push(Disk {
            id: "root".to_owned(),
            path: disk.to_str().unwrap().parse().unwrap(),
            read_only,
            is_root_device: true,
            bus: Bus::Virtio,
            format,
            device: Device::Disk,
        });
        spec
    }

    fn refusal(path: &str, format: DiskFormat) -> BackendError {
        check(&spec_with(Path::new(path), true, format)).unwrap_err()
    }

    #[test]
    fn what_is_no_disk_is_refused_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
        let missing = dir.path().join("a,b \"c\" json:{}");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/proc/self/environ", &link).unwrap();
        for path in [
            dir.path(),
            pipe.as_path(),
            &missing,
            &link,
            Path::new("/dev/null"),
            Path::new("/dev/fd/0"),
            Path::new("/proc/self/exe"),
        ] {
            let error = refusal(path.to_str().unwrap(), DiskFormat::Raw);
            assert_eq!(error.reason, "DISK_UNREADABLE", "{}", path.display());
            assert!(error.message.contains(path.to_str().unwrap()), "{error}");
            assert_eq!(error.field, "config.storage[0].path");
        }
    }

    #[test]
    fn a_read_only_file_is_no_writable_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, [0; 512]).unwrap();
        assert_eq!(check(&spec_with(&path, false, DiskFormat::Raw)).unwrap().block_devices, [false]);
        assert_eq!(refusal(path.to_str().unwrap(), DiskFormat::Qcow2).reason, "IMAGE_REFUSED");
    }
}
