//! The processes there are: walking `/proc` by number, and the fields of `stat` that more than one group needs.

use std::io;
use std::mem::MaybeUninit;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, RawDir};

use super::files::read_all;
use super::text::{fields, number};

/// Entries of a directory at a time.
const ENTRIES: usize = 8 * 1024;
const MAX_STAT: usize = 4096;

/// A directory under `/proc`.
pub(super) fn open(at: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?)
}

/// The entries whose name is a number, until one of them says `false`.
pub(super) fn numbers(directory: impl AsFd, mut take: impl FnMut(u32) -> bool) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); ENTRIES];
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let Some(number) = number(entry.file_name().to_bytes()).and_then(|number| u32::try_from(number).ok()) else {
            continue;
        };
        if !take(number) {
            break;
        }
    }
    Ok(())
}

/// A file of a process. One that ended meanwhile is an error like any other: its figures are gone.
pub(super) fn read(proc: impl AsFd, pid: u32, file: &str, buffer: &mut Vec<u8>, max: usize) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    read_all(rustix::fs::openat(proc, format!("{pid}/{file}"), flags, Mode::empty())?, buffer, max)
}

/// proc_pid_stat(5)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat<'a> {
    pub name: &'a [u8],
    pub state: u8,
    pub parent: u32,
    /// In user and system mode.
    pub ticks: u64,
    pub threads: u32,
    /// In ticks since the boot. With the number it names a process for good.
    pub start: u64,
    /// Pages, as the kernel last summed them up.
    pub resident: u64,
}

pub(super) fn read_stat(proc: impl AsFd, pid: u32, buffer: &mut Vec<u8>) -> Option<Stat<'_>> {
    read(proc, pid, "stat", buffer, MAX_STAT).ok()?;
    parse_stat(buffer)
}

/// The name is the process's own choice, blanks, brackets and newlines included: what comes last in brackets is it.
fn parse_stat(text: &[u8]) -> Option<Stat<'_>> {
    let open = memchr::memchr(b'(', text)?;
    let close = memchr::memrchr(b')', text)?;
    let name = text.get(open + 1..close)?;
    // From the third field on.
    let mut fields = fields(&text[close + 1..]);
    let state = *fields.next()?.first()?;
    let parent = u32::try_from(number(fields.next()?)?).ok()?;
    let mut numbers = fields.map(number);
    let mut nth = |skipped: usize| numbers.nth(skipped).flatten();
    let ticks = nth(9)?.saturating_add(nth(0)?);
    let threads = u32::try_from(nth(4)?).ok()?;
    let (start, resident) = (nth(1)?, nth(1)?);
    Some(Stat { name, state, parent, ticks, threads, start, resident })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAIL: &str =
        "S 1 10 10 0 -1 4194560 1000 2000 3 4 150 50 7 8 20 0 4 0 12345 170000000 2500 18446744073709551615 1 1";

    #[test]
    fn a_stat_is_read() {
        let text = format!("10 (sshd) {TAIL}\n");
        let expected =
            Stat { name: b"sshd", state: b'S', parent: 1, ticks: 200, threads: 4, start: 12345, resident: 2500 };
        assert_eq!(parse_stat(text.as_bytes()), Some(expected));
    }

    #[test]
    fn a_name_cannot_forge_the_fields_behind_it() {
        for name in ["a) R 1 2 3", ") (", "x\ny", "", "(((", ")))"] {
            let text = format!("10 ({name}) {TAIL}\n");
            let stat = parse_stat(text.as_bytes()).unwrap();
            assert_eq!((stat.name, stat.ticks), (name.as_bytes(), 200), "{name:?}");
        }
    }

    #[test]
    fn what_is_cut_short_is_none() {
        for wrong in ["", "10", "10 (a", "10 )a(", "10 (a)", "10 (a) S 1 2 3", "10 (a) S x"] {
            assert_eq!(parse_stat(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn this_process_is_among_the_numbers() {
        let proc = open(rustix::fs::CWD, "/proc").unwrap();
        let (own, mut found) = (std::process::id(), false);
        numbers(&proc, |pid| {
            found |= pid == own;
            true
        })
        .unwrap();
        assert!(found);
        let mut buffer = Vec::new();
        let stat = read_stat(&proc, own, &mut buffer).unwrap();
        assert_eq!(stat.parent, rustix::process::getppid().unwrap().as_raw_nonzero().get() as u32);
    }

    proptest! {
        #[test]
        fn any_name_is_kept(name in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut text = b"10 (".to_vec();
            text.extend(&name);
            text.extend(format!(") {TAIL}\n").as_bytes());
            prop_assert_eq!(parse_stat(&text).unwrap().name, &name[..]);
        }

        #[test]
        fn no_text_breaks_the_parser(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse_stat(&text);
            let mut behind = b"1 (a) S 1 ".to_vec();
            behind.extend(&text);
            parse_stat(&behind);
        }
    }
}
