//! Runs one program to its end and keeps what it says, within limits.
//!
//! ```text
//!   spawned ──exits──────────────────────────────────────────> reaped
//!      │ time is up, or cancelled                                 ^
//!      └──> SIGTERM to its group ──exits──────────────────────────┤
//!                  │ the grace is over                            │
//!                  └──> SIGKILL to its group ──exits──────────────┘
//!                              │ five seconds: the kernel holds it
//!                              └──> given up: an error, and a zombie some day
//! ```
//!
//! For the agent's own errands: an argument vector, never a shell; a small environment of its own; input that is there
//! already. Commands of the host's choice are not run here. The caller blocks; a [`Cancel`] wakes it.
//!
//! The program's own end is the end: a daemon that it left behind may hold its pipes for ever and is not waited for.
//! The process that runs this must not reap children that it does not know (`waitpid(-1)`).

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use zeroize::Zeroizing;

/// How long a program that was told to end may take.
pub const GRACE: Duration = Duration::from_secs(5);

/// How long one that was killed may take: one that waits for a device, or for a frozen file system, takes longer.
const KILL_TIME: Duration = Duration::from_secs(5);

/// A flag that another thread sets to end what this one waits for. Clones are the same flag.
#[derive(Debug, Clone)]
pub struct Cancel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cancelled: AtomicBool,
    wake: OwnedFd,
}

impl Cancel {
    pub fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Inner { cancelled: AtomicBool::new(false), wake })))
    }

    /// Ends it. There is no way back.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
        // It fails only where the counter is full, and then whoever waits is awake.
        let _ = rustix::io::write(&self.0.wake, &1u64.to_ne_bytes());
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }

    /// Waits so long. Whether it was cancelled before that.
    pub fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while !self.is_cancelled() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let _ = poll(&mut [PollFd::new(&self.0.wake, PollFlags::IN)], timespec(left).as_ref());
        }
        true
    }

    /// Readable once it is cancelled.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

/// The head and the tail of what was said, where it is longer than the limit.
#[derive(Debug, Default)]
pub struct Capture {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    limit: usize,
    dropped: u64,
}

impl Capture {
    pub fn new(limit: usize) -> Self {
        Self { limit, ..Self::default() }
    }

    pub fn push(&mut self, mut bytes: &[u8]) {
        let head_limit = self.limit.div_ceil(2);
        let tail_limit = self.limit - head_limit;
        if self.tail.is_empty() && self.head.len() < head_limit {
            let (head, rest) = bytes.split_at(bytes.len().min(head_limit - self.head.len()));
            self.head.extend_from_slice(head);
            bytes = rest;
        }
        let skipped = bytes.len().saturating_sub(tail_limit);
        let bytes = &bytes[skipped..];
        let over = (self.tail.len() + bytes.len()).saturating_sub(tail_limit);
        self.tail.drain(..over);
        self.tail.extend(bytes);
        self.dropped += (skipped + over) as u64;
    }

    /// What was kept, and how many bytes are missing in its middle.
    pub fn finish(self) -> (Vec<u8>, u64) {
        let mut bytes = self.head;
        bytes.extend(self.tail);
        (bytes, self.dropped)
    }
}

/// A program to run.
#[derive(Debug)]
pub struct Program {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    input: Zeroizing<Vec<u8>>,
    time: Duration,
    grace: Duration,
    output_limit: usize,
    leave_nothing: bool,
}

/// How it ended, and what it said.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    /// Bytes missing in the middle of it.
    pub stdout_dropped: u64,
    pub stderr: Vec<u8>,
    pub stderr_dropped: u64,
    pub ending: Ending,
    pub time: Duration,
}

/// What brought it to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    ByItself,
    TimeUp,
    Cancelled,
}

impl Finished {
    /// It ended by itself and says that it worked.
    pub fn succeeded(&self) -> bool {
        self.ending == Ending::ByItself && self.status.success()
    }

    pub fn exit_code(&self) -> Option<i32> {
        self.status.code()
    }

    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }
}

/// Why it did not run, or was lost.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("no program {0:?} in {1:?}")]
    NoSuchProgram(OsString, Vec<PathBuf>),
    #[error("cannot start {0:?}")]
    Spawn(OsString, #[source] io::Error),
    #[error("lost {0:?} while it ran")]
    Lost(OsString, #[source] io::Error),
    #[error("{0:?} was killed and does not end: it waits in the kernel, for a device or a frozen file system")]
    Unkillable(OsString),
}

impl Program {
    /// `argv[0]` is a path, or a name that [`Program::run`] looks for.
    pub fn new<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(|word| word.as_ref().to_owned()).collect(),
            env: Vec::new(),
            input: Zeroizing::default(),
            time: Duration::from_secs(30),
            grace: GRACE,
            output_limit: 64 * 1024,
            leave_nothing: false,
        }
    }

    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// What it reads; then comes the end. Wiped when it is done.
    #[must_use]
    pub fn input(mut self, input: Zeroizing<Vec<u8>>) -> Self {
        self.input = input;
        self
    }

    #[must_use]
    pub fn time(mut self, time: Duration) -> Self {
        self.time = time;
        self
    }

    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Of each of its outputs.
    #[must_use]
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.output_limit = bytes;
        self
    }

    /// When it has ended, what it started and left behind is killed.
    #[must_use]
    pub fn leave_nothing(mut self) -> Self {
        self.leave_nothing = true;
        self
    }

    /// Runs it to its end. Names are looked for in `path`.
    pub fn run(self, path: &[PathBuf], cancel: &Cancel) -> Result<Finished, RunError> {
        let name = self.argv.first().cloned().unwrap_or_default();
        let program = find(&name, path).ok_or_else(|| RunError::NoSuchProgram(name.clone(), path.to_vec()))?;
        let started = Instant::now();
        let mut child = Command::new(program)
            .arg0(&name)
            .args(&self.argv[1..])
            .env_clear()
            .env("PATH", std::env::join_paths(path).unwrap_or_default())
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", "/root")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(if self.input.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| RunError::Spawn(name.clone(), error))?;
        let mut run = Run::new(&child, &self, started);
        let watched = run.watch(&mut child, cancel);
        if !matches!(watched, Ok(true)) {
            run.signal(Signal::KILL);
        }
        let status = match watched {
            Ok(true) => child.wait().map_err(|error| RunError::Lost(name, error))?,
            // Not waited for: it may take for ever.
            Ok(false) => return Err(RunError::Unkillable(name)),
            Err(error) => return Err(RunError::Lost(name, error)),
        };
        let (stdout, stdout_dropped) = run.stdout.finish();
        let (stderr, stderr_dropped) = run.stderr.finish();
        let time = started.elapsed();
        Ok(Finished { status, stdout, stdout_dropped, stderr, stderr_dropped, ending: run.ending, time })
    }
}

/// The file that a name stands for.
pub fn find(name: &OsStr, path: &[PathBuf]) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(name.into());
    }
    let runs = |file: &Path| {
        file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && !name.is_empty()
    };
    path.iter().map(|directory| directory.join(name)).find(|file| runs(file))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    Terminating,
    Killed,
}

struct Run<'a> {
    /// The program's process ID, which is its group's too. It is not reaped while this is in use.
    pid: Option<Pid>,
    input: &'a [u8],
    stdout: Capture,
    stderr: Capture,
    ending: Ending,
    next: Option<Instant>,
    grace: Duration,
    leave_nothing: bool,
}

impl<'a> Run<'a> {
    fn new(child: &Child, program: &'a Program, started: Instant) -> Self {
        Self {
            pid: Pid::from_raw(child.id().cast_signed()),
            input: &program.input,
            stdout: Capture::new(program.output_limit),
            stderr: Capture::new(program.output_limit),
            ending: Ending::ByItself,
            next: started.checked_add(program.time),
            grace: program.grace,
            leave_nothing: program.leave_nothing,
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            // No such group: all of it is gone.
            let _ = kill_process_group(pid, signal);
        }
    }

    /// Carries input and output until the program has ended, but does not reap it. False: it was killed, and has not.
    fn watch(&mut self, child: &mut Child, cancel: &Cancel) -> io::Result<bool> {
        let pid = self.pid.ok_or(io::ErrorKind::InvalidData)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let (mut stdin, mut stdout, mut stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let pipes =
            [stdin.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd), stderr.as_ref().map(AsFd::as_fd)];
        for pipe in pipes.into_iter().flatten() {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        let mut stage = Stage::Running;
        loop {
            let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
            if stage == Stage::Running {
                fds.push(PollFd::from_borrowed_fd(cancel.fd(), PollFlags::IN));
            }
            fds.extend(stdin.as_ref().map(|fd| PollFd::new(fd, PollFlags::OUT)));
            fds.extend(stdout.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            fds.extend(stderr.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
            let left = self.next.map(|next| next.saturating_duration_since(Instant::now()));
            match poll(&mut fds, left.and_then(timespec).as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ended = !fds[0].revents().is_empty();
            if self.feed(&mut stdin) {
                stdin = None;
            }
            // A program that never stops talking is not listened to for ever: one turn, then the clock.
            if drain(&mut stdout, &mut self.stdout, ended)? {
                stdout = None;
            }
            if drain(&mut stderr, &mut self.stderr, ended)? {
                stderr = None;
            }
            if ended {
                if stage != Stage::Running || self.leave_nothing {
                    // What it started is in its group, and has had its time as well.
                    self.signal(Signal::KILL);
                }
                return Ok(true);
            }
            let cancelled = stage == Stage::Running && cancel.is_cancelled();
            let due = self.next.is_some_and(|next| next <= Instant::now());
            if !cancelled && !due {
                continue;
            }
            match stage {
                Stage::Running => {
                    self.ending = if cancelled { Ending::Cancelled } else { Ending::TimeUp };
                    self.signal(Signal::TERM);
                    (stage, self.next) = (Stage::Terminating, Some(Instant::now() + self.grace));
                }
                Stage::Terminating => {
                    self.signal(Signal::KILL);
                    (stage, self.next) = (Stage::Killed, Some(Instant::now() + KILL_TIME));
                }
                Stage::Killed => return Ok(false),
            }
        }
    }

    /// Writes what the program takes. Whether there is nothing more to write.
    fn feed(&mut self, stdin: &mut Option<std::process::ChildStdin>) -> bool {
        let Some(stdin) = stdin else { return false };
        while !self.input.is_empty() {
            match stdin.write(self.input) {
                Ok(written) => self.input = &self.input[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It does not want more.
                Err(_) => return true,
            }
        }
        true
    }
}

/// Reads what there is, a turn's worth, or all of it if the program has `ended`. Whether the pipe is at its end.
fn drain(pipe: &mut Option<impl Read>, capture: &mut Capture, ended: bool) -> io::Result<bool> {
    let Some(pipe) = pipe else { return Ok(false) };
    // No pipe holds more than this; behind it may be a daemon that goes on talking.
    let turn = if ended { 1 << 20 } else { 1 << 16 };
    let (mut chunk, mut taken) = ([0; 16 * 1024], 0);
    while taken < turn {
        match pipe.read(&mut chunk) {
            Ok(0) => return Ok(true),
            Ok(read) => {
                capture.push(&chunk[..read]);
                taken += read;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn timespec(time: Duration) -> Option<Timespec> {
    Timespec::try_from(time).ok()
}

#[cfg(test)]
mod tests;
