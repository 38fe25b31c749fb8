//! The record comes first, and calls may be dropped anywhere: whatever was made is found and removed.

use roost_model::plan::Stop;
use roost_model::state::Machine;

use super::Outcome;
use super::harness::{GuestKind, Harness};
use super::stage::{Seen, Stage, StagedVm, always, conduct, cut, cut_points, ensure, told};
use crate::ErrorKind;

/// More records than this for one create and one boot: it does not end.
const MOST_RECORDS: usize = 100;

/// A machine that runs is on record with its launch; what is deleted is not on record.
pub async fn everything_is_on_record(harness: &dyn Harness) -> Outcome {
    conduct("everything_is_on_record", harness, always, async |s| {
        let vm = s.created(GuestKind::Plain).await?;
        let early: Vec<_> = vm.resources().into_iter().filter(|r| r.launch.is_some()).collect();
        ensure!(early.is_empty(), "create recorded something of a launch: {early:?}");
        expect_recorded(s, &vm, "after create").await?;
        let launch = s.boot(&vm).await?;
        let of_launch = vm.resources().into_iter().any(|r| r.launch == Some(launch));
        ensure!(of_launch, "nothing is on record for the launch: {:?}", vm.resources());
        let mut keys: Vec<_> = vm.resources().into_iter().map(|r| (r.kind, r.key)).collect();
        let all = keys.len();
        keys.sort();
        keys.dedup();
        ensure!(keys.len() == all, "kind and key are not unique: {:?}", vm.resources());
        s.clear(&vm).await?;
        s.delete(&vm).await?;
        s.expect_nothing_left(&vm).await
    })
    .await
}

/// When the `n`th record cannot be written, the call fails, what exists is on record, and clearing
/// and deleting by it leave nothing; once records can be written again, all goes on.
pub async fn a_record_that_fails_leaves_nothing_unrecorded(harness: &dyn Harness) -> Outcome {
    conduct("a_record_that_fails_leaves_nothing_unrecorded", harness, always, async |s| {
        for n in 0..MOST_RECORDS {
            let vm = s.vm(GuestKind::Plain);
            vm.journal.fail_records_from(n);
            let launch = vm.next_launch();
            let made = async {
                s.backend().create(&vm.definition, &vm.journal).await?;
                s.backend().boot(&vm.definition, launch, &vm.journal).await
            };
            let made = super::stage::within(s.scale.patience, "create and boot", made).await?;
            if vm.journal.failures() == 0 {
                made.map_err(|e| format!("boot failed although every record was written: {}", told(&e)))?;
                s.delete(&vm).await?;
                return Ok(());
            }
            let Err(error) = made else {
                return Err(format!("boot succeeded although record {n} could not be written"));
            };
            ensure!(error.kind == ErrorKind::Transient, "record {n} failed, and boot gives {}", told(&error));
            expect_recorded(s, &vm, &format!("after record {n} failed")).await?;
            let report = s.look(&vm).await?;
            ensure!(!report.machine.is_up(), "a machine runs although record {n} could not be written");
            vm.journal.heal();
            if n % 2 == 0 {
                s.create(&vm).await?;
                s.clear(&vm).await?;
                s.boot(&vm).await.map_err(|e| format!("once record {n} could be written: {e}"))?;
            }
            s.clear(&vm).await?;
            s.delete(&vm).await?;
            s.expect_nothing_left(&vm).await.map_err(|e| format!("after record {n} failed: {e}"))?;
        }
        Err(format!("create and boot write more than {MOST_RECORDS} records"))
    })
    .await
}

/// When a record cannot be removed, the call that was to do it can be repeated.
pub async fn a_record_that_cannot_be_forgotten_is_tried_again(harness: &dyn Harness) -> Outcome {
    conduct("a_record_that_cannot_be_forgotten_is_tried_again", harness, always, async |s| {
        for n in 0..MOST_RECORDS {
            let (vm, _) = s.running(GuestKind::Plain).await?;
            vm.journal.fail_forgets_from(n);
            // Whether this fails is the backend's choice: what is gone does no harm in the record.
            let _ = super::stage::within(
                s.scale.patience,
                "delete",
                s.backend().delete(vm.id(), &vm.resources(), &vm.journal),
            )
            .await?;
            let failed = vm.journal.failures() > 0;
            vm.journal.heal();
            s.delete(&vm).await.map_err(|e| format!("after record {n} could not be forgotten: {e}"))?;
            s.expect_nothing_left(&vm).await?;
            if !failed {
                return Ok(());
            }
        }
        Err(format!("delete forgets more than {MOST_RECORDS} records"))
    })
    .await
}

/// A `create` that was dropped is completed by another, or undone by `delete`.
pub async fn a_dropped_create_is_completed(harness: &dyn Harness) -> Outcome {
    conduct("a_dropped_create_is_completed", harness, always, async |s| {
        for polls in cut_points(s.scale) {
            let vm = s.vm(GuestKind::Plain);
            let done = cut(polls, s.scale.patience, s.backend().create(&vm.definition, &vm.journal)).await;
            expect_recorded(s, &vm, &after(polls, "create")).await?;
            if polls % 2 == 0 {
                s.create(&vm).await?;
                s.boot(&vm).await.map_err(|e| format!("{}: {e}", after(polls, "create")))?;
            }
            s.delete(&vm).await?;
            s.expect_nothing_left(&vm).await.map_err(|e| format!("{}: {e}", after(polls, "create")))?;
            if let Some(done) = done {
                return done.map_err(|e| format!("create failed: {}", told(&e)));
            }
        }
        Ok(())
    })
    .await
}

/// A `boot` that was dropped leaves what `clear` finds by the records, whether the daemon went on or
/// died with it; then the VM boots anew.
pub async fn a_dropped_boot_leaves_nothing(harness: &dyn Harness) -> Outcome {
    conduct("a_dropped_boot_leaves_nothing", harness, always, async |s| {
        for (i, polls) in cut_points(s.scale).enumerate() {
            let when = after(polls, "boot");
            let vm = s.created(GuestKind::Plain).await?;
            let launch = vm.next_launch();
            let done = cut(polls, s.scale.patience, s.backend().boot(&vm.definition, launch, &vm.journal)).await;
            match i % 3 {
                0 => {}
                1 => s.restart().await?,
                _ => {
                    s.restart().await?;
                    let report = s.adopt_one(&vm).await?;
                    let ours = report.launch.is_none_or(|l| l == launch);
                    ensure!(ours, "{when}, adopt finds a machine of {:?}", report.launch);
                }
            }
            s.clear(&vm).await.map_err(|e| format!("{when}: {e}"))?;
            let report = s.look(&vm).await?;
            ensure!(!report.machine.is_up(), "{when} and clear, info says {:?}", report.machine);
            s.boot(&vm).await.map_err(|e| format!("{when}: {e}"))?;
            s.expect(&vm, Machine::Running, &format!("{when}, clear and another boot")).await?;
            s.delete(&vm).await?;
            s.expect_nothing_left(&vm).await.map_err(|e| format!("{when}: {e}"))?;
            if let Some(done) = done {
                return done.map(|_| ()).map_err(|e| format!("boot failed: {}", told(&e)));
            }
        }
        Ok(())
    })
    .await
}

/// A graceful `shutdown` that was dropped leaves a machine that lives or has ended, and can be ended and cleared.
pub async fn a_dropped_shutdown_leaves_the_machine_to_clear(harness: &dyn Harness) -> Outcome {
    conduct("a_dropped_shutdown_leaves_the_machine_to_clear", harness, always, async |s| {
        for polls in cut_points(s.scale).take(4) {
            let when = after(polls, "shutdown");
            let (vm, _) = s.running(GuestKind::Deaf).await?;
            let _ =
                cut(polls, s.scale.short_grace, s.backend().shutdown(vm.id(), Stop::Graceful(s.scale.patience))).await;
            s.shutdown(&vm, Stop::Forced).await.map_err(|e| format!("{when}: {e}"))?;
            s.clear(&vm).await.map_err(|e| format!("{when}: {e}"))?;
            let launch = s.boot(&vm).await?;
            let report = s.expect(&vm, Machine::Running, &format!("{when}, clear and another boot")).await?;
            ensure!(report.launch == Some(launch), "{when}, the machine is of {:?}", report.launch);
        }
        Ok(())
    })
    .await
}

/// A `clear` that was dropped is completed by another.
pub async fn a_dropped_clear_is_completed(harness: &dyn Harness) -> Outcome {
    conduct("a_dropped_clear_is_completed", harness, always, async |s| {
        for polls in cut_points(s.scale) {
            let when = after(polls, "clear");
            let (vm, _) = s.running(GuestKind::Plain).await?;
            let done = cut(polls, s.scale.patience, s.backend().clear(vm.id(), &vm.resources(), &vm.journal)).await;
            expect_recorded(s, &vm, &when).await?;
            if polls % 2 == 0 {
                s.restart().await?;
                s.adopt_one(&vm).await?;
            }
            s.clear(&vm).await.map_err(|e| format!("{when}: {e}"))?;
            s.boot(&vm).await.map_err(|e| format!("{when}: {e}"))?;
            s.delete(&vm).await?;
            if let Some(done) = done {
                return done.map_err(|e| format!("clear failed: {}", told(&e)));
            }
        }
        Ok(())
    })
    .await
}

/// A `delete` that was dropped is completed by another.
pub async fn a_dropped_delete_is_completed(harness: &dyn Harness) -> Outcome {
    conduct("a_dropped_delete_is_completed", harness, always, async |s| {
        for polls in cut_points(s.scale) {
            let when = after(polls, "delete");
            let (vm, _) = s.running(GuestKind::Plain).await?;
            let done = cut(polls, s.scale.patience, s.backend().delete(vm.id(), &vm.resources(), &vm.journal)).await;
            expect_recorded(s, &vm, &when).await?;
            if polls % 2 == 0 {
                s.restart().await?;
            }
            s.delete(&vm).await.map_err(|e| format!("{when}: {e}"))?;
            s.expect_nothing_left(&vm).await.map_err(|e| format!("{when}: {e}"))?;
            if let Some(done) = done {
                return done.map_err(|e| format!("delete failed: {}", told(&e)));
            }
        }
        Ok(())
    })
    .await
}

/// What the host holds must be on record; whether each single thing is, only the backend can tell.
async fn expect_recorded(s: &Stage<'_>, vm: &StagedVm, when: &str) -> Seen {
    let left = s.harness.leftovers(vm.id()).await;
    ensure!(left.is_empty() || !vm.resources().is_empty(), "{when}, the host holds {left:?}, and nothing is on record");
    Ok(())
}

fn after(polls: usize, method: &str) -> String {
    format!("after a {method} that was dropped at its poll {polls}")
}
