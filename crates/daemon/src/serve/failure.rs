//! From the engine's errors to what a caller is told: a safe message on the wire, the chain in the log.

use connectrpc::{ConnectError, ErrorCode};
use roost_api::status;
use roost_backend::ErrorKind;
use roost_engine::EngineError;
use roost_store::StoreError;

/// What a caller is told.
pub(super) fn told(error: &EngineError) -> ConnectError {
    match error {
        EngineError::Refused(refusal) => status::refusal(refusal),
        EngineError::Backend(error) => {
            let code = match error.kind {
                ErrorKind::Permanent => ErrorCode::FailedPrecondition,
                ErrorKind::Transient => ErrorCode::Unavailable,
                ErrorKind::NotFound => ErrorCode::NotFound,
            };
            status::error(code, error.reason, error.message.clone(), &error.hint)
        }
        EngineError::Stopping => {
            status::error(ErrorCode::Unavailable, "STOPPING", "the daemon is stopping", "try again when it is back")
        }
        EngineError::Store(error) => {
            tracing::error!(error = %error, "a request failed in the database");
            of_store(error)
        }
    }
}

fn of_store(error: &StoreError) -> ConnectError {
    let mend = "roost doctor; the daemon's log says more";
    match error {
        StoreError::DiskFull => status::error(
            ErrorCode::ResourceExhausted,
            "DISK_FULL",
            "the disk of the database is full; nothing was changed",
            "free some space and repeat the request",
        ),
        StoreError::ReadOnly(_) => {
            status::error(ErrorCode::Unavailable, "DATABASE_READ_ONLY", "the database cannot be written", mend)
        }
        StoreError::Conflict { .. } => {
            status::error(ErrorCode::Aborted, "CONFLICT", "the record was changed in between", "repeat the request")
        }
        StoreError::Corrupt { .. }
        | StoreError::NewerSchema { .. }
        | StoreError::Unique { .. }
        | StoreError::Decode { .. }
        | StoreError::Unavailable(_) => {
            status::error(ErrorCode::Unavailable, "DATABASE_UNAVAILABLE", "the database cannot be used", mend)
        }
    }
}
