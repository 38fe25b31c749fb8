//! Table `nodes`.

use roost_model::{NodeId, ProjectId, Timestamp};

use crate::error::StoreError;
use crate::sql::{column, execute, one, parsed, signed, unsigned};
use crate::tx::Tx;

/// A host that runs VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its ID.
    pub id: NodeId,
    /// Counts its starts.
    pub epoch: u64,
    /// When it last started.
    pub last_start: Timestamp,
}

/// The table in a transaction.
#[derive(Debug)]
pub struct Nodes<'a>(pub(crate) &'a Tx);

impl Nodes<'_> {
    /// The node that this database belongs to.
    pub async fn this_node(&self) -> Result<Option<NodeRecord>, StoreError> {
        let sql = "SELECT id, epoch, last_start FROM nodes ORDER BY id LIMIT 1";
        let Some(row) = one(self.0, sql, vec![]).await? else { return Ok(None) };
        Ok(Some(NodeRecord {
            id: parsed(&row, 0, "nodes")?,
            epoch: unsigned(column(&row, 1, "nodes")?),
            last_start: Timestamp::from_unix_ms(column(&row, 2, "nodes")?),
        }))
    }

    /// Adds or replaces a node's record.
    pub async fn put(&self, node: &NodeRecord) -> Result<(), StoreError> {
        let sql = "INSERT INTO nodes (id, project_id, epoch, last_start) VALUES ($1, $2, $3, $4) \
                   ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch, last_start = excluded.last_start";
        let values = vec![
            node.id.to_string().into(),
            ProjectId::DEFAULT.to_string().into(),
            signed(node.epoch).into(),
            node.last_start.unix_ms().into(),
        ];
        execute(self.0, sql, values).await?;
        Ok(())
    }
}
