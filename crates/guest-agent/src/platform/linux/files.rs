//! Replacing a file whole, so that whoever reads it sees the old or the new one.

use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Puts `bytes` in place of a file of the system's own. An existing one keeps its mode and owner, another gets `mode`.
///
/// The directory is root's, so no name in it is a trap. A file that is a mount point of its own (a container's
/// machine-id) cannot be replaced, and is written over.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let old = std::fs::metadata(path).ok();
    let mut temporary = name.to_owned();
    temporary.push(".roost-new");
    let temporary = directory.join(temporary);
    // One that an agent that was killed has left.
    let _ = std::fs::remove_file(&temporary);
    let put = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        if let Some(old) = &old {
            rustix::fs::fchown(
                &file,
                Some(rustix::fs::Uid::from_raw(old.uid())),
                Some(rustix::fs::Gid::from_raw(old.gid())),
            )?;
        }
        let mode = old.as_ref().map_or(mode, |old| old.mode() & 0o7777);
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    let put = put();
    if put.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    match put {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            let mut file = std::fs::OpenOptions::new().write(true).truncate(true).open(path)?;
            file.write_all(bytes)?;
            file.sync_all()
        }
        Err(error) => Err(error),
        Ok(()) => std::fs::File::open(directory)?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_and_link_stay() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        replace(&file, b"one", 0o644).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o644);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o444)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        std::fs::write(directory.path().join("file.roost-new"), b"left over").unwrap();
        replace(&link, b"two", 0o644).unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o444);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
        assert!(replace(Path::new("/nonexistent/x"), b"", 0o644).is_err());
    }
}
