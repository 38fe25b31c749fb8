//! Random operations on the tables, against a model in memory; now and then the file is closed and
//! opened again.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::collections::BTreeMap;

use fixture::{NOW, event, operation, operation_id, resource, vm, vm_id};
use futures::FutureExt;
use proptest::prelude::*;
use roost_model::{Machine, Operation, ProjectId, Resource, ResourceKind, Status, Vm, VmId};
use roost_store::{Event, OperationFilter, Store, StoreError, Tx, VmFilter};

const VMS: u64 = 6;

#[derive(Debug, Clone)]
enum Do {
    Insert { n: u64, name: u64 },
    Update { n: u64, machine: Machine, label: Option<u64> },
    UpdateStale { n: u64 },
    Remove { n: u64 },
    Open { n: u64 },
    Finish { n: u64 },
    Record { n: u64, key: u64 },
    Forget { n: u64, key: u64 },
    Push { n: u64 },
    Prune { keep: u64 },
}

#[derive(Debug, Clone)]
enum Turn {
    /// One transaction; whether it ends well.
    Write(Vec<Do>, bool),
    Reopen,
}

/// What the database ought to hold.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    vms: BTreeMap<VmId, Vm>,
    operations: BTreeMap<u64, Operation>,
    resources: BTreeMap<(VmId, String), Resource>,
    /// Pushed in the transaction under way.
    pushed: Vec<u64>,
    events: Vec<(u64, u64)>,
    last: u64,
}

fn labelled(mut vm: Vm, label: Option<u64>) -> Vm {
    vm.spec.metadata = label.into_iter().map(|l| ("label".to_owned(), l.to_string())).collect();
    vm
}

fn resource_of(key: u64) -> Resource {
    Resource { kind: ResourceKind::File, ..resource(key) }
}

impl Model {
    /// Whether the database must accept it; then it is done.
    fn apply(&mut self, act: &Do) -> bool {
        match *act {
            Do::Insert { n, name } => {
                let new = Vm { name: format!("vm-{name}").parse().unwrap(), ..vm(n) };
                if self.vms.contains_key(&new.id) || self.vms.values().any(|vm| vm.name == new.name) {
                    return false;
                }
                self.vms.insert(new.id, new);
            }
            Do::Update { n, machine, label } => {
                let Some(vm) = self.vms.get_mut(&vm_id(n)) else { return false };
                vm.observed.machine = machine;
                vm.resource_version += 1;
                *vm = labelled(vm.clone(), label);
            }
            Do::UpdateStale { .. } => return false,
            Do::Remove { n } => {
                if self.resources.keys().any(|(vm, _)| *vm == vm_id(n)) {
                    return false;
                }
                self.vms.remove(&vm_id(n));
            }
            Do::Open { n } => {
                if self.operations.contains_key(&n) {
                    return false;
                }
                self.operations.insert(n, operation(n));
            }
            Do::Finish { n } => {
                let Some(operation) = self.operations.get_mut(&n) else { return false };
                operation.finish(Status::Succeeded, None, NOW);
            }
            Do::Record { n, key } => {
                if !self.vms.contains_key(&vm_id(n)) {
                    return false;
                }
                self.resources.insert((vm_id(n), resource_of(key).key), resource_of(key));
            }
            Do::Forget { n, key } => {
                self.resources.remove(&(vm_id(n), resource_of(key).key));
            }
            Do::Push { n } => self.pushed.push(n),
            Do::Prune { keep } => self.events.retain(|(position, _)| *position + keep.max(1) > self.last),
        }
        true
    }

    /// The commit gives events their positions.
    fn commit(&mut self) {
        for n in self.pushed.drain(..) {
            self.last += 1;
            self.events.push((self.last, n));
        }
    }
}

async fn carry_out(tx: &Tx, act: &Do) -> Result<(), StoreError> {
    match *act {
        Do::Insert { n, name } => tx.vms().insert(&Vm { name: format!("vm-{name}").parse().unwrap(), ..vm(n) }).await,
        Do::Update { n, machine, label } => {
            let mut stored = tx.vms().get(vm_id(n)).await?.unwrap_or_else(|| vm(n));
            stored.observed.machine = machine;
            stored.resource_version += 1;
            tx.vms().update(&labelled(stored, label)).await
        }
        Do::UpdateStale { n } => tx.vms().update(&tx.vms().get(vm_id(n)).await?.unwrap_or_else(|| vm(n))).await,
        Do::Remove { n } => tx.vms().remove(vm_id(n)).await,
        Do::Open { n } => tx.operations().insert(&operation(n)).await,
        Do::Finish { n } => {
            let mut stored = tx.operations().get(operation_id(n)).await?.unwrap_or_else(|| operation(n));
            stored.finish(Status::Succeeded, None, NOW);
            tx.operations().update(&stored).await
        }
        Do::Record { n, key } => tx.resources().record(vm_id(n), &resource_of(key)).await,
        Do::Forget { n, key } => tx.resources().forget(vm_id(n), ResourceKind::File, &resource_of(key).key).await,
        Do::Push { n } => {
            tx.events().push(event(n));
            Ok(())
        }
        Do::Prune { keep } => tx.events().prune(keep).await.map(|_| ()),
    }
}

/// Everything that can be read, compared with the model.
async fn compare(tx: &Tx, model: &Model) -> Result<(), StoreError> {
    let vms: Vec<Vm> = model.vms.values().cloned().collect();
    assert_eq!(tx.vms().all().await?, vms);
    for label in 0..2_u64 {
        let metadata = BTreeMap::from([("label".to_owned(), label.to_string())]);
        let filter = VmFilter { metadata: metadata.clone(), ..VmFilter::default() };
        let with: Vec<Vm> = vms.iter().filter(|vm| vm.spec.metadata == metadata).cloned().collect();
        assert_eq!(tx.vms().page(&filter, None, 100).await?, with);
    }
    for vm in &vms {
        let filter = VmFilter { states: vec![vm.state()], ..VmFilter::default() };
        let alike = vms.iter().filter(|other| other.state() == vm.state()).count() as u64;
        assert_eq!(tx.vms().count(&filter).await?, alike);
        assert_eq!(tx.vms().by_name(ProjectId::DEFAULT, &vm.name).await?.as_ref(), Some(vm));
    }
    let mut operations: Vec<Operation> = model.operations.values().cloned().collect();
    let open: Vec<Operation> = operations.iter().filter(|o| !o.status.is_final()).cloned().collect();
    assert_eq!(tx.operations().open().await?, open);
    operations.reverse();
    assert_eq!(tx.operations().page(&OperationFilter::default(), None, 100).await?, operations);
    let mut owned = tx.resources().all().await?;
    owned.sort_by(|(a, x), (b, y)| (a, &x.key).cmp(&(b, &y.key)));
    let expected: Vec<(VmId, Resource)> = model.resources.iter().map(|((vm, _), r)| (*vm, r.clone())).collect();
    assert_eq!(owned, expected);
    let events: Vec<Event> = tx.events().after(0, ProjectId::DEFAULT, 1000).await?;
    let told: Vec<(u64, Option<VmId>)> = events.iter().map(|e| (e.position, e.vm)).collect();
    let expected: Vec<(u64, Option<VmId>)> = model.events.iter().map(|(at, n)| (*at, Some(vm_id(*n)))).collect();
    assert_eq!(told, expected);
    Ok(())
}

fn acts() -> impl Strategy<Value = Do> {
    let n = || 0..VMS;
    let machine = prop_oneof![Just(Machine::Absent), Just(Machine::Running), Just(Machine::Paused)];
    prop_oneof![
        4 => (n(), n()).prop_map(|(n, name)| Do::Insert { n, name }),
        4 => (n(), machine, proptest::option::of(0..2_u64))
            .prop_map(|(n, machine, label)| Do::Update { n, machine, label }),
        1 => n().prop_map(|n| Do::UpdateStale { n }),
        2 => n().prop_map(|n| Do::Remove { n }),
        2 => n().prop_map(|n| Do::Open { n }),
        2 => n().prop_map(|n| Do::Finish { n }),
        2 => (n(), 0..3_u64).prop_map(|(n, key)| Do::Record { n, key }),
        2 => (n(), 0..3_u64).prop_map(|(n, key)| Do::Forget { n, key }),
        4 => n().prop_map(|n| Do::Push { n }),
        1 => (0..4_u64).prop_map(|keep| Do::Prune { keep }),
    ]
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let write = (proptest::collection::vec(acts(), 1..4), proptest::bool::weighted(0.85))
        .prop_map(|(acts, well)| Turn::Write(acts, well));
    proptest::collection::vec(prop_oneof![12 => write, 1 => Just(Turn::Reopen)], 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_tables_hold_what_was_written(turns in turns()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let mut store = Store::open_blocking(&path).unwrap();
        let mut model = Model::default();
        for turn in turns {
            let Turn::Write(acts, well) = turn else {
                store.close().now_or_never().expect("a blocking store");
                store = Store::open_blocking(&path).unwrap();
                continue;
            };
            let mut after = model.clone();
            let expected = acts.iter().all(|act| after.apply(act)) && well;
            let written: Result<(), StoreError> = store
                .write(move |tx| {
                    let acts = acts.clone();
                    Box::pin(async move {
                        for act in &acts {
                            carry_out(tx, act).await?;
                        }
                        if well { Ok(()) } else { Err(StoreError::Unavailable("told to".to_owned())) }
                    })
                })
                .now_or_never()
                .expect("a blocking store");
            prop_assert_eq!(written.is_ok(), expected, "{:?}", written);
            if expected {
                after.commit();
                model = after;
            }
        }
        let compared: Result<(), StoreError> = store
            .read(move |tx| {
                let model = model.clone();
                Box::pin(async move { compare(tx, &model).await })
            })
            .now_or_never()
            .expect("a blocking store");
        compared.unwrap();
    }
}
