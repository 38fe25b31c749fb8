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

/// The smallest page of SQLite (https://sqlite.org/fileformat2.html, 1.3.2), in bytes.
const SMALLEST: u64 = 512;

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
pub(crate) async fn close(opened: &Opened) {
    let Opened { writer, readers, .. } = opened;
    let readers_closed = readers.close_by_ref().await;
    let written_back = writer.execute_unprepared("PRAGMA wal_checkpoint(TRUNCATE)").await;
    let writer_closed = writer.close_by_ref().await;
    if let Err(error) = readers_closed.and(written_back.map(|_| ())).and(writer_closed) {
        tracing::warn!(error = %error, "the database's log could not be written back; the next start does it");
    }
}

async fn open_with<M: MigratorTrait>(path: &Path) -> Result<Opened, StoreError> {
    if path.to_str().is_none() {
        return Err(StoreError::Unavailable(format!("{} is no Unicode, as SQLite wants its paths", path.display())));
    }
    let size = path.metadata().map_or(0, |m| m.len());
    if (1..SMALLEST).contains(&size) {
        // SQLite would take it for an empty one and write over it.
        return Err(StoreError::Corrupt { path: path.to_owned(), detail: format!("{size} bytes are no database") });
    }
    let existed = size > 0;
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
    let path = path.to_owned();
    // The path goes in as a path, not as a part of the URL.
    let mut options = ConnectOptions::new("sqlite://state.db?mode=rwc");
    options
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(Duration::from_secs(30))
        // The file does not hang up; a connection is checked when it comes back.
        .test_before_acquire(false)
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use sea_orm_migration::prelude::*;

    use super::*;

    /// What a later program brings.
    struct Later;

    struct Colour;

    impl MigrationName for Colour {
        fn name(&self) -> &str {
            "m0099_colour"
        }
    }

    #[async_trait::async_trait]
    impl MigrationTrait for Colour {
        async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
            manager.get_connection().execute_unprepared("ALTER TABLE vms ADD COLUMN colour TEXT").await?;
            Ok(())
        }
    }

    #[async_trait::async_trait]
    impl MigratorTrait for Later {
        fn migrations() -> Vec<Box<dyn MigrationTrait>> {
            let mut all = Migrator::migrations();
            all.push(Box::new(Colour));
            all
        }
    }

    async fn epoch(opened: &Opened) -> i64 {
        let query = Statement::from_string(sea_orm::DbBackend::Sqlite, "SELECT epoch FROM nodes");
        opened.readers.query_one_raw(query).await.unwrap().unwrap().try_get_by_index(0).unwrap()
    }

    #[tokio::test]
    async fn an_older_schema_is_backed_up_once_and_migrated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it's state.db");
        let opened = open(&path).await.unwrap();
        opened.writer.execute_unprepared("INSERT INTO nodes VALUES ('n', 'p', 7, 0)").await.unwrap();
        close(&opened).await;
        let backup = dir.path().join("it's state.db.before-m0099_colour");
        let unfinished = dir.path().join("it's state.db.before-m0099_colour.unfinished");
        // What a copy left that broke off is no backup.
        fs::write(&unfinished, "half of it").unwrap();

        let opened = open_with::<Later>(&path).await.unwrap();
        assert_eq!(epoch(&opened).await, 7);
        opened.writer.execute_unprepared("UPDATE nodes SET epoch = 8").await.unwrap();
        opened.writer.execute_unprepared("SELECT colour FROM vms").await.unwrap();
        close(&opened).await;
        assert!(!unfinished.exists());
        assert_eq!(backup.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let refused = open(&path).await.expect_err("it is newer now");
        assert_eq!(refused, StoreError::NewerSchema { found: "m0099_colour".to_owned(), known: SCHEMA_VERSION });

        // Opened again, nothing is left to do; the backup stays what it was, and this program reads it.
        close(&open_with::<Later>(&path).await.unwrap()).await;
        let restored = open(&backup).await.unwrap();
        assert_eq!(epoch(&restored).await, 7);
        close(&restored).await;
    }

    #[tokio::test]
    async fn a_backup_without_room_stops_the_migration() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        close(&open(&path).await.unwrap()).await;
        // A directory where the copy is to be.
        fs::create_dir(dir.path().join("state.db.before-m0099_colour.unfinished")).unwrap();
        open_with::<Later>(&path).await.expect_err("no backup, no migration");
        close(&open(&path).await.expect("it is as it was")).await;
    }
}
