//! `roost vm`.

mod change;
pub(crate) mod console;
mod create;
mod delete;
mod get;
mod list;
mod logs;
mod power;
mod update;
mod wait;
mod watch;

use clap::Subcommand;

use crate::context::Context;
use crate::error::Failure;

/// Virtual machines.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a VM, or many
    Create(Box<create::Create>),
    /// List VMs
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Describe a VM
    Get(get::Get),
    /// Start VMs
    Start(power::AtOnce),
    /// Ask guests to power off, and end them by force when they have not in time
    Stop(power::Asking),
    /// Stop the virtual CPUs of VMs
    Pause(power::AtOnce),
    /// Let the virtual CPUs of paused VMs go on
    Resume(power::AtOnce),
    /// Start running VMs anew
    Reboot(power::Asking),
    /// Change a VM's configuration
    Update(Box<update::Update>),
    /// Delete VMs; disks that were given by path stay
    #[command(visible_alias = "rm")]
    Delete(delete::Delete),
    /// Print what the guest wrote to its serial console
    Logs(logs::Logs),
    /// A VM's serial console, both ways
    Console(console::Console),
    /// Print events as they happen
    Watch(watch::Watch),
    /// Wait for a VM's state, or for words on its console
    Wait(wait::Wait),
}

/// Runs a command.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Create(command) => command.run(context).await,
        Command::List(command) => command.run(context).await,
        Command::Get(command) => command.run(context).await,
        Command::Start(command) => command.start(context).await,
        Command::Stop(command) => command.stop(context).await,
        Command::Pause(command) => command.pause(context).await,
        Command::Resume(command) => command.resume(context).await,
        Command::Reboot(command) => command.reboot(context).await,
        Command::Update(command) => command.run(context).await,
        Command::Delete(command) => command.run(context).await,
        Command::Logs(command) => command.run(context).await,
        Command::Console(command) => command.run(context).await,
        Command::Watch(command) => command.run(context).await,
        Command::Wait(command) => command.run(context).await,
    }
}
