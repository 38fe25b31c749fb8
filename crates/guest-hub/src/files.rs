//! Files and trees of files, both ways.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream as Content, StreamExt};
use roost_guest_proto::{Channel, FilePull, FilePush, Request, Response, hex};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::entry::{Call, Entry};
use crate::error::CallError;
use crate::stream::Stream;

/// What passed here, to hold the guest's answer against.
#[derive(Debug, Default)]
struct Passed {
    bytes: u64,
    /// Only where the caller asks: hashing takes the guest longer than the copy, and this end some time, too.
    hash: Option<Sha256>,
}

impl Passed {
    fn new(hashed: bool) -> Self {
        Self { bytes: 0, hash: hashed.then(Sha256::new) }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
    }

    /// `counted`: the answer's `bytes` are those of the stream. The SHA-256 must be there if it was asked for.
    fn check(self, response: &Response, what: &'static str, counted: bool) -> Result<(), CallError> {
        let data = |key: &str| response.data.as_ref().and_then(|data| data.get(key));
        if counted && let Some(bytes) = data("bytes").and_then(Value::as_u64).filter(|bytes| *bytes != self.bytes) {
            let how = format!("it counts {bytes} bytes where {} passed", self.bytes);
            return Err(CallError::Violation { what, how });
        }
        let Some(hash) = self.hash else { return Ok(()) };
        let found = hex(&hash.finalize());
        match data("sha256").and_then(Value::as_str) {
            Some(expected) if expected.eq_ignore_ascii_case(&found) => Ok(()),
            Some(expected) => Err(CallError::Corrupt { found, expected: expected.chars().take(64).collect() }),
            None => Err(CallError::Violation { what, how: "it names no SHA-256, though it was asked to".to_owned() }),
        }
    }
}

pub(crate) async fn push<S>(entry: Arc<Entry>, mut file: FilePush, content: S) -> Result<Response, CallError>
where
    S: Content<Item = std::io::Result<Bytes>> + Send,
{
    let (stream, _permit) = entry.stream(&[], true)?;
    file.stream = stream.number;
    // Of a file that goes on behind an earlier attempt only a part passes here.
    let whole = file.resume_at.is_none_or(|at| at == 0);
    let counted = whole && !file.tree;
    let mut passed = Passed::new(whole && file.sha256.is_some());
    let stall = entry.config.stall;
    let mut call = entry.begin(Request::FilePush(file), Some(stream.clone()))?;
    let mut content = pin!(content);
    // A write that fails: the guest wants no more of it, and its answer says why.
    while let Some(piece) = content.next().await {
        match piece {
            Ok(bytes) => {
                passed.add(&bytes);
                if stalled(call.what, stall, stream.write(bytes)).await?.is_err() {
                    break;
                }
            }
            Err(error) => {
                stream.fail();
                // The guest is told by the reset; what it answers to that is of no use.
                let _ = call.wait(Some(entry.config.call_timeout)).await;
                return Err(CallError::Content(error.to_string()));
            }
        }
    }
    stream.finish();
    let response = answer(&mut call, &stream, stall).await?;
    if response.success {
        passed.check(&response, "FilePush", counted)?;
    }
    Ok(response)
}

/// The answer, which may take its time as long as bytes still leave.
async fn answer(call: &mut Call, stream: &Stream, stall: Duration) -> Result<Response, CallError> {
    loop {
        let before = stream.unsent();
        match call.wait(Some(stall)).await {
            Err(CallError::Timeout { .. }) if stream.unsent() < before => {}
            answer => return answer,
        }
    }
}

async fn stalled<T>(what: &'static str, after: Duration, act: impl Future<Output = T>) -> Result<T, CallError> {
    timeout(after, act).await.map_err(|_| CallError::Timeout { what, after })
}

pub(crate) fn pull(entry: Arc<Entry>, mut file: FilePull) -> Result<Pull, CallError> {
    let (stream, permit) = entry.stream(&[Channel::Input], false)?;
    file.stream = stream.number;
    let stall = entry.config.stall;
    let (passed, counted) = (Passed::new(file.sha256), !file.tree);
    let call = entry.begin(Request::FilePull(file), Some(stream.clone()))?;
    Ok(Pull { stream, call, passed, counted, stall, _permit: permit })
}

/// A copy from a guest that is under way. Dropping it ends it.
#[derive(Debug)]
pub struct Pull {
    stream: Arc<Stream>,
    call: Call,
    passed: Passed,
    counted: bool,
    stall: Duration,
    _permit: OwnedSemaphorePermit,
}

impl Pull {
    /// The next bytes; `None` at their end, which is the file's only if [`Pull::finish`] says so.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        let Some((_, bytes)) = stalled(self.call.what, self.stall, self.stream.read()).await? else { return Ok(None) };
        self.passed.add(&bytes);
        Ok(Some(bytes))
    }

    /// The guest's answer, once all bytes were read; where [`FilePull::sha256`] asked for it, its
    /// SHA-256 is that of the bytes.
    pub async fn finish(mut self) -> Result<Response, CallError> {
        while self.next().await?.is_some() {}
        let response = self.call.wait(Some(self.stall)).await?;
        if response.success {
            self.passed.check(&response, "FilePull", self.counted)?;
        }
        Ok(response)
    }
}
