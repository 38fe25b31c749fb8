//! May this request run? Pure: the VM's record, capabilities, and what is asked.

use crate::capability::Capabilities;
use crate::error::{Invalid, Refusal};
use crate::id::OperationId;
use crate::name::BackendName;
use crate::operation::Goal;
use crate::spec::VmSpec;
use crate::state::{Desired, Machine, Power, VmState};
use crate::vm::Vm;

/// The longest that a guest may be given to shut down.
pub const LONGEST_GRACE_MS: u64 = 3_600_000;

/// What becomes of a well-formed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It becomes an operation, and this is wanted from now on.
    Accept(Desired),
    /// It is so already: the operation is born succeeded.
    AlreadySo,
}

/// A backend as admission sees it.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a BackendName,
    /// What it can do, or why it cannot be used here.
    pub capabilities: Result<&'a Capabilities, &'a str>,
}

/// May a VM of this spec be created on `backend`? `all` holds every configured backend.
pub fn admit_spec(spec: &VmSpec, backend: &BackendName, all: &[Candidate<'_>]) -> Result<(), Refusal> {
    spec.check().map_err(|e| e.under("config"))?;
    let Some(chosen) = all.iter().find(|c| c.name == backend) else {
        return Err(Refusal::UnknownBackend {
            name: backend.to_string(),
            known: all.iter().map(|c| c.name.clone()).collect(),
        });
    };
    let capabilities = chosen
        .capabilities
        .map_err(|reason| Refusal::BackendUnavailable { backend: backend.clone(), reason: reason.to_owned() })?;
    if let Some(capability) = capabilities.lacking(spec) {
        let others = all.iter().filter(|c| c.capabilities.is_ok_and(|c| c.lacking(spec).is_none()));
        return Err(Refusal::Unsupported {
            backend: backend.clone(),
            capability,
            others: others.map(|c| c.name.clone()).collect(),
        });
    }
    if let Some(machine) = spec.machine
        && !capabilities.machines.is_empty()
        && !capabilities.machines.iter().any(|m| m == machine.as_str())
    {
        return Err(Invalid::new("config.machine", machine, "is not a machine type of this backend")
            .permit(capabilities.machines.iter())
            .into());
    }
    if capabilities.max_vcpus != 0 && spec.cpu.max_vcpu_count > capabilities.max_vcpus {
        return Err(Invalid::new(
            "config.cpu.max_vcpu_count",
            spec.cpu.max_vcpu_count,
            "is more than this backend can give",
        )
        .permit([format!("at most {}", capabilities.max_vcpus)])
        .into());
    }
    Ok(())
}

/// May this goal be taken up for the VM? `deleting` is the operation that deletes it, if any;
/// requests are judged by the state that those before them will have brought about.
pub fn admit(goal: &Goal, vm: &Vm, deleting: Option<OperationId>) -> Result<Verdict, Refusal> {
    if let Some(grace) = grace_of(goal)
        && grace > LONGEST_GRACE_MS
    {
        return Err(Invalid::new("timeout_seconds", grace / 1000, "is too long").permit(["at most 3600"]).into());
    }
    if vm.desired.deleted {
        return match (goal, deleting) {
            (Goal::Delete { .. }, Some(_)) => Ok(Verdict::AlreadySo),
            // An earlier delete was given up: this one tries again.
            (Goal::Delete { .. }, None) => Ok(Verdict::Accept(vm.desired)),
            (_, Some(operation)) => Err(Refusal::BeingDeleted(operation)),
            (_, None) => Err(Refusal::VmNotFound(vm.id.to_string())),
        };
    }
    let accept = |power| Ok(Verdict::Accept(Desired { power, deleted: false }));
    let wrong = |action, hint| Err(Refusal::WrongState { action, state: projected(vm), hint });
    match (goal, vm.desired.power) {
        (Goal::Delete { .. }, power) => Ok(Verdict::Accept(Desired { power, deleted: true })),
        (Goal::Create { .. }, _) => Err(Refusal::IdTaken(vm.id)),
        (Goal::Update, power) => accept(power),
        // A machine that ended and waits for its restart is started now.
        (Goal::Boot, Power::Running) if matches!(vm.observed.machine, Machine::Ended { .. }) => accept(Power::Running),
        (Goal::Boot, Power::Stopped) => accept(Power::Running),
        (Goal::Boot, Power::Running) => Ok(Verdict::AlreadySo),
        (Goal::Boot, Power::Paused) => wrong("start", "resume it"),
        (Goal::Shutdown { .. }, Power::Running | Power::Paused) => accept(Power::Stopped),
        (Goal::Shutdown { .. }, Power::Stopped) => Ok(Verdict::AlreadySo),
        (Goal::Pause, Power::Running) => accept(Power::Paused),
        (Goal::Pause, Power::Paused) => Ok(Verdict::AlreadySo),
        (Goal::Pause, Power::Stopped) => wrong("pause", "start it first"),
        (Goal::Resume, Power::Paused) => accept(Power::Running),
        (Goal::Resume, Power::Running) => Ok(Verdict::AlreadySo),
        (Goal::Resume, Power::Stopped) => wrong("resume", "start it"),
        (Goal::Reboot { .. }, Power::Running) => accept(Power::Running),
        (Goal::Reboot { .. }, Power::Paused) => wrong("reboot", "resume it first"),
        (Goal::Reboot { .. }, Power::Stopped) => wrong("reboot", "start it"),
    }
}

/// Checks the version that the caller saw, when it gave one.
pub fn check_version(vm: &Vm, expected: Option<u64>) -> Result<(), Refusal> {
    match expected {
        Some(expected) if expected != vm.resource_version => {
            Err(Refusal::Stale { expected, actual: vm.resource_version })
        }
        _ => Ok(()),
    }
}

/// May the VM's spec become `new`? What a machine has been started with changes only while it is down.
pub fn admit_update(vm: &Vm, new: &VmSpec) -> Result<(), Refusal> {
    if !vm.observed.machine.is_up() && vm.desired.power == Power::Stopped {
        return Ok(());
    }
    let VmSpec {
        cpu,
        memory,
        boot,
        storage,
        network,
        console,
        machine,
        accelerator,
        metadata: _,
        restart_policy: _,
        time_to_live: _,
        agent,
        tools: _,
        idle: _,
    } = new;
    let old = &vm.spec;
    let changed = [
        ("cpu", *cpu != old.cpu),
        ("memory", *memory != old.memory),
        ("boot", *boot != old.boot),
        ("storage", *storage != old.storage),
        ("network", *network != old.network),
        ("console", *console != old.console),
        ("machine", *machine != old.machine),
        ("accelerator", *accelerator != old.accelerator),
        ("agent.channel", agent.channel != old.agent.channel),
    ];
    match changed.iter().find(|(_, changed)| *changed) {
        Some((field, _)) => Err(Invalid::new(format!("config.{field}"), "", "changes only while the VM is shut down")
            .permit(["metadata, restart_policy, time_to_live_seconds, idle_timeout_seconds, tools and agent (but its channel) \
                     while it runs"])
            .into()),
        None => Ok(()),
    }
}

fn grace_of(goal: &Goal) -> Option<u64> {
    match goal {
        Goal::Shutdown { grace_ms } | Goal::Reboot { grace_ms } | Goal::Delete { grace_ms } => *grace_ms,
        Goal::Create { .. } | Goal::Boot | Goal::Pause | Goal::Resume | Goal::Update => None,
    }
}

/// The state as the caller of a queued request will find it.
fn projected(vm: &Vm) -> VmState {
    match vm.desired.power {
        Power::Running => VmState::Running,
        Power::Paused => VmState::Paused,
        Power::Stopped => vm.state(),
    }
}
