//! What is seen and done inside guests: one file for each command.

pub(crate) mod agent;
pub(crate) mod cp;
pub(crate) mod exec;
pub(crate) mod execution;
pub(crate) mod job;
pub(crate) mod metrics;
pub(crate) mod package;
pub(crate) mod process;
pub(crate) mod service;
pub(crate) mod top;
mod tree;

use roost_client::v1::{Execution, ExecutionStatus};

use crate::context::Context;
use crate::error::Failure;
use crate::escape;
use crate::output;

/// Tells what came of an action: its output where it has one, an error where it failed.
fn told(context: &Context, execution: Option<Execution>, done: &str) -> Result<(), Failure> {
    let execution = execution.ok_or_else(|| Failure::other("the daemon's answer lacks its execution", ""))?;
    if !context.for_people() {
        context.document(&execution)?;
    } else if !execution.stdout.is_empty() && !context.quiet {
        output::print(&escape::lines(&execution.stdout))?;
        if !execution.stdout.ends_with('\n') {
            output::print("\n")?;
        }
    }
    if execution.status == ExecutionStatus::EXECUTION_STATUS_SUCCEEDED {
        return if context.for_people() { context.say(done) } else { Ok(()) };
    }
    let why = [&execution.error, &execution.stderr].into_iter().map(|text| text.trim()).find(|text| !text.is_empty());
    let how = match (execution.exit_code, execution.signal) {
        (_, Some(signal)) => format!("it was ended by signal {signal}"),
        (Some(code), None) => format!("its exit code is {code}"),
        (None, None) => format!("it {}", status_word(&execution)),
    };
    let message = why.map_or_else(|| how, str::to_owned);
    Err(Failure::other(message, format!("roost execution get {} has all that is kept of it", execution.id)))
}

/// An execution's status in a word.
fn status_word(execution: &Execution) -> String {
    match execution.status.as_known() {
        Some(ExecutionStatus::EXECUTION_STATUS_RUNNING) => "running".to_owned(),
        Some(ExecutionStatus::EXECUTION_STATUS_SUCCEEDED) => "succeeded".to_owned(),
        Some(ExecutionStatus::EXECUTION_STATUS_FAILED) => "failed".to_owned(),
        Some(ExecutionStatus::EXECUTION_STATUS_CANCELLED) => "cancelled".to_owned(),
        Some(ExecutionStatus::EXECUTION_STATUS_UNKNOWN) => "unknown".to_owned(),
        Some(ExecutionStatus::EXECUTION_STATUS_UNSPECIFIED) | None => format!("status {}", execution.status.to_i32()),
    }
}
