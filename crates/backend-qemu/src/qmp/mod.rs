//! The QEMU Machine Protocol, as much of it as Roost speaks.
//!
//! Owns: lines and their bound ([`codec`]), messages ([`message`]), one connection with its
//! handshake, and the matching of answers to commands by their IDs ([`connection`]).
//! Not here: what a command or an event means for a machine ([`crate::machine`]).
//!
//! The other end is a process that runs hostile guests: whatever it sends, or does not send, ends
//! in a typed error and never in a panic, an endless wait or unbounded memory.

mod codec;
mod connection;
mod message;

use std::time::Duration;

use roost_backend::BackendError;
use thiserror::Error;

pub(crate) use connection::Connection;
pub(crate) use message::{Command, Event, Message};

/// Why a conversation with QEMU failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum QmpError {
    /// The other end closed the connection.
    #[error("QEMU closed its control connection")]
    Closed,
    /// The socket failed.
    #[error("QEMU's control connection failed: {0}")]
    Io(String),
    /// A line that does not end.
    #[error("QEMU sent a line of more than {limit} bytes")]
    Oversize { limit: usize },
    /// Not QMP.
    #[error("QEMU sent what is not QMP: {excerpt:?}")]
    Garbage { excerpt: String },
    /// No answer in time.
    #[error("QEMU did not answer {what} within {limit:?}")]
    Timeout { what: &'static str, limit: Duration },
    /// More commands are waiting for their answers than any working QEMU leaves.
    #[error("{waiting} commands wait for QEMU's answer")]
    Overloaded { waiting: usize },
    /// QEMU says no.
    #[error("QEMU refused {command}: {text}")]
    Refused { command: &'static str, text: String },
}

impl QmpError {
    fn garbage(line: &[u8]) -> Self {
        QmpError::Garbage { excerpt: String::from_utf8_lossy(&line[..line.len().min(100)]).into_owned() }
    }
}

impl From<std::io::Error> for QmpError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => QmpError::Closed,
            _ => QmpError::Io(error.to_string()),
        }
    }
}

impl From<QmpError> for BackendError {
    fn from(error: QmpError) -> Self {
        let reason = match &error {
            QmpError::Closed | QmpError::Io(_) => "QMP_CLOSED",
            QmpError::Oversize { .. } | QmpError::Garbage { .. } => "QMP_PROTOCOL",
            QmpError::Timeout { .. } | QmpError::Overloaded { .. } => "QMP_TIMEOUT",
            QmpError::Refused { .. } => return BackendError::permanent("QMP_REFUSED", error.to_string()),
        };
        BackendError::transient(reason, error.to_string())
    }
}
