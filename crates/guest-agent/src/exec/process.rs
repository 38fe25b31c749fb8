//! A program under way: its pipes or terminal, and the ways to end it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use roost_guest_proto::{ErrorBody, ErrorCode, Exec, Limits, Pty};
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::cgroup::{Cgroups, Group};
use super::descendants;
use super::plan::Prepared;
use crate::sys::{Ids, Plan, SpawnError, Spawner, Stage};

/// What the pipe of a stream holds.
const STREAM_PIPE: usize = 256 * 1024;

/// A program that was started. It leads a session and a process group of its own.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    group: Option<Group>,
    mark: String,
    terminal: bool,
}

/// The agent's ends of what the program reads and writes; none of them blocks.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// Instead of the three.
    pub(crate) terminal: Option<OwnedFd>,
}

/// What starting needs, kept between programs.
#[derive(Debug)]
pub(crate) struct Starter {
    spawner: Spawner,
    pub(crate) cgroups: Cgroups,
    null: File,
    /// The agent's own adjustment of the OOM killer is not for its programs.
    reset_oom: bool,
}

impl Starter {
    pub(crate) fn new() -> io::Result<Self> {
        let adjusted = std::fs::read("/proc/self/oom_score_adj").is_ok_and(|text| text.trim_ascii() != b"0");
        Ok(Self {
            spawner: Spawner::default(),
            cgroups: Cgroups::detect(),
            null: File::options().read(true).write(true).open("/dev/null")?,
            reset_oom: adjusted,
        })
    }

    /// Starts a program.
    pub(crate) fn start(&mut self, exec: &Exec, plan: &Prepared, mark: String) -> Result<(Process, Ends), ErrorBody> {
        let mut group = self.cgroups.take(&exec.limits).map_err(|error| {
            ErrorBody::new(ErrorCode::ResourceLimit, format!("limits: the guest's cgroups refused them: {error}"))
        })?;
        let rlimits = rlimits(&exec.limits, self.cgroups.can_limit());
        let failed = |what: &str, error: io::Error| {
            ErrorBody::new(ErrorCode::ResourceLimit, format!("no {what} for the program: {error}"))
        };
        let mut ends = Ends::default();
        let inner = Inner::open(exec, &mut ends).map_err(|error| failed("pipe or terminal", error))?;
        let mut request = Plan {
            programs: &plan.programs,
            argv: &plan.argv,
            env: &plan.env,
            cwd: &plan.cwd,
            stdin: inner.stdin.as_ref().map_or(self.null.as_fd(), AsFd::as_fd),
            stdout: inner.stdout.as_ref().map_or(self.null.as_fd(), AsFd::as_fd),
            stderr: inner.stderr.as_ref().or(inner.stdout.as_ref()).map_or(self.null.as_fd(), AsFd::as_fd),
            terminal: exec.pty.is_some(),
            user: plan.user.as_ref().map(|user| Ids { uid: user.uid, gid: user.gid, groups: &user.groups }),
            cgroup: group.as_ref().and_then(Group::start_in),
            enter: group.as_ref().map_or(&[], Group::enter),
            rlimits: &rlimits,
        };
        let mut started = self.spawner.spawn(&request);
        let lost = matches!(&started, Err(error) if error.stage == Stage::Fork) && request.cgroup.is_some();
        if lost && exec.limits == Limits::default() {
            // An older kernel, or somebody removed the group: it is a way to find processes, and there is another.
            request.cgroup = None;
            started = self.spawner.spawn(&request);
            self.cgroups.failed();
            group = None;
        }
        match started {
            Ok(pid) => {
                if self.reset_oom {
                    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero()), "0");
                }
                Ok((Process { pid, group, mark, terminal: exec.pty.is_some() }, ends))
            }
            Err(error) => {
                if let Some(group) = group {
                    self.cgroups.give_back(group);
                }
                Err(explain(error, plan))
            }
        }
    }

    /// The program is over, and was waited for.
    pub(crate) fn ended(&mut self, process: Process) {
        if let Some(group) = process.group {
            self.cgroups.give_back(group);
        }
    }
}

/// The program's ends.
struct Inner {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Inner {
    fn open(exec: &Exec, ends: &mut Ends) -> io::Result<Self> {
        if let Some(pty) = &exec.pty {
            let (master, slave) = open_terminal(pty)?;
            ends.terminal = Some(master);
            return Ok(Self { stdin: Some(slave.try_clone()?), stdout: Some(slave), stderr: None });
        }
        let stdin = if exec.stdin || exec.input.is_some() {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            nonblocking(&write)?;
            ends.stdin = Some(write);
            Some(read)
        } else {
            None
        };
        let output = || -> io::Result<(OwnedFd, OwnedFd)> {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            nonblocking(&read)?;
            if exec.stream.is_some() {
                // Fewer turns between the two; where it is not permitted, the size that it has will do.
                let _ = rustix::pipe::fcntl_setpipe_size(&read, STREAM_PIPE);
            }
            Ok((read, write))
        };
        let (stdout, out) = output()?;
        let (stderr, err) = output()?;
        (ends.stdout, ends.stderr) = (Some(stdout), Some(stderr));
        Ok(Self { stdin, stdout: Some(out), stderr: Some(err) })
    }
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // The flag belongs to one end: the program's blocks, as it expects.
    Ok(rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK)?)
}

fn open_terminal(pty: &Pty) -> io::Result<(OwnedFd, OwnedFd)> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::unlockpt(&master)?;
    resize(&master, pty.rows, pty.cols)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = match rustix::pty::ioctl_tiocgptpeer(&master, flags) {
        Ok(slave) => slave,
        // A kernel before 4.13.
        Err(_) => {
            let name = rustix::pty::ptsname(&master, Vec::new())?;
            rustix::fs::open(&*name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, rustix::fs::Mode::empty())?
        }
    };
    nonblocking(&master)?;
    Ok((master, slave))
}

/// Tells a terminal's programs its size.
pub(crate) fn resize(terminal: &OwnedFd, rows: u16, cols: u16) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// Limits for which there is no cgroup, by process: less, but something.
fn rlimits(limits: &Limits, (memory, processes): (bool, bool)) -> Vec<(u32, u64)> {
    let mut found = Vec::new();
    if let Some(bytes) = limits.memory_bytes.filter(|_| !memory) {
        found.push((libc::RLIMIT_AS, bytes));
    }
    if let Some(count) = limits.processes.filter(|_| !processes) {
        found.push((libc::RLIMIT_NPROC, count));
    }
    found
}

fn explain(SpawnError { stage, error }: SpawnError, plan: &Prepared) -> ErrorBody {
    let code = match (stage, error.kind()) {
        (Stage::Exec | Stage::Directory, io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => ErrorCode::NotFound,
        (_, io::ErrorKind::PermissionDenied) => ErrorCode::PermissionDenied,
        (Stage::Fork | Stage::Cgroup | Stage::Limits | Stage::Files, _) => ErrorCode::ResourceLimit,
        _ => ErrorCode::CommandFailed,
    };
    let cwd = plan.cwd.to_string_lossy();
    let (field, message) = match stage {
        Stage::Exec => ("argv", format!("{:?} cannot be run: {error}", plan.shown)),
        Stage::Directory => ("cwd", format!("cwd: {cwd:?} cannot be entered: {error}")),
        Stage::User => ("user", format!("user: the agent may not run programs as another user: {error}")),
        Stage::Terminal => ("pty", format!("pty: no terminal of its own: {error}")),
        Stage::Limits | Stage::Cgroup => ("limits", format!("limits: the guest refuses them: {error}")),
        Stage::Fork | Stage::Files => ("argv", format!("no process for the program: {error}")),
    };
    ErrorBody { details: Some(serde_json::json!({ "field": field })), ..ErrorBody::new(code, message) }
}

impl Process {
    /// A signal to the process group. The leader was not waited for yet, so the number is still its own.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process_group(self.pid, signal)?)
    }

    /// Asks all of it to end.
    pub(crate) fn terminate(&self) {
        let _ = self.signal(Signal::TERM);
        if self.terminal {
            // A shell at a terminal takes no notice of SIGTERM.
            let _ = self.signal(Signal::HUP);
            let _ = self.signal(Signal::CONT);
        }
    }

    /// Ends all that it started, in its group or not.
    pub(crate) fn kill(&self) {
        let _ = self.signal(Signal::KILL);
        if let Some(group) = &self.group {
            group.kill();
        }
        if !self.group.as_ref().is_some_and(Group::holds_all) {
            descendants::kill_all(self.pid, &self.mark);
        }
    }
}

/// The number of a signal: `TERM`, `SIGTERM` or `15`.
pub(crate) fn signal_by_name(text: &str) -> Result<Signal, ErrorBody> {
    const NAMES: &[(&str, Signal)] = &[
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("ABRT", Signal::ABORT),
        ("KILL", Signal::KILL),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("PIPE", Signal::PIPE),
        ("ALRM", Signal::ALARM),
        ("TERM", Signal::TERM),
        ("CHLD", Signal::CHILD),
        ("CONT", Signal::CONT),
        ("STOP", Signal::STOP),
        ("TSTP", Signal::TSTP),
        ("TTIN", Signal::TTIN),
        ("TTOU", Signal::TTOU),
        ("URG", Signal::URG),
        ("WINCH", Signal::WINCH),
        ("IO", Signal::IO),
    ];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let by_number = || text.parse::<i32>().ok().and_then(Signal::from_named_raw);
    NAMES.iter().find(|(known, _)| *known == name).map(|&(_, signal)| signal).or_else(by_number).ok_or_else(|| {
        let known: Vec<&str> = NAMES.iter().map(|&(name, _)| name).collect();
        let shown: String = text.chars().take(32).collect();
        ErrorBody::field(
            "signal",
            format!("signal: {shown:?} is none; permitted: a number from 1 to 31, {}", known.join(", ")),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(signal_by_name(text).unwrap(), Signal::TERM, "{text}");
        }
        for text in ["", "0", "-1", "64", "4294967295", "SIGSIGTERM", "TERMINATE"] {
            assert!(signal_by_name(text).is_err(), "{text}");
        }
    }
}
