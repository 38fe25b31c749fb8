//! The commands, one file for each group: arguments, help and handler together.

pub(crate) mod backend;
pub(crate) mod completion;
pub(crate) mod daemon;
pub(crate) mod doctor;
pub(crate) mod guest;
pub(crate) mod operation;
pub(crate) mod version;
pub(crate) mod vm;

use crate::cli::Command;
use crate::context::Context;
use crate::error::Failure;

/// Runs a command.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Vm(command) => vm::run(command, context).await,
        Command::Console(command) => command.run(context).await,
        Command::Exec(command) => command.run(context).await,
        Command::Cp(command) => command.run(context).await,
        Command::Top(command) => command.run(context).await,
        Command::Metrics(command) => command.run(context).await,
        Command::Service(command) => guest::service::run(command, context).await,
        Command::Package(command) => guest::package::run(command, context).await,
        Command::Process(command) => guest::process::run(command, context).await,
        Command::Agent(command) => guest::agent::run(command, context).await,
        Command::Execution(command) => guest::execution::run(command, context).await,
        Command::Job(command) => guest::job::run(command, context).await,
        Command::Operation(command) => operation::run(command, context).await,
        Command::Daemon(command) => daemon::run(command, context).await,
        Command::Backend(command) => backend::run(command, context).await,
        Command::Doctor => doctor::run(context).await,
        Command::Version => version::run(context).await,
        Command::Completion(command) => command.run(),
    }
}
