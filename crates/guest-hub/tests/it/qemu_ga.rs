//! QEMU's guest agent as a fallback: scripted, and the real program where it is installed.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use roost_guest_hub::proto::{Exec, FilePull, FilePush, Freeze, Ping, Request, SafeCommand, Thaw, Upgrade};
use roost_guest_hub::{CallError, Flavour, HubConfig, HubEvent};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::support::{Bench, SOON, run, soon};

fn bench() -> Bench {
    let config = HubConfig { fallback_after: Duration::from_millis(50), ..HubConfig::default() };
    Bench::with(config, |attachment| {
        let roost_guest_hub::Endpoint::Unix(socket) = &attachment.endpoint else { panic!() };
        attachment.qemu_guest_agent = Some(socket.with_file_name("qga"));
    })
}

/// A scripted one.
struct Guest {
    stream: BufReader<UnixStream>,
}

impl Guest {
    async fn accept(listener: &UnixListener) -> Self {
        Self { stream: BufReader::new(soon("a connection", listener.accept()).await.unwrap().0) }
    }

    async fn request(&mut self) -> Value {
        let mut line = Vec::new();
        soon("a request", self.stream.read_until(b'\n', &mut line)).await.unwrap();
        assert!(!line.is_empty(), "the hub hung up");
        let text = line.strip_prefix(&[0xFF]).unwrap_or(&line);
        serde_json::from_slice(text).unwrap()
    }

    async fn raw(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).await.unwrap();
    }

    async fn answer(&mut self, command: &str, value: Value) -> Value {
        let request = self.request().await;
        assert_eq!(request["execute"], command);
        self.raw(format!("{}\n", json!({ "return": value })).as_bytes()).await;
        request["arguments"].clone()
    }

    async fn greet(&mut self) {
        let sync = self.request().await;
        assert_eq!(sync["execute"], "guest-sync-delimited");
        self.raw(b"{\"return\":\"of another time\"}\n\xFF").await;
        self.raw(format!("{}\n", json!({ "return": sync["arguments"]["id"] })).as_bytes()).await;
        let info = json!({ "version": "7.2", "supported_commands": [{ "name": "guest-exec", "enabled": true }, { "name": "guest-x", "enabled": false }] });
        self.answer("guest-info", info).await;
        self.answer("guest-get-osinfo", json!({ "id": "debian" })).await;
    }
}

async fn scripted() -> (Bench, Guest) {
    let mut bench = bench();
    let listener = UnixListener::bind(bench.dir.path().join("qga")).unwrap();
    let mut guest = Guest::accept(&listener).await;
    guest.greet().await;
    let status = bench.hub.wait_connected(bench.vm, SOON).await.unwrap();
    assert_eq!((status.flavour, status.version.as_str()), (Some(Flavour::QemuGuestAgent), "7.2"));
    assert_eq!((status.platform.as_str(), status.capabilities), ("debian", vec!["guest-exec".to_owned()]));
    assert!(matches!(bench.event().await, HubEvent::Connected { .. }));
    (bench, guest)
}

#[tokio::test]
async fn commands_and_what_it_has_not() {
    let (bench, mut guest) = scripted().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.run(vm, run(&["uname", "-r"]), SOON).await });
    let arguments = guest.answer("guest-exec", json!({ "pid": 42 })).await;
    assert_eq!(arguments, json!({ "path": "uname", "arg": ["-r"], "capture-output": true }));
    assert_eq!(guest.answer("guest-exec-status", json!({ "exited": false })).await, json!({ "pid": 42 }));
    guest.answer("guest-exec-status", json!({ "exited": true, "exitcode": 0, "out-data": "Ni4xCg==" })).await;
    assert_eq!(call.await.unwrap().unwrap().stdout, "6.1\n");
    let hub = bench.hub.clone();
    let stream = hub.exec(vm, run(&["top"])).await.unwrap().finish().await.unwrap_err();
    assert_eq!(stream, CallError::Unsupported { capability: "exec.stream", flavour: Flavour::QemuGuestAgent });
    let user = hub.run(vm, Exec { user: Some("app".into()), ..run(&["id"]) }, SOON).await.unwrap_err();
    assert_eq!(user, CallError::Unsupported { capability: "exec.user", flavour: Flavour::QemuGuestAgent });
    // An error is the guest's, and the connection goes on.
    let call = tokio::spawn(async move { hub.call(vm, Request::Ping(Ping { sequence: 0 }), SOON).await });
    guest.request().await;
    guest.raw(b"{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"disabled\"}}\n").await;
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(&error, CallError::Guest(body) if body.message.contains("disabled")), "{error}");
}

/// Freezing ends by itself, whoever forgets it.
#[tokio::test]
async fn a_frozen_guest_is_thawed() {
    let (bench, mut guest) = scripted().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let freeze = Request::Freeze(Freeze { id: String::new(), timeout_ms: 100, paths: vec![] });
    let call = tokio::spawn(async move { hub.call(vm, freeze, SOON).await });
    guest.answer("guest-fsfreeze-freeze", json!(2)).await;
    assert_eq!(call.await.unwrap().unwrap().data, Some(json!({ "filesystems": 2 })));
    guest.answer("guest-fsfreeze-thaw", json!(2)).await;
}

#[tokio::test]
async fn hostile_answers() {
    let (mut bench, mut guest) = scripted().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let ping = || {
        let hub = hub.clone();
        tokio::spawn(async move { hub.call(vm, Request::Ping(Ping { sequence: 0 }), SOON).await })
    };
    // Too long: refused, and the connection goes on.
    let call = ping();
    guest.request().await;
    let mut long = vec![b'x'; 6 << 20];
    long.push(b'\n');
    guest.raw(&long).await;
    assert!(matches!(call.await.unwrap(), Err(CallError::TooLarge { .. })));
    let call = ping();
    guest.answer("guest-ping", json!({})).await;
    call.await.unwrap().unwrap();
    // What is no answer: the connection is made anew.
    let call = ping();
    guest.request().await;
    guest.raw(b"{\"return\":1,\"return\":2}\n").await;
    assert!(matches!(call.await.unwrap(), Err(CallError::OutcomeUnknown { .. })));
    assert!(matches!(bench.event().await, HubEvent::Lost { .. }));
    assert!(!bench.hub.status(vm).unwrap().connected);
}

#[tokio::test]
async fn a_better_agent_takes_over() {
    let (mut bench, mut guest) = scripted().await;
    let (hub, vm) = (bench.hub.clone(), bench.vm);
    let call = tokio::spawn(async move { hub.run(vm, run(&["long"]), SOON).await });
    guest.answer("guest-exec", json!({ "pid": 42 })).await;
    let mut peer = bench.accept().await;
    peer.greet(&[Upgrade::Frames]).await;
    let HubEvent::Connected { status, .. } = bench.event().await else { panic!() };
    assert_eq!(status.flavour, Some(Flavour::Roost));
    // What the other has begun, it finishes.
    guest.answer("guest-exec-status", json!({ "exited": true, "exitcode": 7 })).await;
    assert_eq!(soon("the end of the command", call).await.unwrap().unwrap().exit_code, Some(7));
}

/// The program itself, as Debian packages it. Without it there is nothing to test against.
#[tokio::test]
async fn the_real_program() {
    let named = std::env::var_os("QEMU_GA").map(PathBuf::from);
    let usual = ["/usr/sbin/qemu-ga", "/usr/bin/qemu-ga"].map(PathBuf::from);
    let Some(program) = named.into_iter().chain(usual).find(|path| path.exists()) else {
        eprintln!("skipped: no qemu-ga is installed (Debian: qemu-guest-agent)");
        return;
    };
    let bench = bench();
    let dir = bench.dir.path();
    let mut child = tokio::process::Command::new(program)
        .args(["-m", "unix-listen", "-p"])
        .arg(dir.join("qga"))
        .arg("-t")
        .arg(dir)
        .arg("-f")
        .arg(dir.join("pid"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (hub, vm) = (&bench.hub, bench.vm);
    let status = hub.wait_connected(vm, SOON).await.unwrap();
    assert_eq!(status.flavour, Some(Flavour::QemuGuestAgent));
    let ran = hub
        .run(
            vm,
            Exec { input: Some("in".into()), cwd: Some("/".into()), ..run(&["/bin/sh", "-c", "cat; pwd; exit 3"]) },
            SOON,
        )
        .await
        .unwrap();
    assert_eq!((ran.stdout.as_str(), ran.exit_code), ("in/\n", Some(3)));
    let slow = hub.run(vm, Exec { timeout_ms: Some(100), ..run(&["/bin/sleep", "30"]) }, SOON).await.unwrap();
    assert_eq!(slow.error.unwrap().code.as_str(), "COMMAND_TIMEOUT");
    let info =
        SafeCommand { id: String::new(), command_type: json!({ "action": "OsInfo" }), params: None, timeout: None };
    let info = hub.call(vm, Request::SafeCommand(info), SOON).await.unwrap().data.unwrap();
    assert!(info["hostname"].is_string(), "{info}");
    let path = dir.join("copy").to_str().unwrap().to_owned();
    let content: Vec<u8> = (0..300_000).map(|at: u32| (at % 251) as u8).collect();
    let pieces = futures::stream::iter([Ok(Bytes::from(content.clone()))]);
    hub.push(vm, FilePush { path: path.clone(), mode: Some(0o600), ..FilePush::default() }, pieces).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == content);
    let mut pull = hub.pull(vm, FilePull { path, ..FilePull::default() }).await.unwrap();
    let mut got = Vec::new();
    while let Some(bytes) = pull.next().await.unwrap() {
        got.extend_from_slice(&bytes);
    }
    pull.finish().await.unwrap();
    assert!(got == content);
    // Only thawing: this machine is not to be frozen.
    let _ = hub.call(vm, Request::Thaw(Thaw { id: String::new() }), SOON).await;
    child.kill().await.unwrap();
}
