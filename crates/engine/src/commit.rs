//! Changes of records together with the events that tell of them, inside a transaction.

use roost_model::operation::{Claim, OperationError, Progress};
use roost_model::{Operation, OperationId, Status, Timestamp, Vm, VmId};
use roost_store::{NewEvent, StoreError, Tx};
use serde_json::json;

/// Changes a VM's record and pushes one event, if anything changed. `None`: there is no such VM.
pub(crate) async fn change_vm(
    tx: &Tx,
    id: VmId,
    operation: Option<OperationId>,
    now: Timestamp,
    change: impl FnOnce(&mut Vm),
) -> Result<Option<Vm>, StoreError> {
    let Some(before) = tx.vms().get(id).await? else { return Ok(None) };
    let mut vm = before.clone();
    change(&mut vm);
    if vm == before {
        return Ok(Some(vm));
    }
    vm.resource_version += 1;
    vm.updated_at = now;
    tx.vms().update(&vm).await?;
    let kind = if vm.state() == before.state() { "vm.updated" } else { "vm.state" };
    push_vm(tx, kind, &vm, operation, now).await?;
    Ok(Some(vm))
}

/// Whether a VM's record is the one that was read, and nobody has asked anything of it since.
pub(crate) async fn is_as_seen(tx: &Tx, id: VmId, resource_version: u64) -> Result<bool, StoreError> {
    let unchanged = tx.vms().get(id).await?.is_some_and(|vm| vm.resource_version == resource_version);
    Ok(unchanged && tx.operations().open_of(id).await?.is_empty())
}

/// Pushes an event about a VM.
pub(crate) async fn push_vm(
    tx: &Tx,
    kind: &str,
    vm: &Vm,
    operation: Option<OperationId>,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.outbox()
        .push(&NewEvent {
            project: vm.project,
            at: now,
            kind: kind.to_owned(),
            vm: Some(vm.id),
            operation,
            data: json!({ "name": vm.name, "state": vm.state(), "resource_version": vm.resource_version }),
        })
        .await
}

/// Pushes an event about an operation.
pub(crate) async fn push_operation(tx: &Tx, operation: &Operation, now: Timestamp) -> Result<(), StoreError> {
    tx.outbox()
        .push(&NewEvent {
            project: operation.project,
            at: now,
            kind: "operation.updated".to_owned(),
            vm: Some(operation.vm),
            operation: Some(operation.id),
            data: json!({ "kind": operation.goal.kind(), "status": operation.status, "attempt": operation.attempt }),
        })
        .await
}

/// Marks an operation as begun. `None`: it has ended meanwhile.
pub(crate) async fn begin(
    tx: &Tx,
    id: OperationId,
    claim: Claim,
    progress: Progress,
    now: Timestamp,
) -> Result<Option<Operation>, StoreError> {
    let Some(mut operation) = tx.operations().get(id).await?.filter(|o| !o.status.is_final()) else {
        return Ok(None);
    };
    operation.status = Status::Running;
    operation.attempt += 1;
    operation.claim = Some(claim);
    operation.progress = progress;
    operation.started_at.get_or_insert(now);
    tx.operations().update(&operation).await?;
    push_operation(tx, &operation, now).await?;
    Ok(Some(operation))
}

/// Ends an operation that has not ended. `None`: it has.
pub(crate) async fn finish(
    tx: &Tx,
    id: OperationId,
    status: Status,
    error: Option<OperationError>,
    now: Timestamp,
) -> Result<Option<Operation>, StoreError> {
    let Some(mut operation) = tx.operations().get(id).await?.filter(|o| !o.status.is_final()) else {
        return Ok(None);
    };
    operation.finish(status, error, now);
    tx.operations().update(&operation).await?;
    push_operation(tx, &operation, now).await?;
    Ok(Some(operation))
}
