//! Reading the kernel's files into one buffer that is kept, each up to a bound.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::metrics::Failure;

/// What the buffer keeps between collections.
const KEPT: usize = 16 * 1024;

/// Files beneath a root, which is `/` but in tests. They are opened each time: a proc that is mounted after the agent
/// started is found, and nothing is held open.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    buffer: Vec<u8>,
}

impl Files {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, buffer: Vec::new() }
    }

    /// The path of a file under the root.
    pub(super) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// The first `max` bytes of a file, until the next read. The path is relative to the root.
    pub(super) fn read(&mut self, path: &str, max: usize) -> Result<&[u8], Failure> {
        let file = self.root.join(path);
        match open_and_read(&file, &mut self.buffer, max) {
            Ok(()) => Ok(&self.buffer),
            Err(source) => Err(Failure::Read { path: file, source }),
        }
    }

    /// The same, where a missing file means that this kernel has no such thing.
    pub(super) fn read_if_there(&mut self, path: &str, max: usize) -> Result<Option<&[u8]>, Failure> {
        match self.read(path, max) {
            Ok(_) => Ok(Some(&self.buffer)),
            Err(Failure::Read { source, .. }) if is_absent(&source) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The buffer, for one who reads by himself.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Gives back what an unusually large file took.
    pub(super) fn shrink(&mut self) {
        self.buffer.clear();
        self.buffer.shrink_to(KEPT);
    }
}

/// A file, or the driver behind it, is not there. A pressure file of a kernel that was told not to account answers
/// with "not supported".
pub(super) fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error().is_some_and(|code| {
            code == rustix::io::Errno::OPNOTSUPP.raw_os_error() || code == rustix::io::Errno::NODEV.raw_os_error()
        })
}

fn open_and_read(path: &Path, buffer: &mut Vec<u8>, max: usize) -> io::Result<()> {
    // Without waiting, should somebody have put a FIFO there.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    read_all(rustix::fs::open(path, flags, Mode::empty())?, buffer, max)
}

/// What a descriptor gives, up to `max` bytes, in place of what the buffer held.
pub(super) fn read_all(file: impl rustix::fd::AsFd, buffer: &mut Vec<u8>, max: usize) -> io::Result<()> {
    buffer.clear();
    while buffer.len() < max {
        // What there is, or else twice of it: at least a page, because a record is not split below that. Never past
        // the bound.
        let spare = buffer.capacity() - buffer.len();
        let room = if spare < 4096 { buffer.capacity().max(4096) } else { spare }.min(max - buffer.len());
        let filled = buffer.len();
        buffer.reserve(room);
        buffer.resize(filled + room, 0);
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut buffer[filled..]));
        buffer.truncate(filled + *read.as_ref().unwrap_or(&0));
        if read? == 0 {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_the_bound_and_a_large_one_keeps_no_memory() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), vec![b'x'; 100_000]).unwrap();
        let mut files = Files::new(root.path().to_owned());
        assert_eq!(files.read("file", 1 << 20).unwrap().len(), 100_000);
        assert_eq!(files.read("file", 10).unwrap(), b"xxxxxxxxxx");
        files.shrink();
        assert!(files.buffer().capacity() <= KEPT);
        assert!(files.read_if_there("none", 10).unwrap().is_none());
        assert!(files.read("none", 10).unwrap_err().to_string().ends_with("none"));
    }

    #[test]
    fn a_fifo_without_a_writer_ends_the_read() {
        let root = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.path().join("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        assert_eq!(Files::new(root.path().to_owned()).read("fifo", 10).unwrap(), b"");
    }
}
