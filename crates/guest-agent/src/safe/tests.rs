use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;

/// A directory that stands for a system, with programs that stand for its own. They are there for their faults: what
/// the real ones do is tested with the real ones.
struct Guest {
    root: tempfile::TempDir,
    context: Context,
}

impl Guest {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("fake")).unwrap();
        let path = [root.path().join("fake"), PathBuf::from("/usr/bin"), PathBuf::from("/bin")];
        let system = System::new(root.path(), path.into());
        Self { root, context: Context::new(system, Cancel::new().unwrap(), Arc::default()) }
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn program(&self, name: &str, script: &str) {
        self.file(&format!("fake/{name}"), &format!("#!/bin/sh\n{script}\n"));
        let file = self.root.path().join("fake").join(name);
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn systemd(script: &str) -> Self {
        let guest = Self::new();
        guest.file("run/systemd/system/x", "");
        guest.program("systemctl", script);
        guest
    }

    fn run(&self, command_type: Value) -> Response {
        self.run_for(command_type, None)
    }

    fn run_for(&self, command_type: Value, timeout: Option<u64>) -> Response {
        let command = SafeCommand { id: "7".to_owned(), command_type, params: None, timeout };
        let response = run(&command, &self.context);
        assert_eq!((response.id.as_str(), response.command_type), ("7", CommandType::Safe));
        assert_eq!(response.success, response.error.is_none());
        assert!(serde_json::to_vec(&response).unwrap().len() <= roost_guest_proto::MAX_LINE, "it fits in a line");
        response
    }

    fn code(&self, command_type: Value) -> ErrorCode {
        self.run(command_type).error.unwrap().code
    }
}

#[test]
fn what_is_no_action_is_answered() {
    let guest = Guest::new();
    assert_eq!(guest.code(json!({"action": "RmRf"})), ErrorCode::UnknownCommand);
    assert_eq!(guest.code(json!({"action": "OsInfo", "x": 1})), ErrorCode::InvalidMessage);
    assert_eq!(guest.code(json!(null)), ErrorCode::InvalidMessage);
}

#[test]
fn what_the_guest_lacks_is_named() {
    let guest = Guest::new();
    for (action, what) in [
        (json!({"action": "ServiceList"}), "neither systemd"),
        (json!({"action": "PackageList"}), "apt, dnf, apk, zypper, pacman"),
        (json!({"action": "CheckWindowsUpdates"}), "Windows Update"),
        (json!({"action": "GetDefenderStatus"}), "Windows Defender"),
        (json!({"action": "GetInstalledApplicationsWMI"}), "WMI"),
    ] {
        let error = guest.run(action).error.unwrap();
        assert_eq!(error.code, ErrorCode::NotSupported);
        assert!(error.message.contains(what), "{error}");
    }
}

#[test]
fn nothing_that_writes_is_begun_while_frozen() {
    let guest = Guest::new();
    guest.context.frozen.store(true, Ordering::Release);
    assert!(guest.run(json!({"action": "OsInfo"})).success);
    let error = guest.run(json!({"action": "HostnameSet", "hostname": "x"})).error.unwrap();
    assert!(error.message.contains("frozen"), "{error}");
    assert!(!guest.root.path().join("etc").exists());
}

#[test]
fn a_manager_that_hangs_is_ended_in_time() {
    let guest = Guest::systemd("echo begun; exec sleep 1000");
    let response = guest.run_for(json!({"action": "ServiceList"}), Some(1));
    assert_eq!(response.error.unwrap().code, ErrorCode::CommandTimeout);
    assert_eq!((response.signal, response.stdout.as_str()), (Some(15), "begun\n"));
    let response = guest.run_for(json!({"action": "ServiceList"}), Some(0));
    assert_eq!(response.error.unwrap().code, ErrorCode::CommandTimeout, "no time is no time");
}

#[test]
fn a_manager_that_never_stops_talking_is_cut() {
    let guest = Guest::systemd("yes 'a.service loaded active running \u{1}' | head -c 30000000");
    let response = guest.run(json!({"action": "ServiceList"}));
    assert!(response.success, "{:?}", response.error);
    assert!(response.stdout.len() <= roost_guest_proto::MAX_STDOUT && response.stdout_truncated > 1_000_000);
    let data = response.data.unwrap();
    assert!(data["services"].as_array().unwrap().len() <= roost_guest_proto::MAX_LIST && data["truncated"] == true);
}

#[test]
fn a_manager_that_fails_is_quoted() {
    let guest = Guest::systemd("echo something >&2; echo 'Failed to connect to bus' >&2; exit 4");
    let response = guest.run(json!({"action": "ServiceList"}));
    assert_eq!(response.exit_code, Some(4));
    let error = response.error.unwrap();
    assert_eq!(
        (error.code, error.message.as_str()),
        (ErrorCode::CommandFailed, "exit code 4: Failed to connect to bus")
    );
}

#[test]
fn a_service_is_an_argument_and_never_more() {
    let script = r#"case "$1" in
        show) printf 'Id=a.service\nLoadState=loaded\nActiveState=active\nSubState=running\n';;
        *) printf '<%s>' "$@";;
    esac"#;
    let guest = Guest::systemd(script);
    let response = guest.run(json!({"action": "ServiceControl", "service": "a", "operation": "restart"}));
    assert_eq!(response.stdout, "<restart><--no-pager><--no-ask-password><--><a.service>");
    assert_eq!(response.data.unwrap()["state"], "active");
    let guest = Guest::systemd("printf 'LoadState=not-found\n'");
    let gone = json!({"action": "ServiceControl", "service": "gone", "operation": "start"});
    assert_eq!(guest.code(gone), ErrorCode::NotFound);
}

#[test]
fn cancelled_before_and_during() {
    let guest = Guest::systemd("exec sleep 1000");
    let cancel = guest.context.cancel.clone();
    let thread = std::thread::spawn(move || guest.code(json!({"action": "ServiceList"})));
    cancel.cancel();
    assert_eq!(thread.join().unwrap(), ErrorCode::Cancelled);
}

#[test]
fn a_password_goes_in_by_the_input() {
    let guest = Guest::new();
    guest.file("etc/passwd", "web:x:1000:1000::/home/web:/bin/sh\n");
    guest.program("chpasswd", r#"printf '<%s>' "$@"; cat; env | grep -c hunter"#);
    let set = |user: &str, password: &str| {
        guest.run(json!({"action": "UserSetPassword", "user": user, "password": password, "encrypted": true}))
    };
    let response = set("web", "hunter2");
    assert_eq!(response.stdout, "<-e>web:hunter2\n0\n");
    assert_eq!(set("nobody-here", "x").error.unwrap().code, ErrorCode::NotFound);
    for password in ["", "a\nroot:b", "a:b", &"x".repeat(513)] {
        let error = set("web", password).error.unwrap();
        assert_eq!(error.code, ErrorCode::InvalidMessage);
        assert!(password.is_empty() || !error.message.contains(password));
    }
}

#[test]
fn processes_are_counted_and_capped() {
    let context = Context::new(System::default(), Cancel::new().unwrap(), Arc::default());
    let run =
        |command_type| run(&SafeCommand { id: "1".to_owned(), command_type, params: None, timeout: None }, &context);
    let data = run(json!({"action": "ProcessList", "limit": 4_294_967_295u32})).data.unwrap();
    let processes = data["processes"].as_array().unwrap();
    let own = processes.iter().find(|process| process["pid"] == std::process::id()).expect("this one is there");
    assert!(own["memory_kb"].as_u64().unwrap() > 0 && own["command"].as_str().unwrap().contains("roost"));
    let top = run(json!({"action": "ProcessTop", "limit": 1, "sort_by": "memory"})).data.unwrap();
    assert_eq!((top["processes"].as_array().unwrap().len(), &top["truncated"]), (1, &json!(true)));
}

#[test]
fn only_the_process_that_was_meant_is_ended() {
    let context = Context::new(System::default(), Cancel::new().unwrap(), Arc::default());
    let kill = |command_type: Value| {
        run(&SafeCommand { id: "1".to_owned(), command_type, params: None, timeout: None }, &context)
    };
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = child.id();
    let error = kill(json!({"action": "ProcessKill", "pid": pid, "start_time": 1})).error.unwrap();
    assert_eq!(error.code, ErrorCode::NotFound);
    assert!(child.try_wait().unwrap().is_none(), "another start is another process");
    let data = kill(json!({"action": "ProcessKill", "pid": pid})).data.unwrap();
    assert_eq!((&data["name"], &data["signal"], &data["ended"]), (&json!("sleep"), &json!("SIGTERM"), &json!(true)));
    child.wait().unwrap();
    for (pid, code) in [
        (pid, ErrorCode::NotFound),
        (0, ErrorCode::InvalidMessage),
        (u32::MAX, ErrorCode::InvalidMessage),
        (1, ErrorCode::PermissionDenied),
        (std::process::id(), ErrorCode::PermissionDenied),
    ] {
        assert_eq!(kill(json!({"action": "ProcessKill", "pid": pid})).error.unwrap().code, code, "{pid}");
    }
}

#[test]
fn disks_and_health() {
    let context = Context::new(System::default(), Cancel::new().unwrap(), Arc::default());
    let run =
        |command_type| run(&SafeCommand { id: "1".to_owned(), command_type, params: None, timeout: None }, &context);
    let data = run(json!({"action": "RunAllHealthChecks"})).data.unwrap();
    assert_eq!(data["checks"].as_array().unwrap().len(), roost_guest_proto::HealthCheck::ALL.len());
    assert_eq!(run(json!({"action": "RunHealthCheck", "check_name": "memory"})).data.unwrap()["name"], "memory");
    let error = run(json!({"action": "RunHealthCheck", "check_name": "luck"})).error.unwrap();
    assert!(error.message.contains("disk_space"), "{error}");
    for thresholds in [(-1.0, 90.0), (95.0, 90.0), (10.0, 101.0)] {
        let error = run(
            json!({"action": "CheckDiskSpace", "warning_threshold": thresholds.0, "critical_threshold": thresholds.1}),
        );
        assert_eq!(error.error.unwrap().code, ErrorCode::InvalidMessage);
    }
    let data = run(json!({"action": "CheckDiskSpace"})).data.unwrap();
    assert!(
        data["disks"]
            .as_array()
            .unwrap()
            .iter()
            .all(|disk| disk["total_bytes"].as_u64() >= disk["used_bytes"].as_u64())
    );
}

#[test]
fn cleaning_needs_a_target_and_an_age() {
    let guest = Guest::new();
    guest.file("var/cache/apt/archives/a.deb", "x");
    assert_eq!(guest.code(json!({"action": "DiskCleanup", "drive": "/", "targets": []})), ErrorCode::InvalidMessage);
    let young = json!({"action": "DiskCleanup", "drive": "/", "targets": ["tmp"], "older_than_days": 0});
    assert_eq!(guest.code(young), ErrorCode::InvalidMessage);
    assert_eq!(guest.code(json!({"action": "DiskCleanup", "targets": ["/home"]})), ErrorCode::InvalidMessage);
    let data = guest
        .run(json!({"action": "DiskCleanup", "drive": "/", "targets": ["journal", "package_cache"]}))
        .data
        .unwrap();
    assert_eq!(data["targets"][0]["removed_files"], 1);
    assert_eq!(data["targets"][1]["skipped"], "there is no journal on a disk");
}

#[test]
fn switching_off_asks_the_guest() {
    let guest = Guest::new();
    guest.program("poweroff", "echo asked");
    assert_eq!(guest.run(json!({"action": "Shutdown"})).stdout, "asked\n");
    let error = guest.run(json!({"action": "Reboot", "force": true})).error.unwrap();
    assert_eq!(error.code, ErrorCode::NotSupported, "only the running system itself can be");
}

#[test]
fn names_network_and_the_agent_itself() {
    let guest = Guest::new();
    let previous = guest.run(json!({"action": "HostnameGet"})).data.unwrap()["hostname"].clone();
    guest.file("etc/x", "");
    let set = guest.run(json!({"action": "HostnameSet", "hostname": "web-1"})).data.unwrap();
    assert_eq!((&set["hostname"], &set["previous"]), (&json!("web-1"), &previous));
    let network = guest.run(json!({"action": "NetworkInfo"})).data.unwrap();
    assert!(network["interfaces"].as_array().unwrap().iter().any(|it| it["name"] == "lo" && it["loopback"] == true));
    let diagnosis = guest.run(json!({"action": "Diagnose"})).data.unwrap();
    assert_eq!(diagnosis["ok"], false, "a directory is no guest");
}
