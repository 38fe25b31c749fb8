//! Why a backend could not do what it was asked.

use roost_model::operation::OperationError;
use thiserror::Error;

/// A backend's failure.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct BackendError {
    /// Whether trying again can help.
    pub kind: ErrorKind,
    /// Stable and machine-readable, e.g. `KERNEL_UNREADABLE`.
    pub reason: &'static str,
    /// For people; carries the values at fault, no secrets.
    pub message: String,
    /// What to try next; may be empty.
    pub hint: String,
    /// The field of the API's request that is at fault, e.g. `config.boot.kernel_path`; empty where none is.
    pub field: String,
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The same request fails again until the spec or the host changes.
    Permanent,
    /// It may work in a while.
    Transient,
    /// There is no such machine.
    NotFound,
}

impl BackendError {
    /// A failure that repeats itself.
    pub fn permanent(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Permanent, reason, message.into())
    }

    /// A failure that may pass.
    pub fn transient(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Transient, reason, message.into())
    }

    /// There is no such machine.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, "NO_MACHINE", message.into())
    }

    fn new(kind: ErrorKind, reason: &'static str, message: String) -> Self {
        Self { kind, reason, message, hint: String::new(), field: String::new() }
    }

    /// Adds what to try next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Names the field at fault.
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = field.into();
        self
    }

    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        self.kind == ErrorKind::Transient
    }
}

impl From<BackendError> for OperationError {
    fn from(e: BackendError) -> Self {
        OperationError { reason: e.reason.to_owned(), message: e.message, hint: e.hint, field: e.field }
    }
}
