//! What threads of the agent do: metrics, safe commands, a new identity; and that a quiet agent is quiet.

mod support;

use std::time::{Duration, Instant};

use roost_guest_proto::{CommandType, ErrorCode, GuestMessage};
use serde_json::json;
use support::Guest;

#[test]
fn metrics_as_they_are_asked_for() {
    let (_guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({}));
    peer.send(&json!({"type": "Metrics", "id": "m", "groups": ["memory", "system"]}));
    let GuestMessage::Metrics(metrics) = peer.message() else { panic!() };
    assert_eq!(metrics.id.as_deref(), Some("m"));
    let system = &metrics.data["system"];
    assert!(system["memory"]["total_kb"].as_u64().unwrap() > 0, "{system}");
    assert!(system["system"]["uptime_seconds"].as_u64().unwrap() > 0);
    assert!(system.get("cpu").is_none_or(serde_json::Value::is_null), "it was not asked for");
    peer.send(&json!({"type": "Metrics", "groups": ["nonsense"]}));
    assert!(matches!(peer.message(), GuestMessage::Error(report) if report.error.code == ErrorCode::InvalidMessage));
}

#[test]
fn a_subscription_streams_at_a_second() {
    let (_guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({}));
    let response = peer.ask(&json!({"type": "Subscribe", "id": "s", "interval_ms": 1, "groups": ["cpu"]}));
    assert_eq!(response.data.unwrap()["interval_ms"], 1000, "no faster than the least");
    let started = Instant::now();
    for _ in 0..3 {
        let GuestMessage::Metrics(metrics) = peer.message() else { panic!() };
        assert!(metrics.data["system"]["cpu"]["usage_percent"].is_number(), "{}", metrics.data);
    }
    assert!(started.elapsed() >= Duration::from_millis(1900) && started.elapsed() < Duration::from_secs(10));
    assert!(peer.ask(&json!({"type": "Subscribe", "id": "s", "interval_ms": 0})).success);
    peer.stream.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    let quiet = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        loop {
            assert!(!matches!(peer.message(), GuestMessage::Metrics(_)), "a frame after the end");
        }
    }));
    let reason = quiet.unwrap_err();
    let reason = reason.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(reason.contains("says nothing"), "{reason}");
}

#[test]
fn an_old_host_has_metrics_without_asking() {
    let (_guest, mut peer) = Guest::start(&["metrics.interval_s=1"]);
    assert!(matches!(peer.message(), GuestMessage::Handshake(_)));
    let GuestMessage::Metrics(metrics) = peer.message() else { panic!() };
    for group in ["cpu", "memory", "disk", "network", "system", "processes"] {
        assert!(!metrics.data["system"][group].is_null(), "{group}");
    }
    assert!(matches!(peer.message(), GuestMessage::Metrics(_)));
}

#[test]
fn safe_commands() {
    let (_guest, mut peer) = Guest::start(&["commands.unsafe=false"]);
    peer.hello(json!({}));
    let response =
        peer.ask(&json!({"type": "SafeCommand", "id": "1", "command_type": {"action": "OsInfo"}, "timeout": 20}));
    assert!(response.success && response.command_type == CommandType::Safe, "{response:?}");
    assert!(response.data.is_some());
    let response = peer.ask(&json!({"type": "SafeCommand", "id": "2", "command_type": {"action": "ServiceControl", "service": "a; reboot", "operation": "status"}}));
    assert_eq!(response.error.unwrap().code, ErrorCode::InvalidMessage);
    let response = peer.ask(&json!({"type": "SafeCommand", "id": "3", "command_type": {"action": "Nonsense"}}));
    assert!(!response.success);
}

#[test]
fn a_new_identity_is_a_new_epoch() {
    let (_guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({"epoch": 4}));
    let response = peer.ask(&json!({"type": "Identity", "id": "1"}));
    assert_eq!(response.error.unwrap().code, ErrorCode::InvalidMessage, "it says no epoch");
    // Nothing but the epoch changes here: this is the machine that runs the tests.
    let response = peer.ask(&json!({"type": "Identity", "id": "2", "epoch": 5}));
    assert!(response.success, "{response:?}");
    assert_eq!(response.epoch, Some(5));
    let response = peer.ask(&json!({"type": "Exec", "id": "3", "argv": ["true"], "epoch": 4}));
    assert_eq!(response.error.unwrap().code, ErrorCode::EpochMismatch);
    assert!(peer.ask(&json!({"type": "Exec", "id": "4", "argv": ["true"], "epoch": 5})).success);
    // A host that comes later hears it.
    let handshake = {
        peer.write(&vec![b'\n'; 65_548]);
        peer.encoder.reset();
        peer.decoder.use_lines();
        peer.hello(json!({"session": "later", "epoch": 5}))
    };
    assert_eq!(handshake.epoch, Some(5));
}

/// With nothing to do, it does nothing: not one wake-up.
#[test]
fn an_idle_agent_sleeps() {
    let (guest, mut peer) = Guest::start(&[]);
    peer.hello(json!({}));
    assert!(peer.ask(&json!({"type": "Exec", "id": "1", "argv": ["true"]})).success);
    let switches = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", guest.child.id())).unwrap();
        let count = |name: &str| -> u64 {
            status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap()
        };
        count("voluntary_ctxt_switches:") + count("nonvoluntary_ctxt_switches:")
    };
    // Whatever the last request left to do is done when nothing changes any more.
    support::wait_for("it settles", || {
        let before = switches();
        std::thread::sleep(Duration::from_millis(200));
        switches() == before
    });
    let before = switches();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(switches(), before);
}
