//! Why a call has no answer.

use std::time::Duration;

use roost_guest_proto::ErrorBody;
use roost_model::VmId;

use crate::status::Flavour;

/// Each says what came of the call, and what to do next. Texts that came from a guest are as it sent them: who
/// shows one escapes it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CallError {
    #[error("{vm} has no agent channel; start the VM, or give it one in its spec")]
    NotAttached { vm: VmId },
    #[error("no agent of {vm} is connected: {why}; nothing was sent, so try again when one is")]
    NotConnected { vm: VmId, why: String },
    #[error(
        "{what}: the agent went away before it answered ({why}); it may or may not have been done, so look before you repeat it"
    )]
    OutcomeUnknown { what: &'static str, why: String },
    #[error("{what}: no answer within {after:?}; it may still be under way in the guest")]
    Timeout { what: &'static str, after: Duration },
    #[error("{what} is not permitted for this VM; permitted: {permitted}")]
    Denied { what: String, permitted: String },
    #[error("{flavour} has no {capability}; install the Roost agent in the guest")]
    Unsupported { capability: &'static str, flavour: Flavour },
    #[error("{waiting} calls or bytes wait for this VM; permitted: {permitted}; try again when some are answered")]
    QueueFull { waiting: usize, permitted: usize },
    #[error("the guest refused it")]
    Guest(#[source] ErrorBody),
    #[error("{what} has {size} bytes; permitted: at most {permitted}")]
    TooLarge { what: &'static str, size: usize, permitted: usize },
    #[error("{field}: {message}")]
    Invalid { field: &'static str, message: String },
    #[error("{what}: the guest broke the protocol: {how}; its agent is faulty or hostile")]
    Violation { what: &'static str, how: String },
    #[error("the copy has the SHA-256 {found}, not {expected}; copy it again")]
    Corrupt { found: String, expected: String },
    #[error("the content to send broke off: {0}")]
    Content(String),
}
