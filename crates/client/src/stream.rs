//! Streams that the daemon sends: events, and the console's log.

use std::path::Path;
use std::sync::Arc;

use connectrpc::client::ServerStream;
use hyper::body::Incoming;
use roost_api::vmm::v1::{
    Event, GetConsoleLogResponse, GetConsoleLogResponseView, WatchVmsResponse, WatchVmsResponseView,
};

use crate::error::Error;

/// Events as they are committed. Dropping it ends the call.
#[derive(Debug)]
pub struct Watch {
    pub(crate) stream: ServerStream<Incoming, WatchVmsResponseView<'static>>,
    pub(crate) socket: Arc<Path>,
}

/// What the guest wrote to its serial console. Dropping it ends the call.
#[derive(Debug)]
pub struct ConsoleLog {
    pub(crate) stream: ServerStream<Incoming, GetConsoleLogResponseView<'static>>,
    pub(crate) socket: Arc<Path>,
}

impl Watch {
    /// The next event; `None` when the daemon ended the stream without an error.
    ///
    /// Cancel-safe: a dropped future loses no event.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            let message = self.stream.message::<WatchVmsResponse>().await;
            match message.map_err(|e| Error::from_call(&e, &self.socket))? {
                None => return Ok(None),
                Some(message) => {
                    if let Some(event) = message.to_owned_message().event.into_option() {
                        return Ok(Some(event));
                    }
                }
            }
        }
    }
}

impl ConsoleLog {
    /// The next bytes, unchanged; `None` at the end.
    ///
    /// Cancel-safe: a dropped future loses no byte.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let message = self.stream.message::<GetConsoleLogResponse>().await;
        let message = message.map_err(|e| Error::from_call(&e, &self.socket))?;
        Ok(message.map(|m| m.to_owned_message().data))
    }
}
