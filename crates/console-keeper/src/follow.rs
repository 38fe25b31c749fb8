//! Reading a console log onward while a keeper writes to it and turns it over.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::LOG_FILE;
use crate::tail::{identity, open_log, read_tail_and_end};

/// A reader's place in a console log. It knows no waiting: the caller learns elsewhere that there is
/// more (a keeper writes to the log before it tells its clients).
#[derive(Debug)]
pub struct Follower {
    dir: OwnedFd,
    current: Option<Place>,
}

#[derive(Debug)]
struct Place {
    file: OwnedFd,
    identity: (u64, u64),
    offset: u64,
}

/// How far back a tail may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// To the first byte that is kept.
    Ever,
    /// To the machine's last start.
    Start,
}

impl Follower {
    /// Begins at the end of the log in `dir`, and returns the last `bytes` before it.
    ///
    /// # Errors
    /// The directory or a log file cannot be read, or is a symbolic link.
    pub fn start(dir: &Path, bytes: usize, since: Since) -> io::Result<(Self, Vec<u8>)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(dir, flags, Mode::empty())?;
        // One look tells both, or a guest that never stops talking would keep us looking.
        let (tail, end) = read_tail_and_end(dir.as_fd(), bytes, since)?;
        let current = end.map(|(file, stat, offset)| Place { file, identity: identity(&stat), offset });
        Ok((Self { dir, current }, tail))
    }

    /// At most `most` bytes of what was written since the last call; empty when there is nothing new.
    ///
    /// # Errors
    /// A log file cannot be read, or is a symbolic link.
    pub fn read_new(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let mut new = Vec::new();
        loop {
            if let Some(place) = &mut self.current {
                read_on(place, most, &mut new)?;
                if new.len() >= most || self.is_current()? {
                    return Ok(new);
                }
                // Turned over: what was added before it was renamed is read first.
                if let Some(place) = &mut self.current {
                    read_on(place, most, &mut new)?;
                }
            }
            match Self::open_current(&self.dir)? {
                Some(place) => self.current = Some(place),
                None => return Ok(new),
            }
        }
    }

    fn is_current(&self) -> io::Result<bool> {
        let Some(place) = &self.current else { return Ok(false) };
        match rustix::fs::statat(&self.dir, LOG_FILE, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(identity(&stat) == place.identity),
            // Between the rename and the new file: there is nothing newer yet.
            Err(Errno::NOENT) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }

    fn open_current(dir: &OwnedFd) -> io::Result<Option<Place>> {
        let opened = open_log(dir.as_fd(), LOG_FILE)?;
        Ok(opened.map(|(file, stat)| Place { file, identity: identity(&stat), offset: 0 }))
    }
}

fn read_on(place: &mut Place, most: usize, into: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0; 16 * 1024];
    while into.len() < most {
        let wanted = chunk.len().min(most - into.len());
        match rustix::io::pread(&place.file, &mut chunk[..wanted], place.offset) {
            Ok(0) => break,
            Ok(got) => {
                into.extend_from_slice(&chunk[..got]);
                place.offset += got as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    use super::*;
    use crate::OLD_LOG_FILE;

    fn append(dir: &Path, text: &str) {
        let mut file = OpenOptions::new().append(true).create(true).open(dir.join(LOG_FILE)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn goes_on_where_the_tail_ended_and_over_a_turn() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let (mut early, tail) = Follower::start(dir, 10, Since::Ever).unwrap();
        assert!(tail.is_empty() && early.read_new(100).unwrap().is_empty());
        append(dir, "0123456789");
        assert_eq!(early.read_new(4).unwrap(), b"0123");
        assert_eq!(early.read_new(100).unwrap(), b"456789");

        let (mut late, tail) = Follower::start(dir, 3, Since::Ever).unwrap();
        assert_eq!(tail, b"789");
        append(dir, "before");
        fs::rename(dir.join(LOG_FILE), dir.join(OLD_LOG_FILE)).unwrap();
        assert_eq!(late.read_new(2).unwrap(), b"be");
        append(dir, "after");
        assert_eq!(late.read_new(100).unwrap(), b"foreafter");
        assert!(late.read_new(100).unwrap().is_empty());
    }

    #[test]
    fn what_earlier_starts_wrote_can_be_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let since_start = |bytes| Follower::start(dir, bytes, Since::Start).unwrap().1;
        let mark = || crate::mark_begin(fs::File::open(dir).unwrap()).unwrap();
        let turn = || fs::rename(dir.join(LOG_FILE), dir.join(OLD_LOG_FILE)).unwrap();
        append(dir, "as older programs left it ");
        assert_eq!(since_start(9), b" left it ");
        mark();
        assert_eq!(since_start(100), b"");
        append(dir, "second ");
        assert_eq!(since_start(100), b"second ");
        assert_eq!(since_start(3), b"nd ");
        assert_eq!(Follower::start(dir, 100, Since::Ever).unwrap().1, b"as older programs left it second ");
        // Turned over, once and twice.
        turn();
        assert_eq!(since_start(100), b"second ");
        append(dir, "goes on ");
        assert_eq!(since_start(100), b"second goes on ");
        // As the keeper does it: the file that was marked goes, and another may get its number.
        crate::begin::forget_old(fs::File::open(dir).unwrap().as_fd());
        turn();
        append(dir, "and on");
        assert_eq!(since_start(100), b"goes on and on");
        // A first start has nothing before it.
        mark();
        append(dir, " third");
        assert_eq!(since_start(100), b" third");
        fs::remove_file(dir.join(LOG_FILE)).unwrap();
        fs::remove_file(dir.join(OLD_LOG_FILE)).unwrap();
        mark();
        append(dir, "anew");
        assert_eq!(since_start(100), b"anew");
    }

    #[test]
    fn a_guest_that_never_stops_talking_is_followed_from_anywhere() {
        use std::sync::atomic::{AtomicBool, Ordering};

        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        append(dir, "0000000\n");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let guest = scope.spawn(|| {
                let mut line = 0;
                while !done.load(Ordering::Relaxed) {
                    line += 1;
                    append(dir, &format!("{line:07}\n"));
                }
            });
            for _ in 0..200 {
                let (mut follower, mut seen) = Follower::start(dir, 80, Since::Ever).unwrap();
                seen.extend(follower.read_new(80).unwrap());
                let text = String::from_utf8(seen).unwrap();
                let lines: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
                assert!(lines.windows(2).all(|pair| pair[1] == pair[0] + 1), "a gap or a repetition: {lines:?}");
            }
            done.store(true, Ordering::Relaxed);
            guest.join().unwrap();
        });
    }

    #[test]
    fn a_link_in_place_of_the_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join(LOG_FILE)).unwrap();
        assert!(Follower::start(dir.path(), 10, Since::Ever).is_err());
    }
}
