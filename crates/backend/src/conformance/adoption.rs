//! Machines that outlive the daemon are found again by their records.

use roost_model::plan::Stop;
use roost_model::state::Machine;
use roost_model::{Capability, ExitCause};

use super::Outcome;
use super::harness::{Act, GuestKind, Harness};
use super::lifecycle::{is_end, needs};
use super::stage::{Stage, conduct, ensure};
use crate::Happened;

/// A running machine is found running, its end is watched again, and it obeys.
pub async fn a_running_machine_is_adopted(harness: &dyn Harness) -> Outcome {
    conduct("a_running_machine_is_adopted", harness, needs(Capability::Adopt), async |s| {
        let (vm, launch) = s.running(GuestKind::Plain).await?;
        let ends = s.die().await?.into_iter().filter(|e| is_end(e.happened)).count();
        ensure!(ends == 0, "a machine ended with the daemon");
        s.start().await;
        let report = s.adopt_one(&vm).await?;
        ensure!(report.machine == Machine::Running, "adopt says {:?}", report.machine);
        ensure!(report.launch == Some(launch), "adopt names {:?}, not {launch}", report.launch);
        s.expect(&vm, Machine::Running, "after adopt").await?;
        if s.capabilities.has(Capability::Pause) {
            s.pause(&vm).await?;
            s.expect(&vm, Machine::Paused, "after adopt and pause").await?;
            s.resume(&vm).await?;
        }
        if s.harness.can(Act::Kill) {
            s.act(&vm, Act::Kill).await?;
            let event = s.next_event(&vm).await?;
            let told = (event.launch, event.happened);
            ensure!(
                told == (launch, Happened::Ended(ExitCause::Killed)),
                "the end of an adopted machine is told as {event:?}"
            );
        } else {
            s.shutdown(&vm, Stop::Forced).await?;
        }
        s.clear(&vm).await?;
        s.boot(&vm).await?;
        Ok(())
    })
    .await
}

/// A paused machine is found paused, stays so, and goes on when it is told to.
pub async fn a_paused_machine_is_adopted(harness: &dyn Harness) -> Outcome {
    let wants = |s: &Stage<'_>| needs(Capability::Adopt)(s).and_then(|()| needs(Capability::Pause)(s));
    conduct("a_paused_machine_is_adopted", harness, wants, async |s| {
        let (vm, launch) = s.running(GuestKind::Plain).await?;
        s.pause(&vm).await?;
        s.restart().await?;
        let report = s.adopt_one(&vm).await?;
        ensure!(report.machine == Machine::Paused, "adopt says {:?}", report.machine);
        ensure!(report.launch == Some(launch), "adopt names {:?}, not {launch}", report.launch);
        s.expect(&vm, Machine::Paused, "after adopt").await?;
        s.resume(&vm).await?;
        s.expect(&vm, Machine::Running, "after adopt and resume").await?;
        Ok(())
    })
    .await
}

/// What was created and never ran, what was cleared away, and what was never made are found as that.
pub async fn what_never_ran_is_adopted(harness: &dyn Harness) -> Outcome {
    conduct("what_never_ran_is_adopted", harness, needs(Capability::Adopt), async |s| {
        let never_made = s.vm(GuestKind::Plain);
        let created = s.created(GuestKind::Plain).await?;
        let (cleared, _) = s.running(GuestKind::Plain).await?;
        s.shutdown(&cleared, Stop::Forced).await?;
        s.clear(&cleared).await?;
        s.restart().await?;
        let reports = s.adopt(&[&never_made, &created, &cleared]).await?;
        ensure!(reports[0].machine == Machine::Absent, "what was never made is adopted as {:?}", reports[0].machine);
        ensure!(reports[1].machine == Machine::Defined, "what never ran is adopted as {:?}", reports[1].machine);
        let gone = matches!(reports[2].machine, Machine::Defined | Machine::Ended { lingering: false, .. });
        ensure!(gone, "what was cleared away is adopted as {:?}", reports[2].machine);
        for vm in [&created, &cleared] {
            s.boot(vm).await?;
            s.expect(vm, Machine::Running, "after adopt and boot").await?;
        }
        Ok(())
    })
    .await
}

/// A second adoption gives the same answer, and ends are still told once.
pub async fn adopting_twice_changes_nothing(harness: &dyn Harness) -> Outcome {
    conduct("adopting_twice_changes_nothing", harness, needs(Capability::Adopt), async |s| {
        let (vm, launch) = s.running(GuestKind::Plain).await?;
        s.restart().await?;
        let first = s.adopt_one(&vm).await?;
        let second = s.adopt_one(&vm).await?;
        ensure!(first == second, "adopt says {first:?} and then {second:?}");
        if !s.harness.can(Act::Kill) {
            return Ok(());
        }
        s.act(&vm, Act::Kill).await?;
        let event = s.next_event(&vm).await?;
        ensure!(event.launch == launch && is_end(event.happened), "the kill is told as {event:?}");
        s.expect_ended(&vm, ExitCause::Killed, "after the kill").await?;
        let again = s.die().await?.into_iter().find(|e| is_end(e.happened));
        ensure!(again.is_none(), "the end was told again: {again:?}");
        s.start().await;
        Ok(())
    })
    .await
}

/// One answer per adoptee, in order, whatever they are.
pub async fn adoption_answers_in_order(harness: &dyn Harness) -> Outcome {
    conduct("adoption_answers_in_order", harness, needs(Capability::Adopt), async |s| {
        let created = s.created(GuestKind::Plain).await?;
        let (running, launch) = s.running(GuestKind::Plain).await?;
        let (ended, ended_launch) = s.running(GuestKind::Plain).await?;
        s.shutdown(&ended, Stop::Forced).await?;
        s.restart().await?;
        let reports = s.adopt(&[&ended, &created, &running]).await?;
        let is_ended = matches!(reports[0].machine, Machine::Ended { .. });
        ensure!(is_ended && reports[0].launch == Some(ended_launch), "first, what ended: {:?}", reports[0]);
        ensure!(reports[1].machine == Machine::Defined, "second, what never ran: {:?}", reports[1]);
        ensure!(
            reports[2].machine == Machine::Running && reports[2].launch == Some(launch),
            "third, what runs: {:?}",
            reports[2]
        );
        let none = s.adopt(&[]).await?;
        ensure!(none.is_empty(), "adopt of nothing answers {none:?}");
        Ok(())
    })
    .await
}
