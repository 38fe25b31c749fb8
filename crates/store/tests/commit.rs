//! Group commit: what shares a batch shares the disk's answer and nothing else.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fixture::{event, vm, vm_id};
use futures::FutureExt;
use futures::future::BoxFuture;
use roost_model::{ProjectId, Vm};
use roost_store::{Store, StoreError, VmFilter};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

async fn opened() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).await.unwrap();
    (dir, store)
}

/// Holds the writer inside a closure, so that what is written until `release` shares one batch.
async fn held(store: &Store) -> (Arc<Notify>, JoinHandle<Result<(), StoreError>>) {
    let (entered, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (inside, go, writer) = (Arc::clone(&entered), Arc::clone(&release), store.clone());
    let holding = tokio::spawn(async move {
        writer
            .write(move |_| {
                let (inside, go) = (Arc::clone(&inside), Arc::clone(&go));
                Box::pin(async move {
                    inside.notify_one();
                    go.notified().await;
                    Ok(())
                })
            })
            .await
    });
    entered.notified().await;
    (release, holding)
}

/// Queues the writes in their order behind the writer that is held, then lets it go on.
async fn queue_all<T>(writes: &mut [BoxFuture<'_, T>], release: &Notify, holding: JoinHandle<Result<(), StoreError>>) {
    for write in writes {
        assert!(write.now_or_never().is_none());
    }
    release.notify_one();
    holding.await.unwrap().unwrap();
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Well,
    Refusal,
    Panic,
}

/// A write that inserts the `n`th VM under a name, pushes an event and ends as it is told to. Returns
/// the IDs that it saw before it.
async fn insert(store: Store, n: u64, name: &'static str, end: End) -> Result<Vec<u64>, StoreError> {
    store
        .write(move |tx| {
            Box::pin(async move {
                let before = tx.vms().all().await?;
                let mut vm = vm(n);
                vm.name = name.parse().unwrap();
                tx.vms().insert(&vm).await?;
                tx.events().push(event(n));
                match end {
                    End::Well => Ok(numbers(&before)),
                    End::Refusal => Err(StoreError::Conflict { what: format!("refused {n}") }),
                    End::Panic => panic!("told to"),
                }
            })
        })
        .await
}

fn numbers(vms: &[Vm]) -> Vec<u64> {
    (0..100).filter(|n| vms.iter().any(|vm| vm.id == vm_id(*n))).collect()
}

async fn stored(store: &Store) -> Vec<u64> {
    let vms: Result<Vec<Vm>, StoreError> = store.read(|tx| Box::pin(async move { tx.vms().all().await })).await;
    numbers(&vms.unwrap())
}

#[tokio::test]
async fn a_batch_survives_closures_that_fail_or_panic() {
    let (_dir, store) = opened().await;
    let position = store.position();
    let (release, holding) = held(&store).await;
    // Polled once each, in this order: they are queued while the writer is held.
    let mut writes: Vec<_> = [
        (1, "a", End::Well),
        (2, "b", End::Refusal),
        (3, "c", End::Panic),
        // The names of those that failed are free, and their rows are not to be seen.
        (4, "b", End::Well),
        (5, "c", End::Well),
        // The name of one that did well is taken; that spoils only this one.
        (6, "a", End::Well),
        (7, "d", End::Well),
    ]
    .into_iter()
    .map(|(n, name, end)| insert(store.clone(), n, name, end).boxed())
    .collect();
    queue_all(&mut writes, &release, holding).await;
    let mut ends = vec![writes.remove(0).await];
    assert_eq!(*position.borrow(), 4, "all of them shared one commit");
    ends.extend(futures::future::join_all(writes).await);
    assert_eq!(ends[0], Ok(vec![]));
    assert_eq!(ends[1], Err(StoreError::Conflict { what: "refused 2".to_owned() }));
    assert!(matches!(&ends[2], Err(StoreError::Unavailable(why)) if why.contains("broke off")), "{:?}", ends[2]);
    assert_eq!(ends[3], Ok(vec![1]));
    assert_eq!(ends[4], Ok(vec![1, 4]));
    assert!(matches!(&ends[5], Err(StoreError::Unique { what }) if what.contains("vms.name")), "{:?}", ends[5]);
    assert_eq!(ends[6], Ok(vec![1, 4, 5]));
    assert_eq!(stored(&store).await, [1, 4, 5, 7]);
    let events: Result<_, StoreError> =
        store.read(|tx| Box::pin(async move { tx.events().after(0, ProjectId::DEFAULT, 100).await })).await;
    let told: Vec<_> = events.unwrap().into_iter().map(|e| (e.position, e.vm)).collect();
    assert_eq!(told, [(1, 1), (2, 4), (3, 5), (4, 7)].map(|(at, n)| (at, Some(vm_id(n)))));
}

#[tokio::test]
async fn a_closure_alone_in_its_batch_fails_alone() {
    let (_dir, store) = opened().await;
    for (n, end) in [(1, End::Refusal), (2, End::Panic), (3, End::Well), (4, End::Panic), (5, End::Refusal)] {
        assert_eq!(insert(store.clone(), n, "a", end).await.is_ok(), end == End::Well);
    }
    assert_eq!(stored(&store).await, [3]);
    assert_eq!(*store.position().borrow(), 1);
}

#[tokio::test]
async fn an_error_that_the_closure_swallows_undoes_one_statement() {
    let (_dir, store) = opened().await;
    let written: Result<(), StoreError> = store
        .write(|tx| {
            Box::pin(async move {
                tx.vms().insert(&vm(1)).await?;
                let twice = tx.vms().insert(&vm(1)).await;
                assert!(matches!(twice, Err(StoreError::Unique { .. })), "{twice:?}");
                tx.vms().insert(&vm(2)).await
            })
        })
        .await;
    written.unwrap();
    assert_eq!(stored(&store).await, [1, 2]);
}

#[tokio::test]
async fn who_stops_waiting_takes_nothing_back() {
    let (_dir, store) = opened().await;
    for n in 0..20 {
        let mut write = insert(store.clone(), n, ["x", "y"][n as usize % 2], End::Well).boxed();
        // Each of the two names is taken by the first write of it; the others fail, unheard.
        assert!((&mut write).now_or_never().is_none());
    }
    insert(store.clone(), 50, "last", End::Well).await.unwrap();
    assert_eq!(stored(&store).await, [0, 1, 50]);
}

#[tokio::test]
async fn a_read_is_a_snapshot_and_may_be_dropped_at_any_point() {
    let (_dir, store) = opened().await;
    fixture::insert_all(&store, (0..50).map(vm).collect()).await;
    let writer = store.clone();
    let counts: Result<(u64, u64), StoreError> = store
        .read(move |tx| {
            let writer = writer.clone();
            Box::pin(async move {
                let before = tx.vms().count(&VmFilter::default()).await?;
                fixture::insert_all(&writer, vec![vm(60)]).await;
                Ok((before, tx.vms().count(&VmFilter::default()).await?))
            })
        })
        .await;
    assert_eq!(counts.unwrap(), (50, 50));
    for turns in 0..60 {
        let mut read = store.read(|tx| Box::pin(async move { tx.vms().all().await })).boxed();
        for _ in 0..turns {
            let got: Option<Result<Vec<Vm>, StoreError>> = (&mut read).now_or_never();
            if got.is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(stored(&store).await.len(), 51);
}

#[tokio::test]
async fn a_read_does_not_write() {
    let (_dir, store) = opened().await;
    let read: Result<(), StoreError> = store.read(|tx| Box::pin(async move { tx.vms().insert(&vm(1)).await })).await;
    assert!(matches!(read, Err(StoreError::ReadOnly(_))), "{read:?}");
    assert_eq!(stored(&store).await, [0; 0]);
}

#[tokio::test]
async fn refusals_that_wrote_nothing_cost_the_batch_nothing() {
    let (_dir, store) = opened().await;
    let (release, holding) = held(&store).await;
    let runs = Arc::new(AtomicU64::new(0));
    let mut writes: Vec<_> = (0..4_u64)
        .map(|n| {
            let (store, runs) = (store.clone(), Arc::clone(&runs));
            let write = async move {
                let refuses = n == 2;
                store
                    .write(move |tx| {
                        runs.fetch_add(1, Ordering::Relaxed);
                        Box::pin(async move {
                            if tx.vms().get(vm_id(n)).await?.is_some() || refuses {
                                return Err(StoreError::Conflict { what: n.to_string() });
                            }
                            tx.vms().insert(&vm(n)).await
                        })
                    })
                    .await
            };
            write.boxed()
        })
        .collect();
    queue_all(&mut writes, &release, holding).await;
    let ends = futures::future::join_all(writes).await;
    assert_eq!(ends, [Ok(()), Ok(()), Err(StoreError::Conflict { what: "2".to_owned() }), Ok(())]);
    assert_eq!(runs.load(Ordering::Relaxed), 4, "none of them had to run again");
    assert_eq!(stored(&store).await, [0, 1, 3]);
}

#[tokio::test]
async fn a_read_of_one_query_makes_one() {
    let (_dir, store) = opened().await;
    fixture::insert_all(&store, vec![vm(1)]).await;
    let one: Result<Option<Vm>, StoreError> =
        store.read_one(|tx| Box::pin(async move { tx.vms().get(vm_id(1)).await })).await;
    assert_eq!(one.unwrap().map(|vm| vm.id), Some(vm_id(1)));
    let two: Result<Option<Vm>, StoreError> = store
        .read_one(|tx| {
            Box::pin(async move {
                tx.vms().get(vm_id(1)).await?;
                tx.vms().get(vm_id(1)).await
            })
        })
        .await;
    assert!(matches!(two, Err(StoreError::Unavailable(_))), "{two:?}");
    let writes: Result<(), StoreError> =
        store.read_one(|tx| Box::pin(async move { tx.vms().remove(vm_id(1)).await })).await;
    assert!(matches!(writes, Err(StoreError::Unavailable(_))), "{writes:?}");
}

#[tokio::test]
async fn close_commits_what_is_queued() {
    let (dir, store) = opened().await;
    let mut write = insert(store.clone(), 1, "a", End::Well).boxed();
    assert!((&mut write).now_or_never().is_none());
    drop(write);
    // Another clone keeps nothing open, and learns of it.
    let other = store.clone();
    store.close().await;
    let late = insert(other, 2, "b", End::Well).await;
    assert!(matches!(late, Err(StoreError::Unavailable(_))), "{late:?}");
    assert!(!dir.path().join("state.db-wal").exists(), "the log is written back");
    let store = Store::open(&dir.path().join("state.db")).await.unwrap();
    assert_eq!(stored(&store).await, [1]);
}

#[test]
fn a_blocking_store_completes_within_one_poll() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_blocking(&dir.path().join("state.db")).unwrap();
    insert(store.clone(), 1, "a", End::Well).now_or_never().expect("one poll").unwrap();
    let refused = insert(store.clone(), 2, "b", End::Refusal).now_or_never().expect("one poll");
    assert!(refused.is_err());
    assert!(insert(store.clone(), 3, "c", End::Panic).now_or_never().expect("one poll").is_err());
    assert_eq!(stored(&store).now_or_never().expect("one poll"), [1]);
    let project = ProjectId::DEFAULT;
    let named: Result<Option<Vm>, StoreError> = store
        .read(move |tx| Box::pin(async move { tx.vms().by_name(project, &"a".parse().unwrap()).await }))
        .now_or_never()
        .expect("one poll");
    assert_eq!(named.unwrap().map(|vm| vm.id), Some(vm_id(1)));
    store.close().now_or_never().expect("one poll");
}
