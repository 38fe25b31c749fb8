//! Why the database could not be used.

use std::path::PathBuf;

use sea_orm::{DbErr, RuntimeErr};
use thiserror::Error;

/// Why the database could not be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StoreError {
    /// The file is not a database, or a damaged one.
    #[error("the database {} is damaged: {detail}; restore a backup, or move it away to begin anew", .path.display())]
    Corrupt { path: PathBuf, detail: String },
    /// A newer program has written it.
    #[error(
        "the database has schema {found}, this program knows {known}: use the newer program, or restore the backup that it made"
    )]
    NewerSchema { found: String, known: u32 },
    /// There is no room left.
    #[error("the disk of the database is full")]
    DiskFull,
    /// It cannot be written.
    #[error("the database cannot be written: {0}")]
    ReadOnly(String),
    /// Somebody else changed the row in between.
    #[error("{what} was changed in between")]
    Conflict { what: String },
    /// A row with this key exists.
    #[error("{what} exists already")]
    Unique { what: String },
    /// A row says what no record can.
    #[error("row {id} of table {table} cannot be read: {why}")]
    Decode { table: &'static str, id: String, why: String },
    /// It does not answer.
    #[error("the database does not answer: {0}")]
    Unavailable(String),
}

impl StoreError {
    /// Whether trying again can help without anybody mending anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, StoreError::Conflict { .. } | StoreError::Unavailable(_) | StoreError::DiskFull)
    }

    /// Names the file of a damaged database.
    pub(crate) fn in_file(self, path: &std::path::Path) -> Self {
        match self {
            StoreError::Corrupt { detail, .. } => StoreError::Corrupt { path: path.to_owned(), detail },
            other => other,
        }
    }
}

impl From<DbErr> for StoreError {
    fn from(error: DbErr) -> Self {
        let text = error.to_string();
        // The primary result code of SQLite is the low byte (https://sqlite.org/rescode.html).
        match sqlite_code(&error).map(|code| code & 0xff) {
            Some(8) => StoreError::ReadOnly(text),
            Some(11 | 26) => StoreError::Corrupt { path: PathBuf::new(), detail: text },
            Some(13) => StoreError::DiskFull,
            Some(14) => StoreError::ReadOnly(text),
            Some(19) if text.contains("UNIQUE") || text.contains("PRIMARY KEY") => {
                StoreError::Unique { what: unique_of(&text) }
            }
            Some(19) if text.contains("FOREIGN KEY") => {
                StoreError::Conflict { what: "what a row belongs to".to_owned() }
            }
            _ => StoreError::Unavailable(text),
        }
    }
}

/// Whether a statement that failed like this leaves its transaction as it was before it. Others may
/// have rolled all of it back (https://sqlite.org/lang_transaction.html, 3).
pub(crate) fn leaves_the_transaction(error: &DbErr) -> bool {
    matches!(sqlite_code(error).map(|code| code & 0xff), Some(1 | 19 | 20 | 25))
}

fn sqlite_code(error: &DbErr) -> Option<u32> {
    let (DbErr::Conn(RuntimeErr::SqlxError(e))
    | DbErr::Exec(RuntimeErr::SqlxError(e))
    | DbErr::Query(RuntimeErr::SqlxError(e))) = error
    else {
        return None;
    };
    e.as_database_error()?.code()?.parse().ok()
}

/// SQLite writes `UNIQUE constraint failed: vms.project_id, vms.name`.
fn unique_of(text: &str) -> String {
    text.rsplit_once("failed: ").map_or(text, |(_, columns)| columns).to_owned()
}
