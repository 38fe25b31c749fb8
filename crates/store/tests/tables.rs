//! Each table's promises, on a real file.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::collections::BTreeMap;
use std::path::Path;

use fixture::{NOW, event, operation, operation_id, resource, settled, vm, vm_id};
use futures::FutureExt;
use futures::future::BoxFuture;
use roost_model::execution::{ExecutionKind, Outcome, Output};
use roost_model::operation::Goal;
use roost_model::{
    Execution, ExecutionId, ExecutionStatus, Job, JobId, Machine, NodeId, Operation, OperationKind, Power, ProjectId,
    ResourceKind, Status, Timestamp, Vm, VmState,
};
use roost_store::{ExecutionFilter, IdempotencyRecord, NodeRecord, OperationFilter, Store, StoreError, Tx, VmFilter};
use sea_orm::sqlx::sqlite::SqliteConnectOptions;
use sea_orm::sqlx::{self, ConnectOptions, Connection};
use tempfile::TempDir;

/// A store whose calls return when they are done.
struct Tables {
    dir: TempDir,
    store: Store,
}

impl Tables {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_blocking(&dir.path().join("state.db")).unwrap();
        Self { dir, store }
    }

    fn write<T, F>(&self, closure: F) -> Result<T, StoreError>
    where
        F: for<'a> Fn(&'a Tx) -> BoxFuture<'a, Result<T, StoreError>> + Send + Sync + 'static,
        T: Send + 'static,
    {
        self.store.write(closure).now_or_never().expect("a blocking store")
    }

    fn insert(&self, vms: impl IntoIterator<Item = Vm>) {
        fixture::insert_all(&self.store, vms.into_iter().collect()).now_or_never().expect("a blocking store");
    }

    fn page(&self, filter: VmFilter, after: Option<u64>, limit: usize) -> Vec<u64> {
        let vms = self
            .write(move |tx| {
                let filter = filter.clone();
                Box::pin(async move {
                    let all = tx.vms().page(&filter, None, 1000).await?.len() as u64;
                    assert_eq!(tx.vms().count(&filter).await?, all);
                    tx.vms().page(&filter, after.map(vm_id), limit).await
                })
            })
            .unwrap();
        vms.iter().map(|vm| (0..1000).find(|n| vm_id(*n) == vm.id).expect("one of ours")).collect()
    }

    /// Runs SQL behind the store's back.
    fn behind(&self, sql: &'static str) {
        behind(&self.dir.path().join("state.db"), sql);
    }
}

fn behind(path: &Path, sql: &'static str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut db = SqliteConnectOptions::new().filename(path).connect().await.unwrap();
        sqlx::raw_sql(sql).execute(&mut db).await.unwrap();
        db.close().await.unwrap();
    });
}

fn named(name: &str) -> VmFilter {
    VmFilter { name_prefix: Some(name.to_owned()), ..VmFilter::default() }
}

#[test]
fn only_the_successor_of_the_stored_vm_replaces_it() {
    let db = Tables::new();
    db.insert([vm(1)]);
    let update = |version: u64, power: Power| {
        db.write(move |tx| {
            let mut vm = vm(1);
            vm.resource_version = version;
            vm.desired.power = power;
            Box::pin(async move { tx.vms().update(&vm).await })
        })
    };
    let conflict = Err(StoreError::Conflict { what: vm_id(1).to_string() });
    assert_eq!(update(1, Power::Paused), conflict);
    assert_eq!(update(3, Power::Paused), conflict);
    assert_eq!(update(2, Power::Paused), Ok(()));
    assert_eq!(update(2, Power::Stopped), conflict);
    let stored = db.write(|tx| Box::pin(async move { tx.vms().get(vm_id(1)).await })).unwrap().unwrap();
    assert_eq!((stored.resource_version, stored.desired.power), (2, Power::Paused));
    let absent = db.write(|tx| Box::pin(async move { tx.vms().update(&vm(9)).await }));
    assert_eq!(absent, Err(StoreError::Conflict { what: vm_id(9).to_string() }));
}

#[test]
fn a_name_is_unique_in_its_project_and_free_after_its_vm() {
    let db = Tables::new();
    db.insert([vm(1)]);
    let other_project = ProjectId::from_parts(1, [1; 10]);
    let named_like_the_first = move |n: u64, project: ProjectId| {
        let mut vm = vm(n);
        vm.name = "vm-1".parse().unwrap();
        vm.project = project;
        vm
    };
    let insert = |vm: Vm| {
        db.write(move |tx| {
            let vm = vm.clone();
            Box::pin(async move { tx.vms().insert(&vm).await })
        })
    };
    let taken = insert(named_like_the_first(2, ProjectId::DEFAULT));
    assert!(matches!(&taken, Err(StoreError::Unique { what }) if what == "vms.project_id, vms.name"), "{taken:?}");
    assert_eq!(insert(named_like_the_first(3, other_project)), Ok(()));
    let id_taken = insert(Vm { name: "another".parse().unwrap(), ..vm(1) });
    assert!(matches!(&id_taken, Err(StoreError::Unique { what }) if what == "vms.id"), "{id_taken:?}");
    db.write(|tx| Box::pin(async move { tx.vms().remove(vm_id(1)).await })).unwrap();
    assert_eq!(insert(named_like_the_first(4, ProjectId::DEFAULT)), Ok(()));
    let found = db
        .write(move |tx| {
            Box::pin(async move {
                let name = "vm-1".parse().unwrap();
                Ok((tx.vms().by_name(ProjectId::DEFAULT, &name).await?, tx.vms().by_name(other_project, &name).await?))
            })
        })
        .unwrap();
    assert_eq!((found.0.map(|vm| vm.id), found.1.map(|vm| vm.id)), (Some(vm_id(4)), Some(vm_id(3))));
}

#[test]
fn pages_follow_each_other_without_gaps() {
    let db = Tables::new();
    // Inserted in disorder: the order is that of the IDs.
    db.insert((0..25).map(|n| vm(n * 7 % 25)));
    let mut seen = Vec::new();
    loop {
        let page = db.page(VmFilter::default(), seen.last().copied(), 10);
        if page.is_empty() {
            break;
        }
        seen.extend(page);
    }
    assert_eq!(seen, (0..25).collect::<Vec<_>>());
    assert!(db.page(VmFilter::default(), None, 0).is_empty());
}

#[test]
fn filters_restrict_alone_and_together() {
    let db = Tables::new();
    let mut vms: Vec<Vm> = (0..6).map(vm).collect();
    vms[1].observed.machine = Machine::Running;
    vms[2].observed.machine = Machine::Paused;
    vms[3].backend = "qemu".parse().unwrap();
    vms[4].name = "Vm-1_%".replace('%', "x").parse().unwrap();
    vms[5].project = ProjectId::from_parts(1, [1; 10]);
    vms[5].observed.machine = Machine::Running;
    let elsewhere = vms[5].project;
    db.insert(vms);
    let all = VmFilter::default;
    assert_eq!(db.page(all(), None, 10), [0, 1, 2, 3, 4, 5]);
    assert_eq!(db.page(VmFilter { states: vec![VmState::Running], ..all() }, None, 10), [1, 5]);
    let two = vec![VmState::Running, VmState::Paused];
    assert_eq!(db.page(VmFilter { states: two.clone(), ..all() }, None, 10), [1, 2, 5]);
    assert_eq!(db.page(VmFilter { backend: Some("qemu".parse().unwrap()), ..all() }, None, 10), [3]);
    assert_eq!(db.page(VmFilter { project: Some(elsewhere), ..all() }, None, 10), [5]);
    assert_eq!(db.page(VmFilter { ids: vec![vm_id(4), vm_id(2), vm_id(77)], ..all() }, None, 10), [2, 4]);
    let both = VmFilter { states: two, project: Some(ProjectId::DEFAULT), ..named("vm-") };
    assert_eq!(db.page(both.clone(), None, 10), [1, 2]);
    assert_eq!(db.page(both, Some(1), 10), [2]);
    // A prefix is taken as it is: no case folding, no wildcards.
    assert_eq!(db.page(named("vm-1"), None, 10), [1]);
    assert_eq!(db.page(named("Vm-1_"), None, 10), [4]);
    for nothing in ["%", "vm_", "vm-9", "'", "\u{7f}", "\u{10ffff}"] {
        assert!(db.page(named(nothing), None, 10).is_empty(), "{nothing:?}");
    }
    assert_eq!(db.page(named(""), None, 10), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn metadata_is_found_by_exactly_what_it_says() {
    let db = Tables::new();
    let odd = [
        "a", "a.b", "$.a", "a\"b", "a'b", "ключ", "🦀", "", " ", "%", "a,b", "a=b", "\\", "a\u{0}b", "A", "é",
        "e\u{301}",
    ];
    let with = |n: u64, metadata: BTreeMap<String, String>| {
        let mut vm = vm(n);
        vm.spec.metadata = metadata;
        vm
    };
    let one = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    db.insert(odd.iter().enumerate().map(|(n, key)| with(n as u64, one(key, key))));
    let filter = |metadata| VmFilter { metadata, ..VmFilter::default() };
    for (n, key) in odd.iter().enumerate() {
        assert_eq!(db.page(filter(one(key, key)), None, 100), [n as u64], "{key:?}");
        assert!(db.page(filter(one(key, "something else")), None, 100).is_empty(), "{key:?}");
    }
    // All of several must hold, and an update replaces what was there.
    let both: BTreeMap<String, String> = [("tier", "web"), ("x'y", "z\"")].map(|(k, v)| (k.into(), v.into())).into();
    db.insert([with(100, both.clone()), with(101, one("tier", "web"))]);
    assert_eq!(db.page(filter(both.clone()), None, 10), [100]);
    assert_eq!(db.page(filter(one("tier", "web")), None, 10), [100, 101]);
    let replace = |version: u64, metadata: BTreeMap<String, String>| {
        db.write(move |tx| {
            let mut vm = vm(100);
            vm.resource_version = version;
            vm.spec.metadata = metadata.clone();
            Box::pin(async move { tx.vms().update(&vm).await })
        })
    };
    replace(2, one("tier", "db")).unwrap();
    assert!(db.page(filter(both), None, 10).is_empty());
    assert_eq!(db.page(filter(one("tier", "db")), None, 10), [100]);
    replace(3, BTreeMap::new()).unwrap();
    assert!(db.page(filter(one("tier", "db")), None, 10).is_empty());
    replace(4, one("tier", "db")).unwrap();
    db.write(|tx| Box::pin(async move { tx.vms().remove(vm_id(100)).await })).unwrap();
    db.insert([vm(100)]);
    assert!(db.page(filter(one("tier", "db")), None, 10).is_empty(), "it went with its VM");
}

#[test]
fn operations_are_listed_newest_first_and_forgotten_when_old() {
    let db = Tables::new();
    let made = |n: u64| {
        let mut operation = match n % 3 {
            0 => Operation { goal: Goal::Boot, ..operation(n) },
            _ => operation(n),
        };
        operation.vm = vm_id(n % 2);
        if n < 6 {
            operation.finish(Status::Succeeded, None, Timestamp::from_unix_ms(n as i64));
        }
        operation
    };
    db.write(move |tx| {
        Box::pin(async move {
            for n in 0..10 {
                tx.operations().insert(&made(n)).await?;
            }
            Ok(())
        })
    })
    .unwrap();
    let number = |o: &Operation| (0..10).find(|n| operation_id(*n) == o.id).expect("one of ours");
    let page = |filter: OperationFilter, after: Option<u64>, limit: usize| -> Vec<u64> {
        let found = db.write(move |tx| {
            let filter = filter.clone();
            Box::pin(async move { tx.operations().page(&filter, after.map(operation_id), limit).await })
        });
        found.unwrap().iter().map(number).collect()
    };
    let all = OperationFilter::default;
    assert_eq!(page(all(), None, 4), [9, 8, 7, 6]);
    assert_eq!(page(all(), Some(6), 4), [5, 4, 3, 2]);
    assert_eq!(page(OperationFilter { vm: Some(vm_id(1)), ..all() }, None, 3), [9, 7, 5]);
    assert_eq!(page(OperationFilter { statuses: vec![Status::Pending], ..all() }, None, 9), [9, 8, 7, 6]);
    assert_eq!(page(OperationFilter { kinds: vec![OperationKind::Boot], ..all() }, None, 9), [9, 6, 3, 0]);
    let no_such = OperationFilter { project: Some(ProjectId::from_parts(1, [1; 10])), ..all() };
    assert!(page(no_such, None, 9).is_empty());
    let open = db
        .write(|tx| {
            Box::pin(async move { Ok((tx.operations().open().await?, tx.operations().open_of(vm_id(0)).await?)) })
        })
        .unwrap();
    assert_eq!(open.0.iter().map(number).collect::<Vec<_>>(), [6, 7, 8, 9]);
    assert_eq!(open.1.iter().map(number).collect::<Vec<_>>(), [6, 8]);

    let before = Timestamp::from_unix_ms(4);
    let prune = |limit: u64| {
        db.write(move |tx| {
            Box::pin(async move {
                let any = tx.operations().any_ended_before(before).await?;
                Ok((any, tx.operations().prune(before, limit).await?))
            })
        })
    };
    assert_eq!(prune(3), Ok((true, 3)));
    assert_eq!(prune(3), Ok((true, 1)));
    assert_eq!(prune(3), Ok((false, 0)));
    assert_eq!(page(all(), None, 99), [9, 8, 7, 6, 5, 4]);
    let gone = db.write(move |tx| Box::pin(async move { tx.operations().update(&made(0)).await }));
    assert_eq!(gone, Err(StoreError::Conflict { what: operation_id(0).to_string() }));
    let twice = db.write(move |tx| Box::pin(async move { tx.operations().insert(&made(9)).await }));
    assert!(matches!(twice, Err(StoreError::Unique { .. })), "{twice:?}");
}

#[test]
fn events_get_dense_positions() {
    let db = Tables::new();
    let push = |from: u64, to: u64| {
        db.write(move |tx| {
            Box::pin(async move {
                for n in from..to {
                    tx.events().push(event(n));
                }
                Ok(())
            })
        })
    };
    push(0, 0).unwrap();
    push(0, 5).unwrap();
    // What was pushed and taken back leaves no gap.
    let refused: Result<(), StoreError> = db.write(|tx| {
        Box::pin(async move {
            tx.events().push(event(99));
            Err(StoreError::Conflict { what: "no".to_owned() })
        })
    });
    assert!(refused.is_err());
    // More than one statement holds.
    push(5, 200).unwrap();
    let all = db.write(|tx| Box::pin(async move { tx.events().after(0, ProjectId::DEFAULT, 1000).await })).unwrap();
    assert_eq!(all.iter().map(|e| e.position).collect::<Vec<_>>(), (1..=200).collect::<Vec<_>>());
    for (n, got) in all.iter().enumerate() {
        let pushed = event(n as u64);
        assert_eq!(
            (&got.kind, got.vm, got.operation, &got.data),
            (&pushed.kind, pushed.vm, pushed.operation, &pushed.data)
        );
    }
    let after = |position: u64, project: ProjectId| {
        db.write(move |tx| Box::pin(async move { tx.events().after(position, project, 3).await })).unwrap()
    };
    assert_eq!(after(4, ProjectId::DEFAULT), all[4..7]);
    assert!(after(0, ProjectId::from_parts(1, [1; 10])).is_empty());

    // Retention forgets the oldest, never the position.
    let edges = |keep: u64| {
        db.write(move |tx| {
            Box::pin(async move {
                let pruned = tx.events().prune(keep).await?;
                Ok((pruned, tx.events().first_position().await?, tx.events().last_position().await?))
            })
        })
    };
    assert_eq!(edges(300), Ok((0, 1, 200)));
    assert_eq!(edges(3), Ok((197, 198, 200)));
    assert_eq!(edges(0), Ok((2, 200, 200)));
    push(8, 9).unwrap();
    assert_eq!(after(200, ProjectId::DEFAULT)[0].position, 201);
}

#[test]
fn a_resource_belongs_to_a_vm() {
    let db = Tables::new();
    db.insert([vm(1), vm(2)]);
    let record = |n: u64, detail: &'static str| {
        db.write(move |tx| {
            let resource = roost_model::Resource { detail: detail.into(), ..resource(7) };
            Box::pin(async move { tx.resources().record(vm_id(n), &resource).await })
        })
    };
    assert_eq!(record(9, "x"), Err(StoreError::Conflict { what: vm_id(9).to_string() }));
    record(1, "old").unwrap();
    record(1, "new").unwrap();
    record(2, "its own").unwrap();
    let all = db.write(|tx| Box::pin(async move { tx.resources().all().await })).unwrap();
    let told: Vec<_> = all.iter().map(|(vm, r)| (*vm, r.detail.as_str().unwrap())).collect();
    assert_eq!(told, [(vm_id(1), "new"), (vm_id(2), "its own")]);
    // Nothing leaks: a VM that owns something is not removed.
    let removed = db.write(|tx| Box::pin(async move { tx.vms().remove(vm_id(1)).await }));
    assert!(matches!(removed, Err(StoreError::Conflict { .. })), "{removed:?}");
    let forgotten = db.write(|tx| {
        Box::pin(async move {
            tx.resources().forget(vm_id(1), ResourceKind::Socket, &resource(7).key).await?;
            assert_eq!(tx.resources().of(vm_id(1)).await?.len(), 1, "that was another kind");
            tx.resources().forget(vm_id(1), ResourceKind::Directory, &resource(7).key).await?;
            assert_eq!(tx.resources().of(vm_id(1)).await?, []);
            tx.vms().remove(vm_id(1)).await
        })
    });
    assert_eq!(forgotten, Ok(()));
}

#[test]
fn keys_and_nodes_are_remembered() {
    let db = Tables::new();
    let record = |key: &str, ms: i64| IdempotencyRecord {
        key: key.to_owned(),
        digest: std::array::from_fn(|i| i as u8 * 8),
        operation: operation_id(1),
        vm: vm_id(1),
        created_at: Timestamp::from_unix_ms(ms),
    };
    let insert = |project: ProjectId, key: &'static str, ms: i64| {
        let record = record(key, ms);
        db.write(move |tx| {
            let record = record.clone();
            Box::pin(async move { tx.idempotency().insert(project, &record).await })
        })
    };
    let get = |project: ProjectId, key: &'static str| {
        db.write(move |tx| Box::pin(async move { tx.idempotency().get(project, key).await })).unwrap()
    };
    let other = ProjectId::from_parts(1, [1; 10]);
    insert(ProjectId::DEFAULT, "it's \"mine\"", 5).unwrap();
    insert(other, "it's \"mine\"", 6).unwrap();
    let twice = insert(ProjectId::DEFAULT, "it's \"mine\"", 7);
    assert!(matches!(twice, Err(StoreError::Unique { .. })), "{twice:?}");
    assert_eq!(get(ProjectId::DEFAULT, "it's \"mine\""), Some(record("it's \"mine\"", 5)));
    assert_eq!(get(ProjectId::DEFAULT, "it's"), None);
    let pruned = db.write(|tx| Box::pin(async move { tx.idempotency().prune(Timestamp::from_unix_ms(6)).await }));
    assert_eq!(pruned, Ok(1));
    assert_eq!(get(ProjectId::DEFAULT, "it's \"mine\""), None);
    assert_eq!(get(other, "it's \"mine\""), Some(record("it's \"mine\"", 6)));

    let node = NodeRecord { id: NodeId::from_parts(1, [1; 10]), epoch: 1, last_start: NOW };
    let put = move |epoch: u64| {
        db.write(move |tx| {
            Box::pin(async move {
                let before = tx.nodes().this_node().await?;
                tx.nodes().put(&NodeRecord { epoch, ..node }).await?;
                Ok((before, tx.nodes().this_node().await?))
            })
        })
    };
    assert_eq!(put(1), Ok((None, Some(node))));
    assert_eq!(put(2), Ok((Some(node), Some(NodeRecord { epoch: 2, ..node }))));
}

#[test]
fn a_row_that_cannot_be_read_is_named() {
    let db = Tables::new();
    db.insert([settled(1), settled(2)]);
    db.write(|tx| {
        Box::pin(async move {
            tx.operations().insert(&operation(1)).await?;
            tx.resources().record(vm_id(1), &resource(1)).await?;
            tx.events().push(event(1));
            tx.events().push(event(2));
            let id = NodeId::from_parts(1, [1; 10]);
            tx.nodes().put(&NodeRecord { id, epoch: 1, last_start: NOW }).await?;
            let (operation, vm) = (operation_id(1), vm_id(1));
            let key = IdempotencyRecord { key: "k".into(), digest: [0; 32], operation, vm, created_at: NOW };
            tx.idempotency().insert(ProjectId::DEFAULT, &key).await
        })
    })
    .unwrap();
    let named = |error: StoreError, table: &str, id: String| match error {
        StoreError::Decode { table: t, id: i, why } => {
            assert_eq!((t, &i), (table, &id));
            assert!(!why.is_empty());
        }
        other => panic!("{other}"),
    };
    db.behind("UPDATE vms SET record = replace(record, '\"generation\"', '\"generatoin\"') WHERE name = 'vm-1'");
    named(db.write(|tx| Box::pin(async move { tx.vms().all().await })).unwrap_err(), "vms", vm_id(1).to_string());
    named(
        db.write(|tx| Box::pin(async move { tx.vms().get(vm_id(1)).await })).unwrap_err(),
        "vms",
        vm_id(1).to_string(),
    );
    let good = db.write(|tx| Box::pin(async move { tx.vms().get(vm_id(2)).await })).unwrap();
    assert_eq!(good, Some(settled(2)), "one bad row spoils no other");
    db.behind("UPDATE vms SET record = x'00ff' WHERE name = 'vm-2'");
    named(
        db.write(|tx| Box::pin(async move { tx.vms().get(vm_id(2)).await })).unwrap_err(),
        "vms",
        vm_id(2).to_string(),
    );

    db.behind("UPDATE operations SET record = '{'");
    let operations = db.write(|tx| Box::pin(async move { tx.operations().open().await })).unwrap_err();
    named(operations, "operations", operation_id(1).to_string());
    db.behind("UPDATE resources SET record = '[]'");
    let resources = db.write(|tx| Box::pin(async move { tx.resources().of(vm_id(1)).await })).unwrap_err();
    named(resources, "resources", vm_id(1).to_string());
    db.behind("UPDATE events SET vm_id = 'nobody' WHERE position = 2");
    let events = || db.write(|tx| Box::pin(async move { tx.events().after(0, ProjectId::DEFAULT, 9).await }));
    named(events().unwrap_err(), "events", "2".to_owned());
    db.behind("UPDATE events SET data = 'x', vm_id = NULL WHERE position = 2");
    named(events().unwrap_err(), "events", "2".to_owned());
    db.behind("UPDATE idempotency_keys SET digest = 'zz'");
    let key = db.write(|tx| Box::pin(async move { tx.idempotency().get(ProjectId::DEFAULT, "k").await })).unwrap_err();
    named(key, "idempotency_keys", "k".to_owned());
    db.behind("UPDATE nodes SET id = 'somewhere'");
    let node = db.write(|tx| Box::pin(async move { tx.nodes().this_node().await })).unwrap_err();
    named(node, "nodes", "somewhere".to_owned());
}

fn execution(n: u64) -> Execution {
    Execution {
        id: ExecutionId::from_parts(1_700_000_000_000 + n, [9; 10]),
        project: ProjectId::DEFAULT,
        vm: vm_id(n % 2),
        job: (n >= 4).then(|| JobId::from_parts(1, [1; 10])),
        kind: if n == 3 { ExecutionKind::File } else { ExecutionKind::Exec },
        command: "/bin/true".to_owned(),
        args: vec![n.to_string()],
        env_names: vec!["TOKEN".to_owned()],
        outcome: Outcome::running(),
        daemon_epoch: 1,
        started_at: NOW,
        finished_at: None,
    }
}

#[test]
fn executions_are_found_by_what_they_are_and_open_until_they_end() {
    let db = Tables::new();
    let last = db
        .write(|tx| {
            Box::pin(async move {
                for n in 0..6 {
                    tx.executions().insert(&execution(n)).await?;
                }
                let mut last = execution(5);
                let exited = Outcome {
                    status: ExecutionStatus::Failed,
                    exit_code: Some(3),
                    signal: None,
                    stdout: Output::kept("out", false),
                    stderr: Output::default(),
                    error: None,
                };
                last.finish(exited, NOW.after(std::time::Duration::from_millis(1500)));
                tx.executions().update(&last).await?;
                Ok(last)
            })
        })
        .unwrap();
    assert_eq!(last.duration_ms(), Some(1500));
    let page = |filter: ExecutionFilter, after: Option<u64>, limit: usize| -> Vec<u64> {
        let found = db
            .write(move |tx| {
                let filter = filter.clone();
                let after = after.map(|n| execution(n).id);
                Box::pin(async move { tx.executions().page(&filter, after, limit).await })
            })
            .unwrap();
        found.iter().map(|e| (0..6).find(|n| execution(*n).id == e.id).expect("one of ours")).collect()
    };
    let all = ExecutionFilter::default;
    assert_eq!(page(all(), None, 10), [5, 4, 3, 2, 1, 0], "newest first");
    assert_eq!(page(all(), Some(3), 2), [2, 1]);
    assert_eq!(page(ExecutionFilter { vm: Some(vm_id(1)), ..all() }, None, 10), [5, 3, 1]);
    assert_eq!(page(ExecutionFilter { job: execution(4).job, ..all() }, None, 10), [5, 4]);
    assert_eq!(page(ExecutionFilter { kinds: vec![ExecutionKind::File], ..all() }, None, 10), [3]);
    let ended = ExecutionFilter { statuses: vec![ExecutionStatus::Failed, ExecutionStatus::Unknown], ..all() };
    assert_eq!(page(ended, None, 10), [5]);
    db.write(move |tx| {
        let last = last.clone();
        Box::pin(async move {
            assert_eq!(tx.executions().open().await?.len(), 5);
            assert_eq!(tx.executions().get(last.id).await?, Some(last.clone()));
            assert_eq!(tx.executions().prune(NOW, 10).await?, 0, "what is open stays");
            assert_eq!(tx.executions().prune(NOW.after(std::time::Duration::from_secs(2)), 10).await?, 1);
            assert_eq!(tx.executions().get(last.id).await?, None);
            let refused = tx.executions().update(&last).await.unwrap_err();
            assert!(matches!(refused, StoreError::Conflict { .. }), "{refused}");
            Ok(())
        })
    })
    .unwrap();
}

#[test]
fn a_job_is_replaced_by_what_became_of_it() {
    let db = Tables::new();
    let job = |n: u64| Job {
        id: JobId::from_parts(1_700_000_000_000 + n, [9; 10]),
        project: ProjectId::DEFAULT,
        vm: vm_id(1),
        name: format!("job-{n}"),
        commands: Vec::new(),
        stop_on_error: true,
        status: ExecutionStatus::Running,
        executions: Vec::new(),
        daemon_epoch: 1,
        created_at: NOW,
        finished_at: None,
    };
    db.write(move |tx| {
        Box::pin(async move {
            for n in 0..3 {
                tx.jobs().put(&job(n)).await?;
            }
            let done = Job { status: ExecutionStatus::Succeeded, finished_at: Some(NOW), ..job(1) };
            tx.jobs().put(&done).await?;
            assert_eq!(tx.jobs().get(done.id).await?, Some(done.clone()));
            let names = |jobs: Vec<Job>| jobs.into_iter().map(|j| j.name).collect::<Vec<_>>();
            assert_eq!(names(tx.jobs().open().await?), ["job-0", "job-2"]);
            assert_eq!(names(tx.jobs().page(ProjectId::DEFAULT, vm_id(1), None, 2).await?), ["job-2", "job-1"]);
            assert_eq!(names(tx.jobs().page(ProjectId::DEFAULT, vm_id(1), Some(done.id), 2).await?), ["job-0"]);
            assert!(tx.jobs().page(ProjectId::DEFAULT, vm_id(2), None, 2).await?.is_empty());
            assert_eq!(tx.jobs().prune(NOW.after(std::time::Duration::from_secs(1)), 10).await?, 1);
            Ok(())
        })
    })
    .unwrap();
}
