//! The child between its birth and its program.
//!
//! Owns: what the child needs ([`Image`]), its stack, its birth, everything that it does until `exec`.
//!
//! The child is born by `clone` with `CLONE_VM`: it has the parent's memory and not a copy of it,
//! as the children of `posix_spawn` have, but its parent goes on meanwhile. A `fork` copies the page
//! tables, and then every page that the parent touches while the child waits at the gate: measured,
//! 6 ms of CPU time for each launch by a daemon of 64 MiB and 48 ms by one of 1 GiB, against 0.3 ms
//! for any.
//!
//! What that asks of the code here:
//! - The child has a stack of its own, which lives until the child has left this memory.
//! - The child makes system calls and nothing else, and makes them itself: the C library's wrappers
//!   write `errno`, which belongs to the thread of the parent that made the child.
//! - Nothing in the child can panic: no indexing, no arithmetic that overflows, no allocation.
//! - What it reads is in the [`Image`], complete before its birth and never written after.
//! - Every signal is held back from before its birth until its dispositions are the default ones: no
//!   handler of the parent ever runs in the child.
//!
//! Descriptors, working directory, umask and dispositions are its own from birth: only memory is
//! shared.

use std::ffi::{CString, OsStr, OsString, c_char, c_int, c_long, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr::{self, NonNull};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Launch, LaunchError, Stage};

/// The byte that opens the gate.
pub(super) const GO: u8 = b'g';

/// What a child that failed sends: stage and errno.
pub(super) const REPORT_LEN: usize = 5;

/// Signals that Linux has, and bits in its signal set (`_NSIG` in `asm/signal.h`).
const KERNEL_SIGNALS: usize = 64;

/// A child at the gate. Dropping this frees memory that the child uses: only once it has become its
/// program or has ended.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: u32,
    /// The caller takes it.
    pub(super) pidfd: Option<OwnedFd>,
    _image: Box<Image>,
    _stack: Stack,
}

/// Everything that the child needs, in the form in which system calls take it.
#[derive(Debug)]
struct Image {
    program: CString,
    cwd: CString,
    /// Pointers into `_strings`, ended by a null.
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    _strings: Vec<CString>,
    /// From and to. Every source is above every target, so that no copy overwrites a source.
    copies: Vec<(RawFd, RawFd)>,
    gate: RawFd,
    /// What is neither a target nor the gate, up to the largest number there is.
    gaps: Vec<(u32, u32)>,
}

// SAFETY: the pointers lead to the heap memory of `_strings`, which the image owns and which nothing
// writes to.
unsafe impl Send for Image {}
// SAFETY: as above; there is nothing to change through a reference.
unsafe impl Sync for Image {}

/// The descriptors that an image speaks of. The parent's copies are closed once the child has its own.
struct Descriptors {
    _owned: Vec<OwnedFd>,
}

/// Starts the child, which has done everything but wait and become its program.
pub(super) fn start(launch: Launch, gate: OwnedFd) -> Result<Child, LaunchError> {
    let program = launch.program.clone();
    let failed = |call| move |source: io::Error| LaunchError::Prepare { call, program, source };
    let (image, descriptors) = prepare(launch, gate)?;
    let image = Box::new(image);
    let stack = Stack::new().map_err(failed.clone()("mmap"))?;
    let (pid, pidfd) = birth(&image, &stack).map_err(failed("clone"))?;
    drop(descriptors);
    Ok(Child { pid, pidfd: Some(pidfd), _image: image, _stack: stack })
}

fn prepare(launch: Launch, gate: OwnedFd) -> Result<(Image, Descriptors), LaunchError> {
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
    let mut owned = Vec::new();
    let mut lift = |fd: OwnedFd| {
        let fd = lift_above(fd, highest).map_err(failed("fcntl"))?;
        let number = fd.as_raw_fd();
        owned.push(fd);
        Ok::<_, LaunchError>(number)
    };
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
    let gaps = gaps_between(copies.iter().map(|(_, target)| *target).chain([gate]));

    let mut strings = vec![c_string("the program", program.as_os_str())?];
    for arg in &args {
        strings.push(c_string("the argument", arg)?);
    }
    let env_from = strings.len();
    for (name, value) in &env {
        strings.push(environment_string(name, value)?);
    }
    let pointers =
        |strings: &[CString]| strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
    let image = Image {
        program: c_string("the program", program.as_os_str())?,
        cwd: c_string("the working directory", cwd.as_os_str())?,
        // A CString owns its bytes on the heap: moving `strings` moves no bytes.
        argv: pointers(&strings[..env_from]),
        envp: pointers(&strings[env_from..]),
        _strings: strings,
        copies,
        gate,
        gaps,
    };
    Ok((image, Descriptors { _owned: owned }))
}

/// Returns the child's number and pidfd.
fn birth(image: &Image, stack: &Stack) -> io::Result<(u32, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    let before = mask_all_signals();
    // SAFETY: `enter` gets a pointer to an image and runs on a stack of its own; both outlive it, as
    // `Child` owns them. It makes system calls only and does not return. With CLONE_PIDFD the kernel writes one
    // number to the place that is given for the parent's thread ID.
    let pid = unsafe {
        libc::clone(
            enter,
            stack.top(),
            libc::CLONE_VM | libc::CLONE_PIDFD | libc::SIGCHLD,
            ptr::from_ref(image).cast_mut().cast(),
            &raw mut pidfd,
        )
    };
    let error = io::Error::last_os_error();
    restore_signals(&before);
    let Ok(pid) = u32::try_from(pid) else { return Err(error) };
    // SAFETY: a new descriptor of this process, and nobody else knows its number.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

extern "C" fn enter(image: *mut c_void) -> c_int {
    // SAFETY: `birth` passes a reference to an image that outlives this child.
    let image: &Image = unsafe { &*image.cast::<Image>() };
    image.become_program()
}

impl Image {
    /// The child, from its birth to its program.
    fn become_program(&self) -> ! {
        // Descriptors first: whatever else the parent has open (its database lock, its listening
        // sockets, the far end of this very gate) is not to be kept open by a child that waits.
        for &(from, to) in &self.copies {
            self.check(Stage::Descriptors, sys3(libc::SYS_dup3, from as usize, to as usize, 0));
        }
        for &(first, last) in &self.gaps {
            let closed = sys3(libc::SYS_close_range, first as usize, last as usize, 0);
            self.check(Stage::Descriptors, closed);
        }
        sys3(libc::SYS_umask, 0o077, 0, 0);
        self.check(Stage::Session, sys3(libc::SYS_setsid, 0, 0, 0));
        default_signals();
        let no_new_privs = sys3(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0);
        self.check(Stage::NoNewPrivs, no_new_privs);
        self.check(Stage::WorkingDirectory, sys3(libc::SYS_chdir, self.cwd.as_ptr() as usize, 0, 0));
        self.wait_at_gate();
        let (program, argv, envp) = (self.program.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr());
        let errno = sys3(libc::SYS_execve, program as usize, argv as usize, envp as usize);
        self.fail(Stage::Exec, errno)
    }

    fn check(&self, stage: Stage, result: isize) {
        if result < 0 {
            self.fail(stage, result);
        }
    }

    /// Returns when the go byte came. Anything else means that nobody waits for this child any more.
    fn wait_at_gate(&self) {
        let mut byte = 0u8;
        loop {
            let got = sys6(libc::SYS_recvfrom, [self.gate as usize, &raw mut byte as usize, 1, 0, 0, 0]);
            if got == 1 && byte == GO {
                return;
            }
            if got != -(libc::EINTR as isize) {
                exit(0);
            }
        }
    }

    fn fail(&self, stage: Stage, result: isize) -> ! {
        let [e0, e1, e2, e3] = (result.wrapping_neg() as i32).to_ne_bytes();
        let report: [u8; REPORT_LEN] = [stage as u8, e0, e1, e2, e3];
        // Nobody is left to tell if sending fails.
        sys6(
            libc::SYS_sendto,
            [self.gate as usize, report.as_ptr() as usize, REPORT_LEN, libc::MSG_NOSIGNAL as usize, 0, 0],
        );
        // Not gone before its parent is done with it: that a child failed early must not look like a
        // child that somebody killed.
        self.wait_at_gate();
        exit(127)
    }
}

fn exit(code: usize) -> ! {
    loop {
        sys3(libc::SYS_exit_group, code, 0, 0);
    }
}

/// Every disposition to its default (an ignored signal would stay ignored across exec), then no
/// signal held back.
fn default_signals() {
    // The kernel's `struct sigaction`, and more than it has on any platform, of zeros: SIG_DFL, no
    // flags, an empty mask.
    let action = [0u64; 8];
    let mask = 0u64;
    for signal in 1..=KERNEL_SIGNALS {
        // The two that cannot be caught are refused and need no reset.
        sys6(libc::SYS_rt_sigaction, [signal, action.as_ptr() as usize, 0, KERNEL_SIGNALS / 8, 0, 0]);
    }
    sys6(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, &raw const mask as usize, 0, KERNEL_SIGNALS / 8, 0, 0]);
}

fn sys3(number: c_long, first: usize, second: usize, third: usize) -> isize {
    sys6(number, [first, second, third, 0, 0, 0])
}

/// A system call without the C library: the result, or a negated errno.
#[cfg(target_arch = "x86_64")]
#[inline]
fn sys6(number: c_long, args: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = args;
    let result: isize;
    // SAFETY: the calling convention of Linux on x86-64 (syscall(2)). The calls made in this module
    // read and write nothing but the memory that they are given pointers to, which is alive.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// A system call without the C library: the result, or a negated errno.
#[cfg(target_arch = "aarch64")]
#[inline]
fn sys6(number: c_long, args: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = args;
    let result: isize;
    // SAFETY: the calling convention of Linux on ARM64 (syscall(2)). The calls made in this module
    // read and write nothing but the memory that they are given pointers to, which is alive.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack),
        );
    }
    result
}

/// The child's stack: system calls from a handful of frames need little.
#[derive(Debug)]
struct Stack {
    lowest: NonNull<c_void>,
}

// SAFETY: a mapping belongs to the process, not to the thread that made it.
unsafe impl Send for Stack {}
// SAFETY: nothing is read or written through it by this side.
unsafe impl Sync for Stack {}

impl Stack {
    const BYTES: usize = 64 * 1024;
    /// At the low end, where a stack overflows to. As large as the largest page on Linux.
    const GUARD: usize = 64 * 1024;

    fn new() -> io::Result<Self> {
        // SAFETY: a new mapping that replaces none, then a part of it made accessible.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
            let size = Self::GUARD + Self::BYTES;
            let lowest = libc::mmap(ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0);
            if lowest == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let stack = Self { lowest: NonNull::new(lowest).expect("the kernel maps nothing at zero unasked") };
            let usable = lowest.byte_add(Self::GUARD);
            if libc::mprotect(usable, Self::BYTES, libc::PROT_READ | libc::PROT_WRITE) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(stack)
        }
    }

    /// One past its highest byte: stacks grow down on what Roost runs on.
    fn top(&self) -> *mut c_void {
        // SAFETY: one past the end of the mapping.
        unsafe { self.lowest.as_ptr().byte_add(Self::GUARD + Self::BYTES) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, and nobody runs on it any more: see `Child`.
        unsafe {
            libc::munmap(self.lowest.as_ptr(), Self::GUARD + Self::BYTES);
        }
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

fn environment_string(name: &OsStr, value: &OsStr) -> Result<CString, LaunchError> {
    if name.is_empty() || name.as_bytes().contains(&b'=') {
        return Err(LaunchError::BadEnvName { name: name.to_owned() });
    }
    let mut pair = OsString::from(name);
    pair.push("=");
    pair.push(value);
    c_string("the environment variable", &pair)
}

fn c_string(what: &'static str, value: &OsStr) -> Result<CString, LaunchError> {
    CString::new(value.as_bytes()).map_err(|_zero| LaunchError::ZeroByte { what, value: value.to_owned() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps() {
        assert_eq!(gaps_between([0, 1, 2].into_iter()), [(3, u32::MAX)]);
        assert_eq!(gaps_between([2, 0, 1, 9, 4].into_iter()), [(3, 3), (5, 8), (10, u32::MAX)]);
        assert_eq!(gaps_between([5].into_iter()), [(0, 4), (6, u32::MAX)]);
    }
}
