//! `roost metrics`: what a guest says of itself in figures.

use buffa_types::google::protobuf::Struct;
use clap::Args;
use clap_complete::ArgValueCompleter;
use roost_client::v1::{GetMetricsRequest, MetricsPoint, MetricsSample, WatchMetricsRequest};
use serde_json::Value;

use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::Failure;
use crate::escape;
use crate::output::{self, Column::*};
use crate::values::{age, bytes, time, whole_seconds};

/// What a guest says of itself in figures.
#[derive(Debug, Args)]
pub(crate) struct Metrics {
    /// Go on with what comes
    #[arg(long, short)]
    watch: bool,
    /// The last hour in steps
    #[arg(long, conflicts_with = "watch")]
    history: bool,
    /// How often, with --watch
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds, default_value = "1s", requires = "watch")]
    interval: u32,
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
}

impl Metrics {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let Self { watch, history, interval, vm } = self;
        if watch {
            let request = WatchMetricsRequest { vm_id: vm, interval_seconds: interval, ..Default::default() };
            let mut samples = context.client.watch_metrics(request).await?;
            while let Some(sample) = samples.next().await? {
                if context.for_people() {
                    output::print(&format!("{}\n", line(&sample)))?;
                } else {
                    output::record(&sample, context.format)?;
                }
            }
            return Ok(());
        }
        let answer = context.client.get_metrics(GetMetricsRequest { vm_id: vm, history, ..Default::default() }).await?;
        if !context.for_people() {
            return context.document(&answer);
        }
        if history {
            let columns = [Whole("TIME"), Whole("CPU%"), Whole("MEMORY"), Whole("DISK R/W"), Whole("NETWORK IN/OUT")];
            return output::table(&columns, answer.history.iter().map(step));
        }
        match answer.metrics.as_option() {
            Some(sample) => output::print(&describe(sample)),
            None => {
                let hint = "roost agent version shows whether its agent is connected; roost metrics --watch asks now";
                Err(Failure::Precondition {
                    message: "the guest has sent no metrics yet".to_owned(),
                    hint: hint.to_owned(),
                })
            }
        }
    }
}

/// A sample's figures. A guest says what it likes: what is no number is none.
pub(super) struct Figures(Value);

impl Figures {
    pub(super) fn of(sample: &MetricsSample) -> Self {
        let none = Struct::default();
        let system = sample.system.as_option().unwrap_or(&none);
        Self(serde_json::to_value(system).unwrap_or_default())
    }

    fn number(&self, pointer: &str) -> Option<f64> {
        self.0.pointer(pointer)?.as_f64().filter(|number| number.is_finite())
    }

    fn text(&self, pointer: &str) -> Option<String> {
        self.0.pointer(pointer)?.as_str().map(|text| escape::line(text).into_owned())
    }

    fn kib(&self, pointer: &str) -> Option<String> {
        self.number(pointer).map(|kib| bytes((kib.max(0.0) * 1024.0) as u64))
    }

    fn list(&self, pointer: &str) -> &[Value] {
        self.0.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    pub(super) fn cpu(&self) -> String {
        self.number("/cpu/usage_percent").map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1}%"))
    }

    pub(super) fn memory(&self) -> String {
        let of = |pointer| self.kib(pointer).unwrap_or_else(|| "-".to_owned());
        format!("{} of {}", of("/memory/used_kb"), of("/memory/total_kb"))
    }

    pub(super) fn load(&self) -> String {
        let at = |name: &str| self.number(&format!("/system/load_average/{name}"));
        let loads = ["load_1min", "load_5min", "load_15min"].map(at);
        loads
            .iter()
            .map(|load| load.map_or_else(|| "-".to_owned(), |load| format!("{load:.2}")))
            .collect::<Vec<_>>()
            .join(" ")
    }

    pub(super) fn uptime(&self) -> String {
        let seconds = self.number("/system/uptime_seconds").unwrap_or_default().clamp(0.0, 1e12);
        age(std::time::Duration::from_secs(seconds as u64))
    }
}

fn line(sample: &MetricsSample) -> String {
    let figures = Figures::of(sample);
    let at = sample.time.as_option().map(|at| time(at).to_string()).unwrap_or_default();
    format!("{at}  cpu {}  memory {}  load {}", figures.cpu(), figures.memory(), figures.load())
}

fn describe(sample: &MetricsSample) -> String {
    let figures = Figures::of(sample);
    let mut out = String::new();
    let mut say = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            out.push_str(&format!("{name:<10} {value}\n"));
        }
    };
    say("time", sample.time.as_option().map(|at| time(at).to_string()));
    say("hostname", figures.text("/system/hostname"));
    let system = [figures.text("/system/name"), figures.text("/system/os_version")];
    say("system", Some(system.into_iter().flatten().collect::<Vec<_>>().join(" ")));
    say("kernel", figures.text("/system/kernel_version"));
    say("uptime", Some(figures.uptime()));
    say("load", Some(figures.load()));
    say("cpu", Some(figures.cpu()));
    say("memory", Some(figures.memory()));
    if figures.number("/memory/swap_total_kb").is_some_and(|total| total > 0.0) {
        say("swap", figures.kib("/memory/swap_used_kb"));
    }
    for disk in figures.list("/disk/usage_stats") {
        let disk = Figures(disk.clone());
        let gb = |pointer| disk.number(pointer).map_or_else(|| "-".to_owned(), |gb| format!("{gb:.1}GB"));
        let mount = disk.text("/mount_point").unwrap_or_default();
        say("disk", Some(format!("{} of {} on {mount}", gb("/used_gb"), gb("/total_gb"))));
    }
    for interface in figures.list("/network/interfaces") {
        let interface = Figures(interface.clone());
        let count = |pointer| bytes(interface.number(pointer).unwrap_or_default().max(0.0) as u64);
        let name = interface.text("/name").unwrap_or_default();
        say("network", Some(format!("{name}: {} in, {} out", count("/bytes_received"), count("/bytes_sent"))));
    }
    out
}

fn step(point: &MetricsPoint) -> Vec<String> {
    let rate = |rate: f64| format!("{}/s", bytes(rate.max(0.0) as u64));
    vec![
        point.time.as_option().map(|at| time(at).to_string()).unwrap_or_default(),
        format!("{:.1}", point.cpu_percent),
        bytes(point.memory_used_bytes),
        format!("{} {}", rate(point.disk_read_bytes_per_second), rate(point.disk_write_bytes_per_second)),
        format!("{} {}", rate(point.network_receive_bytes_per_second), rate(point.network_send_bytes_per_second)),
    ]
}
