use buffa::Message;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use roost_model::spec::{
    AbsolutePath, Accelerator, Agent, AgentChannel, Backing, Boot, Bus, Console, Cpu, Device, Disk, DiskFormat,
    Forward, Idle, IdleAction, MacAddress, MachineType, Memory, Nic, NicKind, Protocol, RestartMode, RestartPolicy,
    Tool, Topology,
};
use roost_model::{Bytes, Timestamp};
use serde_json::json;

use super::*;
use crate::{strict_json, to_proto};

fn minimal() -> v1::VmConfig {
    v1::VmConfig {
        memory: v1::MemoryConfig { size_bytes: 64 << 20, ..Default::default() }.into(),
        boot: v1::BootConfig { kernel_path: "/boot/vmlinuz".to_owned(), ..Default::default() }.into(),
        ..Default::default()
    }
}

/// A configuration in JSON laid over the minimal one, read as the API reads it.
fn read(json: serde_json::Value) -> Result<VmSpec, Invalid> {
    let mut whole = serde_json::to_value(minimal()).unwrap();
    for (key, value) in json.as_object().unwrap() {
        whole[key.as_str()] = value.clone();
    }
    let config = strict_json::read("vmm.v1.VmConfig", whole).expect("the test's JSON is well-formed");
    create(v1::CreateVmRequest { config: Some(config).into(), ..Default::default() }).map(|c| c.spec)
}

fn refused(json: serde_json::Value) -> (String, String) {
    let e = read(json).expect_err("the configuration is bad");
    (e.field, e.value)
}

#[test]
fn what_is_left_out_is_what_a_newcomer_would_want() {
    let spec = read(json!({
        "storage": [{"path": "/srv/root.raw"}, {"path": "/srv/cd.iso", "device": "cdrom"}],
        "network": [{}, {"tap_device": "tap7"}, {"port_forwards": [{"host_port": 2222, "guest_port": 22}]}],
    }))
    .unwrap();
    assert_eq!(spec.cpu, Cpu::with_count(1));
    assert!(spec.console.enabled);
    assert_eq!((spec.machine, spec.accelerator, spec.time_to_live), (None, Accelerator::Auto, None));
    assert_eq!(spec.restart_policy, RestartPolicy::default());
    let [disk, cdrom] = spec.storage.as_slice() else { panic!("{:?}", spec.storage) };
    assert_eq!(
        (disk.id.as_str(), disk.bus, disk.format, disk.read_only),
        ("disk0", Bus::Virtio, DiskFormat::Raw, false)
    );
    assert_eq!((cdrom.id.as_str(), cdrom.bus, cdrom.read_only), ("disk1", Bus::Sata, true));
    assert_eq!(spec.network[0].kind, NicKind::User { port_forwards: vec![] });
    assert_eq!(spec.network[1].kind, NicKind::Tap { device: "tap7".to_owned() });
    let NicKind::User { port_forwards } = &spec.network[2].kind else { panic!("user-mode networking") };
    assert_eq!(port_forwards[0].host_address, std::net::Ipv4Addr::LOCALHOST);
}

#[test]
fn an_error_names_the_path_and_the_value() {
    let path = |field: &str, value: &str| (field.to_owned(), value.to_owned());
    assert_eq!(refused(json!({"memory": {}})), path("config.memory.size_bytes", "0B"));
    assert_eq!(refused(json!({"memory": {"size_bytes": -1}})), path("config.memory.size_bytes", "-1"));
    assert_eq!(
        refused(json!({"memory": {"size_bytes": 64 << 20, "max_size_bytes": 128 << 20}})),
        path("config.memory.max_size_bytes", "128MiB")
    );
    assert_eq!(
        refused(json!({"memory": {"size_bytes": 64 << 20, "backing": {"kind": 9}}})),
        path("config.memory.backing.kind", "9")
    );
    assert_eq!(refused(json!({"cpu": {"features": {"avx2": "maybe"}}})), path("config.cpu.features.avx2", "maybe"));
    assert_eq!(refused(json!({"boot": {"kernel_path": "vmlinuz"}})), path("config.boot.kernel_path", "vmlinuz"));
    assert_eq!(
        refused(json!({"boot": {"kernel_path": "/k", "boot_options": {"a": "b"}}})),
        path("config.boot.boot_options.a", "b")
    );
    let storage = |second: serde_json::Value| refused(json!({"storage": [{"path": "/a"}, second]}));
    assert_eq!(storage(json!({"path": "json:{}"})), path("config.storage[1].path", "json:{}"));
    assert_eq!(storage(json!({})), path("config.storage[1].path", ""));
    assert_eq!(storage(json!({"path": "/b", "format": "vmdk"})), path("config.storage[1].format", "vmdk"));
    assert_eq!(storage(json!({"path": "/b.qcow2"})), path("config.storage[1].format", ""));
    assert_eq!(
        storage(json!({"path": "/b", "options": {"cache": "none"}})),
        path("config.storage[1].options.cache", "none")
    );
    let nic = |nic: serde_json::Value| refused(json!({"network": [nic]}));
    assert_eq!(nic(json!({"tap_device": "br0; rm -rf /"})), path("config.network[0].tap_device", "br0; rm -rf /"));
    assert_eq!(nic(json!({"kind": "tap"})), path("config.network[0].tap_device", ""));
    assert_eq!(nic(json!({"kind": "user", "tap_device": "t"})), path("config.network[0].tap_device", "t"));
    assert_eq!(
        nic(json!({"mac_address": "01:00:00:00:00:00"})),
        path("config.network[0].mac_address", "01:00:00:00:00:00")
    );
    assert_eq!(
        nic(json!({"port_forwards": [{"host_port": 70000, "guest_port": 1}]})),
        path("config.network[0].port_forwards[0].host_port", "70000")
    );
    assert_eq!(
        refused(json!({"console": {"enabled": true, "output": "/dev/tty"}})),
        path("config.console.output", "/dev/tty")
    );
    assert_eq!(
        refused(json!({"restart_policy": {"backoff_seconds": -1}})),
        path("config.restart_policy.backoff_seconds", "-1")
    );
    assert_eq!(
        refused(json!({"restart_policy": {"backoff_seconds": "NaN"}})),
        path("config.restart_policy.backoff_seconds", "NaN")
    );
    assert_eq!(refused(json!({"machine": "pc"})), path("config.machine", "pc"));
    assert_eq!(refused(json!({"accelerator": "xen"})), path("config.accelerator", "xen"));
    assert_eq!(create(v1::CreateVmRequest::default()).unwrap_err().field, "config");
}

#[test]
fn requests_are_read_with_their_common_fields() {
    let request = v1::ShutdownVmRequest {
        vm_id: "web".to_owned(),
        idempotency_key: "k".to_owned(),
        r#async: true,
        wait_seconds: 5,
        priority: v1::Priority::High.into(),
        resource_version: 7,
        ..Default::default()
    };
    let common = Common {
        idempotency_key: Some("k".to_owned()),
        asynchronous: true,
        wait: Some(Duration::from_secs(5)),
        priority: Priority::High,
        resource_version: Some(7),
    };
    let goal = Goal::Shutdown { grace_ms: Some(30_000) };
    assert_eq!(shutdown(request.clone()).unwrap(), Request { vm: "web".to_owned(), goal, common });
    let forced = v1::ShutdownVmRequest { force: true, ..request.clone() };
    assert_eq!(shutdown(forced.clone()).unwrap().goal, Goal::Shutdown { grace_ms: None });

    let field = |r: Result<Request, Invalid>| r.unwrap_err().field;
    assert_eq!(field(shutdown(v1::ShutdownVmRequest { timeout_seconds: 1, ..forced })), "timeout_seconds");
    assert_eq!(field(shutdown(v1::ShutdownVmRequest { wait_seconds: 3601, ..request.clone() })), "wait_seconds");
    assert_eq!(field(shutdown(v1::ShutdownVmRequest { priority: 17.into(), ..request.clone() })), "priority");
    assert_eq!(
        field(shutdown(v1::ShutdownVmRequest { idempotency_key: "a\nb".to_owned(), ..request })),
        "idempotency_key"
    );
    assert_eq!(field(boot(v1::BootVmRequest::default())), "vm_id");
}

#[test]
fn a_bulk_request_names_the_vm_at_fault() {
    let good = v1::CreateVmRequest { config: minimal().into(), ..Default::default() };
    let bad = v1::CreateVmRequest { name: "a b".to_owned(), ..good.clone() };
    let bulk = |vms: Vec<v1::CreateVmRequest>| v1::BulkCreateVmsRequest { vms, ..Default::default() };
    assert_eq!(bulk_create(bulk(vec![good.clone(), bad])).unwrap_err().field, "vms[1].name");
    assert_eq!(bulk_create(bulk(vec![])).unwrap_err().field, "vms");
    assert_eq!(bulk_create(bulk(vec![good.clone(); 1001])).unwrap_err().value, "1001");
    let mut keys = bulk(vec![v1::CreateVmRequest { idempotency_key: "a".to_owned(), ..good }]);
    assert_eq!(bulk_create(keys.clone()).unwrap().vms.len(), 1);
    keys.idempotency_key = "b".to_owned();
    assert_eq!(bulk_create(keys).unwrap_err().field, "vms[0].idempotency_key");
}

#[test]
fn queries_are_bounded_and_their_words_known() {
    let request = v1::ListVmsRequest { states: vec![v1::VmState::Running.into()], ..Default::default() };
    let query = list_vms(request.clone()).unwrap();
    assert_eq!((query.states.as_slice(), query.page_size), ([VmState::Running].as_slice(), DEFAULT_PAGE));
    assert_eq!(
        list_vms(v1::ListVmsRequest { page_size: i32::MAX, ..request.clone() }).unwrap().page_size,
        LARGEST_PAGE
    );
    assert_eq!(list_vms(v1::ListVmsRequest { page_size: -1, ..request.clone() }).unwrap_err().field, "page_size");
    assert_eq!(
        list_vms(v1::ListVmsRequest { page_token: "x".to_owned(), ..request.clone() }).unwrap_err().field,
        "page_token"
    );
    let unknown = v1::ListVmsRequest { states: vec![v1::VmState::Running.into(), 99.into()], ..request };
    let refused = list_vms(unknown).unwrap_err();
    assert_eq!((refused.field.as_str(), refused.value.as_str()), ("states[1]", "99"));
    assert_eq!(refused.permitted.len(), 6);
    let many = v1::ListVmsRequest { states: vec![v1::VmState::Running.into(); 100_000], ..Default::default() };
    assert_eq!(list_vms(many).unwrap().states, [VmState::Running]);
    let pairs = (0..65).map(|n| (n.to_string(), String::new())).collect();
    let metadata = v1::ListVmsRequest { metadata: pairs, ..Default::default() };
    assert_eq!(list_vms(metadata).unwrap_err().field, "metadata");
    let prefix = v1::ListVmsRequest { name_prefix: "x".repeat(64), ..Default::default() };
    assert_eq!(list_vms(prefix).unwrap_err().field, "name_prefix");
    let watched = |n| v1::WatchVmsRequest { vm_ids: vec!["x".to_owned(); n], ..Default::default() };
    assert_eq!(watch(watched(MOST_VMS)).unwrap().vms.len(), MOST_VMS);
    assert_eq!(watch(watched(MOST_VMS + 1)).unwrap_err().field, "vm_ids");
    let operations = v1::ListOperationsRequest { statuses: vec![0.into()], ..Default::default() };
    assert_eq!(list_operations(operations).unwrap_err().field, "statuses[0]");
}

#[test]
fn a_field_from_the_future_is_refused_and_not_dropped() {
    // VmConfig field 99, a varint: what a newer client may send.
    let mut bytes = minimal().encode_to_vec();
    bytes.extend([0x98, 0x06, 0x01]);
    let config = v1::VmConfig::decode_from_slice(&bytes).unwrap();
    let refused = spec(config).unwrap_err();
    assert_eq!(refused.value, "field number 99");
}

#[test]
fn numbers_of_the_first_api_are_kept() {
    // One message for each field, as the first API's clients encode it: tag = number << 3 | 2.
    let config = v1::VmConfig {
        cpu: v1::CpuConfig::default().into(),
        memory: v1::MemoryConfig::default().into(),
        boot: v1::BootConfig::default().into(),
        storage: vec![v1::StorageDevice::default()],
        network: vec![v1::NetworkInterface::default()],
        console: v1::ConsoleConfig::default().into(),
        metadata: [(String::new(), String::new())].into(),
        ..Default::default()
    };
    let tags: Vec<u8> = config.encode_to_vec().into_iter().filter(|b| *b != 0).take(7).collect();
    assert_eq!(tags, [1, 2, 3, 4, 5, 6, 7].map(|n: u8| n << 3 | 2));
    let states = [
        v1::VmState::Unspecified,
        v1::VmState::Created,
        v1::VmState::Running,
        v1::VmState::Paused,
        v1::VmState::Shutdown,
        v1::VmState::Crashed,
        v1::VmState::Failed,
    ];
    assert_eq!(states.map(|s| s as i32), [0, 1, 2, 3, 4, 5, 6]);
}

fn id() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9_-]{0,7}"
}

fn path() -> impl Strategy<Value = AbsolutePath> {
    "/[ -.0-~]{1,20}".prop_filter_map("a path", |p| p.parse().ok())
}

fn cpu() -> impl Strategy<Value = Cpu> {
    let features = btree_map("[a-z][a-z0-9.-]{0,5}".prop_map(|f| f.parse().unwrap()), any::<bool>(), 0..3);
    let model = proptest::option::of("[A-Za-z0-9._-]{1,8}".prop_map(|m| m.parse().unwrap()));
    ((1u32..4, 1u32..4, 1u32..3), 1u32..=64, any::<bool>(), features, model).prop_map(
        |((sockets, cores_per_socket, threads_per_core), plain, shaped, features, model)| {
            let product = sockets * cores_per_socket * threads_per_core;
            let max_vcpu_count = if shaped { product } else { plain };
            let topology = shaped.then_some(Topology { sockets, cores_per_socket, threads_per_core });
            Cpu {
                vcpu_count: 1 + max_vcpu_count / 2,
                max_vcpu_count: max_vcpu_count + u32::from(max_vcpu_count == 1 && !shaped),
                topology,
                features,
                model,
            }
        },
    )
}

fn memory() -> impl Strategy<Value = Memory> {
    let kind = prop_oneof![
        any::<bool>().prop_map(|merge| (Backing::Anonymous, merge)),
        Just((Backing::Shared, false)),
        Just((Backing::Hugepages { page_size: Bytes::from_mib(2) }, false)),
    ];
    (4u64..64, 0u64..64, kind).prop_map(|(size, more, (backing, merge))| Memory {
        size: Bytes::from_mib(size * 2),
        max_size: Bytes::from_mib(size * 2 + more),
        backing,
        merge,
    })
}

fn disk() -> impl Strategy<Value = Disk> {
    let bus = prop_oneof![Just(Bus::Virtio), Just(Bus::Scsi), Just(Bus::Sata)];
    let format = prop_oneof![Just(DiskFormat::Raw), Just(DiskFormat::Qcow2)];
    (path(), any::<bool>(), bus, format, any::<bool>()).prop_map(|(path, read_only, bus, format, cdrom)| Disk {
        id: String::new(),
        path,
        read_only: read_only || cdrom,
        is_root_device: false,
        bus: if cdrom && bus == Bus::Virtio { Bus::Scsi } else { bus },
        format,
        device: if cdrom { Device::Cdrom } else { Device::Disk },
    })
}

fn nic() -> impl Strategy<Value = Nic> {
    let forward = (any::<bool>(), any::<std::net::IpAddr>(), 1u16.., 1u16..).prop_map(|(udp, address, host, guest)| {
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        Forward { protocol, host_address: address, host_port: host, guest_port: guest }
    });
    let kind = prop_oneof![
        vec(forward, 0..2).prop_map(|port_forwards| NicKind::User { port_forwards }),
        "[a-z0-9]{1,15}".prop_map(|device| NicKind::Tap { device }),
    ];
    (proptest::option::of(any::<[u8; 5]>()), kind).prop_map(|(mac, kind)| Nic {
        id: String::new(),
        mac_address: mac.map(MacAddress::local),
        kind,
    })
}

fn policy() -> impl Strategy<Value = RestartPolicy> {
    let mode = prop_oneof![Just(RestartMode::Never), Just(RestartMode::OnFailure), Just(RestartMode::Always)];
    (mode, any::<u32>(), 0u64..86_400_000, 0u64..86_400_000).prop_map(|(mode, max_retries, a, b)| RestartPolicy {
        mode,
        max_retries,
        backoff: Duration::from_millis(a.min(b)),
        backoff_max: Duration::from_millis(a.max(b)),
    })
}

fn agent() -> impl Strategy<Value = Agent> {
    let channel = prop_oneof![Just(AgentChannel::Auto), Just(AgentChannel::On), Just(AgentChannel::Off)];
    let user = proptest::option::of("[a-z_][a-z0-9_-]{0,8}");
    (channel, any::<bool>(), vec(path(), 0..3), user, 1u64..3600).prop_map(
        |(channel, allow_exec, file_roots, user, interval)| Agent {
            channel,
            allow_exec,
            file_roots,
            exec_user: user.map(|user| user.parse().expect("a user's name")),
            metrics_interval: Duration::from_secs(interval),
        },
    )
}

fn tool() -> impl Strategy<Value = Tool> {
    let how = prop_oneof![
        Just((None, None)),
        "[0-9][0-9.]{0,6}".prop_map(|version| (Some(version.parse().expect("a version")), None)),
        "[ -~]{1,40}".prop_map(|script| (None, Some(script))),
    ];
    ("[a-z][a-z0-9+-]{0,8}", how).prop_map(|(name, (version, script))| Tool {
        name: name.parse().expect("a tool's name"),
        version,
        script,
    })
}

fn idle() -> impl Strategy<Value = Option<Idle>> {
    let action = prop_oneof![Just(IdleAction::Stop), Just(IdleAction::Delete)];
    proptest::option::of(
        (10u64..100_000, action).prop_map(|(s, action)| Idle { timeout: Duration::from_secs(s), action }),
    )
}

prop_compose! {
    fn any_spec()(
        cpu in cpu(),
        memory in memory(),
        kernel in proptest::option::of((path(), proptest::option::of(path()), "[ -~]{0,40}")),
        mut storage in vec(disk(), 0..4),
        mut network in vec(nic(), 0..3),
        ids in proptest::collection::btree_set(id(), 8),
        (enabled, ttl) in (any::<bool>(), proptest::option::of(1u64..100_000)),
        metadata in btree_map("[a-z/]{1,8}", "[ -~]{0,12}", 0..3),
        restart_policy in policy(),
        machine in proptest::option::of(prop_oneof![Just(MachineType::Q35), Just(MachineType::Microvm)]),
        accelerator in prop_oneof![Just(Accelerator::Auto), Just(Accelerator::Kvm), Just(Accelerator::Tcg)],
        (agent, tools, idle) in (agent(), vec(tool(), 0..3), idle()),
    ) -> VmSpec {
        let mut ids = ids.into_iter();
        for (i, disk) in storage.iter_mut().enumerate() {
            disk.id = ids.next().expect("as many IDs as devices");
            disk.path = format!("{}{i}", disk.path).parse().expect("still a path");
            disk.is_root_device = i == 0;
        }
        for nic in &mut network {
            nic.id = ids.next().expect("as many IDs as devices");
        }
        let boot_order = storage.iter().map(|d| d.id.clone()).rev().collect();
        let boot = match kernel {
            Some((kernel, initrd, args)) => Boot {
                kernel_path: Some(kernel),
                initrd_path: initrd,
                kernel_args: args.parse().expect("printable"),
                boot_order,
            },
            None => Boot { boot_order, ..Boot::default() },
        };
        VmSpec {
            cpu, memory, boot, storage, network,
            console: Console { enabled },
            metadata, restart_policy,
            time_to_live: ttl.map(Duration::from_secs),
            machine, accelerator, agent, tools, idle,
        }
    }
}

proptest! {
    /// What a client reads it may send back: by either encoding, nothing changes on the way.
    #[test]
    fn a_spec_survives_the_wire(before in any_spec()) {
        prop_assume!(before.check().is_ok());
        let wire = to_proto::spec(&before);
        let binary = v1::VmConfig::decode_from_slice(&wire.encode_to_vec()).unwrap();
        prop_assert_eq!(&spec(binary).unwrap(), &before);
        let json = serde_json::to_value(&wire).unwrap();
        let read: v1::VmConfig = strict_json::read("vmm.v1.VmConfig", json).unwrap();
        prop_assert_eq!(&spec(read).unwrap(), &before);
    }

    #[test]
    fn an_instant_survives_the_wire(ms in -62_135_596_800_000i64..253_402_300_799_999) {
        let wire = to_proto::timestamp(Timestamp::from_unix_ms(ms));
        prop_assert!((0..1_000_000_000).contains(&wire.nanos));
        prop_assert_eq!(wire.seconds * 1000 + i64::from(wire.nanos) / 1_000_000, ms);
        let json = serde_json::to_value(&wire).unwrap();
        let shown: Timestamp = json.as_str().unwrap().parse().unwrap();
        prop_assert_eq!(shown.unix_ms(), ms);
    }

    /// Whatever comes in: a refusal or a checked spec, never a panic.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(config) = v1::VmConfig::decode_from_slice(&bytes)
            && let Ok(spec) = spec(config)
        {
            spec.check().unwrap();
        }
    }
}
