//! Table `events`: events with dense positions.

use roost_model::{OperationId, ProjectId, Timestamp, VmId};
use sea_orm::QueryResult;

use crate::error::StoreError;
use crate::sql::{all, column, execute, one, signed, unsigned};
use crate::tx::Tx;

pub(crate) const COLUMNS: &str = "position, project_id, at, kind, vm_id, operation_id, data";

/// An event at its position.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Counts from 1 without gaps.
    pub position: u64,
    /// The tenant.
    pub project: ProjectId,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
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
pub struct Events<'a>(pub(crate) &'a Tx);

impl Events<'_> {
    /// A project's events after a position, in order.
    pub async fn after(&self, position: u64, project: ProjectId, limit: usize) -> Result<Vec<Event>, StoreError> {
        let sql =
            format!("SELECT {COLUMNS} FROM events WHERE position > $1 AND project_id = $2 ORDER BY position LIMIT $3");
        let values = vec![signed(position).into(), project.to_string().into(), signed(limit as u64).into()];
        all(&self.0.db, &sql, values).await?.iter().map(event_of).collect()
    }

    /// The position of the newest; 0 where there is none.
    pub async fn last_position(&self) -> Result<u64, StoreError> {
        self.edge("SELECT max(position) FROM events").await
    }

    /// The position of the oldest that is kept; 0 where there is none.
    pub async fn first_position(&self) -> Result<u64, StoreError> {
        self.edge("SELECT min(position) FROM events").await
    }

    /// Forgets all but the newest `keep` (at least one: positions go on from it).
    pub async fn prune(&self, keep: u64) -> Result<u64, StoreError> {
        let before = self.last_position().await?.saturating_sub(keep.max(1));
        execute(&self.0.db, "DELETE FROM events WHERE position <= $1", vec![signed(before).into()]).await
    }

    async fn edge(&self, sql: &str) -> Result<u64, StoreError> {
        let row = one(&self.0.db, sql, vec![]).await?;
        let edge: Option<i64> = row.map(|r| column(&r, 0)).transpose()?.flatten();
        Ok(unsigned(edge.unwrap_or(0)))
    }
}

pub(crate) fn event_of(row: &QueryResult) -> Result<Event, StoreError> {
    let position: i64 = column(row, 0)?;
    let broken = |why: String| StoreError::Decode { table: "events", id: position.to_string(), why };
    let id = |at: usize| column::<Option<String>>(row, at);
    let data: String = column(row, 6)?;
    Ok(Event {
        position: unsigned(position),
        project: column::<String>(row, 1)?.parse().map_err(|e: roost_model::Invalid| broken(e.to_string()))?,
        at: Timestamp::from_unix_ms(column(row, 2)?),
        kind: column(row, 3)?,
        vm: id(4)?.map(|t| t.parse()).transpose().map_err(|e: roost_model::Invalid| broken(e.to_string()))?,
        operation: id(5)?.map(|t| t.parse()).transpose().map_err(|e: roost_model::Invalid| broken(e.to_string()))?,
        data: serde_json::from_str(&data).map_err(|e| broken(e.to_string()))?,
    })
}
