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
        Refusal::VmNotFound(_)
        | Refusal::OperationNotFound(_)
        | Refusal::ExecutionNotFound(_)
        | Refusal::JobNotFound(_) => ErrorCode::NotFound,
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
        Some(OperationError { reason, message, hint, field }) => {
            let detail =
                ErrorDetail { reason: reason.clone(), hint: hint.clone(), field: field.clone(), ..Default::default() };
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
        Refusal::ExecutionNotFound(id) => at_fault("execution_id", id.clone()),
        Refusal::JobNotFound(id) => at_fault("job_id", id.clone()),
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

#[cfg(test)]
mod tests {
    use buffa::Message;
    use roost_model::operation::Goal;
    use roost_model::{Capability, OperationId, Priority, ProjectId, Timestamp, VmId};

    use super::*;

    fn told(error: &ConnectError) -> ErrorDetail {
        use base64::Engine;
        assert_eq!(error.details[0].type_url, ERROR_DETAIL);
        let text = error.details[0].value.as_deref().unwrap();
        let bytes = base64::engine::general_purpose::STANDARD_NO_PAD.decode(text).unwrap();
        ErrorDetail::decode_from_slice(&bytes).unwrap()
    }

    #[test]
    fn every_refusal_has_its_code_its_reason_and_what_is_at_fault() {
        let vm = VmId::from_parts(1, [1; 10]);
        let qemu: roost_model::BackendName = "qemu".parse().unwrap();
        let invalid = Invalid::new("config.cpu.vcpu_count", 0, "is out of range").permit(["1 to 1024"]);
        let id = vm.uuid().to_string();
        let cases = [
            (Refusal::Invalid(invalid), ErrorCode::InvalidArgument, 400, "config.cpu.vcpu_count", "0"),
            (Refusal::VmNotFound("web".to_owned()), ErrorCode::NotFound, 404, "vm_id", "web"),
            (Refusal::NameTaken { name: "web".to_owned(), vm_id: vm }, ErrorCode::AlreadyExists, 409, "name", "web"),
            (Refusal::IdTaken(vm), ErrorCode::AlreadyExists, 409, "vm_id", id.as_str()),
            (Refusal::KeyReused { key: "k".to_owned() }, ErrorCode::AlreadyExists, 409, "idempotency_key", "k"),
            (Refusal::Stale { expected: 1, actual: 2 }, ErrorCode::Aborted, 409, "resource_version", "1"),
            (
                Refusal::UnknownBackend { name: "xen".to_owned(), known: vec![qemu.clone()] },
                ErrorCode::InvalidArgument,
                400,
                "backend",
                "xen",
            ),
            (
                Refusal::Unsupported {
                    backend: "sim".parse().unwrap(),
                    capability: Capability::Cdrom,
                    others: vec![qemu],
                },
                ErrorCode::FailedPrecondition,
                400,
                "backend",
                "sim",
            ),
            (
                Refusal::Exhausted { resource: "memory", detail: "none left".to_owned() },
                ErrorCode::ResourceExhausted,
                429,
                "",
                "",
            ),
        ];
        for (refused, code, http, field, value) in cases {
            let error = refusal(&refused);
            assert_eq!((error.code, error.code.http_status().as_u16()), (code, http), "{refused}");
            let detail = told(&error);
            assert_eq!(detail.reason, refused.reason());
            assert_eq!((detail.field.as_str(), detail.value.as_str()), (field, value), "{refused}");
            if field == "backend" {
                assert_eq!(detail.permitted, ["qemu"]);
            }
        }
    }

    #[test]
    fn an_operation_that_came_to_nothing_says_why_and_is_there_itself() {
        let now = Timestamp::from_unix_ms(1);
        let (id, vm) = (OperationId::from_parts(1, [1; 10]), VmId::from_parts(1, [2; 10]));
        let mut operation = Operation::new(id, ProjectId::DEFAULT, vm, Goal::Boot, Priority::Default, now);
        operation.finish(Status::Cancelled, None, now);
        let error = failed(&operation);
        assert_eq!((error.code, told(&error).reason.as_str()), (ErrorCode::Canceled, "CANCELLED"));
        assert_eq!(error.details[1].type_url, OPERATION);
        assert!(error.message.is_some_and(|m| m.contains(&id.to_string())));
    }
}
