//! A directory with all that is in it, as one stream of entries (`guest-proto`'s `tree`).
//!
//! Coming in, nothing is written through a symbolic link, not even one that the stream itself made. Going out, links
//! go as links; sockets, FIFOs and devices are counted and left out.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use roost_guest_proto::{
    Entry, EntryError, EntryKind, ErrorBody, ErrorCode, FilePull, FilePush, TreeDecoder, TreeEvent, encode_entry,
};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chownat, fchmod, fstat,
    futimens, mkdirat, openat, openat2, readlinkat, statat, symlinkat,
};
use rustix::io::Errno;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::push::{Owner, remove};
use super::roots::{Place, explain};
use super::{CHUNK, cancelled, hex, modified, read, size, write_all};
use crate::run::Cancel;

/// How deep a tree may be.
const MAX_DEPTH: usize = 128;

/// Writes the tree that comes out of `pipe` into a directory, which is made if there is none.
pub(super) fn receive(
    place: &Place,
    request: &FilePush,
    owner: Option<Owner>,
    pipe: OwnedFd,
    cancel: &Cancel,
) -> Result<Value, ErrorBody> {
    let failed = |error: io::Error| explain(error, &request.path);
    let root = match place.directory(request.parents) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (parent, name) = place.parent(false).map_err(failed)?;
            mkdirat(&parent, name, Mode::from_raw_mode(0o755)).map_err(|error| failed(error.into()))?;
            place.directory(false).map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    let mut writer = Writer { root, owner, file: None, directories: Vec::new(), entries: 0 };
    let mut decoder = TreeDecoder::default();
    let mut hash = request.sha256.is_some().then(Sha256::new);
    let mut buffer = vec![0; CHUNK];
    let mut total = 0u64;
    loop {
        let len = read(&pipe, &mut buffer).map_err(failed)?;
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        if len == 0 {
            break;
        }
        if let Some(hash) = &mut hash {
            hash.update(&buffer[..len]);
        }
        total += len as u64;
        let mut input = &buffer[..len];
        while let Some(event) = decoder.next(&mut input).map_err(|error| no_tree(&error))? {
            writer.take(event).map_err(failed)?;
        }
    }
    // The end of an empty file at the very end is told without any byte.
    while let Some(event) = decoder.next(&mut [].as_slice()).map_err(|error| no_tree(&error))? {
        writer.take(event).map_err(failed)?;
    }
    decoder.finish().map_err(|error| no_tree(&error))?;
    let hash = hash.map(hex);
    if let (Some(expected), Some(hash)) = (&request.sha256, &hash)
        && !expected.eq_ignore_ascii_case(hash)
    {
        return Err(ErrorBody::field("sha256", format!("sha256: what came has {hash}")));
    }
    let entries = writer.entries;
    writer.finish().map_err(failed)?;
    let mut data = json!({ "bytes": total, "entries": entries });
    if let Some(hash) = hash {
        data["sha256"] = hash.into();
    }
    Ok(data)
}

fn no_tree(error: &EntryError) -> ErrorBody {
    ErrorBody::new(ErrorCode::InvalidMessage, format!("the stream is no tree: {error}"))
}

struct Writer {
    root: OwnedFd,
    owner: Option<Owner>,
    file: Option<(OwnedFd, Entry)>,
    /// What they get at the end: before that, something may still go into them.
    directories: Vec<Entry>,
    entries: u64,
}

impl Writer {
    fn take(&mut self, event: TreeEvent<'_>) -> io::Result<()> {
        match event {
            TreeEvent::Entry(entry) => self.entry(entry),
            TreeEvent::Data(bytes) => match &self.file {
                Some((file, _)) => write_all(file, bytes),
                None => Ok(()),
            },
            TreeEvent::FileEnd => match self.file.take() {
                Some((file, entry)) => self.complete(&file, &entry),
                None => Ok(()),
            },
        }
    }

    fn entry(&mut self, entry: Entry) -> io::Result<()> {
        self.entries += 1;
        let path = Path::new(&entry.path);
        let name = path.file_name().unwrap_or(OsStr::new(""));
        let parent = inside(&self.root, path.parent().unwrap_or(Path::new("")))?;
        match entry.kind {
            EntryKind::Directory => {
                match mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
                    Ok(()) => {}
                    Err(Errno::EXIST) => drop(inside(&self.root, path)?),
                    Err(error) => return Err(error.into()),
                }
                self.directories.push(entry);
            }
            EntryKind::File => {
                remove(&parent, name)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(&parent, name, flags, Mode::from_raw_mode(0o600))?;
                self.file = Some((file, entry));
            }
            EntryKind::Symlink => {
                remove(&parent, name)?;
                symlinkat(entry.target.as_deref().unwrap_or_default(), &parent, name)?;
                if let Some(owner) = self.owner {
                    let (uid, gid) = (Uid::from_raw(owner.uid), owner.gid.map(Gid::from_raw));
                    chownat(&parent, name, Some(uid), gid, AtFlags::SYMLINK_NOFOLLOW)?;
                }
            }
        }
        Ok(())
    }

    fn complete(&self, file: &OwnedFd, entry: &Entry) -> io::Result<()> {
        let owner = self.owner.or(entry.uid.map(|uid| Owner { uid, gid: entry.gid }));
        if let Some(owner) = owner {
            owner.apply(file)?;
        }
        fchmod(file, Mode::from_raw_mode(entry.mode))?;
        if let Some(seconds) = entry.modified {
            let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
            futimens(file, &Timestamps { last_access: time, last_modification: time })?;
        }
        Ok(())
    }

    fn finish(self) -> io::Result<()> {
        for entry in self.directories.iter().rev() {
            let directory = inside(&self.root, Path::new(&entry.path))?;
            self.complete(&directory, entry)?;
        }
        Ok(())
    }
}

/// A directory of the tree that is written, through no symbolic link.
fn inside(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(openat2(root, path, flags, Mode::empty(), resolve)?)
}

/// Sends a directory into `pipe`.
pub(super) fn send(place: &Place, request: &FilePull, pipe: OwnedFd, cancel: &Cancel) -> Result<Value, ErrorBody> {
    let path = &request.path;
    let root = place.directory(false).map_err(|error| explain(error, path))?;
    let mut sender = Sender {
        pipe,
        hash: request.sha256.then(Sha256::new),
        bytes: 0,
        entries: 0,
        skipped: 0,
        changed: 0,
        buffer: vec![0; CHUNK],
        cancel,
    };
    sender.directory(&root, &PathBuf::new(), 0).map_err(|error| match error {
        Failed::Gone => cancelled(),
        Failed::At(at, error) => explain(error, &format!("{path}/{}", at.display())),
    })?;
    let mut data = json!({
        "bytes": sender.bytes,
        "entries": sender.entries,
        "skipped": sender.skipped,
        "changed": sender.changed,
    });
    if let Some(hash) = sender.hash {
        data["sha256"] = hex(hash).into();
    }
    Ok(data)
}

enum Failed {
    /// Nobody reads any more.
    Gone,
    At(PathBuf, io::Error),
}

struct Sender<'a> {
    pipe: OwnedFd,
    hash: Option<Sha256>,
    bytes: u64,
    entries: u64,
    skipped: u64,
    /// Files that were cut short while they were read; zeroes take the place of the rest.
    changed: u64,
    buffer: Vec<u8>,
    cancel: &'a Cancel,
}

impl Sender<'_> {
    fn directory(&mut self, directory: &OwnedFd, path: &Path, depth: usize) -> Result<(), Failed> {
        let failed = |error: Errno| Failed::At(path.to_path_buf(), error.into());
        if depth > MAX_DEPTH {
            return Err(Failed::At(path.to_path_buf(), io::Error::other(format!("deeper than {MAX_DEPTH}"))));
        }
        let mut names: Vec<OsString> = Vec::new();
        for entry in Dir::read_from(directory).map_err(failed)? {
            let name = OsStr::from_bytes(entry.map_err(failed)?.file_name().to_bytes()).to_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort();
        for name in names {
            self.entry(directory, &name, &path.join(&name), depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, directory: &OwnedFd, name: &OsStr, path: &Path, depth: usize) -> Result<(), Failed> {
        let failed = |error: Errno| Failed::At(path.to_path_buf(), error.into());
        let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It went away meanwhile.
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let Some(text) = path.to_str() else {
            // A name that is no UTF-8 has no form in an entry.
            self.skipped += 1;
            return Ok(());
        };
        let mut entry = Entry {
            path: text.to_owned(),
            kind: EntryKind::File,
            mode: stat.st_mode & 0o7777,
            uid: Some(stat.st_uid),
            gid: Some(stat.st_gid),
            size: 0,
            modified: Some(modified(&stat)),
            target: None,
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                entry.kind = EntryKind::Directory;
                let inner = openat(directory, name, flags | OFlags::DIRECTORY, Mode::empty()).map_err(failed)?;
                self.send_entry(&entry, path)?;
                self.directory(&inner, path, depth + 1)
            }
            FileType::Symlink => {
                let target = readlinkat(directory, name, Vec::new()).map_err(failed)?;
                let Ok(target) = target.into_string() else {
                    self.skipped += 1;
                    return Ok(());
                };
                (entry.kind, entry.target) = (EntryKind::Symlink, Some(target));
                self.send_entry(&entry, path)
            }
            FileType::RegularFile => {
                let file = openat(directory, name, flags, Mode::empty()).map_err(failed)?;
                let stat = fstat(&file).map_err(failed)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    self.skipped += 1;
                    return Ok(());
                }
                entry.size = size(&stat);
                self.send_entry(&entry, path)?;
                self.content(&file, entry.size, path)
            }
            _ => {
                self.skipped += 1;
                Ok(())
            }
        }
    }

    fn send_entry(&mut self, entry: &Entry, path: &Path) -> Result<(), Failed> {
        let mut bytes = Vec::new();
        if let Err(error) = encode_entry(entry, &mut bytes) {
            return Err(Failed::At(path.to_path_buf(), io::Error::other(error)));
        }
        self.entries += 1;
        self.send(&bytes)
    }

    /// Exactly as many bytes as its entry says.
    fn content(&mut self, file: &OwnedFd, size: u64, path: &Path) -> Result<(), Failed> {
        let mut left = size;
        let mut short = false;
        while left > 0 {
            let mut buffer = std::mem::take(&mut self.buffer);
            let wanted = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let len = if short {
                0
            } else {
                read(file, &mut buffer[..wanted]).map_err(|error| Failed::At(path.to_path_buf(), error))?
            };
            let len = if len == 0 {
                self.changed += u64::from(!short);
                short = true;
                buffer[..wanted].fill(0);
                wanted
            } else {
                len
            };
            let sent = self.send(&buffer[..len]);
            self.buffer = buffer;
            sent?;
            left -= len as u64;
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        if self.cancel.is_cancelled() || write_all(&self.pipe, bytes).is_err() {
            return Err(Failed::Gone);
        }
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}
