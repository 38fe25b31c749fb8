//! A host without anything on it: what steps do to it, and what it answers when it is asked. Stricter
//! than a backend need be: a step that no plan should hold here panics.

use roost_model::observe::Report;
use roost_model::plan::{Leftovers, Step, Stop};
use roost_model::state::Machine;
use roost_model::{ExitCause, LaunchId};

/// What is on the host of one VM, and what is on record of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Host {
    /// Its guest does not hear requests to shut down.
    deaf: bool,
    defined: bool,
    machine: Option<(LaunchId, Machine)>,
    definition_on_record: bool,
    /// The launch on record, and whether its machine is on record as made.
    launch_on_record: Option<(LaunchId, bool)>,
    /// How the last launch that ended came to its end.
    last_end: Option<(LaunchId, ExitCause)>,
}

/// How much of a step is done before its call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    Nothing,
    Half,
    All,
}

/// Something that happens to a machine by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outside {
    PowerOff,
    Panic,
    Kill,
    Stall,
}

/// What a step that was done in full has brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    Defined,
    Launched(LaunchId),
    Paused,
    Resumed,
    Ended(ExitCause),
    Cleared,
    Removed,
    Rebooted,
}

/// A step, or the reboot that a driver adds for a reboot request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Step(Step, LaunchId),
    Reboot,
}

impl Host {
    pub(crate) fn new(deaf: bool) -> Self {
        Self { deaf, ..Self::default() }
    }

    /// Does so much of a step. `Err`: the machine is in no state for it, as a race may have it.
    pub(crate) fn act(&mut self, act: Act, extent: Extent) -> Result<Effect, &'static str> {
        let half = extent != Extent::Nothing;
        let all = extent == Extent::All;
        let Act::Step(step, launch) = act else {
            return match self.machine {
                Some((_, Machine::Running)) => Ok(Effect::Rebooted),
                _ => Err("only a running machine can be rebooted"),
            };
        };
        match step {
            Step::Define => {
                self.definition_on_record |= half;
                self.defined |= all;
                Ok(Effect::Defined)
            }
            Step::Launch => {
                assert!(self.machine.is_none(), "launched over {:?}", self.machine);
                assert!(self.launch_on_record.is_none(), "launched over the record of {:?}", self.launch_on_record);
                if !self.defined {
                    return Err("it is not defined");
                }
                if half {
                    self.launch_on_record = Some((launch, all));
                }
                if all {
                    self.machine = Some((launch, Machine::Running));
                }
                Ok(Effect::Launched(launch))
            }
            Step::Pause => self.cpus(Machine::Paused, all).map(|()| Effect::Paused),
            Step::Resume => self.cpus(Machine::Running, all).map(|()| Effect::Resumed),
            Step::Shutdown(stop) => {
                let obeys = stop != Stop::Forced && !self.deaf && matches!(self.machine, Some((_, Machine::Running)));
                let cause = if obeys { ExitCause::PowerOff } else { ExitCause::Forced };
                Ok(Effect::Ended(self.end(cause, all)))
            }
            Step::Clear => {
                if half {
                    self.machine = None;
                }
                if all {
                    self.launch_on_record = None;
                }
                Ok(Effect::Cleared)
            }
            Step::Remove => {
                if half {
                    self.machine = None;
                    self.launch_on_record = None;
                    self.defined = false;
                }
                if all {
                    self.definition_on_record = false;
                }
                Ok(Effect::Removed)
            }
        }
    }

    /// Something happens to the machine. Answers with the launch and what would be told of it.
    pub(crate) fn happen(&mut self, outside: Outside) -> Option<(LaunchId, Machine)> {
        let (_, machine) = self.machine.as_mut()?;
        let after = match (outside, *machine) {
            (Outside::Kill, Machine::Running | Machine::Paused) => {
                Machine::Ended { cause: ExitCause::Killed, lingering: false }
            }
            (Outside::PowerOff, Machine::Running) => Machine::Ended { cause: ExitCause::PowerOff, lingering: true },
            (Outside::Panic, Machine::Running) => Machine::Ended { cause: ExitCause::Panic, lingering: true },
            (Outside::Stall, Machine::Running) => Machine::Paused,
            _ => return None,
        };
        *machine = after;
        self.note_end();
        self.machine
    }

    /// What a backend says that saw it all.
    pub(crate) fn info(&self) -> Report {
        match self.machine {
            Some((launch, machine)) => Report { machine, launch: Some(launch) },
            None if self.defined => Report { machine: Machine::Defined, launch: None },
            None => Report { machine: Machine::Absent, launch: None },
        }
    }

    /// What a backend says that was started just now and knows the records only.
    pub(crate) fn adopt(&self) -> Report {
        match (self.machine, self.launch_on_record) {
            (None, Some((launch, true))) => {
                Report { machine: Machine::Ended { cause: ExitCause::Killed, lingering: false }, launch: Some(launch) }
            }
            _ => self.info(),
        }
    }

    pub(crate) fn leftovers(&self) -> Leftovers {
        let of_launches = self.launch_on_record.is_some();
        Leftovers { of_launches, of_vm: of_launches || self.definition_on_record }
    }

    pub(crate) fn machine(&self) -> Option<Machine> {
        self.machine.map(|(_, machine)| machine)
    }

    /// The cause of the launch's end, if it was the last to end.
    pub(crate) fn cause_of(&self, launch: LaunchId) -> Option<ExitCause> {
        self.last_end.filter(|(l, _)| *l == launch).map(|(_, cause)| cause)
    }

    /// Whether nothing is left, neither on the host nor on record.
    pub(crate) fn is_empty(&self) -> bool {
        let Host { deaf: _, last_end: _, defined, machine, definition_on_record, launch_on_record } = self;
        !defined && machine.is_none() && !definition_on_record && launch_on_record.is_none()
    }

    fn cpus(&mut self, to: Machine, all: bool) -> Result<(), &'static str> {
        match self.machine.as_mut() {
            Some((_, machine)) if machine.is_up() => {
                if all {
                    *machine = to;
                }
                Ok(())
            }
            _ => Err("there is no living machine"),
        }
    }

    fn note_end(&mut self) {
        if let Some((launch, Machine::Ended { cause, .. })) = self.machine {
            self.last_end = Some((launch, cause));
        }
    }

    fn end(&mut self, cause: ExitCause, all: bool) -> ExitCause {
        match self.machine.as_mut() {
            Some((_, Machine::Ended { cause, .. })) => *cause,
            Some((_, machine)) => {
                if all {
                    *machine = Machine::Ended { cause, lingering: true };
                    self.note_end();
                }
                cause
            }
            None => ExitCause::Forced,
        }
    }
}
