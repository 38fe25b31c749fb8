//! The processes that use the most: of processors since the frame before, then of memory.
//!
//! Two passes: the first reads one line of every process, which is what the next frame compares with; the second reads
//! the rest, of those alone that are shown.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use roost_guest_proto::metrics::{Group, ProcessInfo};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::CWD;
use rustix::time::ClockId;

use super::files::Files;
use super::pids;
use super::text::printable;
use crate::metrics::rates::{Baseline, grown, round};
use crate::metrics::{Failure, Notes};

/// Processes that are looked at: 32 bytes each are kept.
const MAX_PROCESSES: usize = 16 * 1024;
/// In a frame.
const MAX_SHOWN: usize = 100;
const MAX_NAME: usize = 64;
const MAX_COMMAND: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    pid: u32,
    start: u64,
    ticks: u64,
    resident: u64,
}

#[derive(Debug)]
pub(super) struct Processes {
    shown: usize,
    base: Baseline<Vec<Seen>>,
    last: Vec<ProcessInfo>,
}

impl Processes {
    pub(super) fn new(shown: usize) -> Self {
        Self { shown: shown.min(MAX_SHOWN), base: Baseline::default(), last: Vec::new() }
    }

    pub(super) fn collect(&mut self, files: &mut Files, notes: &mut Notes) -> Result<Vec<ProcessInfo>, Failure> {
        if !self.base.is_due() {
            return Ok(self.last.clone());
        }
        let path = files.path("proc");
        let failed = |source| Failure::Read { path: path.clone(), source };
        let proc = pids::open(CWD, &path.to_string_lossy()).map_err(failed)?;
        let buffer = files.buffer();
        let expected = self.base.last().map_or(0, Vec::len);
        let (now, more) = scan(&proc, buffer, expected + expected / 8).map_err(failed)?;
        if more {
            let what = format!("more than {MAX_PROCESSES} processes: the others are left out");
            notes.say(Group::Processes, None, &what);
        }
        let clock = Clock::now();
        let shown = self.shown;
        let ranked = rank(&[], &now, f64::INFINITY, &clock, shown);
        let ranked =
            self.base.replace(now, |before, now, seconds| rank(before, now, seconds, &clock, shown)).unwrap_or(ranked);
        self.last = ranked.into_iter().filter_map(|(seen, cpu)| describe(&proc, buffer, &seen, cpu, &clock)).collect();
        Ok(self.last.clone())
    }
}

/// Every process, in the order of numbers, and whether there were more.
fn scan(proc: &OwnedFd, buffer: &mut Vec<u8>, expected: usize) -> std::io::Result<(Vec<Seen>, bool)> {
    let mut seen = Vec::with_capacity(expected.min(MAX_PROCESSES));
    let mut more = false;
    pids::numbers(proc, |pid| {
        if seen.len() == MAX_PROCESSES {
            more = true;
            return false;
        }
        if let Some(pids::Stat { start, ticks, resident, .. }) = pids::read_stat(proc, pid, buffer) {
            seen.push(Seen { pid, start, ticks, resident });
        }
        true
    })?;
    // So the kernel lists them; the search below relies on it.
    seen.sort_unstable_by_key(|seen| seen.pid);
    seen.shrink_to_fit();
    Ok((seen, more))
}

/// What turns ticks into time.
struct Clock {
    ticks_per_second: f64,
    since_boot: f64,
    booted: Option<u64>,
}

impl Clock {
    fn now() -> Self {
        let since_boot = rustix::time::clock_gettime(ClockId::Boottime);
        let since_boot = Duration::new(since_boot.tv_sec.unsigned_abs(), since_boot.tv_nsec.unsigned_abs() as u32);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok();
        Self {
            ticks_per_second: (rustix::param::clock_ticks_per_second() as f64).max(1.0),
            since_boot: since_boot.as_secs_f64(),
            booted: now.and_then(|now| now.checked_sub(since_boot)).map(|booted| booted.as_secs()),
        }
    }
}

/// Those that use the most, with the percentage of a processor. One that is new since `before` has used its ticks in
/// as long as it lives.
fn rank(before: &[Seen], now: &[Seen], seconds: f64, clock: &Clock, shown: usize) -> Vec<(Seen, f64)> {
    let mut ranked: Vec<(Seen, f64)> = now
        .iter()
        .map(|seen| {
            let earlier = before.binary_search_by_key(&seen.pid, |seen| seen.pid).map(|position| &before[position]);
            let (ticks, seconds) = match earlier.ok().filter(|earlier| earlier.start == seen.start) {
                Some(earlier) => (grown(earlier.ticks, seen.ticks), seconds),
                None => {
                    let age = clock.since_boot - seen.start as f64 / clock.ticks_per_second;
                    // A process of a moment would seem to have used more than there is.
                    (seen.ticks, age.max(1.0).min(seconds.max(1.0)))
                }
            };
            (*seen, round(100.0 * ticks as f64 / clock.ticks_per_second / seconds, 1))
        })
        .collect();
    let most = |a: &(Seen, f64), b: &(Seen, f64)| {
        b.1.total_cmp(&a.1).then(b.0.resident.cmp(&a.0.resident)).then(a.0.pid.cmp(&b.0.pid))
    };
    if shown < ranked.len() {
        ranked.select_nth_unstable_by(shown, most);
        ranked.truncate(shown);
    }
    ranked.sort_unstable_by(most);
    ranked
}

/// `None` if it ended meanwhile.
fn describe(proc: &OwnedFd, buffer: &mut Vec<u8>, seen: &Seen, cpu: f64, clock: &Clock) -> Option<ProcessInfo> {
    let page_kb = rustix::param::page_size() as u64 / 1024;
    let stat = pids::read_stat(proc, seen.pid, buffer).filter(|stat| stat.start == seen.start)?;
    let age = (stat.start as f64 / clock.ticks_per_second) as u64;
    let info = ProcessInfo {
        id: seen.pid,
        parent_id: (stat.parent != 0).then_some(stat.parent),
        name: printable(stat.name, MAX_NAME),
        executable_path: None,
        command_line: None,
        cpu_usage_percent: cpu,
        memory_usage_kb: stat.resident.saturating_mul(page_kb),
        status: status(stat.state).to_owned(),
        start_time: clock.booted.map(|booted| booted.saturating_add(age)),
        threads: Some(stat.threads),
        uid: None,
    };
    let command_line =
        pids::read(proc, seen.pid, "cmdline", buffer, MAX_COMMAND).ok().and_then(|()| command_line(buffer));
    let mut target = [std::mem::MaybeUninit::uninit(); MAX_COMMAND];
    let executable = rustix::fs::readlinkat_raw(proc.as_fd(), format!("{}/exe", seen.pid), &mut target).ok();
    Some(ProcessInfo {
        executable_path: executable.map(|(path, _)| printable(path, MAX_COMMAND)),
        command_line,
        uid: rustix::fs::statat(proc, seen.pid.to_string(), rustix::fs::AtFlags::empty()).ok().map(|it| it.st_uid),
        ..info
    })
}

/// Arguments end with a zero each. The kernel's own threads have none.
fn command_line(text: &[u8]) -> Option<String> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    let with_blanks: Vec<u8> = text.iter().map(|&byte| if byte == 0 { b' ' } else { byte }).collect();
    (!text.is_empty()).then(|| printable(&with_blanks, MAX_COMMAND))
}

fn status(state: u8) -> &'static str {
    match state {
        b'R' => "running",
        b'S' => "sleeping",
        b'D' => "disk_sleep",
        b'T' => "stopped",
        b't' => "traced",
        b'Z' => "zombie",
        b'X' | b'x' => "dead",
        b'I' => "idle",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLOCK: Clock = Clock { ticks_per_second: 100.0, since_boot: 1000.0, booted: Some(1_700_000_000) };

    fn seen(pid: u32, start: u64, ticks: u64, resident: u64) -> Seen {
        Seen { pid, start, ticks, resident }
    }

    #[test]
    fn the_most_used_processors_come_first_then_the_most_memory() {
        let before = [seen(1, 0, 100, 1), seen(2, 0, 100, 9), seen(3, 0, 0, 5), seen(4, 0, 0, 6)];
        let now = [seen(1, 0, 300, 1), seen(2, 0, 150, 9), seen(3, 0, 0, 5), seen(4, 0, 0, 6)];
        let ranked = rank(&before, &now, 2.0, &CLOCK, 3);
        let shown: Vec<_> = ranked.iter().map(|(seen, cpu)| (seen.pid, *cpu)).collect();
        assert_eq!(shown, [(1, 100.0), (2, 25.0), (4, 0.0)]);
    }

    #[test]
    fn a_number_that_went_to_another_process_is_counted_from_its_start() {
        // It was started 10 s ago and used 2 s of them; the frame before is 4 s old.
        let ranked = rank(&[seen(7, 5, 90_000, 1)], &[seen(7, 99_000, 200, 1)], 4.0, &CLOCK, 5);
        assert_eq!(ranked[0].1, 50.0);
        // Without a frame before: over its life.
        assert_eq!(rank(&[], &[seen(7, 99_000, 200, 1)], f64::INFINITY, &CLOCK, 5)[0].1, 20.0);
    }

    #[test]
    fn a_command_line_has_blanks_between_its_arguments() {
        assert_eq!(command_line(b"sh\0-c\0echo \x1b[2J\0").as_deref(), Some("sh -c echo ?[2J"));
        assert_eq!(command_line(b""), None);
        assert_eq!(command_line(b"a\0\0").as_deref(), Some("a "));
    }

    #[test]
    fn this_process_is_described_as_it_is() {
        let mut files = Files::new("/".into());
        let mut processes = Processes::new(MAX_SHOWN);
        let proc = pids::open(CWD, "/proc").unwrap();
        let mut buffer = Vec::new();
        let (all, more) = scan(&proc, &mut buffer, 0).unwrap();
        assert!(!more);
        let own = all.iter().find(|seen| seen.pid == std::process::id()).unwrap();
        let info = describe(&proc, &mut buffer, own, 1.5, &Clock::now()).unwrap();
        assert_eq!(info.executable_path, Some(std::env::current_exe().unwrap().to_string_lossy().into_owned()));
        assert_eq!(info.uid, Some(rustix::process::getuid().as_raw()));
        let arguments: Vec<String> = std::env::args().collect();
        assert_eq!(info.command_line, Some(arguments.join(" ")));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(now.abs_diff(info.start_time.unwrap()) < 3600, "{info:?}");
        let told = processes.collect(&mut files, &mut Notes::default()).unwrap();
        assert!(!told.is_empty() && told.len() <= MAX_SHOWN);
    }

    proptest! {
        #[test]
        fn whatever_the_counters_do_the_first_ones_are_returned_in_order(
            before in proptest::collection::vec((0u32..20, 0u64..3, any::<u64>(), any::<u64>()), 0..20),
            now in proptest::collection::vec((0u32..20, 0u64..3, any::<u64>(), any::<u64>()), 0..20),
            shown in 0usize..25,
        ) {
            let list = |of: Vec<(u32, u64, u64, u64)>| {
                let mut list: Vec<_> = of.into_iter().map(|(pid, start, ticks, pages)| seen(pid, start, ticks, pages)).collect();
                list.sort_by_key(|seen| seen.pid);
                list.dedup_by_key(|seen| seen.pid);
                list
            };
            let (before, now) = (list(before), list(now));
            let ranked = rank(&before, &now, 1.0, &CLOCK, shown);
            prop_assert_eq!(ranked.len(), shown.min(now.len()));
            prop_assert!(ranked.is_sorted_by(|a, b| a.1 >= b.1));
        }
    }
}
