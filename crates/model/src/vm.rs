//! The record of a VM: what the database holds and every decision reads.

use serde::{Deserialize, Serialize};

use crate::id::{ProjectId, VmId};
use crate::name::{BackendName, VmName};
use crate::spec::{IdleAction, VmSpec};
use crate::state::{Desired, Machine, Observed, Power, VmState, phase};
use crate::time::Timestamp;

/// The condition that tells of a guest's tools; its message names them.
const TOOLS_INSTALLED: &str = "ToolsInstalled";

/// One VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vm {
    /// Its ID.
    pub id: VmId,
    /// The tenant.
    pub project: ProjectId,
    /// Unique in the project among what is not deleted.
    pub name: VmName,
    /// What runs it.
    pub backend: BackendName,
    /// What it is to be.
    pub spec: VmSpec,
    /// Counts changes of the spec, from 1.
    pub generation: u64,
    /// What is wanted of it.
    pub desired: Desired,
    /// What the host was last seen to have.
    pub observed: Observed,
    /// Why it is FAILED.
    pub failure: Option<Failure>,
    /// Restarts by its policy.
    pub restarts: Restarts,
    /// How its guest's instructions run, and why so; from its last launch.
    pub accelerator: Option<String>,
    /// What else is known of it.
    pub conditions: Vec<Condition>,
    /// Counts changes of the record, from 1.
    pub resource_version: u64,
    /// When it was recorded.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// When it last began to run.
    pub started_at: Option<Timestamp>,
}

/// Why a VM is FAILED.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Stable and machine-readable.
    pub reason: String,
    /// For people.
    pub message: String,
    /// When it failed.
    pub at: Timestamp,
}

/// Restarts by policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restarts {
    /// In a row, since it last ran for long enough or was started by request.
    pub in_row: u32,
    /// Ever.
    pub total: u64,
    /// When the next one is due.
    pub due: Option<Timestamp>,
}

/// One more thing that is known of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// `Reachable`, ...
    pub kind: String,
    /// Whether it holds.
    pub status: bool,
    /// Stable and machine-readable.
    pub reason: String,
    /// For people.
    pub message: String,
    /// When `status` last changed.
    pub since: Timestamp,
}

impl Vm {
    /// The public state.
    pub fn state(&self) -> VmState {
        phase(self.observed, self.failure.is_some())
    }

    /// Sets a condition; `since` moves only when the status does. Returns whether anything changed.
    pub fn set_condition(&mut self, kind: &str, status: bool, reason: &str, message: &str, now: Timestamp) -> bool {
        let new = |since| Condition {
            kind: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message: message.to_owned(),
            since,
        };
        match self.conditions.iter_mut().find(|c| c.kind == kind) {
            Some(old) if old.status == status && old.reason == reason && old.message == message => false,
            Some(old) => {
                *old = new(if old.status == status { old.since } else { now });
                true
            }
            None => {
                self.conditions.push(new(now));
                true
            }
        }
    }

    /// Gives it another spec.
    pub fn set_spec(&mut self, spec: &VmSpec) {
        if self.spec.tools != spec.tools {
            self.conditions.retain(|c| c.kind != TOOLS_INSTALLED);
        }
        self.generation += u64::from(self.spec != *spec);
        self.spec.clone_from(spec);
    }

    /// Whether what its spec wants installed in the guest is there.
    pub fn has_tools(&self) -> bool {
        self.spec.tools.is_empty() || self.conditions.iter().any(|c| c.kind == TOOLS_INSTALLED && c.status)
    }

    /// Remembers that it is.
    pub fn set_tools_installed(&mut self, now: Timestamp) {
        let names: Vec<_> = self.spec.tools.iter().map(|tool| tool.name.to_string()).collect();
        self.set_condition(TOOLS_INSTALLED, true, "INSTALLED", &names.join(", "), now);
    }

    /// Whether nothing was done in it for longer than its spec allows. `active`: when something last was.
    pub fn idle_for_too_long(&self, active: Timestamp, now: Timestamp) -> Option<IdleAction> {
        let idle = self.spec.idle.filter(|_| !self.desired.deleted && self.observed.machine == Machine::Running)?;
        let since = self.started_at.map_or(active, |started| started.max(active));
        (since.after(idle.timeout) <= now).then_some(idle.action)
    }

    /// Whether its time to live is over.
    pub fn expired(&self, now: Timestamp) -> bool {
        !self.desired.deleted && self.spec.time_to_live.is_some_and(|ttl| self.created_at.after(ttl) <= now)
    }

    /// The power that fits what is there: what `desired` falls back to when a request came to nothing.
    pub fn settled_power(&self) -> Power {
        match self.observed.machine {
            Machine::Running => Power::Running,
            Machine::Paused => Power::Paused,
            Machine::Absent | Machine::Defined | Machine::Ended { .. } => Power::Stopped,
        }
    }
}
