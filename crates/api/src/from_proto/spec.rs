//! A VM's configuration: [`VmConfig`](v1::VmConfig) to [`VmSpec`].

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::Duration;

use roost_model::spec::{
    AbsolutePath, Accelerator, Agent, Backing, Boot, Bus, Console, Cpu, Device, Disk, DiskFormat, Forward, Idle,
    IdleAction, MacAddress, Memory, Nic, NicKind, Protocol, RestartMode, RestartPolicy, Tool, Topology,
};
use roost_model::{Bytes, Invalid, VmSpec};

use super::{given, no_unknown, not_a_word};
use crate::vmm::v1;

/// Reads a configuration and checks it as a whole. Paths in errors begin below it: `cpu.vcpu_count`.
pub fn spec(config: v1::VmConfig) -> Result<VmSpec, Invalid> {
    let v1::VmConfig {
        cpu: processors,
        memory: ram,
        boot: start,
        storage,
        network,
        console: serial,
        metadata,
        restart_policy: policy,
        time_to_live_seconds,
        machine,
        accelerator,
        agent: guest_agent,
        tools: wanted,
        idle_timeout_seconds,
        idle_action,
        __buffa_unknown_fields: unknown,
    } = config;
    no_unknown(&unknown)?;
    let mut disks = Vec::with_capacity(storage.len());
    for (i, device) in storage.into_iter().enumerate() {
        disks.push(disk(i, device).map_err(|e| e.under(&format!("storage[{i}]")))?);
    }
    let mut nics = Vec::with_capacity(network.len());
    for (i, interface) in network.into_iter().enumerate() {
        nics.push(nic(i, interface).map_err(|e| e.under(&format!("network[{i}]")))?);
    }
    let spec = VmSpec {
        cpu: cpu(processors.into_option().unwrap_or_default()).map_err(|e| e.under("cpu"))?,
        memory: memory(ram.into_option().unwrap_or_default()).map_err(|e| e.under("memory"))?,
        boot: boot(start.into_option().unwrap_or_default()).map_err(|e| e.under("boot"))?,
        storage: disks,
        network: nics,
        console: match serial.into_option() {
            None => Console { enabled: true },
            Some(serial) => console(serial).map_err(|e| e.under("console"))?,
        },
        metadata,
        restart_policy: match policy.into_option() {
            None => RestartPolicy::default(),
            Some(policy) => restart_policy(policy).map_err(|e| e.under("restart_policy"))?,
        },
        time_to_live: (time_to_live_seconds != 0).then(|| Duration::from_secs(time_to_live_seconds)),
        machine: word(machine, "machine")?,
        accelerator: word(accelerator, "accelerator")?.unwrap_or(Accelerator::Auto),
        agent: agent(guest_agent.into_option().unwrap_or_default()).map_err(|e| e.under("agent"))?,
        tools: tools(wanted)?,
        idle: idle(idle_timeout_seconds, idle_action)?,
    };
    spec.check()?;
    Ok(spec)
}

fn cpu(cpu: v1::CpuConfig) -> Result<Cpu, Invalid> {
    let v1::CpuConfig { vcpu_count, max_vcpu_count, topology, features, model, __buffa_unknown_fields: unknown } = cpu;
    no_unknown(&unknown)?;
    let vcpu_count = if vcpu_count == 0 { 1 } else { vcpu_count };
    let features = features.into_iter().map(|(name, word)| {
        let on = match word.as_str() {
            "on" | "true" => true,
            "off" | "false" => false,
            _ => {
                let at = format!("features.{name}");
                return Err(Invalid::new(at, word, "is neither on nor off").permit(["on", "off"]));
            }
        };
        Ok((name.parse()?, on))
    });
    Ok(Cpu {
        vcpu_count,
        max_vcpu_count: if max_vcpu_count == 0 { vcpu_count } else { max_vcpu_count },
        topology: topology.into_option().map(shape).transpose().map_err(|e| e.under("topology"))?,
        features: features.collect::<Result<_, Invalid>>()?,
        model: word(model, "model")?,
    })
}

fn shape(topology: v1::CpuTopology) -> Result<Topology, Invalid> {
    let v1::CpuTopology { sockets, cores_per_socket, threads_per_core, __buffa_unknown_fields: unknown } = topology;
    no_unknown(&unknown)?;
    Ok(Topology { sockets, cores_per_socket, threads_per_core })
}

fn memory(memory: v1::MemoryConfig) -> Result<Memory, Invalid> {
    let v1::MemoryConfig { size_bytes, hotplug_enabled, max_size_bytes, backing, __buffa_unknown_fields: unknown } =
        memory;
    no_unknown(&unknown)?;
    let size = bytes(size_bytes, "size_bytes")?;
    let max_size = match (hotplug_enabled, bytes(max_size_bytes, "max_size_bytes")?) {
        (false, max) if max == Bytes::new(0) || max == size => size,
        (false, max) => {
            return Err(Invalid::new("max_size_bytes", max, "needs hotplug_enabled").permit([format!("{size}")]));
        }
        (true, max) if max > size => max,
        (true, max) => {
            return Err(Invalid::new("max_size_bytes", max, "leaves nothing to plug in, and hotplug_enabled is set")
                .permit([format!("more than {size}")]));
        }
    };
    let (kind, merge) = match backing.into_option() {
        None => (Backing::Anonymous, false),
        Some(backing) => made_of(backing).map_err(|e| e.under("backing"))?,
    };
    Ok(Memory { size, max_size, backing: kind, merge })
}

fn made_of(backing: v1::MemoryBacking) -> Result<(Backing, bool), Invalid> {
    use v1::memory_backing::Kind;
    let v1::MemoryBacking { kind, merge, hugepage_size_bytes, __buffa_unknown_fields: unknown } = backing;
    no_unknown(&unknown)?;
    let page_size = bytes(hugepage_size_bytes, "hugepage_size_bytes")?;
    let no_page = page_size == Bytes::new(0);
    let known = kind.as_known().ok_or_else(|| not_a_word(kind).at("kind"))?;
    let made_of = match known {
        Kind::KIND_HUGEPAGES => Backing::Hugepages { page_size: if no_page { Bytes::from_mib(2) } else { page_size } },
        _ if !no_page => {
            return Err(Invalid::new("hugepage_size_bytes", page_size, "needs the kind KIND_HUGEPAGES"));
        }
        Kind::KIND_UNSPECIFIED | Kind::KIND_ANONYMOUS => Backing::Anonymous,
        Kind::KIND_SHARED => Backing::Shared,
    };
    Ok((made_of, merge))
}

fn boot(boot: v1::BootConfig) -> Result<Boot, Invalid> {
    let v1::BootConfig {
        kernel_path,
        initrd_path,
        kernel_args,
        boot_options,
        boot_order,
        __buffa_unknown_fields: unknown,
    } = boot;
    no_unknown(&unknown)?;
    no_options(boot_options, "boot_options")?;
    Ok(Boot {
        kernel_path: path(kernel_path, "kernel_path")?,
        initrd_path: path(initrd_path, "initrd_path")?,
        kernel_args: kernel_args.parse()?,
        boot_order,
    })
}

fn disk(index: usize, device: v1::StorageDevice) -> Result<Disk, Invalid> {
    let v1::StorageDevice {
        id,
        path: file,
        read_only,
        is_root_device,
        interface_type,
        options,
        format,
        device,
        __buffa_unknown_fields: unknown,
    } = device;
    no_unknown(&unknown)?;
    no_options(options, "options")?;
    let path = path(file, "path")?
        .ok_or_else(|| Invalid::new("path", "", "is missing").permit(["an absolute path on the host"]))?;
    let device = word(device, "device")?.unwrap_or(Device::Disk);
    let usual_bus = match device {
        Device::Disk => Bus::Virtio,
        Device::Cdrom => Bus::Sata,
    };
    let format = match word(format, "format")? {
        Some(format) => format,
        // Raw bytes of a file that calls itself something else are nobody's intention.
        None if path.as_str().ends_with(".qcow2") => {
            return Err(
                Invalid::new("format", "", "is missing for a file that is named .qcow2").permit(["raw", "qcow2"])
            );
        }
        None => DiskFormat::Raw,
    };
    Ok(Disk {
        id: given(id).unwrap_or_else(|| format!("disk{index}")),
        path,
        // Nothing else makes sense for a CD-ROM drive, and absence cannot be told from false.
        read_only: read_only || device == Device::Cdrom,
        is_root_device,
        bus: word(interface_type, "interface_type")?.unwrap_or(usual_bus),
        format,
        device,
    })
}

fn nic(index: usize, interface: v1::NetworkInterface) -> Result<Nic, Invalid> {
    let v1::NetworkInterface {
        id,
        mac_address,
        tap_device,
        interface_type,
        options,
        kind,
        port_forwards,
        __buffa_unknown_fields: unknown,
    } = interface;
    no_unknown(&unknown)?;
    no_options(options, "options")?;
    only(interface_type, "interface_type", &["virtio"])?;
    let kind = match (kind.as_str(), given(tap_device)) {
        ("" | "tap", Some(device)) if port_forwards.is_empty() => NicKind::Tap { device },
        ("" | "tap", Some(_)) => {
            return Err(Invalid::new("port_forwards", port_forwards.len(), "needs user-mode networking"));
        }
        ("tap", None) => {
            return Err(Invalid::new("tap_device", "", "is missing").permit(["the name of an existing TAP"]));
        }
        ("" | "user", None) => {
            let mut forwards = Vec::with_capacity(port_forwards.len());
            for (i, forward) in port_forwards.into_iter().enumerate() {
                forwards.push(port_forward(forward).map_err(|e| e.under(&format!("port_forwards[{i}]")))?);
            }
            NicKind::User { port_forwards: forwards }
        }
        ("user", Some(device)) => {
            return Err(Invalid::new("tap_device", device, "says nothing for user-mode networking"));
        }
        _ => return Err(Invalid::new("kind", kind, "is not one of the permitted words").permit(["user", "tap"])),
    };
    Ok(Nic {
        id: given(id).unwrap_or_else(|| format!("net{index}")),
        mac_address: word::<MacAddress>(mac_address, "mac_address")?,
        kind,
    })
}

fn port_forward(forward: v1::PortForward) -> Result<Forward, Invalid> {
    let v1::PortForward { protocol, host_address, host_port, guest_port, __buffa_unknown_fields: unknown } = forward;
    no_unknown(&unknown)?;
    let host_address = match given(host_address) {
        None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(text) => text.parse().map_err(|_| {
            Invalid::new("host_address", &text, "is not an IP address").permit(["an IPv4 or IPv6 address"])
        })?,
    };
    Ok(Forward {
        protocol: word(protocol, "protocol")?.unwrap_or(Protocol::Tcp),
        host_address,
        host_port: port(host_port, "host_port")?,
        guest_port: port(guest_port, "guest_port")?,
    })
}

fn console(console: v1::ConsoleConfig) -> Result<Console, Invalid> {
    let v1::ConsoleConfig { enabled, output, input, console_type, __buffa_unknown_fields: unknown } = console;
    no_unknown(&unknown)?;
    only(output, "output", &["log"])?;
    only(input, "input", &["api"])?;
    only(console_type, "console_type", &["serial"])?;
    Ok(Console { enabled })
}

fn agent(agent: v1::AgentConfig) -> Result<Agent, Invalid> {
    let v1::AgentConfig {
        channel,
        allow_exec,
        file_roots,
        exec_user,
        metrics_interval_seconds,
        __buffa_unknown_fields: unknown,
    } = agent;
    no_unknown(&unknown)?;
    let roots = file_roots.into_iter().enumerate().map(|(i, root)| {
        let at = format!("file_roots[{i}]");
        path(root, &at)?.ok_or_else(|| Invalid::new(&at, "", "is empty").permit(["an absolute path in the guest"]))
    });
    Ok(Agent {
        channel: word(channel, "channel")?.unwrap_or_default(),
        allow_exec,
        file_roots: roots.collect::<Result<_, _>>()?,
        exec_user: word(exec_user, "exec_user")?,
        metrics_interval: match metrics_interval_seconds {
            0 => Agent::default().metrics_interval,
            seconds => Duration::from_secs(seconds.into()),
        },
    })
}

fn tools(wanted: Vec<v1::Tool>) -> Result<Vec<Tool>, Invalid> {
    let tool = |tool: v1::Tool| {
        let v1::Tool { name, version, script, __buffa_unknown_fields: unknown } = tool;
        no_unknown(&unknown)?;
        Ok(Tool { name: name.parse()?, version: word(version, "version")?, script: given(script) })
    };
    let numbered = wanted.into_iter().enumerate();
    numbered.map(|(i, wanted)| tool(wanted).map_err(|e: Invalid| e.under(&format!("tools[{i}]")))).collect()
}

fn idle(timeout_seconds: u64, action: String) -> Result<Option<Idle>, Invalid> {
    let action: Option<IdleAction> = word(action, "idle_action")?;
    match (timeout_seconds, action) {
        (0, None) => Ok(None),
        (0, Some(action)) => Err(Invalid::new("idle_action", action, "needs idle_timeout_seconds")),
        (seconds, action) => {
            Ok(Some(Idle { timeout: Duration::from_secs(seconds), action: action.unwrap_or_default() }))
        }
    }
}

fn restart_policy(policy: v1::RestartPolicy) -> Result<RestartPolicy, Invalid> {
    use v1::restart_policy::Mode;
    let v1::RestartPolicy { mode, max_retries, backoff_seconds, backoff_max_seconds, __buffa_unknown_fields: unknown } =
        policy;
    no_unknown(&unknown)?;
    let usual = RestartPolicy::default();
    let mode = match mode.as_known() {
        Some(Mode::MODE_UNSPECIFIED | Mode::MODE_NEVER) => RestartMode::Never,
        Some(Mode::MODE_ON_FAILURE) => RestartMode::OnFailure,
        Some(Mode::MODE_ALWAYS) => RestartMode::Always,
        None => return Err(not_a_word(mode).at("mode")),
    };
    let backoff = seconds(backoff_seconds, "backoff_seconds")?;
    let backoff_max = seconds(backoff_max_seconds, "backoff_max_seconds")?;
    Ok(RestartPolicy {
        mode,
        max_retries: max_retries.unwrap_or(usual.max_retries),
        backoff: backoff.unwrap_or(usual.backoff),
        // A first delay beyond the usual limit lifts it: only what was said can contradict itself.
        backoff_max: backoff_max.unwrap_or(usual.backoff_max.max(backoff.unwrap_or_default())),
    })
}

/// A word or name that may be left out.
fn word<T: FromStr<Err = Invalid>>(text: String, field: &str) -> Result<Option<T>, Invalid> {
    given(text).map(|text| text.parse().map_err(|e: Invalid| e.at(field))).transpose()
}

fn path(text: String, field: &str) -> Result<Option<AbsolutePath>, Invalid> {
    word(text, field)
}

/// A field of the first API of which only the usual value is supported.
fn only(text: String, field: &str, permitted: &[&str]) -> Result<(), Invalid> {
    if text.is_empty() || permitted.contains(&text.as_str()) {
        return Ok(());
    }
    Err(Invalid::new(field, text, "is not supported").permit(permitted.iter().copied()))
}

fn no_options(options: std::collections::BTreeMap<String, String>, field: &str) -> Result<(), Invalid> {
    match options.into_iter().next() {
        None => Ok(()),
        Some((key, value)) => Err(Invalid::new(format!("{field}.{key}"), value, "is not a known option")),
    }
}

fn bytes(bytes: i64, field: &str) -> Result<Bytes, Invalid> {
    u64::try_from(bytes).map(Bytes::new).map_err(|_| Invalid::new(field, bytes, "is negative"))
}

fn port(port: u32, field: &str) -> Result<u16, Invalid> {
    u16::try_from(port)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| Invalid::new(field, port, "is not a port").permit(["1 to 65535"]))
}

/// Seconds to whole milliseconds.
fn seconds(seconds: Option<f64>, field: &str) -> Result<Option<Duration>, Invalid> {
    const MOST: f64 = 86_400.0;
    match seconds {
        None => Ok(None),
        Some(s) if (0.0..=MOST).contains(&s) => Ok(Some(Duration::from_millis((s * 1000.0).round() as u64))),
        Some(s) => Err(Invalid::new(field, s, "is out of range").permit(["0 to 86400"])),
    }
}
