//! What is SQLite's alone: opening a file, its settings, backing it up.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::Connection;
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, Statement, Value};
use sea_orm_migration::MigratorTrait;

use crate::error::StoreError;
use crate::migration::{Migrator, SCHEMA_VERSION};

/// Readers at once.
const READERS: u32 = 4;

/// The one writer and the readers of an opened database.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    pub(crate) writer: DatabaseConnection,
    pub(crate) readers: DatabaseConnection,
    pub(crate) path: Arc<Path>,
}

/// Opens, checks, backs up where the schema is older, and migrates.
pub(crate) async fn open(path: &Path) -> Result<Opened, StoreError> {
    open_with::<Migrator>(path).await.map_err(|e| e.in_file(path))
}

/// Writes what is in the log back into the file, and closes it.
pub(crate) async fn close(opened: Opened) {
    let Opened { writer, readers, .. } = opened;
    let readers_closed = readers.close().await;
    let written_back = writer.execute_unprepared("PRAGMA wal_checkpoint(TRUNCATE)").await;
    let writer_closed = writer.close().await;
    if let Err(error) = readers_closed.and(written_back.map(|_| ())).and(writer_closed) {
        tracing::warn!(error = %error, "the database's log could not be written back; the next start does it");
    }
}

async fn open_with<M: MigratorTrait>(path: &Path) -> Result<Opened, StoreError> {
    let existed = path.metadata().is_ok_and(|m| m.len() > 0);
    private(path)?;
    let writer = connect(path, 1, false).await?;
    if existed {
        check(&writer).await?;
    }
    migrate::<M>(&writer, path, existed).await?;
    let readers = connect(path, READERS, true).await?;
    Ok(Opened { writer, readers, path: path.into() })
}

/// Makes the file where there is none, for its owner alone: SQLite gives the log and its index the
/// mode of the database.
fn private(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(of_file(path, &e)),
    }
}

async fn connect(path: &Path, connections: u32, readers: bool) -> Result<DatabaseConnection, StoreError> {
    if path.to_str().is_none() {
        return Err(StoreError::Unavailable(format!("{} is no Unicode, as SQLite wants its paths", path.display())));
    }
    let path = path.to_owned();
    // The path goes in as a path, not as a part of the URL.
    let mut options = ConnectOptions::new("sqlite://state.db?mode=rwc");
    options
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(Duration::from_secs(30))
        .sqlx_logging(false)
        .map_sqlx_sqlite_opts(move |options| {
            // Said one by one: what a library's default is today is no promise.
            options
                .filename(&path)
                .pragma("journal_mode", "WAL")
                .pragma("synchronous", "FULL")
                .pragma("foreign_keys", "ON")
                .pragma("busy_timeout", "10000")
                .pragma("query_only", if readers { "ON" } else { "OFF" })
        })
        .map_sqlx_sqlite_pool_opts(|options| {
            options.after_release(|connection, _| {
                Box::pin(async move {
                    if !connection.is_in_transaction() {
                        return Ok(true);
                    }
                    // What SQLite has rolled back by itself (the disk is full), sqlx still counts as
                    // open; the next transaction would be a savepoint in it, and never be committed.
                    connection.ping().await?;
                    Ok(!connection.is_in_transaction())
                })
            })
        });
    Ok(Database::connect(options).await?)
}

async fn check(db: &DatabaseConnection) -> Result<(), StoreError> {
    let found = db.query_one_raw(Statement::from_string(db.get_database_backend(), "PRAGMA quick_check(1)")).await?;
    let verdict: String = match found {
        Some(row) => row.try_get_by_index(0)?,
        None => "no answer".to_owned(),
    };
    if verdict == "ok" { Ok(()) } else { Err(StoreError::Corrupt { path: PathBuf::new(), detail: verdict }) }
}

async fn migrate<M: MigratorTrait>(db: &DatabaseConnection, path: &Path, existed: bool) -> Result<(), StoreError> {
    let known: Vec<String> = M::migrations().iter().map(|m| m.name().to_owned()).collect();
    let applied = applied(db).await?;
    if let Some(newer) = applied.iter().find(|name| !known.contains(name)) {
        return Err(StoreError::NewerSchema { found: newer.clone(), known: SCHEMA_VERSION });
    }
    if applied.len() == known.len() {
        return Ok(());
    }
    if existed && !applied.is_empty() {
        back_up(db, path, &known[applied.len()]).await?;
    }
    M::up(db, None).await?;
    Ok(())
}

/// Copies the database to a file beside it, unless that was done before. A copy that broke off is
/// never taken for one.
async fn back_up(db: &DatabaseConnection, path: &Path, before: &str) -> Result<(), StoreError> {
    let backup = path.with_extension(format!("db.before-{before}"));
    if backup.exists() {
        return Ok(());
    }
    let unfinished = path.with_extension(format!("db.before-{before}.unfinished"));
    let lost = |e: io::Error| of_file(&unfinished, &e);
    match fs::remove_file(&unfinished) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(lost(e)),
        _ => private(&unfinished)?,
    }
    let target: Value = unfinished.to_string_lossy().into_owned().into();
    db.execute_raw(Statement::from_sql_and_values(db.get_database_backend(), "VACUUM INTO $1", [target])).await?;
    OpenOptions::new().write(true).open(&unfinished).and_then(|file| file.sync_all()).map_err(lost)?;
    fs::rename(&unfinished, &backup).map_err(lost)?;
    tracing::info!(backup = %backup.display(), "the database was backed up before its schema changes");
    Ok(())
}

async fn applied(db: &DatabaseConnection) -> Result<Vec<String>, StoreError> {
    let query = |sql: &str| Statement::from_string(db.get_database_backend(), sql);
    let table = "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'seaql_migrations'";
    if db.query_one_raw(query(table)).await?.is_none() {
        return Ok(Vec::new());
    }
    let rows = db.query_all_raw(query("SELECT version FROM seaql_migrations ORDER BY version")).await?;
    rows.iter().map(|row| Ok(row.try_get_by_index::<String>(0)?)).collect()
}

/// What a failure to make a file means.
fn of_file(path: &Path, error: &io::Error) -> StoreError {
    let text = format!("{}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotFound => {
            StoreError::ReadOnly(text)
        }
        _ => StoreError::Unavailable(text),
    }
}
