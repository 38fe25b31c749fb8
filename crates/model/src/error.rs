//! Why a request was turned away before anything happened.

use std::fmt;

use thiserror::Error;

use crate::capability::Capability;
use crate::id::{OperationId, VmId};
use crate::name::BackendName;
use crate::state::VmState;

/// A value that cannot be accepted: the field, the value at fault, and what is permitted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Invalid {
    /// Path of the field, e.g. `config.storage[1].path`.
    pub field: String,
    /// The offending value as given, cut to 128 characters.
    pub value: String,
    /// What is wrong, as the end of the sentence "`field` ...".
    pub problem: String,
    /// The permitted values or their shape; empty when the problem says it all.
    pub permitted: Vec<String>,
}

impl Invalid {
    /// A refusal of `value` in `field`.
    pub fn new(field: impl Into<String>, value: impl fmt::Display, problem: impl Into<String>) -> Self {
        let mut value = value.to_string();
        if value.chars().count() > 128 {
            value = value.chars().take(127).chain(['…']).collect();
        }
        Self { field: field.into(), value, problem: problem.into(), permitted: Vec::new() }
    }

    /// Adds what would have been accepted.
    pub fn permit<I: IntoIterator<Item = S>, S: Into<String>>(mut self, permitted: I) -> Self {
        self.permitted = permitted.into_iter().map(Into::into).collect();
        self
    }

    /// Puts the field under a parent: `path` under `storage[1]` becomes `storage[1].path`.
    pub fn under(mut self, parent: &str) -> Self {
        self.field = if self.field.is_empty() { parent.to_owned() } else { format!("{parent}.{}", self.field) };
        self
    }

    /// Replaces the field's name, for a type that does not know where it is used.
    pub fn at(mut self, field: &str) -> Self {
        self.field = field.to_owned();
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Debug form of the value: control characters in it must not reach a terminal.
        write!(f, "{} {:?} {}", self.field, self.value, self.problem)?;
        if !self.permitted.is_empty() {
            write!(f, " (permitted: {})", self.permitted.join(", "))?;
        }
        Ok(())
    }
}

/// Why a well-formed request may not run now. One variant per stable reason.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// A field cannot be accepted.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// No such VM, or one of another project: the two are told apart by nobody.
    #[error("there is no VM {0:?}")]
    VmNotFound(String),
    /// No such operation.
    #[error("there is no operation {0:?}")]
    OperationNotFound(String),
    /// No such execution.
    #[error("there is no execution {0:?}")]
    ExecutionNotFound(String),
    /// No such job.
    #[error("there is no job {0:?}")]
    JobNotFound(String),
    /// The name belongs to another VM of the project.
    #[error("a VM named {name:?} exists already ({vm_id})")]
    NameTaken { name: String, vm_id: VmId },
    /// The ID was given by the caller and belongs to another VM.
    #[error("a VM with the ID {0} exists already")]
    IdTaken(VmId),
    /// The VM's state does not allow it.
    #[error("cannot {action} a VM that is {state}; {hint}")]
    WrongState { action: &'static str, state: VmState, hint: &'static str },
    /// The VM is being deleted.
    #[error("the VM is being deleted by {0}")]
    BeingDeleted(OperationId),
    /// The caller saw an older version.
    #[error("resource_version is {actual}, not {expected}: read the VM again and repeat")]
    Stale { expected: u64, actual: u64 },
    /// The backend lacks a capability.
    #[error("backend {backend} has no {capability}; {}", have_it(.others))]
    Unsupported { backend: BackendName, capability: Capability, others: Vec<BackendName> },
    /// No backend of that name is configured.
    #[error("there is no backend {name:?} (configured: {})", .known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    UnknownBackend { name: String, known: Vec<BackendName> },
    /// The backend exists and cannot be used on this host.
    #[error("backend {backend} is not available: {reason}")]
    BackendUnavailable { backend: BackendName, reason: String },
    /// The idempotency key was used with another request.
    #[error("idempotency_key {key:?} was used with a different request")]
    KeyReused { key: String },
    /// The operation ended already.
    #[error("operation {0} has ended already")]
    OperationEnded(OperationId),
    /// The operation cannot be cancelled in the state it is in.
    #[error("operation {id} cannot be cancelled: {why}")]
    NotCancellable { id: OperationId, why: &'static str },
    /// What the host has left does not suffice.
    #[error("{resource} is exhausted: {detail}")]
    Exhausted { resource: &'static str, detail: String },
}

impl Refusal {
    /// The stable, machine-readable reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::Invalid(_) => "INVALID_FIELD",
            Refusal::VmNotFound(_) => "VM_NOT_FOUND",
            Refusal::OperationNotFound(_) => "OPERATION_NOT_FOUND",
            Refusal::ExecutionNotFound(_) => "EXECUTION_NOT_FOUND",
            Refusal::JobNotFound(_) => "JOB_NOT_FOUND",
            Refusal::NameTaken { .. } => "NAME_TAKEN",
            Refusal::IdTaken(_) => "ID_TAKEN",
            Refusal::WrongState { .. } => "WRONG_STATE",
            Refusal::BeingDeleted(_) => "BEING_DELETED",
            Refusal::Stale { .. } => "STALE_RESOURCE_VERSION",
            Refusal::Unsupported { .. } => "UNSUPPORTED_CAPABILITY",
            Refusal::UnknownBackend { .. } => "UNKNOWN_BACKEND",
            Refusal::BackendUnavailable { .. } => "BACKEND_UNAVAILABLE",
            Refusal::KeyReused { .. } => "IDEMPOTENCY_KEY_REUSED",
            Refusal::OperationEnded(_) => "OPERATION_ENDED",
            Refusal::NotCancellable { .. } => "NOT_CANCELLABLE",
            Refusal::Exhausted { .. } => "EXHAUSTED",
        }
    }
}

fn have_it(others: &[BackendName]) -> String {
    if others.is_empty() {
        return "no configured backend has it".to_owned();
    }
    let names: Vec<_> = others.iter().map(ToString::to_string).collect();
    format!("these have it: {}", names.join(", "))
}
