//! What was acknowledged survives the death of the process.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fixture::{create, operation_id, vm_id};
use roost_store::{Store, StoreError};

/// Where the writing child keeps its database; what makes this program that child.
const CHILD: &str = "ROOST_STORE_TEST_KILL";
const CLIENTS: u64 = 8;
const DEATHS: u64 = 30;

/// Not a test: the process that is killed. Says on its output which creates were acknowledged.
#[test]
#[ignore = "run by the test below"]
fn child() {
    let Some(path) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(&path).await.unwrap();
        let first = next_free(&store).await;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let store = store.clone();
                tokio::spawn(async move {
                    for n in (first + client..).step_by(CLIENTS as usize) {
                        create(&store, n).await.unwrap();
                        // A line at once, so that a kill never cuts one in two.
                        std::io::stderr().write_all(format!("acknowledged {n}\n").as_bytes()).unwrap();
                    }
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
    });
}

async fn next_free(store: &Store) -> u64 {
    // IDs ascend with their numbers, which are written out of order by the clients: go past them all.
    let newest = store
        .read(|tx| Box::pin(async move { Ok::<_, StoreError>(tx.vms().all().await?.last().map(|vm| vm.id)) }))
        .await
        .unwrap();
    newest.map_or(0, |id| (0..).find(|n| vm_id(*n) == id).expect("one of ours") + 1)
}

fn start(path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, path)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn thirty_deaths_lose_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut acknowledged: Vec<u64> = Vec::new();
    for death in 0..DEATHS {
        let mut child = start(&path);
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // Killed after a number of answers that differs from death to death: somewhere in a batch.
        let mut left = death * 37 % 101;
        let mut seen = Vec::new();
        for line in lines {
            let line = line.unwrap();
            let Some(n) = line.strip_prefix("acknowledged ") else { panic!("the child says: {line}") };
            seen.push(n.parse::<u64>().unwrap());
            if left == 0 {
                // What it said before it died is read to the end.
                child.kill().unwrap();
            }
            left = left.saturating_sub(1);
        }
        child.wait().unwrap();
        assert!(!seen.is_empty());
        acknowledged.extend(seen);
        if death % 5 == 4 {
            runtime.block_on(verify(&path, &acknowledged));
        }
    }
    assert!(acknowledged.len() as u64 > DEATHS);
}

/// Opens the file as the next start does and looks for every acknowledged row.
async fn verify(path: &Path, acknowledged: &[u64]) {
    let store = Store::open(path).await.unwrap();
    let (vms, operations, pushed) = store
        .read(|tx| {
            Box::pin(async move {
                let (vms, operations) = (tx.vms().all().await?, tx.operations().open().await?);
                Ok::<_, StoreError>((vms, operations, tx.events().last_position().await?))
            })
        })
        .await
        .unwrap();
    // A transaction is there whole or not at all, acknowledged or not.
    assert_eq!(vms.len(), operations.len());
    assert_eq!(vms.len() as u64, pushed);
    let (vms, operations): (std::collections::HashSet<_>, std::collections::HashSet<_>) =
        (vms.iter().map(|vm| vm.id).collect(), operations.iter().map(|o| o.id).collect());
    for n in acknowledged {
        assert!(vms.contains(&vm_id(*n)) && operations.contains(&operation_id(*n)), "{n} was acknowledged");
    }
    store.close().await;
}
