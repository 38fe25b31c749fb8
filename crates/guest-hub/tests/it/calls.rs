//! Greeting, and calls that are answered.

use std::time::Duration;

use roost_guest_hub::proto::{ErrorBody, ErrorCode, Key, Ping, Request, Response, UnsafeCommand, Upgrade};
use roost_guest_hub::{CallError, Endpoint, Flavour, HubConfig, HubEvent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Bench, Peer, SOON, ran, run, soon, vm};

#[tokio::test]
async fn greets_and_calls() {
    let mut bench = Bench::new();
    let early = bench.hub.run(bench.vm, run(&["true"]), SOON).await.unwrap_err();
    assert!(matches!(early, CallError::NotConnected { .. }), "{early}");
    let (mut peer, status) = bench.roost().await;
    assert_eq!((status.flavour, status.version.as_str()), (Some(Flavour::Roost), "1.2.3"));
    let hello = &peer.hellos[0];
    assert_eq!((hello.epoch, hello.metrics_interval_ms), (1, Some(30_000)));
    assert_eq!(
        (hello.policy.unsafe_commands, hello.policy.file_roots.clone()),
        (Some(true), Some(vec!["/".to_owned()]))
    );
    assert!(matches!(bench.event().await, HubEvent::Connected { .. }));
    assert_eq!(bench.event().await, HubEvent::Ready { vm: bench.vm, epoch: 1 });

    let (hub, vm) = (bench.hub.clone(), bench.vm);
    assert_eq!(hub.last_activity(vm), None);
    let call = tokio::spawn(async move { hub.run(vm, run(&["echo", "hi"]), SOON).await });
    let envelope = soon("a request", peer.envelope()).await.unwrap();
    assert_eq!(envelope.epoch, Some(1));
    let Request::Exec(exec) = envelope.request else { panic!() };
    assert_eq!((exec.argv.join(" ").as_str(), exec.timeout_ms, exec.id.len()), ("echo hi", Some(20_000), 32));
    peer.say(ran(&exec.id, "hi\n")).await;
    assert_eq!(call.await.unwrap().unwrap().stdout, "hi\n");
    assert!(bench.hub.last_activity(vm).is_some());

    let (hub, ping) = (bench.hub.clone(), Request::Ping(Ping { sequence: 0 }));
    let call = tokio::spawn(async move { hub.call(vm, ping, SOON).await });
    let Request::Ping(ping) = peer.request().await else { panic!() };
    peer.text(format!(r#"{{"type":"pong","sequence":{}}}"#, ping.sequence).as_bytes()).await;
    assert!(call.await.unwrap().unwrap().success);
}

#[tokio::test]
async fn answers_in_any_order_reach_their_calls() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let calls: Vec<_> = (0..50)
        .map(|number| {
            let (hub, vm) = (bench.hub.clone(), bench.vm);
            tokio::spawn(async move { (number, hub.run(vm, run(&[&number.to_string()]), SOON).await) })
        })
        .collect();
    let mut asked = Vec::new();
    for _ in 0..50 {
        asked.push(peer.exec().await);
    }
    // Neither as they came nor backwards.
    asked.sort_by_key(|exec| exec.id.clone());
    for exec in asked {
        peer.say(ran(&exec.id, &exec.argv[0])).await;
    }
    for call in calls {
        let (number, answer) = call.await.unwrap();
        assert_eq!(answer.unwrap().stdout, number.to_string());
    }
}

#[tokio::test]
async fn a_forged_or_replayed_answer_is_nobodys() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let first = tokio::spawn({
        let hub = hub.clone();
        async move { hub.run(vm, run(&["a"]), SOON).await }
    });
    let a = peer.exec().await;
    peer.say(ran("forged", "evil")).await;
    peer.say(ran(&a.id, "a")).await;
    assert_eq!(first.await.unwrap().unwrap().stdout, "a");
    let second = tokio::spawn({
        let hub = hub.clone();
        async move { hub.run(vm, run(&["b"]), SOON).await }
    });
    let b = peer.exec().await;
    peer.say(ran(&a.id, "replayed")).await;
    peer.say(ran(&b.id, "b")).await;
    assert_eq!(second.await.unwrap().unwrap().stdout, "b");
    assert_eq!(hub.status(vm).unwrap().dropped.replies, 2);
}

#[tokio::test]
async fn what_is_refused_is_refused_before_it_is_sent() {
    let mut bench = Bench::with(HubConfig::default(), |attachment| {
        attachment.allow_exec = false;
        attachment.file_roots = vec!["/srv".to_owned()];
    });
    let (mut peer, _) = bench.roost().await;
    assert_eq!(peer.hellos[0].policy.unsafe_commands, Some(false));
    let denied = bench.hub.run(bench.vm, run(&["true"]), SOON).await.unwrap_err();
    assert!(matches!(denied, CallError::Denied { .. }), "{denied}");
    assert!(matches!(bench.hub.exec(bench.vm, run(&["true"])).await, Err(CallError::Denied { .. })));
    let file = roost_guest_hub::proto::FilePull { path: "/etc/shadow".into(), ..Default::default() };
    assert!(matches!(bench.hub.pull(bench.vm, file).await, Err(CallError::Denied { .. })));
    // Nothing of it came: what the peer sees next is what is permitted.
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let thaw = Request::Thaw(roost_guest_hub::proto::Thaw { id: String::new() });
    let call = tokio::spawn(async move { hub.call(vm, thaw, SOON).await });
    let Request::Thaw(thaw) = peer.request().await else { panic!() };
    peer.say(Response::success(thaw.id)).await;
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn refusals_of_the_guest_and_failures_of_commands() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let answer = |response: Response| {
        let (hub, vm) = (bench.hub.clone(), bench.vm);
        let call = tokio::spawn(async move { hub.run(vm, run(&["false"]), SOON).await });
        (call, response)
    };
    let (call, response) = answer(Response { exit_code: Some(1), stderr: "no".into(), ..Response::default() });
    let id = peer.exec().await.id;
    peer.say(Response { id, ..response }).await;
    assert_eq!(call.await.unwrap().unwrap().exit_code, Some(1));
    let error = ErrorBody::new(ErrorCode::EpochMismatch, "not now");
    let (call, response) = answer(Response::failure("", error.clone()));
    let id = peer.exec().await.id;
    peer.say(Response { id, ..response }).await;
    assert_eq!(call.await.unwrap(), Err(CallError::Guest(error)));
}

#[tokio::test]
async fn a_call_that_is_not_answered_ends_and_the_guest_is_told() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let after = Duration::from_millis(50);
    let thaw = Request::Thaw(roost_guest_hub::proto::Thaw { id: String::new() });
    let error = bench.hub.call(bench.vm, thaw, after).await.unwrap_err();
    assert_eq!(error, CallError::Timeout { what: "Thaw", after });
    let Request::Thaw(thaw) = peer.request().await else { panic!() };
    let Request::Cancel(cancel) = peer.request().await else { panic!() };
    assert_eq!(cancel.target, thaw.id);
    // Late answers are dropped: the call's is counted, that to the hub's own request is not.
    peer.say(Response::success(cancel.id)).await;
    peer.say(Response::success(thaw.id)).await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.run(vm, run(&["true"]), SOON).await });
    let id = peer.exec().await.id;
    peer.say(ran(&id, "")).await;
    call.await.unwrap().unwrap();
    assert_eq!(bench.hub.status(bench.vm).unwrap().dropped.replies, 1);
}

#[tokio::test]
async fn sealed() {
    let key = Key::from_bytes([9; 32]);
    let mut bench = Bench::with(HubConfig::default(), |attachment| attachment.key = Some(key.clone()));
    let mut peer = bench.accept().await;
    peer.greet_sealed(&key).await;
    let status = bench.hub.wait_connected(bench.vm, SOON).await.unwrap();
    assert!(status.sealed);
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.run(vm, run(&["true"]), SOON).await });
    let id = peer.exec().await.id;
    peer.say(ran(&id, "sealed")).await;
    assert_eq!(call.await.unwrap().unwrap().stdout, "sealed");
    // A frame in the clear ends the session, and the next one begins.
    assert!(matches!(bench.event().await, HubEvent::Connected { .. }));
    bench.event().await;
    let mut open = roost_guest_hub::proto::Encoder::default();
    open.use_frames(false, None);
    let mut out = Vec::new();
    open.message(br#"{"type":"metrics","timestamp":"","data":{}}"#, &mut out);
    peer.raw(&out).await;
    assert!(matches!(bench.event().await, HubEvent::Lost { .. }));
    peer.greet_sealed(&key).await;
    assert!(matches!(bench.event().await, HubEvent::Connected { .. }));
    assert!(bench.hub.metrics(bench.vm).is_none());
}

#[tokio::test]
async fn a_wrong_key_never_connects() {
    let mut bench =
        Bench::with(HubConfig { hello_retry: Duration::from_millis(50), ..HubConfig::default() }, |attachment| {
            attachment.key = Some(Key::from_bytes([9; 32]));
        });
    let mut peer = bench.accept().await;
    for _ in 0..2 {
        let (hello, hello_line) = peer.hello().await;
        let handshake_line = peer.answer(&hello, &[Upgrade::Frames, Upgrade::E2e]).await;
        let Request::Noise(noise) = peer.request().await else { panic!() };
        let wrong = Key::from_bytes([8; 32]);
        let exchange = roost_guest_hub::proto::NoiseHandshake::agent(&wrong, &hello_line, &handshake_line);
        assert!(exchange.answer(&noise.data).is_err());
        peer.text(br#"{"type":"noise","data":"AAAA"}"#).await;
    }
    assert!(!bench.hub.status(bench.vm).unwrap().connected);
    assert!(bench.events.try_recv().is_err());
}

/// A restored VM's agent may hold half a frame of an earlier host's, and is in frames.
#[tokio::test]
async fn an_agent_in_the_middle_of_a_frame_is_in_step_within_a_second() {
    let bench = Bench::new();
    let mut peer = bench.accept().await;
    let mut sender = roost_guest_hub::proto::Encoder::default();
    sender.use_frames(false, None);
    let mut frame = Vec::new();
    sender.data(1, roost_guest_hub::proto::Channel::Input, &[0; 30_000], &mut frame);
    peer.decoder.use_frames(false, None);
    let mut half = &frame[..100];
    assert!(peer.decoder.next(&mut half).is_none());
    let started = std::time::Instant::now();
    peer.greet(&[Upgrade::Frames]).await;
    bench.hub.wait_connected(bench.vm, SOON).await.unwrap();
    // The bar is one second of the hub's clock; the machine may add its own.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn the_same_hello_answered_twice_changes_nothing() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let hello = peer.hellos[0].clone();
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.run(vm, run(&["true"]), SOON).await });
    let id = peer.exec().await.id;
    peer.answer(&hello, &[Upgrade::Frames]).await;
    peer.say(ran(&id, "still there")).await;
    assert_eq!(call.await.unwrap().unwrap().stdout, "still there");
}

#[tokio::test]
async fn an_agent_that_comes_late_is_greeted_at_once() {
    let bench = Bench::with(HubConfig { hello_retry: Duration::from_millis(200), ..HubConfig::default() }, |_| {});
    let mut peer = bench.accept().await;
    // The hub's hellos come further and further apart; the agent's word for itself cuts the wait.
    for _ in 0..4 {
        peer.hello().await;
    }
    let line = roost_guest_hub::proto::GuestMessage::Handshake(peer.handshake(None, &[])).to_json();
    let started = std::time::Instant::now();
    tokio::time::sleep(Duration::from_millis(150)).await;
    peer.text(&line).await;
    peer.greet(&[Upgrade::Frames]).await;
    bench.hub.wait_connected(bench.vm, SOON).await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(1000), "{:?}", started.elapsed());
}

#[tokio::test]
async fn too_many_and_too_much() {
    let mut bench = Bench::with(HubConfig { queue: 2, ..HubConfig::default() }, |_| {});
    let (mut peer, _) = bench.roost().await;
    let large = UnsafeCommand {
        id: String::new(),
        raw_command: "x".repeat(1 << 20),
        shell: None,
        timeout: None,
        working_dir: None,
        env_vars: None,
    };
    let error = bench.hub.call(bench.vm, Request::UnsafeCommand(large), SOON).await.unwrap_err();
    assert!(matches!(error, CallError::TooLarge { .. }), "{error}");
    let calls: Vec<_> = (0..2)
        .map(|_| {
            let (hub, vm) = (bench.hub.clone(), bench.vm);
            tokio::spawn(async move { hub.run(vm, run(&["sleep"]), SOON).await })
        })
        .collect();
    let ids = [peer.exec().await.id, peer.exec().await.id];
    let error = bench.hub.run(bench.vm, run(&["one more"]), SOON).await.unwrap_err();
    assert_eq!(error, CallError::QueueFull { waiting: 2, permitted: 2 });
    for id in ids {
        peer.say(ran(&id, "")).await;
    }
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let unknown = bench.hub.run(vm(7), run(&["true"]), SOON).await.unwrap_err();
    assert_eq!(unknown, CallError::NotAttached { vm: vm(7) });
}

#[tokio::test]
async fn over_vsock_sockets() {
    let bench = Bench::with(HubConfig::default(), |attachment| {
        let Endpoint::Unix(uds) = attachment.endpoint.clone() else { panic!() };
        attachment.endpoint = Endpoint::Vsock { uds, port: 9999 };
    });
    let (mut stream, _) = soon("a connection", bench.listener.accept()).await.unwrap();
    let mut connect = [0; 13];
    stream.read_exact(&mut connect).await.unwrap();
    assert_eq!(&connect, b"CONNECT 9999\n");
    stream.write_all(b"OK 1234\n").await.unwrap();
    let mut peer = Peer::new(stream);
    peer.greet(&[Upgrade::Frames, Upgrade::Zstd]).await;
    bench.hub.wait_connected(bench.vm, SOON).await.unwrap();
}

#[tokio::test]
async fn another_policy_is_told_when_nothing_is_under_way() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.run(vm, run(&["long"]), SOON).await });
    let id = peer.exec().await.id;
    let mut attachment = bench.attachment.clone();
    attachment.file_roots = vec!["/srv".to_owned()];
    bench.hub.attach(attachment);
    // Here it counts at once.
    let file = roost_guest_hub::proto::FilePull { path: "/etc/passwd".into(), ..Default::default() };
    assert!(matches!(bench.hub.pull(bench.vm, file).await, Err(CallError::Denied { .. })));
    peer.say(ran(&id, "undisturbed")).await;
    assert_eq!(call.await.unwrap().unwrap().stdout, "undisturbed");
    let (hello, _) = peer.hello().await;
    assert_eq!(hello.policy.file_roots, Some(vec!["/srv".to_owned()]));
    // A call in the meantime waits for the greeting to end.
    let hub = bench.hub.clone();
    let call = tokio::spawn(async move { hub.run(vm, run(&["meanwhile"]), SOON).await });
    assert!(bench.hub.status(vm).unwrap().connected);
    peer.answer(&hello, &[Upgrade::Frames]).await;
    let id = peer.exec().await.id;
    peer.say(ran(&id, "served")).await;
    assert_eq!(call.await.unwrap().unwrap().stdout, "served");
}
