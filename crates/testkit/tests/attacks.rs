//! Bad input against the real daemon: each gets an error that names the field, and nothing has happened.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::os::unix::fs::PermissionsExt;

use roost_client::{Client, Error, ErrorCode, v1};
use roost_testkit::{TestDaemon, micro, sim};

async fn refused(client: &Client, request: v1::CreateVmRequest) -> Error {
    let error = client.create_vm(request).await.expect_err("it is refused");
    let vms = client.list_vms(v1::ListVmsRequest::default()).await.unwrap().vms;
    assert!(vms.is_empty(), "nothing has happened");
    error
}

fn field(error: &Error) -> (ErrorCode, String) {
    (error.code(), error.detail().map(|d| d.field.clone()).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_would_become_an_option_is_refused_by_its_field() {
    let daemon = TestDaemon::start(&["sim.enabled=true", "sim.hosted=false"]);
    let client = daemon.client();
    let invalid = |name: &str| (ErrorCode::InvalidArgument, name.to_owned());
    assert_eq!(field(&refused(&client, sim("vm1,process=EVIL")).await), invalid("name"));
    assert_eq!(field(&refused(&client, sim("vm_018bcfe5-6800-7000-8000-000000000000")).await), invalid("name"));
    for path in ["x.raw,readonly=on", "json:{\"driver\":\"nbd\"}", "nbd:localhost:1", "fd:3", "/srv/../etc/shadow"] {
        let mut request = sim("disk");
        let disk = v1::StorageDevice {
            id: "d".to_owned(),
            path: path.to_owned(),
            format: "raw".to_owned(),
            ..Default::default()
        };
        request.config.get_or_insert_default().storage.push(disk);
        assert_eq!(field(&refused(&client, request).await), invalid("config.storage[0].path"), "{path}");
    }
    for format in ["vmdk", "vpc", "RAW", "luks"] {
        let mut request = sim("disk");
        let disk = v1::StorageDevice {
            id: "d".to_owned(),
            path: "/srv/x".to_owned(),
            format: format.to_owned(),
            ..Default::default()
        };
        request.config.get_or_insert_default().storage.push(disk);
        assert_eq!(field(&refused(&client, request).await), invalid("config.storage[0].format"), "{format}");
    }
    let mut request = sim("nic");
    let nic = v1::NetworkInterface {
        id: "n".to_owned(),
        kind: "tap".to_owned(),
        tap_device: "br0; rm -rf /".to_owned(),
        ..Default::default()
    };
    request.config.get_or_insert_default().network.push(nic);
    assert_eq!(field(&refused(&client, request).await), invalid("config.network[0].tap_device"));
    // A list that would take long to look through is not looked through.
    let mut request = sim("forwards");
    let forward = |n: u32| v1::PortForward { host_port: n % 60_000 + 1, guest_port: 22, ..Default::default() };
    let nic = v1::NetworkInterface { port_forwards: (0..100_000).map(forward).collect(), ..Default::default() };
    request.config.get_or_insert_default().network.push(nic);
    assert_eq!(field(&refused(&client, request).await), invalid("config.network[0].port_forwards"));
    let watched = v1::WatchVmsRequest { vm_ids: vec!["x".to_owned(); 100_000], ..Default::default() };
    let mut watch = client.watch_vms(watched).await.unwrap();
    assert_eq!(field(&watch.next().await.unwrap_err()), invalid("vm_ids"));
    let states = vec![v1::VmState::VM_STATE_RUNNING.into(); 1_000_000];
    client.list_vms(v1::ListVmsRequest { states, ..Default::default() }).await.unwrap();
    let mut request = sim("nul");
    request.config.get_or_insert_default().boot.get_or_insert_default().kernel_args = "a\0b".to_owned();
    assert_eq!(field(&refused(&client, request).await), invalid("config.boot.kernel_args"));
    let unknown = v1::CreateVmRequest { backend: "xen".to_owned(), ..sim("x") };
    assert_eq!(refused(&client, unknown).await.reason(), Some("UNKNOWN_BACKEND"));
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_paths_and_arguments_reach_qemu_as_they_are() {
    let daemon = TestDaemon::start(&[]);
    let client = daemon.client();
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("x.raw,readonly=on,json:{}");
    std::fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let arguments = r#"console=ttyS0 a="b c",file=/etc/shadow 'x' -device evil $(id)"#;
    let mut request = micro("odd");
    request.start = true;
    let config = request.config.get_or_insert_default();
    config.boot.get_or_insert_default().kernel_args = arguments.to_owned();
    config.storage.push(v1::StorageDevice {
        id: "odd".to_owned(),
        path: disk.to_str().unwrap().to_owned(),
        format: "raw".to_owned(),
        ..Default::default()
    });
    client.create_vm(request).await.unwrap();
    let pid = client.get_vm_info("odd").await.unwrap().backend_info["pid"].clone();
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(cmdline.split(|b| *b == 0).any(|a| a == arguments.as_bytes()), "the kernel's arguments are one of QEMU's");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    assert!(
        open.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == disk)),
        "the disk is that file"
    );
    client.delete_vm(v1::DeleteVmRequest { vm_id: "odd".to_owned(), force: true, ..Default::default() }).await.unwrap();
    assert_eq!(daemon.leftovers(), []);
    assert!(disk.exists(), "a disk of the user's is not ours to remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_at_a_hundred_callers_is_one_vm() {
    let daemon = TestDaemon::start(&["sim.enabled=true", "sim.hosted=false"]);
    let client = daemon.client();
    let keyed = |name: &str| v1::CreateVmRequest { idempotency_key: "key-1".to_owned(), ..sim(name) };
    let all = futures::future::join_all((0..100).map(|_| client.create_vm(keyed("one")))).await;
    let ids: std::collections::BTreeSet<String> = all.into_iter().map(|a| a.unwrap().vm_id).collect();
    assert_eq!(ids.len(), 1);
    let error = client.create_vm(keyed("two")).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), (ErrorCode::AlreadyExists, Some("IDEMPOTENCY_KEY_REUSED")));
    assert_eq!(client.list_vms(v1::ListVmsRequest::default()).await.unwrap().total_size, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_are_private_and_a_directory_that_others_can_write_is_refused() {
    let daemon = TestDaemon::start(&[]);
    let client = daemon.client();
    client.create_vm(v1::CreateVmRequest { start: true, ..micro("sockets") }).await.unwrap();
    let run = daemon.state_dir().join("run");
    let mode = |path: &std::path::Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&daemon.state_dir()), mode(&run), mode(&run.join("api.sock"))), (0o700, 0o700, 0o600));
    for vm in std::fs::read_dir(run.join("vms")).unwrap().flatten() {
        assert_eq!(mode(&vm.path()), 0o700);
        for socket in std::fs::read_dir(vm.path()).unwrap().flatten() {
            assert_eq!(mode(&socket.path()) & 0o077, 0, "{:?}", socket.path());
        }
    }
    let open = tempfile::tempdir().unwrap();
    let shared = open.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, PermissionsExt::from_mode(0o777)).unwrap();
    std::os::unix::net::UnixListener::bind(shared.join("api.sock")).unwrap();
    let said = TestDaemon::refused(&[&format!("runtime_dir={}", shared.display())]);
    assert!(said.contains(shared.to_str().unwrap()), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_says_how_its_guest_runs_and_why() {
    let daemon = TestDaemon::start(&[]);
    let client = daemon.client();
    client.create_vm(v1::CreateVmRequest { start: true, ..micro("why") }).await.unwrap();
    let vm = daemon.vm(&client, "why").await;
    let (accelerator, why) = vm.accelerator.split_once(": ").expect("the reason is there");
    assert!(["tcg", "kvm"].contains(&accelerator) && !why.is_empty(), "{}", vm.accelerator);
    let findings = client.doctor().await.unwrap();
    assert!(findings.iter().any(|f| f.id == "kvm" && !f.detail.is_empty()));
    if accelerator == "tcg" {
        let mut forced = v1::CreateVmRequest { start: true, ..micro("forced") };
        forced.config.get_or_insert_default().accelerator = "kvm".to_owned();
        let error = client.create_vm(forced).await.unwrap_err();
        assert!(error.to_string().contains("kvm"), "{error}");
    }
}
