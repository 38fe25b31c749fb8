//! One step of a plan, carried out on a backend: with its deadline, its effect on what is observed,
//! and what is looked up when it went wrong.

use std::time::Duration;

use roost_backend::{Backend, BackendError, Definition};
use roost_model::observe::{Report, found};
use roost_model::operation::Progress;
use roost_model::plan::{Leftovers, Step, Stop};
use roost_model::state::{Machine, Observed};
use roost_model::{LaunchId, Resource, Timestamp, Vm};
use tokio::sync::watch;

use crate::engine::Inner;
use crate::journal::StoreJournal;

/// How long a backend may take to say what is there.
const INFO_DEADLINE: Duration = Duration::from_secs(5);

/// A step, or the reboot that a reboot request adds to the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// A step of the plan.
    Step(Step),
    /// Once per reboot request.
    Reboot(Stop),
    /// What the spec wants installed in the guest.
    Install,
}

/// What is known of a VM's machine while its actor works on it, ahead of the record.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) observed: Observed,
    pub(crate) leftovers: Leftovers,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) accelerator: Option<String>,
    /// Whether it was launched since the record was read.
    pub(crate) launched: bool,
    /// Whether the guest has its tools.
    pub(crate) has_tools: bool,
}

/// What a step has brought about.
#[derive(Debug)]
pub(crate) enum Effect {
    Defined,
    Launched(LaunchId, String),
    Paused,
    Resumed,
    Ended(roost_model::ExitCause),
    Cleared,
    Removed,
    Rebooted,
    Installed,
}

impl View {
    pub(crate) fn of(vm: &Vm, resources: &[Resource]) -> Self {
        Self {
            observed: vm.observed,
            leftovers: leftovers(resources),
            started_at: vm.started_at,
            accelerator: vm.accelerator.clone(),
            launched: false,
            has_tools: vm.has_tools(),
        }
    }

    /// Takes in what a step has brought about.
    pub(crate) fn apply(&mut self, effect: Effect, now: Timestamp) {
        let machine = match effect {
            Effect::Defined => {
                self.leftovers.of_vm = true;
                Machine::Defined
            }
            Effect::Launched(launch, accelerator) => {
                self.observed.launch = Some(launch);
                self.leftovers.of_launches = true;
                self.started_at = Some(now);
                self.accelerator = Some(accelerator);
                self.launched = true;
                Machine::Running
            }
            Effect::Paused => Machine::Paused,
            Effect::Resumed | Effect::Rebooted => Machine::Running,
            Effect::Ended(cause) => Machine::Ended { cause, lingering: true },
            Effect::Cleared => {
                self.leftovers.of_launches = false;
                match self.observed.machine {
                    Machine::Ended { cause, .. } => Machine::Ended { cause, lingering: false },
                    other => other,
                }
            }
            Effect::Removed => {
                self.leftovers = Leftovers::default();
                Machine::Absent
            }
            Effect::Installed => {
                self.has_tools = true;
                self.observed.machine
            }
        };
        if machine != self.observed.machine {
            self.observed = Observed { machine, since: now, ..self.observed };
        }
    }

    /// Takes in what a backend found when it was asked afresh.
    pub(crate) fn take(&mut self, report: Report, now: Timestamp) {
        self.observed = found(self.observed, report, now);
    }

    /// Puts what is known into the record.
    pub(crate) fn write_to(&self, vm: &mut Vm, now: Timestamp) {
        vm.observed = self.observed;
        vm.started_at = self.started_at;
        vm.accelerator.clone_from(&self.accelerator);
        if self.launched {
            vm.restarts.due = None;
        }
        if self.has_tools && !vm.has_tools() {
            vm.set_tools_installed(now);
        }
    }
}

/// What is left over, by the record of resources.
pub(crate) fn leftovers(resources: &[Resource]) -> Leftovers {
    Leftovers { of_launches: resources.iter().any(|r| r.launch.is_some()), of_vm: !resources.is_empty() }
}

impl Act {
    /// What people are told while it runs.
    pub(crate) fn progress(self) -> Progress {
        let (percent, message) = match self {
            Act::Step(Step::Define) => (10, "preparing the host"),
            Act::Step(Step::Launch) => (40, "starting the machine"),
            Act::Step(Step::Pause) => (50, "stopping the CPUs"),
            Act::Step(Step::Resume) => (50, "continuing the CPUs"),
            Act::Step(Step::Shutdown(Stop::Graceful(_))) => (30, "waiting for the guest to shut down"),
            Act::Step(Step::Shutdown(Stop::Forced)) => (30, "ending the machine"),
            Act::Step(Step::Clear) => (80, "clearing away the machine"),
            Act::Step(Step::Remove) => (90, "removing what belongs to the VM"),
            Act::Reboot(Stop::Graceful(_)) => (30, "waiting for the guest to shut down, then starting it anew"),
            Act::Reboot(Stop::Forced) => (30, "resetting the machine"),
            Act::Install => (50, "waiting for the guest to install its tools"),
        };
        Progress { percent, message: message.to_owned() }
    }

    /// How long it may take before it counts as failed.
    pub(crate) fn deadline(self) -> Duration {
        let seconds = match self {
            Act::Step(Step::Define | Step::Clear) => 60,
            Act::Step(Step::Launch | Step::Remove) => 120,
            Act::Step(Step::Pause | Step::Resume) => 30,
            Act::Install => 1800,
            Act::Step(Step::Shutdown(stop)) | Act::Reboot(stop) => {
                let grace = match stop {
                    Stop::Graceful(grace) => grace,
                    Stop::Forced => Duration::ZERO,
                };
                return grace + Duration::from_secs(30);
            }
        };
        Duration::from_secs(seconds)
    }
}

/// Carries out one act; `told` is where a long one says how far it is. Dropping the future is safe: what is half-done is on record.
pub(crate) async fn perform(
    inner: &Inner,
    backend: &dyn Backend,
    vm: &Vm,
    resources: &[Resource],
    act: Act,
    told: &watch::Sender<Progress>,
) -> Result<Effect, BackendError> {
    let journal = StoreJournal { store: inner.store.clone(), vm: vm.id };
    let definition = || Definition { id: vm.id, name: vm.name.clone(), spec: vm.spec.clone() };
    match act {
        Act::Step(Step::Define) => backend.create(&definition(), &journal).await.map(|()| Effect::Defined),
        Act::Step(Step::Launch) => {
            let launch = crate::record::new_launch(inner);
            let booted = backend.boot(&definition(), launch, &journal).await?;
            Ok(Effect::Launched(launch, booted.accelerator))
        }
        Act::Step(Step::Pause) => backend.pause(vm.id).await.map(|()| Effect::Paused),
        Act::Step(Step::Resume) => backend.resume(vm.id).await.map(|()| Effect::Resumed),
        Act::Step(Step::Shutdown(stop)) => backend.shutdown(vm.id, stop).await.map(Effect::Ended),
        Act::Step(Step::Clear) => backend.clear(vm.id, resources, &journal).await.map(|()| Effect::Cleared),
        Act::Step(Step::Remove) => backend.delete(vm.id, resources, &journal).await.map(|()| Effect::Removed),
        Act::Reboot(stop) => backend.reboot(vm.id, stop).await.map(|()| Effect::Rebooted),
        Act::Install => inner.seams.guests.install(vm, told).await.map(|()| Effect::Installed),
    }
}

/// Asks the backend what is there; `None` when it does not say in time.
pub(crate) async fn look(inner: &Inner, backend: &dyn Backend, vm: &Vm) -> Option<Report> {
    tokio::select! {
        biased;
        info = backend.info(vm.id) => match info {
            Ok(info) => Some(info.report),
            Err(error) => {
                tracing::debug!(vm_id = %vm.id, backend = %vm.backend, error = %error, "the backend could not say what is there");
                None
            }
        },
        () = inner.seams.clock.sleep(INFO_DEADLINE) => None,
    }
}
