//! Files to and from the guest. Everything here blocks, and runs on threads; bytes come and go through pipes whose
//! other ends the loop holds.

mod pull;
mod push;
pub(crate) mod roots;
mod stat;
mod tree;

pub(crate) use pull::pull;
pub(crate) use push::push;
pub(crate) use stat::stat;

use std::io;
use std::os::fd::AsFd;

use roost_guest_proto::{ErrorBody, ErrorCode};
use rustix::fs::Stat;
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use sha2::{Digest, Sha256};

/// Bytes at a time.
const CHUNK: usize = 64 * 1024;

/// Reads what there is; 0 is the end.
fn read(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(&fd, &mut *buffer) {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

fn write_all(fd: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&fd, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => bytes = &bytes[len..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Moves up to `CHUNK` bytes from one to the other, of which one is a pipe; 0 is the end. With a hash, or where the
/// kernel cannot do it, by way of the buffer.
fn transfer(
    from: impl AsFd,
    to: impl AsFd,
    limit: usize,
    buffer: &mut [u8],
    hashes: &mut [&mut Sha256],
) -> io::Result<Moved> {
    let limit = limit.min(CHUNK);
    if hashes.is_empty() {
        loop {
            match splice(&from, None, &to, None, limit, SpliceFlags::empty()) {
                Ok(len) => return Ok(Moved::Bytes(len)),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE) => return Ok(Moved::Gone),
                // Not between these.
                Err(Errno::INVAL | Errno::NOSYS) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    let len = read(from, &mut buffer[..limit])?;
    match write_all(to, &buffer[..len]) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Moved::Gone),
        other => other?,
    }
    for hash in hashes {
        hash.update(&buffer[..len]);
    }
    Ok(Moved::Bytes(len))
}

/// What came of a transfer.
enum Moved {
    Bytes(usize),
    /// Nobody reads any more.
    Gone,
}

/// A SHA-256 as answers have it.
fn hex(hash: Sha256) -> String {
    roost_guest_proto::hex(&hash.finalize())
}

/// Nobody reads, or writes, any more.
fn cancelled() -> ErrorBody {
    ErrorBody::new(ErrorCode::Cancelled, "it was cancelled")
}

fn modified(stat: &Stat) -> i64 {
    // The field is unsigned on some targets.
    #[allow(clippy::unnecessary_cast, reason = "not the same type everywhere")]
    let seconds = stat.st_mtime as i64;
    seconds
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}
