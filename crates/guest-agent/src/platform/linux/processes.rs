//! Processes: /proc (proc_pid_stat(5)).

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use roost_guest_proto::results::{Process, ProcessKilled};
use roost_guest_proto::{ErrorBody, ErrorCode, SortBy};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::accounts::user_names;
use super::facts::{memory, uptime};
use crate::platform::System;
use crate::safe::{Context, Failure};

/// The most processes that are looked at.
const MAX_PROCESSES: usize = 100_000;

/// The longest command line that is shown.
const MAX_COMMAND: u64 = 256;

/// What a top measures over.
const TOP_PERIOD: Duration = Duration::from_millis(500);

/// How long a process that was told to end is watched.
const KILL_WATCH: Duration = Duration::from_secs(1);

/// One line of /proc/PID/stat.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stat {
    pid: u32,
    name: String,
    state: char,
    parent: u32,
    /// Clock ticks on a core.
    busy: u64,
    threads: u32,
    start_time: u64,
    resident_pages: u64,
}

/// The first `limit` processes, and how many there are.
pub(crate) fn processes(context: &Context, limit: usize) -> Result<(Vec<Process>, usize), Failure> {
    let system = &context.system;
    let up = uptime(system).unwrap_or_default();
    let hertz = rustix::param::clock_ticks_per_second() as f64;
    let cpu = |stat: &Stat| {
        let alive = up.as_secs_f64() - stat.start_time as f64 / hertz;
        if alive > 0.0 { 100.0 * stat.busy as f64 / hertz / alive } else { 0.0 }
    };
    let all: Vec<_> = stats(system)?.into_iter().map(|stat| (cpu(&stat), stat)).collect();
    Ok(show(system, all, SortBy::Pid, limit))
}

/// The busiest, or the largest, over the next half second.
pub(crate) fn top_processes(
    context: &Context,
    sort_by: SortBy,
    limit: usize,
) -> Result<(Vec<Process>, usize), Failure> {
    let before: HashMap<_, _> =
        stats(&context.system)?.into_iter().map(|stat| ((stat.pid, stat.start_time), stat.busy)).collect();
    let started = Instant::now();
    context.cancel.wait(TOP_PERIOD.min(context.left()));
    context.check()?;
    let ticks = started.elapsed().as_secs_f64() * rustix::param::clock_ticks_per_second() as f64;
    let cpu = |stat: &Stat| {
        let before = before.get(&(stat.pid, stat.start_time)).copied().unwrap_or(0);
        100.0 * stat.busy.saturating_sub(before) as f64 / ticks
    };
    let all = stats(&context.system)?.into_iter().map(|stat| (cpu(&stat), stat)).collect();
    Ok(show(&context.system, all, sort_by, limit))
}

/// How many there are in each state.
pub(crate) fn process_states(system: &System) -> Result<HashMap<char, usize>, ErrorBody> {
    let mut states = HashMap::new();
    for stat in stats(system)? {
        *states.entry(stat.state).or_default() += 1;
    }
    Ok(states)
}

/// Sends SIGTERM or SIGKILL to exactly this process.
///
/// The descriptor is opened first, and then its start time is looked at: a number that was given to another process
/// since cannot be hit.
pub(crate) fn kill_process(
    context: &Context,
    pid: u32,
    force: bool,
    start_time: Option<u64>,
) -> Result<ProcessKilled, Failure> {
    let gone = || Failure::new(ErrorCode::NotFound, format!("pid: there is no process {pid}"));
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Err(ErrorBody::field("pid", format!("pid: {pid}; permitted: 1 to {}", i32::MAX)).into());
    };
    if !force && (pid == 1 || number == rustix::process::getpid()) {
        let what = if pid == 1 { "the guest's first process" } else { "the agent" };
        let message = format!("pid: {pid} is {what}; only with force");
        return Err(Failure::new(ErrorCode::PermissionDenied, message));
    }
    let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        // A thread that leads no process has a number as well.
        Err(Errno::SRCH | Errno::INVAL) => return Err(gone()),
        Err(error) => return Err(Failure::new(ErrorCode::CommandFailed, format!("pid: {pid}: {error}"))),
    };
    let stat = stat(&context.system, pid).ok_or_else(gone)?;
    if let Some(wanted) = start_time.filter(|wanted| *wanted != stat.start_time) {
        let message =
            format!("start_time: process {pid} started at {}, not at {wanted}: it is another one", stat.start_time);
        return Err(Failure::new(ErrorCode::NotFound, message));
    }
    let signal = if force { Signal::KILL } else { Signal::TERM };
    match pidfd_send_signal(&pidfd, signal) {
        Ok(()) => {}
        Err(Errno::SRCH) => return Err(gone()),
        Err(Errno::PERM) => {
            let message = format!("pid: {pid} ({}) is not the agent's to signal: CAP_KILL is needed", stat.name);
            return Err(Failure::new(ErrorCode::PermissionDenied, message));
        }
        Err(error) => return Err(Failure::new(ErrorCode::CommandFailed, format!("pid: {pid}: {error}"))),
    }
    Ok(ProcessKilled {
        pid,
        name: stat.name,
        start_time: stat.start_time,
        signal: if force { "SIGKILL" } else { "SIGTERM" }.to_owned(),
        ended: ends(context, &pidfd),
    })
}

/// Whether it ends before the watch does.
fn ends(context: &Context, pidfd: impl AsFd) -> bool {
    let until = Instant::now() + KILL_WATCH.min(context.left());
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).unwrap_or_default();
        let mut fds =
            [PollFd::new(&pidfd, PollFlags::IN), PollFd::from_borrowed_fd(context.cancel.fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Err(Errno::INTR) => {}
            _ => return !fds[0].revents().is_empty(),
        }
    }
}

fn stats(system: &System) -> Result<Vec<Stat>, ErrorBody> {
    let entries = std::fs::read_dir(system.file("/proc"))
        .map_err(|error| ErrorBody::new(ErrorCode::NotSupported, format!("/proc: {error}")))?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // Whoever is gone meanwhile is left out.
    Ok(pids.take(MAX_PROCESSES).filter_map(|pid: u32| stat(system, pid)).collect())
}

fn stat(system: &System, pid: u32) -> Option<Stat> {
    parse_stat(&read(system, pid, "stat", 4096)?)
}

fn read(system: &System, pid: u32, file: &str, limit: u64) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    File::open(system.file("/proc").join(pid.to_string()).join(file)).ok()?.take(limit).read_to_end(&mut text).ok()?;
    Some(text)
}

/// The name is whatever the process wants, parentheses and newlines included; the last `)` ends it.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let (open, close) = (memchr::memchr(b'(', text)?, memchr::memrchr(b')', text)?);
    let pid = std::str::from_utf8(&text[..open]).ok()?.trim().parse().ok()?;
    let name = String::from_utf8_lossy(text.get(open + 1..close)?).into_owned();
    let fields: Vec<_> = std::str::from_utf8(text.get(close + 1..)?).ok()?.split_ascii_whitespace().collect();
    // The first of these is field 3 of the manual page.
    let field = |number: usize| fields.get(number - 3).copied();
    let number = |at: usize| field(at)?.parse::<u64>().ok();
    Some(Stat {
        pid,
        name,
        state: field(3)?.chars().next()?,
        parent: field(4)?.parse().ok()?,
        busy: number(14)?.saturating_add(number(15)?),
        threads: field(20)?.parse().ok()?,
        start_time: number(22)?,
        resident_pages: number(24)?,
    })
}

/// Puts them in order and looks up what costs more, for those that are shown only.
fn show(system: &System, mut all: Vec<(f64, Stat)>, sort_by: SortBy, limit: usize) -> (Vec<Process>, usize) {
    match sort_by {
        SortBy::Cpu => all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.pid.cmp(&b.1.pid))),
        SortBy::Memory => all.sort_by_key(|(_, stat)| (std::cmp::Reverse(stat.resident_pages), stat.pid)),
        SortBy::Pid => all.sort_by_key(|(_, stat)| stat.pid),
        SortBy::Name => all.sort_by(|a, b| (&a.1.name, a.1.pid).cmp(&(&b.1.name, b.1.pid))),
    }
    let total = all.len();
    all.truncate(limit);
    let names = user_names(system);
    let memory_kb = memory(system).map(|memory| memory.total_kb).unwrap_or_default();
    let page_kb = rustix::param::page_size() as u64 / 1024;
    let shown = all.into_iter().map(|(cpu, stat)| {
        let uid = std::fs::metadata(system.file("/proc").join(stat.pid.to_string())).map(|it| it.uid()).ok();
        let user = uid.map(|uid| names.get(&uid).cloned().unwrap_or_else(|| uid.to_string()));
        let kb = stat.resident_pages.saturating_mul(page_kb);
        Process {
            pid: stat.pid,
            parent_pid: stat.parent,
            user: user.unwrap_or_default(),
            state: stat.state.to_string(),
            cpu: tenths(cpu),
            memory: if memory_kb == 0 { 0.0 } else { tenths(100.0 * kb as f64 / memory_kb as f64) },
            memory_kb: kb,
            threads: stat.threads,
            start_time: stat.start_time,
            command: command(&read(system, stat.pid, "cmdline", MAX_COMMAND).unwrap_or_default()),
            name: stat.name,
        }
    });
    (shown.collect(), total)
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn command(cmdline: &[u8]) -> String {
    let words = cmdline.strip_suffix(b"\0").unwrap_or(cmdline).split(|byte| *byte == 0);
    words.map(String::from_utf8_lossy).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stat_whose_name_lies() {
        let text = b"77 (a) R 1 (x\n)) S 1 77 77 0 -1 4194560 100 0 0 0 5 7 0 0 20 0 3 0 12345 1000000 250 18446744073709551615 1";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.pid, stat.name.as_str(), stat.state, stat.parent), (77, "a) R 1 (x\n)", 'S', 1));
        assert_eq!((stat.busy, stat.threads, stat.start_time, stat.resident_pages), (12, 3, 12345, 250));
        assert_eq!(command(b"a\0b c\0"), "a b c");
        for text in [&b""[..], b"1", b"1 (", b"1 )(", b"1 (a) S", b"x (a) S 1"] {
            assert_eq!(parse_stat(text), None);
        }
    }

    proptest! {
        #[test]
        fn any_stat_is_read(text in r"[0-9() SR\n-]{0,200}") {
            parse_stat(text.as_bytes());
        }
    }
}
