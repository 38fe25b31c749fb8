//! Table `outbox`: events that were committed and have no position yet.

use roost_model::{OperationId, ProjectId, Timestamp, VmId};

use super::events::{COLUMNS, Event, event_of};
use crate::error::StoreError;
use crate::sql::{all, column, execute, one, signed};
use crate::tx::Tx;

/// An event on its way to its position.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// The tenant.
    pub project: ProjectId,
    /// When it happened.
    pub at: Timestamp,
    /// What happened: `vm.created`, `vm.state`, `operation.updated`, ...
    pub kind: String,
    /// To which VM.
    pub vm: Option<VmId>,
    /// By which operation.
    pub operation: Option<OperationId>,
    /// The rest.
    pub data: serde_json::Value,
}

/// The table in a transaction.
#[derive(Debug)]
pub struct Outbox<'a>(pub(crate) &'a Tx);

impl Outbox<'_> {
    /// Adds an event.
    pub async fn push(&self, event: &NewEvent) -> Result<(), StoreError> {
        let sql =
            "INSERT INTO outbox (project_id, at, kind, vm_id, operation_id, data) VALUES ($1, $2, $3, $4, $5, $6)";
        let values = vec![
            event.project.to_string().into(),
            event.at.unix_ms().into(),
            event.kind.as_str().into(),
            event.vm.map(|vm| vm.to_string()).into(),
            event.operation.map(|operation| operation.to_string()).into(),
            event.data.to_string().into(),
        ];
        execute(self.0, sql, values).await?;
        self.0.mark_pushed();
        Ok(())
    }

    /// Moves the oldest `limit` rows to `events`, with the next positions; returns them.
    pub async fn relay(&self, limit: usize) -> Result<Vec<Event>, StoreError> {
        let newest = "SELECT max(id) FROM (SELECT id FROM outbox ORDER BY id LIMIT $1) AS oldest";
        let row = one(self.0, newest, vec![signed(limit as u64).into()]).await?;
        let newest: Option<i64> = row.map(|r| column(&r, 0, "outbox")).transpose()?.flatten();
        let Some(newest) = newest else { return Ok(Vec::new()) };
        let last = self.0.events().last_position().await?;
        let values = || vec![newest.into(), signed(last).into()];
        let moved = format!(
            "INSERT INTO events ({COLUMNS}) \
             SELECT $2 + row_number() OVER (ORDER BY id), project_id, at, kind, vm_id, operation_id, data \
             FROM outbox WHERE id <= $1"
        );
        execute(self.0, &moved, values()).await?;
        execute(self.0, "DELETE FROM outbox WHERE id <= $1", vec![newest.into()]).await?;
        let read = format!("SELECT {COLUMNS} FROM events WHERE position > $1 ORDER BY position");
        all(self.0, &read, vec![signed(last).into()]).await?.iter().map(event_of).collect()
    }
}
