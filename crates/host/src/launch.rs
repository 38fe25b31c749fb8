//! Starting a program so that a daemon that dies in the middle leaves nothing behind.
//!
//! Owns: the fork, the gate, what the child is before it becomes the program.
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
//! The child is made by plain `fork`, which costs page-table copies only: it waits for the gate, so
//! `vfork` and `posix_spawn`, which hold the parent until exec, are out. Everything that
//! allocates is done before the fork; the child makes system calls only, because another thread may
//! have held any lock at the moment of the fork.

use std::ffi::{CString, OsStr, OsString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

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

    /// Forks the child, which waits at the gate.
    ///
    /// # Errors
    /// The launch makes no sense, or the machine has no room for another process.
    pub fn spawn_gated(self) -> Result<Gated, LaunchError> {
        let program = self.program.clone();
        let prepare = |call| {
            let program = program.clone();
            move |errno: Errno| LaunchError::Prepare { call, program, source: errno.into() }
        };
        let (gate, child_gate) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(prepare("socketpair"))?;
        let image = ChildImage::prepare(self, child_gate)?;
        let pid = image.fork().map_err(prepare("fork"))?;
        // Until here the child's end was open on this side as well.
        drop(image);
        match Process::open_number(pid) {
            Ok(Some(process)) => Ok(Gated { program, gate, process: Some(process) }),
            found => {
                drop(gate);
                reap_number(pid);
                Err(found.err().map_or(LaunchError::Died { program }, LaunchError::Process))
            }
        }
    }
}

/// A child that waits to become its program. Dropping it ends the child.
#[derive(Debug)]
pub struct Gated {
    program: PathBuf,
    gate: OwnedFd,
    /// Taken by `release`.
    process: Option<Process>,
}

impl Gated {
    /// Who it is, and will be: `exec` changes neither number nor start time.
    #[must_use]
    pub fn ident(&self) -> &ProcessIdent {
        self.process().ident()
    }

    /// The handle of the waiting child, e.g. to watch it before it is released.
    #[must_use]
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("only release() takes the process, and it consumes self")
    }

    /// Opens the gate and waits until the child has become the program: microseconds to a few
    /// milliseconds, ten seconds at the very most.
    ///
    /// # Errors
    /// The program cannot be executed; the child has ended and is reaped.
    pub fn release(mut self) -> Result<Process, LaunchError> {
        // A child that failed early has closed its end: its report is read below.
        let sent = retry(|| rustix::net::send(&self.gate, &[GO], SendFlags::NOSIGNAL));
        let report = self.read_report()?;
        match (report, sent) {
            (Report::Silent, Ok(_)) => {
                Ok(self.process.take().expect("only release() takes the process, and it consumes self"))
            }
            (Report::Silent, Err(_)) => Err(LaunchError::Died { program: self.program.clone() }),
            (Report::Failed(stage, source), _) => {
                Err(LaunchError::Child { stage, program: self.program.clone(), source })
            }
        }
        // On every error path the drop of `self` reaps the child.
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
        if let Some(process) = self.process.take() {
            // It is our unreaped child, so neither can fail but for its being gone. The kill is for
            // a child that somebody stopped: it would not notice the end of file.
            let _ = process.kill();
            let _ = process.reap_blocking();
        }
    }
}

/// Signals that Linux has, and bits in its signal set (`_NSIG` in `asm/signal.h`; MIPS has 128).
const KERNEL_SIGNALS: usize = 64;

/// The byte that opens the gate.
const GO: u8 = b'g';

/// Stage and errno.
const REPORT_LEN: usize = 5;

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

/// Everything that the child needs, in the form in which system calls take it.
struct ChildImage {
    program: CString,
    cwd: CString,
    /// Pointers into `_strings`, ended by a null.
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    _strings: Vec<CString>,
    /// Every source is above every target, so that no copy overwrites a source.
    copies: Vec<(OwnedFd, RawFd)>,
    gate: OwnedFd,
    /// What is neither a target nor the gate, up to the largest number there is.
    gaps: Vec<(u32, u32)>,
}

impl ChildImage {
    fn prepare(launch: Launch, gate: OwnedFd) -> Result<Self, LaunchError> {
        let Launch { program, args, env, cwd, fds, stdout, stderr } = launch;
        if !program.is_absolute() {
            return Err(LaunchError::ProgramNotAbsolute { program });
        }
        let mut targets: Vec<RawFd> = fds.iter().map(|(_, target)| *target).collect();
        targets.sort_unstable();
        if let Some(&target) = targets.iter().find(|target| !(3..=1023).contains(*target)) {
            return Err(LaunchError::TargetOutOfRange { target });
        }
        if let Some(pair) = targets.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(LaunchError::TargetTwice { target: pair[0] });
        }
        let highest = targets.last().copied().unwrap_or(2);
        let failed = |call| {
            let program = program.clone();
            move |errno: Errno| LaunchError::Prepare { call, program, source: errno.into() }
        };
        let null = |flags| rustix::fs::open("/dev/null", flags | OFlags::CLOEXEC, Mode::empty());
        let lift = |fd: OwnedFd| lift_above(fd, highest).map_err(failed("fcntl"));

        let stdin = null(OFlags::RDONLY).map_err(failed("open /dev/null"))?;
        let out = |given: Option<OwnedFd>| match given {
            Some(fd) => Ok(fd),
            None => null(OFlags::WRONLY).map_err(failed("open /dev/null")),
        };
        let mut copies = vec![(lift(stdin)?, 0), (lift(out(stdout)?)?, 1), (lift(out(stderr)?)?, 2)];
        for (fd, target) in fds {
            copies.push((lift(fd)?, target));
        }
        let gate = lift(gate)?;
        let gaps = gaps_between(copies.iter().map(|(_, target)| *target).chain([gate.as_raw_fd()]));

        let mut strings = vec![c_string("the program", program.as_os_str())?];
        for arg in &args {
            strings.push(c_string("the argument", arg)?);
        }
        let env_from = strings.len();
        for (name, value) in &env {
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                return Err(LaunchError::BadEnvName { name: name.clone() });
            }
            let mut pair = name.clone();
            pair.push("=");
            pair.push(value);
            strings.push(c_string("the environment variable", &pair)?);
        }
        let pointers =
            |strings: &[CString]| strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
        Ok(Self {
            program: c_string("the program", program.as_os_str())?,
            cwd: c_string("the working directory", cwd.as_os_str())?,
            // A CString owns its bytes on the heap: moving `strings` moves no bytes.
            argv: pointers(&strings[..env_from]),
            envp: pointers(&strings[env_from..]),
            _strings: strings,
            copies,
            gate,
            gaps,
        })
    }

    /// Returns the child's number; in the child it does not return.
    fn fork(&self) -> Result<u32, Errno> {
        // With every signal held back across the fork no handler of the parent can run in the child.
        let before = mask_all_signals();
        // SAFETY: the child calls nothing but `become_program`, which makes system calls only.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            self.become_program();
        }
        let errno = io::Error::last_os_error();
        restore_signals(&before);
        match u32::try_from(pid) {
            Ok(pid) => Ok(pid),
            Err(_negative) => Err(Errno::from_raw_os_error(errno.raw_os_error().unwrap_or(libc::EAGAIN))),
        }
    }

    /// The child, from the fork to the program. Nothing here allocates, locks or unwinds.
    fn become_program(&self) -> ! {
        // Descriptors first: whatever else the parent has open (its database lock, its listening
        // sockets, the far end of this very gate) is not to be kept open by a child that waits.
        for (source, target) in &self.copies {
            // SAFETY: dup2 of descriptors that this image owns; no memory is involved.
            if unsafe { libc::dup2(source.as_raw_fd(), *target) } < 0 {
                self.fail(Stage::Descriptors);
            }
        }
        for (first, last) in &self.gaps {
            // SAFETY: closes numbers of this process only; the parent's table is a copy of its own.
            // By number, as older C libraries have no wrapper.
            if unsafe { libc::syscall(libc::SYS_close_range, *first, *last, 0) } < 0 {
                self.fail(Stage::Descriptors);
            }
        }
        // SAFETY: setsid and umask take no memory.
        unsafe {
            libc::umask(0o077);
            if libc::setsid() < 0 {
                self.fail(Stage::Session);
            }
        }
        default_signals();
        // SAFETY: PR_SET_NO_NEW_PRIVS takes four integers.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } < 0 {
            self.fail(Stage::NoNewPrivs);
        }
        // SAFETY: a string made before the fork, ended by zero.
        if unsafe { libc::chdir(self.cwd.as_ptr()) } < 0 {
            self.fail(Stage::WorkingDirectory);
        }
        self.wait_at_gate();
        // SAFETY: arrays made before the fork, of strings ended by zero, ended by null; the strings
        // live in `self`.
        unsafe { libc::execve(self.program.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr()) };
        self.fail(Stage::Exec)
    }

    /// Returns when the go byte came. Anything else means that nobody waits for this child any more.
    fn wait_at_gate(&self) {
        let mut byte = 0u8;
        loop {
            // SAFETY: one byte into a local.
            let got = unsafe { libc::recv(self.gate.as_raw_fd(), (&raw mut byte).cast(), 1, 0) };
            if got == 1 && byte == GO {
                return;
            }
            // SAFETY: reads this thread's errno.
            if got < 0 && unsafe { *libc::__errno_location() } == libc::EINTR {
                continue;
            }
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(0) }
        }
    }

    fn fail(&self, stage: Stage) -> ! {
        let mut report = [stage as u8; REPORT_LEN];
        // SAFETY: reads this thread's errno.
        let errno = unsafe { *libc::__errno_location() };
        report[1..].copy_from_slice(&errno.to_ne_bytes());
        // SAFETY: sends from a local. Nobody is left to tell if sending fails.
        unsafe {
            libc::send(self.gate.as_raw_fd(), report.as_ptr().cast(), report.len(), libc::MSG_NOSIGNAL);
        }
        // Not gone before its parent is done with it: that a child failed early must not look like
        // a child that somebody killed.
        self.wait_at_gate();
        // SAFETY: ends the process without running anything of the parent's.
        unsafe { libc::_exit(127) }
    }
}

/// Moves a descriptor to a number above `highest`.
fn lift_above(fd: OwnedFd, highest: RawFd) -> Result<OwnedFd, Errno> {
    if fd.as_raw_fd() > highest {
        return Ok(fd);
    }
    rustix::io::fcntl_dupfd_cloexec(&fd, highest + 1)
}

/// The closed ranges between the numbers that are kept.
fn gaps_between(kept: impl Iterator<Item = RawFd>) -> Vec<(u32, u32)> {
    let mut kept: Vec<u32> = kept.map(RawFd::cast_unsigned).collect();
    kept.sort_unstable();
    let mut gaps = Vec::new();
    let mut next = 0;
    for number in kept {
        if number > next {
            gaps.push((next, number - 1));
        }
        next = number + 1;
    }
    gaps.push((next, u32::MAX));
    gaps
}

fn c_string(what: &'static str, value: &OsStr) -> Result<CString, LaunchError> {
    CString::new(value.as_bytes()).map_err(|_zero| LaunchError::ZeroByte { what, value: value.to_owned() })
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Holds back every signal of this thread and returns what was held back before.
fn mask_all_signals() -> libc::sigset_t {
    // SAFETY: both sets are locals that the calls fill in; zeroed is a valid sigset_t.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    }
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: reads a set that `mask_all_signals` filled in.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut());
    }
}

/// In the child: every disposition to its default (an ignored signal would stay ignored across
/// exec), then no signal held back.
fn default_signals() {
    // The kernel's `struct sigaction`, larger than on any platform, of zeros: SIG_DFL, no flags, an
    // empty mask.
    let action = [0u64; 8];
    for signal in 1..=KERNEL_SIGNALS as c_int {
        // SAFETY: reads a local. By number, as the C library refuses the two signals that it uses
        // itself, which may be ignored by inheritance all the same. The kernel refuses the two that
        // cannot be caught: they need no reset.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), ptr::null_mut::<u64>(), KERNEL_SIGNALS / 8);
        }
    }
    // SAFETY: a local that sigemptyset fills in; pthread_sigmask is one system call.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// Collects a child that has no handle. It is about to end: its gate is closed.
fn reap_number(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        // Already collected is all that can go wrong.
        let _ = retry(|| rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()));
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
