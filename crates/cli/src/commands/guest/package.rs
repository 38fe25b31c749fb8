//! `roost package`: the packages of a guest.

use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use roost_client::v1::{ChangePackageRequest, GuestPackage, ListPackagesRequest};

use super::told;
use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::Failure;
use crate::output::{self, Column::*};
use crate::progress::Spinner;
use crate::values::whole_seconds;

/// The packages of a guest.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the packages that are installed
    #[command(visible_alias = "ls")]
    List(List),
    /// Look for packages
    Search(Search),
    /// Install a package; one that is there is left alone
    Install(Install),
    /// Remove a package
    Remove(One),
    /// Update a package
    Update(One),
}

/// Lists packages.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
}

/// Looks for packages.
#[derive(Debug, Args)]
pub(crate) struct Search {
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
    /// What to look for
    #[arg(value_name = "QUERY")]
    query: String,
}

/// One package.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// How long it may take [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds)]
    timeout: Option<u32>,
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
    /// The package
    #[arg(value_name = "PACKAGE")]
    package: String,
}

/// A package to install.
#[derive(Debug, Args)]
pub(crate) struct Install {
    /// This version [default: whatever the package manager takes]
    #[arg(long, value_name = "VERSION", default_value = "", hide_default_value = true)]
    version: String,
    #[command(flatten)]
    one: One,
}

/// Runs a command.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    let (operation, done, one, version) = match command {
        Command::List(List { vm }) => return list(vm, String::new(), context).await,
        Command::Search(Search { vm, query }) => return list(vm, query, context).await,
        Command::Install(Install { version, one }) => ("install", "installed", one, version),
        Command::Remove(one) => ("remove", "removed", one, String::new()),
        Command::Update(one) => ("update", "up to date", one, String::new()),
    };
    let One { timeout, vm, package } = one;
    let spinner = Spinner::new(context, &format!("{operation} {package}"));
    let done = format!("{package}: {done}");
    let request = ChangePackageRequest {
        vm_id: vm,
        package,
        operation: operation.to_owned(),
        version,
        timeout_seconds: timeout.unwrap_or_default(),
        ..Default::default()
    };
    let answer = context.client.change_package(request).await;
    drop(spinner);
    told(context, answer?.execution.into_option(), &done)
}

async fn list(vm: String, query: String, context: &Context) -> Result<(), Failure> {
    let answer = context.client.list_packages(ListPackagesRequest { vm_id: vm, query, ..Default::default() }).await?;
    if !context.for_people() {
        return context.document(&answer);
    }
    let row = |p: &GuestPackage| vec![p.name.clone(), p.version.clone(), p.description.clone()];
    output::table(&[Whole("NAME"), Whole("VERSION"), Cut("DESCRIPTION")], answer.packages.iter().map(row))
}
