//! Writes a cpio archive in the "newc" format, which the kernel unpacks as an initramfs.
//!
//! The bytes depend on the entries alone: sorted by path, all owned by root, all times 0, so that equal
//! inputs give equal images. Only writing is done here, and only the kinds of entries that are used.
//!
//! Format: `Documentation/driver-api/early-userspace/buffer-format.rst` in the Linux sources.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

/// An archive in memory. Directories that lead to an entry need not be added.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    /// By path without a leading slash. A directory sorts before what it holds.
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    Directory,
    File { executable: bool, content: Vec<u8> },
    Symlink { target: String },
    CharDevice { major: u32, minor: u32 },
}

impl Archive {
    /// An archive without entries.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a directory with mode 0755, and those above it.
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        self.parents(path)?;
        match self.entries.insert(path.to_owned(), Entry::Directory) {
            None | Some(Entry::Directory) => Ok(()),
            Some(_) => bail!("{path} is both a directory and something else"),
        }
    }

    /// Adds a file with mode 0755 or 0644.
    pub(crate) fn file(&mut self, path: &str, executable: bool, content: Vec<u8>) -> Result<()> {
        self.add(path, Entry::File { executable, content })
    }

    /// Adds a symbolic link to `target`.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.add(path, Entry::Symlink { target: target.to_owned() })
    }

    /// Adds a character device that only root may use. It is made by the guest's kernel, so writing the
    /// archive needs no privilege.
    pub(crate) fn char_device(&mut self, path: &str, major: u32, minor: u32) -> Result<()> {
        self.add(path, Entry::CharDevice { major, minor })
    }

    /// Whether there is an entry of this path.
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    /// The archive's bytes.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (number, (path, entry)) in (1u32..).zip(&self.entries) {
            let (mode, device, content): (u32, (u32, u32), &[u8]) = match entry {
                Entry::Directory => (0o40755, (0, 0), &[]),
                Entry::File { executable: true, content } => (0o100755, (0, 0), content),
                Entry::File { executable: false, content } => (0o100644, (0, 0), content),
                Entry::Symlink { target } => (0o120777, (0, 0), target.as_bytes()),
                Entry::CharDevice { major, minor } => (0o20600, (*major, *minor), &[]),
            };
            write_entry(&mut out, number, mode, device, path, content)?;
        }
        write_entry(&mut out, 0, 0, (0, 0), "TRAILER!!!", &[])?;
        Ok(out)
    }

    fn add(&mut self, path: &str, entry: Entry) -> Result<()> {
        self.parents(path)?;
        ensure!(!self.contains(path), "{path} is in the archive twice");
        self.entries.insert(path.to_owned(), entry);
        Ok(())
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        let usual = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        ensure!(path.split('/').all(usual), "{path:?} is not a plain relative path");
        match path.rsplit_once('/') {
            Some((parent, _)) => self.directory(parent),
            None => Ok(()),
        }
    }
}

fn write_entry(
    out: &mut Vec<u8>,
    inode: u32,
    mode: u32,
    (major, minor): (u32, u32),
    path: &str,
    content: &[u8],
) -> Result<()> {
    let links = 1;
    let name_size = u32::try_from(path.len() + 1)?;
    let file_size = u32::try_from(content.len())?;
    // inode, mode, uid, gid, links, mtime, size, device (2), device node (2), name size, checksum
    let fields = [inode, mode, 0, 0, links, 0, file_size, 0, 0, major, minor, name_size, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(content);
    pad(out);
    Ok(())
}

/// Names and contents are each filled up to four bytes, counted from the archive's start.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Read {
        mode: u32,
        device: (u32, u32),
        path: String,
        content: Vec<u8>,
    }

    /// Reads an archive back by the format's description.
    fn read(mut bytes: &[u8]) -> Vec<Read> {
        let mut entries = Vec::new();
        loop {
            let (header, rest) = bytes.split_at(110);
            assert_eq!(&header[..6], b"070701");
            let field = |n: usize| {
                let digits = std::str::from_utf8(&header[6 + n * 8..][..8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, mtime, size) = (field(1), field(5), field(6) as usize);
            assert_eq!((field(2), field(3), mtime), (0, 0, 0), "owner and time");
            let name_size = field(11) as usize;
            let name = String::from_utf8(rest[..name_size - 1].to_vec()).unwrap();
            assert_eq!(rest[name_size - 1], 0);
            let start = (110 + name_size).next_multiple_of(4) - 110;
            if name == "TRAILER!!!" {
                assert_eq!(rest.len(), start, "nothing follows the trailer");
                return entries;
            }
            entries.push(Read {
                mode,
                device: (field(9), field(10)),
                path: name,
                content: rest[start..start + size].to_vec(),
            });
            bytes = &rest[(110 + start + size).next_multiple_of(4) - 110..];
        }
    }

    #[test]
    fn what_is_written_reads_back_sorted_with_its_parents() {
        let mut archive = Archive::new();
        archive.file("init", true, b"#!/bin/sh\n".to_vec()).unwrap();
        archive.symlink("bin/sh", "/bin/busybox").unwrap();
        archive.file("etc/a/b", false, b"12345".to_vec()).unwrap();
        archive.directory("etc/a").unwrap();
        archive.char_device("dev/console", 5, 1).unwrap();
        let entries = read(&archive.to_bytes().unwrap());
        let entry = |mode, device, path: &str, content: &[u8]| Read {
            mode,
            device,
            path: path.to_owned(),
            content: content.to_vec(),
        };
        let expected = [
            entry(0o40755, (0, 0), "bin", b""),
            entry(0o120777, (0, 0), "bin/sh", b"/bin/busybox"),
            entry(0o40755, (0, 0), "dev", b""),
            entry(0o20600, (5, 1), "dev/console", b""),
            entry(0o40755, (0, 0), "etc", b""),
            entry(0o40755, (0, 0), "etc/a", b""),
            entry(0o100644, (0, 0), "etc/a/b", b"12345"),
            entry(0o100755, (0, 0), "init", b"#!/bin/sh\n"),
        ];
        assert_eq!(entries, expected);
    }

    #[test]
    fn the_order_of_adding_does_not_show() {
        let mut one = Archive::new();
        one.file("a", false, vec![1]).unwrap();
        one.file("b/c", false, vec![2]).unwrap();
        let mut other = Archive::new();
        other.file("b/c", false, vec![2]).unwrap();
        other.file("a", false, vec![1]).unwrap();
        assert_eq!(one.to_bytes().unwrap(), other.to_bytes().unwrap());
    }

    #[test]
    fn a_path_that_leaves_the_archive_or_comes_twice_is_refused() {
        let mut archive = Archive::new();
        for path in ["", "/etc", "../etc", "a//b", "a/./b", "a/", "a\0b"] {
            assert!(archive.file(path, false, vec![]).is_err(), "{path:?}");
        }
        archive.file("a", false, vec![]).unwrap();
        assert!(archive.symlink("a", "b").is_err());
        assert!(archive.file("a/b", false, vec![]).is_err(), "a file is no directory");
    }
}
