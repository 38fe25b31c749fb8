//! What is done in guests, on the wire.

use roost_model::execution::{ExecutionStatus as ModelExecutionStatus, JobCommand, Outcome, Output};
use roost_model::{Execution as ModelExecution, Job as ModelJob};

use super::timestamp;
use crate::vmm::v1::*;

/// An execution.
pub fn execution(execution: &ModelExecution) -> Execution {
    let ModelExecution {
        id,
        project: _,
        vm,
        job,
        kind,
        command,
        args,
        env_names,
        outcome:
            Outcome {
                status,
                exit_code,
                signal,
                stdout: Output { text: stdout, truncated: stdout_truncated },
                stderr: Output { text: stderr, truncated: stderr_truncated },
                error,
            },
        daemon_epoch: _,
        started_at,
        finished_at,
    } = execution;
    Execution {
        id: id.to_string(),
        vm_id: vm.uuid().to_string(),
        job_id: job.map(|job| job.to_string()).unwrap_or_default(),
        kind: kind.to_string(),
        command: command.clone(),
        args: args.clone(),
        env_names: env_names.clone(),
        status: execution_status(*status).into(),
        exit_code: *exit_code,
        signal: *signal,
        stdout: stdout.clone(),
        stderr: stderr.clone(),
        stdout_truncated: *stdout_truncated,
        stderr_truncated: *stderr_truncated,
        error: error.clone().unwrap_or_default(),
        started_at: timestamp(*started_at).into(),
        completed_at: finished_at.map(timestamp).into(),
        duration_ms: execution.duration_ms().unwrap_or_default(),
        ..Default::default()
    }
}

/// An execution's status.
pub fn execution_status(status: ModelExecutionStatus) -> ExecutionStatus {
    match status {
        ModelExecutionStatus::Running => ExecutionStatus::EXECUTION_STATUS_RUNNING,
        ModelExecutionStatus::Succeeded => ExecutionStatus::EXECUTION_STATUS_SUCCEEDED,
        ModelExecutionStatus::Failed => ExecutionStatus::EXECUTION_STATUS_FAILED,
        ModelExecutionStatus::Cancelled => ExecutionStatus::EXECUTION_STATUS_CANCELLED,
        ModelExecutionStatus::Unknown => ExecutionStatus::EXECUTION_STATUS_UNKNOWN,
    }
}

/// A job.
pub fn job(job: &ModelJob) -> Job {
    let ModelJob {
        id,
        project: _,
        vm,
        name,
        commands,
        stop_on_error,
        status,
        executions,
        daemon_epoch: _,
        created_at,
        finished_at,
    } = job;
    let text = |JobCommand { command, args, env_names: _ }: &JobCommand| {
        std::iter::once(command).chain(args).cloned().collect::<Vec<_>>().join(" ")
    };
    Job {
        id: id.to_string(),
        vm_id: vm.uuid().to_string(),
        name: name.clone(),
        commands: commands.iter().map(text).collect(),
        continue_on_error: !stop_on_error,
        status: execution_status(*status).into(),
        execution_ids: executions.iter().map(ToString::to_string).collect(),
        created_at: timestamp(*created_at).into(),
        completed_at: finished_at.map(timestamp).into(),
        ..Default::default()
    }
}
