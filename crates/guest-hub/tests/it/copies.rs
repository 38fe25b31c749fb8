//! Files, both ways.

use bytes::Bytes;
use roost_guest_hub::CallError;
use roost_guest_hub::proto::{Channel, ErrorBody, ErrorCode, FilePull, FilePush, Kind, Request, Response, WINDOW};
use sha2::{Digest, Sha256};

use crate::support::{Bench, soon};

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pieces(len: usize) -> (Vec<u8>, impl futures::Stream<Item = std::io::Result<Bytes>> + Send) {
    let whole: Vec<u8> = (0..len).map(|at| (at % 253) as u8).collect();
    let pieces: Vec<_> = whole.chunks(70_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    (whole, futures::stream::iter(pieces))
}

fn push(path: &str) -> FilePush {
    FilePush { path: path.to_owned(), ..FilePush::default() }
}

#[tokio::test]
async fn to_the_guest() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    for honest in [true, false] {
        let (hub, vm) = (bench.hub.clone(), bench.vm);
        let (whole, content) = pieces(5 << 20);
        let file = FilePush { sha256: Some(sha256(&whole)), ..push("/srv/x") };
        let copy = tokio::spawn(async move { hub.push(vm, file, content).await });
        let Request::FilePush(file) = peer.request().await else { panic!() };
        let taken = peer.take_input(file.stream).await;
        assert!(taken == whole);
        let sha256 = if honest { sha256(&taken) } else { sha256(b"something else") };
        let data = Some(serde_json::json!({ "bytes": taken.len(), "sha256": sha256 }));
        peer.say(Response { data, ..Response::success(file.id) }).await;
        match (honest, copy.await.unwrap()) {
            (true, Ok(response)) => assert!(response.success),
            (false, Err(CallError::Corrupt { .. })) => {}
            (_, other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn content_that_breaks_off() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let content =
        futures::stream::iter([Ok(Bytes::from_static(b"some")), Err(std::io::Error::other("the client left"))]);
    let copy = tokio::spawn(async move { hub.push(vm, push("/srv/x"), content).await });
    let Request::FilePush(file) = peer.request().await else { panic!() };
    // A reset and no end: nothing may be put in place.
    loop {
        let frame = peer.frame().await.unwrap();
        match frame.kind {
            Kind::Data => {}
            Kind::Reset => break,
            other => panic!("{other:?}"),
        }
    }
    peer.say(Response::failure(file.id, ErrorBody::new(ErrorCode::Cancelled, "reset"))).await;
    assert_eq!(copy.await.unwrap(), Err(CallError::Content("the client left".to_owned())));
}

#[tokio::test]
async fn a_guest_that_refuses_a_copy() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let (_, content) = pieces(5 << 20);
    let copy = tokio::spawn(async move { hub.push(vm, push("/srv/x"), content).await });
    let Request::FilePush(file) = peer.request().await else { panic!() };
    let error = ErrorBody::new(ErrorCode::PermissionDenied, "read-only");
    peer.say(Response::failure(file.id, error.clone())).await;
    assert_eq!(copy.await.unwrap(), Err(CallError::Guest(error)));
}

#[tokio::test]
async fn from_the_guest() {
    const LEN: usize = 2 << 20;
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    for honest in [true, false] {
        let mut pull = bench
            .hub
            .pull(bench.vm, FilePull { path: "/srv/x".into(), sha256: true, ..FilePull::default() })
            .await
            .unwrap();
        let Request::FilePull(file) = peer.request().await else { panic!() };
        let (whole, _) = pieces(LEN);
        let sent = whole.clone();
        let guest = tokio::spawn(async move {
            let mut credit = WINDOW as usize;
            for piece in sent.chunks(32_000) {
                while credit < piece.len() {
                    let frame = peer.frame().await.unwrap();
                    assert_eq!(frame.kind, Kind::Credit);
                    credit += frame.number().unwrap() as usize;
                }
                credit -= piece.len();
                peer.data(file.stream, Channel::Input, piece).await;
            }
            peer.end(file.stream, Channel::Input).await;
            let sha256 = if honest { sha256(&sent) } else { sha256(b"") };
            let data = Some(serde_json::json!({ "bytes": sent.len(), "sha256": sha256 }));
            peer.say(Response { data, ..Response::success(file.id) }).await;
            peer
        });
        let mut got = Vec::new();
        while let Some(bytes) = soon("bytes", pull.next()).await.unwrap() {
            got.extend_from_slice(&bytes);
        }
        assert!(got == whole);
        match (honest, pull.finish().await) {
            (true, Ok(_)) | (false, Err(CallError::Corrupt { .. })) => {}
            (_, other) => panic!("{other:?}"),
        }
        peer = guest.await.unwrap();
    }
}

/// Without a hash, the bytes are counted.
#[tokio::test]
async fn a_guest_that_counts_otherwise() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let (_, content) = pieces(1000);
    let copy = tokio::spawn(async move { hub.push(vm, push("/srv/x"), content).await });
    let Request::FilePush(file) = peer.request().await else { panic!() };
    peer.take_input(file.stream).await;
    let data = Some(serde_json::json!({ "bytes": 999 }));
    peer.say(Response { data, ..Response::success(file.id) }).await;
    assert!(matches!(copy.await.unwrap(), Err(CallError::Violation { .. })));
}
