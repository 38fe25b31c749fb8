//! The serial console, both ways.

use std::path::Path;
use std::sync::Arc;

use connectrpc::client::{BidiRecvHalf, BidiSendHalf, BidiStream};
use hyper::body::Incoming;
use roost_api::vmm::v1::{AttachConsoleRequest, AttachConsoleResponse, AttachConsoleResponseView};

use crate::error::Error;

type Stream = BidiStream<Incoming, AttachConsoleRequest, AttachConsoleResponseView<'static>>;

/// An attached serial console. Dropping it detaches; the guest notices nothing.
#[derive(Debug)]
pub struct Console {
    input: ConsoleInput,
    output: ConsoleOutput,
}

/// Where keystrokes go. Dropping it leaves the output attached.
#[derive(Debug)]
pub struct ConsoleInput {
    send: BidiSendHalf<AttachConsoleRequest>,
    socket: Arc<Path>,
}

/// Where the guest's output comes from. Dropping it detaches.
#[derive(Debug)]
pub struct ConsoleOutput {
    receive: BidiRecvHalf<Incoming, AttachConsoleResponseView<'static>>,
    socket: Arc<Path>,
}

impl Console {
    pub(crate) async fn attach(stream: Stream, vm: &str, socket: Arc<Path>) -> Result<Self, Error> {
        let (send, receive) = stream.into_split();
        let mut input = ConsoleInput { send, socket: Arc::clone(&socket) };
        let first = AttachConsoleRequest { vm_id: vm.to_owned(), ..Default::default() };
        input.send.send(first).await.map_err(|e| Error::from_call(&e, &socket))?;
        Ok(Self { input, output: ConsoleOutput { receive, socket } })
    }

    /// Sends keystrokes; see [`ConsoleInput::send`].
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.input.send(bytes).await
    }

    /// The guest's next bytes; see [`ConsoleOutput::next`].
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        self.output.next().await
    }

    /// The two directions, for two tasks.
    pub fn into_split(self) -> (ConsoleInput, ConsoleOutput) {
        (self.input, self.output)
    }
}

impl ConsoleInput {
    /// Sends keystrokes. An error says only that the stream is over: why, is told by the output.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let message = AttachConsoleRequest { data: bytes.to_vec(), ..Default::default() };
        self.send.send(message).await.map_err(|e| Error::from_call(&e, &self.socket))
    }
}

impl ConsoleOutput {
    /// The guest's next bytes, unchanged; `None` when the daemon ended the stream without an error.
    ///
    /// Cancel-safe: a dropped future loses no byte.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let message = self.receive.message::<AttachConsoleResponse>().await;
        let message = message.map_err(|e| Error::from_call(&e, &self.socket))?;
        Ok(message.map(|m| m.to_owned_message().data))
    }
}
