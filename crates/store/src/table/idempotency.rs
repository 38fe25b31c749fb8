//! Table `idempotency_keys`.

use roost_model::{OperationId, ProjectId, Timestamp, VmId};

use crate::error::StoreError;
use crate::sql::{column, decode, execute, one, parsed};
use crate::tx::Tx;

const TABLE: &str = "idempotency_keys";

/// A key with what its first request led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyRecord {
    /// The caller's key.
    pub key: String,
    /// SHA-256 of the request.
    pub digest: [u8; 32],
    /// What carries it out.
    pub operation: OperationId,
    /// On which VM.
    pub vm: VmId,
    /// When it was accepted.
    pub created_at: Timestamp,
}

/// The table in a transaction.
#[derive(Debug)]
pub struct Idempotency<'a>(pub(crate) &'a Tx);

impl Idempotency<'_> {
    /// What a key stands for.
    pub async fn get(&self, project: ProjectId, key: &str) -> Result<Option<IdempotencyRecord>, StoreError> {
        let sql = "SELECT key, digest, operation_id, vm_id, created_at FROM idempotency_keys \
                   WHERE project_id = $1 AND key = $2";
        let row = one(self.0, sql, vec![project.to_string().into(), key.into()]).await?;
        let Some(row) = row else { return Ok(None) };
        let digest = from_hex(&column::<String>(&row, 1, TABLE)?)
            .ok_or_else(|| decode(&row, TABLE, "its digest is not 64 hexadecimal digits"))?;
        Ok(Some(IdempotencyRecord {
            key: column(&row, 0, TABLE)?,
            digest,
            operation: parsed(&row, 2, TABLE)?,
            vm: parsed(&row, 3, TABLE)?,
            created_at: Timestamp::from_unix_ms(column(&row, 4, TABLE)?),
        }))
    }

    /// Adds a key.
    pub async fn insert(&self, project: ProjectId, record: &IdempotencyRecord) -> Result<(), StoreError> {
        let sql = "INSERT INTO idempotency_keys (project_id, key, digest, operation_id, vm_id, created_at) \
                   VALUES ($1, $2, $3, $4, $5, $6)";
        let digest: String = record.digest.iter().map(|b| format!("{b:02x}")).collect();
        let values = vec![
            project.to_string().into(),
            record.key.as_str().into(),
            digest.into(),
            record.operation.to_string().into(),
            record.vm.to_string().into(),
            record.created_at.unix_ms().into(),
        ];
        execute(self.0, sql, values).await?;
        Ok(())
    }

    /// Forgets keys from before `before`; how many it was.
    pub async fn prune(&self, before: Timestamp) -> Result<u64, StoreError> {
        execute(self.0, "DELETE FROM idempotency_keys WHERE created_at < $1", vec![before.unix_ms().into()]).await
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, i) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[i..i + 2], 16).ok()?;
    }
    Some(digest)
}
