//! `roost process`: the processes of a guest.

use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use roost_client::v1::{GuestProcess, KillProcessRequest, ListProcessesRequest};

use super::told;
use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::Failure;
use crate::output::{self, Column, Column::*};
use crate::values::bytes;

/// The columns of a list of processes.
pub(super) const COLUMNS: [Column; 7] =
    [Whole("PID"), Whole("USER"), Whole("CPU%"), Whole("MEMORY"), Whole("STATE"), Cut("NAME"), Cut("COMMAND")];

/// The processes of a guest.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List processes
    #[command(visible_alias = "ls")]
    List(List),
    /// End a process
    Kill(Kill),
}

/// Lists processes.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u32,
    /// By what they are ordered
    #[arg(long, value_name = "WHAT", value_parser = ["cpu", "memory", "pid", "name"], default_value = "pid")]
    sort: String,
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
}

/// Ends a process.
#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// By SIGKILL, at once
    #[arg(long, short)]
    force: bool,
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
    /// The process's number in the guest
    #[arg(value_name = "PID")]
    pid: u32,
}

/// Runs a command.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::List(List { limit, sort, vm }) => {
            let request = ListProcessesRequest { vm_id: vm, limit, sort_by: sort, ..Default::default() };
            let answer = context.client.list_processes(request).await?;
            if !context.for_people() {
                return context.document(&answer);
            }
            output::table(&COLUMNS, answer.processes.iter().map(row))
        }
        Command::Kill(Kill { force, vm, pid }) => {
            let request = KillProcessRequest { vm_id: vm, pid, force, ..Default::default() };
            let answer = context.client.kill_process(request).await?;
            told(context, answer.execution.into_option(), &format!("process {pid} was told to end"))
        }
    }
}

/// A process in a table.
pub(super) fn row(process: &GuestProcess) -> Vec<String> {
    vec![
        process.pid.to_string(),
        process.user.clone(),
        format!("{:.1}", process.cpu_percent),
        bytes(process.memory_bytes),
        process.state.clone(),
        process.name.clone(),
        process.command.clone(),
    ]
}
