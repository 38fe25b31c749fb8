//! Table `jobs`: several commands inside a guest, one after the other.

use roost_model::{Job, JobId, ProjectId, Timestamp, VmId};
use sea_orm::{QueryResult, Value};

use crate::error::StoreError;
use crate::sql::{all, execute, one, record, signed};
use crate::tx::Tx;

/// The table in a transaction.
#[derive(Debug)]
pub struct Jobs<'a>(pub(crate) &'a Tx);

impl Jobs<'_> {
    /// Adds a job, or replaces its record.
    pub async fn put(&self, job: &Job) -> Result<(), StoreError> {
        let sql = "INSERT INTO jobs (id, project_id, vm_id, status, finished_at, record) VALUES ($1, $2, $3, $4, $5, $6) \
                   ON CONFLICT (id) DO UPDATE SET \
                   status = excluded.status, finished_at = excluded.finished_at, record = excluded.record";
        let values: Vec<Value> = vec![
            job.id.to_string().into(),
            job.project.to_string().into(),
            job.vm.to_string().into(),
            job.status.as_str().into(),
            job.finished_at.map(Timestamp::unix_ms).into(),
            serde_json::to_string(job).expect("a job has a stored form").into(),
        ];
        execute(self.0, sql, values).await?;
        Ok(())
    }

    /// One job.
    pub async fn get(&self, id: JobId) -> Result<Option<Job>, StoreError> {
        let row = one(self.0, "SELECT id, record FROM jobs WHERE id = $1", vec![id.to_string().into()]).await?;
        row.as_ref().map(job_of).transpose()
    }

    /// Every job that has not ended.
    pub async fn open(&self) -> Result<Vec<Job>, StoreError> {
        let sql = "SELECT id, record FROM jobs WHERE finished_at IS NULL ORDER BY id";
        all(self.0, sql, vec![]).await?.iter().map(job_of).collect()
    }

    /// A VM's jobs older than `after`, newest first.
    pub async fn page(
        &self,
        project: ProjectId,
        vm: VmId,
        after: Option<JobId>,
        limit: usize,
    ) -> Result<Vec<Job>, StoreError> {
        let mut sql = "SELECT id, record FROM jobs WHERE project_id = $1 AND vm_id = $2".to_owned();
        let mut values: Vec<Value> =
            vec![project.to_string().into(), vm.to_string().into(), signed(limit as u64).into()];
        if let Some(after) = after {
            values.push(after.to_string().into());
            sql.push_str(" AND id < $4");
        }
        sql.push_str(" ORDER BY id DESC LIMIT $3");
        all(self.0, &sql, values).await?.iter().map(job_of).collect()
    }

    /// Removes at most `limit` that ended before `before`; how many it was.
    pub async fn prune(&self, before: Timestamp, limit: u64) -> Result<u64, StoreError> {
        let sql = "DELETE FROM jobs WHERE id IN \
                   (SELECT id FROM jobs WHERE finished_at IS NOT NULL AND finished_at < $1 LIMIT $2)";
        execute(self.0, sql, vec![before.unix_ms().into(), signed(limit).into()]).await
    }
}

fn job_of(row: &QueryResult) -> Result<Job, StoreError> {
    record(row, 1, "jobs")
}
