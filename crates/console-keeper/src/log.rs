//! The console log: two files that never exceed their cap together.
//!
//! Owns: `console.log` and `console.log.1` in one directory, rotation, the accounting of what could
//! not be written. Not here: reading them ([`crate::tail`]).
//!
//! Each file may hold half of the cap. When the first is full it is renamed over the second, in one
//! step of the file system: at every instant, and after a kill at any instant, the two names hold the
//! last bytes in order. Nothing is synced: the log survives its keeper and the daemon, not a loss of power.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::begin::{forget_old, mark_end_of};
use crate::tail::read_tail_at;
use crate::{KeeperError, LOG_FILE, OLD_LOG_FILE};

/// The first half of a shrinking of the log; one that is left over is of no use.
const NEW_OLD_LOG_FILE: &str = "console.log.1.tmp";

#[derive(Debug)]
pub(crate) struct CappedLog {
    dir: OwnedFd,
    /// Half of the cap.
    file_cap: u64,
    /// `None` when it could not be opened: a full or read-only disk. Tried again with every write.
    file: Option<OwnedFd>,
    size: u64,
    /// Bytes that the log lacks at its end.
    lost: u64,
}

impl CappedLog {
    /// Goes on with what is there. Shrinks what was written under a larger cap.
    pub(crate) fn open(dir: OwnedFd, cap: u64) -> Result<Self, KeeperError> {
        let mut log = Self { dir, file_cap: cap / 2, file: None, size: 0, lost: 0 };
        let old = log.size_of(OLD_LOG_FILE)?;
        let current = log.size_of(LOG_FILE)?;
        if old > log.file_cap || current > log.file_cap {
            log.shrink();
        }
        match log.reopen() {
            Ok(()) => Ok(log),
            Err(error) if is_tampering(&error) => Err(KeeperError::NotALog { name: LOG_FILE }),
            // A disk that is full or read-only now may not be so later.
            Err(_error) => Ok(log),
        }
    }

    /// Appends; what cannot be written is counted and dropped.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        if self.lost > 0 {
            let notice = format!("\r\n[roost: {} bytes of output were not logged]\r\n", self.lost);
            if self.write(notice.as_bytes()) < notice.len() {
                self.lost += bytes.len() as u64;
                return;
            }
            self.lost = 0;
        }
        let written = self.write(bytes);
        self.lost += (bytes.len() - written) as u64;
    }

    /// Returns how much of `bytes` is in the log.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut left = bytes;
        while !left.is_empty() {
            match self.write_some(left) {
                Ok(wrote) if wrote > 0 => left = &left[wrote..],
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => break,
            }
        }
        bytes.len() - left.len()
    }

    fn write_some(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        if self.file.is_none() {
            self.reopen()?;
        }
        if self.size >= self.file_cap {
            forget_old(self.dir.as_fd());
            match rustix::fs::renameat(&self.dir, LOG_FILE, &self.dir, OLD_LOG_FILE) {
                // Somebody removed the log: a new one then.
                Ok(()) | Err(Errno::NOENT) => self.file = None,
                Err(errno) => return Err(errno),
            }
            self.reopen()?;
        }
        let Some(file) = &self.file else { return Err(Errno::BADF) };
        let room = usize::try_from(self.file_cap - self.size).unwrap_or(usize::MAX);
        let wrote = rustix::io::write(file, &bytes[..bytes.len().min(room)])?;
        self.size += wrote as u64;
        Ok(wrote)
    }

    fn reopen(&mut self) -> Result<(), Errno> {
        // Non-blocking, so that a pipe in the place of the log would not hold us up before it is seen.
        let flags =
            OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, LOG_FILE, flags, Mode::RUSR | Mode::WUSR)?;
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::LOOP);
        }
        self.size = u64::try_from(stat.st_size).unwrap_or(0);
        self.file = Some(file);
        Ok(())
    }

    /// 0 if there is no such file.
    fn size_of(&self, name: &'static str) -> Result<u64, KeeperError> {
        match rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                Ok(u64::try_from(stat.st_size).unwrap_or(0))
            }
            Ok(_) => Err(KeeperError::NotALog { name }),
            Err(Errno::NOENT) => Ok(0),
            Err(errno) => Err(KeeperError::Call { call: "stat", what: name, source: errno.into() }),
        }
    }

    /// Leaves the last half of the new cap as the old log, and no current one. On a disk that does not
    /// allow even that the files go: the cap is kept rather than the past.
    fn shrink(&self) {
        let half = usize::try_from(self.file_cap).unwrap_or(usize::MAX);
        let kept = read_tail_at(self.dir.as_fd(), half).and_then(|tail| self.write_old(&tail));
        let _ = rustix::fs::unlinkat(&self.dir, NEW_OLD_LOG_FILE, AtFlags::empty());
        if kept.is_err() {
            let _ = rustix::fs::unlinkat(&self.dir, OLD_LOG_FILE, AtFlags::empty());
        }
        let _ = rustix::fs::unlinkat(&self.dir, LOG_FILE, AtFlags::empty());
        // The machine's start was after all of that. Without a mark the past is taken for the present.
        let _ = mark_end_of(self.dir.as_fd(), OLD_LOG_FILE);
    }

    fn write_old(&self, mut bytes: &[u8]) -> io::Result<()> {
        let _ = rustix::fs::unlinkat(&self.dir, NEW_OLD_LOG_FILE, AtFlags::empty());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, NEW_OLD_LOG_FILE, flags, Mode::RUSR | Mode::WUSR)?;
        while !bytes.is_empty() {
            let wrote = rustix::io::write(&file, bytes)?;
            bytes = &bytes[wrote..];
        }
        rustix::fs::renameat(&self.dir, NEW_OLD_LOG_FILE, &self.dir, OLD_LOG_FILE)?;
        Ok(())
    }
}

/// A link (`O_NOFOLLOW`), a device without a driver or a pipe without a reader (`ENXIO`), a directory.
fn is_tampering(errno: &Errno) -> bool {
    matches!(*errno, Errno::LOOP | Errno::NXIO | Errno::ISDIR)
}
