//! `unsettled` wakes what the model says is to be worked on, and nothing else.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use fixture::{NOW, live_for, vm, vm_id};
use roost_model::observe::{Reaction, react};
use roost_model::plan::{Leftovers, Target, plan};
use roost_model::state::Desired;
use roost_model::vm::Failure;
use roost_model::{Capabilities, ExitCause, Machine, Power, Timestamp, Vm, VmId};
use roost_store::{Store, StoreError};

/// Every combination of what is wanted, what is there, and whether it failed, is to go or has a term.
fn every_combination() -> Vec<Vm> {
    let causes = [ExitCause::PowerOff, ExitCause::Forced, ExitCause::Panic, ExitCause::Killed, ExitCause::Crashed];
    let ends = causes.into_iter().flat_map(|cause| [false, true].map(|lingering| Machine::Ended { cause, lingering }));
    let machines: Vec<Machine> =
        [Machine::Absent, Machine::Defined, Machine::Running, Machine::Paused].into_iter().chain(ends).collect();
    let mut all = Vec::new();
    for power in [Power::Stopped, Power::Running, Power::Paused] {
        for machine in &machines {
            for failed in [false, true] {
                for deleted in [false, true] {
                    // None, over, over at this moment, over in a moment.
                    for lives in [None, live_for(0), live_for(1_000), live_for(1_001)] {
                        let mut vm = vm(all.len() as u64);
                        vm.desired = Desired { power, deleted };
                        vm.observed.machine = *machine;
                        vm.failure = failed.then(|| Failure { reason: "R".into(), message: "m".into(), at: NOW });
                        vm.spec.time_to_live = lives;
                        all.push(vm);
                    }
                }
            }
        }
    }
    all
}

/// Whether there is anything to do, by the model's own word.
fn model_says(vm: &Vm, now: Timestamp) -> bool {
    let target = Target::reconciled(vm.desired);
    let planned = plan(target, vm.observed, Leftovers::default(), &Capabilities::default());
    let lingers = matches!(vm.observed.machine, Machine::Ended { lingering: true, .. });
    let reacts = !matches!(react(vm, now, 0.0), Reaction::None);
    // A failed VM is left as it is, but for what is to be cleared away. A record of a deleted VM is
    // itself what is left to do.
    vm.desired.deleted || vm.expired(now) || lingers || (vm.failure.is_none() && (reacts || !planned.is_empty()))
}

async fn unsettled(store: &Store, now: Timestamp) -> Vec<VmId> {
    let ids: Result<Vec<VmId>, StoreError> =
        store.read(move |tx| Box::pin(async move { tx.vms().unsettled(now).await })).await;
    ids.unwrap()
}

#[tokio::test]
async fn it_agrees_with_the_model_in_every_combination() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).await.unwrap();
    let all = every_combination();
    assert_eq!(all.len(), 3 * 14 * 2 * 2 * 4);
    fixture::insert_all(&store, all.clone()).await;
    let now = Timestamp::from_unix_ms(NOW.unix_ms() + 1_000);
    let listed = unsettled(&store, now).await;
    for vm in &all {
        assert_eq!(listed.contains(&vm.id), model_says(vm, now), "{vm:#?}");
    }
    assert!(listed.is_sorted());
    let settled = all.iter().filter(|vm| !model_says(vm, now)).count();
    assert!(settled >= 50 && listed.len() >= 500, "both kinds occur: {settled}, {}", listed.len());
}

#[tokio::test]
async fn an_update_moves_a_vm_in_and_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).await.unwrap();
    fixture::insert_all(&store, vec![vm(1)]).await;
    assert_eq!(unsettled(&store, NOW).await, [vm_id(1)]);
    let mut now_is = vm(1);
    for (machine, expected) in
        [(Machine::Running, vec![]), (Machine::Defined, vec![vm_id(1)]), (Machine::Running, vec![])]
    {
        now_is.observed.machine = machine;
        now_is.resource_version += 1;
        let vm = now_is.clone();
        let updated: Result<(), StoreError> = store
            .write(move |tx| {
                let vm = vm.clone();
                Box::pin(async move { tx.vms().update(&vm).await })
            })
            .await;
        updated.unwrap();
        assert_eq!(unsettled(&store, NOW).await, expected);
    }
}

#[tokio::test]
async fn no_number_of_them_hides_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).await.unwrap();
    fixture::insert_all(&store, (0..2_500).map(vm).collect()).await;
    assert_eq!(unsettled(&store, NOW).await.len(), 2_500);
}
