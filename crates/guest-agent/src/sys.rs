//! The few calls that have no safe form in `rustix` or the standard library: starting a program, signals as a
//! descriptor, vsock addresses, a descriptor by its number. The only unsafe code of the agent.
//!
//! A program is started the way posix_spawn does it: the child shares the agent's memory until it calls exec, while
//! the agent's thread waits. So it costs no copy of page tables, an error comes back through memory rather than
//! a pipe, and what the child may do is: system calls, on data that was laid out before.
#![deny(clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn)]

use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::process::Pid;
use zeroize::Zeroizing;

/// A program to start, laid out so that the child needs nothing but system calls.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// Tried in turn, as a shell does with PATH.
    pub(crate) programs: &'a [CString],
    pub(crate) argv: &'a [CString],
    /// `NAME=value` and a NUL each.
    pub(crate) env: &'a [Zeroizing<Vec<u8>>],
    pub(crate) cwd: &'a CString,
    pub(crate) stdin: BorrowedFd<'a>,
    pub(crate) stdout: BorrowedFd<'a>,
    pub(crate) stderr: BorrowedFd<'a>,
    /// Its standard input is a terminal that it gets for its own.
    pub(crate) terminal: bool,
    /// `None`: stay who the agent is.
    pub(crate) user: Option<Ids<'a>>,
    /// A cgroup v2 directory that it starts in.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// `cgroup.procs` files (v1) that it enters.
    pub(crate) enter: &'a [OwnedFd],
    /// Resource, and both limits.
    pub(crate) rlimits: &'a [(u32, u64)],
}

/// Whose rights a program has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ids<'a> {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: &'a [u32],
}

/// At which step a program failed to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Stage {
    Fork = 1,
    Files = 2,
    Terminal = 3,
    Cgroup = 4,
    Limits = 5,
    User = 6,
    Directory = 7,
    Exec = 8,
}

/// Why a program did not start.
#[derive(Debug)]
pub(crate) struct SpawnError {
    pub(crate) stage: Stage,
    pub(crate) error: io::Error,
}

/// What the child reads and writes. Its owner waits until the child is gone from this memory.
struct Shared {
    programs: Vec<*const c_char>,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    cwd: *const c_char,
    files: [RawFd; 3],
    terminal: bool,
    user: Option<(u32, u32, *const u32, usize)>,
    enter: Vec<RawFd>,
    rlimits: *const (u32, u64),
    rlimits_len: usize,
    failed_stage: Stage,
    failed_errno: c_int,
    /// The child has run at all.
    begun: bool,
}

const STACK: usize = 64 * 1024;

/// The stack that children start on, one at a time.
#[derive(Debug)]
pub(crate) struct Spawner {
    stack: Vec<u128>,
}

impl Default for Spawner {
    fn default() -> Self {
        Self { stack: vec![0; STACK / 16] }
    }
}

impl Spawner {
    /// Starts a program in a session of its own. It inherits nothing but what the plan names.
    pub(crate) fn spawn(&mut self, plan: &Plan<'_>) -> Result<Pid, SpawnError> {
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
        };
        let mut shared = Shared {
            programs: pointers(plan.programs),
            argv: pointers(plan.argv),
            env: plan.env.iter().map(|text| text.as_ptr().cast()).chain([ptr::null()]).collect(),
            cwd: plan.cwd.as_ptr(),
            files: [plan.stdin.as_raw_fd(), plan.stdout.as_raw_fd(), plan.stderr.as_raw_fd()],
            terminal: plan.terminal,
            user: plan.user.map(|ids| (ids.uid, ids.gid, ids.groups.as_ptr(), ids.groups.len())),
            enter: plan.enter.iter().map(AsRawFd::as_raw_fd).collect(),
            rlimits: plan.rlimits.as_ptr(),
            rlimits_len: plan.rlimits.len(),
            failed_stage: Stage::Fork,
            failed_errno: 0,
            begun: false,
        };
        debug_assert!(plan.env.iter().all(|text| text.last() == Some(&0)), "a variable without its NUL");
        let argument: *mut Shared = &raw mut shared;
        // A signal that came between here and exec would run a handler of the agent in the child.
        let held = SignalMask::hold_all();
        let pid = match plan.cgroup {
            Some(cgroup) => self.clone_into(cgroup, argument),
            None => self.clone_plain(argument),
        };
        drop(held);
        // SAFETY: the child has called exec or ended, so that this thread alone is in this memory. It was written
        // through the pointer, which is why it is read through it.
        let (stage, mut errno, begun) =
            unsafe { ((*argument).failed_stage, (*argument).failed_errno, (*argument).begun) };
        let pid = pid.map_err(|error| SpawnError { stage: Stage::Fork, error })?;
        if !begun {
            // The kernel ended it on its way into a cgroup: some do where `cgroup.kill` was used before.
            errno = libc::ESTALE;
        }
        if errno != 0 {
            // It is a zombie, and nobody else waits for it.
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            return Err(SpawnError { stage, error: io::Error::from_raw_os_error(errno) });
        }
        Ok(pid)
    }

    fn clone_plain(&mut self, shared: *mut Shared) -> io::Result<Pid> {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let top = self.stack.as_mut_ptr_range().end;
        // SAFETY: the stack is ours until the call returns, which is after the child has left it (CLONE_VFORK), it
        // is aligned to 16 bytes and grows down from `top`; `shared` outlives the call for the same reason.
        let pid = unsafe { libc::clone(child_entry, top.cast(), flags, shared.cast()) };
        if pid < 0 { Err(io::Error::last_os_error()) } else { Pid::from_raw(pid).ok_or(io::ErrorKind::Other.into()) }
    }

    /// The same, and the child is in the cgroup from its first instruction. (To move a process later makes the kernel
    /// wait for a grace period.)
    fn clone_into(&mut self, cgroup: BorrowedFd<'_>, shared: *mut Shared) -> io::Result<Pid> {
        #[repr(C, align(8))]
        #[derive(Default)]
        struct CloneArgs {
            flags: u64,
            pidfd: u64,
            child_tid: u64,
            parent_tid: u64,
            exit_signal: u64,
            stack: u64,
            stack_size: u64,
            tls: u64,
            set_tid: u64,
            set_tid_size: u64,
            cgroup: u64,
        }
        const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
        let args = CloneArgs {
            flags: libc::CLONE_VM as u64 | libc::CLONE_VFORK as u64 | CLONE_INTO_CGROUP,
            exit_signal: libc::SIGCHLD as u64,
            stack: self.stack.as_mut_ptr() as u64,
            stack_size: STACK as u64,
            cgroup: cgroup.as_raw_fd() as u64,
            ..CloneArgs::default()
        };
        // SAFETY: as in `clone_plain`. The child begins on its own empty stack, so it returns nowhere: it calls
        // `child_entry`, which does not return.
        let result = unsafe { raw_clone3((&raw const args).cast(), size_of::<CloneArgs>(), shared.cast()) };
        match i32::try_from(result) {
            Ok(pid) if pid > 0 => Pid::from_raw(pid).ok_or(io::ErrorKind::Other.into()),
            _ => Err(io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EINVAL))),
        }
    }
}

/// clone3, after which the child calls `child_entry(argument)` on its own stack.
///
/// # Safety
/// `args` are `len` bytes of a `clone_args` with a stack, CLONE_VM and CLONE_VFORK; `argument` is a [`Shared`].
#[cfg(target_arch = "x86_64")]
unsafe fn raw_clone3(args: *const c_void, len: usize, argument: *mut c_void) -> c_long {
    let result;
    // SAFETY: the caller's promises. The kernel clobbers rcx and r11 only (so no operand may be in them); the child has copies of all registers, and
    // never leaves the lines between the jump and the trap.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {entry}",
            "ud2",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) child_entry as extern "C" fn(*mut c_void) -> c_int,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") args,
            in("rsi") len,
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

/// See the other one.
///
/// # Safety
/// The same.
#[cfg(target_arch = "aarch64")]
unsafe fn raw_clone3(args: *const c_void, len: usize, argument: *mut c_void) -> c_long {
    let result;
    // SAFETY: the caller's promises. The kernel clobbers x0 only; the child never leaves the lines in between.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, {argument}",
            "blr {entry}",
            "brk 1",
            "2:",
            argument = in(reg) argument,
            entry = in(reg) child_entry as extern "C" fn(*mut c_void) -> c_int,
            inlateout("x0") args => result,
            in("x1") len,
            in("x8") libc::SYS_clone3,
        );
    }
    result
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn raw_clone3(_: *const c_void, _: usize, _: *mut c_void) -> c_long {
    -c_long::from(libc::ENOSYS)
}

/// The child, between clone and exec. It must not allocate, lock or unwind.
extern "C" fn child_entry(argument: *mut c_void) -> c_int {
    // SAFETY: the argument is the `Shared` of a `spawn` that waits; every pointer in it is into data that outlives
    // the wait. Only system calls are made: those of glibc that set a user would tell all threads of the agent.
    unsafe {
        let shared = argument.cast::<Shared>();
        (*shared).begun = true;
        let failed = match run_child(&*shared) {
            Ok(never) => match never {},
            Err(failed) => failed,
        };
        (*shared).failed_errno = *libc::__errno_location();
        (*shared).failed_stage = failed;
        libc::_exit(127)
    }
}

enum Never {}

/// # Safety
/// As for [`child_entry`].
unsafe fn run_child(shared: &Shared) -> Result<Never, Stage> {
    let check = |result: c_long, stage: Stage| if result < 0 { Err(stage) } else { Ok(()) };
    // SAFETY: system calls on arguments that are valid by the caller's promise.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        check(libc::setsid().into(), Stage::Terminal)?;
        for (target, &file) in shared.files.iter().enumerate() {
            check(libc::dup2(file, target as c_int).into(), Stage::Files)?;
        }
        if shared.terminal {
            check(libc::ioctl(0, libc::TIOCSCTTY, 0).into(), Stage::Terminal)?;
        }
        for &file in &shared.enter {
            check(libc::write(file, c"0".as_ptr().cast(), 1) as c_long, Stage::Cgroup)?;
        }
        for at in 0..shared.rlimits_len {
            let (resource, value) = *shared.rlimits.add(at);
            let limit = libc::rlimit64 { rlim_cur: value, rlim_max: value };
            let none = ptr::null_mut::<libc::rlimit64>();
            check(libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, none), Stage::Limits)?;
        }
        if let Some((uid, gid, groups, len)) = shared.user {
            check(libc::syscall(libc::SYS_setgroups, len, groups), Stage::User)?;
            check(libc::syscall(libc::SYS_setresgid, gid, gid, gid), Stage::User)?;
            check(libc::syscall(libc::SYS_setresuid, uid, uid, uid), Stage::User)?;
        }
        check(libc::chdir(shared.cwd).into(), Stage::Directory)?;
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        // Like a shell: one that may not be run is told only if none is found that may.
        let mut denied = false;
        for &program in shared.programs.iter().take_while(|program| !program.is_null()) {
            libc::execve(program, shared.argv.as_ptr(), shared.env.as_ptr());
            match *libc::__errno_location() {
                libc::EACCES => denied = true,
                libc::ENOENT | libc::ENOTDIR => {}
                _ => return Err(Stage::Exec),
            }
        }
        *libc::__errno_location() = if denied { libc::EACCES } else { libc::ENOENT };
        Err(Stage::Exec)
    }
}

/// All signals, held back for as long as it lives.
struct SignalMask(libc::sigset_t);

impl SignalMask {
    fn hold_all() -> Self {
        // SAFETY: both sets are locals that the calls fill in; zeroed is a valid sigset_t.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
            Self(before)
        }
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        // SAFETY: a set that pthread_sigmask filled in.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// A descriptor that is readable once one of `signals` is pending. They are held back in this thread and in all that
/// it starts. What the agent's parent had set to be ignored is not passed on to programs.
pub(crate) fn signals(signals: &[c_int]) -> io::Result<OwnedFd> {
    // SAFETY: a local set that sigemptyset fills in; the new descriptor is ours alone; no handler is set.
    unsafe {
        for signal in 1..32 {
            let mut action: libc::sigaction = std::mem::zeroed();
            if signal != libc::SIGPIPE
                && libc::sigaction(signal, ptr::null(), &raw mut action) == 0
                && action.sa_sigaction == libc::SIG_IGN
            {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for &signal in signals {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Takes a descriptor that whoever started the agent left open for it.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a descriptor from 3 on"));
    }
    // SAFETY: fcntl only asks whether the number is open.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the flag that names it is used once: nothing else in the agent knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// No program inherits a descriptor but its three; and the allocator has one arena, because the threads of an agent
/// live shortly, and an arena each would stay.
pub fn prepare() {
    // SAFETY: changes a flag of descriptors, and a parameter of malloc before there is a second thread.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3 as c_long, c_long::from(u32::MAX), libc::CLOSE_RANGE_CLOEXEC as c_long);
        #[cfg(target_env = "gnu")]
        {
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_TRIM_THRESHOLD, 128 * 1024);
            libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
        }
    }
}

/// Listens on a vsock port.
pub(crate) fn vsock_listen(port: u32) -> io::Result<OwnedFd> {
    let check = |result: c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    // SAFETY: the address is a local of the length that is given; the new descriptor is ours alone.
    unsafe {
        let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let socket = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_VSOCK, flags, 0))?);
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = libc::VMADDR_CID_ANY;
        address.svm_port = port;
        let len = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len))?;
        check(libc::listen(socket.as_raw_fd(), 16))?;
        Ok(socket)
    }
}

/// Takes a connection from the host. One from anybody else (a program in this very guest, over the loopback of
/// vsock) is closed, and is an error.
pub(crate) fn vsock_accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: as above.
    let (socket, address) = unsafe {
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        let mut len = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let fd = libc::accept4(listener.as_raw_fd(), (&raw mut address).cast(), &raw mut len, flags);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        (OwnedFd::from_raw_fd(fd), address)
    };
    if address.svm_cid == libc::VMADDR_CID_HOST {
        return Ok(socket);
    }
    let message = format!("a connection from CID {}; permitted: the host's, 2", address.svm_cid);
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}
