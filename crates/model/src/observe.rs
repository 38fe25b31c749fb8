//! From what a backend reports to what is recorded, and to what follows when a machine ended unasked.

use crate::id::LaunchId;
use crate::state::{Machine, Observed, Power};
use crate::time::Timestamp;
use crate::vm::{Failure, Vm};

/// What a backend says of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// What is there.
    pub machine: Machine,
    /// The launch that it is about.
    pub launch: Option<LaunchId>,
}

/// What follows from a machine that ended without anybody having asked for it.
#[derive(Debug, Clone, PartialEq)]
pub enum Reaction {
    /// Nothing: it is as wanted, or something else is under way.
    None,
    /// It stays down: this is the new desired power.
    Settle(Power),
    /// It is started again then; the record's `restarts` becomes this.
    RestartAt(crate::vm::Restarts),
    /// The restart that was scheduled is due.
    RestartNow,
    /// It was restarted too often.
    GiveUp(Failure),
}

/// Takes a report into the record. A report about another launch than the recorded one is stale,
/// and an end keeps its first cause: what clears a panicked machine away ends it a second time.
pub fn observe(before: Observed, report: Report, now: Timestamp) -> Observed {
    let another_launch = before.launch.is_some() && report.launch.is_some() && report.launch != before.launch;
    if another_launch {
        return before;
    }
    let machine = match (before.machine, report.machine) {
        (Machine::Ended { cause, .. }, Machine::Ended { lingering, .. }) => Machine::Ended { cause, lingering },
        // That nothing runs is no news of what ended, but that nothing is left of it is.
        (Machine::Ended { cause, .. }, Machine::Defined) => Machine::Ended { cause, lingering: false },
        // The same launch does not come back to life.
        (Machine::Ended { .. }, Machine::Running | Machine::Paused) if report.launch == before.launch => before.machine,
        (_, machine) => machine,
    };
    Observed {
        machine,
        launch: report.launch.or(before.launch),
        since: if machine == before.machine { before.since } else { now },
    }
}

/// Takes in what a backend found when it was asked afresh, after a failure or a start. Its answer
/// outranks the record, another launch than the recorded one included, but for the cause of an end
/// that is on record already.
pub fn found(before: Observed, report: Report, now: Timestamp) -> Observed {
    if report.launch.is_some() && report.launch != before.launch {
        return Observed { machine: report.machine, launch: report.launch, since: now };
    }
    observe(before, report, now)
}

/// What to do about a VM that no operation is at work on. `jitter` in 0..=1.
pub fn react(vm: &Vm, now: Timestamp, jitter: f64) -> Reaction {
    let Machine::Ended { cause, .. } = vm.observed.machine else { return Reaction::None };
    if vm.desired.deleted || vm.desired.power == Power::Stopped || vm.failure.is_some() {
        return Reaction::None;
    }
    let policy = &vm.spec.restart_policy;
    if !policy.restarts(cause) {
        return Reaction::Settle(Power::Stopped);
    }
    if let Some(due) = vm.restarts.due {
        return if due <= now { Reaction::RestartNow } else { Reaction::None };
    }
    let ran_for = vm.started_at.map(|at| vm.observed.since.since(at)).unwrap_or_default();
    let in_row = if ran_for >= policy.forgiven_after() { 0 } else { vm.restarts.in_row };
    if policy.max_retries != 0 && in_row >= policy.max_retries {
        return Reaction::GiveUp(Failure {
            reason: "RESTART_LIMIT".to_owned(),
            message: format!("ended ({cause}) after {in_row} restarts in a row; the policy allows no more"),
            at: now,
        });
    }
    Reaction::RestartAt(crate::vm::Restarts {
        in_row: in_row + 1,
        total: vm.restarts.total + 1,
        due: Some(now.after(policy.delay(in_row, jitter))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ExitCause::{Killed, Panic};
    use Machine::{Absent, Defined, Paused, Running};

    const GONE: Machine = Machine::Ended { cause: Panic, lingering: false };
    const ENDED: Machine = Machine::Ended { cause: Panic, lingering: true };
    const KILLED: Machine = Machine::Ended { cause: Killed, lingering: false };

    fn launch(n: u8) -> LaunchId {
        LaunchId::from_parts(1, [n; 10])
    }

    fn at(machine: Machine) -> Observed {
        Observed { machine, launch: Some(launch(1)), since: Timestamp::from_unix_ms(1) }
    }

    fn then() -> Timestamp {
        Timestamp::from_unix_ms(2)
    }

    #[test]
    fn a_report_of_the_same_launch_is_taken_but_an_end_stays_an_end() {
        let table = [
            // before, reported, after
            (Running, Paused, Paused),
            (Paused, Running, Running),
            (Running, ENDED, ENDED),
            (Running, KILLED, KILLED),
            (Defined, Running, Running),
            (ENDED, KILLED, GONE),
            (GONE, ENDED, ENDED),
            (ENDED, Running, ENDED),
            (GONE, Paused, GONE),
            (ENDED, Defined, GONE),
            (GONE, Defined, GONE),
            (ENDED, Absent, Absent),
        ];
        for (before, reported, after) in table {
            let report = Report { machine: reported, launch: Some(launch(1)) };
            for take in [observe, found] {
                let observed = take(at(before), report, then());
                assert_eq!(observed.machine, after, "{reported:?} after {before:?}");
                assert_eq!(observed.launch, Some(launch(1)));
                assert_eq!(observed.since == then(), before != after, "time moves with the machine only");
            }
        }
    }

    #[test]
    fn that_nothing_runs_needs_no_launch_to_be_taken() {
        for (before, reported, after) in
            [(Running, Absent, Absent), (Absent, Defined, Defined), (ENDED, Defined, GONE), (GONE, Absent, Absent)]
        {
            for take in [observe, found] {
                let observed = take(at(before), Report { machine: reported, launch: None }, then());
                assert_eq!((observed.machine, observed.launch), (after, Some(launch(1))));
            }
        }
    }

    #[test]
    fn another_launch_is_stale_news_unless_it_was_asked_for() {
        for before in [Absent, Defined, Running, Paused, ENDED, GONE] {
            for reported in [Running, Paused, ENDED, KILLED] {
                let report = Report { machine: reported, launch: Some(launch(2)) };
                assert_eq!(observe(at(before), report, then()), at(before), "an event of a launch that is over");
                let observed = found(at(before), report, then());
                assert_eq!((observed.machine, observed.launch), (reported, Some(launch(2))));
            }
        }
        let never = Observed { launch: None, ..at(Defined) };
        let report = Report { machine: Running, launch: Some(launch(2)) };
        assert_eq!(observe(never, report, then()).launch, Some(launch(2)));
    }
}
