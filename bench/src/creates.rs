//! Durable creates on the simulator, against a loop by hand that commits the same rows.
//!
//! The rows are what a run of the daemon has left in its database: every VM with its operations and
//! events. The loop writes each of them once, from memory, on one raw connection with prepared
//! statements and the daemon's schema and pragmas, in transactions of as many VMs as clients waited:
//! the largest batch that the daemon could have made.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use roost_store::Store;
use roost_testkit::sim;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sea_orm::sqlx::{self, ConnectOptions, Connection, Row as _, TypeInfo, ValueRef};

use crate::daemon::Daemon;
use crate::host;
use crate::report::{Bar, Row};

/// Connections that many clients share.
const CONNECTIONS: usize = 8;

/// Where each row comes from and goes to; the VM that it belongs to comes first.
const TABLES: [(&str, &str); 3] = [
    ("SELECT id, * FROM vms", "INSERT INTO vms VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"),
    ("SELECT vm_id, * FROM operations", "INSERT INTO operations VALUES (?,?,?,?,?,?,?,?)"),
    ("SELECT vm_id, * FROM events WHERE vm_id IS NOT NULL", "INSERT INTO events VALUES (?,?,?,?,?,?,?)"),
];

#[derive(Debug)]
enum Cell {
    Null,
    Integer(i64),
    Text(String),
}

/// The rows of one VM: the table's index and the cells.
type Rows = Vec<(usize, Vec<Cell>)>;

/// Creates per second by so many clients; `floor` is a bar of its own where there is one.
pub(crate) async fn durable(pairs: usize, clients: usize, creates: usize, floor: Option<f64>) -> Result<Vec<Row>> {
    let (mut found, mut syncs) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        let mut daemon = Daemon::start(&["backend=sim", "sim.hosted=false"])?;
        syncs.push(host::fdatasync_p50_ms(daemon.dir(), 50)?);
        let ours = through_roost(&daemon, clients, creates).await?;
        daemon.stop()?;
        let rows = rows_of(&daemon.state_dir().join("state.db")).await?;
        if rows.len() != creates {
            bail!("{creates} VMs were acknowledged, {} are on record", rows.len());
        }
        let hand = by_hand(daemon.dir(), &rows, clients).await?;
        found.push((ours, hand));
    }
    let sync = crate::stats::median(&syncs);
    let what = format!("durable creates on sim, {clients} client(s) (fdatasync p50 {sync:.2} ms)");
    let mut rows = vec![Row::pairs(what, "/s", &found, Bar::AtLeast(0.5))];
    if let Some(floor) = floor {
        let ours: Vec<f64> = found.iter().map(|p| p.0).collect();
        rows.push(Row::figure(format!("the same, {clients} clients"), "/s", &ours, Bar::AtLeast(floor)));
    }
    Ok(rows)
}

async fn through_roost(daemon: &Daemon, clients: usize, creates: usize) -> Result<f64> {
    let connections: Vec<_> = (0..clients.min(CONNECTIONS)).map(|_| daemon.client()).collect();
    for connection in &connections {
        connection.version().await?;
    }
    let next = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|n| {
            let (client, next) = (connections[n % connections.len()].clone(), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= creates {
                        return anyhow::Ok(());
                    }
                    client.create_vm(sim(&format!("vm-{n}"))).await?;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(creates as f64 / begun.elapsed().as_secs_f64())
}

async fn by_hand(dir: &Path, rows: &[Rows], batch: usize) -> Result<f64> {
    let path = dir.join("by-hand.db");
    Store::open(&path).await?.close().await;
    let mut db = raw(&path).await?;
    let begun = Instant::now();
    for vms in rows.chunks(batch) {
        let mut tx = db.begin().await?;
        for (table, cells) in vms.iter().flatten() {
            let mut insert = sqlx::query(TABLES[*table].1);
            for cell in cells {
                insert = match cell {
                    Cell::Null => insert.bind(None::<i64>),
                    Cell::Integer(value) => insert.bind(*value),
                    Cell::Text(text) => insert.bind(text.as_str()),
                };
            }
            insert.execute(&mut *tx).await?;
        }
        tx.commit().await?;
    }
    let took = begun.elapsed();
    db.close().await?;
    Ok(rows.len() as f64 / took.as_secs_f64())
}

/// What a daemon has left, VM by VM.
async fn rows_of(path: &Path) -> Result<Vec<Rows>> {
    let mut db = raw(path).await?;
    let mut vms: BTreeMap<String, Rows> = BTreeMap::new();
    for (table, (select, _)) in TABLES.into_iter().enumerate() {
        for row in sqlx::query(select).fetch_all(&mut db).await? {
            let cells = (1..row.len()).map(|column| cell(&row, column)).collect::<Result<Vec<_>>>()?;
            vms.entry(row.try_get(0)?).or_default().push((table, cells));
        }
    }
    db.close().await?;
    Ok(vms.into_values().collect())
}

fn cell(row: &sqlx::sqlite::SqliteRow, column: usize) -> Result<Cell> {
    let value = row.try_get_raw(column)?;
    if value.is_null() {
        return Ok(Cell::Null);
    }
    match value.type_info().name() {
        "TEXT" => Ok(Cell::Text(row.try_get_unchecked(column)?)),
        "INTEGER" | "BOOLEAN" => Ok(Cell::Integer(row.try_get_unchecked(column)?)),
        other => bail!("a column is of type {other}"),
    }
}

async fn raw(path: &Path) -> Result<SqliteConnection> {
    let options =
        SqliteConnectOptions::new().filename(path).pragma("journal_mode", "WAL").pragma("synchronous", "FULL");
    let options = options.pragma("foreign_keys", "ON").disable_statement_logging();
    options.connect().await.with_context(|| format!("cannot open {}", path.display()))
}
