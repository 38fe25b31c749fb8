//! The little that table code needs on top of sea-orm: statements with `$n` parameters, which
//! SQLite and PostgreSQL read alike.

use sea_orm::{DbErr, QueryResult, Statement, TryGetable, Value};
use serde::de::DeserializeOwned;

use crate::error::StoreError;
use crate::tx::Tx;

/// Runs a statement; how many rows it touched.
pub(crate) async fn execute(tx: &Tx, sql: &str, values: Vec<Value>) -> Result<u64, StoreError> {
    tx.check()?;
    tx.changes();
    Ok(kept(tx, tx.execute(statement(tx, sql, values)).await)?.rows_affected())
}

/// Runs a statement that changes at most one row and returns something of it.
pub(crate) async fn changed(tx: &Tx, sql: &str, values: Vec<Value>) -> Result<Option<QueryResult>, StoreError> {
    tx.changes();
    one(tx, sql, values).await
}

/// Runs a query for all of its rows.
pub(crate) async fn all(tx: &Tx, sql: &str, values: Vec<Value>) -> Result<Vec<QueryResult>, StoreError> {
    tx.check()?;
    kept(tx, tx.query_all(statement(tx, sql, values)).await)
}

/// Runs a query for its first row.
pub(crate) async fn one(tx: &Tx, sql: &str, values: Vec<Value>) -> Result<Option<QueryResult>, StoreError> {
    tx.check()?;
    kept(tx, tx.query_one(statement(tx, sql, values)).await)
}

/// A column of a row, by its place.
pub(crate) fn column<T: TryGetable>(row: &QueryResult, at: usize, table: &'static str) -> Result<T, StoreError> {
    row.try_get_by_index(at).map_err(|e| decode(row, table, e))
}

/// A column that holds the text of a value; `id` of `table` is at column 0.
pub(crate) fn parsed<T>(row: &QueryResult, at: usize, table: &'static str) -> Result<T, StoreError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    column::<String>(row, at, table)?.parse().map_err(|e| decode(row, table, e))
}

/// A column of JSON; `id` of `table` is at column 0.
pub(crate) fn record<T: DeserializeOwned>(row: &QueryResult, at: usize, table: &'static str) -> Result<T, StoreError> {
    let text: String = column(row, at, table)?;
    serde_json::from_str(&text).map_err(|e| decode(row, table, e))
}

/// A row that says what no record can.
pub(crate) fn decode(row: &QueryResult, table: &'static str, why: impl ToString) -> StoreError {
    // Positions are numbers, everything else is found by a text.
    let number = || row.try_get_by_index::<i64>(0).map(|n| n.to_string());
    let id = row.try_get_by_index::<String>(0).or_else(|_| number()).unwrap_or_default();
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

fn statement(tx: &Tx, sql: &str, values: Vec<Value>) -> Statement {
    Statement::from_sql_and_values(tx.backend(), sql, values)
}

/// An answer of the database; an error that may have ended the transaction is remembered by it.
fn kept<T>(tx: &Tx, answer: Result<T, DbErr>) -> Result<T, StoreError> {
    answer.map_err(|error| tx.failed(error))
}
