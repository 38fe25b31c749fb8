//! Machines that end by themselves: told once, with their launch and their cause, also when they
//! ended while no daemon was there to see it.

use roost_model::state::Machine;
use roost_model::{Capability, ExitCause};

use super::Outcome;
use super::harness::{Act, GuestKind, Harness};
use super::lifecycle::is_end;
use super::stage::{Seen, Stage, conduct, ensure};
use crate::Happened;

/// A guest that powers itself off ends as `PowerOff`.
pub async fn a_power_off_is_told_once(harness: &dyn Harness) -> Outcome {
    told_once("a_power_off_is_told_once", harness, Act::PowerOff, ExitCause::PowerOff).await
}

/// A guest that panics ends as `Panic`.
pub async fn a_panic_is_told_once(harness: &dyn Harness) -> Outcome {
    told_once("a_panic_is_told_once", harness, Act::Panic, ExitCause::Panic).await
}

/// A machine whose process was killed ends as `Killed`.
pub async fn a_kill_is_told_once(harness: &dyn Harness) -> Outcome {
    told_once("a_kill_is_told_once", harness, Act::Kill, ExitCause::Killed).await
}

/// A guest that resets itself runs on; that is told at most once.
pub async fn a_reset_is_no_end(harness: &dyn Harness) -> Outcome {
    conduct("a_reset_is_no_end", harness, possible(Act::Reset, None), async |s| {
        let (vm, launch) = s.running(GuestKind::Plain).await?;
        s.guest_up(&vm).await?;
        s.act(&vm, Act::Reset).await?;
        s.guest_up(&vm).await?;
        s.expect(&vm, Machine::Running, "after the guest's reset").await?;
        let events = s.die().await?;
        let odd = events.iter().find(|e| e.happened != Happened::Reset || e.launch != launch);
        ensure!(odd.is_none(), "a reset was told as {odd:?}");
        ensure!(events.len() <= 1, "one reset was told {} times", events.len());
        s.start().await;
        Ok(())
    })
    .await
}

/// A power-off while no daemon runs is found as what it was.
pub async fn a_power_off_without_daemon_is_found(harness: &dyn Harness) -> Outcome {
    found_later("a_power_off_without_daemon_is_found", harness, Act::PowerOff, ExitCause::PowerOff).await
}

/// A panic while no daemon runs is found as what it was.
pub async fn a_panic_without_daemon_is_found(harness: &dyn Harness) -> Outcome {
    found_later("a_panic_without_daemon_is_found", harness, Act::Panic, ExitCause::Panic).await
}

/// A kill while no daemon runs is found as what it was.
pub async fn a_kill_without_daemon_is_found(harness: &dyn Harness) -> Outcome {
    found_later("a_kill_without_daemon_is_found", harness, Act::Kill, ExitCause::Killed).await
}

/// An end that one daemon was told of and did not clear away is found by the next with the same cause.
pub async fn an_end_that_was_told_is_found_again(harness: &dyn Harness) -> Outcome {
    let wants = |s: &Stage<'_>| possible(Act::PowerOff, None)(s).or_else(|_| possible(Act::Kill, None)(s));
    conduct("an_end_that_was_told_is_found_again", harness, wants, async |s| {
        for (act, cause) in [(Act::PowerOff, ExitCause::PowerOff), (Act::Kill, ExitCause::Killed)] {
            if !s.harness.can(act) {
                continue;
            }
            let (vm, _) = s.running(GuestKind::Plain).await?;
            s.guest_up(&vm).await?;
            s.act(&vm, act).await?;
            s.next_event(&vm).await?;
            s.restart().await?;
            let report = s.adopt_one(&vm).await?;
            expect_end(report.machine, cause, "adopt")?;
            s.expect_ended(&vm, cause, "after adopt").await?;
        }
        Ok(())
    })
    .await
}

async fn told_once(obligation: &'static str, harness: &dyn Harness, act: Act, cause: ExitCause) -> Outcome {
    conduct(obligation, harness, possible(act, Some(cause)), async |s| {
        let (vm, launch) = s.running(GuestKind::Plain).await?;
        s.guest_up(&vm).await?;
        s.act(&vm, act).await?;
        let event = s.next_event(&vm).await?;
        ensure!(event.launch == launch, "the end names {}, not {launch}", event.launch);
        ensure!(event.happened == Happened::Ended(cause), "it is told as {:?}, not as {cause}", event.happened);
        s.expect_ended(&vm, cause, "after the event").await?;
        let asked = s.shutdown(&vm, roost_model::plan::Stop::Forced).await?;
        ensure!(asked == cause, "a shutdown after the end gives the cause {asked}, not {cause}");
        // Gone with its backend, the channel holds all that was ever told.
        let again = s.die().await?.into_iter().find(|e| e.vm == vm.id() && is_end(e.happened));
        ensure!(again.is_none(), "the end was told again: {again:?}");
        s.start().await;
        s.adopt_one(&vm).await?;
        s.clear(&vm).await?;
        s.boot(&vm).await?;
        s.expect(&vm, Machine::Running, "after another boot").await?;
        Ok(())
    })
    .await
}

async fn found_later(obligation: &'static str, harness: &dyn Harness, act: Act, cause: ExitCause) -> Outcome {
    conduct(obligation, harness, possible(act, Some(cause)), async |s| {
        let (vm, launch) = s.running(GuestKind::Plain).await?;
        s.guest_up(&vm).await?;
        s.die().await?;
        s.act(&vm, act).await?;
        s.start().await;
        let adopted = s.adopt_one(&vm).await?;
        match adopted.machine {
            // The harness need not wait until the guest has done it: then the event tells.
            Machine::Running => {
                let event = s.next_event(&vm).await?;
                ensure!(event.happened == Happened::Ended(cause), "it is told as {:?}, not as {cause}", event.happened);
                ensure!(event.launch == launch, "the end names {}, not {launch}", event.launch);
            }
            ended => {
                expect_end(ended, cause, "adopt")?;
                ensure!(adopted.launch == Some(launch), "adopt names {:?}, not {launch}", adopted.launch);
            }
        }
        s.expect_ended(&vm, cause, "after adopt").await?;
        let ends: Vec<_> = s.die().await?.into_iter().filter(|e| e.vm == vm.id() && is_end(e.happened)).collect();
        ensure!(ends.len() <= 1, "the end was told {} times", ends.len());
        ensure!(
            ends.iter().all(|e| e.happened == Happened::Ended(cause) && e.launch == launch),
            "adopt says {cause}, and the event {ends:?}"
        );
        s.start().await;
        Ok(())
    })
    .await
}

fn expect_end(machine: Machine, cause: ExitCause, who: &str) -> Seen {
    match machine {
        Machine::Ended { cause: seen, .. } if seen == cause => Ok(()),
        other => Err(format!("{who} says {other:?}, not that it ended by {cause}")),
    }
}

/// Skips a check when the harness cannot act so, or the backend cannot tell the cause.
fn possible(act: Act, cause: Option<ExitCause>) -> impl FnOnce(&Stage<'_>) -> Result<(), String> {
    move |s| {
        if !s.harness.can(act) {
            return Err(format!("the harness cannot do {act:?}"));
        }
        if cause == Some(ExitCause::Panic) && !s.capabilities.has(Capability::PanicEvents) {
            return Err(format!("the backend has no {}", Capability::PanicEvents));
        }
        Ok(())
    }
}
