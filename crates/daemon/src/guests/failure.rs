//! Why something could not be done in a guest.

use roost_engine::EngineError;
use roost_guest_hub::CallError;
use roost_model::Invalid;

/// What went wrong, and where.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// On the channel, or in the guest.
    #[error(transparent)]
    Call(#[from] CallError),
    /// In the record.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// In the request.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}
