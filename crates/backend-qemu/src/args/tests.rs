use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use roost_model::spec::{
    AgentChannel, Backing, Boot, Bus, Device, Disk, DiskFormat, Forward, Memory, Nic, NicKind, Protocol, Topology,
};
use roost_model::{Bytes, VmSpec};

use super::*;
use crate::probe::ProbedMachine;

/// What a QEMU of these days answers, as far as arguments depend on it.
pub(crate) fn probe() -> Probe {
    let machine = |name: &str, options: &[&str]| ProbedMachine {
        name: name.to_owned(),
        max_cpus: 288,
        properties: ["memory-backend", "dump-guest-core", "mem-merge", "graphics", "usb", "acpi", "pit", "pic"]
            .iter()
            .chain(options)
            .map(|s| (*s).to_owned())
            .collect(),
    };
    let types = ["device:pvpanic", "device:virtio-mmio", "object:rng-builtin", "device:virtserialport"];
    Probe {
        binary: serde_json::from_value(
            serde_json::json!({"path": "/usr/bin/qemu-system-x86_64", "size": 1, "changed_ns": 1}),
        )
        .unwrap(),
        version: "10.0.2".to_owned(),
        accelerators: BTreeSet::from(["kvm".to_owned(), "tcg".to_owned()]),
        machines: BTreeMap::from([
            ("q35".to_owned(), machine("pc-q35-10.0", &["vmport", "sata"])),
            ("microvm".to_owned(), machine("microvm", &["rtc", "isa-serial", "ioapic2"])),
        ]),
        types: types.iter().map(|s| (*s).to_owned()).collect(),
        cpu_models: ["max", "host", "Skylake-Server-v4"].iter().map(|s| (*s).to_owned()).collect(),
        sandbox: true,
        microvm_firmware: Some("/usr/share/seabios/bios-microvm.bin".to_owned()),
    }
}

fn tcg() -> Choice {
    Choice { kvm: false, reason: "there is no /dev/kvm".to_owned() }
}

fn definition(spec: VmSpec) -> Definition {
    spec.check().expect("the spec is one that the engine would pass on");
    Definition {
        id: "vm_018bcfe5-6800-7000-8000-000000000001".parse().unwrap(),
        name: "web-1.prod".parse().unwrap(),
        spec,
    }
}

fn kernel_spec() -> VmSpec {
    let boot = Boot {
        kernel_path: Some("/boot/vmlinuz".parse().unwrap()),
        initrd_path: Some("/boot/initrd.img".parse().unwrap()),
        kernel_args: "console=ttyS0 quiet".parse().unwrap(),
        boot_order: Vec::new(),
    };
    VmSpec::minimal(Memory::fixed(Bytes::from_mib(256)), boot)
}

fn disk(id: &str, bus: Bus) -> Disk {
    Disk {
        id: id.to_owned(),
        path: format!("/images/{id}.raw").parse().unwrap(),
        read_only: false,
        is_root_device: false,
        bus,
        format: DiskFormat::Raw,
        device: Device::Disk,
    }
}

fn cdrom(id: &str, bus: Bus) -> Disk {
    Disk { read_only: true, device: Device::Cdrom, ..disk(id, bus) }
}

fn user_nic(id: &str, forwards: &[(&str, u16, u16)]) -> Nic {
    let forward = |(address, host_port, guest_port): &(&str, u16, u16)| Forward {
        protocol: Protocol::Tcp,
        host_address: address.parse().unwrap(),
        host_port: *host_port,
        guest_port: *guest_port,
    };
    let port_forwards = forwards.iter().map(forward).collect();
    Nic { id: id.to_owned(), mac_address: None, kind: NicKind::User { port_forwards } }
}

fn tap_nic(id: &str, device: &str) -> Nic {
    let mac = Some("52:54:00:12:34:56".parse().unwrap());
    Nic { id: id.to_owned(), mac_address: mac, kind: NicKind::Tap { device: device.to_owned() } }
}

fn built(machine: MachineType, probe: &Probe, accelerator: &Choice, spec: VmSpec) -> Result<Vec<String>, BackendError> {
    let plan = Plan { machine, probe, accelerator, block_devices: &[] };
    let Built { args, .. } = build(&definition(spec), &plan)?;
    Ok(args.into_iter().map(|arg| arg.into_string().unwrap()).collect())
}

/// One line for each option with its value.
fn golden(machine: MachineType, spec: VmSpec) -> String {
    lines(&built(machine, &probe(), &tcg(), spec).unwrap())
}

fn lines(args: &[String]) -> String {
    let mut text = String::new();
    for arg in args {
        text.push_str(if arg.starts_with('-') { "\n" } else { " " });
        text.push_str(arg);
    }
    text.trim_start().to_owned()
}

fn refused(machine: MachineType, spec: VmSpec) -> BackendError {
    built(machine, &probe(), &tcg(), spec).unwrap_err()
}

#[test]
fn kernel_on_q35() {
    insta::assert_snapshot!(golden(MachineType::Q35, kernel_spec()));
}

#[test]
fn kernel_on_microvm() {
    let mut spec = kernel_spec();
    spec.storage = vec![disk("root", Bus::Virtio), disk("data", Bus::Scsi), cdrom("seed", Bus::Scsi)];
    spec.network = vec![user_nic("eth0", &[])];
    insta::assert_snapshot!(golden(MachineType::Microvm, spec));
}

#[test]
fn disks_of_every_bus_on_q35_boot_in_order() {
    let mut spec = kernel_spec();
    spec.boot = Boot::default();
    spec.storage = vec![
        disk("data", Bus::Virtio),
        Disk { is_root_device: true, format: DiskFormat::Qcow2, ..disk("root", Bus::Virtio) },
        disk("s0", Bus::Scsi),
        cdrom("s1", Bus::Scsi),
        disk("a0", Bus::Sata),
        cdrom("a1", Bus::Sata),
    ];
    insta::assert_snapshot!(golden(MachineType::Q35, spec));
}

#[test]
fn a_microvm_starts_from_a_disk_by_firmware_that_can() {
    let spec = VmSpec { boot: Boot::default(), storage: vec![disk("root", Bus::Virtio)], ..kernel_spec() };
    let args = built(MachineType::Microvm, &probe(), &tcg(), spec.clone()).unwrap();
    let at = args.iter().position(|arg| arg == "-bios").unwrap();
    assert_eq!(args[at + 1], "/usr/share/seabios/bios-microvm.bin");
    let without = Probe { microvm_firmware: None, ..probe() };
    let error = built(MachineType::Microvm, &without, &tcg(), spec).unwrap_err();
    assert_eq!(error.reason, "UNSUPPORTED_BY_MACHINE");
}

#[test]
fn boot_order_as_listed() {
    let mut spec = kernel_spec();
    spec.boot = Boot { boot_order: vec!["eth0".to_owned(), "second".to_owned()], ..Boot::default() };
    spec.storage = vec![disk("first", Bus::Virtio), disk("second", Bus::Virtio)];
    spec.network = vec![user_nic("eth0", &[]), user_nic("eth1", &[])];
    insta::assert_snapshot!(golden(MachineType::Q35, spec));
}

#[test]
fn networks_on_q35() {
    let mut spec = kernel_spec();
    spec.network = vec![
        user_nic("eth0", &[("127.0.0.1", 2222, 22), ("0.0.0.0", 8080, 80)]),
        tap_nic("eth1", "tap0"),
        Nic { mac_address: None, ..tap_nic("eth2", "tap1") },
    ];
    insta::assert_snapshot!(golden(MachineType::Q35, spec));
}

#[test]
fn processors_and_memory_in_every_shape() {
    let mut shaped = kernel_spec();
    shaped.cpu.vcpu_count = 2;
    shaped.cpu.max_vcpu_count = 8;
    shaped.cpu.topology = Some(Topology { sockets: 2, cores_per_socket: 2, threads_per_core: 2 });
    shaped.cpu.model = Some("Skylake-Server-v4".parse().unwrap());
    shaped.cpu.features = BTreeMap::from([("hle".parse().unwrap(), false), ("avx2".parse().unwrap(), true)]);
    shaped.memory.max_size = Bytes::from_mib(1024);
    shaped.memory.merge = true;
    let mut shared = kernel_spec();
    shared.memory.backing = Backing::Shared;
    let mut huge = kernel_spec();
    huge.memory.backing = Backing::Hugepages { page_size: Bytes::from_mib(2) };
    let pick = |spec| {
        let all = golden(MachineType::Q35, spec);
        let chosen = ["-machine", "-cpu", "-smp", "-object", "-m "];
        all.lines().filter(|line| chosen.iter().any(|c| line.starts_with(c))).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!([pick(shaped), pick(shared), pick(huge)].join("\n\n"));
}

#[test]
fn under_kvm_and_without_a_serial_line() {
    let mut spec = kernel_spec();
    spec.console.enabled = false;
    let kvm = Choice { kvm: true, reason: "fast".to_owned() };
    insta::assert_snapshot!(lines(&built(MachineType::Q35, &probe(), &kvm, spec).unwrap()));
}

#[test]
fn an_older_qemu_is_asked_for_nothing_that_it_lacks() {
    let mut old = probe();
    old.sandbox = false;
    old.types.clear();
    for machine in old.machines.values_mut() {
        machine.properties = BTreeSet::from(["memory-backend".to_owned(), "acpi".to_owned()]);
    }
    insta::assert_snapshot!(lines(&built(MachineType::Microvm, &old, &tcg(), kernel_spec()).unwrap()));
}

#[test]
fn more_disks_and_nics_than_slots() {
    let mut spec = kernel_spec();
    spec.storage = (0..24).map(|i| disk(&format!("d{i}"), Bus::Virtio)).collect();
    spec.network = (0..8).map(|i| user_nic(&format!("n{i}"), &[])).collect();
    let args = built(MachineType::Q35, &probe(), &tcg(), spec).unwrap();
    let devices =
        args.iter().filter_map(|arg| serde_json::from_str::<Value>(arg).ok()).filter(|v| v["bus"] == "pcie.0");
    let places: Vec<String> = devices.map(|device| device["addr"].as_str().unwrap().to_owned()).collect();
    assert_eq!(places.len(), 24 + 8 + 2);
    assert_eq!(places.iter().collect::<BTreeSet<_>>().len(), places.len(), "{places:?}");
}

#[test]
fn a_channel_gives_way_unless_it_is_demanded() {
    let channels = |machine: MachineType, probe: &Probe, channel: AgentChannel, disks: usize| {
        let mut spec = kernel_spec();
        spec.storage = (0..disks).map(|i| disk(&format!("d{i}"), Bus::Virtio)).collect();
        spec.agent.channel = channel;
        let args = built(machine, probe, &tcg(), spec);
        args.map(|args| args.iter().filter(|arg| arg.contains("virtserialport")).count()).map_err(|e| e.message)
    };
    use AgentChannel::{Auto, Off, On};
    for machine in [MachineType::Q35, MachineType::Microvm] {
        assert_eq!([Auto, On, Off].map(|c| channels(machine, &probe(), c, 1)), [Ok(2), Ok(2), Ok(0)]);
    }
    // 22 disks and random numbers: every place of a microvm is taken.
    assert_eq!(channels(MachineType::Microvm, &probe(), Auto, 22), Ok(0));
    assert!(channels(MachineType::Microvm, &probe(), On, 22).is_err_and(|e| e.starts_with("devices 24")));
    let mut old = probe();
    old.types.remove("device:virtserialport");
    assert_eq!(channels(MachineType::Q35, &old, Auto, 1), Ok(0));
    assert!(channels(MachineType::Q35, &old, On, 1).is_err_and(|e| e.starts_with("agent.channel on")));
}

#[test]
fn what_the_board_cannot_have_is_refused_by_name() {
    let sata = VmSpec { storage: vec![disk("d", Bus::Sata)], ..kernel_spec() };
    let many = VmSpec { storage: (0..23).map(|i| disk(&format!("d{i}"), Bus::Virtio)).collect(), ..kernel_spec() };
    let six = VmSpec { network: vec![user_nic("eth0", &[("::1", 22, 22)])], ..kernel_spec() };
    let mut cpus = kernel_spec();
    cpus.cpu.max_vcpu_count = 4;
    let mut memory = kernel_spec();
    memory.memory.max_size = Bytes::from_mib(512);
    for (machine, spec, field) in [
        (MachineType::Microvm, sata, "storage[0].interface_type sata"),
        (MachineType::Microvm, many, "devices 24"),
        (MachineType::Q35, six, "network[0].port_forwards[0].host_address ::1"),
        (MachineType::Microvm, cpus, "cpu.max_vcpu_count 4"),
        (MachineType::Microvm, memory, "memory.max_size_bytes 512MiB"),
    ] {
        let error = refused(machine, spec);
        assert_eq!(error.reason, "UNSUPPORTED_BY_MACHINE");
        assert!(error.message.starts_with(field) && error.message.contains("permitted"), "{error}");
    }
    let mut unknown = kernel_spec();
    unknown.cpu.model = Some("Pentium-9".parse().unwrap());
    assert_eq!(refused(MachineType::Q35, unknown).reason, "CPU_MODEL_UNKNOWN");
    let mut host = kernel_spec();
    host.cpu.model = Some("host".parse().unwrap());
    assert!(refused(MachineType::Q35, host).message.contains("there is no /dev/kvm"));
}

#[test]
fn addresses_are_local_stable_and_differ() {
    let vm = definition(kernel_spec()).id;
    let other = "vm_018bcfe5-6800-7000-8000-000000000002".parse().unwrap();
    assert_eq!(nics::mac_of(vm, 0), nics::mac_of(vm, 0));
    assert_ne!(nics::mac_of(vm, 0), nics::mac_of(vm, 1));
    assert_ne!(nics::mac_of(vm, 0), nics::mac_of(other, 0));
    assert!(nics::mac_of(vm, 0).to_string().starts_with("52:"));
}

/// Texts that would mean something in an option string, to a shell, or to QEMU's file name parser.
fn nasty() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just(",readonly=on".to_owned()),
        Just(",process=EVIL".to_owned()),
        Just("\"quoted\" 'text'".to_owned()),
        Just("json:{\"driver\":\"null\"}".to_owned()),
        Just("nbd:127.0.0.1:1".to_owned()),
        Just("-daemonize".to_owned()),
        Just("\\u0000 $(id) `id` ; | &".to_owned()),
        "[ -~äß€]{1,12}",
    ];
    proptest::collection::vec(part, 1..5).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn texts_stay_what_they_are_and_change_nothing_else(path in nasty(), kernel_args in nasty()) {
        let path = format!("/{}", path.replace("..", ""));
        let with = |path: &str, kernel_args: &str| {
            let mut spec = kernel_spec();
            spec.boot.kernel_path = Some(format!("{path}.elf").parse().unwrap());
            spec.boot.initrd_path = Some(format!("{path}.cpio").parse().unwrap());
            spec.boot.kernel_args = kernel_args.parse().unwrap();
            spec.storage = vec![Disk { path: path.parse().unwrap(), ..disk("root", Bus::Virtio) }];
            built(MachineType::Q35, &probe(), &tcg(), spec).unwrap()
        };
        let (plain, args) = (with("/x", "quiet"), with(&path, &kernel_args));
        prop_assert_eq!(plain.len(), args.len());
        for (plain, arg) in plain.iter().zip(&args) {
            match plain.as_str() {
                "/x.elf" => prop_assert_eq!(arg, &format!("{path}.elf")),
                "/x.cpio" => prop_assert_eq!(arg, &format!("{path}.cpio")),
                "quiet" => prop_assert_eq!(arg, &kernel_args),
                text if text.contains("\"filename\"") => {
                    let node: Value = serde_json::from_str(arg).unwrap();
                    prop_assert_eq!(&node["filename"], path.as_str());
                    prop_assert_eq!(&node["read-only"], false);
                }
                same => prop_assert_eq!(arg, same),
            }
        }
    }
}
