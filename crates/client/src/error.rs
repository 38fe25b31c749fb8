//! Why a call did not give what it was asked for.

use std::io;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use buffa::Message;
use connectrpc::{ConnectError, ErrorCode};
use roost_api::status::{ERROR_DETAIL, OPERATION};
use roost_api::vmm::v1::{ErrorDetail, Operation};
use thiserror::Error;

/// Why a call did not give what it was asked for.
#[derive(Debug, Clone, Error)]
pub enum Error {
    /// Nobody answers at the daemon's socket, or this user may not ask.
    #[error("no daemon answers at {}: {}", socket.display(), describe(*kind))]
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// `NotFound`, `ConnectionRefused` or `PermissionDenied`, as the system said.
        kind: io::ErrorKind,
    },
    /// The daemon answered with an error, or the call broke on its way.
    #[error("{message}")]
    Call {
        /// The RPC status.
        code: ErrorCode,
        /// For people.
        message: String,
        /// The reason, the field and the value at fault, and what is permitted. `None`: the error
        /// does not come from the daemon's own code (a broken connection, a bad frame).
        detail: Option<Box<ErrorDetail>>,
        /// The operation, where the call waited for one that came to nothing.
        operation: Option<Box<Operation>>,
    },
}

impl Error {
    /// The RPC status; `Unavailable` when nobody answered.
    pub fn code(&self) -> ErrorCode {
        match self {
            Error::Unreachable { .. } => ErrorCode::Unavailable,
            Error::Call { code, .. } => *code,
        }
    }

    /// The stable, machine-readable reason, where the daemon gave one.
    pub fn reason(&self) -> Option<&str> {
        self.detail().map(|d| d.reason.as_str())
    }

    /// The daemon's own words, where it gave them.
    pub fn detail(&self) -> Option<&ErrorDetail> {
        match self {
            Error::Unreachable { .. } => None,
            Error::Call { detail, .. } => detail.as_deref(),
        }
    }

    /// The operation that came to nothing, where the call waited for one.
    pub fn operation(&self) -> Option<&Operation> {
        match self {
            Error::Unreachable { .. } => None,
            Error::Call { operation, .. } => operation.as_deref(),
        }
    }

    pub(crate) fn from_call(error: &ConnectError, socket: &std::path::Path) -> Self {
        if error.code == ErrorCode::Unavailable
            && let Some(kind) = connect_failure(error)
        {
            return Error::Unreachable { socket: socket.to_owned(), kind };
        }
        Error::Call {
            code: error.code,
            message: error.message.clone().unwrap_or_else(|| error.code.as_str().to_owned()),
            detail: decode(error, ERROR_DETAIL).map(Box::new),
            operation: decode(error, OPERATION).map(Box::new),
        }
    }
}

/// What the system said when the socket was opened, if that is where the call failed.
fn connect_failure(error: &ConnectError) -> Option<io::ErrorKind> {
    use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            return Some(io.kind()).filter(|k| matches!(k, ConnectionRefused | NotFound | PermissionDenied));
        }
        source = inner.source();
    }
    None
}

/// The first detail of that type.
fn decode<M: Message>(error: &ConnectError, name: &str) -> Option<M> {
    let detail = error.details.iter().find(|d| d.type_url.rsplit('/').next() == Some(name))?;
    let text = detail.value.as_deref()?;
    let bytes = STANDARD_NO_PAD.decode(text).or_else(|_| STANDARD.decode(text)).ok()?;
    M::decode_from_slice(&bytes).ok()
}

fn describe(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::NotFound => "there is no such socket",
        io::ErrorKind::PermissionDenied => "permission denied",
        _ => "nothing listens there",
    }
}
