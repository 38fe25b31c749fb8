//! What is refused, what fails, and what is said about it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use roost_backend::{Backend, BackendError};
use roost_model::spec::{Accelerator, Backing, Bus, Device, Disk, DiskFormat, Forward, Nic, NicKind, Protocol};
use roost_model::{Bytes, Capability, VmSpec};

use crate::support::{Host, micro, new_launch};

/// A program in place of QEMU.
fn script(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("qemu-system-x86_64");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// What becomes of a launch; nothing of it may be left.
async fn failed_boot(host: &mut Host, spec: VmSpec) -> BackendError {
    let vm = host.create(spec).await;
    let error = host.backend.boot(&vm, new_launch(), host.journal(&vm)).await.expect_err("it cannot start");
    host.assert_nothing_runs();
    assert_eq!(host.journal(&vm).resources().len(), 1, "the VM's own directory");
    host.delete(&vm).await;
    host.assert_nothing_left();
    error
}

async fn refused(host: &mut Host, spec: VmSpec) -> BackendError {
    let vm = host.define(spec);
    let error = host.backend.create(&vm, host.journal(&vm)).await.expect_err("it is refused");
    assert_eq!(host.journal(&vm).resources(), [], "before anything is made");
    host.assert_nothing_left();
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_are_probed_and_cached() {
    let cache = tempfile::tempdir().unwrap();
    let with = |host: &mut roost_backend_qemu::QemuConfig| host.cache_dir = cache.path().join("cache");
    let host = Host::with(with);
    let asked = host.backend.capabilities().await.unwrap();
    host.backend.ping().await.unwrap();
    for capability in Capability::ALL {
        // The host decides these two.
        if ![Capability::TapNetwork, Capability::MemoryMerge, Capability::Hugepages].contains(capability) {
            assert!(asked.has(*capability), "{capability}");
        }
    }
    assert_eq!(asked.machines, ["q35", "microvm"]);
    assert_eq!(asked.accelerators[0], "tcg");
    assert!(asked.details["machine-q35"].starts_with("pc-q35-"), "{:?}", asked.details);
    assert!((2..=255).contains(&asked.max_vcpus));
    // From the cache: the same, and at once.
    let begun = Instant::now();
    let cached = Host::with(with).backend.capabilities().await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(50), "{:?}", begun.elapsed());
    assert_eq!(cached, asked);
    // A cache that is not one is asked again.
    for entry in std::fs::read_dir(cache.path().join("cache")).unwrap() {
        std::fs::write(entry.unwrap().path(), "{\"form\": 1, \"probe\": {}}").unwrap();
    }
    assert_eq!(Host::with(with).backend.capabilities().await.unwrap(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_is_none_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "text").unwrap();
    for (binary, reason) in [
        (dir.path().join("missing"), "QEMU_NOT_FOUND"),
        (PathBuf::from("no-such-qemu"), "QEMU_NOT_FOUND"),
        (plain, "QEMU_NOT_EXECUTABLE"),
        (dir.path().to_owned(), "QEMU_NOT_EXECUTABLE"),
        (PathBuf::from("/bin/true"), "QEMU_UNUSABLE"),
        (script(dir.path(), "echo no seccomp here >&2; exit 3"), "QEMU_UNUSABLE"),
    ] {
        let mut host = Host::with(|config| {
            config.binary = binary.clone();
            config.cache_dir = dir.path().join("cache");
        });
        let error = host.backend.capabilities().await.unwrap_err();
        assert_eq!(error.reason, reason, "{error}");
        assert!(error.message.contains(binary.file_name().unwrap().to_str().unwrap()), "{error}");
        assert!(!error.hint.is_empty());
        assert_eq!(host.backend.ping().await.unwrap_err().reason, reason);
        assert_eq!(refused(&mut host, micro()).await.reason, reason);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_talks_and_never_answers_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    for text in ["exec sleep 1000", "while :; do echo garbage >&3; echo garbage >&2; done", "yes >&2"] {
        let binary = script(dir.path(), text);
        let host = Host::with(|config| {
            config.binary = binary;
            config.cache_dir = dir.path().join("cache");
            config.limits.launch = Duration::from_millis(700);
        });
        let begun = Instant::now();
        let error = host.backend.capabilities().await.unwrap_err();
        assert_eq!(error.reason, "QEMU_UNUSABLE", "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

/// Answers the probe as the real one and misbehaves as a machine.
fn two_faced(dir: &Path, as_machine: &str) -> PathBuf {
    script(
        dir,
        &format!("case \" $* \" in *' -machine none '*|*help*) exec qemu-system-x86_64 \"$@\";; esac\n{as_machine}"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_does_not_answer_is_ended_and_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let path = format!("PATH={}; export PATH\n", std::env::var("PATH").unwrap());
    for (text, reason, said) in [
        ("exec sleep 1000", "QMP_TIMEOUT", "handshake"),
        ("echo 'cannot set up guest memory: Cannot allocate memory' >&2; exit 1", "NO_MEMORY", "code 1"),
        ("printf 'one\\ntwo \\033[2J' >&2; exit 7", "QEMU_ENDED", "one; two \\u{1b}[2J"),
        ("kill -SEGV $$", "QEMU_ENDED", "signal 11"),
        ("exit 0", "QEMU_ENDED", "code 0"),
    ] {
        let binary = two_faced(dir.path(), text);
        let text = std::fs::read_to_string(&binary).unwrap().replacen('\n', &format!("\n{path}"), 1);
        std::fs::write(&binary, text).unwrap();
        let mut host = Host::with(|config| {
            config.binary = binary;
            config.cache_dir = dir.path().join("cache");
            config.limits.launch = Duration::from_secs(2);
        });
        let error = failed_boot(&mut host, micro()).await;
        assert_eq!(error.reason, reason, "{error}");
        assert!(error.message.contains(said), "{error}");
        assert!(error.is_transient());
    }
}

fn disk(path: &Path, format: DiskFormat) -> Disk {
    Disk {
        id: "root".to_owned(),
        path: path.to_str().unwrap().parse().unwrap(),
        read_only: false,
        is_root_device: true,
        bus: Bus::Virtio,
        format,
        device: Device::Disk,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_no_files_of_a_machine() {
    let mut host = Host::new();
    let dir = host.dir.path().to_owned();
    let text = dir.join("not a, \"kernel\"");
    std::fs::write(&text, "text").unwrap();
    let kernel = |path: &Path| {
        let mut spec = micro();
        spec.boot.kernel_path = Some(path.to_str().unwrap().parse().unwrap());
        spec
    };
    let with = |disk: Disk| VmSpec { storage: vec![disk], ..micro() };
    let initrd = {
        let mut spec = micro();
        spec.boot.initrd_path = Some(dir.to_str().unwrap().parse().unwrap());
        spec
    };
    let missing = dir.join("missing");
    for (spec, reason, path) in [
        (kernel(&missing), "KERNEL_UNREADABLE", &missing),
        (kernel(&dir), "KERNEL_UNREADABLE", &dir),
        (kernel(&text), "IMAGE_FORMAT", &text),
        (initrd, "KERNEL_UNREADABLE", &dir),
        (with(disk(&missing, DiskFormat::Raw)), "DISK_UNREADABLE", &missing),
        (with(disk(&dir, DiskFormat::Raw)), "DISK_UNREADABLE", &dir),
        (with(disk(&text, DiskFormat::Qcow2)), "IMAGE_REFUSED", &text),
    ] {
        let error = refused(&mut host, spec).await;
        assert_eq!(error.reason, reason, "{error}");
        assert!(error.message.contains(path.to_str().unwrap()) && !error.is_transient(), "{error}");
    }
}

/// A file that was good at its creation and is not when it is started.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_looked_at_again_at_every_start() {
    let mut host = Host::new();
    let secret = host.dir.path().join("secret");
    std::fs::write(&secret, vec![b's'; 1 << 20]).unwrap();
    let image = host.dir.path().join("disk.qcow2");
    let qemu_img = |args: &[&str]| {
        let status = std::process::Command::new("qemu-img").args(args).arg(&image).arg("1M").status();
        assert!(status.unwrap().success());
    };
    qemu_img(&["create", "-q", "-f", "qcow2"]);
    let vm = host.create(VmSpec { storage: vec![disk(&image, DiskFormat::Qcow2)], ..micro() }).await;
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret.to_str().unwrap()]);
    let error = host.backend.boot(&vm, new_launch(), host.journal(&vm)).await.unwrap_err();
    assert_eq!(error.reason, "IMAGE_REFUSED");
    assert!(error.message.contains("backing file"), "{error}");
    host.delete(&vm).await;
    host.assert_nothing_left();
    assert!(image.exists() && secret.exists(), "a VM's disks are the user's");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_qemu_can_refuse() {
    let mut host = Host::new();
    let image = host.dir.path().join("disk.raw");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let mut feature = micro();
    feature.cpu.features.insert("no-such-feature".parse().unwrap(), true);
    let error = failed_boot(&mut host, feature).await;
    assert_eq!(error.reason, "CPU_FEATURE_UNKNOWN", "{error}");

    let mut memory = micro();
    memory.memory.size = Bytes::from_mib(8 << 20);
    memory.memory.max_size = memory.memory.size;
    let error = failed_boot(&mut host, memory).await;
    assert_eq!(error.reason, "NO_MEMORY", "{error}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let forward = Forward {
        protocol: Protocol::Tcp,
        host_address: [127, 0, 0, 1].into(),
        host_port: taken.local_addr().unwrap().port(),
        guest_port: 22,
    };
    let nic = Nic { id: "eth0".to_owned(), mac_address: None, kind: NicKind::User { port_forwards: vec![forward] } };
    let error = failed_boot(&mut host, VmSpec { network: vec![nic], ..micro() }).await;
    assert_eq!(error.reason, "PORT_IN_USE", "{error}");

    let tap = Nic { id: "eth0".to_owned(), mac_address: None, kind: NicKind::Tap { device: "no-such-tap".to_owned() } };
    let error = failed_boot(&mut host, VmSpec { network: vec![tap], ..micro() }).await;
    assert_eq!(error.reason, "TAP_NOT_FOUND", "{error}");

    // Without huge pages on the host that is said at the start, and is no crash later.
    let pool = roost_host::stats::memory().unwrap().hugepages;
    let mut huge = micro();
    huge.memory.backing = Backing::Hugepages { page_size: Bytes::from_mib(2) };
    if pool.page_bytes == 2 << 20 && pool.free == 0 {
        let error = failed_boot(&mut host, huge).await;
        assert_eq!(error.reason, "NO_MEMORY", "{error}");
    } else {
        eprintln!("not tried: a lack of huge pages, as the host has {pool:?}");
    }

    // Two machines with one disk: the lock is QEMU's own.
    let spec = VmSpec { storage: vec![disk(&image, DiskFormat::Raw)], ..micro() };
    let first = host.create(spec.clone()).await;
    host.backend.boot(&first, new_launch(), host.journal(&first)).await.unwrap();
    let second = host.create(spec).await;
    let error = host.backend.boot(&second, new_launch(), host.journal(&second)).await.unwrap_err();
    assert_eq!((error.reason, error.is_transient()), ("DISK_IN_USE", true), "{error}");
    host.delete(&second).await;
    host.delete(&first).await;
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn kvm_is_taken_only_where_it_works() {
    let auto = Host::with(|config| config.accelerator = Accelerator::Auto);
    let begun = Instant::now();
    let capabilities = auto.backend.capabilities().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(6));
    assert!(!capabilities.details["accelerator-reason"].is_empty());
    if capabilities.accelerators.iter().any(|a| a == "kvm") {
        return;
    }
    assert_eq!(capabilities.accelerators, ["tcg"]);
    let mut host = Host::new();
    let spec = VmSpec { accelerator: Accelerator::Kvm, ..micro() };
    let error = refused(&mut host, spec).await;
    assert_eq!((error.reason, error.is_transient()), ("KVM_UNAVAILABLE", false));
    assert!(error.message.contains(&capabilities.details["accelerator-reason"]), "{error}");
    let forced = Host::with(|config| config.accelerator = Accelerator::Kvm);
    assert_eq!(forced.backend.capabilities().await.unwrap_err().reason, "KVM_UNAVAILABLE");
}

/// A kernel's command line arrives whole, whatever is in it; so does everything else.
#[tokio::test(flavor = "multi_thread")]
async fn odd_texts_reach_qemu_as_they_are() {
    let mut host = Host::new();
    let dir = host.dir.path().join("a,b=c \"d\" 'e' json:{\"driver\":\"null-co\"}");
    std::fs::create_dir(&dir).unwrap();
    let kernel = dir.join("-kernel,process=EVIL");
    std::fs::copy(xtask::micro_guest().unwrap(), &kernel).unwrap();
    let mut spec = micro();
    spec.boot.kernel_path = Some(kernel.to_str().unwrap().parse().unwrap());
    spec.boot.kernel_args = "a=\"b c\",d 'e' -daemonize $(id) console=ttyS0,115200n8".parse().unwrap();
    let vm = host.create(spec).await;
    let (_launch, _serial) = host.boot(&vm).await;
    let pid = host.pid(&vm).await.as_raw_nonzero();
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let args: Vec<&str> = command.split(|b| *b == 0).map(|arg| std::str::from_utf8(arg).unwrap()).collect();
    let after = |option: &str| args[args.iter().position(|arg| *arg == option).unwrap() + 1];
    assert_eq!(after("-kernel"), kernel.to_str().unwrap());
    assert_eq!(after("-append"), vm.spec.boot.kernel_args.as_str());
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert!(comm.starts_with("qemu-system"), "{comm}");
    host.delete(&vm).await;
    host.assert_nothing_left();
}

/// The sockets are ours alone.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_reaches_a_machines_sockets() {
    let mut host = Host::new();
    let (vm, _launch, _serial) = host.running().await;
    let run_dir = host.config.run_dir.join(vm.id.uuid().to_string());
    let mode = |path: &Path| std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&run_dir), 0o700);
    assert_eq!(mode(&host.config.run_dir), 0o700);
    for entry in std::fs::read_dir(&run_dir).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
    host.delete(&vm).await;
    // One that somebody prepared is refused, and not followed.
    let vm = host.create(micro()).await;
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), host.config.run_dir.join(vm.id.uuid().to_string())).unwrap();
    let error = host.backend.boot(&vm, new_launch(), host.journal(&vm)).await.unwrap_err();
    assert_eq!(error.reason, "HOST_DIRECTORY", "{error}");
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    host.delete(&vm).await;
    host.assert_nothing_left();
}
