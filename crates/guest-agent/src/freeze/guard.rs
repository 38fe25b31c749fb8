//! The process that thaws if the agent cannot: because it was killed, or hangs.
//!
//! It is this program once more, with [`GUARD_ARG`]. On its standard input, a socket, it is handed the deadline and the
//! frozen directories, and says that it has them. Then it waits: for the socket's end, which comes with the agent's, or
//! for the deadline and a second. Either way it thaws. The agent ends it when it has thawed by itself.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};

use super::plan::{MAX_TARGETS, Target};
use crate::platform;

/// The only argument of the guard.
pub const GUARD_ARG: &str = "--thaw-guard";

/// How long after the agent's own deadline it waits, so that the agent can tell of it.
const SLACK: Duration = Duration::from_secs(1);

/// How long its start may take.
const START: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Guard {
    /// By descriptor: whoever else reaps this process's children, no number is ever used that could be another's.
    process: OwnedFd,
    /// Its end is what the guard waits for.
    _socket: OwnedFd,
}

impl Guard {
    /// Returns once the guard has everything.
    pub(super) fn start(program: &Path, targets: &[Target], deadline: Instant) -> io::Result<Self> {
        let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(program);
        command.arg(GUARD_ARG).env_clear().current_dir("/");
        let child = command.stdin(Stdio::from(its)).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        // It holds the guard's end of the socket, which would hide that the guard is gone.
        drop(command);
        // From here on the guard ends with this value.
        let guard = Self { process: pidfd(&child)?, _socket: ours };
        let left = deadline.saturating_duration_since(Instant::now()) + SLACK;
        let directories: Vec<BorrowedFd<'_>> = targets.iter().map(|target| target.directory.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_TARGETS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !directories.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&directories)) {
            return Err(io::Error::other("too many file systems"));
        }
        let millis = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).to_ne_bytes();
        sendmsg(&guard._socket, &[IoSlice::new(&millis)], &mut ancillary, SendFlags::NOSIGNAL)?;
        let until = deadline.min(Instant::now() + START);
        if !wait(&guard._socket, Some(until))? || rustix::io::read(&guard._socket, &mut [0; 1])? != 1 {
            return Err(io::Error::other("it does not say that it is ready"));
        }
        Ok(guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // It holds nothing but descriptors, and by now there is nothing for it to do.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED);
    }
}

/// It was started by this thread, and nobody can have reaped it yet.
fn pidfd(child: &Child) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(child.id().cast_signed()).ok_or(io::ErrorKind::InvalidData)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// What the guard does. Its standard input is the agent's socket.
pub fn guard_main() -> ExitCode {
    platform::ignore_termination();
    match guard(rustix::stdio::stdin()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn guard(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut millis = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_TARGETS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut millis)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut directories: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            directories.extend(fds);
        }
    }
    if received.bytes != millis.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut deadline = Instant::now() + Duration::from_millis(u64::from_ne_bytes(millis));
    rustix::io::write(socket, b"r")?;
    loop {
        let ended = wait(socket, Some(deadline))?;
        for directory in &directories {
            // Most of the time: not frozen. Nobody is left to be told of anything else.
            let _ = platform::thaw(directory);
        }
        if ended {
            return Ok(());
        }
        // An agent that hangs in the middle of freezing may freeze one more: as long as it lives, so does this.
        deadline = Instant::now() + SLACK;
    }
}

/// Whether there is something to read, or the end, before the time.
fn wait(socket: impl AsFd, until: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
