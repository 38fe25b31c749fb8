//! Every operation of the trait on a machine that runs.

use std::time::{Duration, Instant};

use roost_backend::{Backend, Event, Happened};
use roost_model::plan::Stop;
use roost_model::spec::{Backing, Bus, Device, Disk, DiskFormat, MachineType, Nic, NicKind};
use roost_model::{ExitCause, Machine, VmSpec};
use rustix::process::Signal;

use crate::support::{DEADLINE, Host, micro, micro_on, new_launch, wait_until};

const GRACE: Stop = Stop::Graceful(Duration::from_secs(30));

#[tokio::test(flavor = "multi_thread")]
async fn a_life_on_either_machine() {
    for machine in [MachineType::Q35, MachineType::Microvm] {
        let mut host = Host::new();
        let vm = host.create(micro_on(machine)).await;
        let info = host.backend.info(vm.id).await.unwrap();
        assert_eq!((info.report.machine, info.metrics), (Machine::Defined, None));

        let launch = new_launch();
        let booted = host.backend.boot(&vm, launch, host.journal(&vm)).await.unwrap();
        assert_eq!(booted.accelerator, "tcg: demanded by the configuration");
        let mut serial = host.serial(&vm).await;
        serial.until("tick ");
        let info = host.backend.info(vm.id).await.unwrap();
        assert_eq!((info.report.machine, info.report.launch), (Machine::Running, Some(launch)));
        assert!(info.details["machine"].contains(machine.as_str()), "{:?}", info.details);

        let again = host.backend.boot(&vm, new_launch(), host.journal(&vm)).await.unwrap_err();
        assert_eq!(again.reason, "WRONG_STATE");

        host.backend.pause(vm.id).await.unwrap();
        host.backend.pause(vm.id).await.unwrap();
        assert_eq!(host.backend.info(vm.id).await.unwrap().report.machine, Machine::Paused);
        serial.during(Duration::from_millis(300));
        assert_eq!(serial.during(Duration::from_secs(1)), "", "it stands still");
        host.backend.resume(vm.id).await.unwrap();
        host.backend.resume(vm.id).await.unwrap();
        assert_eq!(host.backend.info(vm.id).await.unwrap().report.machine, Machine::Running);
        serial.until("tick ");

        let cause = host.backend.shutdown(vm.id, GRACE).await.unwrap();
        assert_eq!(cause, ExitCause::PowerOff);
        serial.until("power button");
        let lingering = Machine::Ended { cause, lingering: true };
        assert_eq!(host.backend.info(vm.id).await.unwrap().report.machine, lingering);
        assert_eq!(host.backend.shutdown(vm.id, GRACE).await.unwrap(), cause, "once more changes nothing");
        assert_eq!(host.backend.resume(vm.id).await.unwrap_err().reason, "WRONG_STATE");

        host.clear(&vm).await;
        host.assert_nothing_runs();
        let cleared = Machine::Ended { cause, lingering: false };
        assert_eq!(host.backend.info(vm.id).await.unwrap().report.machine, cleared);
        host.clear(&vm).await;
        host.ended(&vm, launch, cause).await;
        host.no_more_events();

        let (second, _serial) = host.boot(&vm).await;
        assert_eq!(host.backend.info(vm.id).await.unwrap().report.launch, Some(second));
        host.delete(&vm).await;
        host.delete(&vm).await;
        host.assert_nothing_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_guest_does_by_itself_is_told_apart() {
    for machine in [MachineType::Q35, MachineType::Microvm] {
        for (key, cause) in [(b"q", ExitCause::PowerOff), (b"p", ExitCause::Panic)] {
            let mut host = Host::new();
            let vm = host.create(micro_on(machine)).await;
            let (launch, mut serial) = host.boot(&vm).await;
            serial.send(b"r");
            serial.until("boot");
            let reset = Event { vm: vm.id, launch, happened: Happened::Reset };
            assert_eq!(host.event().await, reset, "{machine}");
            serial.until("tick ");
            serial.send(key);
            host.ended(&vm, launch, cause).await;
            let lingering = Machine::Ended { cause, lingering: true };
            assert_eq!(host.backend.info(vm.id).await.unwrap().report.machine, lingering);
            host.delete(&vm).await;
            host.no_more_events();
            host.assert_nothing_left();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_are_reported_once_a_second_at_most() {
    let mut host = Host::new();
    let (vm, _launch, mut serial) = host.running().await;
    let begun = Instant::now();
    for _ in 0..6 {
        serial.send(b"r");
        serial.until("boot");
    }
    let took = begun.elapsed();
    let mut resets = 0;
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(500), host.events.recv()).await {
        assert_eq!(event.happened, Happened::Reset);
        resets += 1;
    }
    assert!(resets >= 1 && resets <= took.as_secs() + 1, "{resets} in {took:?}");
    host.delete(&vm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_from_outside_and_a_crash_are_told_apart() {
    for (signal, cause) in
        [(Signal::KILL, ExitCause::Killed), (Signal::TERM, ExitCause::Killed), (Signal::SEGV, ExitCause::Crashed)]
    {
        let mut host = Host::new();
        let (vm, launch, _serial) = host.running().await;
        let begun = Instant::now();
        rustix::process::kill_process(host.pid(&vm).await, signal).unwrap();
        host.ended(&vm, launch, cause).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        let info = host.backend.info(vm.id).await.unwrap();
        assert_eq!(info.report.machine, Machine::Ended { cause, lingering: true });
        host.clear(&vm).await;
        host.no_more_events();
        host.assert_nothing_runs();
        host.delete(&vm).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deaf_guest_is_ended_by_force_at_the_deadline() {
    let mut host = Host::with(|config| config.limits.press = Duration::from_millis(500));
    let (vm, launch, mut serial) = host.running().await;
    serial.send(b"d");
    serial.until("deaf");
    let begun = Instant::now();
    let cause = host.backend.shutdown(vm.id, Stop::Graceful(Duration::from_secs(3))).await.unwrap();
    assert_eq!(cause, ExitCause::Forced);
    assert!((3..8).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    serial.until("power button ignored");
    serial.until("power button ignored");
    host.ended(&vm, launch, cause).await;
    host.delete(&vm).await;
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn force_is_quick_and_silent_guests_make_no_difference() {
    let mut host = Host::new();
    let (vm, _launch, _serial) = host.running().await;
    host.backend.pause(vm.id).await.unwrap();
    let begun = Instant::now();
    assert_eq!(host.backend.shutdown(vm.id, Stop::Forced).await.unwrap(), ExitCause::Forced);
    assert!(begun.elapsed() < Duration::from_secs(3));
    host.delete(&vm).await;
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_stands_still_is_killed() {
    let mut host = Host::with(|config| {
        config.limits.command = Duration::from_millis(500);
        config.limits.quit = Duration::from_millis(500);
    });
    let (vm, launch, _serial) = host.running().await;
    rustix::process::kill_process(host.pid(&vm).await, Signal::STOP).unwrap();
    assert_eq!(host.backend.pause(vm.id).await.unwrap_err().reason, "QMP_TIMEOUT");
    let info = host.backend.info(vm.id).await.unwrap();
    assert!(info.report.machine.is_up() && info.details.contains_key("control"), "{info:?}");
    let begun = Instant::now();
    let cause = host.backend.shutdown(vm.id, Stop::Graceful(Duration::from_secs(1))).await.unwrap();
    assert_eq!(cause, ExitCause::Forced);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    host.ended(&vm, launch, cause).await;
    host.delete(&vm).await;
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_is_no_end() {
    for machine in [MachineType::Q35, MachineType::Microvm] {
        let mut host = Host::new();
        let vm = host.create(micro_on(machine)).await;
        let (launch, mut serial) = host.boot(&vm).await;
        let pid = host.pid(&vm).await;

        host.backend.reboot(vm.id, GRACE).await.unwrap();
        serial.until("power button");
        serial.until("boot");
        serial.until("tick ");
        host.backend.reboot(vm.id, Stop::Forced).await.unwrap();
        serial.until("boot");
        serial.until("tick ");
        serial.send(b"d");
        serial.until("deaf");
        host.backend.reboot(vm.id, Stop::Graceful(Duration::from_secs(1))).await.unwrap();
        serial.until("power button ignored");
        serial.until("boot");
        serial.until("tick ");

        assert_eq!(host.pid(&vm).await, pid, "the same process");
        // Firmware may reset once more after a reset, slowly on a loaded host.
        while let Ok(event) = host.events.try_recv() {
            assert_eq!(event, Event { vm: vm.id, launch, happened: Happened::Reset });
        }
        // After it, a power-off is an end again.
        serial.send(b"q");
        host.ended(&vm, launch, ExitCause::PowerOff).await;
        host.delete(&vm).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reboot_that_is_dropped_leaves_a_power_off_an_end() {
    let mut host = Host::new();
    let (vm, launch, mut serial) = host.running().await;
    serial.send(b"d");
    serial.until("deaf");
    let reboot = host.backend.reboot(vm.id, Stop::Graceful(DEADLINE));
    assert!(tokio::time::timeout(Duration::from_millis(500), reboot).await.is_err());
    serial.send(b"q");
    host.ended(&vm, launch, ExitCause::PowerOff).await;
    assert_eq!(host.backend.reboot(vm.id, GRACE).await.unwrap_err().reason, "WRONG_STATE");
    host.delete(&vm).await;
}

/// Disks and networks of every kind that a board takes, accepted by QEMU itself and counted.
#[tokio::test(flavor = "multi_thread")]
async fn devices_of_every_kind() {
    let mut host = Host::new();
    let images = host.dir.path().join("images, \"odd\" json:{} names");
    std::fs::create_dir(&images).unwrap();
    let raw = |name: &str| {
        let path = images.join(name);
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let disk = |id: &str, bus, format, device| Disk {
        id: id.to_owned(),
        path: raw(&format!("{id},readonly=on")).parse().unwrap(),
        read_only: device == Device::Cdrom,
        is_root_device: false,
        bus,
        format,
        device,
    };
    let qcow2 = {
        let disk = disk("q", Bus::Virtio, DiskFormat::Qcow2, Device::Disk);
        let created = std::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-o", "cluster_size=512"])
            .arg(disk.path.as_path())
            .arg("1M")
            .status();
        assert!(created.unwrap().success());
        disk
    };
    let mut q35 = micro();
    q35.storage = vec![
        qcow2.clone(),
        disk("v", Bus::Virtio, DiskFormat::Raw, Device::Disk),
        disk("s0", Bus::Scsi, DiskFormat::Raw, Device::Disk),
        disk("s1", Bus::Scsi, DiskFormat::Raw, Device::Cdrom),
        disk("a0", Bus::Sata, DiskFormat::Raw, Device::Disk),
        disk("a1", Bus::Sata, DiskFormat::Raw, Device::Cdrom),
        disk("a2", Bus::Sata, DiskFormat::Raw, Device::Disk),
        disk("a3", Bus::Sata, DiskFormat::Raw, Device::Disk),
        disk("a4", Bus::Sata, DiskFormat::Raw, Device::Disk),
        disk("a5", Bus::Sata, DiskFormat::Raw, Device::Disk),
        disk("a6", Bus::Sata, DiskFormat::Raw, Device::Disk),
    ];
    q35.storage.extend((0..8).map(|i| disk(&format!("more{i}"), Bus::Virtio, DiskFormat::Raw, Device::Disk)));
    let user =
        |id: &str| Nic { id: id.to_owned(), mac_address: None, kind: NicKind::User { port_forwards: Vec::new() } };
    q35.network = (0..8).map(|i| user(&format!("n{i}"))).collect();
    q35.cpu.vcpu_count = 2;
    q35.cpu.max_vcpu_count = 4;
    q35.cpu.features.insert("hle".parse().unwrap(), false);
    q35.memory.max_size = roost_model::Bytes::from_mib(64);
    q35.memory.merge = true;

    let mut microvm = micro_on(MachineType::Microvm);
    microvm.storage = vec![qcow2, disk("s2", Bus::Scsi, DiskFormat::Raw, Device::Disk)];
    microvm.network = vec![user("eth0")];
    microvm.memory.backing = Backing::Shared;

    for spec in [q35, microvm] {
        let disks: Vec<String> = spec.storage.iter().map(|disk| disk.id.clone()).collect();
        let vm = host.create(spec).await;
        let (_launch, _serial) = host.boot(&vm).await;
        let metrics = host.backend.info(vm.id).await.unwrap().metrics.expect("it runs");
        assert_eq!(metrics.disks.iter().map(|disk| disk.id.clone()).collect::<Vec<_>>(), disks);
        assert!(metrics.cpu_time_ns > 0 && metrics.memory_rss_bytes > 1 << 20 && metrics.uptime_ms > 0, "{metrics:?}");
        assert!(metrics.uptime_ms < 600_000, "{metrics:?}");
        assert!(metrics.nics.is_empty(), "user-mode networks are not counted");
        host.delete(&vm).await;
    }
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_serial_line_there_is_no_keeper() {
    let mut host = Host::new();
    let mut spec = micro();
    spec.console.enabled = false;
    let vm = host.create(spec).await;
    host.backend.boot(&vm, new_launch(), host.journal(&vm)).await.unwrap();
    assert_eq!(host.backend.console(vm.id).await.unwrap().socket, None);
    let processes = crate::support::processes_in(host.dir.path());
    assert_eq!(processes.len(), 1, "{processes:?}");
    host.delete(&vm).await;
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_log_is_kept_over_launches_and_goes_with_the_vm() {
    let mut host = Host::new();
    let (vm, _launch, _serial) = host.running().await;
    host.backend.shutdown(vm.id, Stop::Forced).await.unwrap();
    host.clear(&vm).await;
    let log_dir = host.backend.console(vm.id).await.unwrap().log_dir;
    let read = || {
        let bytes = roost_console_keeper::read_tail(&log_dir, 1 << 20).unwrap();
        String::from_utf8_lossy(&bytes).matches("boot").count()
    };
    assert_eq!(read(), 1);
    let (_launch, _serial) = host.boot(&vm).await;
    wait_until("the second boot is in the log", || read() == 2).await;
    host.delete(&vm).await;
    assert!(!log_dir.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_nobody_knows() {
    let mut host = Host::new();
    let vm = host.define(VmSpec { ..micro() });
    for error in [
        host.backend.pause(vm.id).await.unwrap_err(),
        host.backend.resume(vm.id).await.unwrap_err(),
        host.backend.reboot(vm.id, GRACE).await.unwrap_err(),
        host.backend.shutdown(vm.id, GRACE).await.unwrap_err(),
        host.backend.console(vm.id).await.unwrap_err(),
    ] {
        assert_eq!(error.reason, "NO_MACHINE");
    }
    assert_eq!(host.backend.info(vm.id).await.unwrap().report.machine, Machine::Absent);
    host.clear(&vm).await;
    host.delete(&vm).await;
}
