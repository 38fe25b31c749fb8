//! Many VMs at once: calls for different ones overlap and do not mix.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::try_join_all;
use roost_model::plan::Stop;
use roost_model::state::Machine;
use roost_model::{Capability, ExitCause};

use super::Outcome;
use super::harness::{Act, GuestKind, Harness};
use super::lifecycle::is_end;
use super::stage::{StagedVm, always, conduct, ensure};
use crate::Happened;

/// Many VMs are created, booted, ended, adopted and deleted at once, each as if it were alone.
pub async fn many_vms_at_once(harness: &dyn Harness) -> Outcome {
    conduct("many_vms_at_once", harness, always, async |s| {
        let vms: Vec<Arc<StagedVm>> = (0..s.scale.crowd).map(|_| s.vm(GuestKind::Plain)).collect();
        let started = try_join_all(vms.iter().map(async |vm| {
            s.create(vm).await?;
            s.boot(vm).await
        }));
        let launches = started.await?;
        try_join_all(vms.iter().map(async |vm| s.expect(vm, Machine::Running, "among many").await)).await?;

        // Every third one ends, by force or by a kill; of the latter, each is told once.
        let ending: Vec<usize> = (0..vms.len()).step_by(3).collect();
        let kill = s.harness.can(Act::Kill);
        try_join_all(ending.iter().map(async |i| match kill {
            true => s.act(&vms[*i], Act::Kill).await,
            false => s.shutdown(&vms[*i], Stop::Forced).await.map(|_| ()),
        }))
        .await?;
        let mut ends = BTreeMap::new();
        if kill {
            for i in &ending {
                let event = s.next_event(&vms[*i]).await;
                let event = event.map_err(|e| format!("after {} of {} ends: {e}", ends.len(), ending.len()))?;
                ends.insert(event.vm, (event.launch, event.happened));
            }
            for i in &ending {
                let told = ends.get(&vms[*i].id());
                let expected = (launches[*i], Happened::Ended(ExitCause::Killed));
                ensure!(told == Some(&expected), "the kill of one among many is told as {told:?}");
            }
        }
        if s.capabilities.has(Capability::Adopt) {
            let again = s.die().await?.into_iter().find(|e| kill && is_end(e.happened));
            ensure!(again.is_none(), "the end of one was told twice, or the end of another: {again:?}");
            s.start().await;
            let all: Vec<&StagedVm> = vms.iter().map(|vm| &**vm).collect();
            let reports = s.adopt(&all).await?;
            for (i, report) in reports.iter().enumerate() {
                ensure!(report.machine.is_up() != ending.contains(&i), "number {i} is adopted as {:?}", report.machine);
                ensure!(report.launch == Some(launches[i]), "number {i} is adopted with {:?}", report.launch);
            }
        }
        try_join_all(vms.iter().map(async |vm| {
            s.delete(vm).await?;
            s.expect_nothing_left(vm).await
        }))
        .await?;
        Ok(())
    })
    .await
}
