//! Programs, over the real agent.

mod support;

use std::time::{Duration, Instant};

use roost_guest_proto::{Channel, CommandType, ErrorCode, GuestMessage};
use serde_json::json;
use support::{Guest, is_alive, wait_for};

#[test]
fn output_exit_code_and_signal() {
    let (_guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({}));
    let response =
        peer.ask(&json!({"type": "Exec", "id": "1", "argv": ["sh", "-c", "echo out; echo err >&2; exit 3"]}));
    assert_eq!((response.exit_code, response.success), (Some(3), false));
    assert_eq!((response.stdout.as_str(), response.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!((response.command_type, response.epoch), (CommandType::Unsafe, Some(1)));
    let response = peer.ask(&json!({"type": "Exec", "id": "2", "command": "kill -9 $$"}));
    assert_eq!((response.exit_code, response.signal, response.success), (None, Some(9), false));
    let response = peer.ask(&json!({"type": "Exec", "id": "3", "argv": ["cat"], "input": "x".repeat(300_000)}));
    assert_eq!((response.success, response.stdout.len() as u64 + response.stdout_truncated), (true, 300_000));
    let response = peer.ask(&json!({"type": "Exec", "id": "4", "argv": ["cat"]}));
    assert!(response.success, "without input it reads the end at once");
}

#[test]
fn surroundings() {
    let (_guest, mut peer) = Guest::start(&["env@LEAK=from the agent"]);
    peer.hello(json!({}));
    let response = peer.ask(&json!({"type": "Exec", "id": "1", "argv": ["/bin/sh", "-c", "pwd; env | sort; echo fds; ls /proc/self/fd | wc -l; cat /proc/self/status | grep SigBlk"],
        "cwd": "/tmp", "env": {"A": "b"}, "secrets": {"TOKEN": "hidden"}}));
    let lines: Vec<&str> = response.stdout.lines().collect();
    assert_eq!(lines[0], "/tmp");
    for expected in ["A=b", "TOKEN=hidden", "TERM=dumb", "LANG=C.UTF-8"] {
        assert!(lines.contains(&expected), "{expected} in {lines:?}");
    }
    assert!(!response.stdout.contains("LEAK"), "{lines:?}");
    // Its three, and the one with which ls reads the directory.
    assert_eq!(lines[lines.len() - 2].trim(), "4");
    assert!(lines.last().unwrap().ends_with("0000000000000000"), "{lines:?}");
}

#[test]
fn another_user() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can run programs as somebody else");
        return;
    }
    let (_guest, mut peer) = Guest::start(&["commands.user=nobody"]);
    peer.hello(json!({}));
    let response = peer.ask(&json!({"type": "Exec", "id": "1", "argv": ["id", "-un"]}));
    assert_eq!(response.stdout, "nobody\n");
    let response = peer.ask(&json!({"type": "Exec", "id": "2", "argv": ["sh", "-c", "id -u; id -G; grep CapEff /proc/self/status"], "user": "1234"}));
    assert_eq!(response.stdout, "1234\n1234\nCapEff:\t0000000000000000\n");
    let response = peer.ask(&json!({"type": "Exec", "id": "3", "argv": ["id"], "user": "nobody-here"}));
    assert_eq!(response.error.unwrap().code, ErrorCode::NotFound);
}

#[test]
fn what_cannot_start_says_why() {
    let (_guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({}));
    let mut code = |request: serde_json::Value| {
        let response = peer.ask(&request);
        assert!(!response.success);
        response.error.unwrap().code
    };
    assert_eq!(code(json!({"type": "Exec", "id": "1", "argv": ["no-such-program"]})), ErrorCode::NotFound);
    assert_eq!(code(json!({"type": "Exec", "id": "2", "argv": ["/etc/passwd"]})), ErrorCode::PermissionDenied);
    assert_eq!(code(json!({"type": "Exec", "id": "3", "argv": ["ls"], "cwd": "/no/such"})), ErrorCode::NotFound);
    assert_eq!(code(json!({"type": "Exec", "id": "4"})), ErrorCode::InvalidMessage);
    assert_eq!(code(json!({"type": "Exec", "id": "5", "argv": ["ls"], "timeout_ms": 0})), ErrorCode::InvalidMessage);
    assert_eq!(code(json!({"type": "Exec", "id": "6", "argv": ["ls"], "stdin": true})), ErrorCode::InvalidMessage);
    assert_eq!(code(json!({"type": "Exec", "id": "7", "argv": ["ls"], "stream": 0})), ErrorCode::InvalidMessage);
    assert_eq!(code(json!({"type": "Exec", "id": "8", "argv": ["ls"], "epoch": 9})), ErrorCode::EpochMismatch);
    assert_eq!(code(json!({"type": "Exec", "id": "9", "argv": ["ls"], "held_secrets": ["X"]})), ErrorCode::NotFound);
    // The agent is none the worse for it.
    assert!(peer.ask(&json!({"type": "Exec", "id": "10", "argv": ["true"]})).success);
}

#[test]
fn policy_narrows() {
    let (guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({"policy": {"unsafe_commands": false}}));
    for request in [
        json!({"type": "Exec", "id": "1", "argv": ["true"]}),
        json!({"type": "UnsafeCommand", "id": "2", "raw_command": "true"}),
    ] {
        assert_eq!(peer.ask(&request).error.unwrap().code, ErrorCode::PermissionDenied);
    }
    drop(guest);
    let (_guest, mut peer) = Guest::start(&["commands.unsafe=false"]);
    let handshake = peer.hello(json!({"policy": {"unsafe_commands": true}}));
    assert!(!handshake.capabilities.contains(&"exec".to_owned()));
    let response = peer.ask(&json!({"type": "Exec", "id": "1", "argv": ["true"]}));
    assert_eq!(response.error.unwrap().code, ErrorCode::PermissionDenied);
}

#[test]
fn a_time_limit_ends_all_that_was_started() {
    let (_guest, mut peer) = Guest::start(&["commands.grace_s=1"]);
    peer.hello(json!({}));
    // One that takes no notice of SIGTERM, in the group; and one that left the group, and the session, as daemons do.
    let script = "trap '' TERM; echo $$; sleep 1000 & echo $!; setsid sh -c 'sleep 1000 & echo $!; exec >/dev/null 2>&1; wait' & sleep 0.3; wait";
    let started = Instant::now();
    let response = peer.ask(&json!({"type": "Exec", "id": "1", "command": script, "timeout_ms": 700}));
    assert_eq!(response.error.as_ref().unwrap().code, ErrorCode::CommandTimeout, "{response:?}");
    assert_eq!(response.signal, Some(9));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let pids: Vec<u32> = response.stdout.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(pids.len(), 3, "{response:?}");
    for pid in pids {
        wait_for("the program ends", || !is_alive(pid));
    }
}

#[test]
fn who_heeds_sigterm_has_its_grace_and_no_more() {
    let (_guest, mut peer) = Guest::start(&["commands.grace_s=20"]);
    peer.hello(json!({}));
    let started = Instant::now();
    let script = "trap 'echo cleaned; exit 7' TERM; echo up; while :; do sleep 0.05; done";
    let response = peer.ask(&json!({"type": "Exec", "id": "1", "command": script, "timeout_ms": 500}));
    assert_eq!((response.exit_code, response.stdout.as_str()), (Some(7), "up\ncleaned\n"));
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn what_is_left_behind_holds_up_nothing() {
    let (_guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({}));
    let response = peer.ask(&json!({"type": "Exec", "id": "1", "command": "sleep 60 & echo $!"}));
    assert!(response.success && response.execution_time_ms < 20_000, "{response:?}");
    let pid: u32 = response.stdout.trim().parse().unwrap();
    assert!(is_alive(pid), "a service that a command started goes on");
    assert!(peer.ask(&json!({"type": "Exec", "id": "2", "argv": ["kill", pid.to_string()]})).success);
    // The agent is its parent by now, and waits for it.
    wait_for("the process is waited for", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn cancel_and_signal() {
    let (_guest, mut peer) = Guest::start(&["commands.grace_s=1"]);
    peer.hello(json!({}));
    peer.send(&json!({"type": "Exec", "id": "run", "argv": ["sleep", "1000"]}));
    assert!(peer.ask(&json!({"type": "Signal", "id": "s", "target": "run", "signal": "USR1"})).success);
    assert_eq!(peer.response("run").signal, Some(10));
    peer.send(&json!({"type": "Exec", "id": "run", "argv": ["sleep", "1000"]}));
    let refused = peer.ask(&json!({"type": "Signal", "id": "s", "target": "run", "signal": "NOPE"}));
    assert_eq!(refused.error.unwrap().code, ErrorCode::InvalidMessage);
    assert!(peer.ask(&json!({"type": "Cancel", "id": "c", "target": "run"})).success);
    assert_eq!(peer.response("run").error.unwrap().code, ErrorCode::Cancelled);
    let refused = peer.ask(&json!({"type": "Cancel", "id": "c", "target": "run"}));
    assert_eq!(refused.error.unwrap().code, ErrorCode::NotFound);
}

#[test]
fn ten_gibibytes_of_output_cost_their_limit() {
    let (guest, mut peer) = Guest::start(&["commands.grace_s=1"]);
    peer.hello(json!({}));
    let script = "head -c 10G /dev/zero | tr '\\0' x; echo; echo the end";
    peer.send(
        &json!({"type": "Exec", "id": "big", "command": script, "timeout_ms": 3000, "limits": {"output_bytes": 1000}}),
    );
    // Meanwhile the others are served.
    let mut slowest = Duration::ZERO;
    for at in 0..20 {
        let started = Instant::now();
        assert!(peer.ask(&json!({"type": "Exec", "id": format!("{at}"), "argv": ["true"]})).success);
        slowest = slowest.max(started.elapsed());
    }
    let response = peer.response("big");
    assert!(response.stdout.len() <= 1000 && response.stdout_truncated > 1 << 20, "{}", response.stdout_truncated);
    let status = std::fs::read_to_string(format!("/proc/{}/status", guest.child.id())).unwrap();
    let peak: u64 =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse().ok()).unwrap();
    assert!(peak < 20 * 1024, "{peak} KiB");
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

#[test]
fn limits_hold() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: cgroups are root's");
        return;
    }
    let (_guest, mut peer) = Guest::start(&["commands.grace_s=1"]);
    peer.hello(json!({}));
    // A fork bomb, bounded in time too.
    let bomb = "f() { f | f & }; f; sleep 30";
    let started = Instant::now();
    let response =
        peer.ask(&json!({"type": "Exec", "id": "1", "command": bomb, "timeout_ms": 1500, "limits": {"processes": 20}}));
    assert!(!response.success && started.elapsed() < Duration::from_secs(15), "{response:?}");
    assert!(peer.ask(&json!({"type": "Exec", "id": "2", "argv": ["true"]})).success);
    let eater = "x=a; while :; do x=$x$x; done";
    let response = peer.ask(&json!({"type": "Exec", "id": "3", "command": eater, "timeout_ms": 20000, "limits": {"memory_bytes": 50_000_000}}));
    assert!(!response.success && response.error.is_none(), "it is out of memory before its time is up: {response:?}");
}

#[test]
fn a_stream_carries_input_and_output() {
    let (_guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({}));
    peer.send(&json!({"type": "Exec", "id": "1", "argv": ["sh", "-c", "echo ready; cat; echo err >&2; exit 5"], "stream": 7, "stdin": true}));
    let GuestMessage::Progress(progress) = peer.message() else { panic!() };
    assert!(is_alive(progress.pid.unwrap()));
    while peer.stream_data(7, Channel::Output) != b"ready\n" {
        peer.step();
    }
    let bytes: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    let (mut left, mut rest) = (u64::from(roost_guest_proto::WINDOW), bytes.as_slice());
    while !rest.is_empty() {
        left += peer.credit.remove(&7).unwrap_or(0);
        let len = rest.len().min(left as usize).min(32 * 1024);
        if len == 0 {
            peer.step();
            continue;
        }
        peer.data(7, &rest[..len]);
        (rest, left) = (&rest[len..], left - len as u64);
    }
    peer.end(7);
    let response = peer.response("1");
    assert_eq!((response.exit_code, response.stdout.as_str()), (Some(5), ""));
    assert_eq!(&peer.stream_data(7, Channel::Output)[6..], bytes);
    assert_eq!(peer.stream_data(7, Channel::Error), b"err\n");
    assert_eq!(peer.ended.len(), 2, "both channels ended before the answer");
    // The number is free again.
    assert!(peer.ask(&json!({"type": "Exec", "id": "2", "argv": ["true"], "stream": 7})).success);
}

#[test]
fn a_terminal() {
    let (_guest, mut peer) = Guest::start(&["commands.grace_s=1"]);
    peer.hello(json!({}));
    peer.send(&json!({"type": "Exec", "id": "1", "argv": ["sh"], "stream": 1, "stdin": true,
        "pty": {"rows": 31, "cols": 97, "term": "vt100"}}));
    let seen = |peer: &mut support::Peer, text: &str| {
        while !String::from_utf8_lossy(peer.stream_data(1, Channel::Output)).contains(text) {
            peer.step();
        }
    };
    peer.data(1, b"stty size; echo $TERM; tty\n");
    seen(&mut peer, "31 97");
    seen(&mut peer, "vt100");
    seen(&mut peer, "/dev/pts/");
    assert!(peer.ask(&json!({"type": "Resize", "id": "r", "target": "1", "rows": 50, "cols": 132})).success);
    peer.data(1, b"stty size\n");
    seen(&mut peer, "50 132");
    // Job control, and a key that becomes a signal: so the terminal is its own.
    peer.data(1, b"trap 'echo caught' INT; sleep 100\n");
    wait_for("sleep runs", || {
        let pids = std::process::Command::new("ps").args(["-eo", "args"]).output().unwrap();
        String::from_utf8_lossy(&pids.stdout).lines().any(|line| line == "sleep 100")
    });
    peer.data(1, &[3]);
    seen(&mut peer, "caught");
    peer.data(1, b"exit 9\n");
    assert_eq!(peer.response("1").exit_code, Some(9));
    // The end of its input ends a shell.
    peer.send(&json!({"type": "Exec", "id": "2", "argv": ["sh"], "stream": 2, "stdin": true, "pty": {"rows": 24, "cols": 80}}));
    peer.end(2);
    assert!(peer.response("2").success);
    // And a shell that ignores SIGTERM ends by its time limit all the same.
    let response = peer.ask(&json!({"type": "Exec", "id": "3", "command": "trap '' TERM HUP; sleep 1000", "stream": 3, "pty": {"rows": 24, "cols": 80}, "timeout_ms": 300}));
    assert_eq!(response.error.unwrap().code, ErrorCode::CommandTimeout);
}

#[test]
fn a_reader_that_never_drains_stops_its_own_stream_only() {
    let (guest, mut peer) = Guest::start(&["commands.grace_s=1"]);
    peer.hello(json!({}));
    peer.generous = false;
    peer.send(&json!({"type": "Exec", "id": "big", "argv": ["cat", "/dev/zero"], "stream": 1}));
    for at in 0..50 {
        let response = peer.ask(&json!({"type": "Exec", "id": format!("{at}"), "argv": ["true"]}));
        assert!(response.success, "{response:?}");
    }
    while peer.stream_data(1, Channel::Output).len() < roost_guest_proto::WINDOW as usize {
        peer.step();
    }
    assert!(peer.ask(&json!({"type": "Exec", "id": "x", "argv": ["true"]})).success);
    assert_eq!(peer.stream_data(1, Channel::Output).len(), roost_guest_proto::WINDOW as usize);
    let mut out = Vec::new();
    peer.encoder.reset_stream(1, roost_guest_proto::ResetCode::Cancelled, &mut out);
    peer.write(&out);
    assert_eq!(peer.response("big").error.unwrap().code, ErrorCode::Cancelled);
    drop(guest);
}

#[test]
fn sixty_four_streams_share_fairly() {
    let (_guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({}));
    for stream in 1..=64u32 {
        peer.send(&json!({"type": "Exec", "id": format!("{stream}"), "argv": ["cat", "/dev/zero"], "stream": stream}));
    }
    // Once all of them speak, none is far behind. (Each has sent a window before any grant can make a difference.)
    let total = |peer: &support::Peer| peer.data.values().map(Vec::len).sum::<usize>();
    let started: usize = 64 * 512 * 1024;
    while total(&peer) < started || peer.data.len() < 64 {
        peer.step();
        for data in peer.data.values_mut().filter(|data| data.len() > 64 << 20) {
            data.clear();
        }
    }
    let before: Vec<usize> = (1..=64).map(|stream| peer.stream_data(stream, Channel::Output).len()).collect();
    let goal = total(&peer) + (64 << 20);
    while total(&peer) < goal {
        peer.step();
    }
    let gained: Vec<usize> = (1..=64u32)
        .map(|stream| peer.stream_data(stream, Channel::Output).len() - before[stream as usize - 1])
        .collect();
    let (least, most) = (gained.iter().min().unwrap(), gained.iter().max().unwrap());
    assert!(least * 3 > *most, "the least got {least}, the most {most}");
    // A message does not wait behind them.
    let asked = Instant::now();
    peer.send(&json!({"type": "ping", "sequence": 4}));
    loop {
        if peer.others.iter().any(|it| matches!(it, GuestMessage::Pong(ping) if ping.sequence == 4)) {
            break;
        }
        peer.step();
    }
    assert!(asked.elapsed() < Duration::from_secs(10));
}
