//! What durable writes and the daemon's reads cost: `cargo bench -p roost-store`.
//!
//! Creates (a VM, its operation and its event: one transaction per client) are compared with a loop
//! written by hand that commits the same rows, encoded beforehand, in batches of as many as there are
//! clients, on one raw connection with prepared statements. Pairs are interleaved, because disks differ from
//! minute to minute; figures are medians.

#[path = "../tests/fixture/mod.rs"]
mod fixture;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use roost_model::Vm;
use roost_store::{Store, StoreError, VmFilter};
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sea_orm::sqlx::{self, ConnectOptions, Connection};
use tempfile::TempDir;

const PAIRS: usize = 9;
const MANY: u64 = 10_000;

#[tokio::main]
async fn main() {
    // `cargo test --benches` only asks whether this runs.
    let trial = std::env::args().any(|a| a == "--test");
    let (pairs, alone, together, many) = if trial { (1, 10, 64, 200) } else { (PAIRS, 300, 6_400, MANY) };
    writes(pairs, 1, alone).await;
    writes(pairs, 64, together).await;
    reads(many, if trial { 2 } else { 15 }).await;
}

/// `clients` clients create `creates` VMs, against the loop by hand.
async fn writes(pairs: usize, clients: u64, creates: u64) {
    let (mut ours, mut by_hand, mut ratios, mut syncs) = (vec![], vec![], vec![], vec![]);
    for _ in 0..pairs {
        let dir = tempfile::tempdir().expect("a temporary directory");
        syncs.push(fdatasync_p50(dir.path()));
        let took = through_the_store(&dir, clients, creates).await;
        let rate = creates as f64 / took.as_secs_f64();
        let hand = creates as f64 / with_a_loop(&dir, clients, creates).await.as_secs_f64();
        ours.push(rate);
        by_hand.push(hand);
        ratios.push(rate / hand);
    }
    let (low, high) = (least(&ratios), -least(&ratios.iter().map(|r| -r).collect::<Vec<_>>()));
    println!(
        "creates, {clients:>2} client(s): {:>7.0}/s, by hand {:>7.0}/s: {:.2}x ({low:.2}-{high:.2}); fdatasync p50 {:.2} ms",
        median(&mut ours),
        median(&mut by_hand),
        median(&mut ratios),
        median(&mut syncs),
    );
}

async fn through_the_store(dir: &TempDir, clients: u64, creates: u64) -> Duration {
    let store = Store::open(&dir.path().join("state.db")).await.expect("a new database");
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let clients: Vec<_> = (0..clients)
        .map(|_| {
            let (store, next) = (store.clone(), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= creates {
                        return;
                    }
                    fixture::create(&store, n).await.expect("a create");
                }
            })
        })
        .collect();
    for client in clients {
        client.await.expect("a client");
    }
    let took = begun.elapsed();
    store.close().await;
    took
}

/// The same rows on one connection, with nothing around them.
async fn with_a_loop(dir: &TempDir, batch: u64, creates: u64) -> Duration {
    let path = dir.path().join("by-hand.db");
    Store::open(&path).await.expect("the same schema").close().await;
    let mut db = raw(&path).await;
    let rows: Vec<_> = (0..creates).map(rows_of).collect();
    let begun = Instant::now();
    for batch in rows.chunks(batch as usize) {
        let mut tx = db.begin().await.expect("a transaction");
        for row in batch {
            insert(&mut tx, row).await;
        }
        tx.commit().await.expect("a commit");
    }
    let took = begun.elapsed();
    db.close().await.expect("a close");
    took
}

struct Rows {
    n: u64,
    vm: Vm,
    id: String,
    vm_record: String,
    operation: String,
    operation_record: String,
    project: String,
    data: String,
}

fn rows_of(n: u64) -> Rows {
    let (vm, operation, event) = (fixture::vm(n), fixture::operation(n), fixture::event(n));
    Rows {
        n,
        id: vm.id.to_string(),
        project: vm.project.to_string(),
        vm_record: serde_json::to_string(&vm).expect("JSON"),
        operation: operation.id.to_string(),
        operation_record: serde_json::to_string(&operation).expect("JSON"),
        data: event.data.to_string(),
        vm,
    }
}

async fn insert(tx: &mut SqliteConnection, row: &Rows) {
    let at = fixture::NOW.unix_ms();
    sqlx::query(
        "INSERT INTO vms (id, project_id, name, backend, state, desired_power, deleted, machine, failed, expires_at, \
         resource_version, created_at, updated_at, record) VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14)",
    )
    .bind(&row.id)
    .bind(&row.project)
    .bind(row.vm.name.as_str())
    .bind(row.vm.backend.as_str())
    .bind(1)
    .bind("running")
    .bind(false)
    .bind("absent")
    .bind(false)
    .bind(None::<i64>)
    .bind(1)
    .bind(at)
    .bind(at)
    .bind(&row.vm_record)
    .execute(&mut *tx)
    .await
    .unwrap_or_else(|e| panic!("row {}: {e}", row.n));
    sqlx::query(
        "INSERT INTO operations (id, project_id, vm_id, kind, status, priority, finished_at, record) \
         VALUES ($1,$2,$3,$4,$5,$6,$7,$8)",
    )
    .bind(&row.operation)
    .bind(&row.project)
    .bind(&row.id)
    .bind("vm:create")
    .bind("pending")
    .bind("default")
    .bind(None::<i64>)
    .bind(&row.operation_record)
    .execute(&mut *tx)
    .await
    .unwrap_or_else(|e| panic!("row {}: {e}", row.n));
    sqlx::query(
        "INSERT INTO events (position, project_id, at, kind, vm_id, operation_id, data) VALUES ($1,$2,$3,$4,$5,$6,$7)",
    )
    .bind(row.n as i64 + 1)
    .bind(&row.project)
    .bind(at)
    .bind("vm.created")
    .bind(&row.id)
    .bind(&row.operation)
    .bind(&row.data)
    .execute(&mut *tx)
    .await
    .unwrap_or_else(|e| panic!("row {}: {e}", row.n));
}

async fn raw(path: &Path) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(path)
        .pragma("journal_mode", "WAL")
        .pragma("synchronous", "FULL")
        .pragma("foreign_keys", "ON")
        .disable_statement_logging()
        .connect()
        .await
        .expect("a connection")
}

async fn reads(many: u64, times: usize) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(&dir.path().join("state.db")).await.expect("a new database");
    fixture::insert_all(&store, (0..many).map(fixture::settled).collect()).await;
    let gets = 500;
    let mut one = vec![];
    for n in 0..gets {
        let id = fixture::vm_id(n * 7919 % many);
        let begun = Instant::now();
        let got: Option<Vm> = read(store.read(move |tx| Box::pin(async move { tx.vms().get(id).await }))).await;
        one.push(begun.elapsed());
        assert_eq!(got.map(|vm| vm.id), Some(id));
    }
    say(many, "get by ID", one);
    // One kind after the other: what hogs a core makes the next one wait for it.
    let (mut page, mut start, mut idle) = (vec![], vec![], vec![]);
    for i in 0..times as u64 * 10 {
        let after = fixture::vm_id(i * 613 % (many - 101));
        let begun = Instant::now();
        let got: Vec<Vm> = read(
            store.read(move |tx| Box::pin(async move { tx.vms().page(&VmFilter::default(), Some(after), 100).await })),
        )
        .await;
        page.push(begun.elapsed());
        assert_eq!(got.len(), 100);
    }
    for _ in 0..times * 10 {
        let begun = Instant::now();
        let unsettled = read(store.read(|tx| Box::pin(async move { tx.vms().unsettled(fixture::NOW).await }))).await;
        idle.push(begun.elapsed());
        assert!(unsettled.is_empty());
    }
    for _ in 0..times {
        let begun = Instant::now();
        let all = read(store.read(|tx| Box::pin(async move { tx.vms().all().await }))).await;
        start.push(begun.elapsed());
        assert_eq!(all.len() as u64, many);
    }
    say(many, "a page of 100", page);
    say(many, "all", start);
    say(many, "unsettled (every 5 s)", idle);
    store.close().await;
}

async fn read<T>(reading: impl Future<Output = Result<T, StoreError>>) -> T {
    reading.await.expect("a read")
}

fn say(many: u64, what: &str, took: Vec<Duration>) {
    let mut ms: Vec<f64> = took.iter().map(|t| t.as_secs_f64() * 1e3).collect();
    println!("{what}, of {many} settled VMs: {:.3} ms", median(&mut ms));
}

/// In milliseconds, of 4 KiB each on a file beside the database.
fn fdatasync_p50(dir: &Path) -> f64 {
    let file = File::create(dir.join("sync")).expect("a file");
    let page = [7; 4096];
    let mut took: Vec<f64> = (0..100)
        .map(|i| {
            file.write_all_at(&page, i % 8 * 4096).expect("a write");
            let begun = Instant::now();
            file.sync_data().expect("a sync");
            begun.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    median(&mut took)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}
