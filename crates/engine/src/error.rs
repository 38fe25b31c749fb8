//! Why the engine did not do what it was asked.

use roost_backend::BackendError;
use roost_model::{Invalid, Refusal};
use roost_store::StoreError;
use thiserror::Error;

/// Why the engine did not do what it was asked. Nothing was recorded then.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The request may not run.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The record could not be read or written.
    #[error("the database cannot be used")]
    Store(#[from] StoreError),
    /// The backend could not answer.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The engine is stopping.
    #[error("the daemon is stopping")]
    Stopping,
}

impl From<Invalid> for EngineError {
    fn from(e: Invalid) -> Self {
        EngineError::Refused(Refusal::Invalid(e))
    }
}
