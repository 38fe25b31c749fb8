//! Live input and output.

use std::time::Duration;

use bytes::Bytes;
use roost_guest_hub::proto::{Channel, Exec, GuestMessage, Kind, Progress, Pty, Request, Response, WINDOW};
use roost_guest_hub::{CallError, HubConfig, Output};

use crate::support::{Bench, SOON, ran, run, soon};

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 % 251) as u8).collect()
}

/// An echo of ten megabytes, which is forty windows each way.
#[tokio::test]
async fn input_and_output_through_many_windows() {
    const LEN: usize = 10 << 20;
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let echo = tokio::spawn(async move {
        let exec = peer.exec().await;
        let stream = exec.stream.unwrap();
        assert!(exec.stdin);
        peer.say(GuestMessage::Progress(Progress { id: exec.id.clone(), pid: Some(77), ..Progress::default() })).await;
        let mut credit = WINDOW as usize;
        let mut waiting: Vec<u8> = Vec::new();
        let mut ended = false;
        loop {
            let part = waiting.len().min(credit).min(32_000);
            if part > 0 {
                let part: Vec<u8> = waiting.drain(..part).collect();
                credit -= part.len();
                peer.data(stream, Channel::Output, &part).await;
                peer.credit(stream, Channel::Input, u32::try_from(part.len()).unwrap()).await;
                continue;
            }
            if ended && waiting.is_empty() {
                break;
            }
            let frame = peer.frame().await.unwrap();
            match frame.kind {
                Kind::Data => waiting.extend_from_slice(&frame.payload),
                Kind::Credit => credit += frame.number().unwrap() as usize,
                Kind::End => ended = true,
                other => panic!("{other:?}"),
            }
            assert!(waiting.len() <= WINDOW as usize, "the hub overran its credit");
        }
        peer.data(stream, Channel::Error, b"done").await;
        peer.end(stream, Channel::Output).await;
        peer.end(stream, Channel::Error).await;
        peer.say(Response { exit_code: Some(0), ..Response::success(exec.id) }).await;
        peer
    });
    let mut handle = bench.hub.exec(bench.vm, Exec { stdin: true, ..run(&["cat"]) }).await.unwrap();
    let mut stdin = handle.stdin().unwrap();
    let writer = tokio::spawn(async move {
        for piece in bytes(LEN).chunks(10_000) {
            stdin.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        stdin.close();
    });
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(output) = soon("output", handle.output()).await {
        match output {
            Output::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            Output::Stderr(bytes) => stderr.extend_from_slice(&bytes),
        }
    }
    assert_eq!(handle.finish().await.unwrap().exit_code, Some(0));
    assert!(stdout == bytes(LEN), "{} bytes", stdout.len());
    assert_eq!(stderr, b"done");
    assert_eq!(handle.pid(), Some(77));
    writer.await.unwrap();
    echo.await.unwrap();
}

#[tokio::test]
async fn output_that_nobody_reads_holds_up_nobody_else() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let mut slow = bench.hub.exec(bench.vm, run(&["yes"])).await.unwrap();
    let exec = peer.exec().await;
    peer.data(exec.stream.unwrap(), Channel::Output, &bytes(WINDOW as usize)).await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.run(vm, run(&["true"]), SOON).await });
    let id = peer.exec().await.id;
    peer.say(ran(&id, "past it")).await;
    assert_eq!(call.await.unwrap().unwrap().stdout, "past it");
    // Only now it is read, and the guest may go on.
    assert!(matches!(soon("output", slow.output()).await, Some(Output::Stdout(_))));
    let mut read = 1;
    while read < 3 {
        soon("output", slow.output()).await.unwrap();
        read += 1;
    }
    let frame = peer.frame().await.unwrap();
    assert_eq!((frame.kind, frame.channel), (Kind::Credit, Channel::Output));
    peer.end(exec.stream.unwrap(), Channel::Output).await;
    peer.end(exec.stream.unwrap(), Channel::Error).await;
    peer.say(ran(&exec.id, "")).await;
    slow.finish().await.unwrap();
}

#[tokio::test]
async fn a_peer_that_overruns_its_credit_loses_the_stream_and_no_more() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let mut handle = bench.hub.exec(bench.vm, run(&["yes"])).await.unwrap();
    let exec = peer.exec().await;
    peer.data(exec.stream.unwrap(), Channel::Output, &bytes(WINDOW as usize)).await;
    peer.data(exec.stream.unwrap(), Channel::Output, b"x").await;
    let frame = peer.frame().await.unwrap();
    assert_eq!((frame.kind, frame.stream, frame.number()), (Kind::Reset, exec.stream.unwrap(), Some(2)));
    assert!(matches!(soon("the end", handle.finish()).await, Err(CallError::Violation { .. })));
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.run(vm, run(&["true"]), SOON).await });
    let id = peer.exec().await.id;
    peer.say(ran(&id, "")).await;
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_a_vm_may_have_waiting_is_bounded() {
    let config = HubConfig { stream_bytes: 1 << 20, ..HubConfig::default() };
    let mut bench = Bench::with(config, |_| {});
    let (mut peer, _) = bench.roost().await;
    let mut handles = Vec::new();
    for _ in 0..8 {
        handles.push(bench.hub.exec(bench.vm, run(&["yes"])).await.unwrap());
        let stream = peer.exec().await.stream.unwrap();
        peer.data(stream, Channel::Output, &bytes(WINDOW as usize)).await;
    }
    // The fifth passed it; all of the first four are whole.
    let frame = peer.frame().await.unwrap();
    assert_eq!((frame.kind, frame.number()), (Kind::Reset, Some(2)));
    for handle in &mut handles[..4] {
        let mut count = 0;
        while count < WINDOW as usize {
            match soon("output", handle.output()).await {
                Some(Output::Stdout(bytes)) => count += bytes.len(),
                other => panic!("{other:?} after {count} bytes"),
            }
        }
    }
    assert!(matches!(soon("the end", handles[4].finish()).await, Err(CallError::Violation { .. })));
}

#[tokio::test]
async fn a_handle_that_is_dropped_ends_the_command() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let handle = bench.hub.exec(bench.vm, run(&["yes"])).await.unwrap();
    let exec = peer.exec().await;
    drop(handle);
    let (mut reset, mut cancelled) = (false, false);
    while !(reset && cancelled) {
        match soon("the end of the command", peer.event()).await.unwrap() {
            roost_guest_hub::proto::Event::Frame(frame) => {
                assert_eq!((frame.kind, frame.stream, frame.number()), (Kind::Reset, exec.stream.unwrap(), Some(1)));
                reset = true;
            }
            roost_guest_hub::proto::Event::Message(text) => {
                let Request::Cancel(cancel) = roost_guest_hub::proto::Envelope::parse(&text).unwrap().request else {
                    panic!()
                };
                assert_eq!(cancel.target, exec.id);
                cancelled = true;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn signals_sizes_and_cancelling() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let pty = Some(Pty { rows: 24, cols: 80, term: None });
    let mut handle = bench.hub.exec(bench.vm, Exec { stdin: true, pty, ..run(&["sh"]) }).await.unwrap();
    let exec = peer.exec().await;
    let control = handle.control();
    let acts = tokio::spawn(async move {
        control.signal("INT").await.unwrap();
        control.resize(50, 100).await.unwrap();
        control.cancel().await.unwrap();
    });
    let Request::Signal(signal) = peer.request().await else { panic!() };
    assert_eq!((signal.target.as_str(), signal.signal.as_str()), (exec.id.as_str(), "INT"));
    peer.say(Response::success(signal.id)).await;
    let Request::Resize(resize) = peer.request().await else { panic!() };
    assert_eq!((resize.target.as_str(), resize.rows, resize.cols), (exec.id.as_str(), 50, 100));
    peer.say(Response::success(resize.id)).await;
    let Request::Cancel(cancel) = peer.request().await else { panic!() };
    assert_eq!(cancel.target, exec.id);
    peer.say(Response::success(cancel.id)).await;
    acts.await.unwrap();
    peer.say(Response { signal: Some(15), ..Response { id: exec.id, ..Response::default() } }).await;
    assert_eq!(soon("the end", handle.finish()).await.unwrap().signal, Some(15));
    let error = handle.stdin().unwrap().write(Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(error, CallError::Content(_)));
}

#[tokio::test]
async fn too_many_streams_and_none_without_frames() {
    let config = HubConfig { streams: 1, hello_retry: Duration::from_millis(50), ..HubConfig::default() };
    let mut bench = Bench::with(config, |_| {});
    let (mut peer, _) = bench.roost().await;
    let held = bench.hub.exec(bench.vm, run(&["a"])).await.unwrap();
    peer.exec().await;
    assert!(matches!(bench.hub.exec(bench.vm, run(&["b"])).await, Err(CallError::QueueFull { .. })));
    drop(held);
    bench.hub.exec(bench.vm, run(&["c"])).await.unwrap();
    let bench = Bench::new();
    let mut peer = bench.accept().await;
    peer.greet(&[]).await;
    bench.hub.wait_connected(bench.vm, SOON).await.unwrap();
    let mut handle = bench.hub.exec(bench.vm, run(&["a"])).await.unwrap();
    let error = soon("the end", handle.finish()).await.unwrap_err();
    assert!(matches!(error, CallError::Unsupported { capability: "frames", .. }), "{error}");
}
