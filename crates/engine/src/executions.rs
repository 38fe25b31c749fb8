//! The record of what is done inside guests. What does it is the daemon's hub; here it is written down before the
//! guest hears of it, and what came of it afterwards.

use std::sync::Arc;

use roost_model::execution::{ExecutionKind, JobCommand, Outcome};
use roost_model::{
    Execution, ExecutionId, ExecutionStatus, Invalid, Job, JobId, OperationId, ProjectId, Refusal, Timestamp, Vm, VmId,
};
use roost_store::{ExecutionFilter, StoreError};

use crate::commit;
use crate::engine::{Engine, Inner};
use crate::error::EngineError;
use crate::query::cut;
use crate::seam::new_id;

/// What is about to be done in a guest.
#[derive(Debug, Clone)]
pub struct NewExecution {
    /// In which VM.
    pub vm: VmId,
    /// As part of which job.
    pub job: Option<JobId>,
    /// What kind of thing.
    pub kind: ExecutionKind,
    /// The program, the shell's line, or the action's name.
    pub command: String,
    /// The program's arguments, or the action's fields.
    pub args: Vec<String>,
    /// Names of the variables that are given.
    pub env_names: Vec<String>,
}

/// One page of executions.
#[derive(Debug, Clone)]
pub struct ExecutionPage {
    /// Newest first.
    pub executions: Vec<Execution>,
    /// Where the next page begins.
    pub next: Option<ExecutionId>,
}

impl Engine {
    /// Writes down that the guest is about to be asked; durable when it returns.
    pub async fn begin_execution(&self, project: ProjectId, new: NewExecution) -> Result<Execution, EngineError> {
        let inner = &self.inner;
        let NewExecution { vm, job, kind, command, args, env_names } = new;
        let execution = Execution {
            id: new_id!(ExecutionId, inner.seams),
            project,
            vm,
            job,
            kind,
            command,
            args,
            env_names,
            outcome: Outcome::running(),
            daemon_epoch: inner.epoch,
            started_at: inner.seams.clock.now(),
            finished_at: None,
        };
        let written = Arc::new(execution.clone());
        let inserted: Result<(), StoreError> = inner
            .store
            .write(move |tx| {
                let written = Arc::clone(&written);
                Box::pin(async move { tx.executions().insert(&written).await })
            })
            .await;
        inserted?;
        Ok(execution)
    }

    /// Writes down how it ended.
    pub async fn end_execution(&self, mut execution: Execution, outcome: Outcome) -> Result<Execution, EngineError> {
        let inner = &self.inner;
        execution.finish(outcome, inner.seams.clock.now());
        let written = Arc::new(execution.clone());
        let updated: Result<(), StoreError> = inner
            .store
            .write(move |tx| {
                let written = Arc::clone(&written);
                Box::pin(async move { tx.executions().update(&written).await })
            })
            .await;
        updated?;
        Ok(execution)
    }

    /// One execution.
    pub async fn execution(&self, project: ProjectId, id: ExecutionId) -> Result<Execution, EngineError> {
        self.inner
            .store
            .read_one(move |tx| {
                Box::pin(async move {
                    let found = tx.executions().get(id).await?.filter(|e| e.project == project);
                    found.ok_or_else(|| Refusal::ExecutionNotFound(id.to_string()).into())
                })
            })
            .await
    }

    /// A page of executions, newest first. `limit` in 1..=1000.
    pub async fn executions(
        &self,
        filter: ExecutionFilter,
        after: Option<ExecutionId>,
        limit: usize,
    ) -> Result<ExecutionPage, EngineError> {
        let limit = limit.clamp(1, 1000);
        self.inner
            .store
            .read_one(move |tx| {
                let filter = filter.clone();
                Box::pin(async move {
                    let read = tx.executions().page(&filter, after, limit + 1).await?;
                    let (executions, next) = cut(read, limit, |execution| execution.id);
                    Ok(ExecutionPage { next, executions })
                })
            })
            .await
    }

    /// Writes a new job down.
    pub async fn begin_job(
        &self,
        vm: &Vm,
        name: String,
        commands: Vec<JobCommand>,
        stop_on_error: bool,
    ) -> Result<Job, EngineError> {
        if commands.is_empty() || commands.len() > 100 {
            return Err(Invalid::new("commands", commands.len(), "has the wrong length").permit(["1 to 100"]).into());
        }
        let inner = &self.inner;
        let job = Job {
            id: new_id!(JobId, inner.seams),
            project: vm.project,
            vm: vm.id,
            name,
            commands,
            stop_on_error,
            status: ExecutionStatus::Running,
            executions: Vec::new(),
            daemon_epoch: inner.epoch,
            created_at: inner.seams.clock.now(),
            finished_at: None,
        };
        self.put_job(job.clone()).await?;
        Ok(job)
    }

    /// Replaces a job's record. One that is final gets its time.
    pub async fn put_job(&self, mut job: Job) -> Result<Job, EngineError> {
        if job.status != ExecutionStatus::Running {
            job.finished_at.get_or_insert(self.inner.seams.clock.now());
        }
        let written = Arc::new(job.clone());
        let put: Result<(), StoreError> = self
            .inner
            .store
            .write(move |tx| {
                let written = Arc::clone(&written);
                Box::pin(async move { tx.jobs().put(&written).await })
            })
            .await;
        put?;
        Ok(job)
    }

    /// One job.
    pub async fn job(&self, project: ProjectId, id: JobId) -> Result<Job, EngineError> {
        self.inner
            .store
            .read_one(move |tx| {
                Box::pin(async move {
                    let found = tx.jobs().get(id).await?.filter(|j| j.project == project);
                    found.ok_or_else(|| Refusal::JobNotFound(id.to_string()).into())
                })
            })
            .await
    }

    /// A VM's jobs, newest first. `limit` in 1..=1000.
    pub async fn jobs(
        &self,
        project: ProjectId,
        vm: VmId,
        after: Option<JobId>,
        limit: usize,
    ) -> Result<(Vec<Job>, Option<JobId>), EngineError> {
        let limit = limit.clamp(1, 1000);
        self.inner
            .store
            .read_one(move |tx| {
                Box::pin(
                    async move { Ok(cut(tx.jobs().page(project, vm, after, limit + 1).await?, limit, |job| job.id)) },
                )
            })
            .await
    }

    /// Sets a condition of a VM that the daemon has learnt of, and tells watchers.
    pub async fn set_condition(
        &self,
        vm: VmId,
        kind: &'static str,
        status: bool,
        reason: &'static str,
        message: String,
    ) -> Result<(), EngineError> {
        let now = self.inner.seams.clock.now();
        let none: Option<OperationId> = None;
        let written: Result<(), StoreError> = self
            .inner
            .store
            .write(move |tx| {
                let message = message.clone();
                Box::pin(async move {
                    commit::change_vm(tx, vm, none, now, |vm| {
                        vm.set_condition(kind, status, reason, &message, now);
                    })
                    .await?;
                    Ok(())
                })
            })
            .await;
        Ok(written?)
    }
}

/// What the daemon before this one began and did not hear the end of is unknown, and stays so.
pub(crate) async fn give_up_open(inner: &Inner) -> Result<(), StoreError> {
    let now = inner.seams.clock.now();
    inner
        .store
        .write(move |tx| {
            Box::pin(async move {
                for mut execution in tx.executions().open().await? {
                    execution.finish(Outcome::unknown("the daemon ended before this did"), now);
                    tx.executions().update(&execution).await?;
                }
                for mut job in tx.jobs().open().await? {
                    job.status = ExecutionStatus::Unknown;
                    job.finished_at = Some(now);
                    tx.jobs().put(&job).await?;
                }
                Ok(())
            })
        })
        .await
}

/// Whether any execution or job ended before `before`.
pub(crate) async fn any_ended_before(tx: &roost_store::Tx, before: Timestamp) -> Result<bool, StoreError> {
    Ok(tx.executions().any_ended_before(before).await? || tx.jobs().any_ended_before(before).await?)
}

/// Forgets executions and jobs that ended before `before`.
pub(crate) async fn prune(tx: &roost_store::Tx, before: Timestamp) -> Result<(), StoreError> {
    tx.executions().prune(before, 10_000).await?;
    tx.jobs().prune(before, 10_000).await?;
    Ok(())
}
