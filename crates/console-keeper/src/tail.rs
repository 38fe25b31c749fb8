//! Reading the end of a console log while a keeper writes to it.
//!
//! Owns: [`read_tail`], and the last bytes that a keeper has in memory for its next client.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::begin::marked;
use crate::follow::Since;
use crate::{LOG_FILE, OLD_LOG_FILE};

/// The last `bytes` of the console log in `dir`, across both its files; fewer if there are fewer, and
/// none if there is no log. Safe while a keeper writes and rotates.
///
/// # Errors
/// The directory or a log file cannot be read, or is a symbolic link.
pub fn read_tail(dir: &Path, bytes: usize) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, Mode::empty())?;
    read_tail_at(dir.as_fd(), bytes)
}

pub(crate) fn read_tail_at(dir: BorrowedFd<'_>, bytes: usize) -> io::Result<Vec<u8>> {
    Ok(read_tail_and_end(dir, bytes, Since::Ever)?.0)
}

/// The current log, and how much of it a tail has covered.
pub(crate) type End = (OwnedFd, Stat, u64);

/// The tail, and the place in the current log at which it ends: what is written later is beyond it.
pub(crate) fn read_tail_and_end(dir: BorrowedFd<'_>, bytes: usize, since: Since) -> io::Result<(Vec<u8>, Option<End>)> {
    // A rotation takes half a cap of output: another one while we open two files is rare, ten in a
    // row do not happen. The last attempt is used as it is.
    let mut pair = LogPair::open(dir)?;
    for _ in 0..10 {
        if pair.is_current(dir)? {
            break;
        }
        pair = LogPair::open(dir)?;
    }
    let begin = match since {
        Since::Ever => None,
        Since::Start => marked(dir),
    };
    pair.tail(bytes, begin)
}

struct LogPair {
    current: Option<(OwnedFd, Stat)>,
    old: Option<(OwnedFd, Stat)>,
}

impl LogPair {
    /// The current file first: what a rotation renames meanwhile is then seen twice, which
    /// `is_current` notices, and never missed.
    fn open(dir: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { current: open_log(dir, LOG_FILE)?, old: open_log(dir, OLD_LOG_FILE)? })
    }

    fn is_current(&self, dir: BorrowedFd<'_>) -> io::Result<bool> {
        let now = match rustix::fs::statat(dir, LOG_FILE, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(identity(&stat)),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno.into()),
        };
        let of = |file: &Option<(OwnedFd, Stat)>| file.as_ref().map(|(_, stat)| identity(stat));
        let (current, old) = (of(&self.current), of(&self.old));
        Ok(now == current && (current.is_none() || current != old))
    }

    fn tail(self, bytes: usize, begin: Option<(u64, u64)>) -> io::Result<(Vec<u8>, Option<End>)> {
        // What lies before the mark, in the file that it names.
        let before = |stat: &Stat| begin.filter(|(inode, _)| *inode == stat.st_ino).map(|(_, size)| size);
        let (of_current, end) = match self.current {
            Some((file, stat)) => {
                let marked = before(&stat);
                let (tail, end) = file_tail(&file, bytes, marked.unwrap_or(0))?;
                let end = Some((file, stat, end));
                if marked.is_some() {
                    return Ok((tail, end));
                }
                (tail, end)
            }
            None => (Vec::new(), None),
        };
        let missing = bytes - of_current.len();
        let mut tail = match &self.old {
            Some((file, stat)) if missing > 0 => file_tail(file, missing, before(stat).unwrap_or(0))?.0,
            _ => Vec::new(),
        };
        tail.extend_from_slice(&of_current);
        Ok((tail, end))
    }
}

pub(crate) fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

pub(crate) fn open_log(dir: BorrowedFd<'_>, name: &str) -> io::Result<Option<(OwnedFd, Stat)>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(file) => {
            let stat = rustix::fs::fstat(&file)?;
            Ok(Some((file, stat)))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// At most `bytes` from the end of one file, as long as it is at this moment, none of them from before
/// `begin`; and where that end is.
fn file_tail(file: &OwnedFd, bytes: usize, begin: u64) -> io::Result<(Vec<u8>, u64)> {
    let size = u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
    let wanted = size.saturating_sub(begin).min(bytes as u64);
    let from = size - wanted;
    let mut tail = vec![0; usize::try_from(wanted).unwrap_or(bytes)];
    let mut filled = 0;
    while filled < tail.len() {
        match rustix::io::pread(file, &mut tail[filled..], from + filled as u64) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    tail.truncate(filled);
    Ok((tail, from + filled as u64))
}

/// The last bytes of the guest's output.
#[derive(Debug)]
pub(crate) struct Replay {
    bytes: VecDeque<u8>,
    limit: usize,
}

impl Replay {
    pub(crate) fn new(past: &[u8], limit: usize) -> Self {
        let mut replay = Self { bytes: VecDeque::with_capacity(limit), limit };
        replay.push(past);
        replay
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(self.limit)..];
        let too_many = (self.bytes.len() + bytes.len()).saturating_sub(self.limit);
        self.bytes.drain(..too_many);
        self.bytes.extend(bytes);
    }

    pub(crate) fn slices(&self) -> [&[u8]; 2] {
        let (first, second) = self.bytes.as_slices();
        [first, second]
    }
}
