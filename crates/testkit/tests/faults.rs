//! What can go wrong around a daemon: a clear error on the operation, a state that is true, nothing
//! left behind.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::time::{Duration, Instant};

use roost_client::{ErrorCode, v1};
use roost_testkit::{TestDaemon, micro};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use v1::VmState as S;

fn delete(vm: &str) -> v1::DeleteVmRequest {
    v1::DeleteVmRequest { vm_id: vm.to_owned(), force: true, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_qemu_the_daemon_serves_and_says_what_is_missing() {
    let daemon = TestDaemon::start(&["qemu.binary=/nonexistent/qemu"]);
    let client = daemon.client();
    let error = client.create_vm(micro("none")).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (ErrorCode::FailedPrecondition, Some("BACKEND_UNAVAILABLE")));
    assert!(error.to_string().contains("/nonexistent/qemu"), "{error}");
    let backends = client.list_backends().await.unwrap();
    assert!(!backends[0].available && !backends[0].reason.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_fails_with_its_reason_and_leaves_nothing() {
    let daemon = TestDaemon::start(&[]);
    let client = daemon.client();
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("kernel");
    std::fs::write(&text, "this is no kernel").unwrap();
    for (name, kernel) in [("missing", "/nonexistent/kernel"), ("text", text.to_str().unwrap()), ("dir", "/etc")] {
        let mut request = v1::CreateVmRequest { start: true, ..micro(name) };
        request.config.get_or_insert_default().boot.get_or_insert_default().kernel_path = kernel.to_owned();
        let error = client.create_vm(request).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::FailedPrecondition, "{error}");
        assert!(error.to_string().contains(kernel), "{error}");
        assert_eq!(error.detail().map(|d| d.field.as_str()), Some("config.boot.kernel_path"), "{error}");
        let vm = daemon.vm(&client, name).await;
        assert_eq!(vm.state, S::VM_STATE_FAILED);
        assert!(!vm.failure.reason.is_empty() && !vm.failure.message.is_empty());
    }
    let mut huge = v1::CreateVmRequest { start: true, ..micro("huge") };
    huge.config.get_or_insert_default().memory.get_or_insert_default().size_bytes = 8 << 40;
    let error = client.create_vm(huge).await.unwrap_err();
    assert_eq!(error.reason(), Some("NO_MEMORY"), "{error}");
    assert!(daemon.guest_processes().is_empty());
    for name in ["missing", "text", "dir", "huge"] {
        client.delete_vm(delete(name)).await.unwrap();
    }
    assert_eq!(daemon.leftovers(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_hangs_fails_the_request_and_can_be_deleted() {
    let daemon = TestDaemon::start(&[]);
    let client = daemon.client();
    client.create_vm(v1::CreateVmRequest { start: true, ..micro("hangs") }).await.unwrap();
    let pid: i32 = client.get_vm_info("hangs").await.unwrap().backend_info["pid"].parse().unwrap();
    let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&pidfd, Signal::STOP).unwrap();
    let began = Instant::now();
    let request = v1::PauseVmRequest { vm_id: "hangs".to_owned(), r#async: true, ..Default::default() };
    let pause = client.pause_vm(request).await.unwrap();
    // A delete does not wait for what hangs.
    client.delete_vm(delete("hangs")).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(30));
    let pause = client.wait_operation(&pause.operation.id, Duration::from_secs(1)).await.unwrap();
    assert!(pause.status == v1::OperationStatus::OPERATION_STATUS_CANCELLED || !pause.error.reason.is_empty());
    assert_eq!(daemon.leftovers(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_directory_refuses() {
    let mut first = TestDaemon::start(&[]);
    let client = first.client();
    let own = format!("state_dir={}", first.state_dir().display());
    let said = TestDaemon::refused(&[&own]);
    assert!(said.contains("one daemon at a time") && said.contains("locked by process"), "{said}");
    client.version().await.expect("the first serves on");
    assert!(first.stop());
    first.restart();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_none_stops_the_start_and_is_left_as_it_is() {
    let mut daemon = TestDaemon::start(&[]);
    assert!(daemon.stop());
    let file = daemon.state_dir().join("state.db");
    for name in ["state.db-wal", "state.db-shm"] {
        let _may_be_gone = std::fs::remove_file(daemon.state_dir().join(name));
    }
    std::fs::write(&file, b"this is no database, and long enough to be looked at as if it were one").unwrap();
    let before = std::fs::read(&file).unwrap();
    let said = daemon.try_start().unwrap_err();
    assert!(said.contains("state.db") && said.contains("damaged"), "{said}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_setting_stops_the_start_and_names_its_key() {
    for (setting, key) in [
        ("qemu.acelerator=kvm", "qemu.accelerator"),
        ("qemu.accelerator=warp", "qemu.accelerator"),
        ("backend=xen", "backend"),
        ("log.format=xml", "log.format"),
        ("log.level=warning", "log.level"),
    ] {
        let said = TestDaemon::refused(&[setting]);
        assert!(said.contains(key), "{setting}: {said}");
    }
}
