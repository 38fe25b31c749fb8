//! The actor against a peer that plays QEMU line by line: what real QEMU does only on rare days.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Child;

use roost_backend::{Event, EventReceiver, Happened, events};
use roost_model::plan::Stop;
use roost_model::spec::{Boot, Memory};
use roost_model::{Bytes, VmSpec};

use super::*;
use crate::config::{Limits, QMP_SOCKET};
use crate::exits::Exits;

const LIMIT: Duration = Duration::from_secs(20);

/// QEMU's side of the conversation, and a process that stands for QEMU's.
struct Stage {
    _dir: tempfile::TempDir,
    listener: UnixListener,
    peer: BufReader<UnixStream>,
    child: Child,
    exits: Exits,
    events: EventReceiver,
    machine: Arc<Machine>,
    launch: LaunchId,
}

impl Stage {
    /// A machine that was found, in this run state.
    async fn found(status: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(QMP_SOCKET)).unwrap();
        let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let vmm = Process::of_child(&child).unwrap().unwrap();
        let exits = Exits::start().unwrap();
        let exited = exits.watch(&vmm).unwrap();
        let launch = "launch_018bcfe5-6800-7000-8000-000000000002".parse().unwrap();
        let identity = Identity {
            definition: Arc::new(Definition {
                id: "vm_018bcfe5-6800-7000-8000-000000000001".parse().unwrap(),
                name: "test".parse().unwrap(),
                spec: VmSpec::minimal(Memory::fixed(Bytes::from_mib(8)), Boot::default()),
            }),
            launch,
            accelerator: "tcg: a test".to_owned(),
            machine: "none".to_owned(),
            run_dir: dir.path().to_owned(),
            log: dir.path().join("qemu.log"),
        };
        let (sender, events) = events();
        let socket = dir.path().join(QMP_SOCKET);
        let peer = tokio::task::spawn_blocking({
            let (listener, status) = (listener.try_clone().unwrap(), status.to_owned());
            move || accept(&listener, &status)
        });
        let greeting = connect(&socket, LIMIT).await.unwrap();
        let processes = Processes { vmm, console: None };
        let machine = Machine::found(identity, processes, Some(greeting), exited, sender);
        Self { _dir: dir, listener, peer: peer.await.unwrap(), child, exits, events, machine, launch }
    }

    fn say(&mut self, line: &str) {
        self.peer.get_mut().write_all(format!("{line}\r\n").as_bytes()).unwrap();
    }

    /// Takes the next command, which must be this one, and answers it.
    fn answer(&mut self, command: &str, with: &str) {
        let (name, id) = read_command(&mut self.peer);
        assert_eq!(name, command);
        self.say(&format!(r#"{{"return": {with}, "id": {id}}}"#));
    }

    async fn event(&mut self) -> Happened {
        let event = tokio::time::timeout(LIMIT, self.events.recv()).await.expect("an event").expect("the actor lives");
        let vm = self.machine.identity.definition.id;
        assert_eq!((event.vm, event.launch), (vm, self.launch));
        event.happened
    }

    fn no_more_events(&mut self) {
        let more: Vec<Event> = std::iter::from_fn(|| self.events.try_recv().ok()).collect();
        assert_eq!(more, []);
    }

    async fn end(mut self) -> Vec<Event> {
        // A real QEMU closes its end as it ends.
        drop(self.peer);
        self.child.kill().unwrap();
        assert!(self.machine.wait_gone(LIMIT).await);
        drop(self.exits);
        std::iter::from_fn(|| self.events.try_recv().ok()).collect()
    }
}

fn read_command(peer: &mut BufReader<UnixStream>) -> (String, u64) {
    let mut line = String::new();
    peer.read_line(&mut line).unwrap();
    let command: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
    (command["execute"].as_str().unwrap().to_owned(), command["id"].as_u64().unwrap())
}

/// Takes a connection through the handshake and the first question.
fn accept(listener: &UnixListener, status: &str) -> BufReader<UnixStream> {
    let (stream, _) = listener.accept().unwrap();
    let mut peer = BufReader::new(stream);
    let greeting = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 9}}, "capabilities": []}}"#;
    writeln!(peer.get_mut(), "{greeting}").unwrap();
    for (expected, answer) in
        [("qmp_capabilities", "{}".to_owned()), ("query-status", format!(r#"{{"status": "{status}"}}"#))]
    {
        let (name, id) = read_command(&mut peer);
        assert_eq!(name, expected);
        writeln!(peer.get_mut(), r#"{{"return": {answer}, "id": {id}}}"#).unwrap();
    }
    peer
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_is_found_to_be() {
    for (status, run) in [
        ("running", Run::Running),
        ("suspended", Run::Running),
        ("paused", Run::Paused),
        ("io-error", Run::Paused),
        ("prelaunch", Run::Paused),
        ("a state of tomorrow", Run::Paused),
        ("shutdown", Run::Ended(ExitCause::PowerOff)),
        ("guest-panicked", Run::Ended(ExitCause::Panic)),
        ("internal-error", Run::Ended(ExitCause::Crashed)),
    ] {
        let mut stage = Stage::found(status).await;
        assert_eq!(stage.machine.view().run, run, "{status}");
        stage.no_more_events();
        let ended = matches!(run, Run::Ended(_));
        assert_eq!(stage.end().await.len(), usize::from(!ended), "one end, and only one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_that_nobody_asked_for_are_events_and_our_own_are_not() {
    let mut stage = Stage::found("running").await;
    stage.say(r#"{"event": "BLOCK_IO_ERROR", "data": {"node-name": "disk0", "nospace": true, "operation": "write"}}"#);
    stage.say(r#"{"event": "STOP"}"#);
    stage.answer("query-status", r#"{"status": "io-error"}"#);
    assert_eq!(stage.event().await, Happened::Paused);
    stage.say(r#"{"event": "RESUME"}"#);
    stage.answer("query-status", r#"{"status": "running"}"#);
    assert_eq!(stage.event().await, Happened::Resumed);

    let limits = Limits::default();
    let machine = Arc::clone(&stage.machine);
    let pause = tokio::spawn(async move { machine.pause(&limits).await });
    let (name, id) = read_command(&mut stage.peer);
    assert_eq!(name, "stop");
    stage.say(r#"{"event": "STOP"}"#);
    stage.say(&format!(r#"{{"return": {{}}, "id": {id}}}"#));
    pause.await.unwrap().unwrap();
    assert_eq!(stage.machine.view().run, Run::Paused);
    stage.no_more_events();
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_reported_once_whatever_follows() {
    let mut stage = Stage::found("running").await;
    stage.say(r#"{"event": "GUEST_PANICKED", "data": {"action": "pause"}}"#);
    stage.say(r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#);
    stage.say(r#"{"event": "STOP"}"#);
    assert_eq!(stage.event().await, Happened::Ended(ExitCause::Panic));
    assert_eq!(stage.end().await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_comes_too_late_says_so() {
    let mut stage = Stage::found("running").await;
    let limits = Limits::default();
    let machine = Arc::clone(&stage.machine);
    let pause = tokio::spawn(async move { machine.pause(&limits).await });
    let (_stop, id) = read_command(&mut stage.peer);
    stage.say(r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#);
    stage.say(&format!(r#"{{"return": {{}}, "id": {id}}}"#));
    assert_eq!(pause.await.unwrap().unwrap_err().reason, "WRONG_STATE");
    assert_eq!(stage.event().await, Happened::Ended(ExitCause::PowerOff));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_made_again_and_tells_what_was_missed() {
    for nonsense in
        ["this is not QMP".to_owned(), "x".repeat((1 << 20) + 1), "{\"return\": ".to_owned() + &"[".repeat(5000)]
    {
        let mut stage = Stage::found("running").await;
        stage.say(&nonsense);
        let again = tokio::task::spawn_blocking({
            let listener = stage.listener.try_clone().unwrap();
            move || accept(&listener, "guest-panicked")
        });
        let _peer = tokio::time::timeout(LIMIT, again).await.expect("it connects again").unwrap();
        assert_eq!(stage.event().await, Happened::Ended(ExitCause::Panic));
        assert!(stage.machine.view().connected);
        assert_eq!(stage.end().await, []);
    }
}

/// Without a connection a machine is still ended: by the signal that means the same.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_connection_it_is_ended_all_the_same() {
    let stage = Stage::found("running").await;
    let Stage { peer, listener, .. } = &stage;
    peer.get_ref().shutdown(std::net::Shutdown::Both).unwrap();
    listener.set_nonblocking(true).unwrap();
    assert!(stage.machine.until(LIMIT, |view| !view.connected).await);
    let limits = Limits::default();
    assert_eq!(stage.machine.shutdown(Stop::Forced, &limits).await.unwrap(), ExitCause::Forced);
    assert!(stage.machine.view().gone);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_signal_is_a_kill_even_when_qemu_ends_in_order() {
    let mut stage = Stage::found("running").await;
    stage.say(r#"{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-signal"}}"#);
    stage.child.kill().unwrap();
    assert_eq!(stage.event().await, Happened::Ended(ExitCause::Killed));
    stage.no_more_events();
}
