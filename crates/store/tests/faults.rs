//! Disks that are full or read-only, files that are damaged or somebody else's, and odd paths.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use fixture::{create, insert_all, vm, vm_id};
use futures::future::join_all;
use roost_model::Vm;
use roost_store::{SCHEMA_VERSION, Store, StoreError};
use sea_orm::sqlx::sqlite::SqliteConnectOptions;
use sea_orm::sqlx::{self, ConnectOptions, Connection};
use tempfile::TempDir;

/// Where the child in a mount namespace works; what makes this program that child.
const CHILD: &str = "ROOST_STORE_TEST_FAULTS";

fn temp() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    (dir, path)
}

async fn stored(store: &Store) -> Vec<u64> {
    let vms: Result<Vec<Vm>, StoreError> = store.read(|tx| Box::pin(async move { tx.vms().all().await })).await;
    vms.unwrap().iter().map(|vm| (0..).find(|n| vm_id(*n) == vm.id).expect("one of ours")).collect()
}

/// Makes a database of `vms` VMs and closes it.
async fn made(path: &Path, vms: u64) {
    let store = Store::open(path).await.unwrap();
    insert_all(&store, (0..vms).map(vm).collect()).await;
    store.close().await;
}

/// Runs an ignored test of this file as root of a mount namespace of its own, in `dir`; `false` with a
/// printed reason where that is not permitted.
fn in_a_namespace(test: &str, dir: &Path) -> bool {
    let root = ["-m", "--"].as_slice();
    let user = ["-r", "-m", "--"].as_slice();
    let permitted =
        |how: &&[&str]| Command::new("unshare").args(*how).arg("true").output().is_ok_and(|o| o.status.success());
    let Some(how) = [root, user].into_iter().find(permitted) else {
        eprintln!("skipped: no mount namespace can be made here (unshare -m, unshare -rm)");
        return false;
    };
    let ran = Command::new("unshare")
        .args(how)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, dir)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
    true
}

fn mount(arguments: &[&OsStr]) {
    let mounted = Command::new("mount").args(arguments).output().unwrap();
    assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
}

/// Takes all the room that is left.
fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("filler");
    let mut file = File::create(&path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    path
}

#[test]
fn a_full_disk_fails_what_it_must_and_nothing_later() {
    let dir = tempfile::tempdir().unwrap();
    in_a_namespace("full_disk", dir.path());
}

#[tokio::test]
#[ignore = "run by the test above"]
async fn full_disk() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    mount(
        &["-t", "tmpfs", "-o", "size=2m", "tmpfs"]
            .map(OsStr::new)
            .into_iter()
            .chain([dir.as_os_str()])
            .collect::<Vec<_>>(),
    );
    let path = dir.join("state.db");
    let store = Store::open(&path).await.unwrap();
    let mut acknowledged: Vec<u64> = Vec::new();
    let mut next = 0..;
    for round in 0..4 {
        let filler = fill(&dir);
        // Alone and many at a time. The log has room of its own, which is used up first.
        let mut refused = 0;
        for width in [1, 1, 1, 16].into_iter().cycle().take(400) {
            let some: Vec<u64> = next.by_ref().take(width).collect();
            for (n, result) in some.iter().zip(join_all(some.iter().map(|n| create(&store, *n))).await) {
                match result {
                    Ok(()) => acknowledged.push(*n),
                    Err(StoreError::DiskFull) => refused += 1,
                    Err(other) => panic!("round {round}: {other:?}"),
                }
            }
            if refused > 60 {
                break;
            }
        }
        assert!(refused > 60, "round {round}: {refused}");
        assert_eq!(stored(&store).await, acknowledged, "round {round}: what is there can still be read");
        let elsewhere = Store::open(&dir.join("new.db")).await.expect_err("there is no room for another");
        assert_eq!(elsewhere, StoreError::DiskFull);
        fs::remove_file(dir.join("new.db")).unwrap();
        // A closure that goes on after the disk was full, when SQLite has rolled its transaction back.
        let stubborn: Result<(), StoreError> = store
            .write(|tx| {
                Box::pin(async move {
                    let mut large = vm(2_000_000);
                    large.spec.metadata = (0..800).map(|n| (format!("{n:04}"), "x".repeat(4096))).collect();
                    assert_eq!(tx.vms().insert(&large).await, Err(StoreError::DiskFull));
                    let again = tx.vms().insert(&vm(2_000_001)).await;
                    assert_eq!(again, Err(StoreError::DiskFull), "it would be on its own");
                    Ok(())
                })
            })
            .await;
        assert_eq!(stubborn, Err(StoreError::DiskFull));
        fs::remove_file(filler).unwrap();
        // There is room again. A refusal must find a transaction to be taken back from, not one that is
        // still counted as open; what is acknowledged after it must be durable.
        let refusal: Result<(), StoreError> = store
            .write(|tx| {
                Box::pin(async move {
                    tx.vms().insert(&vm(1_000_000)).await?;
                    Err(StoreError::Conflict { what: "told to".to_owned() })
                })
            })
            .await;
        assert_eq!(refusal, Err(StoreError::Conflict { what: "told to".to_owned() }));
        for n in next.by_ref().take(3) {
            create(&store, n).await.unwrap();
            acknowledged.push(n);
        }
        assert_eq!(stored(&store).await, acknowledged, "round {round}: there is room again");
        // What another process would find if this one died now.
        let copy = dir.join(format!("copy-{round}"));
        fs::create_dir(&copy).unwrap();
        for file in ["state.db", "state.db-wal"] {
            fs::copy(dir.join(file), copy.join(file)).unwrap();
        }
        let found = Store::open(&copy.join("state.db")).await.unwrap();
        assert_eq!(stored(&found).await, acknowledged, "round {round}: it is in the file");
        found.close().await;
        fs::remove_dir_all(copy).unwrap();
    }
    store.close().await;
    let store = Store::open(&path).await.unwrap();
    assert_eq!(stored(&store).await, acknowledged);
}

#[test]
fn a_read_only_directory_is_said_to_be_one() {
    let dir = tempfile::tempdir().unwrap();
    in_a_namespace("read_only", dir.path());
}

#[tokio::test]
#[ignore = "run by the test above"]
async fn read_only() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let path = dir.join("state.db");
    made(&path, 1).await;
    mount(&["--bind".as_ref(), dir.as_os_str(), dir.as_os_str()]);
    mount(&["-o".as_ref(), "remount,bind,ro".as_ref(), dir.as_os_str()]);
    for name in ["state.db", "new.db"] {
        let refused = Store::open(&dir.join(name)).await.expect_err("nothing can be written");
        assert!(matches!(&refused, StoreError::ReadOnly(why) if !why.is_empty()), "{name}: {refused:?}");
        assert!(!refused.is_transient());
    }
}

#[tokio::test]
async fn the_files_are_their_owners_alone() {
    let (dir, path) = temp();
    let store = Store::open(&path).await.unwrap();
    create(&store, 1).await.unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
        seen += 1;
    }
    assert_eq!(seen, 3, "the database, its log and the log's index");
}

#[tokio::test]
async fn what_is_no_database_is_left_alone() {
    for content in ["x", "not a database at all, but long enough to have a header of its own ".repeat(64).as_str()] {
        let (_dir, path) = temp();
        fs::write(&path, content).unwrap();
        let refused = Store::open(&path).await.expect_err("it is none");
        assert!(matches!(&refused, StoreError::Corrupt { path: p, .. } if *p == path), "{refused:?}");
        assert!(refused.to_string().contains(path.to_str().unwrap()), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    // An empty file is what an interrupted first start leaves.
    let (_dir, path) = temp();
    fs::write(&path, "").unwrap();
    made(&path, 1).await;
}

#[tokio::test]
async fn damage_is_found_at_the_start() {
    let (_dir, path) = temp();
    made(&path, 500).await;
    let whole = fs::read(&path).unwrap();
    assert_eq!(whole.len() % 4096, 0);
    let pages = whole.len() as u64 / 4096;
    assert!(pages > 50);
    for page in [0, 2, pages / 2, pages - 1] {
        fs::write(&path, &whole).unwrap();
        // Not the very first bytes of page 0: those say that it is a database.
        let at = page * 4096 + if page == 0 { 100 } else { 0 };
        File::options().write(true).open(&path).unwrap().write_all_at(&[0xa5; 64], at).unwrap();
        let refused = Store::open(&path).await.expect_err("it is damaged");
        assert!(matches!(&refused, StoreError::Corrupt { path: p, .. } if *p == path), "page {page}: {refused:?}");
    }
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let refused = Store::open(&path).await.expect_err("it is cut short");
    assert!(matches!(refused, StoreError::Corrupt { .. }), "{refused:?}");
    fs::write(&path, &whole).unwrap();
    let store = Store::open(&path).await.unwrap();
    assert_eq!(stored(&store).await.len(), 500);
}

#[tokio::test]
async fn damage_under_a_running_store_names_the_file() {
    let (_dir, path) = temp();
    made(&path, 500).await;
    let store = Store::open(&path).await.unwrap();
    let size = fs::metadata(&path).unwrap().len();
    let garbage = vec![0xa5; size as usize - 40960];
    File::options().write(true).open(&path).unwrap().write_all_at(&garbage, 40960).unwrap();
    let read: Result<Vec<Vm>, StoreError> = store.read(|tx| Box::pin(async move { tx.vms().all().await })).await;
    let refused = read.expect_err("it is damaged");
    assert!(matches!(&refused, StoreError::Corrupt { path: p, .. } if *p == path), "{refused:?}");
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let (dir, path) = temp();
    made(&path, 1).await;
    let mut db = SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
    let newer = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m9999_from_the_future', 0)";
    sqlx::raw_sql(newer).execute(&mut db).await.unwrap();
    db.close().await.unwrap();
    let refused = Store::open(&path).await.expect_err("it is newer");
    assert_eq!(refused, StoreError::NewerSchema { found: "m9999_from_the_future".to_owned(), known: SCHEMA_VERSION });
    let others: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!others.iter().any(|name| name.to_string_lossy().contains("before")), "{others:?}");
}

#[tokio::test]
async fn a_path_is_a_path() {
    let dir = tempfile::tempdir().unwrap();
    for name in
        ["a b.db", "a?mode=ro", "a#b", "100%", "%41", "file:x", ":memory:", "é 🦀.db", "a'b\"c", "-x", "&vfs=none"]
    {
        let path = dir.path().join(name);
        made(&path, 1).await;
        assert!(path.metadata().unwrap().len() > 0, "{name}");
        let store = Store::open(&path).await.unwrap();
        assert_eq!(stored(&store).await, [0], "{name}");
        store.close().await;
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 11, "and nothing else was made");
    let odd = dir.path().join(OsStr::from_bytes(b"not\xffunicode"));
    let refused = Store::open(&odd).await.expect_err("SQLite takes UTF-8");
    assert!(matches!(&refused, StoreError::Unavailable(why) if why.contains("Unicode")), "{refused:?}");
    assert!(!odd.exists());
    let nowhere = Store::open(&dir.path().join("no/such/dir.db")).await.expect_err("there is no directory");
    assert!(matches!(nowhere, StoreError::ReadOnly(_)), "{nowhere:?}");
    let directory = Store::open(dir.path()).await.expect_err("it is a directory");
    assert!(matches!(directory, StoreError::ReadOnly(_)), "{directory:?}");
}
