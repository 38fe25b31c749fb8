//! Files by QEMU's guest agent: in pieces, and in place. A copy that breaks off leaves what it has written.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use roost_guest_proto::{FilePull, FilePush, Pulled, Response, hex};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Client, done, unsupported};
use crate::entry::Answer;
use crate::error::CallError;
use crate::stream::{Closed, Stream};

/// A piece. Its base64 and the rest of the message stay well below what a virtio port takes at once.
const PIECE: usize = 32 * 1024;

fn violation(how: &str) -> CallError {
    CallError::Violation { what: "a copy", how: how.to_owned() }
}

impl Client {
    async fn open(&self, path: &str, mode: &str) -> Result<i64, CallError> {
        let handle = self.ask("guest-file-open", json!({ "path": path, "mode": mode })).await?;
        handle.as_i64().ok_or_else(|| violation("it named no handle"))
    }

    async fn close(&self, handle: i64) -> Result<(), CallError> {
        self.ask("guest-file-close", json!({ "handle": handle })).await.map(drop)
    }

    pub(super) async fn push(&self, file: &FilePush, stream: &Arc<Stream>) -> Answer {
        if file.tree {
            return unsupported("file.tree");
        }
        if file.resume_at.is_some_and(|at| at > 0) {
            return unsupported("file.resume");
        }
        if file.parents
            && let Some((parent, _)) = file.path.rsplit_once('/')
            && !parent.is_empty()
        {
            self.helper(&["/bin/mkdir", "-p", "--", parent]).await?;
        }
        let handle = self.open(&file.path, "w").await?;
        let written = self.write_all(handle, stream).await;
        let closed = self.close(handle).await;
        let (bytes, sha256) = written?;
        closed?;
        if file.size.is_some_and(|size| size != bytes) {
            return Err(violation("the content is not as long as was said"));
        }
        if let Some(expected) = file.sha256.as_ref().filter(|expected| !expected.eq_ignore_ascii_case(&sha256)) {
            return Err(CallError::Corrupt { found: sha256, expected: expected.clone() });
        }
        if let Some(mode) = file.mode {
            self.helper(&["/bin/chmod", "--", &format!("{:o}", mode & 0o7777), &file.path]).await?;
        }
        if let Some(owner) = &file.owner {
            self.helper(&["/bin/chown", "--", owner, &file.path]).await?;
        }
        Ok(Response { data: Some(json!({ "bytes": bytes, "sha256": sha256 })), ..done() })
    }

    async fn write_all(&self, handle: i64, stream: &Arc<Stream>) -> Result<(u64, String), CallError> {
        let mut buffer = vec![0; PIECE];
        let mut hash = Sha256::new();
        let mut total = 0;
        loop {
            match stream.pull(&mut buffer) {
                Pulled::Bytes(len) => {
                    let mut piece = &buffer[..len];
                    hash.update(piece);
                    total += len as u64;
                    while !piece.is_empty() {
                        let arguments = json!({ "handle": handle, "buf-b64": STANDARD.encode(piece) });
                        let wrote = self.ask("guest-file-write", arguments).await?;
                        let count = wrote.get("count").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
                        match count {
                            Some(count) if count > 0 && count <= piece.len() => piece = &piece[count..],
                            _ => return Err(violation("it wrote nothing, or more than there was")),
                        }
                    }
                }
                Pulled::Empty if stream.closed().is_some() => return Err(abandoned(stream)),
                Pulled::Empty => stream.changed().await,
                Pulled::End => return Ok((total, hex(&hash.finalize()))),
                Pulled::Failed => return Err(CallError::Content("the sender gave up".to_owned())),
            }
        }
    }

    pub(super) async fn pull(&self, file: &FilePull, stream: &Arc<Stream>) -> Answer {
        if file.tree {
            return unsupported("file.tree");
        }
        let handle = self.open(&file.path, "r").await?;
        let read = self.read_all(handle, file, stream).await;
        let closed = self.close(handle).await;
        let (bytes, sha256) = read?;
        closed?;
        stream.ended(roost_guest_proto::Channel::Input);
        Ok(Response { data: Some(json!({ "bytes": bytes, "sha256": sha256 })), ..done() })
    }

    async fn read_all(&self, handle: i64, file: &FilePull, stream: &Arc<Stream>) -> Result<(u64, String), CallError> {
        if file.offset > 0 {
            self.ask("guest-file-seek", json!({ "handle": handle, "offset": file.offset, "whence": "set" })).await?;
        }
        let mut hash = Sha256::new();
        let mut total = 0;
        let mut left = file.length.unwrap_or(u64::MAX);
        while left > 0 {
            // Half of what the reader has credit for is always enough for a piece.
            while stream.waiting() > PIECE && stream.closed().is_none() {
                stream.changed().await;
            }
            if stream.closed().is_some() {
                return Err(abandoned(stream));
            }
            let count = left.min(PIECE as u64);
            let answer = self.ask("guest-file-read", json!({ "handle": handle, "count": count })).await?;
            let text = answer.get("buf-b64").and_then(Value::as_str).unwrap_or_default();
            let bytes = STANDARD.decode(text).map_err(|_| violation("no base64"))?;
            if bytes.len() as u64 > count {
                return Err(violation("it read more than it was asked for"));
            }
            stream
                .received(roost_guest_proto::Channel::Input, &bytes)
                .map_err(|overrun| violation(&overrun.to_string()))?;
            hash.update(&bytes);
            total += bytes.len() as u64;
            left -= bytes.len() as u64;
            if answer.get("eof").and_then(Value::as_bool) == Some(true) {
                break;
            }
            if bytes.is_empty() {
                return Err(violation("it read nothing, and not the end"));
            }
        }
        Ok((total, hex(&hash.finalize())))
    }
}

fn abandoned(stream: &Stream) -> CallError {
    let why = stream.closed().unwrap_or(Closed::Over).to_string();
    CallError::OutcomeUnknown { what: "a copy", why }
}
