//! From what went wrong to what the caller is told: the RPC code, a safe message and an
//! `ErrorDetail`. The one place where the two meet.

use connectrpc::{ConnectError, ErrorCode, ErrorDetail as WireDetail};
use roost_model::operation::OperationError;
use roost_model::{Invalid, Operation, Refusal, Status};

use crate::strict_json::JsonError;
use crate::to_proto;
use crate::vmm::v1::ErrorDetail;

/// The full name of [`ErrorDetail`], as details carry it.
pub const ERROR_DETAIL: &str = "vmm.v1.ErrorDetail";
/// The full name of an operation, which accompanies the error of one that failed.
pub const OPERATION: &str = "vmm.v1.Operation";

/// An error with no field at fault. `message` must be safe to show; a cause belongs in the log.
pub fn error(code: ErrorCode, reason: &str, message: impl Into<String>, hint: &str) -> ConnectError {
    let detail = ErrorDetail { reason: reason.to_owned(), hint: hint.to_owned(), ..Default::default() };
    with_detail(code, message.into(), &detail)
}

/// A value that cannot be accepted.
pub fn invalid(invalid: &Invalid) -> ConnectError {
    with_detail(ErrorCode::InvalidArgument, invalid.to_string(), &invalid_detail(invalid))
}

/// A JSON document that is not what it claims to be.
pub fn json(error: &JsonError) -> ConnectError {
    let detail = match error {
        JsonError::Invalid(e) => return invalid(e),
        JsonError::Unknown(unknown) => ErrorDetail {
            reason: "UNKNOWN_FIELD".to_owned(),
            field: unknown.path.clone(),
            permitted: unknown.known.iter().map(|f| (*f).to_owned()).collect(),
            hint: unknown.nearest.map(|f| format!("did you mean {f:?}?")).unwrap_or_default(),
            ..Default::default()
        },
        JsonError::Malformed(_) => ErrorDetail { reason: "MALFORMED_JSON".to_owned(), ..Default::default() },
    };
    with_detail(ErrorCode::InvalidArgument, error.to_string(), &detail)
}

/// A request that may not run now.
pub fn refusal(refusal: &Refusal) -> ConnectError {
    let code = match refusal {
        Refusal::Invalid(_) | Refusal::UnknownBackend { .. } => ErrorCode::InvalidArgument,
        Refusal::VmNotFound(_) | Refusal::OperationNotFound(_) => ErrorCode::NotFound,
        Refusal::NameTaken { .. } | Refusal::IdTaken(_) | Refusal::KeyReused { .. } => ErrorCode::AlreadyExists,
        Refusal::Stale { .. } => ErrorCode::Aborted,
        Refusal::Exhausted { .. } => ErrorCode::ResourceExhausted,
        Refusal::WrongState { .. }
        | Refusal::BeingDeleted(_)
        | Refusal::Unsupported { .. }
        | Refusal::BackendUnavailable { .. }
        | Refusal::OperationEnded(_)
        | Refusal::NotCancellable { .. } => ErrorCode::FailedPrecondition,
    };
    with_detail(code, refusal.to_string(), &refusal_detail(refusal))
}

/// An operation that a caller waited for and that came to nothing: its error, with the operation
/// itself as a second detail.
pub fn failed(operation: &Operation) -> ConnectError {
    let (code, fallback) = match operation.status {
        Status::Cancelled => (ErrorCode::Canceled, "it was cancelled"),
        Status::Failed | Status::Pending | Status::Running | Status::Succeeded => {
            (ErrorCode::FailedPrecondition, "it failed")
        }
    };
    let (message, detail) = match &operation.error {
        Some(OperationError { reason, message, hint }) => {
            let detail = ErrorDetail { reason: reason.clone(), hint: hint.clone(), ..Default::default() };
            (format!("operation {}: {message}", operation.id), detail)
        }
        None => {
            let reason = if operation.status == Status::Cancelled { "CANCELLED" } else { "FAILED" };
            let detail = ErrorDetail { reason: reason.to_owned(), ..Default::default() };
            (format!("operation {}: {fallback}", operation.id), detail)
        }
    };
    with_detail(code, message, &detail)
        .with_detail(WireDetail::from_message(OPERATION, &to_proto::operation(operation)))
}

fn with_detail(code: ErrorCode, message: String, detail: &ErrorDetail) -> ConnectError {
    ConnectError::new(code, message).with_detail(WireDetail::from_message(ERROR_DETAIL, detail))
}

fn invalid_detail(invalid: &Invalid) -> ErrorDetail {
    let Invalid { field, value, problem: _, permitted } = invalid;
    ErrorDetail {
        reason: "INVALID_FIELD".to_owned(),
        field: field.clone(),
        value: value.clone(),
        permitted: permitted.clone(),
        ..Default::default()
    }
}

fn refusal_detail(refusal: &Refusal) -> ErrorDetail {
    let at_fault = |field: &str, value: String| ErrorDetail { field: field.to_owned(), value, ..Default::default() };
    let hinted = |hint: &str| ErrorDetail { hint: hint.to_owned(), ..Default::default() };
    let names = |names: &[roost_model::BackendName]| names.iter().map(ToString::to_string).collect();
    let detail = match refusal {
        Refusal::Invalid(e) => return invalid_detail(e),
        Refusal::VmNotFound(vm) => at_fault("vm_id", vm.clone()),
        Refusal::OperationNotFound(id) => at_fault("operation_id", id.clone()),
        Refusal::NameTaken { name, vm_id: _ } => at_fault("name", name.clone()),
        Refusal::IdTaken(id) => at_fault("vm_id", id.uuid().to_string()),
        Refusal::WrongState { action: _, state: _, hint } => hinted(hint),
        Refusal::BeingDeleted(_) | Refusal::OperationEnded(_) | Refusal::NotCancellable { .. } => hinted(""),
        Refusal::Stale { expected, actual: _ } => ErrorDetail {
            hint: "read the VM again, and repeat the change on what it is now".to_owned(),
            ..at_fault("resource_version", expected.to_string())
        },
        Refusal::Unsupported { backend, capability: _, others } => {
            ErrorDetail { permitted: names(others), ..at_fault("backend", backend.to_string()) }
        }
        Refusal::UnknownBackend { name, known } => {
            ErrorDetail { permitted: names(known), ..at_fault("backend", name.clone()) }
        }
        Refusal::BackendUnavailable { backend, reason: _ } => at_fault("backend", backend.to_string()),
        Refusal::KeyReused { key } => ErrorDetail {
            hint: "use a new key for a new request".to_owned(),
            ..at_fault("idempotency_key", key.clone())
        },
        Refusal::Exhausted { resource: _, detail: _ } => hinted(""),
    };
    ErrorDetail { reason: refusal.reason().to_owned(), ..detail }
}
