//! The kernel's calls that rustix has no safe form of. The only unsafe code of the agent's safe commands.
#![allow(unsafe_code, reason = "ioctls and a signal's disposition, each with its note")]

use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{NoArg, Opcode, Setter, opcode};

/// `FIFREEZE` and `FITHAW` of linux/fs.h. Their argument is not read.
const FIFREEZE: Opcode = opcode::read_write::<i32>(b'X', 119);
const FITHAW: Opcode = opcode::read_write::<i32>(b'X', 120);

/// `RNDADDENTROPY` and `RNDRESEEDCRNG` of linux/random.h. The first one's number has the size of the head only.
const RNDADDENTROPY: Opcode = opcode::write::<[i32; 2]>(b'R', 0x03);
const RNDRESEEDCRNG: Opcode = opcode::none(b'R', 0x07);

/// The most bytes in one [`add_entropy`].
pub(crate) const MAX_ENTROPY: usize = 64;

/// `struct rand_pool_info`, with its bytes behind it.
#[repr(C)]
struct Entropy {
    bits: i32,
    bytes: i32,
    pool: [u8; MAX_ENTROPY],
}

/// Stops writing to the file system that a directory is on. `EBUSY`: it is frozen already.
pub(crate) fn freeze(directory: impl AsFd) -> Result<(), Errno> {
    // SAFETY: neither request reads or writes its argument, whatever the descriptor is.
    unsafe { rustix::ioctl::ioctl(directory, NoArg::<FIFREEZE>::new()) }
}

/// Writes again. `EINVAL`: it is not frozen.
pub(crate) fn thaw(directory: impl AsFd) -> Result<(), Errno> {
    // SAFETY: as above.
    unsafe { rustix::ioctl::ioctl(directory, NoArg::<FITHAW>::new()) }
}

/// Mixes bytes into the kernel's pool, and counts them as random. What is longer than [`MAX_ENTROPY`] is cut.
pub(crate) fn add_entropy(random: impl AsFd, bytes: &[u8]) -> Result<(), Errno> {
    let bytes = &bytes[..bytes.len().min(MAX_ENTROPY)];
    // As many as MAX_ENTROPY, so they fit.
    let mut entropy = Entropy { bits: bytes.len() as i32 * 8, bytes: bytes.len() as i32, pool: [0; MAX_ENTROPY] };
    entropy.pool[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: the kernel reads the head, and then as many bytes as `bytes` says, which are no more than `pool` has.
    unsafe { rustix::ioctl::ioctl(random, Setter::<RNDADDENTROPY, Entropy>::new(entropy)) }
}

/// Has the kernel's generator begin anew from its pool, at once.
pub(crate) fn reseed(random: impl AsFd) -> Result<(), Errno> {
    // SAFETY: the request has no argument.
    unsafe { rustix::ioctl::ioctl(random, NoArg::<RNDRESEEDCRNG>::new()) }
}

/// Lets SIGTERM, SIGINT and SIGHUP pass: for a process whose work is the end of another.
pub(crate) fn ignore_termination() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: SIG_IGN installs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
