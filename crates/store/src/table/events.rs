//! Table `events`: events with dense positions.
//!
//! A position is given by the transaction that the event tells of, right before its commit. There is one
//! writer, so positions come in the order of commits, which is what a watcher's cursor relies on. A
//! database with several writers needs an outbox and a relay for that.

use std::str::FromStr;

use roost_model::{Invalid, OperationId, ProjectId, Timestamp, VmId};
use sea_orm::{QueryResult, Value};

use crate::error::StoreError;
use crate::sql::{all, column, decode, execute, one, parameters, parsed, record, signed, unsigned};
use crate::tx::Tx;

const TABLE: &str = "events";

const COLUMNS: &str = "position, project_id, at, kind, vm_id, operation_id, data";

/// Rows to a statement: a few sizes, so that a few prepared statements serve every batch.
const CHUNKS: [usize; 4] = [64, 16, 4, 1];

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
    /// Adds an event. It gets its position, and can be read, with the commit.
    pub fn push(&self, event: NewEvent) {
        self.0.push(event);
    }

    /// Writes events behind the last one; the position of the newest.
    pub(crate) async fn append(&self, events: &[NewEvent]) -> Result<u64, StoreError> {
        let mut position = self.last_position().await?;
        let mut rest = events;
        while let Some(size) = CHUNKS.into_iter().find(|size| *size <= rest.len()) {
            let (some, others) = rest.split_at(size);
            rest = others;
            let mut values: Vec<Value> = Vec::with_capacity(size * 7);
            let mut rows = Vec::with_capacity(size);
            for event in some {
                position += 1;
                rows.push(format!("({})", parameters(values.len() + 1, 7)));
                values.extend([
                    signed(position).into(),
                    event.project.to_string().into(),
                    event.at.unix_ms().into(),
                    event.kind.as_str().into(),
                    event.vm.map(|vm| vm.to_string()).into(),
                    event.operation.map(|operation| operation.to_string()).into(),
                    event.data.to_string().into(),
                ]);
            }
            let sql = format!("INSERT INTO events ({COLUMNS}) VALUES {}", rows.join(", "));
            execute(self.0, &sql, values).await?;
        }
        Ok(position)
    }

    /// A project's events after a position, in order.
    pub async fn after(&self, position: u64, project: ProjectId, limit: usize) -> Result<Vec<Event>, StoreError> {
        let sql =
            format!("SELECT {COLUMNS} FROM events WHERE position > $1 AND project_id = $2 ORDER BY position LIMIT $3");
        let values = vec![signed(position).into(), project.to_string().into(), signed(limit as u64).into()];
        all(self.0, &sql, values).await?.iter().map(event_of).collect()
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
        execute(self.0, "DELETE FROM events WHERE position <= $1", vec![signed(before).into()]).await
    }

    async fn edge(&self, sql: &str) -> Result<u64, StoreError> {
        let row = one(self.0, sql, vec![]).await?;
        let edge: Option<i64> = row.map(|r| column(&r, 0, TABLE)).transpose()?.flatten();
        Ok(unsigned(edge.unwrap_or(0)))
    }
}

fn event_of(row: &QueryResult) -> Result<Event, StoreError> {
    Ok(Event {
        position: unsigned(column(row, 0, TABLE)?),
        project: parsed(row, 1, TABLE)?,
        at: Timestamp::from_unix_ms(column(row, 2, TABLE)?),
        kind: column(row, 3, TABLE)?,
        vm: optional(row, 4)?,
        operation: optional(row, 5)?,
        data: record(row, 6, TABLE)?,
    })
}

fn optional<T: FromStr<Err = Invalid>>(row: &QueryResult, at: usize) -> Result<Option<T>, StoreError> {
    let text: Option<String> = column(row, at, TABLE)?;
    text.map(|t| t.parse()).transpose().map_err(|e: Invalid| decode(row, TABLE, e))
}
