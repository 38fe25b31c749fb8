//! What a safe action answers in `data`.
//!
//! A list that was cut says so by `truncated`, and `total` says how many there are.

use serde::{Deserialize, Serialize};

/// `ServiceList`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// `systemd` or `openrc`.
    pub manager: String,
    pub services: Vec<Service>,
    pub total: usize,
    pub truncated: bool,
}

/// `ServiceControl` answers one of these, as it is afterwards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    /// `active`, `inactive`, `failed`, `activating`, `deactivating`, or the manager's own word.
    pub state: String,
    /// What the manager says more closely: `running`, `exited`, `dead`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_state: Option<String>,
    /// Whether it starts with the system; absent where that means nothing for it.
    pub enabled: Option<bool>,
    pub description: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// `PackageList` and `PackageSearch`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packages {
    /// `apt`, `dnf`, `apk`, `zypper` or `pacman`.
    pub manager: String,
    pub packages: Vec<Package>,
    pub total: usize,
    pub truncated: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    pub name: String,
    /// Absent where a search does not tell.
    pub version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// As installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    pub description: String,
    pub installed: bool,
}

/// `PackageInstall`, `PackageRemove`, `PackageUpdate`: the package as it is afterwards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageChange {
    pub manager: String,
    /// Absent: all packages.
    pub package: Option<String>,
    /// Absent: it is not installed.
    pub version: Option<String>,
    /// The version that was there before.
    pub previous_version: Option<String>,
    pub changed: bool,
}

/// `ProcessList` and `ProcessTop`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Processes {
    pub processes: Vec<Process>,
    pub total: usize,
    pub truncated: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub parent_pid: u32,
    pub name: String,
    /// A name, or a number that has none.
    pub user: String,
    /// `R`, `S`, `D`, `Z`, ... as /proc has it.
    pub state: String,
    /// Percent of one core: over its life in a list, over the last half second in a top.
    pub cpu: f64,
    /// Percent of the memory.
    pub memory: f64,
    pub memory_kb: u64,
    pub threads: u32,
    /// Clock ticks from the boot to its start: with the process ID, it names one process.
    pub start_time: u64,
    /// The command line; cut, and empty for a thread of the kernel.
    pub command: String,
}

/// `ProcessKill`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessKilled {
    pub pid: u32,
    pub name: String,
    pub start_time: u64,
    pub signal: String,
    /// It ended within a second.
    pub ended: bool,
}

/// `SystemInfo`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SystemInfo {
    pub hostname: String,
    pub os: OsInfo,
    pub cpus: usize,
    pub cpu_model: Option<String>,
    pub memory_total_kb: u64,
    pub memory_available_kb: u64,
    pub swap_total_kb: u64,
    pub uptime_seconds: u64,
    pub load_average: [f64; 3],
    pub boot_id: Option<String>,
    pub machine_id: Option<String>,
    /// The machine's maker and product, as its firmware tells.
    pub hardware: Option<String>,
    pub agent_version: String,
}

/// `OsInfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsInfo {
    /// `debian`, `alpine`, ...
    pub id: String,
    pub name: String,
    pub version: String,
    pub pretty_name: String,
    pub kernel: String,
    pub kernel_version: String,
    pub architecture: String,
    pub service_manager: Option<String>,
    pub package_manager: Option<String>,
}

/// How something is; the worst is the greatest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    #[default]
    Healthy,
    /// It could not be found out.
    Unknown,
    Warning,
    Critical,
}

/// `RunHealthCheck`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckResult {
    pub name: String,
    pub status: Health,
    pub message: String,
}

/// `RunAllHealthChecks`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckResults {
    /// The worst of them.
    pub status: Health,
    pub checks: Vec<CheckResult>,
}

/// `CheckDiskSpace`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskSpace {
    pub status: Health,
    pub warning_threshold: f64,
    pub critical_threshold: f64,
    pub disks: Vec<Disk>,
    pub truncated: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    pub mount_point: String,
    pub filesystem: String,
    pub total_bytes: u64,
    pub used_bytes: u64,
    /// For those who are not root.
    pub available_bytes: u64,
    pub used_percent: f64,
    pub inodes_used_percent: f64,
    pub status: Health,
}

/// `DiskCleanup`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleanup {
    pub freed_bytes: u64,
    pub targets: Vec<CleanedTarget>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanedTarget {
    pub target: String,
    pub freed_bytes: u64,
    pub removed_files: u64,
    /// Why nothing, or not all, was done.
    pub skipped: Option<String>,
}

/// `HostnameGet` and `HostnameSet`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostnameResult {
    pub hostname: String,
    pub previous: Option<String>,
}

/// `NetworkInfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub interfaces: Vec<Interface>,
    pub truncated: bool,
    /// Addresses of default gateways.
    pub gateways: Vec<String>,
    pub name_servers: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    pub index: u32,
    pub mac: Option<String>,
    pub mtu: u32,
    /// Switched on.
    pub up: bool,
    /// A link is there.
    pub running: bool,
    pub loopback: bool,
    /// `10.0.0.2/24`
    pub addresses: Vec<String>,
}

/// `SshKeyList`, `SshKeyAdd`, `SshKeyRemove`: the keys as they are afterwards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshKeys {
    pub user: String,
    pub path: String,
    pub keys: Vec<SshKeyInfo>,
    /// How many were added or removed.
    pub changed: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshKeyInfo {
    pub kind: String,
    /// `SHA256:...`, as ssh-keygen shows it.
    pub fingerprint: String,
    pub comment: String,
}

/// `TimeSync`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeSynced {
    /// `host`, `chrony` or `hardware_clock`.
    pub method: String,
    /// How far the clock was moved, where that is known.
    pub moved_ms: Option<i64>,
    pub time_ms: u64,
}

/// `Diagnose`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Nothing stands in the agent's way.
    pub ok: bool,
    pub findings: Vec<Finding>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    pub level: FindingLevel,
    /// How it is.
    pub message: String,
    /// What to do about it.
    pub fix: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FindingLevel {
    #[default]
    Ok,
    /// Something that the agent can do is missing.
    Limited,
    /// The agent cannot do its work.
    Broken,
}
