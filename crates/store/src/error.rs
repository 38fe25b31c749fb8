//! Why the database could not be used.

use std::path::PathBuf;

use sea_orm::DbErr;
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
        match sqlite_code(&text).map(|code| code & 0xff) {
            Some(8) => StoreError::ReadOnly(text),
            Some(11 | 26) => StoreError::Corrupt { path: PathBuf::new(), detail: text },
            Some(13) => StoreError::DiskFull,
            Some(14) => StoreError::ReadOnly(text),
            Some(19) if text.contains("UNIQUE") || text.contains("PRIMARY KEY") => {
                StoreError::Unique { what: unique_of(&text) }
            }
            _ => StoreError::Unavailable(text),
        }
    }
}

/// sqlx writes `(code: N)`.
fn sqlite_code(text: &str) -> Option<u32> {
    let rest = text.split_once("(code: ")?.1;
    rest.split_once(')')?.0.parse().ok()
}

/// SQLite writes `UNIQUE constraint failed: vms.project_id, vms.name`.
fn unique_of(text: &str) -> String {
    text.rsplit_once("failed: ").map_or(text, |(_, columns)| columns).to_owned()
}
