use super::*;
use crate::units::Bytes;

fn spec() -> VmSpec {
    let boot = Boot { kernel_path: Some("/boot/vmlinuz".parse().unwrap()), ..Boot::default() };
    VmSpec::minimal(Memory::fixed(Bytes::from_mib(64)), boot)
}

fn disk(id: &str, path: &str) -> Disk {
    Disk {
        id: id.to_owned(),
        path: path.parse().unwrap(),
        read_only: false,
        is_root_device: false,
        bus: Bus::Virtio,
        format: DiskFormat::Raw,
        device: Device::Disk,
    }
}

fn field(spec: &VmSpec) -> String {
    spec.check().expect_err("the spec is bad").field
}

#[test]
fn a_minimal_spec_is_good_and_survives_its_stored_form() {
    let mut spec = spec();
    spec.storage.push(disk("root", "/srv/a,b=c.raw"));
    spec.network.push(Nic { id: "net0".to_owned(), mac_address: None, kind: NicKind::User { port_forwards: vec![] } });
    spec.memory.backing = Backing::Hugepages { page_size: Bytes::from_mib(2) };
    spec.check().unwrap();
    let stored = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<VmSpec>(&stored).unwrap(), spec);
}

#[test]
fn the_error_names_the_field() {
    let mut s = spec();
    s.cpu.vcpu_count = 0;
    assert_eq!(field(&s), "cpu.vcpu_count");
    let mut s = spec();
    s.memory = Memory::fixed(Bytes::new(1000));
    assert_eq!(field(&s), "memory.size_bytes");
    let mut s = spec();
    s.storage = vec![disk("a", "/a"), disk("a", "/b")];
    assert_eq!(field(&s), "storage[1].id");
    let mut s = spec();
    s.storage = vec![disk("a", "/a"), disk("b", "/a")];
    assert_eq!(field(&s), "storage[1].path");
    let mut s = spec();
    s.boot = Boot::default();
    assert_eq!(field(&s), "boot");
    let mut s = spec();
    s.boot.boot_order = vec!["nope".to_owned()];
    assert_eq!(field(&s), "boot.boot_order[0]");
    let mut s = spec();
    s.network =
        vec![Nic { id: "n".to_owned(), mac_address: None, kind: NicKind::Tap { device: "br0; rm -rf /".to_owned() } }];
    assert_eq!(field(&s), "network[0].tap_device");
    let forward = |host_port| Forward {
        protocol: Protocol::Tcp,
        host_address: std::net::Ipv4Addr::LOCALHOST.into(),
        host_port,
        guest_port: 22,
    };
    let mut s = spec();
    let kind = NicKind::User { port_forwards: (1..=129).map(forward).collect() };
    s.network = vec![Nic { id: "n".to_owned(), mac_address: None, kind }];
    assert_eq!(field(&s), "network[0].port_forwards");
    let mut s = spec();
    s.cpu.topology = Some(Topology { sockets: 2, cores_per_socket: 2, threads_per_core: 1 });
    assert_eq!(field(&s), "cpu.topology");
}

#[test]
fn a_path_is_a_path_and_nothing_else() {
    for bad in ["", "x.raw", "json:{}", "nbd:host:1", "fd:3", "host:name", "/a/../etc/shadow", "/a\nb"] {
        assert!(bad.parse::<AbsolutePath>().is_err(), "{bad}");
    }
    for good in ["/x.raw,readonly=on", "/with space", "/json:{}"] {
        assert_eq!(good.parse::<AbsolutePath>().unwrap().as_str(), good);
    }
}

#[test]
fn kernel_arguments_keep_quotes_and_spaces_but_no_controls() {
    let args = r#"root=/dev/vda "a b" 'c,d' $(x)"#;
    assert_eq!(args.parse::<KernelArgs>().unwrap().as_str(), args);
    assert!("a\nb".parse::<KernelArgs>().is_err());
    assert!("x".repeat(2048).parse::<KernelArgs>().is_err());
}

#[test]
fn back_off_doubles_up_to_its_limit() {
    let policy = RestartPolicy {
        backoff: Duration::from_secs(2),
        backoff_max: Duration::from_secs(10),
        ..RestartPolicy::default()
    };
    let delays: Vec<_> = (0..5).map(|n| policy.delay(n, 0.0).as_secs()).collect();
    assert_eq!(delays, [2, 4, 8, 10, 10]);
    assert_eq!(policy.delay(u32::MAX, 1.0), Duration::from_secs(11));
}
