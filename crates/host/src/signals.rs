//! Signals as something to poll, for programs without an async runtime.
//!
//! Owns: holding signals back and reading them from a descriptor.
//! Not here: signals to other processes ([`crate::process`]); the daemon's own, which tokio handles.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use crate::process::Signal;

/// Holds `signals` back from this thread and the threads that it starts from now on. What arrives
/// stays pending: to hold back and never read is to ignore.
///
/// # Errors
/// One of them is not a signal number.
pub fn hold_back(signals: &[Signal]) -> io::Result<()> {
    let set = set_of(signals)?;
    // SAFETY: reads a set that `set_of` filled in.
    let errno = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
}

/// A descriptor that is readable once one of `signals` is pending; they are held back first.
/// Call it before any other thread is started, or that thread takes the signal the usual way.
///
/// # Errors
/// No descriptor is left.
pub fn readable_on(signals: &[Signal]) -> io::Result<OwnedFd> {
    hold_back(signals)?;
    let set = set_of(signals)?;
    // SAFETY: reads a set that `set_of` filled in; the new descriptor is ours alone.
    unsafe {
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

fn set_of(signals: &[Signal]) -> io::Result<libc::sigset_t> {
    // SAFETY: a local that sigemptyset fills in; zeroed is a valid sigset_t.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            if libc::sigaddset(&raw mut set, signal.as_raw()) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(set)
    }
}
