//! What is there now, with counters: asked of QEMU and of the host at that moment.

use std::collections::BTreeMap;
use std::path::Path;

use roost_backend::{AgentEndpoint, BackendError, DiskMetrics, Info, Metrics, NicMetrics};
use roost_host::process::Process;
use roost_host::stats::process_stats;
use roost_model::observe::Report;
use roost_model::spec::NicKind;
use roost_model::{LaunchId, Machine as Observed, VmSpec};
use serde_json::Value;

use crate::args::node_name;
use crate::config::Limits;
use crate::machine::{Machine, Processes};
use crate::qmp::{Command, QmpError};

/// Asks about a living machine.
pub(crate) async fn of(machine: &Machine, limits: &Limits) -> Result<Info, BackendError> {
    let vmm = &machine.processes.vmm;
    if !vmm.is_alive().map_err(|e| crate::host_error("HOST_PROCESS", &e))? {
        // Its actor is about to say why.
        machine.wait_gone(limits.command).await;
    }
    let (status, disks) = tokio::join!(
        machine.execute(Command::new("query-status"), limits.command),
        machine.execute(Command::new("query-blockstats"), limits.command),
    );
    let observed = machine.observed_as(status.as_ref().ok().and_then(|status| status["status"].as_str()));
    let mut details = details(machine);
    if let Err(error) = &status
        && observed.is_up()
    {
        details.insert("control".to_owned(), error.to_string());
    }
    let metrics = if observed.is_up() { Some(metrics(machine, disks)?) } else { None };
    Ok(Info { report: Report { machine: observed, launch: Some(machine.identity.launch) }, metrics, details })
}

/// Asks about a process that was released and of which nobody knows more: its boot was dropped.
pub(crate) fn of_process(launch: LaunchId, vmm: &Process) -> Result<Info, BackendError> {
    Ok(Info {
        report: Report { machine: Observed::Running, launch: Some(launch) },
        metrics: Some(process_metrics(vmm, [vmm])?),
        details: BTreeMap::from([("pid".to_owned(), vmm.ident().pid.to_string())]),
    })
}

fn details(machine: &Machine) -> BTreeMap<String, String> {
    let identity = &machine.identity;
    let mut details = BTreeMap::from([
        ("pid".to_owned(), machine.processes.vmm.ident().pid.to_string()),
        ("machine".to_owned(), identity.machine.clone()),
        ("accelerator".to_owned(), identity.accelerator.clone()),
    ]);
    let AgentEndpoint { socket, qemu_guest_agent } = identity.agent();
    for (key, path) in [("agent-socket", socket), ("qemu-guest-agent-socket", qemu_guest_agent)] {
        details.extend(path.map(|path| (key.to_owned(), path.display().to_string())));
    }
    if let Some(console) = &machine.processes.console
        && !console.is_alive().unwrap_or(true)
    {
        details.insert(
            "console".to_owned(),
            "its keeper has ended; the serial line is lost until the next start".to_owned(),
        );
    }
    details
}

fn metrics(machine: &Machine, disks: Result<Value, QmpError>) -> Result<Metrics, BackendError> {
    let spec = &machine.identity.definition.spec;
    let Processes { vmm, console } = &machine.processes;
    Ok(Metrics {
        disks: disks.map(|stats| disk_metrics(spec, &stats)).unwrap_or_default(),
        nics: nic_metrics(spec, Path::new("/sys/class/net")),
        ..process_metrics(vmm, [vmm].into_iter().chain(console))?
    })
}

fn process_metrics<'a>(
    vmm: &Process,
    processes: impl IntoIterator<Item = &'a Process>,
) -> Result<Metrics, BackendError> {
    let mut metrics = Metrics { uptime_ms: uptime_ms(vmm).unwrap_or(0), ..Metrics::default() };
    for process in processes {
        if let Some(used) = process_stats(process).map_err(|e| crate::host_error("HOST_PROCESS", &e))? {
            metrics.cpu_time_ns += used.cpu_user_ns + used.cpu_system_ns;
            metrics.memory_rss_bytes += used.rss_bytes;
        }
    }
    Ok(metrics)
}

/// Since the process began; of the clock that counts sleep, as its start time does.
fn uptime_ms(process: &Process) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let (seconds, hundredths) = text.split_ascii_whitespace().next()?.split_once('.')?;
    let now_ms = seconds.parse::<u64>().ok()? * 1000 + hundredths.parse::<u64>().ok()? * 10;
    let tick_ms = 1000 / rustix::param::clock_ticks_per_second().max(1);
    Some(now_ms.saturating_sub(process.ident().start_time_ticks * tick_ms))
}

/// From `query-blockstats`, which lists devices in an order of its own.
fn disk_metrics(spec: &VmSpec, stats: &Value) -> Vec<DiskMetrics> {
    let of_node = |node: &str| {
        let entries = stats.as_array().into_iter().flatten();
        entries.into_iter().find(|entry| entry["node-name"] == node).map(|entry| &entry["stats"])
    };
    let disks = spec.storage.iter().enumerate().filter_map(|(index, disk)| {
        let stats = of_node(&node_name(index))?;
        let count = |key: &str| stats[key].as_u64().unwrap_or(0);
        Some(DiskMetrics {
            id: disk.id.clone(),
            read_bytes: count("rd_bytes"),
            write_bytes: count("wr_bytes"),
            read_ops: count("rd_operations"),
            write_ops: count("wr_operations"),
        })
    });
    disks.collect()
}

/// Of TAPs only: QEMU does not count what its user-mode network carries. What a TAP sends, the guest
/// receives.
fn nic_metrics(spec: &VmSpec, interfaces: &Path) -> Vec<NicMetrics> {
    let nics = spec.network.iter().filter_map(|nic| {
        let NicKind::Tap { device } = &nic.kind else { return None };
        let count = |name: &str| -> Option<u64> {
            let path = interfaces.join(device).join("statistics").join(name);
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        };
        Some(NicMetrics {
            id: nic.id.clone(),
            rx_bytes: count("tx_bytes")?,
            tx_bytes: count("rx_bytes")?,
            rx_packets: count("tx_packets")?,
            tx_packets: count("rx_packets")?,
        })
    });
    nics.collect()
}
