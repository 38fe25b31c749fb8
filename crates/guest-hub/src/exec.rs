//! A command that runs in a guest, with its input and output as they come.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use roost_guest_proto::{Cancel, Channel, Request, Resize, Response, Signal};
use tokio::sync::OwnedSemaphorePermit;

use crate::entry::{Call, Entry};
use crate::error::CallError;
use crate::stream::{Closed, Stream};

/// Bytes of output. What a terminal shows is all on `Stdout`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// A running command. Dropping it ends the command.
#[derive(Debug)]
pub struct ExecHandle {
    stream: Arc<Stream>,
    call: Call,
    stdin: Option<Stdin>,
    control: ExecControl,
    _permit: OwnedSemaphorePermit,
}

/// The command's standard input. Dropping it does not end the input: [`Stdin::close`] does.
#[derive(Debug)]
pub struct Stdin(Arc<Stream>);

/// What may be done to a command from elsewhere.
#[derive(Debug, Clone)]
pub struct ExecControl {
    entry: Arc<Entry>,
    target: String,
}

impl ExecHandle {
    pub(crate) fn new(entry: Arc<Entry>, stream: Arc<Stream>, call: Call, permit: OwnedSemaphorePermit) -> Self {
        let stdin = stream.sends.then(|| Stdin(stream.clone()));
        let control = ExecControl { entry, target: call.guard.id.clone() };
        Self { stream, call, stdin, control, _permit: permit }
    }

    /// The input, once; `None` where the command was started without.
    pub fn stdin(&mut self) -> Option<Stdin> {
        self.stdin.take()
    }

    /// The next output; `None` when there is no more, or the command is lost: [`ExecHandle::finish`] tells. What is not
    /// read holds the command up, and nobody else. May be dropped while it waits without losing anything.
    pub async fn output(&mut self) -> Option<Output> {
        self.stream.read().await.map(|(channel, bytes)| match channel {
            Channel::Error => Output::Stderr(bytes),
            _ => Output::Stdout(bytes),
        })
    }

    pub fn control(&self) -> ExecControl {
        self.control.clone()
    }

    /// The process in the guest, once the agent has told it.
    pub fn pid(&self) -> Option<u32> {
        self.stream.pid()
    }

    pub async fn signal(&self, signal: &str) -> Result<Response, CallError> {
        self.control.signal(signal).await
    }

    pub async fn resize(&self, rows: u16, cols: u16) -> Result<Response, CallError> {
        self.control.resize(rows, cols).await
    }

    pub async fn cancel(&self) -> Result<Response, CallError> {
        self.control.cancel().await
    }

    /// What came of it. Output that was not read is thrown away. May be dropped while it waits, and called again.
    pub async fn finish(&mut self) -> Result<Response, CallError> {
        // The answer comes behind the last of the output, which needs credit to come.
        while self.stream.read().await.is_some() {}
        // After the end of its output a command may still run, unless the stream was broken off.
        let patience = match self.stream.closed() {
            Some(Closed::Reset(_)) => Some(self.control.entry.config.call_timeout),
            _ => None,
        };
        self.call.wait(patience).await
    }
}

impl Stdin {
    /// Waits for room: the command reads no faster than it does.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), CallError> {
        self.0.write(bytes).await.map_err(|closed| CallError::Content(closed.to_string()))
    }

    /// The end of the input.
    pub fn close(self) {
        self.0.finish();
    }
}

impl ExecControl {
    async fn call(&self, request: Request) -> Result<Response, CallError> {
        let timeout: Duration = self.entry.config.call_timeout;
        self.entry.call(request, timeout).await
    }

    /// `TERM`, `SIGKILL`, `15`, ...
    pub async fn signal(&self, signal: &str) -> Result<Response, CallError> {
        let (id, target) = (String::new(), self.target.clone());
        self.call(Request::Signal(Signal { id, target, signal: signal.to_owned() })).await
    }

    /// Another size for the command's terminal.
    pub async fn resize(&self, rows: u16, cols: u16) -> Result<Response, CallError> {
        let (id, target) = (String::new(), self.target.clone());
        self.call(Request::Resize(Resize { id, target, rows, cols })).await
    }

    /// Ends the command; its own answer says so.
    pub async fn cancel(&self) -> Result<Response, CallError> {
        let (id, target) = (String::new(), self.target.clone());
        self.call(Request::Cancel(Cancel { id, target })).await
    }
}
