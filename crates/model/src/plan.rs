//! From what is wanted and what is there to what to do next. Pure; the heart of convergence.
//!
//! A driver executes the first step, observes, and plans again until the plan is empty. Steps are
//! idempotent: one that was begun before the daemon died is begun again.

use std::time::Duration;

use crate::capability::{Capabilities, Capability};
use crate::operation::Goal;
use crate::state::{Desired, Machine, Observed, Power};

/// What a plan is to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The VM's files exist and its machine has this power.
    Power(Power, Stop),
    /// Nothing of it is left.
    Gone(Stop),
}

/// How a running machine is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The guest is asked, and ended by force when it has not obeyed by then.
    Graceful(Duration),
    /// At once.
    Forced,
}

/// One thing for a backend to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make what the VM needs on the host. Undone by `Remove`.
    Define,
    /// Start the machine's process and let it run. Undone by `Clear`.
    Launch,
    /// Stop the CPUs. Undone by `Resume`.
    Pause,
    /// Let the CPUs go on.
    Resume,
    /// End the guest; the machine is `Ended` and may linger.
    Shutdown(Stop),
    /// Clear away what is left of launches: processes and runtime files.
    Clear,
    /// Remove everything that belongs to the VM.
    Remove,
}

/// What is recorded as owned by the VM beyond what `Observed` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leftovers {
    /// Resources that belong to a launch.
    pub of_launches: bool,
    /// Resources that belong to the VM itself.
    pub of_vm: bool,
}

impl Target {
    /// The target of an operation's goal; `desired` is the VM's latest for goals that change no power.
    pub fn of(goal: &Goal, desired: Desired) -> Target {
        let stop = |grace_ms: &Option<u64>| match grace_ms {
            Some(ms) => Stop::Graceful(Duration::from_millis(*ms)),
            None => Stop::Forced,
        };
        match goal {
            Goal::Create { power } => Target::Power(*power, Stop::Forced),
            Goal::Boot | Goal::Resume | Goal::Reboot { .. } => Target::Power(Power::Running, Stop::Forced),
            Goal::Pause => Target::Power(Power::Paused, Stop::Forced),
            Goal::Shutdown { grace_ms } => Target::Power(Power::Stopped, stop(grace_ms)),
            Goal::Delete { grace_ms } => Target::Gone(stop(grace_ms)),
            Goal::Update => Target::reconciled(desired),
        }
    }

    /// The target when no operation is under way. Without a request nobody is waiting: force is final.
    pub fn reconciled(desired: Desired) -> Target {
        if desired.deleted { Target::Gone(Stop::Forced) } else { Target::Power(desired.power, Stop::Forced) }
    }
}

/// The steps from what is there to the target; empty when it is reached.
pub fn plan(target: Target, observed: Observed, leftovers: Leftovers, capabilities: &Capabilities) -> Vec<Step> {
    use Machine::{Absent, Defined, Ended, Paused, Running};
    let mut steps = Vec::new();
    let up = observed.machine.is_up();
    let uncleared = !up && (leftovers.of_launches || matches!(observed.machine, Ended { lingering: true, .. }));
    match target {
        Target::Power(Power::Stopped, stop) => {
            if up {
                end(observed.machine, stop, capabilities, &mut steps);
            }
            if uncleared {
                steps.push(Step::Clear);
            }
            if observed.machine == Absent {
                steps.push(Step::Define);
            }
        }
        Target::Power(power, _) => {
            match observed.machine {
                Running => {}
                Paused if power == Power::Paused => {}
                Paused => steps.push(Step::Resume),
                Absent | Defined | Ended { .. } => {
                    if uncleared {
                        steps.push(Step::Clear);
                    }
                    if observed.machine == Absent {
                        steps.push(Step::Define);
                    }
                    steps.push(Step::Launch);
                }
            }
            if power == Power::Paused && observed.machine != Paused {
                steps.push(Step::Pause);
            }
        }
        Target::Gone(stop) => {
            match observed.machine {
                Running | Paused => end(observed.machine, stop, capabilities, &mut steps),
                _ if uncleared => steps.push(Step::Clear),
                _ => {}
            }
            if observed.machine != Absent || leftovers.of_vm {
                steps.push(Step::Remove);
            }
        }
    }
    steps
}

fn end(machine: Machine, stop: Stop, capabilities: &Capabilities, steps: &mut Vec<Step>) {
    let stop = if capabilities.has(Capability::GracefulShutdown) { stop } else { Stop::Forced };
    // A guest whose CPUs stand still hears nobody.
    if machine == Machine::Paused && stop != Stop::Forced {
        steps.push(Step::Resume);
    }
    steps.push(Step::Shutdown(stop));
    steps.push(Step::Clear);
}
