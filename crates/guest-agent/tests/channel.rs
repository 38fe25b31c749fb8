//! Lines, hellos, frames and sealing, and hosts that come and go, over the real agent.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::time::{Duration, Instant};

use roost_guest_proto::{ErrorCode, GuestMessage, Key, MAX_FRAME, Upgrade};
use serde_json::{Value, json};
use support::{Guest, wait_for};

/// A host that speaks nothing but the first agents' lines, on the port.
#[test]
fn an_old_host_on_the_port() {
    let (_guest, peer) = Guest::start(&["metrics.interval_s=0"]);
    let mut stream = peer.stream;
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let handshake = next();
    for key in ["type", "timestamp", "vm_id", "version", "platform", "capabilities"] {
        assert!(!handshake[key].is_null(), "{key} in {handshake}");
    }
    assert_eq!((handshake["type"].as_str(), handshake["platform"].as_str()), (Some("handshake"), Some("linux")));
    assert!(handshake.get("session").is_none());
    stream.write_all(b"{\"type\":\"UnsafeCommand\",\"id\":\"u1\",\"raw_command\":\"echo $X; pwd; exit 4\",\"shell\":\"sh\",\"timeout\":10,\"working_dir\":\"/tmp\",\"env_vars\":{\"X\":\"y z\"}}\r\n").unwrap();
    let response = next();
    assert_eq!(response["type"], "response");
    assert_eq!(
        (&response["id"], &response["success"], &response["exit_code"]),
        (&json!("u1"), &json!(false), &json!(4))
    );
    assert_eq!((&response["stdout"], &response["command_type"]), (&json!("y z\n/tmp\n"), &json!("unsafe")));
    stream
        .write_all(
            b"{\"type\":\"keep_alive_response\",\"sequence_number\":1,\"timestamp\":\"x\"}\n{\"type\":\"nonsense\"}\n",
        )
        .unwrap();
    let error = next();
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("UNKNOWN_COMMAND")));
    stream
        .write_all(b"{\"type\":\"SafeCommand\",\"id\":\"s1\",\"command_type\":{\"action\":\"SelfDestruct\"}}\n")
        .unwrap();
    let response = next();
    assert_eq!((&response["id"], &response["command_type"]), (&json!("s1"), &json!("safe")));
    assert_eq!(response["success"], false);
}

/// The two forms of the older vsock peers: one answer to each line, in order, and no word before.
#[test]
fn old_hosts_on_vsock() {
    let guest = Guest::start_unmet(&[]);
    let mut stream = guest.dial().stream;
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut ask = |line: &str| -> Value {
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap()
    };
    let answer = ask(r#"{"cmd": "sh", "args": ["-c", "echo $A; echo e >&2; exit 3"], "env": ["A=b=c"]}"#);
    assert_eq!(answer, json!({"exit_code": 3, "stdout": "b=c\n", "stderr": "e\n"}));
    let answer = ask(r#"{"cmd": "no-such-program", "args": []}"#);
    assert_eq!(answer["exit_code"], -1);
    assert!(answer["error"].as_str().unwrap().contains("no-such-program"));
    let answer = ask(r#"{"type": "execute", "payload": {"cmd": "echo", "args": ["hi"]}}"#);
    assert_eq!(answer, json!({"type": "success", "payload": {"exit_code": 0, "stdout": "hi\n", "stderr": ""}}));
    let answer = ask(r#"{"type": "execute", "payload": {"cmd": "no-such-program"}}"#);
    assert_eq!(answer["type"], "error");
    let answer = ask(r#"{"type": "get_secrets", "payload": {"secrets": {"TOKEN": "hidden"}}}"#);
    assert_eq!(answer, json!({"type": "success", "payload": {"names": ["TOKEN"]}}));
    assert!(!ask(r#"{"type": "get_secrets"}"#).to_string().contains("hidden"));
    let answer = ask(r#"{"type": "bogus"}"#);
    assert_eq!(answer["type"], "error");
    let answer = ask("not json");
    assert_eq!(answer["type"], "error");
    // Several at once are answered in order, however long each takes.
    let all: String = (0..20)
        .map(|at| format!("{{\"cmd\": \"sh\", \"args\": [\"-c\", \"sleep 0.0{}; echo {at}\"]}}\n", 9 - at % 10))
        .collect();
    stream.write_all(all.as_bytes()).unwrap();
    for at in 0..20 {
        let answer: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(answer["stdout"], format!("{at}\n"));
    }
}

#[test]
fn two_new_peers() {
    let (_guest, mut peer) = Guest::start(&["vm_id=vm-x"]);
    let GuestMessage::Handshake(first) = peer.message() else { panic!() };
    assert_eq!((first.session, first.vm_id.as_str()), (None, "vm-x"));
    let handshake = peer.hello(json!({"upgrades": ["e2e", "frames", "future"], "epoch": 7}));
    assert_eq!(handshake.upgrades, [Upgrade::Frames], "there is no key, so no sealing");
    assert_eq!((handshake.epoch, handshake.protocol.as_deref()), (Some(7), Some("1.0")));
    assert!(handshake.boot_id.is_some() && handshake.agent_id.is_some());
    peer.send(&json!({"type": "ping", "sequence": 3}));
    assert!(matches!(peer.message(), GuestMessage::Pong(pong) if pong.sequence == 3));
    // Long ones go over several frames.
    let text = "x".repeat(900_000);
    let response = peer.ask(&json!({"type": "Exec", "id": "1", "argv": ["wc", "-c"], "input": text}));
    assert_eq!(response.stdout.trim(), "900000");
    let response = peer.ask(&json!({"type": "Exec", "id": "2", "argv": ["ls"], "epoch": 8}));
    assert_eq!(response.error.unwrap().code, ErrorCode::EpochMismatch);
}

#[test]
fn zstd_and_sealing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    std::fs::write(&path, [7u8; 32]).unwrap();
    let key = Key::from_bytes([7; 32]);
    let (guest, mut peer) = Guest::start(&[&format!("encryption.key_file={}", path.display())]);
    peer.hello_sealed(&key);
    let script = "seq 1 20000";
    peer.send(&json!({"type": "Exec", "id": "1", "command": script, "stream": 3}));
    assert!(peer.response("1").success);
    let expected = std::process::Command::new("seq").args(["1", "20000"]).output().unwrap().stdout;
    assert_eq!(peer.stream_data(3, roost_guest_proto::Channel::Output), expected);
    drop(guest);
    // Where it is required, nothing is said in the open.
    let settings = [format!("encryption.key_file={}", path.display()), "encryption.mode=required".to_owned()];
    let (_guest, mut peer) = Guest::start(&settings.each_ref().map(String::as_str));
    let GuestMessage::Handshake(_) = peer.message() else { panic!() };
    let response = peer.ask(&json!({"type": "Exec", "id": "1", "argv": ["true"]}));
    assert_eq!(response.error.unwrap().code, ErrorCode::PermissionDenied);
    peer.write(b"{\"type\":\"hello\",\"version\":\"1\",\"session\":\"s\",\"upgrades\":[\"frames\"]}\n");
    assert!(matches!(peer.message(), GuestMessage::Error(report) if report.error.code == ErrorCode::PermissionDenied));
    peer.hello_sealed(&key);
    assert!(peer.ask(&json!({"type": "Exec", "id": "1", "argv": ["true"]})).success);
}

#[test]
fn out_of_step_and_in_again() {
    let (_guest, mut peer) = Guest::start(&["commands.grace_s=1"]);
    peer.hello(json!({}));
    peer.send(&json!({"type": "Exec", "id": "old", "argv": ["sleep", "1000"], "stream": 1}));
    let GuestMessage::Progress(progress) = peer.message() else { panic!() };
    // A new daemon: half a frame of the old one is still in the agent.
    let mut half = Vec::new();
    peer.encoder.data(1, roost_guest_proto::Channel::Input, &[b'x'; 30_000], &mut half);
    peer.write(&half[..20_000]);
    let mut daemon = support::Peer::new(peer.stream.try_clone().unwrap());
    let started = Instant::now();
    daemon.write(&vec![b'\n'; MAX_FRAME + 12]);
    daemon.hello(json!({"session": "s2"}));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(daemon.ask(&json!({"type": "Exec", "id": "new", "argv": ["true"]})).success);
    // What the old one streamed to nobody ends.
    wait_for("the old command ends", || !support::is_alive(progress.pid.unwrap()));
    // The same hello once more, unheard: the same handshake, and nothing ends.
    let mut third = support::Peer::new(peer.stream.try_clone().unwrap());
    let hello = third.hello(json!({"session": "s3"}));
    let hello_again = {
        let line = json!({"type": "hello", "version": "1.0", "session": "s3", "epoch": 1, "upgrades": ["frames"], "metrics_interval_ms": 0});
        third.write(format!("{}{line}\n", "\n".repeat(MAX_FRAME + 12)).as_bytes());
        third.decoder.use_lines();
        let again = third.await_handshake("s3");
        third.decoder.use_frames(false, None);
        again
    };
    assert_eq!(hello, hello_again);
    assert!(third.ask(&json!({"type": "Exec", "id": "3", "argv": ["true"]})).success);
}

#[test]
fn the_host_comes_back() {
    let (guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({}));
    peer.send(&json!({"type": "Exec", "id": "1", "argv": ["sleep", "1000"], "stream": 1}));
    let GuestMessage::Progress(progress) = peer.message() else { panic!() };
    drop(peer);
    // Within the first back-off, about a second.
    let started = Instant::now();
    let mut peer = guest.meet();
    assert!(started.elapsed() < Duration::from_secs(5));
    let GuestMessage::Handshake(handshake) = peer.message() else { panic!() };
    assert_eq!(handshake.epoch, Some(1), "the agent is the same");
    peer.hello(json!({"session": "next"}));
    let response = peer.ask(&json!({"type": "Exec", "id": "1", "argv": ["true"]}));
    assert!(response.success, "{response:?}");
    wait_for("what was streamed to the old host ends", || !support::is_alive(progress.pid.unwrap()));
}

#[test]
fn both_ways_at_once() {
    let (guest, mut port) = Guest::start(&[]);
    let mut vsock = guest.dial();
    port.hello(json!({"session": "port"}));
    vsock.hello(json!({"session": "vsock"}));
    // The same ID on each is each one's own.
    port.send(&json!({"type": "Exec", "id": "1", "command": "sleep 0.2; echo port"}));
    vsock.send(&json!({"type": "Exec", "id": "1", "command": "echo vsock"}));
    assert_eq!(vsock.response("1").stdout, "vsock\n");
    assert_eq!(port.response("1").stdout, "port\n");
    drop(port);
    assert!(vsock.ask(&json!({"type": "Exec", "id": "2", "argv": ["true"]})).success, "one of them is enough");
}

#[test]
fn a_batch_is_answered_one_by_one() {
    let (_guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({}));
    peer.send(&json!({"type": "Batch", "commands": [
        {"type": "Exec", "id": "a", "argv": ["echo", "a"]},
        {"type": "Nonsense", "id": "b"},
        {"type": "UnsafeCommand", "id": "c", "raw_command": "echo c"},
        {"type": "Batch", "id": "d", "commands": []},
    ]}));
    assert_eq!(peer.response("a").stdout, "a\n");
    assert_eq!(peer.response("b").error.unwrap().code, ErrorCode::UnknownCommand);
    assert_eq!(peer.response("c").stdout, "c\n");
    assert_eq!(peer.response("d").error.unwrap().code, ErrorCode::InvalidMessage);
}

#[test]
fn settings_are_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.toml");
    std::fs::write(&path, "[commands]\nunsafe = true\n").unwrap();
    let listener = std::os::unix::net::UnixListener::bind(directory.path().join("port")).unwrap();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_roost-agent"))
        .arg("--config")
        .arg(&path)
        .arg("--device")
        .arg(format!("unix:{}", directory.path().join("port").display()))
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut peer = support::Peer::new(listener.accept().unwrap().0);
    assert!(peer.ask(&json!({"type": "UnsafeCommand", "id": "1", "raw_command": "true"})).success);
    let hang_up = || {
        let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    };
    std::fs::write(&path, "[commands]\nunsafe = false\n").unwrap();
    hang_up();
    let mut at = 1;
    let mut refused = |peer: &mut support::Peer| {
        at += 1;
        !peer.ask(&json!({"type": "UnsafeCommand", "id": format!("{at}"), "raw_command": "true"})).success
    };
    wait_for("the new settings hold", || refused(&mut peer));
    // A mistake changes nothing.
    std::fs::write(&path, "[commands]\nunsafe = 7\n").unwrap();
    hang_up();
    for _ in 0..20 {
        assert!(refused(&mut peer));
    }
    // And one at the start is told, and is no reason to go on.
    let output =
        std::process::Command::new(env!("CARGO_BIN_EXE_roost-agent")).arg("--config").arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("commands.unsafe"));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The agent opens no inet socket: it may not even ask for one.
#[test]
fn no_inet_socket() {
    let (guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({}));
    assert!(peer.ask(&json!({"type": "Exec", "id": "1", "argv": ["true"]})).success);
    let pid = guest.child.id();
    let inodes: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| {
            let target = std::fs::read_link(entry.unwrap().path()).ok()?.to_string_lossy().into_owned();
            Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    assert!(!inodes.is_empty(), "the port is one");
    for table in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6", "udplite", "icmp"] {
        let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")) else { continue };
        for line in text.lines().skip(1) {
            assert!(!line.split_whitespace().any(|field| inodes.iter().any(|inode| inode == field)), "{table}: {line}");
        }
    }
}
