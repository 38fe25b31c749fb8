//! What goes over the socket, and how it is cut into frames.

use std::io;

use roost_backend::{Event, Happened};
use roost_model::{ExitCause, LaunchId, VmId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};

use super::MAX_FRAME_BYTES;
use crate::request::{HostError, Reply, Request};

/// Both ends must speak the same one.
pub(super) const VERSION: u32 = 1;

/// From a client to the host.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum ToHost {
    Hello { version: u32, report_asked_ends: bool },
    Ask { id: u64, request: Request },
    Cancel { id: u64 },
}

/// From the host to a client.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum FromHost {
    Hello { version: u32, host: String },
    Answer { id: u64, result: Result<Reply, HostError> },
    Told { event: WireEvent },
}

/// An event on the wire.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WireEvent {
    vm: VmId,
    launch: LaunchId,
    happened: WireHappened,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireHappened {
    Ended(ExitCause),
    Reset,
    Paused,
    Resumed,
}

/// A frame could not be read.
#[derive(Debug, Error)]
pub(super) enum FrameError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("a frame is longer than {MAX_FRAME_BYTES} bytes")]
    TooLong,
    #[error("the other end hung up in the middle of a frame")]
    Torn,
    #[error("a frame is not of this protocol")]
    Malformed(#[source] serde_json::Error),
}

/// Cuts what comes in into frames.
#[derive(Debug)]
pub(super) struct Frames<R> {
    from: R,
    /// The frame that is coming in: kept here, so that dropping a read loses nothing.
    line: Vec<u8>,
}

impl<R: AsyncBufRead + Unpin> Frames<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, line: Vec::new() }
    }

    /// The next frame; `None` when the other end has hung up. May be dropped and called again.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        loop {
            let coming = self.from.fill_buf().await?;
            if coming.is_empty() {
                return if self.line.is_empty() { Ok(None) } else { Err(FrameError::Torn) };
            }
            let end = coming.iter().position(|b| *b == b'\n');
            let part = &coming[..end.unwrap_or(coming.len())];
            if self.line.len() + part.len() > MAX_FRAME_BYTES {
                return Err(FrameError::TooLong);
            }
            self.line.extend_from_slice(part);
            let taken = part.len() + usize::from(end.is_some());
            self.from.consume(taken);
            if end.is_some() {
                let frame = serde_json::from_slice(&self.line).map_err(FrameError::Malformed)?;
                self.line.clear();
                return Ok(Some(frame));
            }
        }
    }
}

/// Adds a frame to what goes out.
pub(super) fn push<T: Serialize>(out: &mut Vec<u8>, frame: &T) {
    serde_json::to_writer(&mut *out, frame).expect("frames have string keys and a vector takes all bytes");
    out.push(b'\n');
}

/// Sends what goes out.
pub(super) async fn flush(to: &mut (impl AsyncWrite + Unpin), out: &mut Vec<u8>) -> io::Result<()> {
    to.write_all(out).await?;
    out.clear();
    Ok(())
}

impl From<Event> for WireEvent {
    fn from(event: Event) -> Self {
        let happened = match event.happened {
            Happened::Ended(cause) => WireHappened::Ended(cause),
            Happened::Reset => WireHappened::Reset,
            Happened::Paused => WireHappened::Paused,
            Happened::Resumed => WireHappened::Resumed,
        };
        Self { vm: event.vm, launch: event.launch, happened }
    }
}

impl From<WireEvent> for Event {
    fn from(event: WireEvent) -> Self {
        let happened = match event.happened {
            WireHappened::Ended(cause) => Happened::Ended(cause),
            WireHappened::Reset => Happened::Reset,
            WireHappened::Paused => Happened::Paused,
            WireHappened::Resumed => Happened::Resumed,
        };
        Self { vm: event.vm, launch: event.launch, happened }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn first(bytes: &[u8]) -> Result<Option<ToHost>, FrameError> {
        Frames::new(bytes).next().await
    }

    #[tokio::test]
    async fn frames_are_bounded_and_strict() {
        let mut out = Vec::new();
        push(&mut out, &ToHost::Cancel { id: 7 });
        push(&mut out, &ToHost::Cancel { id: 8 });
        let mut frames = Frames::new(&out[..]);
        assert!(matches!(frames.next().await, Ok(Some(ToHost::Cancel { id: 7 }))));
        assert!(matches!(frames.next().await, Ok(Some(ToHost::Cancel { id: 8 }))));
        assert!(matches!(frames.next::<ToHost>().await, Ok(None)));

        let long = vec![b' '; MAX_FRAME_BYTES + 1];
        assert!(matches!(first(&long).await, Err(FrameError::TooLong)));
        assert!(matches!(first(b"{\"cancel\":{\"id\"").await, Err(FrameError::Torn)));
        for bad in ["\n", "{}\n", "{\"cancel\":{\"id\":1,\"x\":1}}\n", "{\"cancel\":{\"id\":-1}}\n", "\u{0}\n"] {
            assert!(matches!(first(bad.as_bytes()).await, Err(FrameError::Malformed(_))), "{bad:?}");
        }
    }
}
