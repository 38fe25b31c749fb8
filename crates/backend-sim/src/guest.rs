//! What the simulator knows of a guest: little, taken from its spec.

use std::time::Duration;

use roost_model::VmSpec;
use serde::{Deserialize, Serialize};

/// A simulated guest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// It does not hear requests to shut down.
    pub deaf: bool,
    /// How long it takes from its launch until its CPUs run.
    pub boot_ms: u64,
    /// How long it takes to shut down when asked.
    pub shutdown_ms: u64,
    /// IDs of its disks.
    pub disks: Vec<String>,
    /// IDs of its NICs.
    pub nics: Vec<String>,
}

impl Guest {
    /// Reads the kernel command line as the guest would.
    pub fn of(spec: &VmSpec) -> Self {
        let words = || spec.boot.kernel_args.as_str().split_whitespace();
        let number =
            |key: &str| words().find_map(|w| w.strip_prefix(key)?.strip_prefix('=')?.parse().ok()).unwrap_or_default();
        Self {
            deaf: words().any(|w| w == "sim.deaf"),
            boot_ms: number("sim.boot_ms"),
            shutdown_ms: number("sim.shutdown_ms"),
            disks: spec.storage.iter().map(|d| d.id.clone()).collect(),
            nics: spec.network.iter().map(|n| n.id.clone()).collect(),
        }
    }

    pub(crate) fn boot_time(&self) -> Duration {
        Duration::from_millis(self.boot_ms)
    }

    pub(crate) fn shutdown_time(&self) -> Duration {
        Duration::from_millis(self.shutdown_ms)
    }
}
