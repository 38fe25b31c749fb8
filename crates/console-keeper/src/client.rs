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
    broken: bool,
}

/// The other end takes too little for too long.
#[derive(Debug)]
pub(crate) struct Full;

impl Outlet {
    pub(crate) fn new(socket: OwnedFd, limit: usize) -> Self {
        Self { socket, queue: VecDeque::new(), limit, broken: false }
    }

    pub(crate) fn room(&self) -> usize {
        self.limit - self.queue.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The other end takes nothing any more. There may still be something to read from it.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Sends what the socket takes now and queues the rest; to a broken one, nothing.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<(), Full> {
        while self.queue.is_empty() && !bytes.is_empty() && !self.broken {
            let sent = send(&self.socket, bytes);
            let sent = self.note(sent);
            if sent == 0 {
                break;
            }
            bytes = &bytes[sent..];
        }
        if self.broken {
            return Ok(());
        }
        if bytes.len() > self.room() {
            return Err(Full);
        }
        self.queue.extend(bytes);
        Ok(())
    }

    /// Sends what the socket takes now.
    pub(crate) fn flush(&mut self) {
        while !self.queue.is_empty() {
            let sent = send(&self.socket, self.queue.as_slices().0);
            let sent = self.note(sent);
            if sent == 0 {
                break;
            }
            self.queue.drain(..sent);
        }
        if self.queue.is_empty() {
            self.queue.shrink_to(KEPT_CAPACITY);
        }
    }

    /// How much was sent. 0: the socket takes nothing now, or never again.
    fn note(&mut self, sent: Result<usize, Errno>) -> usize {
        match sent {
            Ok(sent) => sent,
            Err(Errno::AGAIN) => 0,
            Err(_gone) => {
                self.broken = true;
                self.queue.clear();
                0
            }
        }
    }
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    loop {
        match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return result,
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

    /// Neither takes nor sends anything any more.
    pub(crate) fn is_done(&self) -> bool {
        !self.reads && (self.hung_up || self.out.is_broken())
    }
}
