//! A byte stream with a bounded queue in front of it: an attached client, or the guest's port.
//!
//! Owns: what is still to be sent on one socket.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::SendFlags;

/// A queue that has been emptied keeps at most this much memory.
const KEPT_CAPACITY: usize = 4096;

/// Non-blocking socket and the bytes that wait for it.
#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) socket: OwnedFd,
    queue: VecDeque<u8>,
    limit: usize,
}

/// The queue is full, or the other end is gone.
#[derive(Debug)]
pub(crate) struct CutOff;

impl Outlet {
    pub(crate) fn new(socket: OwnedFd, limit: usize) -> Self {
        Self { socket, queue: VecDeque::new(), limit }
    }

    pub(crate) fn room(&self) -> usize {
        self.limit - self.queue.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Sends what the socket takes now and queues the rest.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), CutOff> {
        let mut bytes = bytes;
        while self.queue.is_empty() && !bytes.is_empty() {
            let Some(sent) = self.send(bytes)? else { break };
            bytes = &bytes[sent..];
        }
        if bytes.len() > self.room() {
            return Err(CutOff);
        }
        self.queue.extend(bytes);
        Ok(())
    }

    /// Sends what the socket takes now.
    pub(crate) fn flush(&mut self) -> Result<(), CutOff> {
        while !self.queue.is_empty() {
            let Some(sent) = self.send(self.queue.as_slices().0)? else { break };
            self.queue.drain(..sent);
        }
        if self.queue.is_empty() {
            self.queue.shrink_to(KEPT_CAPACITY);
        }
        Ok(())
    }

    /// `None`: the socket takes nothing now.
    fn send(&self, bytes: &[u8]) -> Result<Option<usize>, CutOff> {
        loop {
            return match rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => Ok(Some(sent)),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Ok(None),
                Err(_gone) => Err(CutOff),
            };
        }
    }
}

/// One attached client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) out: Outlet,
    /// It may still send; cleared at its end of file.
    pub(crate) reads: bool,
    /// It has gone away altogether; only what it sent before is still to be read.
    pub(crate) hung_up: bool,
}

impl Client {
    pub(crate) fn new(socket: OwnedFd, queue: usize) -> Self {
        Self { out: Outlet::new(socket, queue), reads: true, hung_up: false }
    }
}
