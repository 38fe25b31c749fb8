//! A request under way: a program, or work on a thread; its input and output; how it ends.
//!
//! ```text
//!   a program:
//!     Running ── time is up, cancelled, its host is gone ──> Terminating ── grace over, or output ended ──> Killed
//!        │             (SIGTERM to the group)                   (SIGKILL to all that it started)              │
//!        └──────── its leader is over, and its output was read ────────────> answered <────────────────────────┘
//! ```

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use roost_guest_proto::{Channel, CommandType, ReceiveWindow, Response};
use zeroize::Zeroizing;

use crate::exec::capture::Capture;
use crate::exec::process::Process;
use crate::run::Cancel;

/// What is still read of a program's output once its leader is over: what a pipe can hold at most. The rest is of
/// something that it left behind.
const AFTER_EXIT: usize = 1 << 20;

/// A request under way.
#[derive(Debug)]
pub(crate) struct Job {
    /// Of the request; empty where it has none.
    pub(crate) id: String,
    /// Who asked; `None`: is gone, and gets no answer.
    pub(crate) link: Option<u64>,
    pub(crate) stream: Option<u32>,
    pub(crate) reply: Reply,
    pub(crate) started: Instant,
    pub(crate) work: Work,
    pub(crate) input: Option<Sink>,
    pub(crate) output: Option<Source>,
    pub(crate) error: Option<Source>,
    /// Why it is being ended.
    pub(crate) verdict: Option<Verdict>,
}

/// In which form the answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Response(CommandType),
    /// `{exit_code, stdout, stderr}`
    Run,
    /// `{type: success, payload}`
    Execute,
}

/// Why a request was ended before it was over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Timeout(Duration),
    Cancelled,
    /// The host sent more than it had credit for.
    Overrun,
}

#[derive(Debug)]
pub(crate) enum Work {
    Program(Box<Program>),
    /// On a thread. The result is there before its output is over, or after.
    Thread {
        cancel: Cancel,
        result: Option<Box<Response>>,
    },
}

/// A program that was started.
#[derive(Debug)]
pub(crate) struct Program {
    /// `None` once it is over and all is given back.
    pub(crate) process: Option<Process>,
    pub(crate) phase: Phase,
    /// Once its leader is over.
    pub(crate) status: Option<Status>,
    pub(crate) timeout: Option<Duration>,
    /// For a terminal's size.
    pub(crate) terminal: Option<OwnedFd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    /// Was asked to end; until then.
    Terminating(Instant),
    /// Was ended; what is still there then is given up.
    Killed(Instant),
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
}

/// Where output comes from.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) fd: OwnedFd,
    pub(crate) token: u64,
    /// Without a stream, it is kept here.
    pub(crate) capture: Option<Capture>,
    /// Was closed; the capture stays.
    pub(crate) closed: bool,
    after_exit: usize,
}

/// What reading gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    Bytes(usize),
    Empty,
    End,
}

impl Source {
    pub(crate) fn new(fd: OwnedFd, token: u64, capture: Option<Capture>) -> Self {
        Self { fd, token, capture, closed: false, after_exit: 0 }
    }

    /// Reads. `over`: whoever is meant to write is gone, so that what is there now is all.
    pub(crate) fn read(&mut self, buffer: &mut [u8], over: bool) -> Read {
        if self.closed {
            return Read::End;
        }
        loop {
            return match rustix::io::read(&self.fd, &mut *buffer) {
                Ok(0) => Read::End,
                Ok(len) => {
                    if over {
                        self.after_exit += len;
                        if self.after_exit > AFTER_EXIT {
                            return Read::End;
                        }
                    }
                    Read::Bytes(len)
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) if !over => Read::Empty,
                // The last program left the terminal (EIO), or nothing is left to read.
                Err(_) => Read::End,
            };
        }
    }
}

/// Where input goes.
#[derive(Debug)]
pub(crate) struct Sink {
    /// `None`: closed, by this side or the other. What comes is dropped.
    fd: Option<OwnedFd>,
    queue: VecDeque<Zeroizing<Vec<u8>>>,
    /// Bytes of the first in the queue that were written.
    written: usize,
    /// Nothing more comes.
    ended: bool,
    terminal: bool,
    pub(crate) window: ReceiveWindow,
    /// Where the loop looks for room in it; 0: not yet.
    pub(crate) token: u64,
}

impl Sink {
    pub(crate) fn new(fd: OwnedFd, terminal: bool) -> Self {
        Self {
            fd: Some(fd),
            queue: VecDeque::new(),
            written: 0,
            ended: false,
            terminal,
            window: ReceiveWindow::default(),
            token: 0,
        }
    }

    pub(crate) fn fd(&self) -> Option<&OwnedFd> {
        self.fd.as_ref()
    }

    pub(crate) fn push(&mut self, bytes: Zeroizing<Vec<u8>>) {
        if !self.ended && !bytes.is_empty() {
            self.queue.push_back(bytes);
        }
    }

    /// Nothing more comes.
    pub(crate) fn end(&mut self) {
        if self.terminal && !self.ended && self.fd.is_some() {
            // What a person at a terminal presses.
            self.queue.push_back(Zeroizing::new(vec![0x04]));
        }
        self.ended = true;
    }

    /// Writes what there is room for. The bytes that are done with, and whether it waits for room.
    pub(crate) fn write(&mut self) -> (usize, bool) {
        let mut done = 0;
        while let Some(first) = self.queue.front() {
            let Some(fd) = &self.fd else {
                done += first.len() - self.written;
                self.written = 0;
                self.queue.pop_front();
                continue;
            };
            match rustix::io::write(fd, &first[self.written..]) {
                Ok(len) => {
                    done += len;
                    self.written += len;
                    if self.written == first.len() {
                        self.written = 0;
                        self.queue.pop_front();
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return (done, true),
                // It reads no more; a sender has to be able to go on all the same.
                Err(_) => self.fd = None,
            }
        }
        if self.ended && !self.terminal {
            self.fd = None;
        }
        (done, false)
    }

    pub(crate) fn close(&mut self) {
        self.fd = None;
    }
}

impl Job {
    /// The descriptor of a channel's output. A file goes out on the channel `Input`.
    pub(crate) fn source(&mut self, channel: Channel) -> Option<&mut Source> {
        match channel {
            Channel::Input | Channel::Output => self.output.as_mut(),
            Channel::Error => self.error.as_mut(),
        }
    }

    /// Whoever writes the output is gone.
    pub(crate) fn is_over(&self) -> bool {
        match &self.work {
            Work::Program(program) => program.status.is_some(),
            Work::Thread { result, .. } => result.is_some(),
        }
    }

    /// Its answer can go.
    pub(crate) fn is_done(&self) -> bool {
        let closed = |source: &Option<Source>| source.as_ref().is_none_or(|source| source.closed);
        let output = closed(&self.output) && closed(&self.error);
        match &self.work {
            Work::Program(program) => match program.phase {
                // What it left behind is to be ended first.
                Phase::Terminating(_) => false,
                Phase::Running | Phase::Killed(_) => program.status.is_some() && output,
            },
            Work::Thread { result, .. } => result.is_some() && output,
        }
    }

    /// Ends work on a thread: its flag is up, and its pipes are closed.
    pub(crate) fn cancel_thread(&mut self) {
        if let Work::Thread { cancel, .. } = &self.work {
            cancel.cancel();
            self.input = None;
            self.output = None;
        }
    }

    /// When something has to be done about it.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let Work::Program(program) = &self.work else { return None };
        match program.phase {
            Phase::Running => program.timeout.filter(|_| program.status.is_none()).map(|limit| self.started + limit),
            Phase::Terminating(until) | Phase::Killed(until) => Some(until),
        }
    }
}

/// A pipe between the loop and a thread: the loop's end does not block. The first reads.
pub(crate) fn pipe(loop_reads: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let end = if loop_reads { &read } else { &write };
    rustix::fs::fcntl_setfl(end, rustix::fs::OFlags::NONBLOCK)?;
    // Fewer turns for long files; where it is not permitted, the size that it has will do.
    let _ = rustix::pipe::fcntl_setpipe_size(end, 256 * 1024);
    Ok((read, write))
}
