//! Start-up: every machine that outlived the daemon is found again by its record, and what is
//! recorded becomes what is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use roost_backend::{Adoptee, Definition};
use roost_model::observe::{Report, found};
use roost_model::{BackendName, Operation, Resource, Vm, VmId};
use roost_store::{Store, StoreError};

use crate::commit;
use crate::engine::Inner;
use crate::error::EngineError;

/// Adopts everything, then wakes every VM that has something to be done.
pub(crate) async fn adopt_all(inner: &Arc<Inner>) -> Result<(), EngineError> {
    let (vms, resources, open) = load(&inner.store).await?;
    let mut owned: BTreeMap<VmId, Vec<Resource>> = BTreeMap::new();
    for (vm, resource) in resources {
        owned.entry(vm).or_default().push(resource);
    }
    let mut by_backend: BTreeMap<BackendName, Vec<(Vm, Adoptee)>> = BTreeMap::new();
    for vm in vms {
        let resources = owned.remove(&vm.id).unwrap_or_default();
        // Nothing on the host, nothing to find.
        if resources.is_empty() && !vm.observed.machine.is_up() {
            continue;
        }
        let adoptee = adoptee(&vm, resources);
        by_backend.entry(vm.backend.clone()).or_default().push((vm, adoptee));
    }
    let orphans: Vec<VmId> = owned.into_keys().collect();
    if !orphans.is_empty() {
        tracing::error!(vms = ?orphans, "resources are on record whose VMs are not; they are left alone");
    }
    for (name, adoptees) in by_backend {
        adopt_on(inner, &name, adoptees).await?;
    }
    for operation in open {
        inner.seams.dispatch.wake(operation.vm);
    }
    let now = inner.seams.clock.now();
    let unsettled: Vec<VmId> = inner
        .store
        .read(move |tx| Box::pin(async move { tx.vms().unsettled(now).await }))
        .await
        .map_err(|e: StoreError| e)?;
    for vm in unsettled {
        inner.seams.dispatch.wake(vm);
    }
    Ok(())
}

/// Asks once more for a machine that could not be adopted. Called by the VM's actor, so that nothing
/// else is asked of its backend meanwhile. Returns whether it is reachable now.
pub(crate) async fn adopt_again(inner: &Inner, vm: &Vm, resources: &[Resource]) -> Result<bool, StoreError> {
    let again = vec![(vm.clone(), adoptee(vm, resources.to_vec()))];
    adopt_on(inner, &vm.backend, again).await?;
    Ok(!inner.is_unreachable(vm.id))
}

fn adoptee(vm: &Vm, resources: Vec<Resource>) -> Adoptee {
    // A launch may be on record as a resource before the VM's own record says so.
    let launch = resources.iter().filter_map(|r| r.launch).max().or(vm.observed.launch);
    let definition = Definition { id: vm.id, name: vm.name.clone(), spec: vm.spec.clone() };
    Adoptee { definition, launch, resources }
}

async fn adopt_on(inner: &Inner, name: &BackendName, vms: Vec<(Vm, Adoptee)>) -> Result<(), StoreError> {
    let (vms, adoptees): (Vec<Vm>, Vec<Adoptee>) = vms.into_iter().unzip();
    let Ok(entry) = inner.backend(name) else {
        tracing::error!(backend = %name, vms = vms.len(), "VMs belong to a backend that is not configured; they are left alone");
        return mark_unreachable(inner, &vms, "no such backend is configured").await;
    };
    let count = vms.len();
    let reports = entry.backend.adopt(adoptees).await;
    let now = inner.seams.clock.now();
    let mut changes: Vec<(VmId, Report)> = Vec::new();
    let mut silent: Vec<Vm> = Vec::new();
    for (vm, report) in vms.into_iter().zip(reports) {
        inner.set_unreachable(vm.id, report.is_err());
        match report {
            Ok(report) if found(vm.observed, report, now) == vm.observed && reachable(&vm) => {}
            Ok(report) => changes.push((vm.id, report)),
            Err(error) => {
                tracing::warn!(vm_id = %vm.id, backend = %name, error = %error, "a machine could not be adopted");
                silent.push(vm);
            }
        }
    }
    tracing::info!(backend = %name, vms = count, changed = changes.len(), unreachable = silent.len(), "machines adopted");
    let changes = Arc::new(changes);
    let written: Result<(), StoreError> = inner
        .store
        .write(move |tx| {
            let changes = Arc::clone(&changes);
            Box::pin(async move {
                for (id, report) in changes.iter() {
                    commit::change_vm(tx, *id, None, now, |vm| {
                        vm.observed = found(vm.observed, *report, now);
                        vm.conditions.retain(|c| c.kind != "Reachable");
                    })
                    .await?;
                }
                Ok(())
            })
        })
        .await;
    written?;
    mark_unreachable(inner, &silent, "its backend could not say what is there").await
}

fn reachable(vm: &Vm) -> bool {
    !vm.conditions.iter().any(|c| c.kind == "Reachable" && !c.status)
}

async fn mark_unreachable(inner: &Inner, vms: &[Vm], why: &'static str) -> Result<(), StoreError> {
    let ids: Arc<[VmId]> = vms.iter().map(|vm| vm.id).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let now = inner.seams.clock.now();
    let written: Result<(), StoreError> = inner
        .store
        .write(move |tx| {
            let ids = Arc::clone(&ids);
            Box::pin(async move {
                for id in ids.iter() {
                    commit::change_vm(tx, *id, None, now, |vm| {
                        vm.set_condition("Reachable", false, "ADOPTION_FAILED", why, now);
                    })
                    .await?;
                }
                Ok(())
            })
        })
        .await;
    written
}

async fn load(store: &Store) -> Result<(Vec<Vm>, Vec<(VmId, Resource)>, Vec<Operation>), StoreError> {
    store
        .read(|tx| {
            Box::pin(
                async move { Ok((tx.vms().all().await?, tx.resources().all().await?, tx.operations().open().await?)) },
            )
        })
        .await
}
