//! Agents that vanish, are replaced, or are in another time: the outcome is unknown, and nothing is sent twice.

use std::time::Duration;

use bytes::Bytes;
use roost_guest_hub::proto::{FilePush, GuestMessage, Identity, Request, Response, Upgrade};
use roost_guest_hub::{CallError, HubConfig, HubEvent};

use crate::support::{Bench, SOON, ran, run, soon};

fn unknown(error: &CallError) -> bool {
    matches!(error, CallError::OutcomeUnknown { .. })
}

#[tokio::test]
async fn the_peer_dies_in_mid_exec_and_mid_copy() {
    let mut bench = Bench::with(HubConfig { backoff_min: Duration::from_millis(20), ..HubConfig::default() }, |_| {});
    let (mut peer, _) = bench.roost().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn({
        let hub = hub.clone();
        async move { hub.run(vm, run(&["rm", "x"]), SOON).await }
    });
    peer.exec().await;
    let mut handle = hub.exec(vm, run(&["tail"])).await.unwrap();
    peer.exec().await;
    let copy = tokio::spawn({
        let hub = hub.clone();
        async move {
            let endless = futures::stream::repeat_with(|| Ok(Bytes::from(vec![0; 65536])));
            hub.push(vm, FilePush { path: "/x".into(), ..FilePush::default() }, endless).await
        }
    });
    let Request::FilePush(_) = peer.request().await else { panic!() };
    drop(peer);
    assert!(unknown(&call.await.unwrap().unwrap_err()));
    assert_eq!(soon("the end of the output", handle.output()).await, None);
    assert!(unknown(&handle.finish().await.unwrap_err()));
    assert!(unknown(&copy.await.unwrap().unwrap_err()));
    // It is reached again, and nothing of before is sent.
    let (mut peer, _) = bench.roost().await;
    let call = tokio::spawn(async move { hub.run(vm, run(&["after"]), SOON).await });
    let exec = peer.exec().await;
    assert_eq!(exec.argv, ["after"]);
    peer.say(ran(&exec.id, "")).await;
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_agent_is_replaced_in_mid_exec() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    bench.event().await;
    bench.event().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.run(vm, run(&["rm", "x"]), SOON).await });
    let old = peer.exec().await;
    // Another run of the agent opens the port: it speaks lines, and knows nothing of before.
    peer.agent_id = "agent-2".to_owned();
    peer.encoder.reset();
    let line = GuestMessage::Handshake(peer.handshake(None, &[])).to_json();
    peer.text(&line).await;
    assert!(unknown(&call.await.unwrap().unwrap_err()));
    assert!(matches!(bench.event().await, HubEvent::Lost { .. }));
    peer.decoder.use_lines();
    peer.greet(&[Upgrade::Frames]).await;
    assert!(matches!(bench.event().await, HubEvent::Connected { .. }));
    assert_ne!(peer.hellos[0].session, peer.hellos[1].session);
    peer.say(ran(&old.id, "too late")).await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.run(vm, run(&["after"]), SOON).await });
    let exec = peer.exec().await;
    assert_eq!(exec.argv, ["after"]);
    peer.say(ran(&exec.id, "now")).await;
    assert_eq!(call.await.unwrap().unwrap().stdout, "now");
    assert_eq!(bench.hub.status(bench.vm).unwrap().dropped.replies, 1);
}

/// Opening the port again is not the end of a session.
#[tokio::test]
async fn the_same_agent_opens_its_port_again() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.run(vm, run(&["long"]), SOON).await });
    let id = peer.exec().await.id;
    let mut out = Vec::new();
    peer.encoder.line(&GuestMessage::Handshake(peer.handshake(None, &[])).to_json(), &mut out);
    peer.raw(&out).await;
    let Request::Ping(ping) = peer.request().await else { panic!("the hub asks whether the session goes on") };
    peer.say(GuestMessage::Pong(ping)).await;
    peer.say(ran(&id, "it does")).await;
    assert_eq!(call.await.unwrap().unwrap().stdout, "it does");
    assert_eq!(peer.hellos.len(), 1);
}

#[tokio::test]
async fn an_agent_that_falls_out_of_step_is_greeted_anew() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.run(vm, run(&["long"]), SOON).await });
    peer.exec().await;
    peer.raw(&[0x55; 5000]).await;
    assert!(unknown(&soon("the end of the call", call).await.unwrap().unwrap_err()));
    // The hello comes in the middle of frames.
    peer.greet(&[Upgrade::Frames]).await;
    bench.hub.wait_connected(vm, SOON).await.unwrap();
    assert!(bench.hub.status(vm).unwrap().dropped.bytes >= 4000);
}

#[tokio::test]
async fn a_restored_vm_is_in_a_new_epoch() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    bench.event().await;
    bench.event().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn({
        let hub = hub.clone();
        async move { hub.run(vm, run(&["rm", "x"]), SOON).await }
    });
    let old = peer.exec().await;
    let mut attachment = bench.attachment.clone();
    attachment.epoch = 2;
    bench.hub.attach(attachment);
    assert!(unknown(&call.await.unwrap().unwrap_err()));
    assert!(matches!(bench.event().await, HubEvent::Lost { .. }));
    peer.epoch = Some(1);
    let hello = peer.greet(&[Upgrade::Frames]).await;
    assert_eq!(hello.epoch, 2);
    assert!(matches!(bench.event().await, HubEvent::Connected { .. }));
    // Not yet ready: the agent is in the old epoch until it is told who it is now.
    let identity = Request::Identity(Identity { hostname: Some("fork".into()), ..Identity::default() });
    let call = tokio::spawn({
        let hub = hub.clone();
        async move { hub.call(vm, identity, SOON).await }
    });
    let envelope = peer.envelope().await.unwrap();
    assert_eq!(envelope.epoch, Some(2));
    peer.say(ran(&old.id, "of another life")).await;
    peer.say(Response { epoch: Some(2), ..Response::success(envelope.request.id().unwrap()) }).await;
    call.await.unwrap().unwrap();
    assert_eq!(bench.event().await, HubEvent::Ready { vm, epoch: 2 });
    assert_eq!(hub.status(vm).unwrap().epoch, Some(2));
    // An answer of another epoch is none.
    let call = tokio::spawn(async move { hub.run(vm, run(&["true"]), SOON).await });
    let id = peer.exec().await.id;
    peer.say(Response { epoch: Some(1), ..ran(&id, "") }).await;
    assert!(unknown(&call.await.unwrap().unwrap_err()));
}

#[tokio::test]
async fn a_vm_that_is_detached() {
    let mut bench = Bench::new();
    let (mut peer, _) = bench.roost().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.run(vm, run(&["long"]), SOON).await });
    peer.exec().await;
    bench.hub.detach(vm);
    assert!(unknown(&call.await.unwrap().unwrap_err()));
    assert!(peer.envelope().await.is_none(), "the connection is closed");
    assert!(bench.hub.status(vm).is_none());
}

#[tokio::test]
async fn an_agent_that_falls_silent_is_given_up() {
    let config = HubConfig { keep_alive: Duration::from_millis(100), ..HubConfig::default() };
    let mut bench = Bench::with(config, |_| {});
    let (mut peer, _) = bench.roost().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.run(vm, run(&["long"]), SOON).await });
    peer.exec().await;
    let Request::Ping(ping) = peer.request().await else { panic!() };
    peer.say(GuestMessage::Pong(ping)).await;
    // Alive once more; a byte now and then is no sign of life.
    let Request::Ping(_) = peer.request().await else { panic!() };
    peer.raw(&[0xA7]).await;
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(&error, CallError::OutcomeUnknown { why, .. } if why.contains("sign of life")), "{error}");
}

#[tokio::test]
async fn a_peer_that_hangs_up_is_not_hammered() {
    let config = HubConfig { backoff_min: Duration::from_millis(10), circuit_failures: 3, ..HubConfig::default() };
    let mut bench = Bench::with(config, |_| {});
    for _ in 0..3 {
        drop(bench.accept().await);
    }
    assert!(matches!(bench.event().await, HubEvent::Refused { .. }));
    // It rests, until somebody asks.
    assert!(tokio::time::timeout(Duration::from_millis(300), bench.listener.accept()).await.is_err());
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let waiting = tokio::spawn(async move { hub.wait_connected(vm, SOON).await });
    let mut peer = bench.accept().await;
    peer.greet(&[Upgrade::Frames]).await;
    waiting.await.unwrap().unwrap();
}
