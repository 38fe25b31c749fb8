//! Table `executions`: what was done inside guests.

use roost_model::execution::ExecutionKind;
use roost_model::{Execution, ExecutionId, ExecutionStatus, JobId, ProjectId, Timestamp, VmId};
use sea_orm::{QueryResult, Value};

use crate::error::StoreError;
use crate::sql::{all, execute, one, parameters, record, signed};
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
        let row = one(self.0, "SELECT id, record FROM executions WHERE id = $1", vec![id.to_string().into()]).await?;
        row.as_ref().map(execution_of).transpose()
    }

    /// Every execution whose end was not heard.
    pub async fn open(&self) -> Result<Vec<Execution>, StoreError> {
        let sql = "SELECT id, record FROM executions WHERE finished_at IS NULL ORDER BY id";
        all(self.0, sql, vec![]).await?.iter().map(execution_of).collect()
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
        let mut conditions = Vec::new();
        let mut values: Vec<Value> = Vec::new();
        for (column, many) in columns.into_iter().filter(|(_, many)| !many.is_empty()) {
            conditions.push(format!("{column} IN ({})", parameters(values.len() + 1, many.len())));
            values.extend(many);
        }
        if let Some(after) = after {
            values.push(after.to_string().into());
            conditions.push(format!("id < ${}", values.len()));
        }
        let restriction =
            if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
        values.push(signed(limit as u64).into());
        let sql = format!("SELECT id, record FROM executions{restriction} ORDER BY id DESC LIMIT ${}", values.len());
        all(self.0, &sql, values).await?.iter().map(execution_of).collect()
    }

    /// Removes at most `limit` that ended before `before`; how many it was.
    pub async fn prune(&self, before: Timestamp, limit: u64) -> Result<u64, StoreError> {
        let sql = "DELETE FROM executions WHERE id IN \
                   (SELECT id FROM executions WHERE finished_at IS NOT NULL AND finished_at < $1 LIMIT $2)";
        execute(self.0, sql, vec![before.unix_ms().into(), signed(limit).into()]).await
    }
}

fn execution_of(row: &QueryResult) -> Result<Execution, StoreError> {
    record(row, 1, "executions")
}

/// `status, finished_at, record`.
fn changing(execution: &Execution) -> Vec<Value> {
    vec![
        execution.status.as_str().into(),
        execution.finished_at.map(Timestamp::unix_ms).into(),
        serde_json::to_string(execution).expect("an execution has a stored form").into(),
    ]
}
