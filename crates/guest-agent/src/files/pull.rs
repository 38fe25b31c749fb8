//! A file from the guest: its bytes into a pipe.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use roost_guest_proto::{ErrorBody, ErrorCode, FilePull};
use rustix::fs::{FileType, OFlags, SeekFrom, fstat, seek};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::roots::{Place, explain};
use super::{CHUNK, Moved, cancelled, hex, modified, read, size, transfer, tree};
use crate::run::Cancel;

/// Sends what is asked for into `pipe`. The answer's data: how many bytes, and what the file is.
pub(crate) fn pull(roots: &[PathBuf], request: &FilePull, pipe: OwnedFd, cancel: &Cancel) -> Result<Value, ErrorBody> {
    let place = Place::find(roots, &request.path)?;
    if request.tree {
        if request.offset > 0 || request.length.is_some() {
            return Err(ErrorBody::field("offset", "offset, length: of a single file only"));
        }
        return tree::send(&place, request, pipe, cancel);
    }
    let failed = |error: std::io::Error| explain(error, &request.path);
    // Opening a FIFO or a device must not wait, nor do anything.
    let file = place.open(OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY).map_err(failed)?;
    let stat = fstat(&file).map_err(|error| failed(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        let message = format!("path: {:?} is no regular file; a directory is pulled as a tree", request.path);
        return Err(ErrorBody::field("path", message));
    }
    if request.offset > size(&stat) {
        let message = format!("offset: {}; permitted: up to the file's {} bytes", request.offset, size(&stat));
        return Err(ErrorBody::field("offset", message));
    }
    let mut buffer = vec![0; CHUNK];
    let mut hash = request.sha256.then(Sha256::new);
    // Of the whole file, where it goes to its end: what the host has already is part of it.
    let mut whole = (request.sha256 && request.offset > 0 && request.length.is_none()).then(Sha256::new);
    if let Some(whole) = &mut whole {
        let mut left = request.offset;
        while left > 0 {
            if cancel.is_cancelled() {
                return Err(cancelled());
            }
            let wanted = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            match read(&file, &mut buffer[..wanted]).map_err(failed)? {
                0 => return Err(ErrorBody::new(ErrorCode::CommandFailed, "the file was cut short meanwhile")),
                len => {
                    whole.update(&buffer[..len]);
                    left -= len as u64;
                }
            }
        }
    } else {
        seek(&file, SeekFrom::Start(request.offset)).map_err(|error| failed(error.into()))?;
    }
    let mut sent = 0u64;
    let mut left = request.length.unwrap_or(u64::MAX);
    while left > 0 {
        let mut hashes: Vec<&mut Sha256> = [&mut hash, &mut whole].into_iter().flatten().collect();
        let wanted = usize::try_from(left).unwrap_or(CHUNK);
        let moved = transfer(&file, &pipe, wanted, &mut buffer, &mut hashes).map_err(failed)?;
        let Moved::Bytes(len) = moved else { return Err(cancelled()) };
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        if len == 0 {
            break;
        }
        sent += len as u64;
        left -= len as u64;
    }
    let mut data = json!({
        "bytes": sent,
        "size": size(&stat),
        "mode": stat.st_mode & 0o7777,
        "uid": stat.st_uid,
        "gid": stat.st_gid,
        "modified": modified(&stat),
    });
    if let Some(hash) = hash {
        data["sha256"] = hex(hash).into();
    }
    if let Some(whole) = whole {
        data["file_sha256"] = hex(whole).into();
    }
    Ok(data)
}
