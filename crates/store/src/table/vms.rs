//! Table `vms`, with `vm_metadata` beside it.

use std::collections::BTreeMap;

use roost_model::{BackendName, Machine, Operation, ProjectId, Resource, Timestamp, Vm, VmId, VmName, VmState};
use sea_orm::{QueryResult, Value};

use crate::error::StoreError;
use crate::sql::{all, changed, column, execute, one, parameters, parsed, record, signed, unsigned};
use crate::tx::Tx;

/// The first condition is that of the index `vms_unsettled`, word for word: settled VMs cost
/// nothing. Sorted by us: for an `ORDER BY`, SQLite would walk through all of them.
const UNSETTLED: &str = "SELECT id FROM vms WHERE \
    (deleted OR machine = 'lingering' OR (NOT failed AND ( \
        (desired_power = 'running' AND machine <> 'running') \
        OR (desired_power = 'paused' AND machine <> 'paused') \
        OR (desired_power = 'stopped' AND machine IN ('running', 'paused', 'absent'))))) \
    UNION ALL SELECT id FROM vms WHERE expires_at <= $1";

/// Which VMs; what is empty or `None` restricts nothing.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct VmFilter {
    /// The tenant.
    pub project: Option<ProjectId>,
    /// In one of these states.
    pub states: Vec<VmState>,
    /// Run by this backend.
    pub backend: Option<BackendName>,
    /// With a name that begins like this.
    pub name_prefix: Option<String>,
    /// With all of these in its metadata.
    pub metadata: BTreeMap<String, String>,
    /// One of these.
    pub ids: Vec<VmId>,
}

/// The table in a transaction.
#[derive(Debug)]
pub struct Vms<'a>(pub(crate) &'a Tx);

impl Vms<'_> {
    /// Adds a VM.
    pub async fn insert(&self, vm: &Vm) -> Result<(), StoreError> {
        let sql = "INSERT INTO vms (id, project_id, name, backend, state, desired_power, deleted, machine, failed, \
                   expires_at, resource_version, created_at, updated_at, record) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)";
        let mut values = vec![vm.id.to_string().into(), vm.project.to_string().into()];
        values.extend(columns(vm));
        execute(self.0, sql, values).await?;
        self.insert_metadata(vm).await
    }

    /// One VM.
    pub async fn get(&self, id: VmId) -> Result<Option<Vm>, StoreError> {
        let row = one(self.0, "SELECT id, record FROM vms WHERE id = $1", vec![id.to_string().into()]).await?;
        row.as_ref().map(vm_of).transpose()
    }

    /// One VM with its operations that have not ended, in the order of their acceptance, and all that it
    /// owns: in one query.
    pub async fn whole(&self, id: VmId) -> Result<Option<(Vm, Vec<Operation>, Vec<Resource>)>, StoreError> {
        let sql = "SELECT id, record, 0 AS part, '' AS kind FROM vms WHERE id = $1 \
                   UNION ALL SELECT id, record, 1, '' FROM operations WHERE vm_id = $1 AND finished_at IS NULL \
                   UNION ALL SELECT key, record, 2, kind FROM resources WHERE vm_id = $1 \
                   ORDER BY 3, 4, 1";
        let rows = all(self.0, sql, vec![id.to_string().into()]).await?;
        let (mut vm, mut operations, mut resources) = (None, Vec::new(), Vec::new());
        for row in &rows {
            match column::<i64>(row, 2, "vms")? {
                0 => vm = Some(vm_of(row)?),
                1 => operations.push(record(row, 1, "operations")?),
                _ => resources.push(record(row, 1, "resources")?),
            }
        }
        Ok(vm.map(|vm| (vm, operations, resources)))
    }

    /// One VM by its name.
    pub async fn by_name(&self, project: ProjectId, name: &VmName) -> Result<Option<Vm>, StoreError> {
        let sql = "SELECT id, record FROM vms WHERE project_id = $1 AND name = $2";
        let row = one(self.0, sql, vec![project.to_string().into(), name.as_str().into()]).await?;
        row.as_ref().map(vm_of).transpose()
    }

    /// Replaces a VM's record, which must be the successor of the stored one.
    pub async fn update(&self, vm: &Vm) -> Result<(), StoreError> {
        if self.replace(vm).await? { Ok(()) } else { Err(StoreError::Conflict { what: vm.id.to_string() }) }
    }

    /// Replaces a VM's record where it is the successor of the stored one; whether it was.
    pub async fn replace(&self, vm: &Vm) -> Result<bool, StoreError> {
        let sql = "UPDATE vms SET name = $1, backend = $2, state = $3, desired_power = $4, deleted = $5, machine = $6, \
                   failed = $7, expires_at = $8, resource_version = $9, created_at = $10, updated_at = $11, record = $12 \
                   WHERE id = $13 AND resource_version = $14 RETURNING \
                   (SELECT count(*) FROM vm_metadata WHERE vm_id = $13)";
        let mut values = columns(vm);
        values.extend([vm.id.to_string().into(), (signed(vm.resource_version) - 1).into()]);
        let Some(row) = changed(self.0, sql, values).await? else {
            return Ok(false);
        };
        let metadata: i64 = column(&row, 0, "vms")?;
        if metadata > 0 || !vm.spec.metadata.is_empty() {
            execute(self.0, "DELETE FROM vm_metadata WHERE vm_id = $1", vec![vm.id.to_string().into()]).await?;
            self.insert_metadata(vm).await?;
        }
        Ok(true)
    }

    /// Removes a VM. Nothing may be on record as belonging to it.
    pub async fn remove(&self, id: VmId) -> Result<(), StoreError> {
        execute(self.0, "DELETE FROM vms WHERE id = $1", vec![id.to_string().into()]).await?;
        Ok(())
    }

    /// VMs after `after`, in the order of their IDs.
    pub async fn page(&self, filter: &VmFilter, after: Option<VmId>, limit: usize) -> Result<Vec<Vm>, StoreError> {
        let (mut conditions, mut values) = conditions(filter);
        if let Some(after) = after {
            values.push(after.to_string().into());
            conditions.push(format!("id > ${}", values.len()));
        }
        values.push(signed(limit as u64).into());
        let sql =
            format!("SELECT id, record FROM vms{} ORDER BY id LIMIT ${}", where_clause(&conditions), values.len());
        all(self.0, &sql, values).await?.iter().map(vm_of).collect()
    }

    /// How many match.
    pub async fn count(&self, filter: &VmFilter) -> Result<u64, StoreError> {
        let (conditions, values) = conditions(filter);
        let sql = format!("SELECT count(*) FROM vms{}", where_clause(&conditions));
        let row = one(self.0, &sql, values).await?;
        Ok(unsigned(row.map(|r| column(&r, 0, "vms")).transpose()?.unwrap_or(0)))
    }

    /// Every VM, for the start.
    pub async fn all(&self) -> Result<Vec<Vm>, StoreError> {
        all(self.0, "SELECT id, record FROM vms ORDER BY id", vec![]).await?.iter().map(vm_of).collect()
    }

    /// VMs of which the record says that something is to be done: not as wanted, half-gone, or past
    /// their time. In the order of their IDs.
    pub async fn unsettled(&self, now: Timestamp) -> Result<Vec<VmId>, StoreError> {
        let rows = all(self.0, UNSETTLED, vec![now.unix_ms().into()]).await?;
        let mut ids = rows.iter().map(|row| parsed(row, 0, "vms")).collect::<Result<Vec<VmId>, _>>()?;
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    async fn insert_metadata(&self, vm: &Vm) -> Result<(), StoreError> {
        if vm.spec.metadata.is_empty() {
            return Ok(());
        }
        let mut values: Vec<Value> = Vec::with_capacity(vm.spec.metadata.len() * 4);
        let mut rows = Vec::with_capacity(vm.spec.metadata.len());
        for (key, value) in &vm.spec.metadata {
            rows.push(format!("({})", parameters(values.len() + 1, 4)));
            values.extend([
                vm.id.to_string().into(),
                vm.project.to_string().into(),
                key.as_str().into(),
                value.as_str().into(),
            ]);
        }
        let sql = format!("INSERT INTO vm_metadata (vm_id, project_id, key, value) VALUES {}", rows.join(", "));
        execute(self.0, &sql, values).await?;
        Ok(())
    }
}

fn vm_of(row: &QueryResult) -> Result<Vm, StoreError> {
    record(row, 1, "vms")
}

/// From `name` on, in the order of the table.
fn columns(vm: &Vm) -> Vec<Value> {
    let text = serde_json::to_string(vm).expect("a VM has a stored form");
    let expires_at = vm.spec.time_to_live.map(|ttl| vm.created_at.after(ttl).unix_ms());
    vec![
        vm.name.as_str().into(),
        vm.backend.as_str().into(),
        (vm.state() as i32).into(),
        vm.desired.power.as_str().into(),
        vm.desired.deleted.into(),
        machine_word(vm.observed.machine).into(),
        vm.failure.is_some().into(),
        expires_at.into(),
        signed(vm.resource_version).into(),
        vm.created_at.unix_ms().into(),
        vm.updated_at.unix_ms().into(),
        text.into(),
    ]
}

fn machine_word(machine: Machine) -> &'static str {
    match machine {
        Machine::Absent => "absent",
        Machine::Defined => "defined",
        Machine::Running => "running",
        Machine::Paused => "paused",
        Machine::Ended { lingering: false, .. } => "ended",
        Machine::Ended { lingering: true, .. } => "lingering",
    }
}

fn conditions(filter: &VmFilter) -> (Vec<String>, Vec<Value>) {
    let VmFilter { project, states, backend, name_prefix, metadata, ids } = filter;
    let mut conditions = Vec::new();
    let mut values: Vec<Value> = Vec::new();
    let one_of = |column: &str, many: Vec<Value>, conditions: &mut Vec<String>, values: &mut Vec<Value>| {
        if !many.is_empty() {
            conditions.push(format!("{column} IN ({})", parameters(values.len() + 1, many.len())));
            values.extend(many);
        }
    };
    one_of("project_id", project.iter().map(|p| p.to_string().into()).collect(), &mut conditions, &mut values);
    one_of("state", states.iter().map(|s| (*s as i32).into()).collect(), &mut conditions, &mut values);
    one_of("backend", backend.iter().map(|b| b.as_str().into()).collect(), &mut conditions, &mut values);
    one_of("id", ids.iter().map(|id| id.to_string().into()).collect(), &mut conditions, &mut values);
    if let Some(prefix) = name_prefix {
        // Names are ASCII: the next string after every one with this prefix ends in DEL.
        values.extend([prefix.as_str().into(), format!("{prefix}\u{7f}").into()]);
        conditions.push(format!("name >= ${} AND name < ${}", values.len() - 1, values.len()));
    }
    for (key, value) in metadata {
        values.extend([key.as_str().into(), value.as_str().into()]);
        conditions.push(format!(
            "EXISTS (SELECT 1 FROM vm_metadata m WHERE m.vm_id = vms.id AND m.key = ${} AND m.value = ${})",
            values.len() - 1,
            values.len()
        ));
    }
    (conditions, values)
}

fn where_clause(conditions: &[String]) -> String {
    if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) }
}

#[cfg(test)]
mod tests {
    use sea_orm::{ConnectionTrait, Statement};

    use super::UNSETTLED;

    #[tokio::test]
    async fn settled_vms_are_not_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let opened = crate::sqlite::open(&dir.path().join("state.db")).await.unwrap();
        let explain = format!("EXPLAIN QUERY PLAN {UNSETTLED}");
        let query = Statement::from_sql_and_values(sea_orm::DbBackend::Sqlite, explain, [0.into()]);
        let plan: Vec<String> = opened
            .readers
            .query_all_raw(query)
            .await
            .unwrap()
            .iter()
            .map(|row| row.try_get_by_index::<String>(3).unwrap())
            .collect();
        for index in ["vms_unsettled", "vms_by_term"] {
            assert!(plan.iter().any(|step| step.contains(index)), "{index}: {plan:?}");
        }
    }
}
