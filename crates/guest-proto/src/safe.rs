//! The safe actions: what [`SafeCommand::command_type`](crate::SafeCommand) may hold, as types.
//!
//! Owned here: the names of actions and fields, what each field permits ([`names`]), and what comes back in a
//! response's `data` ([`results`]). Names and fields of the first agent are as it has them; the others are in its
//! style. Not here: how an action is carried out.
//!
//! Unlike a request's own fields, those of an action are closed: one that is not known is refused with the nearest
//! that is, because a typing error in `force` or `version` must not be carried out without it.

mod names;
mod parse;
pub mod results;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use names::{Hostname, NameError, PackageName, PackageVersion, SearchQuery, ServiceName, SshKey, UserName};
use parse::{refuse_unknown, take};

use crate::error::ErrorBody;
use crate::secret::Secret;

/// The most entries of one list in an answer. A larger `limit` is this one.
pub const MAX_LIST: usize = 1000;

/// The most bytes of `data` in one answer, as JSON. With [`MAX_STDOUT`] and [`MAX_STDERR`], each of whose bytes may
/// take six as JSON, an answer fits in a line.
pub const MAX_DATA: usize = 512 * 1024;

/// The most bytes of `stdout` in the answer to a safe command.
pub const MAX_STDOUT: usize = 64 * 1024;

/// The most bytes of `stderr` in the answer to a safe command.
pub const MAX_STDERR: usize = 16 * 1024;

macro_rules! actions {
    ($($(#[$doc:meta])* $action:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {
        /// One typed action.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(tag = "action")]
        pub enum SafeAction {
            $($(#[$doc])* $action { $($(#[$field_doc])* $field: $type,)* },)*
        }

        impl SafeAction {
            /// The name of every action.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($action)),*];

            /// Its name, as `action` has it.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$action { .. } => stringify!($action),)*
                }
            }

            fn from_map(action: &str, mut map: Map<String, Value>) -> Result<Self, ErrorBody> {
                match action {
                    $(stringify!($action) => {
                        refuse_unknown(action, &map, &[$(stringify!($field)),*])?;
                        Ok(Self::$action { $($field: take(&mut map, stringify!($field))?,)* })
                    })*
                    _ => Err(parse::unknown_action(action, Self::NAMES)),
                }
            }
        }
    };
}

actions! {
    ServiceList {}
    ServiceControl {
        service: ServiceName,
        operation: ServiceOperation,
    }
    /// What is installed, by name.
    PackageList {
        /// Skip so many.
        offset: Option<u64>,
        limit: Option<u64>,
    }
    PackageSearch {
        query: SearchQuery,
        limit: Option<u64>,
    }
    PackageInstall {
        package: PackageName,
        /// Absent: the newest that the guest's sources have.
        version: Option<PackageVersion>,
        /// Fetch the lists of the guest's sources first. Absent: only if they do not have the package.
        refresh: Option<bool>,
    }
    PackageRemove {
        package: PackageName,
    }
    PackageUpdate {
        /// Absent: every package.
        package: Option<PackageName>,
    }
    ProcessList {
        limit: Option<u64>,
    }
    /// SIGTERM, or with `force` SIGKILL. The first process and the agent take `force` too.
    ProcessKill {
        pid: u32,
        force: Option<bool>,
        /// As a list of processes has it; a process of another start is not touched.
        start_time: Option<u64>,
    }
    /// The busiest processes, measured over half a second.
    ProcessTop {
        limit: Option<u64>,
        /// `cpu` where it is absent.
        sort_by: Option<SortBy>,
    }
    SystemInfo {}
    OsInfo {}
    RunHealthCheck {
        check_name: HealthCheck,
    }
    RunAllHealthChecks {}
    CheckDiskSpace {
        /// Percent in use; 80 where it is absent.
        warning_threshold: Option<f64>,
        /// 90 where it is absent.
        critical_threshold: Option<f64>,
    }
    DiskCleanup {
        /// Only what is on the file system that is mounted here. Absent: wherever it is.
        drive: Option<String>,
        targets: Vec<CleanupTarget>,
        /// For `tmp` and `journal`; 10 where it is absent.
        older_than_days: Option<u32>,
    }
    HostnameGet {}
    HostnameSet {
        hostname: Hostname,
    }
    NetworkInfo {}
    UserSetPassword {
        user: UserName,
        password: Secret,
        /// It is a crypt(3) hash already.
        encrypted: Option<bool>,
    }
    SshKeyList {
        user: UserName,
    }
    SshKeyAdd {
        user: UserName,
        keys: Vec<SshKey>,
    }
    SshKeyRemove {
        user: UserName,
        keys: Vec<SshKey>,
    }
    /// Sets the clock: to `time_ms` (since 1970, UTC), or by the guest's time service or hardware clock.
    TimeSync {
        time_ms: Option<u64>,
    }
    Shutdown {
        /// At once, without asking the guest's services to stop.
        force: Option<bool>,
    }
    Reboot {
        force: Option<bool>,
    }
    /// What the agent has and lacks: devices, permissions, drivers.
    Diagnose {}
    CheckWindowsUpdates {}
    GetUpdateHistory {
        days: Option<u32>,
    }
    GetPendingUpdates {}
    CheckWindowsDefender {}
    GetDefenderStatus {}
    RunDefenderQuickScan {}
    GetThreatHistory {}
    GetInstalledApplicationsWMI {}
    CheckApplicationUpdates {}
    GetApplicationDetails {
        app_id: String,
    }
}

/// What may be done to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceOperation {
    Start,
    Stop,
    Restart,
    Enable,
    Disable,
    Status,
}

impl ServiceOperation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Status => "status",
        }
    }
}

/// What processes are ordered by: the largest first, but names and process IDs upwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SortBy {
    #[default]
    Cpu,
    Memory,
    Pid,
    Name,
}

macro_rules! texts {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

texts! {
    /// What can be looked at.
    HealthCheck {
        DiskSpace = "disk_space",
        /// A file system on a disk that is mounted read-only by itself.
        FileSystems = "file_systems",
        Memory = "memory",
        Load = "load",
        /// Services that have failed.
        Services = "services",
        /// A link with an address, and a way out.
        Network = "network",
        Time = "time",
        Processes = "processes",
        /// The guest asks to be rebooted.
        Reboot = "reboot",
    }
}

texts! {
    /// What may be cleaned away.
    CleanupTarget {
        /// Package files that were fetched, and can be again.
        PackageCache = "package_cache",
        /// The system's journal, but for the last days.
        Journal = "journal",
        /// What nobody has used for days in /tmp and /var/tmp.
        Tmp = "tmp",
    }
}

impl SafeAction {
    /// The action in a [`SafeCommand`](crate::SafeCommand): its `command_type`, with the fields that `params` adds.
    pub fn parse(command_type: &Value, params: Option<&Value>) -> Result<Self, ErrorBody> {
        let Value::Object(map) = command_type else {
            return Err(ErrorBody::field("command_type", "command_type: an object with an action is wanted"));
        };
        let mut map = map.clone();
        let Some(Value::String(action)) = map.remove("action") else {
            return Err(ErrorBody::field("command_type.action", "command_type.action: missing, or no text"));
        };
        match params {
            None | Some(Value::Null) => {}
            Some(Value::Object(params)) => {
                for (key, value) in params {
                    if map.get(key).is_some_and(|there| there != value) {
                        let key = parse::shown(key);
                        let message = format!("params.{key}: command_type has another value for it");
                        return Err(ErrorBody::field(&format!("params.{key}"), message));
                    }
                    map.insert(key.clone(), value.clone());
                }
            }
            Some(_) => return Err(ErrorBody::field("params", "params: an object is wanted")),
        }
        Self::from_map(&action, map)
    }

    /// The action as `command_type` holds it, secrets included.
    pub fn to_value(&self) -> Value {
        let mut value = serde_json::to_value(self).expect("keys are texts, and nothing in it fails");
        if let Value::Object(map) = &mut value {
            map.retain(|_, value| !value.is_null());
        }
        value
    }

    /// The action for an audit record: without what is secret.
    pub fn to_audit(&self) -> Value {
        let mut value = self.to_value();
        if let Some(password) = value.get_mut("password") {
            *password = Value::from("(withheld)");
        }
        value
    }

    /// Whether it leaves the guest as it is: nothing is written to its disks, started or ended.
    pub fn only_reads(&self) -> bool {
        match self {
            Self::ServiceControl { operation, .. } => *operation == ServiceOperation::Status,
            // Most managers write a cache of their lists before they search it.
            Self::PackageSearch { .. }
            | Self::PackageInstall { .. }
            | Self::PackageRemove { .. }
            | Self::PackageUpdate { .. }
            | Self::ProcessKill { .. }
            | Self::DiskCleanup { .. }
            | Self::HostnameSet { .. }
            | Self::UserSetPassword { .. }
            | Self::SshKeyAdd { .. }
            | Self::SshKeyRemove { .. }
            | Self::TimeSync { .. }
            | Self::Shutdown { .. }
            | Self::Reboot { .. }
            | Self::RunDefenderQuickScan {} => false,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests;
