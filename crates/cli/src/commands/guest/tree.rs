//! Trees of files, as they travel (docs/agent-protocol.md), from and to directories here.
//!
//! What comes from a guest is hostile: every name is opened beneath the destination, without following a link.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use roost_guest_proto::{Entry, EntryKind, TreeDecoder, TreeEvent, encode_entry};
use rustix::fs::{Mode, OFlags, ResolveFlags, fchmod, mkdirat, openat2, symlinkat};

/// Bytes read at a time.
const PIECE: usize = 64 << 10;
/// Permission bits.
const PERMISSIONS: u32 = 0o7777;

/// Reads a directory as a tree, piece by piece; `piece` says whether to go on.
pub(super) fn read(root: &Path, piece: &mut dyn FnMut(Vec<u8>) -> bool) -> io::Result<()> {
    let mut open: Vec<PathBuf> = vec![PathBuf::new()];
    while let Some(below) = open.pop() {
        let mut names: Vec<_> = fs::read_dir(root.join(&below))?.collect::<Result<_, _>>()?;
        names.sort_by_key(fs::DirEntry::file_name);
        for name in names {
            let path = below.join(name.file_name());
            let at = root.join(&path);
            let meta = fs::symlink_metadata(&at)?;
            let text = |path: &Path| {
                let refuse = || io::Error::other(format!("{}: its name is no UTF-8", path.display()));
                path.to_str().map(str::to_owned).ok_or_else(refuse)
            };
            let mut entry = Entry {
                path: text(&path)?,
                kind: EntryKind::File,
                mode: meta.mode() & PERMISSIONS,
                uid: None,
                gid: None,
                size: 0,
                modified: Some(meta.mtime()),
                target: None,
            };
            if meta.is_dir() {
                entry.kind = EntryKind::Directory;
                open.push(path);
            } else if meta.is_symlink() {
                entry.kind = EntryKind::Symlink;
                entry.target = Some(text(&fs::read_link(&at)?)?);
            } else if meta.is_file() {
                entry.size = meta.len();
            } else {
                // Sockets, pipes and devices are no content.
                continue;
            }
            let mut bytes = Vec::new();
            encode_entry(&entry, &mut bytes).map_err(io::Error::other)?;
            if !piece(bytes) {
                return Ok(());
            }
            if entry.kind == EntryKind::File && !contents(&at, entry.size, piece)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Exactly as many bytes of a file as were announced.
fn contents(path: &Path, size: u64, piece: &mut dyn FnMut(Vec<u8>) -> bool) -> io::Result<bool> {
    let mut file = File::open(path)?.take(size);
    let mut left = size;
    while left > 0 {
        let mut bytes = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
        file.read_exact(&mut bytes)
            .map_err(|e| io::Error::other(format!("{}: changed while it was read: {e}", path.display())))?;
        left -= bytes.len() as u64;
        if !piece(bytes) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A directory that a tree is written to.
pub(super) struct Writer {
    root: OwnedFd,
    decoder: TreeDecoder,
    file: Option<(File, Entry)>,
    /// Made last, so that nothing is ever written through one.
    links: Vec<Entry>,
}

impl Writer {
    pub(super) fn new(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        Ok(Self { root: File::open(root)?.into(), decoder: TreeDecoder::default(), file: None, links: Vec::new() })
    }

    /// Takes in the next bytes.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some(event) = self.decoder.next(&mut bytes).map_err(io::Error::other)? {
            match event {
                TreeEvent::Entry(entry) => self.begin(entry)?,
                TreeEvent::Data(data) => {
                    if let Some((file, _)) = &mut self.file {
                        io::Write::write_all(file, data)?;
                    }
                }
                TreeEvent::FileEnd => {
                    if let Some((file, entry)) = self.file.take() {
                        file.set_permissions(fs::Permissions::from_mode(entry.mode & 0o777))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The stream has ended.
    pub(super) fn finish(self) -> io::Result<()> {
        self.decoder.finish().map_err(io::Error::other)?;
        for link in &self.links {
            let (dir, name) = self.parent(&link.path)?;
            let target = link.target.as_deref().unwrap_or_default();
            match symlinkat(target, &dir, name) {
                Err(rustix::io::Errno::EXIST) => {
                    rustix::fs::unlinkat(&dir, name, rustix::fs::AtFlags::empty())?;
                    symlinkat(target, &dir, name)?;
                }
                made => made?,
            }
        }
        Ok(())
    }

    fn begin(&mut self, entry: Entry) -> io::Result<()> {
        match entry.kind {
            EntryKind::Symlink => self.links.push(entry),
            EntryKind::Directory => {
                let (dir, name) = self.parent(&entry.path)?;
                match mkdirat(&dir, name, Mode::from_raw_mode(0o700)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(e) => return Err(named(&entry.path, e)),
                }
                let made = beneath(&dir, name, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
                    .map_err(|e| named(&entry.path, e))?;
                // Ours to write below whatever the guest has it as.
                fchmod(&made, Mode::from_raw_mode(entry.mode & 0o777 | 0o700))?;
            }
            EntryKind::File => {
                let (dir, name) = self.parent(&entry.path)?;
                let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::NONBLOCK;
                let file = beneath(&dir, name, flags, Mode::from_raw_mode(0o600)).map_err(|e| named(&entry.path, e))?;
                self.file = Some((file.into(), entry));
            }
        }
        Ok(())
    }

    /// The directory that a path is in, and its last part. The decoder has seen to the path's form.
    fn parent<'a>(&self, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
        let dir =
            beneath(&self.root, dir, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).map_err(|e| named(path, e))?;
        Ok((dir, name))
    }
}

fn beneath(dir: impl AsFd, path: &str, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve)
}

fn named(path: &str, error: rustix::io::Errno) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(error.kind(), format!("{path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(root: &Path) -> Vec<u8> {
        let mut all = Vec::new();
        read(root, &mut |piece| {
            all.extend(piece);
            true
        })
        .unwrap();
        all
    }

    #[test]
    fn a_tree_comes_out_as_it_went_in() {
        let from = tempfile::tempdir().unwrap();
        fs::create_dir_all(from.path().join("a/b")).unwrap();
        fs::write(from.path().join("a/b/big"), vec![7; 200_000]).unwrap();
        fs::write(from.path().join("a/empty"), b"").unwrap();
        fs::set_permissions(from.path().join("a/empty"), fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("b/big", from.path().join("a/link")).unwrap();
        let bytes = bytes_of(from.path());

        let to = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(&to.path().join("new")).unwrap();
        bytes.chunks(777).for_each(|piece| writer.write(piece).unwrap());
        writer.finish().unwrap();
        assert_eq!(bytes_of(&to.path().join("new")).len(), bytes.len());
        assert_eq!(fs::read(to.path().join("new/a/link")).unwrap(), vec![7; 200_000]);
        assert_eq!(fs::metadata(to.path().join("new/a/empty")).unwrap().mode() & 0o777, 0o640);
    }

    #[test]
    fn nothing_is_written_outside() {
        let (outside, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path(), to.path().join("was-there")).unwrap();
        let entry = |path: &str, kind, target: Option<&str>| Entry {
            path: path.to_owned(),
            kind,
            mode: 0o755,
            uid: None,
            gid: None,
            size: 0,
            modified: None,
            target: target.map(str::to_owned),
        };
        // Through a link that was there before, and through one that the tree brings itself.
        let link = entry("link", EntryKind::Symlink, outside.path().to_str());
        for (first, second) in [
            (None, entry("was-there/x", EntryKind::File, None)),
            (Some(link.clone()), entry("link/x", EntryKind::File, None)),
        ] {
            let mut bytes = Vec::new();
            for entry in first.iter().chain([&second]) {
                encode_entry(entry, &mut bytes).unwrap();
            }
            let mut writer = Writer::new(to.path()).unwrap();
            writer.write(&bytes).unwrap_err();
            assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        }
        let mut writer = Writer::new(to.path()).unwrap();
        writer.write(b"\x05\0\0\0{\"pa").unwrap();
        writer.finish().unwrap_err();
    }
}
