use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::ErrorCode;

fn parse(value: Value) -> Result<SafeAction, ErrorBody> {
    SafeAction::parse(&value, None)
}

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJH0bUk3lTAlOEoQh7fPZEsOd3rsSkbgqDYmnl5VQIFu someone@example";

#[test]
fn the_first_agents_actions() {
    for (value, name) in [
        (json!({"action": "ServiceList"}), "ServiceList"),
        (json!({"action": "ServiceControl", "service": "ssh.service", "operation": "restart"}), "ServiceControl"),
        (json!({"action": "PackageInstall", "package": "g++"}), "PackageInstall"),
        (json!({"action": "PackageRemove", "package": "libc6:i386"}), "PackageRemove"),
        (json!({"action": "PackageUpdate", "package": "git"}), "PackageUpdate"),
        (json!({"action": "PackageSearch", "query": "python3.11"}), "PackageSearch"),
        (json!({"action": "ProcessList", "limit": 4294967295u32}), "ProcessList"),
        (json!({"action": "ProcessKill", "pid": 77, "force": null}), "ProcessKill"),
        (json!({"action": "ProcessTop", "limit": 5, "sort_by": "memory"}), "ProcessTop"),
        (json!({"action": "RunHealthCheck", "check_name": "disk_space"}), "RunHealthCheck"),
        (json!({"action": "CheckDiskSpace", "warning_threshold": 80, "critical_threshold": 90.5}), "CheckDiskSpace"),
        (json!({"action": "DiskCleanup", "drive": "/", "targets": ["tmp", "journal"]}), "DiskCleanup"),
        (json!({"action": "GetUpdateHistory", "days": 30}), "GetUpdateHistory"),
        (json!({"action": "GetApplicationDetails", "app_id": "x"}), "GetApplicationDetails"),
    ] {
        let action = parse(value.clone()).unwrap_or_else(|error| panic!("{value}: {error}"));
        assert_eq!(action.name(), name);
        assert_eq!(parse(action.to_value()).unwrap(), action, "and back");
    }
}

#[test]
fn errors_name_the_field_the_nearest_and_what_is_permitted() {
    let error = parse(json!({"action": "ProcessKill", "pid": 1, "forse": true})).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidMessage);
    assert_eq!(
        error.message,
        r#""forse" is no field of ProcessKill; "force" is the nearest; permitted: pid, force, start_time"#
    );
    let error = parse(json!({"action": "ServiceLst"})).unwrap_err();
    assert_eq!(error.code, ErrorCode::UnknownCommand);
    assert_eq!(error.details.unwrap()["nearest"], "ServiceList");
    let error = parse(json!({"action": "ServiceControl", "service": "ssh"})).unwrap_err();
    assert_eq!(
        (error.message.as_str(), error.details.unwrap()["field"].as_str()),
        ("operation: missing", Some("operation"))
    );
    let error = parse(json!({"action": "ServiceControl", "service": "a b", "operation": "stop"})).unwrap_err();
    assert!(error.message.starts_with(r#"service: "a b" is not permitted: 1 to 200 of A-Z"#), "{error}");
    let error = parse(json!({"action": "ServiceControl", "service": "a", "operation": "explode"})).unwrap_err();
    assert!(error.message.contains("`start`"), "{error}");
    for value in [json!("ServiceList"), json!({}), json!({"action": 1}), json!(null)] {
        assert_eq!(parse(value).unwrap_err().code, ErrorCode::InvalidMessage);
    }
}

#[test]
fn params_add_fields_and_contradict_none() {
    let command = json!({"action": "ProcessKill", "pid": 5});
    let action = SafeAction::parse(&command, Some(&json!({"force": true, "pid": 5}))).unwrap();
    assert_eq!(action, SafeAction::ProcessKill { pid: 5, force: Some(true), start_time: None });
    let error = SafeAction::parse(&command, Some(&json!({"pid": 6}))).unwrap_err();
    assert_eq!(error.details.unwrap()["field"], "params.pid");
    assert!(SafeAction::parse(&command, Some(&json!([1]))).is_err());
    assert!(SafeAction::parse(&command, Some(&json!({"other": 1}))).is_err());
}

#[test]
fn hostile_names_are_refused() {
    for text in ["", "-y", "--root=/", "a b", "a;b", "a\nb", "../x", "a/b", "$(id)", "ünit", "a\0", "a*", "a?", "a[b]"]
    {
        assert!(text.parse::<ServiceName>().is_err(), "{text:?}");
        assert!(text.parse::<PackageName>().is_err(), "{text:?}");
        assert!(text.parse::<PackageVersion>().is_err(), "{text:?}");
        assert!(text.parse::<SearchQuery>().is_err(), "{text:?}");
        assert!(text.parse::<UserName>().is_err(), "{text:?}");
        assert!(text.parse::<Hostname>().is_err(), "{text:?}");
    }
    for text in ["git-", "git=1", "git/sid", "a:b:c", "a:", "@group"] {
        assert!(text.parse::<PackageName>().is_err(), "{text:?}");
    }
    for text in ["a..b", ".a", "a.", "-a", "a-", "a_b", &"a".repeat(64), "a:b"] {
        assert!(text.parse::<Hostname>().is_err(), "{text:?}");
    }
    for text in ["a:b", "0", "root:x"] {
        assert!(text.parse::<UserName>().is_err(), "{text:?}");
    }
    assert!("web-1.example.org".parse::<Hostname>().is_ok());
    assert!("machine$".parse::<UserName>().is_ok());
}

#[test]
fn a_public_key_is_one_line_without_options() {
    let key: SshKey = KEY.parse().unwrap();
    assert_eq!((key.kind(), key.comment(), key.blob().len()), ("ssh-ed25519", "someone@example", 51));
    for text in [
        "",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        &format!("command=\"sh\" {KEY}"),
        &format!("{KEY}\nssh-rsa AAAA"),
        &KEY.replace("ssh-ed25519 ", "ssh-rsa "),
        &format!("{KEY}\u{7f}"),
    ] {
        assert!(text.parse::<SshKey>().is_err(), "{text:?}");
    }
}

#[test]
fn a_password_is_not_shown() {
    let action = parse(json!({"action": "UserSetPassword", "user": "root", "password": "hunter2"})).unwrap();
    assert!(!format!("{action:?}").contains("hunter2"));
    assert_eq!(action.to_audit(), json!({"action": "UserSetPassword", "user": "root", "password": "(withheld)"}));
    assert_eq!(action.to_value()["password"], "hunter2");
    assert!(!action.only_reads());
}

proptest! {
    /// Whatever the value is, it is an action or an error of bounded size.
    #[test]
    fn any_value_is_answered(
        action in prop_oneof![".{0,80}", proptest::sample::select(SafeAction::NAMES).prop_map(str::to_owned)],
        field in prop_oneof![".{0,2000}", Just("package".to_owned()), Just("pid".to_owned()), Just("query".to_owned())],
        text in ".{0,2000}",
    ) {
        if let Err(error) = parse(json!({"action": action, field: text})) {
            prop_assert!(error.message.len() < 4096, "{}", error.message);
        }
    }
}
