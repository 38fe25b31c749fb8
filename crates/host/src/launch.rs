//! Starting a program so that a daemon that dies in the middle leaves nothing behind.
//!
//! Owns: the birth of the child, the gate, what the child is before it becomes the program.
//! Not here: which program and why; waiting for its end ([`crate::exits`]).
//!
//! ```text
//!   Launch ──spawn_gated──> Gated ──release──> Process (the program runs)
//!                             │ │                 └─ exec failed ──> error, child reaped
//!                             │ └─ drop ──> child killed and reaped
//!                             └─ this process dies ──> end of file at the gate, child exits
//! ```
//!
//! Between `spawn_gated` and `release` the child exists, has its number and start time, and does
//! nothing: the caller commits [`Gated::ident`] to the database there. The gate is one end of a
//! socket pair. A go byte opens it; end of file makes the child `_exit`. The same socket carries the
//! report of a failed `exec` back; it is close-on-exec, so end of file there means success.
//!
//! How the child is made is told in `launch/child.rs`.

mod child;

use std::ffi::OsString;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use self::child::{Child, GO, REPORT_LEN};
use crate::fault::{self, Point};
use crate::process::{Process, ProcessError, ProcessIdent};

/// How long `exec` itself may take before the launch is called failed. Reading the head of a binary
/// from a dead network file system is the only thing that takes long there.
const EXEC_DEADLINE: Duration = Duration::from_secs(10);

/// A program about to be started.
///
/// The child gets this and nothing else: the given arguments, the given environment, the given
/// descriptors, `/dev/null` as standard input, a session of its own, no pending signal settings,
/// umask 077 and `no_new_privs`. It is not told to die with its parent.
#[derive(Debug)]
pub struct Launch {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: PathBuf,
    fds: Vec<(OwnedFd, RawFd)>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// What the child did when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Entering a session of its own.
    Session = 1,
    /// Giving up new privileges.
    NoNewPrivs = 2,
    /// Putting the descriptors at their numbers.
    Descriptors = 3,
    /// Entering the working directory.
    WorkingDirectory = 4,
    /// Becoming the program.
    Exec = 5,
}

/// Why a program was not started. No child is left.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The environment is cleared, so there is no search path.
    #[error("the program {program:?} is not an absolute path")]
    ProgramNotAbsolute {
        /// The program as given.
        program: PathBuf,
    },
    /// A C string cannot hold it.
    #[error("{what} {value:?} contains a zero byte")]
    ZeroByte {
        /// Program, argument, environment or working directory.
        what: &'static str,
        /// The value at fault.
        value: OsString,
    },
    /// An environment name is empty or holds `=`.
    #[error("{name:?} is not a name for an environment variable")]
    BadEnvName {
        /// The name at fault.
        name: OsString,
    },
    /// 0 to 2 are the standard streams; above 1023 is beyond the usual limit of open files.
    #[error("descriptor number {target} is out of range: 3 to 1023 are permitted")]
    TargetOutOfRange {
        /// The number at fault.
        target: RawFd,
    },
    /// Two descriptors for one number.
    #[error("descriptor number {target} is given twice")]
    TargetTwice {
        /// The number at fault.
        target: RawFd,
    },
    /// The parent could not prepare: no descriptors, no memory, no processes.
    #[error("{call} failed before the launch of {program:?}")]
    Prepare {
        /// The system call.
        call: &'static str,
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The child said that it could not become the program (`ENOENT`, `EACCES`, ...).
    #[error("{program:?} could not be started ({stage:?})")]
    Child {
        /// What the child was doing.
        stage: Stage,
        /// The program, or the working directory when `stage` says so.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The child ended before it was released and said nothing: killed from outside.
    #[error("the child for {program:?} died before it was released")]
    Died {
        /// The program.
        program: PathBuf,
    },
    /// `exec` did not come back in time; the child has been killed.
    #[error("{program:?} was not started within {limit:?}")]
    Stuck {
        /// The program.
        program: PathBuf,
        /// The limit that passed.
        limit: Duration,
    },
    /// The new process could not be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

impl Launch {
    /// `program` must be an absolute path; it becomes `argv[0]` too.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            fds: Vec::new(),
            stdout: None,
            stderr: None,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds one environment variable; there are no others. The last of equal names counts.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        let name = name.into();
        self.env.retain(|(given, _)| *given != name);
        self.env.push((name, value.into()));
        self
    }

    /// Working directory; `/` if not given.
    #[must_use]
    pub fn cwd(mut self, cwd: impl Into<PathBuf>) -> Self {
        self.cwd = cwd.into();
        self
    }

    /// Hands a descriptor over: the program finds it open at `target` (3 to 1023).
    #[must_use]
    pub fn fd(mut self, fd: OwnedFd, target: RawFd) -> Self {
        self.fds.push((fd, target));
        self
    }

    /// Standard output; `/dev/null` if not given.
    #[must_use]
    pub fn stdout(mut self, fd: OwnedFd) -> Self {
        self.stdout = Some(fd);
        self
    }

    /// Standard error; `/dev/null` if not given.
    #[must_use]
    pub fn stderr(mut self, fd: OwnedFd) -> Self {
        self.stderr = Some(fd);
        self
    }

    /// Makes the child, which waits at the gate.
    ///
    /// # Errors
    /// The launch makes no sense, or the machine has no room for another process.
    pub fn spawn_gated(self) -> Result<Gated, LaunchError> {
        let program = self.program.clone();
        let (gate, child_gate) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).map_err(
                |errno| LaunchError::Prepare { call: "socketpair", program: program.clone(), source: errno.into() },
            )?;
        let mut child = child::start(self, child_gate)?;
        let pidfd = child.pidfd.take().expect("a child that started has a pidfd, and it is taken here only");
        let process = Process::of_new_child(child.pid, pidfd)?;
        let gated = Gated { program, gate, process, child: Some(child) };
        if gated.process.is_alive()? { Ok(gated) } else { Err(LaunchError::Died { program: gated.program.clone() }) }
    }
}

/// A child that waits to become its program. Dropping it ends the child.
#[derive(Debug)]
pub struct Gated {
    program: PathBuf,
    gate: OwnedFd,
    process: Process,
    /// The memory that the child runs in; taken once it has left it.
    child: Option<Child>,
}

impl Gated {
    /// Who it is, and will be: `exec` changes neither number nor start time.
    #[must_use]
    pub fn ident(&self) -> &ProcessIdent {
        self.process.ident()
    }

    /// The handle of the waiting child, e.g. to watch it before it is released.
    ///
    /// Until its release the child shares this process's memory; do not set its `oom_score_adj`, which
    /// the kernel would set for both.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Opens the gate and waits until the child has become the program: microseconds to a few
    /// milliseconds, ten seconds at the very most.
    ///
    /// # Errors
    /// The program cannot be executed; the child has ended and is reaped.
    pub fn release(mut self) -> Result<Process, LaunchError> {
        // A child that failed early has sent its report: it is read below.
        let sent = retry(|| rustix::net::send(&self.gate, &[GO], SendFlags::NOSIGNAL));
        fault::point(Point::GateOpened);
        match (self.read_report()?, sent) {
            (Report::Silent, Ok(_)) => {
                // End of file: its descriptors are closed, which exec and exit do after they have
                // left the old memory.
                self.child = None;
                Ok(self.process.clone())
            }
            (Report::Silent, Err(_)) => Err(LaunchError::Died { program: self.program.clone() }),
            (Report::Failed(stage, source), _) => {
                Err(LaunchError::Child { stage, program: self.program.clone(), source })
            }
        }
        // On every error path the drop of `self` ends and reaps the child.
    }

    fn read_report(&self) -> Result<Report, LaunchError> {
        let until = Instant::now() + EXEC_DEADLINE;
        let mut report = [0u8; REPORT_LEN];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).expect("ten seconds fit into a timespec");
            let mut fds = [PollFd::new(&self.gate, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&left)) {
                Ok(0) => {
                    return Err(LaunchError::Stuck { program: self.program.clone(), limit: EXEC_DEADLINE });
                }
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(LaunchError::Prepare {
                        call: "poll",
                        program: self.program.clone(),
                        source: errno.into(),
                    });
                }
            }
        }
        // The report is one write of a few bytes into an empty socket: it arrives whole.
        match retry(|| rustix::net::recv(&self.gate, &mut report[..], RecvFlags::empty())) {
            Ok((REPORT_LEN, _)) => Ok(Report::parse(report)),
            // Reset: it was killed with the go byte unread.
            Err(Errno::CONNRESET) => Err(LaunchError::Died { program: self.program.clone() }),
            Ok(_) => Ok(Report::Silent),
            Err(errno) => {
                Err(LaunchError::Prepare { call: "recv", program: self.program.clone(), source: errno.into() })
            }
        }
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        // The kill is for a child that somebody stopped: it would not notice the end of file.
        let killed = self.process.kill();
        let reaped = self.process.reap_blocking();
        if killed.is_err() || reaped.is_err() {
            // Cannot be for an unreaped child of ours; but if it were, it must keep its memory.
            std::mem::forget(child);
        }
    }
}

enum Report {
    Silent,
    Failed(Stage, io::Error),
}

impl Report {
    fn parse(bytes: [u8; REPORT_LEN]) -> Self {
        let [stage, errno @ ..] = bytes;
        let stage = match stage {
            1 => Stage::Session,
            2 => Stage::NoNewPrivs,
            3 => Stage::Descriptors,
            4 => Stage::WorkingDirectory,
            _ => Stage::Exec,
        };
        Self::Failed(stage, io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
    }
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Where a program of this name is on the search path of the daemon; a path is checked as it is.
/// Returns an absolute path of a file that somebody may execute.
#[must_use]
pub fn find_program(name: &Path) -> Option<PathBuf> {
    let executable = |path: &Path| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    if name.components().count() > 1 || name.is_absolute() {
        let path = std::path::absolute(name).ok()?;
        return executable(&path).then_some(path);
    }
    let search = std::env::var_os("PATH")?;
    std::env::split_paths(&search)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|path| executable(path))
}
