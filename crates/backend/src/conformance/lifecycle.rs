//! One VM from its creation to its deletion, by what it is asked to do.

use std::time::Instant;

use roost_model::plan::Stop;
use roost_model::state::Machine;
use roost_model::{Capability, ExitCause};

use super::Outcome;
use super::harness::{GuestKind, Harness};
use super::stage::{Stage, always, conduct, ensure, told, within};
use crate::{AgentEndpoint, Happened};

/// `ping` and `capabilities` answer at once and alike, and the harness's VMs are within them.
pub async fn answers_before_it_is_asked_to_act(harness: &dyn Harness) -> Outcome {
    conduct("answers_before_it_is_asked_to_act", harness, always, async |s| {
        s.call("ping", s.backend().ping()).await?;
        let again = s.call("capabilities", s.backend().capabilities()).await?;
        ensure!(again == s.capabilities, "capabilities changed from {:?} to {again:?}", s.capabilities);
        ensure!(s.backend().name() == s.backend().name(), "the name changed");
        for guest in [GuestKind::Plain, GuestKind::Deaf] {
            let spec = s.harness.definition(guest).spec;
            spec.check().map_err(|e| format!("the harness's {guest:?} VM is not valid: {e}"))?;
            if let Some(capability) = again.lacking(&spec) {
                return Err(format!("the harness's {guest:?} VM needs {capability}, which the backend lacks"));
            }
        }
        Ok(())
    })
    .await
}

/// `create` twice is `create` once.
pub async fn create_is_idempotent(harness: &dyn Harness) -> Outcome {
    conduct("create_is_idempotent", harness, always, async |s| {
        let vm = s.created(GuestKind::Plain).await?;
        let recorded = vm.resources();
        s.create(&vm).await?;
        ensure!(
            vm.resources().len() == recorded.len(),
            "a second create recorded {:?} beside {recorded:?}",
            vm.resources()
        );
        s.expect(&vm, Machine::Defined, "after two creates").await?;
        Ok(())
    })
    .await
}

/// `info` says what is there at each station of a life.
pub async fn info_is_honest(harness: &dyn Harness) -> Outcome {
    conduct("info_is_honest", harness, always, async |s| {
        let vm = s.vm(GuestKind::Plain);
        s.expect(&vm, Machine::Absent, "before create").await?;
        s.create(&vm).await?;
        s.expect(&vm, Machine::Defined, "after create").await?;
        s.boot(&vm).await?;
        s.expect(&vm, Machine::Running, "after boot").await?;
        let cause = s.shutdown(&vm, Stop::Forced).await?;
        ensure!(cause == ExitCause::Forced, "a forced shutdown gives the cause {cause}");
        s.expect_ended(&vm, ExitCause::Forced, "after a forced shutdown").await?;
        s.clear(&vm).await?;
        let report = s.look(&vm).await?;
        let gone = matches!(report.machine, Machine::Defined | Machine::Ended { lingering: false, .. });
        ensure!(gone, "after clear, info says {:?}", report.machine);
        s.delete(&vm).await?;
        s.expect(&vm, Machine::Absent, "after delete").await?;
        s.expect_nothing_left(&vm).await
    })
    .await
}

/// A VM that has a living machine, running or paused, is not booted again, and the machine lives on.
pub async fn a_second_boot_is_refused(harness: &dyn Harness) -> Outcome {
    conduct("a_second_boot_is_refused", harness, always, async |s| {
        let (vm, launch) = s.running(GuestKind::Plain).await?;
        let mut states = vec![Machine::Running];
        if s.capabilities.has(Capability::Pause) {
            states.push(Machine::Paused);
        }
        for state in states {
            if state == Machine::Paused {
                s.pause(&vm).await?;
            }
            let other = super::stage::new_launch();
            let refused = s.refused("a second boot", s.backend().boot(&vm.definition, other, &vm.journal)).await?;
            ensure!(refused.reason == "WRONG_STATE", "a second boot of a {state} machine fails as {}", told(&refused));
            let report = s.expect(&vm, state, "after a second boot was refused").await?;
            ensure!(report.launch == Some(launch), "the machine is now of {:?}", report.launch);
            let foreign: Vec<_> = vm.resources().into_iter().filter(|r| r.launch == Some(other)).collect();
            ensure!(foreign.is_empty(), "a refused boot left records: {foreign:?}");
        }
        Ok(())
    })
    .await
}

/// `pause` twice is `pause` once, and so with `resume`; `info` tells them apart.
pub async fn pause_and_resume_are_idempotent(harness: &dyn Harness) -> Outcome {
    conduct("pause_and_resume_are_idempotent", harness, needs(Capability::Pause), async |s| {
        let (vm, _) = s.running(GuestKind::Plain).await?;
        s.resume(&vm).await.map_err(|e| format!("of a running machine: {e}"))?;
        for _ in 0..2 {
            s.pause(&vm).await?;
            s.expect(&vm, Machine::Paused, "after pause").await?;
        }
        for _ in 0..2 {
            s.resume(&vm).await?;
            s.expect(&vm, Machine::Running, "after resume").await?;
        }
        Ok(())
    })
    .await
}

/// There is nothing to pause or resume before a launch and after an end.
pub async fn pause_and_resume_need_a_living_machine(harness: &dyn Harness) -> Outcome {
    conduct("pause_and_resume_need_a_living_machine", harness, needs(Capability::Pause), async |s| {
        let vm = s.created(GuestKind::Plain).await?;
        for when in ["before its launch", "after its end"] {
            s.refused(&format!("pause of a machine {when}"), s.backend().pause(vm.id())).await?;
            s.refused(&format!("resume of a machine {when}"), s.backend().resume(vm.id())).await?;
            if vm.launch().is_none() {
                s.boot(&vm).await?;
                s.shutdown(&vm, Stop::Forced).await?;
            }
        }
        Ok(())
    })
    .await
}

/// A machine that was ended stays ended, with the cause that it had.
pub async fn a_forced_shutdown_is_idempotent(harness: &dyn Harness) -> Outcome {
    conduct("a_forced_shutdown_is_idempotent", harness, always, async |s| {
        let (vm, _) = s.running(GuestKind::Plain).await?;
        for stop in [Stop::Forced, Stop::Forced, Stop::Graceful(s.scale.short_grace)] {
            let cause = s.shutdown(&vm, stop).await?;
            ensure!(cause == ExitCause::Forced, "shutdown ({stop:?}) gives the cause {cause}");
        }
        s.expect_ended(&vm, ExitCause::Forced, "after shutdowns").await?;
        if s.capabilities.has(Capability::Pause) {
            let (paused, _) = s.running(GuestKind::Plain).await?;
            s.pause(&paused).await?;
            let cause = s.shutdown(&paused, Stop::Forced).await?;
            ensure!(cause == ExitCause::Forced, "shutdown of a paused machine gives the cause {cause}");
        }
        Ok(())
    })
    .await
}

/// Stopping what is stopped is a success, whatever cause is given for it.
pub async fn shutting_down_what_does_not_run_succeeds(harness: &dyn Harness) -> Outcome {
    conduct("shutting_down_what_does_not_run_succeeds", harness, always, async |s| {
        let vm = s.created(GuestKind::Plain).await?;
        s.shutdown(&vm, Stop::Forced).await.map_err(|e| format!("of a VM that never ran: {e}"))?;
        s.boot(&vm).await?;
        s.shutdown(&vm, Stop::Forced).await?;
        s.clear(&vm).await?;
        s.shutdown(&vm, Stop::Forced).await.map_err(|e| format!("of a VM whose machine was cleared away: {e}"))?;
        Ok(())
    })
    .await
}

/// A guest that is asked to shut down does so, and that counts as its power-off.
pub async fn a_guest_obeys_a_graceful_shutdown(harness: &dyn Harness) -> Outcome {
    conduct("a_guest_obeys_a_graceful_shutdown", harness, needs(Capability::GracefulShutdown), async |s| {
        let (vm, _) = s.running(GuestKind::Plain).await?;
        s.guest_up(&vm).await?;
        let cause = s.shutdown(&vm, Stop::Graceful(s.scale.patience)).await?;
        ensure!(cause == ExitCause::PowerOff, "a guest that obeys gives the cause {cause}");
        s.expect_ended(&vm, ExitCause::PowerOff, "after a graceful shutdown").await
    })
    .await
}

/// A guest that does not obey is ended by force at the deadline, not before and not much later.
pub async fn a_deaf_guest_is_forced_at_the_deadline(harness: &dyn Harness) -> Outcome {
    conduct("a_deaf_guest_is_forced_at_the_deadline", harness, needs(Capability::GracefulShutdown), async |s| {
        let (vm, _) = s.running(GuestKind::Deaf).await?;
        s.guest_up(&vm).await?;
        let (begun, grace) = (Instant::now(), s.scale.short_grace);
        let cause = s.shutdown(&vm, Stop::Graceful(grace)).await?;
        ensure!(cause == ExitCause::Forced, "a deaf guest gives the cause {cause}");
        ensure!(begun.elapsed() >= grace, "it was ended after {:?} of {grace:?}", begun.elapsed());
        s.expect_ended(&vm, ExitCause::Forced, "after the deadline").await
    })
    .await
}

/// A reboot, soft or forced, starts the guest anew in the same machine: nothing ends.
pub async fn a_reboot_keeps_the_launch(harness: &dyn Harness) -> Outcome {
    conduct("a_reboot_keeps_the_launch", harness, needs(Capability::Reboot), async |s| {
        let (vm, launch) = s.running(GuestKind::Plain).await?;
        s.guest_up(&vm).await?;
        let patience = s.scale.patience;
        for stop in [Stop::Forced, Stop::Graceful(patience)] {
            s.reboot(&vm, stop).await?;
            s.expect(&vm, Machine::Running, "after a reboot").await?;
            s.guest_up(&vm).await?;
        }
        let events = s.die().await?;
        let odd = events.iter().find(|e| e.happened != Happened::Reset || e.launch != launch);
        ensure!(odd.is_none(), "a reboot was told as {odd:?}");
        ensure!(events.len() <= 2, "two reboots were told as {} resets", events.len());
        s.start().await;
        Ok(())
    })
    .await
}

/// A guest that does not obey a soft reboot is reset at the deadline.
pub async fn a_deaf_guest_is_reset_at_the_deadline(harness: &dyn Harness) -> Outcome {
    let wants = |s: &Stage<'_>| needs(Capability::Reboot)(s).and_then(|()| needs(Capability::GracefulShutdown)(s));
    conduct("a_deaf_guest_is_reset_at_the_deadline", harness, wants, async |s| {
        let (vm, _) = s.running(GuestKind::Deaf).await?;
        s.guest_up(&vm).await?;
        let (begun, grace) = (Instant::now(), s.scale.short_grace);
        s.reboot(&vm, Stop::Graceful(grace)).await?;
        ensure!(begun.elapsed() >= grace, "it was reset after {:?} of {grace:?}", begun.elapsed());
        s.expect(&vm, Machine::Running, "after the deadline").await?;
        Ok(())
    })
    .await
}

/// What was cleared away boots again as another launch, as often as one likes.
pub async fn a_cleared_machine_boots_again(harness: &dyn Harness) -> Outcome {
    conduct("a_cleared_machine_boots_again", harness, always, async |s| {
        let (vm, first) = s.running(GuestKind::Plain).await?;
        for _ in 0..2 {
            s.shutdown(&vm, Stop::Forced).await?;
            s.clear(&vm).await?;
            s.clear(&vm).await.map_err(|e| format!("the second time: {e}"))?;
            let launch = s.boot(&vm).await?;
            ensure!(launch != first, "the check's launches are alike");
            s.expect(&vm, Machine::Running, "after another boot").await?;
        }
        let stale = s.die().await?.into_iter().find(|e| Some(e.launch) == vm.launch() && is_end(e.happened));
        ensure!(stale.is_none(), "an end was told of the machine that runs: {stale:?}");
        s.start().await;
        Ok(())
    })
    .await
}

/// `clear` needs no shutdown before it.
pub async fn clear_ends_a_living_machine(harness: &dyn Harness) -> Outcome {
    conduct("clear_ends_a_living_machine", harness, always, async |s| {
        let (vm, _) = s.running(GuestKind::Plain).await?;
        s.clear(&vm).await?;
        let report = s.look(&vm).await?;
        ensure!(!report.machine.is_up(), "after clear, info says {:?}", report.machine);
        s.boot(&vm).await?;
        s.expect(&vm, Machine::Running, "after another boot").await?;
        Ok(())
    })
    .await
}

/// `delete` needs no shutdown and no `clear` before it.
pub async fn delete_ends_a_living_machine(harness: &dyn Harness) -> Outcome {
    conduct("delete_ends_a_living_machine", harness, always, async |s| {
        let (vm, _) = s.running(GuestKind::Deaf).await?;
        s.delete(&vm).await?;
        s.expect_nothing_left(&vm).await?;
        s.expect(&vm, Machine::Absent, "after delete").await?;
        Ok(())
    })
    .await
}

/// `delete` and `clear` of what is gone, or never was, are successes.
pub async fn deleting_what_is_gone_succeeds(harness: &dyn Harness) -> Outcome {
    conduct("deleting_what_is_gone_succeeds", harness, always, async |s| {
        let never = s.vm(GuestKind::Plain);
        s.clear(&never).await.map_err(|e| format!("of a VM that never was: {e}"))?;
        s.delete(&never).await.map_err(|e| format!("of a VM that never was: {e}"))?;
        let (vm, _) = s.running(GuestKind::Plain).await?;
        let recorded = vm.resources();
        s.delete(&vm).await?;
        s.delete(&vm).await.map_err(|e| format!("the second time: {e}"))?;
        // As after a death between the last removal and the forgetting of it.
        s.call("delete by old records", s.backend().delete(vm.id(), &recorded, &vm.journal)).await?;
        s.expect_nothing_left(&vm).await
    })
    .await
}

/// `console` answers whether the machine runs or not, and its log stays where it is.
pub async fn the_console_is_known_at_any_time(harness: &dyn Harness) -> Outcome {
    conduct("the_console_is_known_at_any_time", harness, needs(Capability::SerialConsole), async |s| {
        let vm = s.created(GuestKind::Plain).await?;
        let before = s.call("console", s.backend().console(vm.id())).await?;
        ensure!(before.socket.is_none(), "the console of a VM that never ran has a socket: {:?}", before.socket);
        s.boot(&vm).await?;
        let during = s.call("console", s.backend().console(vm.id())).await?;
        ensure!(during.log_dir == before.log_dir, "the log moved from {:?} to {:?}", before.log_dir, during.log_dir);
        if let Some(socket) = &during.socket {
            let connected = within(s.scale.patience, "the console", tokio::net::UnixStream::connect(socket)).await?;
            connected.map_err(|e| format!("nobody answers at the console's socket {socket:?}: {e}"))?;
        }
        Ok(())
    })
    .await
}

/// `agent` names sockets only of a machine that is up, and somebody listens there.
pub async fn the_channels_into_a_guest_are_those_of_a_machine_that_is_up(harness: &dyn Harness) -> Outcome {
    const NAME: &str = "the_channels_into_a_guest_are_those_of_a_machine_that_is_up";
    conduct(NAME, harness, needs(Capability::AgentChannel), async |s| {
        let vm = s.created(GuestKind::Plain).await?;
        let before = s.call("agent", s.backend().agent(vm.id())).await?;
        ensure!(before == AgentEndpoint::default(), "a VM that never ran has channels: {before:?}");
        s.boot(&vm).await?;
        let during = s.call("agent", s.backend().agent(vm.id())).await?;
        for socket in [&during.socket, &during.qemu_guest_agent].into_iter().flatten() {
            let connected = within(s.scale.patience, "a channel", tokio::net::UnixStream::connect(socket)).await?;
            connected.map_err(|e| format!("nobody answers at {socket:?}: {e}"))?;
        }
        s.call("shutdown", s.backend().shutdown(vm.id(), Stop::Forced)).await?;
        let after = s.call("agent", s.backend().agent(vm.id())).await?;
        ensure!(after == AgentEndpoint::default(), "a machine that ended has channels: {after:?}");
        Ok(())
    })
    .await
}

/// Skips a check when the backend has no such capability.
pub(super) fn needs(capability: Capability) -> impl FnOnce(&Stage<'_>) -> Result<(), String> {
    move |s| match s.capabilities.has(capability) {
        true => Ok(()),
        false => Err(format!("the backend has no {capability}")),
    }
}

/// Whether an event tells of an end.
pub(super) fn is_end(happened: Happened) -> bool {
    matches!(happened, Happened::Ended(_))
}
