//! Where in a console log the machine's last start is: a mark that is made before it starts.
//!
//! The mark names the file that is being written, by its inode, and how long it is. Turning the log
//! over renames that file, so that the mark stays true. Before the file goes for good the mark does:
//! everything that is kept is later then, and another file may get its number.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::{BEGIN_FILE, LOG_FILE, OLD_LOG_FILE};

const NEW_BEGIN_FILE: &str = "console.begin.tmp";
/// Two numbers in decimal and what separates them.
const LONGEST: usize = 64;

/// Marks the present end of the log in `dir` as the beginning of the next start. Nobody may be writing to
/// the log.
///
/// # Errors
/// The directory cannot be written, or a symbolic link stands where the mark belongs.
pub fn mark_begin(dir: impl AsFd) -> io::Result<()> {
    mark_end_of(dir.as_fd(), LOG_FILE)
}

/// Marks the end of one of the files. Without it, there is nothing before the mark.
pub(crate) fn mark_end_of(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let (inode, size) = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => (stat.st_ino, stat.st_size),
        // No file has the number 0.
        Err(Errno::NOENT) => (0, 0),
        Err(errno) => return Err(errno.into()),
    };
    let _ = rustix::fs::unlinkat(dir, NEW_BEGIN_FILE, AtFlags::empty());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, NEW_BEGIN_FILE, flags, Mode::RUSR | Mode::WUSR)?;
    let text = format!("{inode} {size}\n");
    if rustix::io::write(&file, text.as_bytes())? != text.len() {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(rustix::fs::renameat(dir, NEW_BEGIN_FILE, dir, BEGIN_FILE)?)
}

/// Forgets the mark if it is in the old log, which is about to be replaced.
pub(crate) fn forget_old(dir: BorrowedFd<'_>) {
    if let (Some((inode, _)), Ok(old)) = (marked(dir), rustix::fs::statat(dir, OLD_LOG_FILE, AtFlags::SYMLINK_NOFOLLOW))
        && inode == old.st_ino
    {
        // On a disk that does not allow it, nothing is renamed either.
        let _ = rustix::fs::unlinkat(dir, BEGIN_FILE, AtFlags::empty());
    }
}

/// The inode and the length that were marked. `None`: nothing was, or it cannot be told. Read after the
/// files are opened: a file that is held open keeps its number to itself.
pub(crate) fn marked(dir: BorrowedFd<'_>) -> Option<(u64, u64)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, BEGIN_FILE, flags, Mode::empty()).ok()?;
    let mut text = [0; LONGEST];
    let got = rustix::io::read(&file, &mut text).ok()?;
    let (inode, size) = std::str::from_utf8(text.get(..got)?).ok()?.trim_end().split_once(' ')?;
    Some((inode.parse().ok()?, size.parse().ok()?))
}
