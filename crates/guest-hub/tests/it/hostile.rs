//! Guests that mean harm: to the host's memory, to its time, to other VMs.

use std::time::{Duration, Instant};

use roost_guest_hub::proto::{Channel, Encoder, Request, Upgrade};
use roost_guest_hub::{CallError, Hub, HubConfig};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};

use crate::support::{Bench, Peer, SOON, attachment, ran, run, soon, vm};

/// An answered call: the channel works.
async fn works(hub: &Hub, vm: roost_model::VmId, peer: &mut Peer) {
    let call = tokio::spawn({
        let hub = hub.clone();
        async move { hub.run(vm, run(&["true"]), SOON).await }
    });
    let id = peer.exec().await.id;
    peer.say(ran(&id, "ok")).await;
    assert_eq!(call.await.unwrap().unwrap().stdout, "ok");
}

#[tokio::test]
async fn texts_that_are_refused_and_counted() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let deep = format!(
        r#"{{"type":"response","id":"x","success":true,"data":{}1{}}}"#,
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    let texts: [&[u8]; 8] = [
        deep.as_bytes(),
        br#"{"type":"response","id":"a","id":"b","success":true}"#,
        b"{\"type\":\"response\",\"id\":\"\xff\",\"success\":true}",
        br#"{"type":"response","id":"a","success":true,"data":NaN}"#,
        br#"{"type":"response","id":"a","success":"yes"}"#,
        br#"{"type":"no such type"}"#,
        br#"[]"#,
        b"\x00",
    ];
    for text in texts {
        peer.text(text).await;
    }
    works(&bench.hub, bench.vm, &mut peer).await;
    assert_eq!(bench.hub.status(bench.vm).unwrap().dropped.messages, 8);
}

/// A line without an end is never held, and what comes behind it is read.
#[tokio::test]
async fn an_endless_line() {
    let bench = Bench::new();
    let mut peer = bench.accept().await;
    let (hello, _) = peer.hello().await;
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..64 {
        peer.raw(&chunk).await;
    }
    peer.raw(b"\n").await;
    let started = Instant::now();
    peer.answer(&hello, &[Upgrade::Frames]).await;
    bench.hub.wait_connected(bench.vm, SOON).await.unwrap();
    // The bar is one second of the hub's clock; the machine may add its own.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(bench.hub.status(bench.vm).unwrap().dropped.long, 1);
    works(&bench.hub, bench.vm, &mut peer).await;
}

#[tokio::test]
async fn a_message_that_is_continued_without_an_end() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let mut encoder = Encoder::default();
    encoder.use_frames(false, None);
    let mut long = Vec::new();
    encoder.message(&vec![b'{'; 3 << 20], &mut long);
    peer.raw(&long).await;
    works(&bench.hub, bench.vm, &mut peer).await;
    assert_eq!(bench.hub.status(bench.vm).unwrap().dropped.long, 1);
}

/// Frames of streams that are not there, of kinds that make no sense, and credit without end.
#[tokio::test]
async fn frames_that_fit_nothing() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    for stream in 0..200 {
        peer.data(stream + 1000, Channel::Output, b"junk").await;
        peer.credit(stream, Channel::Input, u32::MAX).await;
    }
    let handle = bench.hub.exec(bench.vm, roost_guest_hub::proto::Exec { stdin: true, ..run(&["cat"]) }).await.unwrap();
    let exec = peer.exec().await;
    for _ in 0..3 {
        peer.credit(exec.stream.unwrap(), Channel::Input, u32::MAX).await;
    }
    works(&bench.hub, bench.vm, &mut peer).await;
    assert!(bench.hub.status(bench.vm).unwrap().dropped.frames >= 400);
    drop(handle);
}

/// What waits for a guest that never reads is bounded, and so is the wait.
#[tokio::test]
async fn a_reader_that_never_drains() {
    let mut bench = Bench::new();
    let (peer, _) = bench.roost().await;
    let mut full = 0;
    let mut calls = Vec::new();
    for _ in 0..40 {
        let command = roost_guest_hub::proto::Exec { command: Some("x".repeat(100_000)), ..Default::default() };
        let (hub, vm) = (bench.hub.clone(), bench.vm);
        let after = Duration::from_millis(200);
        calls.push(tokio::spawn(async move { hub.call(vm, Request::Exec(Box::new(command)), after).await }));
    }
    for call in calls {
        match soon("the end of a call", call).await.unwrap() {
            Err(CallError::QueueFull { permitted, .. }) => {
                assert_eq!(permitted, 1 << 20);
                full += 1;
            }
            Err(CallError::Timeout { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    // One megabyte of messages waits, and the socket and one write hold some more.
    assert!((20..=30).contains(&full), "{full}");
    drop(peer);
}

#[tokio::test]
async fn a_byte_now_and_then_is_no_agent() {
    let config = HubConfig { hello_retry: Duration::from_millis(50), ..HubConfig::default() };
    let bench = Bench::with(config, |_| {});
    let mut peer = bench.accept().await;
    for byte in HALF.iter().take(20) {
        peer.raw(&[*byte]).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let after = Duration::from_millis(100);
    let error = bench.hub.wait_connected(bench.vm, after).await.unwrap_err();
    assert!(matches!(error, CallError::NotConnected { .. }), "{error}");
}

const HALF: &[u8] = br#"{"type":"handshake","timestamp":"#;

/// Another VM's ID in what a guest says changes nothing.
#[tokio::test]
async fn a_guest_that_claims_to_be_another() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, _events) = Hub::new(HubConfig::default());
    let mut peers = Vec::new();
    for number in 0..2 {
        let socket = dir.path().join(number.to_string());
        let listener = UnixListener::bind(&socket).unwrap();
        hub.attach(attachment(vm(number), socket));
        let mut peer = Peer::new(listener.accept().await.unwrap().0);
        let (hello, _) = peer.hello().await;
        let mut handshake = peer.handshake(Some(&hello.session), &[]);
        handshake.vm_id = vm(1 - number).to_string();
        peer.text(&roost_guest_hub::proto::GuestMessage::Handshake(handshake).to_json()).await;
        hub.wait_connected(vm(number), SOON).await.unwrap();
        peers.push(peer);
    }
    let call = tokio::spawn({
        let hub = hub.clone();
        async move { hub.run(vm(0), run(&["true"]), SOON).await }
    });
    let id = peers[0].exec().await.id;
    let mut forged = serde_json::to_value(roost_guest_hub::proto::GuestMessage::from(ran(&id, "forged"))).unwrap();
    forged["vm_id"] = vm(0).to_string().into();
    peers[1].text(forged.to_string().as_bytes()).await;
    peers[1].text(br#"{"type":"metrics","timestamp":"t","data":{"from":1}}"#).await;
    let mut watch = hub.watch_metrics(vm(1), vec![], Duration::from_millis(100)).await.unwrap();
    if hub.metrics(vm(1)).is_none() {
        soon("metrics", watch.next()).await;
    }
    assert!(hub.metrics(vm(0)).is_none());
    assert_eq!(hub.status(vm(1)).unwrap().dropped.replies, 1);
    peers[0].say(ran(&id, "mine")).await;
    assert_eq!(call.await.unwrap().unwrap().stdout, "mine");
}

/// What one hostile guest does, over and over.
async fn torment(mut stream: UnixStream, way: usize) {
    let mut framed = Encoder::default();
    framed.use_frames(false, None);
    let mut bytes = Vec::new();
    match way % 6 {
        0 => bytes.extend(std::iter::repeat_n(b'x', 1 << 16)),
        1 => bytes.extend(std::iter::repeat_n(b'\n', 1 << 16)),
        2 => (0..500).for_each(|_| bytes.extend_from_slice(b"{\"type\":\"handshake\"}\n")),
        3 => {
            (0..500).for_each(|n| bytes.extend_from_slice(format!("{{\"id\":\"{n}\",\"success\":true}}\n").as_bytes()))
        }
        4 => (0..500).for_each(|_| framed.data(1, Channel::Output, b"x", &mut bytes)),
        _ => {
            let text = r#"{"type":"handshake","timestamp":"","vm_id":"","version":"","platform":"","protocol":"1.0"}"#;
            (0..500).for_each(|_| bytes.extend_from_slice(format!("{text}\n").as_bytes()));
        }
    }
    while stream.write_all(&bytes).await.is_ok() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_hostile_beside_sixty_four_honest() {
    const EACH: u16 = 64;
    let dir = tempfile::tempdir().unwrap();
    let (hub, _events) = Hub::new(HubConfig::default());
    let mut hostile = tokio::task::JoinSet::new();
    let mut honest = tokio::task::JoinSet::new();
    for number in 0..2 * EACH {
        let socket = dir.path().join(number.to_string());
        let listener = UnixListener::bind(&socket).unwrap();
        hub.attach(attachment(vm(number), socket));
        let (stream, _) = soon("a connection", listener.accept()).await.unwrap();
        if number % 2 == 0 {
            hostile.spawn(torment(stream, usize::from(number / 2)));
        } else {
            let hub = hub.clone();
            honest.spawn(async move {
                let mut peer = Peer::new(stream);
                peer.greet(&[Upgrade::Frames]).await;
                hub.wait_connected(vm(number), SOON).await.unwrap();
                for call in 0..20 {
                    let text = format!("{number}.{call}");
                    let answer = tokio::spawn({
                        let (hub, text) = (hub.clone(), text.clone());
                        async move { hub.run(vm(number), run(&[&text]), SOON).await }
                    });
                    let exec = peer.exec().await;
                    assert_eq!(exec.argv, [text.as_str()]);
                    peer.say(ran(&exec.id, &text)).await;
                    assert_eq!(answer.await.unwrap().unwrap().stdout, text);
                }
            });
        }
    }
    while let Some(done) = soon("an honest guest", honest.join_next()).await {
        done.unwrap();
    }
    // None of them got anywhere.
    for number in (0..2 * EACH).step_by(2) {
        let status = hub.status(vm(number)).unwrap();
        assert_ne!(status.flavour, Some(roost_guest_hub::Flavour::Roost));
    }
    hostile.abort_all();
}
