//! The three views of a VM: what is wanted, what the host has, and what the API calls it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::LaunchId;
use crate::time::Timestamp;

/// What is wanted of a VM's existence and power. The shape that is wanted is its `VmSpec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Desired {
    /// Whether it is to run.
    pub power: Power,
    /// Whether it is to be gone. Never goes back to false.
    pub deleted: bool,
}

/// Whether a machine is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// Not running.
    Stopped,
    /// Running.
    Running,
    /// In memory, CPUs stopped.
    Paused,
}

/// What the host was last seen to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observed {
    /// The machine.
    pub machine: Machine,
    /// The launch that it belongs to, or belonged to.
    pub launch: Option<LaunchId>,
    /// When this was first seen to be so.
    pub since: Timestamp,
}

/// What the host has of a VM.
///
/// ```text
///   Absent -define-> Defined -launch-> Running <-pause/resume-> Paused
///                       ^                 |                       |
///                       |                 +----------+------------+
///                       +------launch---- Ended <----+
///   any -clear, remove-> Absent
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Machine {
    /// Nothing was made yet, or all of it is gone again.
    Absent,
    /// Its files are there; it has not run.
    Defined,
    /// Its process runs and so do its CPUs.
    Running,
    /// Its process runs, its CPUs do not.
    Paused,
    /// It ran and ended.
    Ended {
        /// Why.
        cause: ExitCause,
        /// The process, or other runtime leftovers, still wait to be cleared away.
        lingering: bool,
    },
}

/// Why a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitCause {
    /// The guest powered itself off, or did so when asked.
    PowerOff,
    /// Roost ended it, by force.
    Forced,
    /// The guest's kernel panicked.
    Panic,
    /// Its process was killed from outside, or vanished with the host's reboot.
    Killed,
    /// Its process ended by itself with an error.
    Crashed,
}

/// The public state (`vmm.v1.VmState`; the numbers are the wire's).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(i32)]
pub enum VmState {
    /// Created, has not run.
    Created = 1,
    /// Running.
    Running = 2,
    /// Paused.
    Paused = 3,
    /// Ran and was shut down.
    Shutdown = 4,
    /// Ended by a panic, a crash or a kill.
    Crashed = 5,
    /// What was asked cannot be done; not tried again until the spec changes or somebody asks.
    Failed = 6,
}

crate::spec::words!(Power, "power", "stopped" => Stopped, "running" => Running, "paused" => Paused);
crate::spec::words!(ExitCause, "cause", "power-off" => PowerOff, "forced" => Forced, "panic" => Panic,
    "killed" => Killed, "crashed" => Crashed);
crate::spec::words!(VmState, "state", "created" => Created, "running" => Running, "paused" => Paused,
    "shutdown" => Shutdown, "crashed" => Crashed, "failed" => Failed);

impl ExitCause {
    /// Whether a restart policy of `on-failure` acts on it.
    pub fn is_failure(self) -> bool {
        matches!(self, ExitCause::Panic | ExitCause::Killed | ExitCause::Crashed)
    }
}

impl Machine {
    /// Whether a process of the machine is there with its guest in it.
    pub fn is_up(self) -> bool {
        matches!(self, Machine::Running | Machine::Paused)
    }
}

impl Observed {
    /// What is known of a VM that has just been recorded.
    pub fn absent(now: Timestamp) -> Self {
        Self { machine: Machine::Absent, launch: None, since: now }
    }
}

/// The public state, from the other two views.
pub fn phase(observed: Observed, failed: bool) -> VmState {
    if failed {
        return VmState::Failed;
    }
    match observed.machine {
        Machine::Absent | Machine::Defined => VmState::Created,
        Machine::Running => VmState::Running,
        Machine::Paused => VmState::Paused,
        Machine::Ended { cause, .. } if cause.is_failure() => VmState::Crashed,
        Machine::Ended { .. } => VmState::Shutdown,
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Machine::Absent => f.write_str("absent"),
            Machine::Defined => f.write_str("defined"),
            Machine::Running => f.write_str("running"),
            Machine::Paused => f.write_str("paused"),
            Machine::Ended { cause, .. } => write!(f, "ended ({cause})"),
        }
    }
}
