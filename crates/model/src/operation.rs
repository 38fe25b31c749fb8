//! Operations: one accepted request each, with its course and its end.
//!
//! ```text
//!   pending --claimed--> running --> succeeded
//!      ^                  |  |  \--> failed
//!      +---- retry -------+  +-----> cancelled
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, OperationId, ProjectId, VmId};
use crate::spec::words;
use crate::state::Power;
use crate::time::Timestamp;

/// One accepted request that changes something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Its ID.
    pub id: OperationId,
    /// The tenant.
    pub project: ProjectId,
    /// The VM that it concerns.
    pub vm: VmId,
    /// What was asked, with its arguments.
    pub goal: Goal,
    /// Who goes first.
    pub priority: Priority,
    /// Where it is.
    pub status: Status,
    /// How often it was begun.
    pub attempt: u32,
    /// How often it may be begun.
    pub max_attempts: u32,
    /// Not begun before this.
    pub run_after: Timestamp,
    /// Failed when not done by then.
    pub deadline: Option<Timestamp>,
    /// Who works on it.
    pub claim: Option<Claim>,
    /// How far it is.
    pub progress: Progress,
    /// Whether somebody asked for its cancellation.
    pub cancel_requested: bool,
    /// Why it failed (or failed the last time).
    pub error: Option<OperationError>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it was first begun.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// What an operation is to bring about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Goal {
    /// The VM exists, and runs if `power` says so.
    Create {
        /// `Stopped` or `Running`.
        power: Power,
    },
    /// It runs.
    Boot,
    /// It does not run. `grace`: how long the guest may take; `None` is by force, at once.
    Shutdown {
        /// In milliseconds.
        grace_ms: Option<u64>,
    },
    /// Its CPUs stop.
    Pause,
    /// Its CPUs go on.
    Resume,
    /// It starts anew. `grace`: how long the guest may take to shut down; `None` is a reset, at once.
    Reboot {
        /// In milliseconds.
        grace_ms: Option<u64>,
    },
    /// Its recorded spec is another.
    Update,
    /// It is gone, with all that belonged to it.
    Delete {
        /// As in `Shutdown`.
        grace_ms: Option<u64>,
    },
}

/// The kind of an operation, as the API and the queue name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OperationKind {
    /// `vm:create`
    Create,
    /// `vm:boot`
    Boot,
    /// `vm:shutdown`
    Shutdown,
    /// `vm:pause`
    Pause,
    /// `vm:resume`
    Resume,
    /// `vm:reboot`
    Reboot,
    /// `vm:update`
    Update,
    /// `vm:delete`
    Delete,
}

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Before everything else.
    Critical,
    /// Before the usual.
    High,
    /// The usual.
    #[default]
    Default,
    /// When there is nothing else.
    Low,
}

/// Where an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Accepted, not begun or waiting for its next attempt.
    Pending,
    /// Begun.
    Running,
    /// Done.
    Succeeded,
    /// Given up.
    Failed,
    /// Ended on request, or overtaken by a delete.
    Cancelled,
}

words!(OperationKind, "kind", "vm:create" => Create, "vm:boot" => Boot, "vm:shutdown" => Shutdown,
    "vm:pause" => Pause, "vm:resume" => Resume, "vm:reboot" => Reboot, "vm:update" => Update, "vm:delete" => Delete);
words!(Priority, "priority", "critical" => Critical, "high" => High, "default" => Default, "low" => Low);
words!(Status, "status", "pending" => Pending, "running" => Running, "succeeded" => Succeeded,
    "failed" => Failed, "cancelled" => Cancelled);

/// Who works on an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The node.
    pub node: NodeId,
    /// The epoch of the node's lease.
    pub epoch: u64,
    /// The worker on the node.
    pub worker: String,
}

/// How far an operation is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// 0 to 100.
    pub percent: u8,
    /// What is being done.
    pub message: String,
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationError {
    /// Stable and machine-readable, e.g. `KERNEL_UNREADABLE`.
    pub reason: String,
    /// For people; safe to show.
    pub message: String,
    /// What to try next; may be empty.
    pub hint: String,
    /// The field of the request that is at fault, e.g. `config.boot.kernel_path`; empty where none is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// What becomes of an operation whose attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// It is begun again then.
    Retry(Timestamp),
    /// It ends as failed.
    GiveUp,
}

impl Goal {
    /// Its kind.
    pub fn kind(&self) -> OperationKind {
        match self {
            Goal::Create { .. } => OperationKind::Create,
            Goal::Boot => OperationKind::Boot,
            Goal::Shutdown { .. } => OperationKind::Shutdown,
            Goal::Pause => OperationKind::Pause,
            Goal::Resume => OperationKind::Resume,
            Goal::Reboot { .. } => OperationKind::Reboot,
            Goal::Update => OperationKind::Update,
            Goal::Delete { .. } => OperationKind::Delete,
        }
    }

    /// Whether accepting this makes an open operation pointless: a delete ends everything else, a
    /// forced shutdown whatever moves the power.
    pub fn overtakes(&self, other: &Goal) -> bool {
        match self {
            Goal::Delete { .. } => !matches!(other, Goal::Delete { .. }),
            Goal::Shutdown { grace_ms: None } => matches!(
                other,
                Goal::Boot | Goal::Pause | Goal::Resume | Goal::Reboot { .. } | Goal::Shutdown { grace_ms: Some(_) }
            ),
            _ => false,
        }
    }

    /// How often it may be begun. Starting twice what failed once seldom helps; a delete must get there.
    pub fn max_attempts(&self) -> u32 {
        match self {
            Goal::Delete { .. } => 10,
            _ => 3,
        }
    }
}

impl Status {
    /// Whether nothing follows.
    pub fn is_final(self) -> bool {
        matches!(self, Status::Succeeded | Status::Failed | Status::Cancelled)
    }
}

impl Operation {
    /// A new operation, pending.
    pub fn new(id: OperationId, project: ProjectId, vm: VmId, goal: Goal, priority: Priority, now: Timestamp) -> Self {
        Self {
            id,
            project,
            vm,
            max_attempts: goal.max_attempts(),
            goal,
            priority,
            status: Status::Pending,
            attempt: 0,
            run_after: now,
            deadline: None,
            claim: None,
            progress: Progress::default(),
            cancel_requested: false,
            error: None,
            created_at: now,
            started_at: None,
            finished_at: None,
        }
    }

    /// Ends it.
    pub fn finish(&mut self, status: Status, error: Option<OperationError>, now: Timestamp) {
        debug_assert!(status.is_final(), "an operation ends in a final status");
        self.status = status;
        self.claim = None;
        self.finished_at = Some(now);
        if status == Status::Succeeded {
            self.progress = Progress { percent: 100, message: String::new() };
            self.error = None;
        }
        if error.is_some() {
            self.error = error;
        }
    }

    /// What becomes of it now that an attempt failed. `jitter` in 0..=1.
    pub fn after_failure(&self, retryable: bool, now: Timestamp, jitter: f64) -> AfterFailure {
        if !retryable || self.attempt >= self.max_attempts {
            return AfterFailure::GiveUp;
        }
        let base = Duration::from_millis(500).saturating_mul(1u32 << self.attempt.min(7));
        let at = now.after(base.mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 2.0));
        match self.deadline {
            Some(deadline) if deadline <= at => AfterFailure::GiveUp,
            _ => AfterFailure::Retry(at),
        }
    }
}
