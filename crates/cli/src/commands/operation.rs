//! `roost operation`.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use roost_client::v1::{ListOperationsRequest, ListOperationsResponse, Operation, OperationStatus};

use crate::commands::completion::{operation_ids, vm_names};
use crate::commands::paged;
use crate::context::Context;
use crate::error::Failure;
use crate::escape;
use crate::output::{self, Column::*};
use crate::progress::follow;
use crate::values::{age, duration, now, status, status_word, time};

/// What was asked of the daemon, and what became of it.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List operations, newest first
    #[command(visible_alias = "ls")]
    List(List),
    /// Describe an operation
    Get(One),
    /// Wait for operations to end
    Wait(Wait),
    /// Ask for an operation's end; what it has done is undone where that can be
    Cancel(Cancel),
}

/// Lists operations.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those of this VM; of a VM that is gone, by ID
    #[arg(long, value_name = "VM", default_value = "", hide_default_value = true, add = ArgValueCompleter::new(vm_names))]
    vm: String,
    /// Only those with this status (repeatable)
    #[arg(long = "status", value_name = "STATUS", value_parser = status)]
    statuses: Vec<OperationStatus>,
    /// At most so many; 0 is all
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

/// One operation.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// The operation's ID
    #[arg(value_name = "ID", add = ArgValueCompleter::new(operation_ids))]
    id: String,
}

/// Waits for operations.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Their IDs
    #[arg(required = true, value_name = "ID", add = ArgValueCompleter::new(operation_ids))]
    ids: Vec<String>,
    /// How long to wait; they go on after that
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
}

/// Cancels operations.
#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// Their IDs
    #[arg(required = true, value_name = "ID", add = ArgValueCompleter::new(operation_ids))]
    ids: Vec<String>,
}

/// Runs a command.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::List(command) => command.run(context).await,
        Command::Get(One { id }) => {
            let operation = context.client.get_operation(&id).await?;
            if context.for_people() { output::print(&describe(&operation)) } else { context.document(&operation) }
        }
        Command::Wait(command) => command.run(context).await,
        Command::Cancel(command) => command.run(context).await,
    }
}

impl List {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let statuses: Vec<_> = self.statuses.iter().map(|s| (*s).into()).collect();
        let operations = paged(self.limit, async |page_size, page_token| {
            let (vm_id, statuses) = (self.vm.clone(), statuses.clone());
            let request = ListOperationsRequest { vm_id, statuses, page_size, page_token, ..Default::default() };
            let page = context.client.list_operations(request).await?;
            Ok((page.operations, page.next_page_token))
        })
        .await?;
        if !context.for_people() {
            return context.document(&ListOperationsResponse { operations, ..Default::default() });
        }
        if context.quiet {
            let ids: String = operations.iter().map(|o| format!("{}\n", escape::line(&o.id))).collect();
            return output::print(&ids);
        }
        let columns = [Whole("ID"), Whole("KIND"), Whole("STATUS"), Whole("AGE"), Cut("VM"), Cut("ERROR")];
        output::table(&columns, operations.iter().map(row))
    }
}

impl Wait {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let end = self.timeout.map(|t| Instant::now() + t);
        let mut ended = Vec::with_capacity(self.ids.len());
        for id in &self.ids {
            let operation = context.client.get_operation(id).await?;
            context.waits_for(&operation.id);
            let label = format!("waiting for {} ({})", operation.id, operation.kind);
            let left = end.map(|e| e.saturating_duration_since(Instant::now()));
            let operation = follow(context, &label, operation, left).await?;
            if context.for_people() {
                context.say(&format!("{}: {}", operation.id, status_word(operation.status)))?;
            }
            ended.push(operation);
        }
        told(context, &ended)
    }
}

impl Cancel {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut cancelled = Vec::with_capacity(self.ids.len());
        for id in &self.ids {
            let operation = context.client.cancel_operation(id).await?;
            if context.for_people() {
                // A request to cancel is one: it ends when it has undone what it did.
                let over = roost_client::has_ended(&operation);
                let word = status_word(operation.status);
                let is = if over { word } else { format!("to be cancelled, still {word}") };
                context.say(&format!("{}: {is}", operation.id))?;
            }
            cancelled.push(operation);
        }
        told(context, &cancelled)
    }
}

/// The document: of one operation itself, of several a list.
fn told(context: &Context, operations: &[Operation]) -> Result<(), Failure> {
    match operations {
        _ if context.for_people() => Ok(()),
        [one] => context.document(one),
        many => context.document(&many),
    }
}

fn row(operation: &Operation) -> Vec<String> {
    let created = operation.created_at.as_option();
    vec![
        operation.id.clone(),
        operation.kind.clone(),
        status_word(operation.status),
        created.map_or_else(|| "-".to_owned(), |t| age(now().since(time(t)))),
        operation.vm_id.clone(),
        operation.error.as_option().map(|e| e.message.clone()).unwrap_or_default(),
    ]
}

fn describe(operation: &Operation) -> String {
    let mut out = String::new();
    let mut row = |label: &str, value: &str| {
        if !value.is_empty() {
            out.push_str(&format!("{label:<13} {}\n", escape::line(value)));
        }
    };
    let at = |time_of: Option<&_>| time_of.map(|t| time(t).to_string()).unwrap_or_default();
    row("ID:", &operation.id);
    row("Kind:", &operation.kind);
    row("VM:", &operation.vm_id);
    let asked = if operation.cancel_requested { " (its end was asked for)" } else { "" };
    row("Status:", &format!("{}{asked}", status_word(operation.status)));
    if let Some(progress) = operation.progress.as_option() {
        row("Progress:", format!("{}% {}", progress.percent, progress.message).trim_end());
    }
    row("Attempt:", &format!("{} of {}", operation.attempt, operation.max_attempts));
    row("Created:", &at(operation.created_at.as_option()));
    row("Started:", &at(operation.started_at.as_option()));
    row("Finished:", &at(operation.finished_at.as_option()));
    if operation.finished_at.as_option().is_none() {
        row("Next try:", &at(operation.run_after.as_option()));
        row("Deadline:", &at(operation.deadline.as_option()));
    }
    row("Result:", &operation.result);
    if let Some(error) = operation.error.as_option() {
        row("Error:", &format!("{}: {}", error.reason, error.message));
        row("Field:", &error.field);
        row("Value:", &error.value);
        row("Permitted:", &error.permitted.join(", "));
        row("Hint:", &error.hint);
    }
    out
}
