//! Files to and from guests.

use bytes::Bytes;
use connectrpc::{ConnectError, InboundStream};
use futures::{Stream, StreamExt};
use roost_api::vmm::v1;
use roost_api::{status, to_proto};
use roost_guest_hub::CallError;
use roost_guest_hub::proto::{FileInfo, FileKind, FilePull, FilePush, FileStat, Request, Response};
use roost_model::Invalid;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::failure::{data, told};
use super::{GuestCalls, LOOK, typed};
use crate::guests::Failure;

/// Pieces of a file that may wait for the caller.
const PIECES: usize = 8;

pub(super) async fn push(
    calls: &GuestCalls,
    mut requests: InboundStream<v1::PushFileRequest>,
) -> Result<v1::PushFileResponse, ConnectError> {
    let missing = || status::invalid(&Invalid::new("start", "", "is missing").permit(["the first message has it"]));
    let first = requests.next().await.ok_or_else(missing)??.to_owned_message();
    let start = first.start.into_option().ok_or_else(missing)?;
    let v1::PushFileStart { vm_id, path, mode, owner, size, sha256, resume_at, tree, parents, .. } = start;
    let vm = calls.vm(vm_id).await?;
    let given = |text: String| (!text.is_empty()).then_some(text);
    let file = FilePush {
        path,
        mode,
        owner: given(owner),
        size,
        sha256: given(sha256),
        resume_at,
        tree,
        parents,
        ..FilePush::default()
    };
    let guests = &calls.0.guests;
    let execution = guests.begin_file(&vm, "push", &file.path).await.map_err(|e| told(&e))?;
    let rest = requests.map(|request| {
        let request = request.map_err(|e| std::io::Error::other(e.to_string()))?.to_owned_message();
        if request.start.is_set() {
            return Err(std::io::Error::other("start: may be in the first message only"));
        }
        Ok(Bytes::from(request.data))
    });
    let content = futures::stream::iter([Ok(Bytes::from(first.data))]).chain(rest);
    let answer = guests.hub.push(vm.id, file, content).await;
    guests.end(execution, &answer).await.map_err(|e| told(&e))?;
    let data = data(answer.map_err(|e| told(&e.into()))?)?;
    Ok(v1::PushFileResponse {
        size: data.get("bytes").and_then(serde_json::Value::as_u64).unwrap_or_default(),
        sha256: text(&data, "sha256"),
        ..Default::default()
    })
}

pub(super) async fn pull(
    calls: &GuestCalls,
    request: v1::PullFileRequest,
) -> Result<impl Stream<Item = Result<v1::PullFileResponse, ConnectError>> + Send + use<>, ConnectError> {
    let v1::PullFileRequest { vm_id, path, offset, tree, sha256, .. } = request;
    let vm = calls.vm(vm_id).await?;
    let file = FilePull { path, offset, tree, sha256, ..FilePull::default() };
    let guests = calls.0.guests.clone();
    let execution = guests.begin_file(&vm, "pull", &file.path).await.map_err(|e| told(&e))?;
    let mut pull = match guests.hub.pull(vm.id, file).await {
        Ok(pull) => pull,
        Err(error) => {
            guests.end(execution, &Err(error.clone())).await.map_err(|e| told(&e))?;
            return Err(told(&Failure::from(error)));
        }
    };
    let (send, receive) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        let mut size = 0;
        let answer: Result<Response, CallError> = loop {
            match pull.next().await {
                Ok(Some(bytes)) => {
                    size += bytes.len() as u64;
                    let piece = v1::PullFileResponse { data: bytes.into(), ..Default::default() };
                    if send.send(Ok(piece)).await.is_err() {
                        break Err(CallError::Content("whoever asked for it has gone".to_owned()));
                    }
                }
                Ok(None) => break pull.finish().await,
                Err(error) => break Err(error),
            }
        };
        let ended = guests.end(execution, &answer).await;
        let last = ended.map_err(|e| told(&e)).and_then(|_| {
            let data = data(answer.map_err(|e| told(&e.into()))?)?;
            let end = v1::PullFileEnd { size, sha256: text(&data, "sha256"), ..Default::default() };
            Ok(v1::PullFileResponse { end: end.into(), ..Default::default() })
        });
        let _gone = send.send(last).await;
    });
    Ok(ReceiverStream::new(receive))
}

pub(super) async fn stat(
    calls: &GuestCalls,
    request: v1::StatFileRequest,
) -> Result<v1::StatFileResponse, ConnectError> {
    let v1::StatFileRequest { vm_id, path, sha256, list, .. } = request;
    let vm = calls.vm(vm_id).await?;
    let stat = Request::FileStat(FileStat { id: String::new(), path, sha256, list });
    let answer = calls.0.guests.hub.call(vm.id, stat, LOOK).await;
    let info: FileInfo = typed::read(data(answer.map_err(|e| told(&e.into()))?)?)?;
    let kind = match info.kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Other => "other",
    };
    let modified = roost_model::Timestamp::from_unix_ms(info.modified.saturating_mul(1000));
    Ok(v1::StatFileResponse {
        kind: kind.to_owned(),
        size: info.size,
        mode: info.mode,
        uid: info.uid,
        gid: info.gid,
        modified: to_proto::timestamp(modified).into(),
        target: info.target.unwrap_or_default(),
        sha256: info.sha256.unwrap_or_default(),
        entries: info.entries.unwrap_or_default(),
        ..Default::default()
    })
}

fn text(data: &serde_json::Value, key: &str) -> String {
    data.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().chars().take(128).collect()
}
