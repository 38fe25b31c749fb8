//! Reads: single records, pages, live counters, and waiting for an operation's end.

use std::fmt;
use std::time::Duration;

use roost_backend::{AgentEndpoint, ConsoleEndpoint, Info};
use roost_model::id::looks_like_id;
use roost_model::{Operation, OperationId, ProjectId, Refusal, Vm, VmId, VmName};
use roost_store::{OperationFilter, VmFilter};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::record::{Accepted, find};
use crate::seam::stopped;
use crate::waiters::Place;

/// How a caller names a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// By ID.
    Id(VmId),
    /// By name, within the caller's project.
    Name(VmName),
}

/// One page of VMs.
#[derive(Debug, Clone)]
pub struct VmPage {
    /// In the order of their IDs, which is that of their creation.
    pub vms: Vec<Vm>,
    /// Where the next page begins.
    pub next: Option<VmId>,
    /// How many match in all.
    pub total: u64,
}

/// One page of operations.
#[derive(Debug, Clone)]
pub struct OperationPage {
    /// Newest first.
    pub operations: Vec<Operation>,
    /// Where the next page begins.
    pub next: Option<OperationId>,
}

/// A VM's record with what its backend knows at this moment.
#[derive(Debug, Clone)]
pub struct VmInfo {
    /// The record.
    pub vm: Vm,
    /// What is under way or waits.
    pub operations: Vec<Operation>,
    /// Counters and details, where the backend answered in time.
    pub live: Option<Info>,
}

impl Address {
    /// Reads what a caller wrote. What can be neither an ID nor a name names no VM.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        if looks_like_id(text) {
            return text.parse().map(Address::Id).map_err(|_| Refusal::VmNotFound(text.to_owned()));
        }
        text.parse().map(Address::Name).map_err(|_| Refusal::VmNotFound(text.chars().take(128).collect()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Id(id) => write!(f, "{id}"),
            Address::Name(name) => write!(f, "{name}"),
        }
    }
}

/// Cuts what was read with `limit + 1` down to a page; and where the next one begins, if there is more.
pub(crate) fn cut<T, Id>(mut read: Vec<T>, limit: usize, id: impl Fn(&T) -> Id) -> (Vec<T>, Option<Id>) {
    let more = read.len() > limit;
    read.truncate(limit);
    let next = read.last().filter(|_| more).map(id);
    (read, next)
}

/// How long a backend may take to answer a question that a caller waits for.
const LIVE_DEADLINE: Duration = Duration::from_secs(2);

impl Engine {
    /// One VM's record.
    pub async fn vm(&self, project: ProjectId, address: Address) -> Result<Vm, EngineError> {
        self.inner
            .store
            .read_one(move |tx| {
                let address = address.clone();
                Box::pin(async move { find(tx, project, &address).await })
            })
            .await
    }

    /// One VM's record, its open operations, and its backend's counters.
    pub async fn vm_info(&self, project: ProjectId, address: Address) -> Result<VmInfo, EngineError> {
        let read: Result<_, EngineError> = self
            .inner
            .store
            .read(move |tx| {
                let address = address.clone();
                Box::pin(async move {
                    let vm = find(tx, project, &address).await?;
                    let operations = tx.operations().open_of(vm.id).await?;
                    Ok((vm, operations))
                })
            })
            .await;
        let (vm, operations) = read?;
        let mut live = None;
        if vm.observed.machine.is_up()
            && let Ok(entry) = self.inner.backend(&vm.backend)
        {
            tokio::select! {
                biased;
                info = entry.backend.info(vm.id) => live = info.ok(),
                () = self.inner.seams.clock.sleep(LIVE_DEADLINE) => {}
            }
        }
        Ok(VmInfo { vm, operations, live })
    }

    /// A page of VMs. `limit` in 1..=1000.
    pub async fn vms(&self, filter: VmFilter, after: Option<VmId>, limit: usize) -> Result<VmPage, EngineError> {
        let limit = limit.clamp(1, 1000);
        self.inner
            .store
            .read(move |tx| {
                let filter = filter.clone();
                Box::pin(async move {
                    let (vms, next) = cut(tx.vms().page(&filter, after, limit + 1).await?, limit, |vm| vm.id);
                    let total = tx.vms().count(&filter).await?;
                    Ok(VmPage { next, vms, total })
                })
            })
            .await
    }

    /// One operation.
    pub async fn operation(&self, project: ProjectId, id: OperationId) -> Result<Operation, EngineError> {
        self.inner
            .store
            .read_one(move |tx| {
                Box::pin(async move {
                    let found = tx.operations().get(id).await?.filter(|o| o.project == project);
                    found.ok_or_else(|| Refusal::OperationNotFound(id.to_string()).into())
                })
            })
            .await
    }

    /// A page of operations, newest first. `limit` in 1..=1000.
    pub async fn operations(
        &self,
        filter: OperationFilter,
        after: Option<OperationId>,
        limit: usize,
    ) -> Result<OperationPage, EngineError> {
        let limit = limit.clamp(1, 1000);
        self.inner
            .store
            .read_one(move |tx| {
                let filter = filter.clone();
                Box::pin(async move {
                    let read = tx.operations().page(&filter, after, limit + 1).await?;
                    let (operations, next) = cut(read, limit, |operation| operation.id);
                    Ok(OperationPage { next, operations })
                })
            })
            .await
    }

    /// Waits for an operation's end, for so long at most, and returns it as it is then, with its
    /// VM's record where there is one.
    pub async fn wait(
        &self,
        project: ProjectId,
        id: OperationId,
        at_most: Duration,
    ) -> Result<(Operation, Option<Vm>), EngineError> {
        let place = self.inner.waiters.register(id);
        let (operation, vm) = self.operation_and_vm(project, id).await?;
        if operation.status.is_final() {
            return Ok((operation, vm));
        }
        self.wait_at(place, project, at_most).await
    }

    /// The same for a request that was just accepted: its place was taken before it was recorded.
    pub async fn wait_for(
        &self,
        accepted: Accepted,
        at_most: Duration,
    ) -> Result<(Operation, Option<Vm>), EngineError> {
        let Accepted { vm, operation, place, .. } = accepted;
        match place {
            _ if operation.status.is_final() => Ok((operation, vm)),
            Some(place) => self.wait_at(place, operation.project, at_most).await,
            None => self.wait(operation.project, operation.id, at_most).await,
        }
    }

    async fn wait_at(
        &self,
        mut place: Place,
        project: ProjectId,
        at_most: Duration,
    ) -> Result<(Operation, Option<Vm>), EngineError> {
        let mut stopping = self.inner.stopping.subscribe();
        tokio::select! {
            biased;
            ended = place.ended() => {
                if let Some(ended) = ended {
                    return Ok((*ended).clone());
                }
            }
            () = stopped(&mut stopping) => {}
            () = self.inner.seams.clock.sleep(at_most) => {}
        }
        self.operation_and_vm(project, place.id()).await
    }

    /// Where a VM's serial line is.
    pub async fn console(&self, project: ProjectId, address: Address) -> Result<(Vm, ConsoleEndpoint), EngineError> {
        let vm = self.vm(project, address).await?;
        let endpoint = self.inner.backend(&vm.backend)?.backend.console(vm.id).await?;
        Ok((vm, endpoint))
    }

    /// Where the channels to a VM's guest agents are.
    pub async fn agent(&self, vm: &Vm) -> Result<AgentEndpoint, EngineError> {
        Ok(self.inner.backend(&vm.backend)?.backend.agent(vm.id).await?)
    }

    async fn operation_and_vm(
        &self,
        project: ProjectId,
        id: OperationId,
    ) -> Result<(Operation, Option<Vm>), EngineError> {
        self.inner
            .store
            .read(move |tx| {
                Box::pin(async move {
                    let found = tx.operations().get(id).await?.filter(|o| o.project == project);
                    let operation = found.ok_or_else(|| Refusal::OperationNotFound(id.to_string()))?;
                    let vm = tx.vms().get(operation.vm).await?;
                    Ok((operation, vm))
                })
            })
            .await
    }
}
