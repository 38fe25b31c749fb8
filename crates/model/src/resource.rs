//! Things on the host that a VM owns, recorded before they are made so that nothing leaks.

use serde::{Deserialize, Serialize};

use crate::id::LaunchId;

/// One thing on the host that belongs to a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    /// What it is.
    pub kind: ResourceKind,
    /// What it is found by: a path, or a role such as `vmm` for a process. Unique per VM and kind.
    pub key: String,
    /// The launch that it ends with; `None` lives as long as the VM.
    pub launch: Option<LaunchId>,
    /// What the backend needs to find it again (for a process: its identity once there is one).
    pub detail: serde_json::Value,
}

/// What a resource is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResourceKind {
    /// A process. Found by pid, start time and boot ID; never by number or name alone.
    Process,
    /// A directory and what is in it.
    Directory,
    /// A Unix socket.
    Socket,
    /// A file.
    File,
    /// A machine held by a host process that serves many (the simulator).
    Hosted,
}

crate::spec::words!(ResourceKind, "kind", "process" => Process, "directory" => Directory, "socket" => Socket,
    "file" => File, "hosted" => Hosted);
