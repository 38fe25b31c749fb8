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
    change: impl Fn(&mut Vm),
) -> Result<Option<Vm>, StoreError> {
    let Some(stored) = tx.vms().get(id).await? else { return Ok(None) };
    match changed(&stored, now, change) {
        None => Ok(Some(stored)),
        Some(vm) => {
            tx.vms().update(&vm).await?;
            tell(tx, &stored, &vm, operation, now);
            Ok(Some(vm))
        }
    }
}

/// The same for who has just read the record: it is read again only where it was changed since.
pub(crate) async fn change_seen(
    tx: &Tx,
    seen: &Vm,
    operation: Option<OperationId>,
    now: Timestamp,
    change: impl Fn(&mut Vm),
) -> Result<Option<Vm>, StoreError> {
    if let Some(vm) = changed(seen, now, &change)
        && tx.vms().replace(&vm).await?
    {
        tell(tx, seen, &vm, operation, now);
        return Ok(Some(vm));
    }
    change_vm(tx, seen.id, operation, now, change).await
}

/// The successor of a record, if the change makes one.
fn changed(before: &Vm, now: Timestamp, change: impl Fn(&mut Vm)) -> Option<Vm> {
    let mut vm = before.clone();
    change(&mut vm);
    if vm == *before {
        return None;
    }
    vm.resource_version += 1;
    vm.updated_at = now;
    Some(vm)
}

fn tell(tx: &Tx, before: &Vm, vm: &Vm, operation: Option<OperationId>, now: Timestamp) {
    let kind = if vm.state() == before.state() { "vm.updated" } else { "vm.state" };
    push_vm(tx, kind, vm, operation, now);
}

/// Whether a VM's record is the one that was read, and nobody has asked anything of it since.
pub(crate) async fn is_as_seen(tx: &Tx, id: VmId, resource_version: u64) -> Result<bool, StoreError> {
    let unchanged = tx.vms().get(id).await?.is_some_and(|vm| vm.resource_version == resource_version);
    Ok(unchanged && !tx.operations().any_open_of(id).await?)
}

/// Pushes an event about a VM.
pub(crate) fn push_vm(tx: &Tx, kind: &str, vm: &Vm, operation: Option<OperationId>, now: Timestamp) {
    tx.events().push(NewEvent {
        project: vm.project,
        at: now,
        kind: kind.to_owned(),
        vm: Some(vm.id),
        operation,
        data: json!({
            "name": vm.name,
            "backend": vm.backend,
            "state": vm.state(),
            "resource_version": vm.resource_version,
        }),
    });
}

/// Pushes an event about an operation.
pub(crate) fn push_operation(tx: &Tx, operation: &Operation, now: Timestamp) {
    tx.events().push(NewEvent {
        project: operation.project,
        at: now,
        kind: "operation.updated".to_owned(),
        vm: Some(operation.vm),
        operation: Some(operation.id),
        data: json!({ "kind": operation.goal.kind(), "status": operation.status, "attempt": operation.attempt }),
    });
}

/// Changes an operation that has not ended and pushes an event. `None`: it has ended. `seen` is the record
/// as it was last read; it is read again only where it was changed since.
pub(crate) async fn change_open(
    tx: &Tx,
    seen: &Operation,
    now: Timestamp,
    change: impl Fn(&mut Operation),
) -> Result<Option<Operation>, StoreError> {
    let mut operation = seen.clone();
    if !seen.status.is_final() {
        change(&mut operation);
        if tx.operations().replace(seen, &operation).await? {
            push_operation(tx, &operation, now);
            return Ok(Some(operation));
        }
    }
    let Some(mut operation) = tx.operations().get(seen.id).await?.filter(|o| !o.status.is_final()) else {
        return Ok(None);
    };
    change(&mut operation);
    tx.operations().update(&operation).await?;
    push_operation(tx, &operation, now);
    Ok(Some(operation))
}

/// Marks an operation as begun. `None`: it has ended meanwhile.
pub(crate) async fn begin(
    tx: &Tx,
    seen: &Operation,
    claim: &Claim,
    progress: &Progress,
    now: Timestamp,
) -> Result<Option<Operation>, StoreError> {
    change_open(tx, seen, now, |operation| {
        operation.status = Status::Running;
        operation.attempt += 1;
        operation.claim = Some(claim.clone());
        operation.progress = progress.clone();
        operation.started_at.get_or_insert(now);
    })
    .await
}

/// Ends an operation that has not ended. `None`: it has.
pub(crate) async fn finish(
    tx: &Tx,
    seen: &Operation,
    status: Status,
    error: Option<&OperationError>,
    now: Timestamp,
) -> Result<Option<Operation>, StoreError> {
    change_open(tx, seen, now, |operation| operation.finish(status, error.cloned(), now)).await
}
