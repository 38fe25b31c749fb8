//! What a path is.

use std::path::PathBuf;

use roost_guest_proto::{ErrorBody, FileInfo, FileKind, FileStat};
use rustix::fs::{Dir, FileType, OFlags, fstat, readlinkat};
use sha2::{Digest, Sha256};

use super::roots::{Place, explain};
use super::{CHUNK, cancelled, hex, modified, read, size};
use crate::run::Cancel;

/// The most names of a directory.
const MAX_NAMES: usize = 1000;
/// The longest name or target that is told.
const MAX_TEXT: usize = 4096;

/// What is at a path; a symbolic link is told as one.
pub(crate) fn stat(roots: &[PathBuf], request: &FileStat, cancel: &Cancel) -> Result<FileInfo, ErrorBody> {
    let place = Place::find(roots, &request.path)?;
    let failed = |error: std::io::Error| explain(error, &request.path);
    let fd = place.open(OFlags::PATH | OFlags::NOFOLLOW).map_err(failed)?;
    let stat = fstat(&fd).map_err(|error| failed(error.into()))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    };
    let mut info = FileInfo {
        kind,
        size: size(&stat),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: modified(&stat),
        target: None,
        sha256: None,
        entries: None,
    };
    if kind == FileKind::Symlink {
        let target = readlinkat(&fd, "", Vec::new()).map_err(|error| failed(error.into()))?;
        info.target = Some(target.to_string_lossy().chars().take(MAX_TEXT).collect());
    }
    if request.sha256 && kind == FileKind::File {
        let file = place.open(OFlags::RDONLY | OFlags::NOFOLLOW).map_err(failed)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            if cancel.is_cancelled() {
                return Err(cancelled());
            }
            match read(&file, &mut buffer).map_err(failed)? {
                0 => break,
                len => hash.update(&buffer[..len]),
            }
        }
        info.sha256 = Some(hex(hash));
    }
    if request.list && kind == FileKind::Directory {
        let directory = place.directory(false).map_err(failed)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory).map_err(|error| failed(error.into()))? {
            let entry = entry.map_err(|error| failed(error.into()))?;
            let name = entry.file_name().to_string_lossy();
            if name != "." && name != ".." {
                names.push(name.into_owned());
            }
            if names.len() == MAX_NAMES {
                break;
            }
        }
        names.sort();
        info.entries = Some(names);
    }
    Ok(info)
}
