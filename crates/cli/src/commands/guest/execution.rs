//! `roost execution`: what was done in guests, and what came of it.

use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use roost_client::v1::{Execution, GetExecutionRequest, ListExecutionsRequest, ListExecutionsResponse};

use super::status_word;
use crate::commands::completion::vm_names;
use crate::commands::paged;
use crate::context::Context;
use crate::error::Failure;
use crate::escape;
use crate::output::{self, Column::*};
use crate::values::{age, now, time};

/// What was done in guests.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List executions, newest first
    #[command(visible_alias = "ls")]
    List(List),
    /// Describe an execution, with what is kept of its output
    Get(Get),
}

/// Lists executions.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those in this VM; in a VM that is gone, by ID
    #[arg(long, value_name = "VM", default_value = "", hide_default_value = true, add = ArgValueCompleter::new(vm_names))]
    vm: String,
    /// Only those of this job
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    job: String,
    /// Only those of this kind (repeatable)
    #[arg(long = "kind", value_name = "KIND", value_parser = ["exec", "action", "file"])]
    kinds: Vec<String>,
    /// At most so many; 0 is all
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

/// One execution.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// Its ID
    #[arg(value_name = "ID")]
    id: String,
}

/// Runs a command.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::List(command) => command.run(context).await,
        Command::Get(Get { id }) => {
            let request = GetExecutionRequest { execution_id: id, ..Default::default() };
            let answer = context.client.get_execution(request).await?;
            let execution = answer.execution.into_option().unwrap_or_default();
            if context.for_people() { output::print(&describe(&execution)) } else { context.document(&execution) }
        }
    }
}

impl List {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let executions = paged(self.limit, async |page_size, page_token| {
            let request = ListExecutionsRequest {
                vm_id: self.vm.clone(),
                job_id: self.job.clone(),
                kinds: self.kinds.clone(),
                page_size,
                page_token,
                ..Default::default()
            };
            let page = context.client.list_executions(request).await?;
            Ok((page.executions, page.next_page_token))
        })
        .await?;
        if !context.for_people() {
            return context.document(&ListExecutionsResponse { executions, ..Default::default() });
        }
        if context.quiet {
            let ids: String = executions.iter().map(|e| format!("{}\n", escape::line(&e.id))).collect();
            return output::print(&ids);
        }
        let columns = [Whole("ID"), Whole("STATUS"), Whole("EXIT"), Whole("AGE"), Whole("TOOK"), Cut("COMMAND")];
        output::table(&columns, executions.iter().map(row))
    }
}

fn row(execution: &Execution) -> Vec<String> {
    let started = execution.started_at.as_option();
    let exit = match (execution.exit_code, execution.signal) {
        (_, Some(signal)) => format!("signal {signal}"),
        (Some(code), None) => code.to_string(),
        (None, None) => "-".to_owned(),
    };
    vec![
        execution.id.clone(),
        status_word(execution),
        exit,
        started.map_or_else(|| "-".to_owned(), |t| age(now().since(time(t)))),
        took(execution),
        line(execution),
    ]
}

fn took(execution: &Execution) -> String {
    if execution.completed_at.is_set() { format!("{}ms", execution.duration_ms) } else { "-".to_owned() }
}

fn line(execution: &Execution) -> String {
    std::iter::once(&execution.command).chain(&execution.args).map(String::as_str).collect::<Vec<_>>().join(" ")
}

fn describe(execution: &Execution) -> String {
    let mut out = String::new();
    let exit = execution.exit_code.map(|code| code.to_string()).unwrap_or_default();
    let signal = execution.signal.map(|signal| signal.to_string()).unwrap_or_default();
    let facts = [
        ("id", execution.id.clone()),
        ("vm", execution.vm_id.clone()),
        ("job", execution.job_id.clone()),
        ("kind", execution.kind.clone()),
        ("command", line(execution)),
        ("variables", execution.env_names.join(", ")),
        ("status", status_word(execution)),
        ("exit code", exit),
        ("signal", signal),
        ("error", execution.error.clone()),
        ("started", execution.started_at.as_option().map(|t| time(t).to_string()).unwrap_or_default()),
        ("took", took(execution)),
    ];
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        out.push_str(&format!("{name:<10} {}\n", escape::line(value)));
    }
    for (name, text) in [("stdout", &execution.stdout), ("stderr", &execution.stderr)] {
        if !text.is_empty() {
            out.push_str(&format!("\n{name}:\n{}", escape::lines(text)));
            if !text.ends_with('\n') {
                out.push('\n');
            }
        }
    }
    out
}
