//! The little that table code needs on top of sea-orm: statements with `$n` parameters, which
//! SQLite and PostgreSQL read alike.

use sea_orm::{ConnectionTrait, DatabaseTransaction, QueryResult, Statement, TryGetable, Value};
use serde::de::DeserializeOwned;

use crate::error::StoreError;

/// Runs a statement; how many rows it touched.
pub(crate) async fn execute(tx: &DatabaseTransaction, sql: &str, values: Vec<Value>) -> Result<u64, StoreError> {
    let statement = Statement::from_sql_and_values(tx.get_database_backend(), sql, values);
    Ok(tx.execute_raw(statement).await?.rows_affected())
}

/// Runs a query for all of its rows.
pub(crate) async fn all(
    tx: &DatabaseTransaction,
    sql: &str,
    values: Vec<Value>,
) -> Result<Vec<QueryResult>, StoreError> {
    let statement = Statement::from_sql_and_values(tx.get_database_backend(), sql, values);
    Ok(tx.query_all_raw(statement).await?)
}

/// Runs a query for its first row.
pub(crate) async fn one(
    tx: &DatabaseTransaction,
    sql: &str,
    values: Vec<Value>,
) -> Result<Option<QueryResult>, StoreError> {
    let statement = Statement::from_sql_and_values(tx.get_database_backend(), sql, values);
    Ok(tx.query_one_raw(statement).await?)
}

/// A column of a row, by its place.
pub(crate) fn column<T: TryGetable>(row: &QueryResult, at: usize) -> Result<T, StoreError> {
    Ok(row.try_get_by_index(at)?)
}

/// A column of JSON; `id` of `table` is at column 0.
pub(crate) fn record<T: DeserializeOwned>(row: &QueryResult, at: usize, table: &'static str) -> Result<T, StoreError> {
    let text: String = column(row, at)?;
    serde_json::from_str(&text).map_err(|e| decode(row, table, e))
}

/// A row that says what no record can.
pub(crate) fn decode(row: &QueryResult, table: &'static str, why: impl ToString) -> StoreError {
    let id = row.try_get_by_index::<String>(0).unwrap_or_default();
    StoreError::Decode { table, id, why: why.to_string() }
}

/// A number of ours as the databases' signed one.
pub(crate) fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A number of the databases as ours.
pub(crate) fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// `$from, $from+1, ...`: `count` parameters.
pub(crate) fn parameters(from: usize, count: usize) -> String {
    let each: Vec<String> = (from..from + count).map(|n| format!("${n}")).collect();
    each.join(", ")
}
