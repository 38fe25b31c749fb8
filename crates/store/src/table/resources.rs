//! Table `resources`: what VMs own on the host.

use roost_model::{Resource, ResourceKind, VmId};

use crate::error::StoreError;
use crate::sql::{all, execute, parsed, record};
use crate::tx::Tx;

/// The table in a transaction.
#[derive(Debug)]
pub struct Resources<'a>(pub(crate) &'a Tx);

impl Resources<'_> {
    /// Records a resource, or replaces the one of the same kind and key. Its VM must exist.
    pub async fn record(&self, vm: VmId, resource: &Resource) -> Result<(), StoreError> {
        let sql = "INSERT INTO resources (vm_id, project_id, kind, key, record) \
                   SELECT id, project_id, $2, $3, $4 FROM vms WHERE id = $1 \
                   ON CONFLICT (vm_id, kind, key) DO UPDATE SET record = excluded.record";
        let text = serde_json::to_string(resource).expect("a resource has a stored form");
        let values =
            vec![vm.to_string().into(), resource.kind.as_str().into(), resource.key.as_str().into(), text.into()];
        match execute(self.0, sql, values).await? {
            0 => Err(StoreError::Conflict { what: vm.to_string() }),
            _ => Ok(()),
        }
    }

    /// Forgets a resource.
    pub async fn forget(&self, vm: VmId, kind: ResourceKind, key: &str) -> Result<(), StoreError> {
        let sql = "DELETE FROM resources WHERE vm_id = $1 AND kind = $2 AND key = $3";
        execute(self.0, sql, vec![vm.to_string().into(), kind.as_str().into(), key.into()]).await?;
        Ok(())
    }

    /// Everything that a VM owns.
    pub async fn of(&self, vm: VmId) -> Result<Vec<Resource>, StoreError> {
        let sql = "SELECT vm_id, record FROM resources WHERE vm_id = $1 ORDER BY kind, key";
        all(self.0, sql, vec![vm.to_string().into()]).await?.iter().map(|row| record(row, 1, "resources")).collect()
    }

    /// Everything that any VM owns, for the start.
    pub async fn all(&self) -> Result<Vec<(VmId, Resource)>, StoreError> {
        let rows = all(self.0, "SELECT vm_id, record FROM resources ORDER BY vm_id, kind, key", vec![]).await?;
        rows.iter().map(|row| Ok((parsed(row, 0, "resources")?, record(row, 1, "resources")?))).collect()
    }
}
