//! A host that means harm, or breaks: the agent stays up, small and in step.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use roost_guest_proto::{Channel, ErrorCode, GuestMessage, WINDOW};
use serde_json::json;
use support::{Guest, Peer};

fn memory_kib(guest: &Guest, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", guest.child.id())).unwrap();
    status.lines().find_map(|line| line.strip_prefix(field)?.trim().split(' ').next()?.parse().ok()).unwrap()
}

fn still_works(peer: &mut Peer) {
    let response = peer.ask(&json!({"type": "Exec", "id": "works", "argv": ["echo", "it does"]}));
    assert_eq!(response.stdout, "it does\n", "{response:?}");
}

#[test]
fn a_gibibyte_without_a_newline() {
    let (guest, mut peer) = Guest::start(&[]);
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..1024 {
        peer.write(&chunk);
    }
    let sent = Instant::now();
    peer.write(b"\n");
    still_works(&mut peer);
    assert!(sent.elapsed() < Duration::from_secs(1), "{:?}", sent.elapsed());
    assert!(memory_kib(&guest, "VmHWM:") < 20 * 1024);
}

#[test]
fn texts_that_are_no_requests() {
    let (_guest, mut peer) = Guest::start(&[]);
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let texts: Vec<Vec<u8>> = vec![
        deep.into_bytes(),
        br#"{"type":"ping","type":"ping"}"#.to_vec(),
        b"{\"type\":\"\xff\xfe\"}".to_vec(),
        br#"{"type":"ping","sequence":NaN}"#.to_vec(),
        br#"{"type":"ping","sequence":-1}"#.to_vec(),
        br#"{"type":"Exec","id":7}"#.to_vec(),
        br#"{"type":"Exec","id":"x","argv":"ls"}"#.to_vec(),
        br#"{"type":"Exec","id":"x","argv":["ls"],"pty":{"rows":99999,"cols":1}}"#.to_vec(),
        b"\0\0\0".to_vec(),
        b"\xa7\x01\x00".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        format!("{{\"type\":\"{}\"}}", "y".repeat(100_000)).into_bytes(),
    ];
    for text in &texts {
        peer.write(text);
        peer.write(b"\n");
    }
    still_works(&mut peer);
    let errors = peer.others.iter().filter(|it| matches!(it, GuestMessage::Error(_))).count();
    assert!(errors >= 9, "{errors} of {}", texts.len());
}

#[test]
fn numbers_without_measure() {
    let (_guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({"metrics_interval_ms": u64::MAX}));
    for request in [
        json!({"type": "Exec", "id": "a", "argv": ["true"], "timeout_ms": u64::MAX}),
        json!({"type": "Exec", "id": "a", "argv": ["true"], "limits": {"output_bytes": u64::MAX}}),
        json!({"type": "UnsafeCommand", "id": "a", "raw_command": "true", "timeout": u64::MAX}),
    ] {
        assert!(peer.ask(&request).success);
    }
    let mut out = Vec::new();
    for _ in 0..10 {
        peer.encoder.credit(1, Channel::Output, u32::MAX, &mut out);
        peer.encoder.data(u32::MAX, Channel::Error, b"nobody's", &mut out);
    }
    peer.write(&out);
    peer.send(&json!({"type": "Subscribe", "id": "s", "interval_ms": 4_294_967_295u64}));
    still_works(&mut peer);
}

#[test]
fn more_input_than_was_granted() {
    let (_guest, mut peer) = Guest::start(&["commands.grace_s=1"]);
    peer.hello(json!({}));
    peer.send(&json!({"type": "Exec", "id": "1", "argv": ["sleep", "1000"], "stream": 1, "stdin": true}));
    peer.data(1, &vec![0; WINDOW as usize + 1]);
    let response = peer.response("1");
    assert_eq!(response.error.unwrap().code, ErrorCode::InvalidMessage);
    assert_eq!(peer.resets, [(1, 2)]);
    still_works(&mut peer);
}

/// One that asks and never reads: it is not asked for more, so memory stays, and the other host is served.
#[test]
fn one_that_never_reads() {
    let (guest, mut deaf) = Guest::start(&[]);
    let mut honest = guest.dial();
    honest.hello(json!({}));
    deaf.stream.set_nonblocking(true).unwrap();
    let request = json!({"type": "Nonsense", "id": "x".repeat(100)}).to_string() + "\n";
    let bytes = request.repeat(1000).into_bytes();
    let mut sent = 0usize;
    let mut refused = 0;
    while sent < 64 << 20 && refused < 200 {
        match deaf.stream.write(&bytes) {
            Ok(len) => sent += len,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                refused += 1;
                still_works(&mut honest);
            }
        }
    }
    assert!(refused > 0, "{sent} bytes were read for which there is no room");
    assert!(memory_kib(&guest, "VmHWM:") < 20 * 1024, "{} KiB", memory_kib(&guest, "VmHWM:"));
    // It reads at last: whole answers, none of them cut.
    deaf.stream.set_nonblocking(false).unwrap();
    let mut deaf = Peer::new(deaf.stream);
    for _ in 0..1000 {
        assert!(matches!(
            deaf.message(),
            GuestMessage::Response(_) | GuestMessage::Handshake(_) | GuestMessage::Error(_)
        ));
    }
}

#[test]
fn a_byte_at_a_time() {
    let (_guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({}));
    let mut out = Vec::new();
    let request = json!({"type": "Exec", "id": "slow", "argv": ["echo", "patience"]}).to_string();
    peer.encoder.message(request.as_bytes(), &mut out);
    for byte in out {
        peer.write(&[byte]);
    }
    assert_eq!(peer.response("slow").stdout, "patience\n");
}

#[test]
fn too_many_at_once() {
    let (_guest, mut peer) = Guest::start(&["commands.max=8"]);
    peer.hello(json!({}));
    for at in 0..12 {
        peer.send(&json!({"type": "Exec", "id": format!("{at}"), "argv": ["sleep", "1000"]}));
    }
    for at in 8..12 {
        assert_eq!(peer.response(&format!("{at}")).error.unwrap().code, ErrorCode::ResourceLimit);
    }
    let again = peer.ask(&json!({"type": "Exec", "id": "0", "argv": ["true"]}));
    assert_eq!(again.error.unwrap().code, ErrorCode::InvalidMessage, "an ID that is in use");
}

/// Noise on the line, in every form: the agent finds back to the next hello.
#[test]
fn noise_and_then_a_hello() {
    let (_guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({}));
    let mut seed = 1u64;
    for round in 0..20 {
        let mut noise = vec![0u8; 40_000];
        for byte in &mut noise {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            *byte = seed as u8;
        }
        peer.write(&noise);
        let mut next = Peer::new(peer.stream.try_clone().unwrap());
        next.write(&vec![b'\n'; 65_548]);
        next.hello(json!({"session": format!("after {round}")}));
        still_works(&mut next);
        peer = next;
    }
}

#[test]
fn connections_without_end() {
    let (guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({}));
    let idle: Vec<Peer> = (0..20).map(|_| guest.dial()).collect();
    still_works(&mut peer);
    // Those that were not taken are closed.
    let mut open = 0;
    for peer in &idle {
        peer.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        open += usize::from((&peer.stream).read(&mut [0]).is_err());
    }
    assert!(open <= 8, "{open}");
    drop(idle);
    support::wait_for("there is room again", || {
        let mut peer = guest.dial();
        peer.stream.write_all(b"{\"cmd\":\"true\"}\n").is_ok()
            && matches!(peer.stream.read(&mut [0; 100]), Ok(len) if len > 0)
    });
}
