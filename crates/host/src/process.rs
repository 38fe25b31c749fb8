//! A process that can be found again after a restart, and never confused with another.
//!
//! Owns: the durable identity of a process ([`ProcessIdent`]: number, start time, boot), the live
//! handle to it ([`Process`]: a pidfd), signals through that handle.
//! Not here: starting processes ([`crate::launch`]), being told of exits ([`crate::exits`]).
//!
//! A number alone says nothing: numbers are reused. [`Process::open`] takes the pidfd first and
//! compares start time and boot afterwards; the comparison holds because the process behind the
//! pidfd is seen alive *after* `/proc` was read, and a live process keeps its number to itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use rustix::process::Signal;

/// Who a process is, across restarts of the daemon: recorded in the database before it runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessIdent {
    /// Number in the PID namespace of the daemon.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks after boot at which it started (`proc(5)`).
    pub start_time_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id` of the boot in which it started.
    pub boot_id: String,
}

/// Why a process could not be looked at or signalled.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// `/proc` is missing or not readable.
    #[error("cannot read {path}")]
    Proc {
        /// What was read.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// `/proc` holds something that `proc(5)` does not describe.
    #[error("cannot make sense of {path}: {text:?}")]
    Format {
        /// What was read.
        path: String,
        /// What was in it.
        text: String,
    },
    /// A system call on the process failed.
    #[error("{call} of process {pid} failed")]
    Call {
        /// The system call.
        call: &'static str,
        /// The process.
        pid: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// Zero or more than the kernel gives out.
    #[error("{pid} is not a process number")]
    BadPid {
        /// The number at fault.
        pid: u32,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It returned this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

impl ProcessIdent {
    /// The identity of the process that asks.
    ///
    /// # Errors
    /// `/proc` is not readable.
    pub fn current() -> Result<Self, ProcessError> {
        let pid = std::process::id();
        Self::of(pid)?.ok_or(ProcessError::Call { call: "read /proc/self/stat", pid, source: Errno::SRCH.into() })
    }

    /// The identity of whoever has this number now. Only for a number that cannot be reused
    /// meanwhile: a child that nobody has reaped.
    fn of(pid: u32) -> Result<Option<Self>, ProcessError> {
        let Some(stat) = Stat::read(pid)? else {
            return Ok(None);
        };
        Ok(Some(Self { pid, start_time_ticks: stat.start_time_ticks, boot_id: boot_id()?.to_owned() }))
    }
}

/// A handle to one process. Cheap to clone: clones share the pidfd.
///
/// Dropping it does nothing to the process. A child that ended stays a zombie until
/// [`Process::reap`] or the [`crate::exits::ExitWatcher`] collects it.
#[derive(Debug, Clone)]
pub struct Process {
    ident: ProcessIdent,
    pidfd: Arc<OwnedFd>,
}

impl Process {
    /// Finds the process that was recorded, or `None` if it is gone: no such number, another
    /// process under that number, another boot, or a zombie.
    ///
    /// # Errors
    /// Only when the question could not be answered; never because the process is gone.
    pub fn open(ident: &ProcessIdent) -> Result<Option<Self>, ProcessError> {
        if ident.boot_id != boot_id()? {
            return Ok(None);
        }
        let Some(found) = Self::open_number(ident.pid)? else {
            return Ok(None);
        };
        Ok((found.ident == *ident).then_some(found))
    }

    /// Takes hold of a child of this process that has not been reaped, e.g. of
    /// [`std::process::Child`]. For anything else a number is not enough: use [`Process::open`].
    ///
    /// # Errors
    /// As [`Process::open`].
    pub fn of_child(child: &std::process::Child) -> Result<Option<Self>, ProcessError> {
        Self::open_number(child.id())
    }

    pub(crate) fn open_number(pid: u32) -> Result<Option<Self>, ProcessError> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(ProcessError::BadPid { pid })?;
        let pidfd = match rustix::process::pidfd_open(number, PidfdFlags::empty()) {
            Ok(fd) => fd,
            // EINVAL: the number is a thread now, not a process. ENOENT: the same, said by Linux 6.9 and up.
            Err(Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(None),
            Err(errno) => {
                return Err(ProcessError::Call { call: "pidfd_open", pid, source: errno.into() });
            }
        };
        let Some(ident) = ProcessIdent::of(pid)? else {
            return Ok(None);
        };
        let process = Self { ident, pidfd: Arc::new(pidfd) };
        Ok(process.is_alive()?.then_some(process))
    }

    /// A child that was born with this pidfd and has not been reaped, in whatever state it is. If this
    /// fails, the child has been ended and reaped.
    pub(crate) fn of_new_child(pid: u32, pidfd: OwnedFd) -> Result<Self, ProcessError> {
        let none = |call| ProcessError::Call { call, pid, source: Errno::SRCH.into() };
        match ProcessIdent::of(pid).and_then(|ident| ident.ok_or_else(|| none("read /proc"))) {
            Ok(ident) => Ok(Self { ident, pidfd: Arc::new(pidfd) }),
            Err(error) => {
                // Its number is its own until it is reaped; the handle is for this only.
                let ident = ProcessIdent { pid, start_time_ticks: 0, boot_id: String::new() };
                let child = Self { ident, pidfd: Arc::new(pidfd) };
                // The error at hand says more than one of these two would.
                let _ = child.kill();
                let _ = child.reap_blocking();
                Err(error)
            }
        }
    }

    /// The identity to record.
    #[must_use]
    pub fn ident(&self) -> &ProcessIdent {
        &self.ident
    }

    /// The pidfd: readable once the process has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    pub(crate) fn shared_pidfd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.pidfd)
    }

    /// Sends a signal. `false`: the process is gone already.
    ///
    /// # Errors
    /// The kernel refuses, e.g. the process belongs to another user.
    pub fn signal(&self, signal: Signal) -> Result<bool, ProcessError> {
        match rustix::process::pidfd_send_signal(&*self.pidfd, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(errno) => Err(self.call("pidfd_send_signal", errno)),
        }
    }

    /// `SIGKILL`. `false`: the process is gone already.
    ///
    /// # Errors
    /// As [`Process::signal`].
    pub fn kill(&self) -> Result<bool, ProcessError> {
        self.signal(Signal::KILL)
    }

    /// Whether it still runs (stopped counts as running, a zombie does not).
    ///
    /// # Errors
    /// `poll` failed, which takes a lack of memory.
    pub fn is_alive(&self) -> Result<bool, ProcessError> {
        loop {
            let mut fds = [PollFd::new(&*self.pidfd, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
                Ok(ready) => return Ok(ready == 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.call("poll", errno)),
            }
        }
    }

    /// Waits until it has ended; `false` when it is still there after `deadline` from now.
    /// Does not reap. Cancel-safe.
    ///
    /// # Errors
    /// No descriptor is free for the wait.
    pub async fn wait_gone(&self, deadline: Duration) -> Result<bool, ProcessError> {
        if !self.is_alive()? {
            return Ok(true);
        }
        // A descriptor of its own: tokio's epoll set takes each only once, and two tasks may wait.
        let own = rustix::io::fcntl_dupfd_cloexec(&*self.pidfd, 0).map_err(|errno| self.call("fcntl", errno))?;
        // SAFETY: an OwnedFd is one open descriptor until it is dropped, and the AsyncFd owns it.
        #[allow(unsafe_code, reason = "tokio has no safe form for an OwnedFd")]
        let own = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) };
        let own =
            own.map_err(|source| ProcessError::Call { call: "epoll_ctl", pid: self.ident.pid, source: source.into() })?;
        match tokio::time::timeout(deadline, own.readable()).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(source)) => Err(ProcessError::Call { call: "epoll_wait", pid: self.ident.pid, source }),
            Err(_elapsed) => Ok(!self.is_alive()?),
        }
    }

    /// Collects the exit status of a child that has ended. `None`: it still runs, it is not our
    /// child, or it has been collected before.
    ///
    /// # Errors
    /// `waitid` failed in a way that `wait(2)` does not foresee for a pidfd.
    pub fn reap(&self) -> Result<Option<ExitStatus>, ProcessError> {
        self.wait_status(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// As [`Process::reap`], but waits. Only for a child that is about to end.
    pub(crate) fn reap_blocking(&self) -> Result<Option<ExitStatus>, ProcessError> {
        self.wait_status(WaitIdOptions::EXITED)
    }

    fn wait_status(&self, options: WaitIdOptions) -> Result<Option<ExitStatus>, ProcessError> {
        loop {
            return match rustix::process::waitid(WaitId::PidFd(self.pidfd()), options) {
                Ok(status) => Ok(status.and_then(|status| {
                    let code = status.exit_status().map(ExitStatus::Exited);
                    code.or_else(|| status.terminating_signal().map(ExitStatus::Signaled))
                })),
                Err(Errno::CHILD) => Ok(None),
                Err(Errno::INTR) => continue,
                Err(errno) => Err(self.call("waitid", errno)),
            };
        }
    }

    fn call(&self, call: &'static str, errno: Errno) -> ProcessError {
        ProcessError::Call { call, pid: self.ident.pid, source: errno.into() }
    }
}

/// The identity of this boot of the host.
///
/// # Errors
/// `/proc` is not mounted.
pub fn boot_id() -> Result<&'static str, ProcessError> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = BOOT_ID.get() {
        return Ok(id);
    }
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).map_err(|source| ProcessError::Proc { path: path.to_owned(), source })?;
    Ok(BOOT_ID.get_or_init(|| text.trim().to_owned()))
}

/// What Roost reads of `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) user_ticks: u64,
    pub(crate) system_ticks: u64,
    pub(crate) threads: u64,
    pub(crate) start_time_ticks: u64,
    pub(crate) rss_pages: u64,
}

impl Stat {
    /// `None`: no such process.
    pub(crate) fn read(pid: u32) -> Result<Option<Self>, ProcessError> {
        let path = format!("/proc/{pid}/stat");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(source) => return Err(ProcessError::Proc { path, source }),
        };
        // The name of a program is any bytes at all, so the text may be not UTF-8.
        let text = String::from_utf8_lossy(&bytes);
        match Self::parse(&text) {
            Some(stat) => Ok(Some(stat)),
            None => Err(ProcessError::Format { path, text: text.into_owned() }),
        }
    }

    /// `proc(5)`: `pid (comm) state ppid ...`; comm may hold spaces and parentheses, so the fields
    /// are counted from the last closing one.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // `state` is field 3 of the manual page and comes first here.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            user_ticks: field(14)?,
            system_ticks: field(15)?,
            threads: field(20)?,
            start_time_ticks: field(22)?,
            rss_pages: field(24)?,
        })
    }
}

/// A file under `/proc/<pid>` is missing, or its process ended between open and read.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        let line = |name: &str| {
            format!(
                "42 ({name}) S 1 42 42 0 -1 4194560 1 2 3 4 500 600 7 8 20 0 9 0 123456 1000 77 18446744073709551615"
            )
        };
        let expected =
            Stat { user_ticks: 500, system_ticks: 600, threads: 9, start_time_ticks: 123_456, rss_pages: 77 };
        for name in ["qemu", "a b", "x) R 1 (2", ")", "", "\u{fffd}\n"] {
            assert_eq!(Stat::parse(&line(name)), Some(expected), "{name:?}");
        }
        assert_eq!(Stat::parse(""), None);
        assert_eq!(Stat::parse("42 (x) S 1"), None);
    }
}
