//! `roost service`: the services of a guest.

use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use roost_client::v1::{ControlServiceRequest, GuestServiceUnit, ListServicesRequest};

use super::told;
use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::Failure;
use crate::output::{self, Column::*};

/// The services of a guest.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List services
    #[command(visible_alias = "ls")]
    List(List),
    /// Start a service
    Start(One),
    /// Stop a service
    Stop(One),
    /// Restart a service
    Restart(One),
    /// Start a service at every boot
    Enable(One),
    /// Do not start a service at boot
    Disable(One),
    /// Print what the service manager says of a service
    Status(One),
}

/// Lists services.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
}

/// One service.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
    /// The service, as its manager names it
    #[arg(value_name = "SERVICE")]
    service: String,
}

/// Runs a command.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    let (operation, One { vm, service }) = match command {
        Command::List(List { vm }) => return list(vm, context).await,
        Command::Start(one) => ("start", one),
        Command::Stop(one) => ("stop", one),
        Command::Restart(one) => ("restart", one),
        Command::Enable(one) => ("enable", one),
        Command::Disable(one) => ("disable", one),
        Command::Status(one) => ("status", one),
    };
    let done = if operation == "status" { String::new() } else { format!("{service}: {operation} done") };
    let request = ControlServiceRequest { vm_id: vm, service, operation: operation.to_owned(), ..Default::default() };
    told(context, context.client.control_service(request).await?.execution.into_option(), &done)
}

async fn list(vm: String, context: &Context) -> Result<(), Failure> {
    let answer = context.client.list_services(ListServicesRequest { vm_id: vm, ..Default::default() }).await?;
    if !context.for_people() {
        return context.document(&answer);
    }
    let row = |service: &GuestServiceUnit| {
        let enabled = match service.enabled {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        vec![service.name.clone(), service.state.clone(), enabled.to_owned(), service.description.clone()]
    };
    let columns = [Whole("NAME"), Whole("STATE"), Whole("ENABLED"), Cut("DESCRIPTION")];
    output::table(&columns, answer.services.iter().map(row))
}
