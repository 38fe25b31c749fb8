//! Where files may be read and written: beneath directories that the host and the settings both permit.
//!
//! A path is looked at as text first (absolute, no `.` or `..`), and then opened beneath its root by openat2, so that
//! no symbolic link leads out of it, now or between check and use.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use roost_guest_proto::{ErrorBody, ErrorCode};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// What both permit. The settings alone decide where the host says nothing, and the host where the settings do; with
/// neither there is no such place.
pub(crate) fn permitted(settings: Option<&[String]>, policy: Option<&[String]>) -> Vec<PathBuf> {
    let own = |roots: &[String]| roots.iter().filter(|root| is_plain(Path::new(root))).map(PathBuf::from).collect();
    match (settings, policy) {
        (None, None) => Vec::new(),
        (Some(roots), None) | (None, Some(roots)) => own(roots),
        (Some(settings), Some(policy)) => {
            let (settings, policy): (Vec<PathBuf>, Vec<PathBuf>) = (own(settings), own(policy));
            let deeper = |(a, b): (&PathBuf, &PathBuf)| {
                if a.starts_with(b) { Some(a.clone()) } else { b.starts_with(a).then(|| b.clone()) }
            };
            settings.iter().flat_map(|a| policy.iter().map(move |b| (a, b))).filter_map(deeper).collect()
        }
    }
}

/// Absolute, and every part of it a name.
fn is_plain(path: &Path) -> bool {
    // `components` leaves `.` in the middle out, so count on the text.
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        && path.to_str().is_some_and(|text| !text.contains('\0') && !text.split('/').any(|part| part == "."))
}

/// A path beneath a root: the root, open, and the rest.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) root: OwnedFd,
    /// Relative; empty: the root itself.
    pub(crate) rest: PathBuf,
}

impl Place {
    /// The place of a path.
    pub(crate) fn find(roots: &[PathBuf], path: &str) -> Result<Self, ErrorBody> {
        let shown: String = path.chars().take(256).collect();
        if !is_plain(Path::new(path)) || path.len() > 4095 {
            let message = format!("path: {shown:?}; permitted: an absolute path without `.` and `..`");
            return Err(ErrorBody::field("path", message));
        }
        let root =
            roots.iter().filter(|root| Path::new(path).starts_with(root)).max_by_key(|root| root.as_os_str().len());
        let Some(root) = root else {
            let message = if roots.is_empty() {
                "files are off: neither the VM's policy nor the agent's settings (files.roots) name a directory"
                    .to_owned()
            } else {
                let roots: Vec<String> = roots.iter().map(|root| root.display().to_string()).collect();
                format!("path: {shown:?} is outside of what is permitted: {}", roots.join(", "))
            };
            let details = Some(serde_json::json!({ "field": "path" }));
            return Err(ErrorBody { details, ..ErrorBody::new(ErrorCode::PermissionDenied, message) });
        };
        let rest = Path::new(path).strip_prefix(root).unwrap_or(Path::new("")).to_path_buf();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, root, flags, Mode::empty())
            .map_err(|error| explain(error.into(), &format!("the root {:?}", root.display())))?;
        Ok(Self { root, rest })
    }

    /// Opens the path itself.
    pub(crate) fn open(&self, flags: OFlags) -> io::Result<OwnedFd> {
        let rest = if self.rest.as_os_str().is_empty() { Path::new(".") } else { &self.rest };
        beneath(&self.root, rest, flags, Mode::empty())
    }

    /// The directory that the path is in, and its name there. `make`: missing directories are made.
    pub(crate) fn parent(&self, make: bool) -> io::Result<(OwnedFd, &OsStr)> {
        let Some(name) = self.rest.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a root itself"));
        };
        let parent = self.rest.parent().unwrap_or(Path::new(""));
        Ok((directory(&self.root, parent, make)?, name))
    }

    /// The path as a directory.
    pub(crate) fn directory(&self, make: bool) -> io::Result<OwnedFd> {
        directory(&self.root, &self.rest, make)
    }
}

fn directory(root: &OwnedFd, path: &Path, make: bool) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let shown = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    match beneath(root, shown, flags, Mode::empty()) {
        Err(error) if make && error.kind() == io::ErrorKind::NotFound => {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(error) };
            let parent = directory(root, parent, true)?;
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            beneath(root, path, flags, Mode::empty())
        }
        other => other,
    }
}

/// Opens a relative path; nothing on the way leads out of `root`.
pub(crate) fn beneath(root: &OwnedFd, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: something was renamed meanwhile, and the kernel cannot tell whether it led out.
    for _ in 0..8 {
        match openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOSYS) => {
                let message = "the guest's kernel has no openat2 (Linux 5.6)";
                return Err(io::Error::new(io::ErrorKind::Unsupported, message));
            }
            other => return Ok(other?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// An error of the file system, as an answer.
pub(crate) fn explain(error: io::Error, what: &str) -> ErrorBody {
    let code = match error.kind() {
        io::ErrorKind::NotFound => ErrorCode::NotFound,
        io::ErrorKind::PermissionDenied => ErrorCode::PermissionDenied,
        io::ErrorKind::Unsupported => ErrorCode::NotSupported,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::ResourceLimit,
        io::ErrorKind::InvalidInput => ErrorCode::InvalidMessage,
        // A link that leads out of the root.
        _ if error.raw_os_error() == Some(libc::EXDEV) => ErrorCode::PermissionDenied,
        _ => ErrorCode::CommandFailed,
    };
    let message = if error.raw_os_error() == Some(libc::EXDEV) {
        format!("{what}: it leads out of the permitted directory")
    } else {
        format!("{what}: {error}")
    };
    ErrorBody { details: Some(serde_json::json!({ "field": "path" })), ..ErrorBody::new(code, message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(list: &[&str]) -> Vec<String> {
        list.iter().map(|&root| root.to_owned()).collect()
    }

    #[test]
    fn what_both_permit() {
        let (a, b) = (roots(&["/srv", "/home/ann/x"]), roots(&["/srv/data", "/home/ann", "relative", "/a/../b"]));
        assert_eq!(permitted(Some(&a), Some(&b)), [Path::new("/srv/data"), Path::new("/home/ann/x")]);
        assert_eq!(permitted(None, None), Vec::<PathBuf>::new());
        assert_eq!(permitted(None, Some(&b)), [Path::new("/srv/data"), Path::new("/home/ann")]);
        assert!(permitted(Some(&[]), Some(&b)).is_empty());
    }

    #[test]
    fn nothing_leads_out() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(directory.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("out")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("etc")).unwrap();
        std::os::unix::fs::symlink("real", root.join("in")).unwrap();
        std::fs::write(root.join("real"), "y").unwrap();
        let roots = [root.clone()];
        let open =
            |name: &str| Place::find(&roots, &format!("{}/{name}", root.display())).unwrap().open(OFlags::RDONLY);
        assert!(open("in").is_ok());
        for name in ["out", "etc/passwd"] {
            let error = explain(open(name).unwrap_err(), "x");
            assert_eq!(error.code, ErrorCode::PermissionDenied, "{name}");
        }
        for path in ["/etc/passwd", &format!("{}x/y", root.display())] {
            assert_eq!(Place::find(&roots, path).unwrap_err().code, ErrorCode::PermissionDenied, "{path}");
        }
        for path in ["", "a", &format!("{}/../secret", root.display()), &format!("{}/./in", root.display())] {
            assert_eq!(Place::find(&roots, path).unwrap_err().code, ErrorCode::InvalidMessage, "{path}");
        }
    }
}
