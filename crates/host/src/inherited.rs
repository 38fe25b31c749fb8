//! Descriptors that the parent left open for this program, by their agreed numbers.
//!
//! Owns: turning such a number into an owned descriptor, once.
//! Not here: which numbers are agreed; putting them there ([`crate::launch`]).
//!
//! A number is only believed if it is open and lacks close-on-exec: what came through `exec` lacks
//! it by nature, and everything that this program opens itself has it (the standard library and
//! `rustix` as Roost uses it set it always). So a number cannot be taken from somebody who owns it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::{Errno, FdFlags};

/// Why a descriptor could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// Nothing is open at that number.
    #[error("descriptor {number} is not open: this program expects its parent to pass it")]
    NotOpen {
        /// The number.
        number: RawFd,
    },
    /// It did not come from the parent, or has been taken before.
    #[error("descriptor {number} is not one that the parent passed")]
    NotInherited {
        /// The number.
        number: RawFd,
    },
    /// The standard streams are not for taking.
    #[error("descriptor {number} is out of range: 3 and up are permitted")]
    OutOfRange {
        /// The number.
        number: RawFd,
    },
    /// A system call failed.
    #[error("fcntl on descriptor {number} failed")]
    Call {
        /// The number.
        number: RawFd,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Takes what the parent left at `number`, and marks it close-on-exec.
///
/// # Errors
/// The parent left nothing there.
pub fn take(number: RawFd) -> Result<OwnedFd, InheritedError> {
    // Two threads that take the same number must not both see it unmarked.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);

    if number < 3 {
        return Err(InheritedError::OutOfRange { number });
    }
    let call = |errno: Errno| InheritedError::Call { number, source: errno.into() };
    // SAFETY: used for two fcntl calls only, which answer EBADF if nothing is open there.
    let there = unsafe { BorrowedFd::borrow_raw(number) };
    match rustix::io::fcntl_getfd(there) {
        Err(Errno::BADF) => return Err(InheritedError::NotOpen { number }),
        Err(errno) => return Err(call(errno)),
        Ok(flags) if flags.contains(FdFlags::CLOEXEC) => return Err(InheritedError::NotInherited { number }),
        Ok(flags) => rustix::io::fcntl_setfd(there, flags | FdFlags::CLOEXEC).map_err(call)?,
    }
    // SAFETY: open, and nobody in this program owns it: see the module's words on close-on-exec. It
    // is marked now, so that it cannot be taken again.
    Ok(unsafe { OwnedFd::from_raw_fd(there.as_raw_fd()) })
}
