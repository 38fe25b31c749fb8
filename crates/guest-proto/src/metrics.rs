//! What an agent tells of its guest: the `data` of a `metrics` message.
//!
//! Everything under `system`, its names and its units are the first agent's, so that a host of its time reads these
//! frames, and its frames are read here. What is added stands beside those fields, and may be absent.
//!
//! A frame holds the groups that were asked for. One that could not be collected is missing and has an entry in
//! `errors`; the others are there. `host` and `services` seldom change: a frame of all groups has them when they did,
//! and names them in `unchanged` otherwise; one that asked for them by name always has them.
//!
//! How a frame is collected is the agent's business, and how long it is kept the host's.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{ErrorBody, ErrorCode};
use crate::results::Service;

macro_rules! groups {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What can be asked for by itself.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Group {
            $($(#[$doc])* $name,)*
        }

        impl Group {
            /// Every group, in the order in which they are collected.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Their names on the wire.
            pub const NAMES: &'static [&'static str] = &[$($text,)*];

            /// The name on the wire.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

groups! {
    Cpu = "cpu",
    Memory = "memory",
    /// Usage of file systems and rates of devices.
    Disk = "disk",
    Network = "network",
    /// Uptime, names and versions, load.
    System = "system",
    /// How long tasks waited for processors, memory and I/O.
    Pressure = "pressure",
    /// Those that use the most.
    Processes = "processes",
    /// What listens.
    Ports = "ports",
    Services = "services",
    /// What stays as it is while the guest runs.
    Host = "host",
    /// What programs of the guest's owner measure.
    Plugins = "plugins",
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Group {
    /// The groups of a request, each once. None named: none, which stands for all.
    pub fn parse_list<S: AsRef<str>>(names: &[S]) -> Result<Vec<Self>, ErrorBody> {
        let mut groups = Vec::with_capacity(names.len().min(Self::ALL.len()));
        for name in names {
            let name = name.as_ref();
            let Some(&group) = Self::ALL.iter().find(|group| group.as_str() == name) else {
                let shown: String = name.chars().take(64).collect();
                let mut error = ErrorBody::new(ErrorCode::InvalidMessage, format!("groups: there is no {shown:?}"));
                error.details = Some(serde_json::json!({ "field": "groups", "permitted": Self::NAMES }));
                return Err(error);
            };
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        Ok(groups)
    }

    /// Whether a frame of all groups may leave it out because it is as it was.
    pub fn is_static(self) -> bool {
        matches!(self, Self::Host | Self::Services)
    }
}

/// The `data` of a `metrics` message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricsData {
    #[serde(default)]
    pub system: SystemMetrics,
    /// By the plug-in's file name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plugins: BTreeMap<String, Value>,
    /// What could not be collected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<GroupError>,
    /// Groups that are as an earlier frame of this session said, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unchanged: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collection: Option<Collection>,
}

impl MetricsData {
    /// Takes over from the frame before what this one names as unchanged.
    pub fn carry_forward(&mut self, last: &Self) {
        for name in &self.unchanged {
            if name == Group::Host.as_str() && self.system.host.is_none() {
                self.system.host.clone_from(&last.system.host);
            } else if name == Group::Services.as_str() && self.system.services.is_none() {
                self.system.services.clone_from(&last.system.services);
            }
        }
    }
}

/// A group, or a part of one, that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupError {
    pub group: String,
    /// The mount point, plug-in or file, where the rest of the group is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    pub message: String,
}

/// How the collection itself went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collection {
    pub elapsed_us: u64,
    /// The interval is so many times what was asked for, because memory is short. 1: as asked.
    pub slowdown: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SystemMetrics {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuMetrics>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryMetrics>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskMetrics>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMetrics>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<OsMetrics>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<Vec<ProcessInfo>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PortInfo>>,
    /// Of another shape in each agent; empty where the guest runs no Windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub windows_services: Option<Vec<Value>>,
    /// As the action `ServiceList` tells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<Service>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostInfo>,
}

/// Percentages since the frame before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuMetrics {
    /// Of all processors together: 0 to 100.
    pub usage_percent: f64,
    #[serde(default)]
    pub cores_usage: Vec<f64>,
    /// Degrees Celsius.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// Idle because of I/O.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iowait_percent: Option<f64>,
    /// Taken by the host. It counts as used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steal_percent: Option<f64>,
}

/// `used` is what is not available: caches that can be given up do not count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryMetrics {
    pub total_kb: u64,
    pub used_kb: u64,
    pub available_kb: u64,
    #[serde(default)]
    pub swap_total_kb: Option<u64>,
    #[serde(default)]
    pub swap_used_kb: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_kb: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskMetrics {
    #[serde(default)]
    pub usage_stats: Vec<DiskUsage>,
    /// Of all whole disks together.
    #[serde(default)]
    pub io_stats: DiskIo,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceIo>,
}

/// `_gb` is 2^30 bytes, of the first agent; `_bytes` is exact.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskUsage {
    pub mount_point: String,
    pub total_gb: f64,
    pub used_gb: f64,
    /// To an ordinary user.
    pub available_gb: f64,
    pub filesystem: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskIo {
    pub read_bytes_per_sec: u64,
    pub write_bytes_per_sec: u64,
    pub read_ops_per_sec: u64,
    pub write_ops_per_sec: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIo {
    pub name: String,
    #[serde(flatten)]
    pub rates: DiskIo,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkMetrics {
    #[serde(default)]
    pub interfaces: Vec<InterfaceMetrics>,
}

/// Totals since the interface came up, and rates since the frame before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InterfaceMetrics {
    pub name: String,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub packets_received: u64,
    pub packets_sent: u64,
    pub errors_in: u64,
    pub errors_out: u64,
    #[serde(default)]
    pub ip_addresses: Vec<String>,
    #[serde(default)]
    pub is_up: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_in: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped_out: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_received_per_sec: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_sent_per_sec: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_received_per_sec: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_sent_per_sec: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors_in_per_sec: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors_out_per_sec: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OsMetrics {
    pub uptime_seconds: u64,
    /// `Debian GNU/Linux`
    #[serde(default)]
    pub name: String,
    /// `12`
    #[serde(default)]
    pub os_version: String,
    #[serde(default)]
    pub kernel_version: String,
    #[serde(default)]
    pub hostname: String,
    #[serde(default)]
    pub load_average: Option<LoadAverage>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadAverage {
    pub load_1min: f64,
    pub load_5min: f64,
    pub load_15min: f64,
}

/// The kernel's pressure stall information, of those resources that it tells of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Pressure {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Stall>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Stall>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<Stall>,
}

/// In percent of the last 10 seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// Some task waited.
    pub some: f64,
    /// No task got on.
    pub full: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessInfo {
    #[serde(alias = "pid")]
    pub id: u32,
    #[serde(default, alias = "parent_pid")]
    pub parent_id: Option<u32>,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub executable_path: Option<String>,
    #[serde(default)]
    pub command_line: Option<String>,
    /// Of one processor: two threads that are never idle make 200.
    #[serde(default)]
    pub cpu_usage_percent: f64,
    /// Resident.
    #[serde(default)]
    pub memory_usage_kb: u64,
    /// `running`, `sleeping`, `disk_sleep`, `stopped`, `traced`, `zombie`, `dead`, `idle` or `unknown`.
    #[serde(default)]
    pub status: String,
    /// Seconds since 1970.
    #[serde(default)]
    pub start_time: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortInfo {
    pub port: u16,
    /// `tcp`, `tcp6`, `udp` or `udp6`.
    #[serde(default)]
    pub protocol: String,
    /// `LISTEN`, or `UNCONN` of UDP.
    #[serde(default)]
    pub state: String,
    #[serde(default)]
    pub process_id: Option<u32>,
    #[serde(default)]
    pub process_name: Option<String>,
    #[serde(default)]
    pub is_listening: bool,
    /// That it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// `x86_64`, as the kernel says.
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// Of processors that are online.
    pub cpu_count: u32,
    /// Another one after each boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// `systemd`, `openrc` or another that runs services here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_manager: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the first agent writes it, every field of it.
    const FIRST_AGENT: &str = r#"{"system": {
        "cpu": {"usage_percent": 12.5, "cores_usage": [10.0, 15.0], "temperature": null},
        "memory": {"total_kb": 1000, "used_kb": 600, "available_kb": 400, "swap_total_kb": 0, "swap_used_kb": null},
        "disk": {"usage_stats": [{"mount_point": "/", "total_gb": 10.0, "used_gb": 4.0, "available_gb": 6.0,
                                  "filesystem": "ext4"}],
                 "io_stats": {"read_bytes_per_sec": 1, "write_bytes_per_sec": 2, "read_ops_per_sec": 3,
                              "write_ops_per_sec": 4}},
        "network": {"interfaces": [{"name": "eth0", "bytes_received": 1, "bytes_sent": 2, "packets_received": 3,
                                    "packets_sent": 4, "errors_in": 5, "errors_out": 6,
                                    "ip_addresses": ["10.0.0.2"], "is_up": true}]},
        "system": {"uptime_seconds": 60, "name": "Debian GNU/Linux", "os_version": "12",
                   "kernel_version": "6.1.0-18-amd64", "hostname": "web",
                   "load_average": {"load_1min": 0.1, "load_5min": 0.2, "load_15min": 0.3}},
        "processes": [{"id": 1, "parent_id": null, "name": "systemd", "executable_path": "/usr/lib/systemd/systemd",
                       "command_line": "/sbin/init", "cpu_usage_percent": 0.1, "memory_usage_kb": 12000,
                       "status": "Sleeping", "start_time": 1700000000}],
        "ports": [{"port": 22, "protocol": "tcp", "state": "LISTEN", "process_id": 300, "process_name": "sshd",
                   "is_listening": true}],
        "windows_services": []}}"#;

    #[test]
    fn the_first_agents_frame_keeps_every_field_and_gains_none() {
        let value: Value = serde_json::from_str(FIRST_AGENT).unwrap();
        let data: MetricsData = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(data.system.processes.as_ref().unwrap()[0].name, "systemd");
        assert_eq!(serde_json::to_value(&data).unwrap(), value);
    }

    #[test]
    fn groups_that_were_not_asked_for_are_absent() {
        let data = MetricsData {
            system: SystemMetrics { memory: Some(MemoryMetrics::default()), ..SystemMetrics::default() },
            ..MetricsData::default()
        };
        let value = serde_json::to_value(&data).unwrap();
        assert_eq!(value["system"].as_object().unwrap().keys().collect::<Vec<_>>(), ["memory"]);
        assert_eq!(value.as_object().unwrap().len(), 1);
    }

    #[test]
    fn a_list_of_groups_is_read_once_each_and_a_wrong_name_says_what_there_is() {
        assert_eq!(Group::parse_list(&["cpu", "ports", "cpu"]).unwrap(), [Group::Cpu, Group::Ports]);
        assert_eq!(Group::parse_list::<&str>(&[]).unwrap(), []);
        let error = Group::parse_list(&["CPU"]).unwrap_err();
        assert_eq!(error.message, r#"groups: there is no "CPU""#);
        assert_eq!(error.details.unwrap()["permitted"][0], "cpu");
        for (group, name) in Group::ALL.iter().zip(Group::NAMES) {
            assert_eq!(group.as_str(), *name);
        }
    }

    #[test]
    fn what_is_unchanged_is_taken_from_the_frame_before() {
        let services = vec![Service { name: "ssh".into(), state: "active".into(), ..Service::default() }];
        let mut last = MetricsData::default();
        last.system.services = Some(services.clone());
        last.system.host = Some(HostInfo { architecture: "x86_64".into(), ..HostInfo::default() });
        let mut next = MetricsData { unchanged: vec!["services".into(), "later".into()], ..MetricsData::default() };
        next.carry_forward(&last);
        assert_eq!(next.system.services, Some(services));
        assert_eq!(next.system.host, None);
    }
}
