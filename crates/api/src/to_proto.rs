//! From the domain to the wire. Nothing here fails, and nothing is left out: every struct is taken
//! apart field by field, so that a new one breaks the build until it is dealt with.

mod guest;

use std::time::Duration;

use buffa_types::google::protobuf::Timestamp as WireTimestamp;
use roost_model::operation::{Claim, Goal, OperationError as ModelError, Progress};
use roost_model::spec::{
    Agent as ModelAgent, Backing, Boot, Console, Cpu, Disk, Forward, Memory, Nic, NicKind, RestartMode,
    RestartPolicy as ModelPolicy, Tool as ModelTool, Topology,
};
use roost_model::vm::{Condition, Failure, Restarts};
use roost_model::{
    BackendName, Bytes, Capabilities, Desired, Machine, OperationId, Power, Timestamp, VmSpec, VmState as ModelState,
};
use roost_model::{Operation as ModelOperation, Priority as ModelPriority, Status as ModelStatus, Vm as ModelVm};

pub use guest::{execution, execution_status, job};

use crate::vmm::v1::*;

/// A VM's record. `open`: its operations that have not ended.
pub fn vm(vm: &ModelVm, open: &[OperationId]) -> Vm {
    let ModelVm {
        id,
        project,
        name,
        backend,
        spec: config,
        generation,
        desired,
        observed,
        failure,
        restarts,
        accelerator,
        conditions,
        resource_version,
        created_at,
        updated_at,
        started_at,
    } = vm;
    let Restarts { in_row, total, due } = restarts;
    let exit = match observed.machine {
        Machine::Ended { cause, lingering: _ } => {
            Some(VmExit { cause: cause.to_string(), at: timestamp(observed.since).into(), ..Default::default() })
        }
        Machine::Absent | Machine::Defined | Machine::Running | Machine::Paused => None,
    };
    Vm {
        id: id.uuid().to_string(),
        name: name.to_string(),
        project_id: project.to_string(),
        backend: backend.to_string(),
        state: state(vm.state()).into(),
        failure: failure.as_ref().map(failure_of).into(),
        desired_state: desired_state(*desired).into(),
        conditions: conditions.iter().map(condition).collect(),
        resource_version: *resource_version,
        generation: *generation,
        created_at: timestamp(*created_at).into(),
        started_at: started_at.map(timestamp).into(),
        updated_at: timestamp(*updated_at).into(),
        config: spec(config).into(),
        operation_ids: open.iter().map(ToString::to_string).collect(),
        accelerator: accelerator.clone().unwrap_or_default(),
        restart_count: *total,
        restarts_in_row: *in_row,
        restart_due: due.map(timestamp).into(),
        exit: exit.into(),
        ..Default::default()
    }
}

/// A VM's configuration, as `from_proto` reads it.
pub fn spec(spec: &VmSpec) -> VmConfig {
    let VmSpec {
        cpu: processors,
        memory: ram,
        boot: start,
        storage,
        network,
        console: Console { enabled },
        metadata,
        restart_policy: policy,
        time_to_live,
        machine,
        accelerator,
        agent: guest_agent,
        tools,
        idle,
    } = spec;
    VmConfig {
        cpu: cpu(processors).into(),
        memory: memory(*ram).into(),
        boot: boot(start).into(),
        storage: storage.iter().map(disk).collect(),
        network: network.iter().map(nic).collect(),
        console: ConsoleConfig { enabled: *enabled, ..Default::default() }.into(),
        metadata: metadata.clone(),
        restart_policy: restart_policy(*policy).into(),
        time_to_live_seconds: time_to_live.map_or(0, |ttl| ttl.as_secs()),
        machine: machine.map(|m| m.to_string()).unwrap_or_default(),
        accelerator: accelerator.to_string(),
        agent: agent(guest_agent).into(),
        tools: tools.iter().map(tool).collect(),
        idle_timeout_seconds: idle.map_or(0, |idle| idle.timeout.as_secs()),
        idle_action: idle.map(|idle| idle.action.to_string()).unwrap_or_default(),
        ..Default::default()
    }
}

fn agent(agent: &ModelAgent) -> AgentConfig {
    let ModelAgent { channel, allow_exec, file_roots, exec_user, metrics_interval } = agent;
    AgentConfig {
        channel: channel.to_string(),
        allow_exec: *allow_exec,
        file_roots: file_roots.iter().map(ToString::to_string).collect(),
        exec_user: exec_user.as_ref().map(ToString::to_string).unwrap_or_default(),
        metrics_interval_seconds: u32::try_from(metrics_interval.as_secs()).unwrap_or(u32::MAX),
        ..Default::default()
    }
}

fn tool(tool: &ModelTool) -> Tool {
    let ModelTool { name, version, script } = tool;
    Tool {
        name: name.to_string(),
        version: version.as_ref().map(ToString::to_string).unwrap_or_default(),
        script: script.clone().unwrap_or_default(),
        ..Default::default()
    }
}

/// An operation.
pub fn operation(operation: &ModelOperation) -> Operation {
    let ModelOperation {
        id,
        project,
        vm,
        goal,
        priority: order,
        status,
        attempt,
        max_attempts,
        run_after,
        deadline,
        claim: claimed,
        progress: Progress { percent, message },
        cancel_requested,
        error,
        created_at,
        started_at,
        finished_at,
    } = operation;
    Operation {
        id: id.to_string(),
        kind: goal.kind().to_string(),
        priority: priority(*order).into(),
        status: operation_status(*status).into(),
        attempt: *attempt,
        max_attempts: *max_attempts,
        run_after: timestamp(*run_after).into(),
        deadline: deadline.map(timestamp).into(),
        claim: claimed.as_ref().map(claim).into(),
        progress: OperationProgress { percent: u32::from(*percent), message: message.clone(), ..Default::default() }
            .into(),
        result: result(operation),
        error: error.as_ref().map(operation_error).into(),
        vm_id: vm.uuid().to_string(),
        created_at: timestamp(*created_at).into(),
        started_at: started_at.map(timestamp).into(),
        finished_at: finished_at.map(timestamp).into(),
        cancel_requested: *cancel_requested,
        project_id: project.to_string(),
        ..Default::default()
    }
}

/// A backend as it was probed, or why it cannot be used.
pub fn backend(name: &BackendName, capabilities: Result<&Capabilities, &str>) -> BackendDescription {
    match capabilities {
        Ok(Capabilities { have, machines, accelerators, max_vcpus, details }) => BackendDescription {
            name: name.to_string(),
            available: true,
            capabilities: have.iter().map(ToString::to_string).collect(),
            machines: machines.clone(),
            accelerators: accelerators.clone(),
            max_vcpus: *max_vcpus,
            details: details.clone(),
            ..Default::default()
        },
        Err(reason) => BackendDescription {
            name: name.to_string(),
            available: false,
            reason: reason.to_owned(),
            ..Default::default()
        },
    }
}

/// The public state.
pub fn state(state: ModelState) -> VmState {
    match state {
        ModelState::Created => VmState::Created,
        ModelState::Running => VmState::Running,
        ModelState::Paused => VmState::Paused,
        ModelState::Shutdown => VmState::Shutdown,
        ModelState::Crashed => VmState::Crashed,
        ModelState::Failed => VmState::Failed,
    }
}

/// An operation's status.
pub fn operation_status(status: ModelStatus) -> OperationStatus {
    match status {
        ModelStatus::Pending => OperationStatus::Pending,
        ModelStatus::Running => OperationStatus::Running,
        ModelStatus::Succeeded => OperationStatus::Succeeded,
        ModelStatus::Failed => OperationStatus::Failed,
        ModelStatus::Cancelled => OperationStatus::Cancelled,
    }
}

/// Who goes first.
pub fn priority(priority: ModelPriority) -> Priority {
    match priority {
        ModelPriority::Critical => Priority::Critical,
        ModelPriority::High => Priority::High,
        ModelPriority::Default => Priority::Default,
        ModelPriority::Low => Priority::Low,
    }
}

/// An instant.
pub fn timestamp(at: Timestamp) -> WireTimestamp {
    let ms = at.unix_ms();
    let nanos = i32::try_from(ms.rem_euclid(1000) * 1_000_000).expect("less than a second in ns fits");
    WireTimestamp { seconds: ms.div_euclid(1000), nanos, ..Default::default() }
}

fn failure_of(failure: &Failure) -> VmFailure {
    let Failure { reason, message, at } = failure;
    VmFailure { reason: reason.clone(), message: message.clone(), at: timestamp(*at).into(), ..Default::default() }
}

fn desired_state(desired: Desired) -> DesiredState {
    let Desired { power, deleted } = desired;
    let power = match power {
        Power::Stopped => desired_state::Power::Stopped,
        Power::Running => desired_state::Power::Running,
        Power::Paused => desired_state::Power::Paused,
    };
    DesiredState { power: power.into(), deleted, ..Default::default() }
}

fn condition(condition: &Condition) -> VmCondition {
    let Condition { kind, status, reason, message, since } = condition;
    VmCondition {
        r#type: kind.clone(),
        status: *status,
        reason: reason.clone(),
        message: message.clone(),
        since: timestamp(*since).into(),
        ..Default::default()
    }
}

fn claim(claim: &Claim) -> OperationClaim {
    let Claim { node, epoch, worker } = claim;
    OperationClaim { node: node.to_string(), epoch: *epoch, worker: worker.clone(), ..Default::default() }
}

/// What it has yielded: of a VM that was made, who it is.
fn result(operation: &ModelOperation) -> String {
    match (&operation.goal, operation.status) {
        (Goal::Create { .. }, ModelStatus::Succeeded) => {
            serde_json::json!({ "vm_id": operation.vm.uuid().to_string() }).to_string()
        }
        _ => String::new(),
    }
}

fn operation_error(error: &ModelError) -> OperationError {
    let ModelError { reason, message, hint, field } = error;
    OperationError {
        reason: reason.clone(),
        message: message.clone(),
        hint: hint.clone(),
        field: field.clone(),
        ..Default::default()
    }
}

fn cpu(cpu: &Cpu) -> CpuConfig {
    let Cpu { vcpu_count, max_vcpu_count, topology, features, model } = cpu;
    let topology = topology.map(|Topology { sockets, cores_per_socket, threads_per_core }| CpuTopology {
        sockets,
        cores_per_socket,
        threads_per_core,
        ..Default::default()
    });
    let word = |on: &bool| if *on { "on" } else { "off" }.to_owned();
    CpuConfig {
        vcpu_count: *vcpu_count,
        max_vcpu_count: *max_vcpu_count,
        topology: topology.into(),
        features: features.iter().map(|(feature, on)| (feature.to_string(), word(on))).collect(),
        model: model.as_ref().map(ToString::to_string).unwrap_or_default(),
        ..Default::default()
    }
}

fn memory(memory: Memory) -> MemoryConfig {
    let Memory { size, max_size, backing, merge } = memory;
    let (kind, page_size) = match backing {
        Backing::Anonymous => (memory_backing::Kind::Anonymous, Bytes::new(0)),
        Backing::Shared => (memory_backing::Kind::Shared, Bytes::new(0)),
        Backing::Hugepages { page_size } => (memory_backing::Kind::Hugepages, page_size),
    };
    MemoryConfig {
        size_bytes: bytes(size),
        hotplug_enabled: max_size > size,
        max_size_bytes: bytes(max_size),
        backing: MemoryBacking {
            kind: kind.into(),
            merge,
            hugepage_size_bytes: bytes(page_size),
            ..Default::default()
        }
        .into(),
        ..Default::default()
    }
}

/// Sizes on the wire are signed as in the first API; a spec's sizes are far below the limit.
fn bytes(bytes: Bytes) -> i64 {
    i64::try_from(bytes.get()).unwrap_or(i64::MAX)
}

fn boot(boot: &Boot) -> BootConfig {
    let Boot { kernel_path, initrd_path, kernel_args, boot_order } = boot;
    BootConfig {
        kernel_path: kernel_path.as_ref().map(ToString::to_string).unwrap_or_default(),
        initrd_path: initrd_path.as_ref().map(ToString::to_string).unwrap_or_default(),
        kernel_args: kernel_args.to_string(),
        boot_order: boot_order.clone(),
        ..Default::default()
    }
}

fn disk(disk: &Disk) -> StorageDevice {
    let Disk { id, path, read_only, is_root_device, bus, format, device } = disk;
    StorageDevice {
        id: id.clone(),
        path: path.to_string(),
        read_only: *read_only,
        is_root_device: *is_root_device,
        interface_type: bus.to_string(),
        format: format.to_string(),
        device: device.to_string(),
        ..Default::default()
    }
}

fn nic(nic: &Nic) -> NetworkInterface {
    let Nic { id, mac_address, kind } = nic;
    let wire = NetworkInterface {
        id: id.clone(),
        mac_address: mac_address.map(|m| m.to_string()).unwrap_or_default(),
        interface_type: "virtio".to_owned(),
        ..Default::default()
    };
    match kind {
        NicKind::User { port_forwards } => NetworkInterface {
            kind: "user".to_owned(),
            port_forwards: port_forwards.iter().map(port_forward).collect(),
            ..wire
        },
        NicKind::Tap { device } => NetworkInterface { kind: "tap".to_owned(), tap_device: device.clone(), ..wire },
    }
}

fn port_forward(forward: &Forward) -> PortForward {
    let Forward { protocol, host_address, host_port, guest_port } = forward;
    PortForward {
        protocol: protocol.to_string(),
        host_address: host_address.to_string(),
        host_port: u32::from(*host_port),
        guest_port: u32::from(*guest_port),
        ..Default::default()
    }
}

fn restart_policy(policy: ModelPolicy) -> RestartPolicy {
    let ModelPolicy { mode, max_retries, backoff, backoff_max } = policy;
    let mode = match mode {
        RestartMode::Never => restart_policy::Mode::Never,
        RestartMode::OnFailure => restart_policy::Mode::OnFailure,
        RestartMode::Always => restart_policy::Mode::Always,
    };
    let seconds = |d: Duration| Some(d.as_secs_f64());
    RestartPolicy {
        mode: mode.into(),
        max_retries: Some(max_retries),
        backoff_seconds: seconds(backoff),
        backoff_max_seconds: seconds(backoff_max),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use roost_model::spec::Boot;
    use roost_model::{ExitCause, Observed, ProjectId, VmId};

    use super::*;

    #[test]
    fn a_create_that_succeeded_says_what_it_made() {
        let at = Timestamp::from_unix_ms(1);
        let (id, vm) = (OperationId::from_parts(1, [1; 10]), VmId::from_parts(1, [2; 10]));
        let made = |goal: Goal, status: ModelStatus| {
            let mut made = ModelOperation::new(id, ProjectId::DEFAULT, vm, goal, ModelPriority::Default, at);
            if status != ModelStatus::Pending {
                made.finish(status, None, at);
            }
            operation(&made).result
        };
        let create = Goal::Create { power: Power::Running };
        assert_eq!(made(create.clone(), ModelStatus::Succeeded), format!(r#"{{"vm_id":"{}"}}"#, vm.uuid()));
        assert_eq!(made(create.clone(), ModelStatus::Pending), "");
        assert_eq!(made(create, ModelStatus::Failed), "");
        assert_eq!(made(Goal::Boot, ModelStatus::Succeeded), "");
    }

    #[test]
    fn a_record_shows_its_state_and_how_its_machine_ended() {
        let at = Timestamp::from_unix_ms(1_700_000_000_007);
        let boot = Boot { kernel_path: Some("/boot/vmlinuz".parse().unwrap()), ..Boot::default() };
        let mut record = ModelVm {
            id: VmId::from_parts(1, [1; 10]),
            project: ProjectId::DEFAULT,
            name: "web".parse().unwrap(),
            backend: "qemu".parse().unwrap(),
            spec: VmSpec::minimal(Memory::fixed(Bytes::from_mib(64)), boot),
            generation: 2,
            desired: Desired { power: Power::Running, deleted: false },
            observed: Observed { machine: Machine::Running, launch: None, since: at },
            failure: None,
            restarts: Restarts { in_row: 1, total: 7, due: Some(at) },
            accelerator: Some("tcg: no /dev/kvm".to_owned()),
            conditions: Vec::new(),
            resource_version: 9,
            created_at: at,
            updated_at: at,
            started_at: None,
        };
        let shown = vm(&record, &[]);
        assert_eq!((shown.state, shown.exit.is_set()), (VmState::Running.into(), false));
        assert_eq!((shown.restart_count, shown.restarts_in_row, shown.resource_version), (7, 1, 9));
        assert_eq!(shown.id, record.id.uuid().to_string());
        assert!(shown.started_at.is_unset() && shown.failure.is_unset());

        record.observed.machine = Machine::Ended { cause: ExitCause::Panic, lingering: true };
        let open = OperationId::from_parts(1, [3; 10]);
        let shown = vm(&record, &[open]);
        assert_eq!((shown.state, shown.exit.cause.as_str()), (VmState::Crashed.into(), "panic"));
        assert_eq!(shown.operation_ids, [open.to_string()]);
        let json = serde_json::to_value(&shown).unwrap();
        assert_eq!(json["exit"]["at"], "2023-11-14T22:13:20.007Z");

        record.failure = Some(Failure { reason: "R".to_owned(), message: "m".to_owned(), at });
        assert_eq!(vm(&record, &[]).state, VmState::Failed);
    }
}
