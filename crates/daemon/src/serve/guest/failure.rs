//! What a caller is told when something could not be done in a guest.

use connectrpc::{ConnectError, ErrorCode};
use roost_api::status;
use roost_guest_hub::CallError;
use roost_guest_hub::proto::{ErrorBody, ErrorCode as GuestCode, Response};
use roost_model::Invalid;
use serde_json::Value;

use crate::guests::Failure;
use crate::serve::failure::told as told_by_engine;

pub(super) fn told(failure: &Failure) -> ConnectError {
    match failure {
        Failure::Engine(error) => told_by_engine(error),
        Failure::Invalid(invalid) => status::invalid(invalid),
        Failure::Call(error) => of_call(error),
    }
}

/// What an answer has found; that it failed is an error.
pub(super) fn data(response: Response) -> Result<Value, ConnectError> {
    match response.error {
        Some(body) => Err(of_guest(&body)),
        None => Ok(response.data.unwrap_or_default()),
    }
}

fn of_call(error: &CallError) -> ConnectError {
    let (code, reason, hint) = match error {
        CallError::Guest(body) => return of_guest(body),
        CallError::Invalid { field, message } => return status::invalid(&Invalid::new(*field, "", message.as_str())),
        CallError::NotAttached { .. } => (
            ErrorCode::FailedPrecondition,
            "NO_AGENT_CHANNEL",
            "start the VM; roost vm get shows whether it has a channel",
        ),
        CallError::NotConnected { .. } => (
            ErrorCode::Unavailable,
            "AGENT_NOT_CONNECTED",
            "wait for the guest to boot; roost agent diagnose says what is missing",
        ),
        CallError::OutcomeUnknown { .. } => (
            ErrorCode::Unknown,
            "OUTCOME_UNKNOWN",
            "it may or may not have been done: look in the guest before you repeat it",
        ),
        CallError::Timeout { .. } => {
            (ErrorCode::DeadlineExceeded, "GUEST_TIMEOUT", "it may still be under way in the guest")
        }
        CallError::Denied { .. } => (
            ErrorCode::PermissionDenied,
            "NOT_PERMITTED",
            "roost vm update NAME --allow-exec, or --file-root DIR, permits it",
        ),
        CallError::Unsupported { .. } => {
            (ErrorCode::FailedPrecondition, "UNSUPPORTED_CAPABILITY", "install roost-agent in the guest")
        }
        CallError::QueueFull { .. } => {
            (ErrorCode::ResourceExhausted, "GUEST_BUSY", "try again when some calls are answered")
        }
        CallError::TooLarge { .. } => (ErrorCode::InvalidArgument, "TOO_LARGE", ""),
        CallError::Violation { .. } => {
            (ErrorCode::FailedPrecondition, "GUEST_PROTOCOL", "its agent is faulty or hostile")
        }
        CallError::Corrupt { .. } => (ErrorCode::DataLoss, "CORRUPT_COPY", "copy it again"),
        CallError::Content(_) => {
            (ErrorCode::Aborted, "COPY_BROKE_OFF", "repeat the copy; --resume goes on where it was")
        }
    };
    status::error(code, reason, error.to_string(), hint)
}

fn of_guest(body: &ErrorBody) -> ConnectError {
    let (code, reason) = match body.code {
        GuestCode::InvalidMessage | GuestCode::UnknownCommand => {
            let field = body.details.as_ref().and_then(|d| d.get("field")).and_then(Value::as_str).unwrap_or("action");
            let field: String = field.chars().filter(|c| !c.is_control()).take(64).collect();
            return status::invalid(&Invalid::new(field, "", body.message.as_str()));
        }
        GuestCode::PermissionDenied => (ErrorCode::PermissionDenied, "GUEST_PERMISSION_DENIED"),
        GuestCode::CommandTimeout => (ErrorCode::DeadlineExceeded, "GUEST_COMMAND_TIMEOUT"),
        GuestCode::ResourceLimit => (ErrorCode::ResourceExhausted, "GUEST_RESOURCE_LIMIT"),
        GuestCode::EpochMismatch => (ErrorCode::Aborted, "GUEST_EPOCH_MISMATCH"),
        GuestCode::Cancelled => (ErrorCode::Canceled, "CANCELLED"),
        GuestCode::NotFound => (ErrorCode::NotFound, "GUEST_NOT_FOUND"),
        GuestCode::NotSupported => (ErrorCode::FailedPrecondition, "GUEST_NOT_SUPPORTED"),
        GuestCode::DeviceNotFound | GuestCode::ConnectionFailed | GuestCode::CommandFailed | GuestCode::Other(_) => {
            (ErrorCode::FailedPrecondition, "GUEST_COMMAND_FAILED")
        }
    };
    status::error(code, reason, format!("the guest refused it: {}", body.message), "")
}
