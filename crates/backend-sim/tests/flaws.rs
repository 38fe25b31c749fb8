//! The conformance suite finds what it is there to find: each flaw here breaks one obligation of a backend
//! that keeps them all otherwise.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time and have a runtime")]

mod support;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use roost_backend::conformance::{Act, GuestKind, Harness, Scale, Subject, run};
use roost_backend::{
    Adoptee, AgentEndpoint, Backend, BackendError, Booted, ConsoleEndpoint, Definition, Event, EventSender, Happened,
    Info, Journal, JournalError, MemoryJournal,
};
use roost_backend_sim::{SimBackend, SimConfig, SimHost, TokioClock};
use roost_model::observe::Report;
use roost_model::plan::Stop;
use roost_model::state::Machine;
use roost_model::{BackendName, Capabilities, ExitCause, LaunchId, Resource, ResourceKind, VmId};
use support::{control, definition};

/// What is wrong with a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    CreatesOnce,
    BootsTwice,
    InfoRemembers,
    InfoForgetsLaunches,
    PausesOnce,
    PausesNothing,
    ForcesAtOnce,
    ForgetsCauses,
    RebootsByEnding,
    ClearLeavesRecords,
    DeleteLeavesDefinition,
    DeletesOnce,
    TellsEndsTwice,
    TellsNoEnds,
    TellsResetsAsEnds,
    TellsWrongLaunch,
    TellsPanicsAsPowerOffs,
    RecordsLate,
    RecordsNothingOfLaunches,
    IgnoresTheJournal,
    DiesWithItsMachines,
    AdoptsBackwards,
    AdoptsWithoutWatching,
    AdoptResumes,
    AdoptFindsAllKilled,
}

/// Each flaw with an obligation that it breaks.
const FLAWS: &[(Flaw, &str)] = &[
    (Flaw::CreatesOnce, "create_is_idempotent"),
    (Flaw::BootsTwice, "a_second_boot_is_refused"),
    (Flaw::InfoRemembers, "info_is_honest"),
    (Flaw::InfoRemembers, "a_kill_is_told_once"),
    (Flaw::InfoForgetsLaunches, "a_cleared_machine_boots_again"),
    (Flaw::PausesOnce, "pause_and_resume_are_idempotent"),
    (Flaw::PausesNothing, "pause_and_resume_need_a_living_machine"),
    (Flaw::ForcesAtOnce, "a_guest_obeys_a_graceful_shutdown"),
    (Flaw::ForcesAtOnce, "a_deaf_guest_is_forced_at_the_deadline"),
    (Flaw::ForcesAtOnce, "a_deaf_guest_is_reset_at_the_deadline"),
    (Flaw::ForgetsCauses, "a_guest_obeys_a_graceful_shutdown"),
    (Flaw::RebootsByEnding, "a_reboot_keeps_the_launch"),
    (Flaw::ClearLeavesRecords, "a_cleared_machine_boots_again"),
    (Flaw::ClearLeavesRecords, "clear_ends_a_living_machine"),
    (Flaw::DeleteLeavesDefinition, "delete_ends_a_living_machine"),
    (Flaw::DeletesOnce, "deleting_what_is_gone_succeeds"),
    (Flaw::DeletesOnce, "a_dropped_delete_is_completed"),
    (Flaw::TellsEndsTwice, "a_power_off_is_told_once"),
    (Flaw::TellsEndsTwice, "many_vms_at_once"),
    (Flaw::TellsNoEnds, "a_kill_is_told_once"),
    (Flaw::TellsResetsAsEnds, "a_reset_is_no_end"),
    (Flaw::TellsWrongLaunch, "a_kill_is_told_once"),
    (Flaw::TellsPanicsAsPowerOffs, "a_panic_is_told_once"),
    (Flaw::RecordsLate, "a_dropped_boot_leaves_nothing"),
    (Flaw::RecordsLate, "a_record_that_fails_leaves_nothing_unrecorded"),
    (Flaw::RecordsNothingOfLaunches, "everything_is_on_record"),
    (Flaw::IgnoresTheJournal, "a_record_that_fails_leaves_nothing_unrecorded"),
    (Flaw::DiesWithItsMachines, "a_running_machine_is_adopted"),
    (Flaw::DiesWithItsMachines, "a_power_off_without_daemon_is_found"),
    (Flaw::AdoptsBackwards, "adoption_answers_in_order"),
    (Flaw::AdoptsWithoutWatching, "a_running_machine_is_adopted"),
    (Flaw::AdoptResumes, "a_paused_machine_is_adopted"),
    (Flaw::AdoptFindsAllKilled, "a_panic_without_daemon_is_found"),
];

#[tokio::test]
async fn every_flaw_is_found() {
    for (flaw, obligation) in FLAWS {
        let checked = AssertUnwindSafe(run(&Harnessed::new(*flaw), |name| name == *obligation)).catch_unwind().await;
        // The simulator itself panics over some flaws: that is found, too.
        if let Ok(report) = checked {
            let found = report.failed.iter().any(|f| f.obligation == *obligation);
            assert!(found, "{flaw:?} was not found by {obligation}:\n{report}");
        }
    }
}

#[tokio::test]
async fn without_a_flaw_none_is_found() {
    let mut obligations: Vec<&str> = FLAWS.iter().map(|(_, o)| *o).collect();
    obligations.dedup();
    let report = run(&Harnessed::new(Flaw::None), |name| obligations.contains(&name)).await;
    report.assert_kept();
    assert_eq!(report.skipped, []);
}

struct Harnessed {
    host: Arc<SimHost>,
    flaw: Flaw,
}

impl Harnessed {
    fn new(flaw: Flaw) -> Self {
        Self { host: SimHost::new(Arc::new(TokioClock::default())), flaw }
    }
}

#[async_trait]
impl Harness for Harnessed {
    async fn backend(&self, events: EventSender) -> Box<dyn Backend> {
        let (tx, rx) = roost_backend::events();
        // It ends with the backend that holds the other end.
        tokio::spawn(relay(rx, events, self.flaw));
        let sim = SimBackend::on(Arc::clone(&self.host), SimConfig::default(), tx);
        Box::new(Flawed { host: Arc::clone(&self.host), sim, flaw: self.flaw, calls: AtomicU32::new(0) })
    }

    fn definition(&self, guest: GuestKind) -> Definition {
        definition(guest)
    }

    async fn guest_up(&self, _vm: &Subject) -> Result<(), String> {
        Ok(())
    }

    fn can(&self, _act: Act) -> bool {
        true
    }

    async fn act(&self, act: Act, vm: &Subject) -> Result<(), String> {
        self.host.control(vm.definition.id, control(act)).map_err(|e| e.to_string())
    }

    async fn leftovers(&self, vm: VmId) -> Vec<String> {
        self.host.leftovers(vm)
    }

    fn scale(&self) -> Scale {
        Scale {
            patience: Duration::from_millis(500),
            short_grace: Duration::from_millis(50),
            crowd: 6,
            ..Scale::default()
        }
    }
}

async fn relay(mut from: roost_backend::EventReceiver, to: EventSender, flaw: Flaw) {
    while let Some(mut event) = from.recv().await {
        let mut times = 1;
        match (flaw, event.happened) {
            (Flaw::TellsEndsTwice, Happened::Ended(_)) => times = 2,
            (Flaw::TellsNoEnds, Happened::Ended(_)) => times = 0,
            (Flaw::TellsResetsAsEnds, Happened::Reset) => event.happened = Happened::Ended(ExitCause::Killed),
            (Flaw::TellsWrongLaunch, _) => event.launch = support::launch(9),
            (Flaw::TellsPanicsAsPowerOffs, Happened::Ended(ExitCause::Panic)) => {
                event.happened = Happened::Ended(ExitCause::PowerOff);
            }
            _ => {}
        }
        for _ in 0..times {
            let _: Result<(), tokio::sync::mpsc::error::SendError<Event>> = to.send(event);
        }
    }
}

#[derive(Debug)]
struct Flawed {
    host: Arc<SimHost>,
    sim: SimBackend,
    flaw: Flaw,
    calls: AtomicU32,
}

impl Flawed {
    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn stop(&self, stop: Stop) -> Stop {
        if self.has(Flaw::ForcesAtOnce) { Stop::Forced } else { stop }
    }

    fn called_before(&self) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed) > 0
    }
}

impl Drop for Flawed {
    fn drop(&mut self) {
        if self.has(Flaw::DiesWithItsMachines) {
            self.host.living().into_iter().for_each(|vm| self.host.kill(vm).unwrap());
        }
    }
}

/// A journal that does not pass everything on.
struct Through<'a> {
    to: Option<&'a dyn Journal>,
    kept: MemoryJournal,
    of_launches: bool,
}

#[async_trait]
impl Journal for Through<'_> {
    async fn record(&self, resource: Resource) -> Result<(), JournalError> {
        match self.to {
            Some(to) if self.of_launches || resource.launch.is_none() => to.record(resource).await,
            _ => self.kept.record(resource).await,
        }
    }

    async fn forget(&self, kind: ResourceKind, key: &str) -> Result<(), JournalError> {
        match self.to {
            Some(to) => to.forget(kind, key).await,
            None => Ok(()),
        }
    }
}

fn refused(what: &str) -> BackendError {
    BackendError::permanent("FLAW", what)
}

#[async_trait]
impl Backend for Flawed {
    fn name(&self) -> &BackendName {
        self.sim.name()
    }

    async fn ping(&self) -> Result<(), BackendError> {
        self.sim.ping().await
    }

    async fn capabilities(&self) -> Result<Capabilities, BackendError> {
        self.sim.capabilities().await
    }

    async fn create(&self, vm: &Definition, journal: &dyn Journal) -> Result<(), BackendError> {
        if self.has(Flaw::CreatesOnce) && self.host.machine(vm.id).0 != Machine::Absent {
            return Err(refused("it exists already"));
        }
        self.sim.create(vm, journal).await
    }

    async fn boot(&self, vm: &Definition, launch: LaunchId, journal: &dyn Journal) -> Result<Booted, BackendError> {
        match self.flaw {
            Flaw::BootsTwice if self.host.machine(vm.id).0.is_up() => {
                Ok(Booted { accelerator: "simulated".to_owned() })
            }
            Flaw::RecordsLate => {
                let late = Through { to: None, kept: MemoryJournal::default(), of_launches: true };
                let booted = self.sim.boot(vm, launch, &late).await?;
                for resource in late.kept.resources() {
                    journal.record(resource).await?;
                }
                Ok(booted)
            }
            Flaw::RecordsNothingOfLaunches => {
                let through = Through { to: Some(journal), kept: MemoryJournal::default(), of_launches: false };
                self.sim.boot(vm, launch, &through).await
            }
            Flaw::IgnoresTheJournal => {
                // What it hears of the journal's failures is nothing.
                let deaf = Through { to: None, kept: MemoryJournal::default(), of_launches: true };
                let booted = self.sim.boot(vm, launch, &deaf).await;
                for resource in deaf.kept.resources() {
                    let _ = journal.record(resource).await;
                }
                booted
            }
            _ => self.sim.boot(vm, launch, journal).await,
        }
    }

    async fn shutdown(&self, vm: VmId, stop: Stop) -> Result<ExitCause, BackendError> {
        let cause = self.sim.shutdown(vm, self.stop(stop)).await?;
        Ok(if self.has(Flaw::ForgetsCauses) { ExitCause::Forced } else { cause })
    }

    async fn pause(&self, vm: VmId) -> Result<(), BackendError> {
        match (self.flaw, self.host.machine(vm).0) {
            (Flaw::PausesOnce, Machine::Paused) => Err(refused("it is paused already")),
            (Flaw::PausesNothing, machine) if !machine.is_up() => Ok(()),
            _ => self.sim.pause(vm).await,
        }
    }

    async fn resume(&self, vm: VmId) -> Result<(), BackendError> {
        self.sim.resume(vm).await
    }

    async fn reboot(&self, vm: VmId, stop: Stop) -> Result<(), BackendError> {
        if self.has(Flaw::RebootsByEnding) {
            self.host.guest_power_off(vm).unwrap();
            return Ok(());
        }
        self.sim.reboot(vm, self.stop(stop)).await
    }

    async fn info(&self, vm: VmId) -> Result<Info, BackendError> {
        let mut info = self.sim.info(vm).await?;
        match (self.flaw, info.report.machine) {
            (Flaw::InfoRemembers, Machine::Ended { .. }) => info.report.machine = Machine::Running,
            (Flaw::InfoForgetsLaunches, _) => info.report.launch = None,
            _ => {}
        }
        Ok(info)
    }

    async fn adopt(&self, vms: Vec<Adoptee>) -> Vec<Result<Report, BackendError>> {
        let ids: Vec<VmId> = vms.iter().map(|a| a.definition.id).collect();
        if self.has(Flaw::AdoptsWithoutWatching) {
            return ids
                .into_iter()
                .map(|vm| self.host.machine(vm))
                .map(|(m, l)| Ok(Report { machine: m, launch: l }))
                .collect();
        }
        let mut reports = self.sim.adopt(vms).await;
        match self.flaw {
            Flaw::AdoptsBackwards => reports.reverse(),
            Flaw::AdoptResumes => {
                for vm in ids {
                    let _ = self.sim.resume(vm).await;
                }
            }
            Flaw::AdoptFindsAllKilled => {
                for report in reports.iter_mut().flatten() {
                    if let Machine::Ended { cause, .. } = &mut report.machine {
                        *cause = ExitCause::Killed;
                    }
                }
            }
            _ => {}
        }
        reports
    }

    async fn clear(&self, vm: VmId, resources: &[Resource], journal: &dyn Journal) -> Result<(), BackendError> {
        if self.has(Flaw::ClearLeavesRecords) {
            let nowhere = MemoryJournal::default();
            return self.sim.clear(vm, resources, &nowhere).await;
        }
        self.sim.clear(vm, resources, journal).await
    }

    async fn delete(&self, vm: VmId, resources: &[Resource], journal: &dyn Journal) -> Result<(), BackendError> {
        if self.has(Flaw::DeletesOnce) && self.called_before() {
            return Err(refused("there is nothing to delete"));
        }
        if self.has(Flaw::DeleteLeavesDefinition) {
            self.sim.clear(vm, resources, journal).await?;
            for resource in resources {
                journal.forget(resource.kind, &resource.key).await?;
            }
            return Ok(());
        }
        self.sim.delete(vm, resources, journal).await
    }

    async fn agent(&self, vm: VmId) -> Result<AgentEndpoint, BackendError> {
        self.sim.agent(vm).await
    }

    async fn console(&self, vm: VmId) -> Result<ConsoleEndpoint, BackendError> {
        self.sim.console(vm).await
    }
}
