//! Table `operations`.

use roost_model::{Operation, OperationId, OperationKind, ProjectId, Status, Timestamp, VmId};
use sea_orm::{QueryResult, Value};

use crate::error::StoreError;
use crate::sql::{all, execute, one, record};
use crate::table::history;
use crate::tx::Tx;

/// Which operations; what is empty or `None` restricts nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OperationFilter {
    /// The tenant.
    pub project: Option<ProjectId>,
    /// Of this VM.
    pub vm: Option<VmId>,
    /// In one of these.
    pub statuses: Vec<Status>,
    /// Of one of these kinds.
    pub kinds: Vec<OperationKind>,
}

const TABLE: &str = "operations";

/// The table in a transaction.
#[derive(Debug)]
pub struct Operations<'a>(pub(crate) &'a Tx);

impl Operations<'_> {
    /// Adds an operation.
    pub async fn insert(&self, operation: &Operation) -> Result<(), StoreError> {
        let sql = "INSERT INTO operations (id, project_id, vm_id, kind, status, priority, finished_at, record) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
        let mut values: Vec<Value> = vec![
            operation.id.to_string().into(),
            operation.project.to_string().into(),
            operation.vm.to_string().into(),
            operation.goal.kind().as_str().into(),
        ];
        values.extend(changing(operation));
        execute(self.0, sql, values).await?;
        Ok(())
    }

    /// One operation.
    pub async fn get(&self, id: OperationId) -> Result<Option<Operation>, StoreError> {
        history::get(self.0, TABLE, id.to_string()).await
    }

    /// Replaces an operation's record.
    pub async fn update(&self, operation: &Operation) -> Result<(), StoreError> {
        let sql = "UPDATE operations SET status = $1, priority = $2, finished_at = $3, record = $4 WHERE id = $5";
        let mut values = changing(operation);
        values.push(operation.id.to_string().into());
        match execute(self.0, sql, values).await? {
            1 => Ok(()),
            _ => Err(StoreError::Conflict { what: operation.id.to_string() }),
        }
    }

    /// Replaces an operation's record where it is still `seen`; whether it was.
    pub async fn replace(&self, seen: &Operation, operation: &Operation) -> Result<bool, StoreError> {
        let sql = "UPDATE operations SET status = $1, priority = $2, finished_at = $3, record = $4 \
                   WHERE id = $5 AND record = $6";
        let mut values = changing(operation);
        values.extend([operation.id.to_string().into(), stored(seen).into()]);
        Ok(execute(self.0, sql, values).await? == 1)
    }

    /// A VM's operations that have not ended, in the order of their acceptance.
    pub async fn open_of(&self, vm: VmId) -> Result<Vec<Operation>, StoreError> {
        let sql = "SELECT id, record FROM operations WHERE vm_id = $1 AND finished_at IS NULL ORDER BY id";
        all(self.0, sql, vec![vm.to_string().into()]).await?.iter().map(operation_of).collect()
    }

    /// Whether a VM has operations that have not ended.
    pub async fn any_open_of(&self, vm: VmId) -> Result<bool, StoreError> {
        let sql = "SELECT id FROM operations WHERE vm_id = $1 AND finished_at IS NULL LIMIT 1";
        Ok(one(self.0, sql, vec![vm.to_string().into()]).await?.is_some())
    }

    /// Every operation that has not ended.
    pub async fn open(&self) -> Result<Vec<Operation>, StoreError> {
        history::open(self.0, TABLE).await
    }

    /// Operations older than `after`, newest first.
    pub async fn page(
        &self,
        filter: &OperationFilter,
        after: Option<OperationId>,
        limit: usize,
    ) -> Result<Vec<Operation>, StoreError> {
        let OperationFilter { project, vm, statuses, kinds } = filter;
        let columns: [(&str, Vec<Value>); 4] = [
            ("project_id", project.iter().map(|p| p.to_string().into()).collect()),
            ("vm_id", vm.iter().map(|v| v.to_string().into()).collect()),
            ("status", statuses.iter().map(|s| s.as_str().into()).collect()),
            ("kind", kinds.iter().map(|k| k.as_str().into()).collect()),
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

fn operation_of(row: &QueryResult) -> Result<Operation, StoreError> {
    record(row, 1, TABLE)
}

/// `status, priority, finished_at, record`.
fn changing(operation: &Operation) -> Vec<Value> {
    vec![
        operation.status.as_str().into(),
        operation.priority.as_str().into(),
        operation.finished_at.map(Timestamp::unix_ms).into(),
        stored(operation).into(),
    ]
}

fn stored(operation: &Operation) -> String {
    serde_json::to_string(operation).expect("an operation has a stored form")
}
