//! Roost's real agent at the other end.
//!
//! Over a socket that it listens on, as on vsock; and over a relay that keeps the agent's side open while hosts come
//! and go, as a virtio-serial port does.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use roost_guest_hub::proto::{
    Exec, FilePull, FilePush, FileStat, Key, MetricsRequest, Ping, Pty, Request, SafeCommand, UnsafeCommand,
};
use roost_guest_hub::{CallError, Flavour, Hub, HubConfig, HubEvent, Output};
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::support::{SOON, attachment, run, soon, until, vm};

/// Beside this test's own program, where `cargo build -p roost-guest-agent` puts it.
fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let built = test.ancestors().nth(2).expect("target/<profile>/deps/<test>").join("roost-agent");
    assert!(built.exists(), "{} is not there: run `cargo build -p roost-guest-agent` first", built.display());
    built
}

fn start(device: &str, key: Option<&Path>) -> Child {
    let mut command = Command::new(program());
    command.args(["--config", "/dev/null", "--device", device, "--set", "keep_alive_s=5"]);
    if let Some(key) = key {
        command.args(["--set", &format!("encryption.key_file={}", key.display())]);
    }
    command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null()).stderr(Stdio::null());
    command.kill_on_drop(true).spawn().unwrap()
}

struct Real {
    hub: Hub,
    events: mpsc::UnboundedReceiver<HubEvent>,
    vm: roost_model::VmId,
    dir: TempDir,
    agent: Child,
    attachment: roost_guest_hub::Attachment,
}

impl Real {
    async fn start(key: Option<Key>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock");
        let file = dir.path().join("key");
        if key.is_some() {
            std::fs::write(&file, [5; 32]).unwrap();
        }
        let agent = start(&format!("unix-listen:{}", socket.display()), key.is_some().then_some(&file));
        let (hub, events) = Hub::new(HubConfig::default());
        let mut attachment = attachment(vm(1), socket);
        attachment.metrics_interval = Duration::from_secs(1);
        attachment.key = key;
        hub.attach(attachment.clone());
        let status = hub.wait_connected(vm(1), SOON).await.unwrap();
        assert_eq!(status.flavour, Some(Flavour::Roost));
        Self { hub, events, vm: vm(1), dir, agent, attachment }
    }

    async fn sh(&self, script: &str) -> String {
        self.hub.run(self.vm, run(&["sh", "-c", script]), SOON).await.unwrap().stdout
    }
}

#[tokio::test]
async fn everything_once() {
    for key in [None, Some(Key::from_bytes([5; 32]))] {
        let sealed = key.is_some();
        let mut real = Real::start(key).await;
        let (hub, vm) = (&real.hub, real.vm);
        let status = hub.status(vm).unwrap();
        assert_eq!((status.sealed, status.platform.as_str(), status.epoch), (sealed, "linux", Some(1)));
        assert!(matches!(real.events.recv().await, Some(HubEvent::Connected { .. })));
        assert_eq!(real.events.recv().await, Some(HubEvent::Ready { vm, epoch: 1 }));

        assert_eq!(real.sh("echo hi").await, "hi\n");
        let failed = hub.run(vm, run(&["sh", "-c", "echo no >&2; exit 3"]), SOON).await.unwrap();
        assert_eq!((failed.exit_code, failed.stderr.as_str()), (Some(3), "no\n"));
        let missing = hub.run(vm, run(&["no-such-program"]), SOON).await.unwrap_err();
        assert!(matches!(missing, CallError::Guest(_)), "{missing}");
        let slow = hub.run(vm, Exec { timeout_ms: Some(100), ..run(&["sleep", "60"]) }, SOON).await.unwrap();
        assert_eq!(slow.error.unwrap().code.as_str(), "COMMAND_TIMEOUT");
        let command = UnsafeCommand {
            id: String::new(),
            raw_command: "echo $A".into(),
            shell: None,
            timeout: None,
            working_dir: None,
            env_vars: Some([("A".to_owned(), "b".to_owned())].into()),
        };
        let ran = hub.call(vm, Request::UnsafeCommand(command), SOON).await.unwrap();
        assert_eq!(ran.stdout, "b\n", "{ran:?}");
        assert!(hub.call(vm, Request::Ping(Ping { sequence: 0 }), SOON).await.unwrap().success);
        assert_eq!(hub.status(vm).unwrap().dropped, Default::default());
    }
}

#[tokio::test]
async fn what_it_knows_of_its_guest() {
    let real = Real::start(None).await;
    let (hub, vm) = (&real.hub, real.vm);
    let safe =
        SafeCommand { id: String::new(), command_type: json!({ "action": "OsInfo" }), params: None, timeout: None };
    assert!(hub.call(vm, Request::SafeCommand(safe), SOON).await.unwrap().success);
    let metrics = hub.call(vm, Request::Metrics(MetricsRequest::default()), SOON).await.unwrap().data.unwrap();
    assert!(metrics["system"]["memory"]["total_kb"].is_u64(), "{metrics}");
    until("metrics", || hub.metrics(vm).is_some()).await;
    assert!(hub.metrics(vm).unwrap().data().unwrap()["system"].is_object());
}

#[tokio::test]
async fn live_input_and_output() {
    const LEN: usize = 8 << 20;
    let real = Real::start(None).await;
    let mut handle =
        real.hub.exec(real.vm, Exec { stdin: true, ..run(&["sh", "-c", "cat; echo done >&2; exit 5"]) }).await.unwrap();
    let content: Vec<u8> = (0..LEN).map(|at| (at * 7 % 256) as u8).collect();
    let mut stdin = handle.stdin().unwrap();
    let writer = tokio::spawn({
        let content = content.clone();
        async move {
            for piece in content.chunks(100_000) {
                stdin.write(Bytes::copy_from_slice(piece)).await.unwrap();
            }
            stdin.close();
        }
    });
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(output) = soon("output", handle.output()).await {
        match output {
            Output::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            Output::Stderr(bytes) => stderr.extend_from_slice(&bytes),
        }
    }
    assert_eq!(soon("the end", handle.finish()).await.unwrap().exit_code, Some(5));
    assert!(stdout == content, "{} of {LEN} bytes", stdout.len());
    assert_eq!(stderr, b"done\n");
    writer.await.unwrap();
    assert!(handle.pid().is_some());

    let pty = Some(Pty { rows: 24, cols: 80, term: None });
    let mut shell = real.hub.exec(real.vm, Exec { stdin: true, pty, ..run(&["sh"]) }).await.unwrap();
    let mut stdin = shell.stdin().unwrap();
    shell.resize(40, 100).await.unwrap();
    stdin.write(Bytes::from_static(b"stty size; exit\n")).await.unwrap();
    let mut shown = String::new();
    while let Some(Output::Stdout(bytes)) = soon("output", shell.output()).await {
        shown.push_str(&String::from_utf8_lossy(&bytes));
    }
    assert!(shown.contains("40 100"), "{shown:?}");
    soon("the end", shell.finish()).await.unwrap();
    let mut sleeper = real.hub.exec(real.vm, run(&["sleep", "60"])).await.unwrap();
    sleeper.signal("TERM").await.unwrap();
    assert_eq!(soon("the end", sleeper.finish()).await.unwrap().signal, Some(15));
}

/// A command that prints without end neither fills the host's memory nor holds up another.
#[tokio::test]
async fn endless_output_that_is_read_slowly_or_not_at_all() {
    let real = Real::start(None).await;
    let mut endless = real.hub.exec(real.vm, run(&["yes"])).await.unwrap();
    let mark = format!("mark.{}", std::process::id());
    let ignored = real.hub.exec(real.vm, run(&["sh", "-c", &format!("yes; : {mark}")])).await.unwrap();
    for _ in 0..20 {
        soon("output", endless.output()).await.unwrap();
        assert_eq!(real.sh("echo between").await, "between\n");
    }
    drop(ignored);
    endless.cancel().await.unwrap();
    let end = soon("the end", endless.finish()).await;
    assert!(
        matches!(&end, Err(CallError::Guest(error)) if error.code.as_str() == "CANCELLED") || end.is_ok(),
        "{end:?}"
    );
    // The handle that was dropped took its command with it.
    let script = format!("ps -eo args | grep -c '[y]es; : {mark}' || true");
    for _ in 0..100 {
        if real.sh(&script).await.trim() == "0" {
            return;
        }
    }
    panic!("a command without a handle goes on");
}

#[tokio::test]
async fn files_both_ways() {
    let real = Real::start(None).await;
    let (hub, vm) = (&real.hub, real.vm);
    let path = real.dir.path().join("copy").to_str().unwrap().to_owned();
    let content: Vec<u8> = (0..3_000_000).map(|at: u32| (at * 11 % 256) as u8).collect();
    let pieces: Vec<_> = content.chunks(50_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let sha256 = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let push = FilePush { path: path.clone(), mode: Some(0o640), sha256: Some(sha256), ..FilePush::default() };
    let pushed = hub.push(vm, push.clone(), futures::stream::iter(pieces)).await.unwrap();
    assert_eq!(pushed.data.unwrap()["bytes"], content.len());
    assert!(std::fs::read(&path).unwrap() == content);
    // One that breaks off leaves what was there.
    let broken = futures::stream::iter([Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("gone"))]);
    assert!(matches!(hub.push(vm, push, broken).await, Err(CallError::Content(_))));
    assert!(std::fs::read(&path).unwrap() == content);
    let mut pull = hub.pull(vm, FilePull { path: path.clone(), sha256: true, ..FilePull::default() }).await.unwrap();
    let mut got = Vec::new();
    while let Some(bytes) = soon("bytes", pull.next()).await.unwrap() {
        got.extend_from_slice(&bytes);
    }
    pull.finish().await.unwrap();
    assert!(got == content);
    let stat = FileStat { id: String::new(), path, sha256: false, list: false };
    assert_eq!(hub.call(vm, Request::FileStat(stat), SOON).await.unwrap().data.unwrap()["size"], content.len());
    let missing = hub.pull(vm, FilePull { path: "/no/such/file".into(), ..FilePull::default() }).await.unwrap();
    assert!(matches!(missing.finish().await, Err(CallError::Guest(_))));
    // A tree, there and back.
    let tree = real.dir.path().join("tree");
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    std::fs::write(tree.join("a/b/file"), b"in the tree").unwrap();
    let from = FilePull { path: tree.to_str().unwrap().to_owned(), tree: true, ..FilePull::default() };
    let mut pull = hub.pull(vm, from).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = soon("bytes", pull.next()).await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    pull.finish().await.unwrap();
    let to = real.dir.path().join("other");
    std::fs::create_dir(&to).unwrap();
    let push = FilePush { path: to.to_str().unwrap().to_owned(), tree: true, ..FilePush::default() };
    hub.push(vm, push, futures::stream::iter([Ok(Bytes::from(bytes))])).await.unwrap();
    assert_eq!(std::fs::read(to.join("a/b/file")).unwrap(), b"in the tree");
}

/// The agent is killed in mid-command, and another takes its place.
#[tokio::test]
async fn an_agent_that_is_killed() {
    let mut real = Real::start(None).await;
    let (hub, vm) = (real.hub.clone(), real.vm);
    let mut handle = hub.exec(vm, run(&["sleep", "60"])).await.unwrap();
    until("the command runs", || handle.pid().is_some()).await;
    let call = tokio::spawn({
        let hub = hub.clone();
        async move { hub.run(vm, run(&["sleep", "61"]), SOON).await }
    });
    real.sh("true").await;
    real.agent.start_kill().unwrap();
    assert!(matches!(call.await.unwrap(), Err(CallError::OutcomeUnknown { .. })));
    assert!(matches!(soon("the end", handle.finish()).await, Err(CallError::OutcomeUnknown { .. })));
    real.agent.wait().await.unwrap();
    let first = hub.status(vm).unwrap();
    assert!(!first.connected);
    let socket = real.dir.path().join("vsock");
    let _ = std::fs::remove_file(&socket);
    real.agent = start(&format!("unix-listen:{}", socket.display()), None);
    hub.wait_connected(vm, SOON).await.unwrap();
    assert_eq!(real.sh("echo again").await, "again\n");
}

/// A restored VM: a new epoch, which the agent is told of before anything else is asked.
#[tokio::test]
async fn a_new_epoch() {
    let mut real = Real::start(None).await;
    let (hub, vm) = (real.hub.clone(), real.vm);
    let mut next = real.attachment.clone();
    next.epoch = 2;
    hub.attach(next);
    let mut lost = false;
    soon("another session", async {
        loop {
            match real.events.recv().await.unwrap() {
                HubEvent::Lost { .. } => lost = true,
                HubEvent::Connected { .. } if lost => return,
                _ => {}
            }
        }
    })
    .await;
    let refused = hub.run(vm, run(&["true"]), SOON).await.unwrap_err();
    assert!(matches!(&refused, CallError::Guest(error) if error.code.as_str() == "EPOCH_MISMATCH"), "{refused}");
    let identity = Request::Identity(roost_guest_hub::proto::Identity::default());
    hub.call(vm, identity, SOON).await.unwrap();
    assert_eq!(real.sh("echo now").await, "now\n");
    let ready = soon("ready", async {
        loop {
            if let Some(HubEvent::Ready { epoch: 2, .. }) = real.events.recv().await {
                return;
            }
        }
    });
    ready.await;
}

/// Carries bytes between one agent's port and the hosts that come and go.
async fn relay(port: UnixListener, hosts: UnixListener) {
    let (mut guest, _) = port.accept().await.unwrap();
    loop {
        let (mut host, _) = hosts.accept().await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut host, &mut Keep(&mut guest)).await;
    }
}

/// The guest's side stays open when a host leaves.
struct Keep<'a>(&'a mut UnixStream);

mod keep {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Keep;

    impl AsyncRead for Keep<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut *self.0).poll_read(context, buffer)
        }
    }

    impl AsyncWrite for Keep<'_> {
        fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut *self.0).poll_write(context, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut *self.0).poll_flush(context)
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            // This host is done; the relay goes back to waiting for the next.
            Poll::Ready(Err(io::Error::other("the host left")))
        }
    }
}

/// A daemon that restarts finds an agent that is in the middle of anything.
#[tokio::test]
async fn hosts_that_come_and_go_on_one_port() {
    let dir = tempfile::tempdir().unwrap();
    let (port, hosts) = (dir.path().join("port"), dir.path().join("hosts"));
    let carried = tokio::spawn(relay(UnixListener::bind(&port).unwrap(), UnixListener::bind(&hosts).unwrap()));
    let _agent = start(&format!("unix:{}", port.display()), None);
    for round in 0..5 {
        let (hub, _events) = Hub::new(HubConfig::default());
        hub.attach(attachment(vm(1), hosts.clone()));
        hub.wait_connected(vm(1), SOON).await.unwrap();
        let answer = hub.run(vm(1), run(&["echo", &round.to_string()]), SOON).await.unwrap();
        assert_eq!(answer.stdout, format!("{round}\n"), "{answer:?}");
        // It goes in the middle of a copy to the guest and of output that flows.
        let endless = hub.exec(vm(1), run(&["yes"])).await.unwrap();
        let content = futures::stream::repeat_with(|| Ok(Bytes::from(vec![0; 30_000])));
        let path = dir.path().join("endless").to_str().unwrap().to_owned();
        let push = hub.push(vm(1), FilePush { path, ..FilePush::default() }, content);
        let _ = tokio::time::timeout(Duration::from_millis(50), push).await;
        drop((endless, hub));
    }
    carried.abort();
}
