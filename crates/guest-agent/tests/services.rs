//! Services with whatever manager runs here. Ignored, because a build machine has none; run it in a guest:
//! `ROOST_TEST_SERVICE=cron services --ignored --nocapture`.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use roost_guest_agent::platform::System;
use roost_guest_agent::run::Cancel;
use roost_guest_agent::safe::{self, Context};
use roost_guest_proto::{ErrorCode, Response, SafeCommand};
use serde_json::{Value, json};

fn run(command_type: Value) -> Response {
    let context = Context::new(System::default(), Cancel::new().unwrap(), Default::default());
    safe::run(&SafeCommand { id: "1".to_owned(), command_type, params: None, timeout: None }, &context)
}

fn control(service: &str, operation: &str) -> Value {
    let response = run(json!({"action": "ServiceControl", "service": service, "operation": operation}));
    println!("{operation}: {} ms", response.execution_time_ms);
    assert!(response.success, "{operation}: {:?}\n{}\n{}", response.error, response.stdout, response.stderr);
    response.data.unwrap()
}

#[test]
#[ignore = "needs a service manager that runs, and a service to stop (ROOST_TEST_SERVICE)"]
fn a_real_service_manager() {
    let service = std::env::var("ROOST_TEST_SERVICE").expect("ROOST_TEST_SERVICE names a service");
    let response = run(json!({"action": "ServiceList"}));
    let list = response.data.unwrap();
    println!("{}: {} services in {} ms", list["manager"], list["total"], response.execution_time_ms);
    let listed = list["services"].as_array().unwrap().iter().find(|it| it["name"] == service.as_str()).unwrap();
    assert!(!listed["description"].as_str().unwrap().is_empty(), "{listed}");
    for (operation, field, value) in [
        ("start", "state", json!("active")),
        ("stop", "state", json!("inactive")),
        ("stop", "state", json!("inactive")),
        ("restart", "state", json!("active")),
        ("status", "state", json!("active")),
        ("enable", "enabled", json!(true)),
        ("enable", "enabled", json!(true)),
        ("disable", "enabled", json!(false)),
        ("disable", "enabled", json!(false)),
        ("stop", "state", json!("inactive")),
        ("status", "state", json!("inactive")),
    ] {
        let data = control(&service, operation);
        assert_eq!(data[field], value, "{operation}: {data}");
    }
    let gone = run(json!({"action": "ServiceControl", "service": "no-such-service", "operation": "start"}));
    assert_eq!(gone.error.unwrap().code, ErrorCode::NotFound);
    let health = run(json!({"action": "RunHealthCheck", "check_name": "services"})).data.unwrap();
    assert_ne!(health["status"], "unknown", "{health}");
}
