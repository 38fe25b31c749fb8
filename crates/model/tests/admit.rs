//! Every request in every situation, as a table: what `admit` says of each goal, for each power that is
//! wanted and each machine that is there.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::fmt::Write;

use roost_model::admit::{LONGEST_GRACE_MS, Verdict, admit};
use roost_model::error::Refusal;
use roost_model::operation::Goal;
use roost_model::spec::{Boot, Memory};
use roost_model::state::{Desired, ExitCause, Machine, Observed, Power};
use roost_model::vm::{Failure, Restarts, Vm};
use roost_model::{Bytes, OperationId, ProjectId, Timestamp, VmId, VmSpec};

/// A power alone: accepted, and that is wanted from now on. `same`: it is so already. `no`: refused, with
/// the state that is named to the caller.
const TABLE: &str = "
goal      wanted  | absent       defined      running      paused       powered off  panicked
create    stopped | id taken     id taken     id taken     id taken     id taken     id taken
create    running | id taken     id taken     id taken     id taken     id taken     id taken
create    paused  | id taken     id taken     id taken     id taken     id taken     id taken
boot      stopped | running      running      running      running      running      running
boot      running | same         same         same         same         running      running
boot      paused  | no: paused   no: paused   no: paused   no: paused   no: paused   no: paused
shutdown  stopped | same         same         same         same         same         same
shutdown  running | stopped      stopped      stopped      stopped      stopped      stopped
shutdown  paused  | stopped      stopped      stopped      stopped      stopped      stopped
pause     stopped | no: created  no: created  no: running  no: paused   no: shutdown no: crashed
pause     running | paused       paused       paused       paused       paused       paused
pause     paused  | same         same         same         same         same         same
resume    stopped | no: created  no: created  no: running  no: paused   no: shutdown no: crashed
resume    running | same         same         same         same         same         same
resume    paused  | running      running      running      running      running      running
reboot    stopped | no: created  no: created  no: running  no: paused   no: shutdown no: crashed
reboot    running | running      running      running      running      running      running
reboot    paused  | no: paused   no: paused   no: paused   no: paused   no: paused   no: paused
update    stopped | stopped      stopped      stopped      stopped      stopped      stopped
update    running | running      running      running      running      running      running
update    paused  | paused       paused       paused       paused       paused       paused
delete    stopped | delete       delete       delete       delete       delete       delete
delete    running | delete       delete       delete       delete       delete       delete
delete    paused  | delete       delete       delete       delete       delete       delete
";

const POWERS: [Power; 3] = [Power::Stopped, Power::Running, Power::Paused];

fn goals() -> Vec<Goal> {
    vec![
        Goal::Create { power: Power::Running },
        Goal::Boot,
        Goal::Shutdown { grace_ms: None },
        Goal::Pause,
        Goal::Resume,
        Goal::Reboot { grace_ms: Some(1) },
        Goal::Update,
        Goal::Delete { grace_ms: None },
    ]
}

fn machines() -> [Machine; 6] {
    let ended = |cause| Machine::Ended { cause, lingering: false };
    [
        Machine::Absent,
        Machine::Defined,
        Machine::Running,
        Machine::Paused,
        ended(ExitCause::PowerOff),
        ended(ExitCause::Panic),
    ]
}

fn vm(power: Power, deleted: bool, machine: Machine) -> Vm {
    let now = Timestamp::default();
    let boot = Boot { kernel_path: Some("/vmlinuz".parse().unwrap()), ..Boot::default() };
    Vm {
        id: VmId::from_parts(1, [1; 10]),
        project: ProjectId::DEFAULT,
        name: "vm".parse().unwrap(),
        backend: "sim".parse().unwrap(),
        spec: VmSpec::minimal(Memory::fixed(Bytes::from_mib(64)), boot),
        generation: 1,
        desired: Desired { power, deleted },
        observed: Observed { machine, launch: None, since: now },
        failure: None,
        restarts: Restarts::default(),
        accelerator: None,
        conditions: Vec::new(),
        resource_version: 1,
        created_at: now,
        updated_at: now,
        started_at: None,
    }
}

fn word(verdict: Result<Verdict, Refusal>) -> String {
    match verdict {
        Ok(Verdict::Accept(Desired { deleted: true, .. })) => "delete".to_owned(),
        Ok(Verdict::Accept(Desired { power, deleted: false })) => power.to_string(),
        Ok(Verdict::AlreadySo) => "same".to_owned(),
        Err(Refusal::WrongState { state, .. }) => format!("no: {state}"),
        Err(Refusal::IdTaken(_)) => "id taken".to_owned(),
        Err(other) => panic!("not in the table: {other:?}"),
    }
}

fn kind(goal: &Goal) -> &'static str {
    goal.kind().as_str().strip_prefix("vm:").unwrap()
}

#[test]
fn every_goal_in_every_situation() {
    let mut table = String::from("\ngoal      wanted  |");
    for machine in ["absent", "defined", "running", "paused", "powered off", "panicked"] {
        write!(table, " {machine:12}").unwrap();
    }
    for goal in goals() {
        for power in POWERS {
            write!(table, "\n{:9} {:7} |", kind(&goal), power.as_str()).unwrap();
            for machine in machines() {
                write!(table, " {:12}", word(admit(&goal, &vm(power, false, machine), None))).unwrap();
            }
        }
    }
    let table: String = table.lines().flat_map(|line| [line.trim_end(), "\n"]).collect();
    assert!(table == TABLE, "the table is now:\n{table}");
}

#[test]
fn the_form_of_a_goal_changes_nothing() {
    let forms = [
        (Goal::Shutdown { grace_ms: None }, Goal::Shutdown { grace_ms: Some(LONGEST_GRACE_MS) }),
        (Goal::Reboot { grace_ms: None }, Goal::Reboot { grace_ms: Some(LONGEST_GRACE_MS) }),
        (Goal::Delete { grace_ms: None }, Goal::Delete { grace_ms: Some(LONGEST_GRACE_MS) }),
        (Goal::Create { power: Power::Stopped }, Goal::Create { power: Power::Running }),
    ];
    for (one, other) in forms {
        for power in POWERS {
            for machine in machines() {
                let vm = vm(power, false, machine);
                assert_eq!(admit(&one, &vm, None), admit(&other, &vm, None));
            }
        }
    }
}

#[test]
fn a_grace_that_is_too_long_is_refused_wherever_there_is_one() {
    let grace_ms = Some(LONGEST_GRACE_MS + 1);
    for goal in [Goal::Shutdown { grace_ms }, Goal::Reboot { grace_ms }, Goal::Delete { grace_ms }] {
        for power in POWERS {
            for deleted in [false, true] {
                let refused = admit(&goal, &vm(power, deleted, Machine::Running), None).unwrap_err();
                let Refusal::Invalid(invalid) = refused else { panic!("{refused:?}") };
                assert_eq!(invalid.field, "timeout_seconds");
            }
        }
    }
}

#[test]
fn what_is_being_deleted_can_only_be_deleted() {
    let deleting = OperationId::from_parts(7, [7; 10]);
    for goal in goals() {
        for power in POWERS {
            for machine in machines() {
                let vm = vm(power, true, machine);
                let (open, given_up) = (admit(&goal, &vm, Some(deleting)), admit(&goal, &vm, None));
                if kind(&goal) == "delete" {
                    assert_eq!(open, Ok(Verdict::AlreadySo));
                    assert_eq!(given_up, Ok(Verdict::Accept(Desired { power, deleted: true })), "it is tried again");
                } else {
                    assert_eq!(open, Err(Refusal::BeingDeleted(deleting)));
                    assert_eq!(given_up, Err(Refusal::VmNotFound(vm.id.to_string())));
                }
            }
        }
    }
}

#[test]
fn a_failed_vm_is_named_so_and_may_be_started() {
    let mut failed = vm(Power::Stopped, false, Machine::Defined);
    failed.failure = Some(Failure { reason: "X".to_owned(), message: String::new(), at: Timestamp::default() });
    assert_eq!(word(admit(&Goal::Boot, &failed, None)), "running");
    assert_eq!(word(admit(&Goal::Pause, &failed, None)), "no: failed");
    assert_eq!(word(admit(&Goal::Delete { grace_ms: None }, &failed, None)), "delete");
}

#[test]
fn refusals_say_what_to_do_instead() {
    for goal in goals() {
        for power in POWERS {
            for machine in machines() {
                if let Err(Refusal::WrongState { action, hint, .. }) = admit(&goal, &vm(power, false, machine), None) {
                    assert!(!action.is_empty() && !hint.is_empty(), "{goal:?}");
                }
            }
        }
    }
}
