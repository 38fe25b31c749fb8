//! The first agents, which know no hello.

use std::collections::BTreeMap;
use std::time::Duration;

use roost_guest_hub::proto::{Exec, LegacyRequest, MetricsRequest, Request, SafeCommand, UnsafeCommand, Upgrade};
use roost_guest_hub::{CallError, Flavour, HubConfig, HubEvent};
use serde_json::json;

use crate::support::{Bench, Peer, SOON, run, soon, until};

fn quick() -> HubConfig {
    HubConfig {
        hello_retry: Duration::from_millis(100),
        backoff_min: Duration::from_millis(20),
        ..HubConfig::default()
    }
}

const HANDSHAKE: &[u8] =
    br#"{"type":"handshake","timestamp":"2026-01-01T00:00:00Z","vm_id":"x","version":"0.9","platform":"linux","capabilities":["metrics"]}"#;

/// The next line that is no hello.
async fn line(peer: &mut Peer) -> Request {
    loop {
        match peer.request().await {
            Request::Hello(_) => {}
            other => return other,
        }
    }
}

async fn seed(bench: &Bench) -> Peer {
    let mut peer = bench.accept().await;
    peer.text(HANDSHAKE).await;
    let status = bench.hub.wait_connected(bench.vm, SOON).await.unwrap();
    assert_eq!((status.flavour, status.version.as_str()), (Some(Flavour::Seed), "0.9"));
    peer
}

#[tokio::test]
async fn the_first_agent_speaks_lines() {
    let bench = Bench::with(quick(), |_| {});
    let mut peer = seed(&bench).await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let command = UnsafeCommand {
        id: String::new(),
        raw_command: "uname".into(),
        shell: None,
        timeout: None,
        working_dir: None,
        env_vars: Some(BTreeMap::from([("A".into(), "b".into())])),
    };
    let safe =
        SafeCommand { id: String::new(), command_type: json!({ "action": "OsInfo" }), params: None, timeout: None };
    let exec = Exec { timeout_ms: Some(5000), ..run(&["echo", "a b"]) };
    let calls = tokio::spawn(async move {
        [
            hub.call(vm, Request::UnsafeCommand(command), SOON).await.unwrap().stdout,
            hub.call(vm, Request::SafeCommand(safe), SOON).await.unwrap().stdout,
            hub.run(vm, exec, SOON).await.unwrap().stdout,
        ]
    });
    let Request::UnsafeCommand(command) = line(&mut peer).await else { panic!() };
    assert_eq!((command.raw_command.as_str(), command.timeout), ("uname", Some(20)));
    // Without a type, as some of them do.
    let answer = |id: &str, stdout: &str| {
        json!({ "id": id, "success": true, "exit_code": 0, "stdout": stdout, "stderr": "", "execution_time_ms": 1, "command_type": "unsafe" }).to_string()
    };
    peer.text(answer(&command.id, "1").as_bytes()).await;
    let Request::SafeCommand(command) = line(&mut peer).await else { panic!() };
    peer.text(answer(&command.id, "2").as_bytes()).await;
    let Request::UnsafeCommand(command) = line(&mut peer).await else { panic!() };
    assert_eq!((command.raw_command.as_str(), command.timeout), ("'echo' 'a b'", Some(5)));
    peer.text(answer(&command.id, "3").as_bytes()).await;
    assert_eq!(calls.await.unwrap(), ["1", "2", "3"]);

    let hub = bench.hub.clone();
    let call = tokio::spawn(async move { hub.call(vm, Request::Metrics(MetricsRequest::default()), SOON).await });
    let Request::Metrics(request) = line(&mut peer).await else { panic!() };
    assert_eq!(request, MetricsRequest::default());
    peer.text(br#"{"type":"metrics","timestamp":"t","data":{"system":{}}}"#).await;
    assert_eq!(call.await.unwrap().unwrap().data, Some(json!({ "system": {} })));
    peer.text(br#"{"type":"keep_alive","sequence_number":7,"timestamp":"t"}"#).await;
    let Request::KeepAliveResponse(answer) = line(&mut peer).await else { panic!() };
    assert_eq!(answer.sequence_number, 7);

    for (error, capability) in [
        (bench.hub.exec(vm, run(&["top"])).await.unwrap().finish().await.unwrap_err(), "exec.stream"),
        (bench.hub.run(vm, Exec { user: Some("app".into()), ..run(&["id"]) }, SOON).await.unwrap_err(), "exec.user"),
    ] {
        assert_eq!(error, CallError::Unsupported { capability, flavour: Flavour::Seed });
    }
}

#[tokio::test]
async fn it_is_asked_for_metrics_while_somebody_watches() {
    let bench = Bench::with(quick(), |_| {});
    let mut peer = seed(&bench).await;
    let mut watch = bench.hub.watch_metrics(bench.vm, vec![], Duration::from_millis(100)).await.unwrap();
    let Request::Metrics(_) = line(&mut peer).await else { panic!() };
    peer.text(br#"{"type":"metrics","timestamp":"t","data":{"n":1}}"#).await;
    assert_eq!(soon("metrics", watch.next()).await.unwrap().data().unwrap(), json!({ "n": 1 }));
}

#[tokio::test]
async fn when_it_starts_again_or_a_better_one_comes() {
    let mut bench = Bench::with(quick(), |_| {});
    let mut peer = seed(&bench).await;
    assert!(matches!(bench.event().await, HubEvent::Connected { .. }));
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.run(vm, run(&["long"]), SOON).await });
    line(&mut peer).await;
    peer.text(HANDSHAKE).await;
    assert!(matches!(call.await.unwrap(), Err(CallError::OutcomeUnknown { .. })));
    assert!(matches!(bench.event().await, HubEvent::Connected { .. }));
    let handshake = roost_guest_hub::proto::GuestMessage::Handshake(peer.handshake(None, &[])).to_json();
    peer.text(&handshake).await;
    assert!(matches!(bench.event().await, HubEvent::Lost { .. }));
    let session = peer.hellos.last().map(|hello| hello.session.clone());
    loop {
        let (hello, _) = peer.hello().await;
        if Some(&hello.session) != session.as_ref() {
            peer.answer(&hello, &[Upgrade::Frames]).await;
            let event = bench.event().await;
            if let HubEvent::Connected { status, .. } = event {
                assert_eq!(status.flavour, Some(Flavour::Roost));
                break;
            }
        }
    }
}

/// The next command, in the newer form.
async fn execute(peer: &mut Peer) -> roost_guest_hub::proto::LegacyCommand {
    match line(peer).await {
        Request::Legacy(LegacyRequest::Execute(command)) => command,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_older_vsock_peer_takes_one_command_after_the_other() {
    for refusal in [
        &br#"{"type":"error","error":"unknown request type: hello"}"#[..],
        br#"{"exit_code":-1,"stdout":"","stderr":"","error":"no cmd"}"#,
    ] {
        let bench = Bench::with(quick(), |_| {});
        let mut peer = bench.accept().await;
        peer.hello().await;
        peer.text(refusal).await;
        let status = bench.hub.wait_connected(bench.vm, SOON).await.unwrap();
        assert_eq!(status.flavour, Some(Flavour::Legacy));
        let call = |argument: &'static str| {
            let (hub, vm) = (bench.hub.clone(), bench.vm);
            tokio::spawn(async move { hub.run(vm, run(&["echo", argument]), SOON).await })
        };
        let first = call("1");
        let command = execute(&mut peer).await;
        assert_eq!((command.cmd.as_str(), command.args), ("echo", vec!["1".to_owned()]));
        let second = call("2");
        // Its answer, and only then the next.
        peer.text(br#"{"type":"success","payload":{"exit_code":0,"stdout":"1","stderr":""}}"#).await;
        assert_eq!(first.await.unwrap().unwrap().stdout, "1");
        let command = execute(&mut peer).await;
        assert_eq!(command.args, ["2"]);
        peer.text(br#"{"exit_code":3,"stdout":"2","stderr":""}"#).await;
        let response = second.await.unwrap().unwrap();
        assert_eq!((response.exit_code, response.success), (Some(3), false));
        // An answer that nobody asked for.
        peer.text(br#"{"exit_code":0,"stdout":"evil","stderr":""}"#).await;
        // Without IDs, only what comes while nothing is asked can be told from an answer.
        until("it is counted", || bench.hub.status(bench.vm).is_some_and(|status| status.dropped.messages > 0)).await;
        let third = call("3");
        execute(&mut peer).await;
        peer.text(br#"{"exit_code":0,"stdout":"3","stderr":""}"#).await;
        assert_eq!(third.await.unwrap().unwrap().stdout, "3");
    }
}
