//! What is SQLite's alone: opening a file, its settings, backing it up.

use std::path::Path;
use std::time::Duration;

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, Statement};
use sea_orm_migration::MigratorTrait;

use crate::error::StoreError;
use crate::migration::{Migrator, SCHEMA_VERSION};

/// Readers at once.
const READERS: u32 = 4;

/// The one writer and the readers of an opened database.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) writer: DatabaseConnection,
    pub(crate) readers: DatabaseConnection,
}

/// Opens, checks, backs up where the schema is older, and migrates.
pub(crate) async fn open(path: &Path) -> Result<Opened, StoreError> {
    let existed = path.metadata().is_ok_and(|m| m.len() > 0);
    let writer = connect(path, 1).await.map_err(|e| e.in_file(path))?;
    if existed {
        check(&writer, path).await?;
    }
    migrate(&writer, path, existed).await.map_err(|e| e.in_file(path))?;
    let readers = connect(path, READERS).await.map_err(|e| e.in_file(path))?;
    Ok(Opened { writer, readers })
}

/// Writes what is in the log back into the file.
pub(crate) async fn checkpoint(writer: &DatabaseConnection) -> Result<(), StoreError> {
    writer.execute_unprepared("PRAGMA wal_checkpoint(TRUNCATE)").await?;
    Ok(())
}

async fn connect(path: &Path, connections: u32) -> Result<DatabaseConnection, StoreError> {
    let text = path.to_str().ok_or_else(|| StoreError::Unavailable(format!("{} is no Unicode", path.display())))?;
    let mut options = ConnectOptions::new(format!("sqlite://{}?mode=rwc", escaped(text)));
    options
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(Duration::from_secs(30))
        .sqlx_logging(false)
        .map_sqlx_sqlite_opts(|options| {
            // Said one by one: what a library's default is today is no promise.
            options
                .pragma("journal_mode", "WAL")
                .pragma("synchronous", "FULL")
                .pragma("foreign_keys", "ON")
                .pragma("busy_timeout", "10000")
        });
    Ok(Database::connect(options).await?)
}

/// A path inside a URL.
fn escaped(path: &str) -> String {
    let mut url = String::with_capacity(path.len());
    for c in path.chars() {
        match c {
            '%' => url.push_str("%25"),
            '?' => url.push_str("%3F"),
            '#' => url.push_str("%23"),
            c => url.push(c),
        }
    }
    url
}

async fn check(db: &DatabaseConnection, path: &Path) -> Result<(), StoreError> {
    let found = db.query_one_raw(Statement::from_string(db.get_database_backend(), "PRAGMA quick_check(1)")).await;
    let verdict: String = match found.map_err(StoreError::from).map_err(|e| e.in_file(path))? {
        Some(row) => row.try_get_by_index(0)?,
        None => "no answer".to_owned(),
    };
    if verdict == "ok" { Ok(()) } else { Err(StoreError::Corrupt { path: path.to_owned(), detail: verdict }) }
}

async fn migrate(db: &DatabaseConnection, path: &Path, existed: bool) -> Result<(), StoreError> {
    let known: Vec<String> = Migrator::migrations().iter().map(|m| m.name().to_owned()).collect();
    let applied = applied(db).await?;
    if let Some(newer) = applied.iter().find(|name| !known.contains(name)) {
        return Err(StoreError::NewerSchema { found: newer.clone(), known: SCHEMA_VERSION });
    }
    if applied.len() == known.len() {
        return Ok(());
    }
    if existed && !applied.is_empty() {
        let backup = path.with_extension(format!("db.before-{}", known[applied.len()]));
        if !backup.exists() {
            let target = backup.to_string_lossy().replace('\'', "''");
            db.execute_unprepared(&format!("VACUUM INTO '{target}'")).await?;
            tracing::info!(backup = %backup.display(), "the database was backed up before its schema changes");
        }
    }
    Migrator::up(db, None).await?;
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
