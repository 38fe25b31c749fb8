//! The messages as they look on the wire: the first agents' shapes exactly, and our own.
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use roost_guest_proto::{Envelope, ErrorCode, Exec, GuestMessage, Pty, Request, Response, Secret};
use serde_json::{Value, json};

fn parse(value: Value) -> Envelope {
    Envelope::parse(value.to_string().as_bytes()).unwrap()
}

fn refused(text: &str) -> (Option<String>, ErrorCode, String) {
    let error = Envelope::parse(text.as_bytes()).unwrap_err();
    (error.id, error.error.code, error.error.message)
}

#[test]
fn the_first_agents_requests() {
    let safe = json!({"type": "SafeCommand", "id": "1", "command_type": {"action": "ServiceList"}, "params": null, "timeout": 30});
    let Request::SafeCommand(command) = parse(safe).request else { panic!() };
    assert_eq!((command.command_type["action"].as_str(), command.timeout), (Some("ServiceList"), Some(30)));

    let raw = json!({"type": "UnsafeCommand", "id": "2", "raw_command": "ls", "shell": "bash", "timeout": 5,
                     "working_dir": "/", "env_vars": {"A": "b"}});
    let Request::UnsafeCommand(command) = parse(raw).request else { panic!() };
    assert_eq!(command.env_vars.unwrap()["A"], "b");
    assert!(matches!(parse(json!({"type": "Metrics"})).request, Request::Metrics(_)));
    let alive = json!({"type": "keep_alive_response", "sequence_number": 4, "timestamp": "t"});
    assert!(matches!(parse(alive).request, Request::KeepAliveResponse(alive) if alive.sequence_number == 4));
    assert!(matches!(parse(json!({"cmd": "ls"})).request, Request::Legacy(_)));
    assert!(matches!(parse(json!({"type": "shutdown", "payload": {}})).request, Request::Legacy(_)));
}

#[test]
fn what_is_sent_is_what_is_parsed() {
    let exec = Exec {
        id: "x".into(),
        argv: vec!["true".into()],
        secrets: [("TOKEN".to_owned(), Secret::new("hidden".into()))].into(),
        pty: Some(Pty { rows: 24, cols: 80, term: None }),
        stream: Some(7),
        ..Exec::default()
    };
    let sent = Envelope { request: Request::Exec(exec.into()), epoch: Some(3), traceparent: Some("00-a-b-01".into()) };
    assert_eq!(Envelope::parse(&sent.to_json()).unwrap(), sent);
    assert!(!format!("{sent:?}").contains("hidden"));
}

#[test]
fn hellos_and_handshakes_say_each_thing_once() {
    let hello = json!({"type": "hello", "version": "1.0", "session": "n", "epoch": 3, "upgrades": ["frames"]});
    let parsed = parse(hello);
    assert_eq!(Envelope::parse(&parsed.to_json()).unwrap(), parsed);
    let handshake = json!({"type": "handshake", "timestamp": "t", "vm_id": "x", "version": "1", "platform": "linux",
                           "later": 1});
    let parsed = GuestMessage::parse(handshake.to_string().as_bytes()).unwrap();
    assert_eq!(GuestMessage::parse(&parsed.to_json()).unwrap(), parsed);
    let GuestMessage::Handshake(handshake) = parsed else { panic!() };
    assert_eq!(handshake.other.into_keys().collect::<Vec<_>>(), ["later"]);
}

#[test]
fn a_refusal_names_the_request_and_the_field() {
    let (id, code, message) = refused(r#"{"type":"Exec","id":"7","argv":"ls"}"#);
    assert_eq!((id.as_deref(), code), (Some("7"), ErrorCode::InvalidMessage));
    assert!(message.starts_with("Exec: "), "{message}");
    let (id, code, message) = refused(r#"{"type":"Exce","id":"7"}"#);
    assert_eq!(
        (id.as_deref(), code, message.as_str()),
        (Some("7"), ErrorCode::UnknownCommand, "no request has the type \"Exce\"")
    );
    let (_, code, _) = refused(r#"{"id":"7"}"#);
    assert_eq!(code, ErrorCode::InvalidMessage);
    let (id, _, message) = refused(&format!(r#"{{"type":"Thaw","id":"{}"}}"#, "x".repeat(200)));
    assert_eq!(id, None);
    assert!(message.contains("128"), "{message}");
    assert_eq!(refused(r#"{"type":"Thaw","id":"1","epoch":-1}"#).2, "epoch: a whole number from 0");
    assert_eq!(refused("[]").2, "a request is an object");
    assert_eq!(refused(r#"{"type":"Thaw","id":"1","id":"2"}"#).0, None);
}

#[test]
fn a_batch_is_its_parts() {
    let batch = json!({"type": "Batch", "epoch": 2, "commands": [
        {"type": "Thaw", "id": "a"}, {"type": "Batch", "commands": []}, {"type": "Nope", "id": "b"},
    ]});
    let Request::Batch(batch) = parse(batch).request else { panic!() };
    assert_eq!(batch.commands[0].as_ref().unwrap().epoch, Some(2));
    assert!(batch.commands[1].is_err());
    assert_eq!(batch.commands[2].as_ref().unwrap_err().id.as_deref(), Some("b"));
    let many: Vec<_> = (0..101).map(|id| json!({"type": "Thaw", "id": id.to_string()})).collect();
    let (_, _, message) = refused(&json!({"type": "Batch", "commands": many}).to_string());
    assert!(message.contains("101"), "{message}");
}

#[test]
fn a_response_with_and_without_its_type() {
    let text = r#"{"id":"1","success":true,"exit_code":0,"stdout":"a","stderr":"","execution_time_ms":5,"command_type":"unsafe"}"#;
    let GuestMessage::Response(response) = GuestMessage::parse(text.as_bytes()).unwrap() else { panic!() };
    assert_eq!((response.stdout.as_str(), response.exit_code), ("a", Some(0)));
    let sent = GuestMessage::from(Response::success("1")).to_json();
    let expected = json!({"type": "response", "id": "1", "success": true, "stdout": "", "stderr": "",
                          "execution_time_ms": 0, "command_type": "safe"});
    assert_eq!(serde_json::from_slice::<Value>(&sent).unwrap(), expected);
}

#[test]
fn what_no_guest_says() {
    for text in ["{}", "[]", "1", r#"{"type":"hello"}"#, r#"{"type":7}"#, r#"{"type":"response"}"#, r#"{"id":"1"}"#] {
        assert!(GuestMessage::parse(text.as_bytes()).is_err(), "{text}");
    }
}
