//! `roost backend`.

use clap::Subcommand;
use roost_client::v1::{BackendDescription, ListBackendsResponse};

use crate::context::Context;
use crate::error::Failure;
use crate::escape;
use crate::output::{self, Column::*};

/// What can run VMs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the daemon's backends, what each can do here, or why it cannot be used
    #[command(visible_alias = "ls")]
    List,
}

/// Runs a command.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    let Command::List = command;
    let backends: Vec<BackendDescription> = context.client.list_backends().await?;
    if !context.for_people() {
        return context.document(&ListBackendsResponse { backends, ..Default::default() });
    }
    if context.quiet {
        let names: String = backends.iter().map(|b| format!("{}\n", escape::line(&b.name))).collect();
        return output::print(&names);
    }
    let columns = [
        Whole("NAME"),
        Whole("AVAILABLE"),
        Whole("ACCELERATORS"),
        Whole("MACHINES"),
        Whole("CPUS"),
        Cut("CAPABILITIES"),
    ];
    output::table(&columns, backends.iter().map(row))?;
    for backend in &backends {
        for (key, value) in &backend.details {
            let (name, key, value) = (escape::line(&backend.name), escape::line(key), escape::line(value));
            output::print(&format!("{name}: {key}: {value}\n"))?;
        }
    }
    Ok(())
}

fn row(backend: &BackendDescription) -> Vec<String> {
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let what = if backend.available { backend.capabilities.join(" ") } else { backend.reason.clone() };
    vec![
        backend.name.clone(),
        if backend.available { "yes" } else { "no" }.to_owned(),
        or_none(backend.accelerators.join(" ")),
        or_none(backend.machines.join(" ")),
        if backend.max_vcpus == 0 { "-".to_owned() } else { backend.max_vcpus.to_string() },
        or_none(what),
    ]
}
