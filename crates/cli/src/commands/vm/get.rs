//! `roost vm get`.

use std::fmt::Write;

use buffa_types::google::protobuf::Timestamp as WireTime;
use clap::Args;
use clap_complete::ArgValueCompleter;
use roost_client::v1::desired_state::Power;
use roost_client::v1::restart_policy::Mode;
use roost_client::v1::{GetVmInfoResponse, NetworkInterface, RestartPolicy, StorageDevice, Vm, VmConfig, VmMetrics};

use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::Failure;
use crate::escape;
use crate::output;
use crate::values::{age, bytes, now, state_word, time};

/// Describes a VM.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
}

impl Get {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let info = context.client.get_vm_info(&self.vm).await?;
        if context.for_people() { output::print(&describe(&info)) } else { context.document(&info) }
    }
}

/// Lines of `Label: value`, aligned; what is not known has no line.
struct Description(String);

impl Description {
    fn row(&mut self, label: &str, value: &str) {
        if !value.is_empty() {
            writeln!(self.0, "{label:<13} {}", escape::line(value)).expect("a String takes everything");
        }
    }

    fn time(&mut self, label: &str, at: Option<&WireTime>) {
        if let Some(at) = at.map(time) {
            self.row(label, &format!("{at} ({} ago)", age(now().since(at))));
        }
    }
}

fn describe(info: &GetVmInfoResponse) -> String {
    let mut out = Description(String::new());
    let vm = &*info.vm;
    out.row("Name:", &vm.name);
    out.row("ID:", &info.vm_id);
    out.row("State:", &state(vm, info));
    if let Some(failure) = vm.failure.as_option() {
        out.row("Failure:", &format!("{}: {}", failure.reason, failure.message));
    }
    if let Some(exit) = vm.exit.as_option() {
        let at = exit.at.as_option().map(|t| format!(" at {}", time(t))).unwrap_or_default();
        out.row("Exit:", &format!("{}{at}", exit.cause));
    }
    out.row("Backend:", &vm.backend);
    out.row("Accelerator:", &vm.accelerator);
    config(&mut out, &info.config);
    out.time("Created:", vm.created_at.as_option());
    out.time("Started:", vm.started_at.as_option());
    restarts(&mut out, vm, &info.config);
    if info.config.time_to_live_seconds > 0 {
        out.row("Lives for:", &age(std::time::Duration::from_secs(info.config.time_to_live_seconds)));
    }
    for (key, value) in &info.config.metadata {
        out.row("Metadata:", &format!("{key}={value}"));
    }
    for condition in &vm.conditions {
        let status = if condition.status { "yes" } else { "no" };
        let why = [condition.reason.as_str(), condition.message.as_str()];
        let why = why.into_iter().filter(|w| !w.is_empty()).collect::<Vec<_>>().join(": ");
        let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
        out.row("Condition:", &format!("{} {status}{why}", condition.r#type));
    }
    for operation in &vm.operation_ids {
        out.row("Under way:", operation);
    }
    if let Some(metrics) = info.metrics.as_option() {
        counters(&mut out, metrics);
    }
    for (key, value) in &info.backend_info {
        out.row("Backend info:", &format!("{key}={value}"));
    }
    out.row("Version:", &format!("{} (generation {})", vm.resource_version, vm.generation));
    out.0
}

fn state(vm: &Vm, info: &GetVmInfoResponse) -> String {
    let is = state_word(info.state);
    let wanted = match vm.desired_state.power.as_known() {
        _ if vm.desired_state.deleted => "deleted",
        Some(Power::POWER_RUNNING) => "running",
        Some(Power::POWER_PAUSED) => "paused",
        Some(Power::POWER_STOPPED) => "stopped",
        _ => return is,
    };
    let at_rest = matches!(is.as_str(), "created" | "shutdown" | "crashed") && wanted == "stopped";
    if at_rest || is == wanted { is } else { format!("{is} (wanted: {wanted})") }
}

fn config(out: &mut Description, config: &VmConfig) {
    out.row("Machine:", &config.machine);
    let cpu = &config.cpu;
    let mut cpus = cpu.vcpu_count.max(1).to_string();
    if cpu.max_vcpu_count > cpu.vcpu_count {
        cpus.push_str(&format!(" (up to {})", cpu.max_vcpu_count));
    }
    if !cpu.model.is_empty() {
        cpus.push_str(&format!(", {}", cpu.model));
    }
    out.row("CPUs:", &cpus);
    let mut memory = bytes(config.memory.size_bytes.unsigned_abs());
    if config.memory.max_size_bytes > config.memory.size_bytes {
        memory.push_str(&format!(" (up to {})", bytes(config.memory.max_size_bytes.unsigned_abs())));
    }
    out.row("Memory:", &memory);
    out.row("Kernel:", &config.boot.kernel_path);
    out.row("Initrd:", &config.boot.initrd_path);
    out.row("Kernel args:", &config.boot.kernel_args);
    out.row("Boot order:", &config.boot.boot_order.join(", "));
    for device in &config.storage {
        out.row(if device.device == "cdrom" { "CD-ROM:" } else { "Disk:" }, &storage(device));
    }
    for interface in &config.network {
        out.row("Network:", &network(interface));
    }
}

fn storage(device: &StorageDevice) -> String {
    let mut text = format!("{} {}", device.id, device.path);
    let words = [device.format.as_str(), device.interface_type.as_str()];
    let flags = [("read-only", device.read_only), ("root", device.is_root_device)];
    let words = words.into_iter().filter(|w| !w.is_empty());
    for word in words.chain(flags.into_iter().filter(|(_, set)| *set).map(|(word, _)| word)) {
        text.push_str(&format!(", {word}"));
    }
    text
}

fn network(interface: &NetworkInterface) -> String {
    let kind = if interface.kind.is_empty() { "user" } else { &interface.kind };
    let mut text = format!("{} {kind}", interface.id);
    for part in [&interface.tap_device, &interface.mac_address] {
        if !part.is_empty() {
            text.push_str(&format!(", {part}"));
        }
    }
    for port in &interface.port_forwards {
        let address = if port.host_address.is_empty() { "127.0.0.1" } else { &port.host_address };
        let protocol = if port.protocol.is_empty() { "tcp" } else { &port.protocol };
        text.push_str(&format!(", {address}:{}->{}/{protocol}", port.host_port, port.guest_port));
    }
    text
}

fn restarts(out: &mut Description, vm: &Vm, config: &VmConfig) {
    if let Some(policy) = config.restart_policy.as_option().and_then(policy) {
        out.row("Restart:", &policy);
    }
    if vm.restart_count > 0 {
        out.row("Restarts:", &format!("{} ({} in a row)", vm.restart_count, vm.restarts_in_row));
    }
    if let Some(due) = vm.restart_due.as_option() {
        out.row("Restart due:", &time(due).to_string());
    }
}

fn policy(policy: &RestartPolicy) -> Option<String> {
    let word = match policy.mode.as_known()? {
        Mode::MODE_UNSPECIFIED | Mode::MODE_NEVER => return None,
        Mode::MODE_ON_FAILURE => "on-failure",
        Mode::MODE_ALWAYS => "always",
    };
    Some(match policy.max_retries {
        Some(0) => format!("{word}, without limit"),
        Some(most) => format!("{word}, at most {most} in a row"),
        None => word.to_owned(),
    })
}

fn counters(out: &mut Description, metrics: &VmMetrics) {
    out.row("Uptime:", &age(std::time::Duration::from_millis(metrics.uptime_ms)));
    out.row("CPU time:", &format!("{:.1}s", metrics.cpu_time_ns as f64 / 1e9));
    out.row("Memory used:", &bytes(metrics.memory_rss_bytes));
    for disk in &metrics.disks {
        let (read, written) = (bytes(disk.read_bytes), bytes(disk.write_bytes));
        let operations = format!("{} and {} operations", disk.read_ops, disk.write_ops);
        out.row("Disk I/O:", &format!("{} {read} read, {written} written, {operations}", disk.id));
    }
    for nic in &metrics.networks {
        let (received, sent) = (bytes(nic.rx_bytes), bytes(nic.tx_bytes));
        let packets = format!("{} and {} packets", nic.rx_packets, nic.tx_packets);
        out.row("Network I/O:", &format!("{} {received} received, {sent} sent, {packets}", nic.id));
    }
}

#[cfg(test)]
mod tests {
    use roost_client::v1::{VmExit, VmFailure, VmState};

    use super::*;

    #[test]
    fn a_description_is_safe_to_look_at_and_says_why() {
        let vm = Vm {
            name: "web\x1b[2J".to_owned(),
            accelerator: "tcg: /dev/kvm runs no stock kernel".to_owned(),
            failure: VmFailure {
                reason: "KERNEL_UNREADABLE".to_owned(),
                message: "no\nfile".to_owned(),
                ..Default::default()
            }
            .into(),
            exit: VmExit { cause: "panic".to_owned(), ..Default::default() }.into(),
            ..Default::default()
        };
        let info = GetVmInfoResponse { vm: vm.into(), state: VmState::VM_STATE_FAILED.into(), ..Default::default() };
        let text = describe(&info);
        assert!(!text.contains('\x1b'), "{text}");
        for line in
            ["Failure:      KERNEL_UNREADABLE: no\\nfile", "Exit:         panic", "tcg: /dev/kvm runs no stock kernel"]
        {
            assert!(text.contains(line), "{text}");
        }
    }
}
