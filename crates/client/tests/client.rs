//! The client against a server on a real socket.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use roost_client::{Client, Error, ErrorCode, has_ended, v1};
use support::TestServer;

fn named(name: &str) -> v1::CreateVmRequest {
    v1::CreateVmRequest { name: name.to_owned(), ..Default::default() }
}

#[tokio::test]
async fn calls_share_a_connection_and_carry_the_peer() {
    let server = TestServer::start();
    let client = Client::connect_unix(&server.socket);
    let calls = (0..64).map(|n| {
        let client = client.clone();
        async move { client.get_vm_info(&format!("vm{n}")).await }
    });
    let answers = futures::future::try_join_all(calls).await.unwrap();
    let me = std::fs::metadata("/proc/self").unwrap().uid();
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(answer.vm_id, format!("vm{n}"));
        assert_eq!(answer.backend_info["uid"], me.to_string());
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn every_change_is_answered_with_its_operation() {
    let server = TestServer::start();
    let client = Client::connect_unix(&server.socket);
    let vm_id = || "web".to_owned();
    let changed = [
        client.create_vm(named("web")).await,
        client.delete_vm(v1::DeleteVmRequest { vm_id: vm_id(), ..Default::default() }).await,
        client.boot_vm(v1::BootVmRequest { vm_id: vm_id(), ..Default::default() }).await,
        client.shutdown_vm(v1::ShutdownVmRequest { vm_id: vm_id(), ..Default::default() }).await,
        client.pause_vm(v1::PauseVmRequest { vm_id: vm_id(), ..Default::default() }).await,
        client.resume_vm(v1::ResumeVmRequest { vm_id: vm_id(), ..Default::default() }).await,
        client.reboot_vm(v1::RebootVmRequest { vm_id: vm_id(), ..Default::default() }).await,
        client.update_vm(v1::UpdateVmRequest { vm_id: vm_id(), ..Default::default() }).await,
    ];
    use v1::VmState as S;
    let states = [S::Created, S::Shutdown, S::Running, S::Shutdown, S::Paused, S::Running, S::Running, S::Created];
    for (changed, state) in changed.into_iter().zip(states) {
        let changed = changed.unwrap();
        assert_eq!((changed.vm_id.as_str(), changed.state), ("web", state.into()));
        assert!(has_ended(&changed.operation));
    }
    let bulk = v1::BulkCreateVmsRequest { vms: vec![named("a"), named("b")], ..Default::default() };
    let ids: Vec<String> = client.bulk_create_vms(bulk).await.unwrap().into_iter().map(|c| c.vm_id).collect();
    assert_eq!(ids, ["a", "b"]);
}

#[tokio::test]
async fn an_error_keeps_its_code_its_detail_and_its_operation() {
    let server = TestServer::start();
    let client = Client::connect_unix(&server.socket);
    let error = client.create_vm(named("bad")).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (ErrorCode::InvalidArgument, Some("INVALID_FIELD")));
    let detail = error.detail().unwrap();
    assert_eq!((detail.field.as_str(), detail.value.as_str()), ("name", "bad"));
    assert_eq!(detail.permitted, ["something else"]);

    let error = client.create_vm(named("doomed")).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (ErrorCode::FailedPrecondition, Some("KERNEL_UNREADABLE")));
    let detail = error.detail().unwrap();
    assert_eq!((detail.hint.as_str(), detail.field.as_str()), ("make it readable", "config.boot.kernel_path"));
    let operation = error.operation().unwrap();
    assert!(has_ended(operation) && error.to_string().contains(&operation.id));
    assert_eq!(operation.finished_at.nanos, 123_000_000);

    let error = client.get_operation("op_0").await.unwrap_err();
    assert_eq!((error.code(), error.detail()), (ErrorCode::NotFound, None));
}

#[tokio::test]
async fn nobody_at_the_socket_is_told_apart_from_an_error_of_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.sock");
    let error = Client::connect_unix(&path).version().await.unwrap_err();
    let Error::Unreachable { socket, kind } = error else { panic!("{error:?}") };
    assert_eq!((socket, kind), (path.clone(), std::io::ErrorKind::NotFound));

    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = Client::connect_unix(&path).version().await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { kind: std::io::ErrorKind::ConnectionRefused, .. }), "{error:?}");
    let error = Client::connect_unix(&path).wait_ready(Duration::from_millis(30)).await.unwrap_err();
    assert!(error.to_string().starts_with("no daemon answers at"), "{error}");
}

#[tokio::test]
async fn a_client_outlives_the_daemon_that_it_spoke_to() {
    let server = TestServer::start();
    let client = Client::connect_unix(&server.socket);
    client.version().await.unwrap();
    let server = server.restart().await;
    let version = client.wait_ready(Duration::from_secs(10)).await.unwrap();
    assert_eq!(version.version, "0.0.0-test");
    drop(server);
}

#[tokio::test]
async fn a_watch_gives_events_in_order_and_is_bound_by_no_deadline() {
    let server = TestServer::start();
    let client = Client::connect_unix(&server.socket);
    let request = v1::WatchVmsRequest { from_position: Some(5), ..Default::default() };
    let mut watch = client.watch_vms(request).await.unwrap();
    for position in 6..=9 {
        assert_eq!(watch.next().await.unwrap().unwrap().position, position);
    }

    let request = v1::WatchVmsRequest { from_position: Some(13), ..Default::default() };
    let mut watch = client.watch_vms(request).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().position, 14);
    let error = watch.next().await.unwrap_err();
    assert_eq!(error.detail().unwrap().field, "from_position");
}

#[tokio::test]
async fn a_dropped_watch_ends_the_call_on_the_server() {
    let server = TestServer::start();
    let client = Client::connect_unix(&server.socket);
    let mut watch = client.watch_vms(v1::WatchVmsRequest::default()).await.unwrap();
    watch.next().await.unwrap();
    assert_eq!(server.watches(), 1);
    drop(watch);
    server.until_watches(0).await;
}

#[tokio::test]
async fn the_console_goes_both_ways() {
    let server = TestServer::start();
    let client = Client::connect_unix(&server.socket);
    let mut log = client.console_log(v1::GetConsoleLogRequest::default()).await.unwrap();
    let mut text = Vec::new();
    while let Some(bytes) = log.next().await.unwrap() {
        text.extend(bytes);
    }
    assert_eq!(text, b"one\ntwo\n");

    let mut console = client.attach_console("web").await.unwrap();
    assert_eq!(console.next().await.unwrap().unwrap(), b"this is web\n");
    for keys in [b"ls\n".as_slice(), b"\x1b[A\xff"] {
        console.send(keys).await.unwrap();
        assert_eq!(console.next().await.unwrap().unwrap(), keys.to_ascii_uppercase());
    }
    let (input, mut output) = console.into_split();
    drop(input);
    assert_eq!(output.next().await.unwrap(), None);

    let mut console = client.attach_console("").await.unwrap();
    let error = console.next().await.unwrap_err();
    assert_eq!(error.detail().unwrap().field, "vm_id");
}

#[tokio::test]
async fn waiting_ends_with_the_operation() {
    let server = TestServer::start();
    let client = Client::connect_unix(&server.socket);
    let operation = client.wait_operation("op_1", Duration::from_secs(5)).await.unwrap();
    assert!(has_ended(&operation));
    // This one never ends: it comes back as it is when the time is over.
    let operation = client.wait_operation("op_endless", Duration::from_millis(20)).await.unwrap();
    assert!(!has_ended(&operation));
}
