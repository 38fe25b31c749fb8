//! The command line as a whole; each command's arguments are beside its handler.

use clap::{Parser, Subcommand};

use crate::commands::guest::{agent, cp, exec, execution, job, metrics, package, process, service, top};
use crate::commands::{backend, completion, daemon, operation, vm};
use crate::context::Global;
use crate::error::EXIT_CODES;

/// Virtual machines from the command line.
#[derive(Debug, Parser)]
#[command(name = "roost", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// A command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Virtual machines
    #[command(subcommand)]
    Vm(vm::Command),
    /// A VM's serial console (the same as roost vm console)
    Console(vm::console::Console),
    /// Run a program in a guest
    Exec(exec::Exec),
    /// Copy files and directories to and from a guest
    Cp(cp::Cp),
    /// The processes of a guest that do the most
    Top(top::Top),
    /// What a guest says of itself in figures
    Metrics(metrics::Metrics),
    /// The services of a guest
    #[command(subcommand)]
    Service(service::Command),
    /// The packages of a guest
    #[command(subcommand)]
    Package(package::Command),
    /// The processes of a guest
    #[command(subcommand)]
    Process(process::Command),
    /// The agent in a guest
    #[command(subcommand)]
    Agent(agent::Command),
    /// What was done in guests
    #[command(subcommand)]
    Execution(execution::Command),
    /// Several commands in a guest, one after the other
    #[command(subcommand)]
    Job(job::Command),
    /// What was asked of the daemon, and what became of it
    #[command(subcommand, visible_alias = "op")]
    Operation(operation::Command),
    /// The daemon itself
    #[command(subcommand)]
    Daemon(daemon::Command),
    /// What can run VMs
    #[command(subcommand)]
    Backend(backend::Command),
    /// What is wrong with this host, and what to do about it
    Doctor,
    /// The versions of this program and of the daemon
    Version,
    /// Prints what a shell needs to complete commands, VM names included
    Completion(completion::Completion),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
