//! Table `executions`: what was done inside guests.

use roost_model::execution::ExecutionKind;
use roost_model::{Execution, ExecutionId, ExecutionStatus, JobId, ProjectId, Timestamp, VmId};
use sea_orm::Value;

use crate::error::StoreError;
use crate::sql::execute;
use crate::table::history;
use crate::tx::Tx;

/// Which executions; what is empty or `None` restricts nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecutionFilter {
    /// The tenant.
    pub project: Option<ProjectId>,
    /// In this VM.
    pub vm: Option<VmId>,
    /// Of this job.
    pub job: Option<JobId>,
    /// Of one of these kinds.
    pub kinds: Vec<ExecutionKind>,
    /// In one of these.
    pub statuses: Vec<ExecutionStatus>,
}

const TABLE: &str = "executions";

/// The table in a transaction.
#[derive(Debug)]
pub struct Executions<'a>(pub(crate) &'a Tx);

impl Executions<'_> {
    /// Adds an execution.
    pub async fn insert(&self, execution: &Execution) -> Result<(), StoreError> {
        let sql = "INSERT INTO executions (id, project_id, vm_id, job_id, kind, started_at, status, finished_at, record) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
        let mut values: Vec<Value> = vec![
            execution.id.to_string().into(),
            execution.project.to_string().into(),
            execution.vm.to_string().into(),
            execution.job.map(|job| job.to_string()).into(),
            execution.kind.as_str().into(),
            execution.started_at.unix_ms().into(),
        ];
        values.extend(changing(execution));
        execute(self.0, sql, values).await?;
        Ok(())
    }

    /// Replaces an execution's record.
    pub async fn update(&self, execution: &Execution) -> Result<(), StoreError> {
        let sql = "UPDATE executions SET status = $1, finished_at = $2, record = $3 WHERE id = $4";
        let mut values = changing(execution);
        values.push(execution.id.to_string().into());
        match execute(self.0, sql, values).await? {
            1 => Ok(()),
            _ => Err(StoreError::Conflict { what: execution.id.to_string() }),
        }
    }

    /// One execution.
    pub async fn get(&self, id: ExecutionId) -> Result<Option<Execution>, StoreError> {
        history::get(self.0, TABLE, id.to_string()).await
    }

    /// Every execution whose end was not heard.
    pub async fn open(&self) -> Result<Vec<Execution>, StoreError> {
        history::open(self.0, TABLE).await
    }

    /// Executions older than `after`, newest first.
    pub async fn page(
        &self,
        filter: &ExecutionFilter,
        after: Option<ExecutionId>,
        limit: usize,
    ) -> Result<Vec<Execution>, StoreError> {
        let ExecutionFilter { project, vm, job, kinds, statuses } = filter;
        let columns: [(&str, Vec<Value>); 5] = [
            ("project_id", project.iter().map(|p| p.to_string().into()).collect()),
            ("vm_id", vm.iter().map(|v| v.to_string().into()).collect()),
            ("job_id", job.iter().map(|j| j.to_string().into()).collect()),
            ("kind", kinds.iter().map(|k| k.as_str().into()).collect()),
            ("status", statuses.iter().map(|s| s.as_str().into()).collect()),
        ];
        history::page(self.0, TABLE, &columns, after.map(|id| id.to_string()), limit).await
    }

    /// Whether any ended before `before`.
    pub async fn any_ended_before(&self, before: Timestamp) -> Result<bool, StoreError> {
        history::any_ended_before(self.0, TABLE, before).await
    }

    /// Removes at most `limit` that ended before `before`; how many it was.
    pub async fn prune(&self, before: Timestamp, limit: u64) -> Result<u64, StoreError> {
        history::prune(self.0, TABLE, before, limit).await
    }
}

/// `status, finished_at, record`.
fn changing(execution: &Execution) -> Vec<Value> {
    vec![
        execution.outcome.status.as_str().into(),
        execution.finished_at.map(Timestamp::unix_ms).into(),
        serde_json::to_string(execution).expect("an execution has a stored form").into(),
    ]
}
