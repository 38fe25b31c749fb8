//! What `operations`, `executions` and `jobs` have in common: a row is open until it has a `finished_at`, is listed
//! newest first by its time-ordered ID, and is forgotten some time after its end.

use roost_model::Timestamp;
use sea_orm::Value;
use serde::de::DeserializeOwned;

use crate::error::StoreError;
use crate::sql::{all, execute, one, parameters, record, signed};
use crate::tx::Tx;

/// Columns, each with the values that it may have; none: any.
pub(crate) type Restrictions<'a> = &'a [(&'a str, Vec<Value>)];

/// One record.
pub(crate) async fn get<T: DeserializeOwned>(
    tx: &Tx,
    table: &'static str,
    id: String,
) -> Result<Option<T>, StoreError> {
    let sql = format!("SELECT id, record FROM {table} WHERE id = $1");
    one(tx, &sql, vec![id.into()]).await?.map(|row| record(&row, 1, table)).transpose()
}

/// Every record that has not ended, oldest first.
pub(crate) async fn open<T: DeserializeOwned>(tx: &Tx, table: &'static str) -> Result<Vec<T>, StoreError> {
    let sql = format!("SELECT id, record FROM {table} WHERE finished_at IS NULL ORDER BY id");
    all(tx, &sql, vec![]).await?.iter().map(|row| record(row, 1, table)).collect()
}

/// At most `limit` records older than the one with the ID `after`, newest first.
pub(crate) async fn page<T: DeserializeOwned>(
    tx: &Tx,
    table: &'static str,
    restrictions: Restrictions<'_>,
    after: Option<String>,
    limit: usize,
) -> Result<Vec<T>, StoreError> {
    let mut conditions = Vec::new();
    let mut values: Vec<Value> = Vec::new();
    for (column, many) in restrictions.iter().filter(|(_, many)| !many.is_empty()) {
        conditions.push(format!("{column} IN ({})", parameters(values.len() + 1, many.len())));
        values.extend(many.iter().cloned());
    }
    if let Some(after) = after {
        values.push(after.into());
        conditions.push(format!("id < ${}", values.len()));
    }
    let restriction =
        if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    values.push(signed(limit as u64).into());
    let sql = format!("SELECT id, record FROM {table}{restriction} ORDER BY id DESC LIMIT ${}", values.len());
    all(tx, &sql, values).await?.iter().map(|row| record(row, 1, table)).collect()
}

/// Whether any ended before `before`.
pub(crate) async fn any_ended_before(tx: &Tx, table: &'static str, before: Timestamp) -> Result<bool, StoreError> {
    let sql = format!("SELECT id FROM {table} WHERE finished_at IS NOT NULL AND finished_at < $1 LIMIT 1");
    Ok(one(tx, &sql, vec![before.unix_ms().into()]).await?.is_some())
}

/// Removes at most `limit` that ended before `before`; how many it was.
pub(crate) async fn prune(tx: &Tx, table: &'static str, before: Timestamp, limit: u64) -> Result<u64, StoreError> {
    let sql = format!(
        "DELETE FROM {table} WHERE id IN \
         (SELECT id FROM {table} WHERE finished_at IS NOT NULL AND finished_at < $1 LIMIT $2)"
    );
    execute(tx, &sql, vec![before.unix_ms().into(), signed(limit).into()]).await
}
