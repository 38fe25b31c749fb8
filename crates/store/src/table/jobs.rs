//! Table `jobs`: several commands inside a guest, one after the other.

use roost_model::{Job, JobId, ProjectId, Timestamp, VmId};
use sea_orm::Value;

use crate::error::StoreError;
use crate::sql::execute;
use crate::table::history;
use crate::tx::Tx;

const TABLE: &str = "jobs";

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
        history::get(self.0, TABLE, id.to_string()).await
    }

    /// Every job that has not ended.
    pub async fn open(&self) -> Result<Vec<Job>, StoreError> {
        history::open(self.0, TABLE).await
    }

    /// A VM's jobs older than `after`, newest first.
    pub async fn page(
        &self,
        project: ProjectId,
        vm: VmId,
        after: Option<JobId>,
        limit: usize,
    ) -> Result<Vec<Job>, StoreError> {
        let columns: [(&str, Vec<Value>); 2] =
            [("project_id", vec![project.to_string().into()]), ("vm_id", vec![vm.to_string().into()])];
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
