//! `roost job`: several commands in a guest, one after the other.

use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use roost_client::v1::{
    Command as WireCommand, CreateJobRequest, Execution, ExecutionStatus, GetJobRequest, Job, ListJobsRequest,
};

use super::status_word;
use crate::commands::completion::vm_names;
use crate::commands::paged;
use crate::context::Context;
use crate::error::Failure;
use crate::escape;
use crate::output::{self, Column::*};
use crate::values::{age, now, time};

/// Several commands in a guest, one after the other.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Begin a job; it goes on without us
    Create(Create),
    /// List a VM's jobs, newest first
    #[command(visible_alias = "ls")]
    List(List),
    /// Describe a job
    Get(Get),
}

/// Begins a job.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// What it is called
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    name: String,
    /// Go on behind a command that fails
    #[arg(long)]
    continue_on_error: bool,
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
    /// Lines for the guest's /bin/sh, in order
    #[arg(value_name = "LINE", required = true)]
    lines: Vec<String>,
}

/// Lists jobs.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
}

/// One job.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// Its ID
    #[arg(value_name = "ID")]
    id: String,
}

/// Runs a command.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Create(Create { name, continue_on_error, vm, lines }) => {
            let line = |line: String| WireCommand { command: line, shell: true, ..Default::default() };
            let commands = lines.into_iter().map(line).collect();
            let request = CreateJobRequest { vm_id: vm, name, commands, continue_on_error, ..Default::default() };
            let job = context.client.create_job(request).await?.job.into_option().unwrap_or_default();
            if context.for_people() {
                output::print(&format!("{}\n", escape::line(&job.id)))
            } else {
                context.document(&job)
            }
        }
        Command::List(List { vm }) => {
            let jobs = paged(0, async |page_size, page_token| {
                let request = ListJobsRequest { vm_id: vm.clone(), page_size, page_token, ..Default::default() };
                let page = context.client.list_jobs(request).await?;
                Ok((page.jobs, page.next_page_token))
            })
            .await?;
            if !context.for_people() {
                return context.document(&jobs);
            }
            let columns = [Whole("ID"), Whole("STATUS"), Whole("DONE"), Whole("AGE"), Cut("NAME"), Cut("COMMANDS")];
            output::table(&columns, jobs.iter().map(row))
        }
        Command::Get(Get { id }) => {
            let request = GetJobRequest { job_id: id, ..Default::default() };
            let job = context.client.get_job(request).await?.job.into_option().unwrap_or_default();
            if context.for_people() { output::print(&describe(&job)) } else { context.document(&job) }
        }
    }
}

fn word(job: &Job) -> String {
    status_word(&Execution { status: job.status, ..Default::default() })
}

fn row(job: &Job) -> Vec<String> {
    let created = job.created_at.as_option();
    vec![
        job.id.clone(),
        word(job),
        format!("{}/{}", job.execution_ids.len(), job.commands.len()),
        created.map_or_else(|| "-".to_owned(), |t| age(now().since(time(t)))),
        job.name.clone(),
        job.commands.join("; "),
    ]
}

fn describe(job: &Job) -> String {
    let mut out = format!("id         {}\n", escape::line(&job.id));
    if !job.name.is_empty() {
        out.push_str(&format!("name       {}\n", escape::line(&job.name)));
    }
    out.push_str(&format!("vm         {}\nstatus     {}\n", escape::line(&job.vm_id), word(job)));
    if job.status == ExecutionStatus::EXECUTION_STATUS_UNKNOWN {
        out.push_str("           nobody heard how it ended; look in the guest before you repeat it\n");
    }
    for (i, command) in job.commands.iter().enumerate() {
        let execution = job.execution_ids.get(i).map_or("not begun", String::as_str);
        out.push_str(&format!(
            "{:<10} {}\n           {}\n",
            format!("command {}", i + 1),
            escape::line(command),
            escape::line(execution)
        ));
    }
    out
}
