//! A file to the guest. It grows beside its place, under a name of the agent's, and takes its place only when it is
//! whole: a reader sees the old one or the new one. What an attempt that broke off has left is what the next goes on from.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use roost_guest_proto::{ErrorBody, ErrorCode, FilePush};
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, SeekFrom, Uid, fchmod, fchown, flock, fstat, ftruncate,
    openat, renameat, seek, statat, unlinkat,
};
use rustix::io::Errno;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::roots::{Place, explain};
use super::{CHUNK, Moved, cancelled, hex, read, size, transfer, tree};
use crate::exec::users::Database;
use crate::run::Cancel;

/// Writes what comes out of `pipe`. The answer's data: how many bytes the file has.
pub(crate) fn push(roots: &[PathBuf], request: &FilePush, pipe: OwnedFd, cancel: &Cancel) -> Result<Value, ErrorBody> {
    if let Some(mode) = request.mode.filter(|mode| mode & !0o7777 != 0) {
        return Err(ErrorBody::field("mode", format!("mode: {mode:o}; permitted: permission bits, up to 7777")));
    }
    let owner = request.owner.as_deref().map(parse_owner).transpose()?;
    let place = Place::find(roots, &request.path)?;
    if request.tree {
        return tree::receive(&place, request, owner, pipe, cancel);
    }
    let failed = |error: io::Error| explain(error, &request.path);
    let (directory, name) = place.parent(request.parents).map_err(failed)?;
    let replaced = match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            let message = format!("path: {:?} is a directory; name the file in it", request.path);
            return Err(ErrorBody::field("path", message));
        }
        Ok(stat) => Some(stat).filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile),
        Err(Errno::NOENT) => None,
        Err(error) => return Err(failed(error.into())),
    };
    let part_name = part_name(name);
    let mut part = Part::open(&directory, &part_name, request)?;
    part.receive(&pipe, request, cancel)?;
    let hash = part.check(request)?;
    let mode = request.mode.or(replaced.map(|stat| stat.st_mode & 0o7777)).unwrap_or(0o644);
    let owner = owner.or(replaced.map(|stat| Owner { uid: stat.st_uid, gid: Some(stat.st_gid) }));
    if let Some(owner) = owner {
        owner.apply(&part.file).map_err(failed)?;
    }
    // After the owner: a change of that takes the set-user-ID bit away.
    fchmod(&part.file, Mode::from_raw_mode(mode)).map_err(|error| failed(error.into()))?;
    renameat(&directory, &part_name, &directory, name).map_err(|error| failed(error.into()))?;
    let mut data = json!({ "bytes": part.len, "mode": mode });
    if let Some(hash) = hash {
        data["sha256"] = hash.into();
    }
    Ok(data)
}

/// The name under which a file grows. It does not get longer with the file's own.
fn part_name(name: &OsStr) -> String {
    let mut hash = Sha256::new();
    hash.update(name.as_bytes());
    format!(".roost-part-{}", &hex(hash)[..24])
}

/// A file that grows.
struct Part {
    file: OwnedFd,
    len: u64,
    /// Only where it is to be checked.
    hash: Option<Sha256>,
}

impl Part {
    fn open(directory: &OwnedFd, name: &str, request: &FilePush) -> Result<Self, ErrorBody> {
        let failed = |error: Errno| explain(error.into(), &request.path);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = openat(directory, name, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            ErrorBody::new(ErrorCode::ResourceLimit, format!("path: another push to {:?} is under way", request.path))
        })?;
        let stat = fstat(&file).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink != 1 {
            let message = format!("path: {name:?} beside it is not what an attempt of the agent's leaves");
            return Err(ErrorBody::new(ErrorCode::CommandFailed, message));
        }
        let mut part = Self { file, len: 0, hash: request.sha256.is_some().then(Sha256::new) };
        let Some(at) = request.resume_at else {
            ftruncate(&part.file, 0).map_err(failed)?;
            return Ok(part);
        };
        if size(&stat) != at {
            let message = format!("resume_at: {at}; an earlier attempt has left {} bytes", size(&stat));
            let details = Some(json!({ "field": "resume_at", "bytes": size(&stat) }));
            return Err(ErrorBody { details, ..ErrorBody::new(ErrorCode::InvalidMessage, message) });
        }
        if let Some(hash) = &mut part.hash {
            let mut buffer = vec![0; CHUNK];
            loop {
                match read(&part.file, &mut buffer).map_err(|error| explain(error, &request.path))? {
                    0 => break,
                    len => hash.update(&buffer[..len]),
                }
            }
        }
        part.len = at;
        seek(&part.file, SeekFrom::Start(part.len)).map_err(failed)?;
        Ok(part)
    }

    fn receive(&mut self, pipe: &OwnedFd, request: &FilePush, cancel: &Cancel) -> Result<(), ErrorBody> {
        let mut buffer = vec![0; CHUNK];
        loop {
            // One more than may come is asked for, so that it is noticed.
            let left = request.size.map_or(u64::MAX, |size| size.saturating_sub(self.len).saturating_add(1));
            let mut hashes: Vec<&mut Sha256> = self.hash.iter_mut().collect();
            let limit = usize::try_from(left).unwrap_or(CHUNK);
            let len = match transfer(pipe, &self.file, limit, &mut buffer, &mut hashes) {
                Ok(Moved::Bytes(len)) => len,
                Ok(Moved::Gone) => return Err(self.broken_off(cancelled())),
                Err(error) => return Err(self.broken_off(explain(error, &request.path))),
            };
            self.len += len as u64;
            // The end of a pipe may be the end of the file, or of whoever sent it.
            if cancel.is_cancelled() {
                return Err(self.broken_off(cancelled()));
            }
            if len == 0 {
                return Ok(());
            }
            if let Some(size) = request.size.filter(|&size| self.len > size) {
                let _ = ftruncate(&self.file, 0);
                self.len = 0;
                let message = format!("size: {size}; more bytes than that came");
                return Err(self.broken_off(ErrorBody::field("size", message)));
            }
        }
    }

    /// What was promised is what came.
    fn check(&mut self, request: &FilePush) -> Result<Option<String>, ErrorBody> {
        if let Some(size) = request.size.filter(|&size| size != self.len) {
            let message = format!("size: {size}, but {} bytes came", self.len);
            return Err(self.broken_off(ErrorBody::field("size", message)));
        }
        let hash = self.hash.clone().map(hex);
        if let (Some(expected), Some(hash)) = (&request.sha256, &hash)
            && !expected.eq_ignore_ascii_case(hash)
        {
            // There is nothing to go on from.
            let _ = ftruncate(&self.file, 0);
            return Err(ErrorBody::field("sha256", format!("sha256: what came has {hash}")));
        }
        Ok(hash)
    }

    /// With what there is to go on from.
    fn broken_off(&self, mut error: ErrorBody) -> ErrorBody {
        let details = error.details.get_or_insert_with(|| json!({}));
        details["bytes"] = self.len.into();
        error
    }
}

/// Whose a file is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: Option<u32>,
}

impl Owner {
    pub(super) fn apply(self, file: &OwnedFd) -> io::Result<()> {
        let gid = self.gid.map(Gid::from_raw);
        Ok(fchown(file, Some(Uid::from_raw(self.uid)), gid)?)
    }
}

fn parse_owner(text: &str) -> Result<Owner, ErrorBody> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let users = Database::read();
    let user = users.user(user)?;
    let gid = group.map(|group| users.group(group)).transpose()?.unwrap_or(user.gid);
    Ok(Owner { uid: user.uid, gid: Some(gid) })
}

/// Removes what is in the way of an entry of a tree, if it is no directory.
pub(super) fn remove(directory: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
