//! `roost vm list`.

use clap::Args;
use roost_client::v1::{ListVmsRequest, ListVmsResponse, Vm, VmState};

use crate::context::Context;
use crate::error::Failure;
use crate::output::{self, Column::*};
use crate::values::{age, bytes, key_value, now, state, state_word, time};

/// Lists VMs.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only VMs in this state (repeatable)
    #[arg(long = "state", value_name = "STATE", value_parser = state)]
    states: Vec<VmState>,
    /// Only VMs with this metadata (repeatable: all must match)
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    metadata: Vec<(String, String)>,
    /// Only VMs of this backend
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    backend: String,
    /// Only VMs whose name begins so
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    prefix: String,
    /// More columns
    #[arg(long, short)]
    wide: bool,
}

impl List {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let request = ListVmsRequest {
            states: self.states.iter().map(|s| (*s).into()).collect(),
            metadata: self.metadata.into_iter().collect(),
            backend: self.backend,
            name_prefix: self.prefix,
            page_size: 1000,
            ..Default::default()
        };
        let vms = context.client.list_all_vms(request).await?;
        if !context.for_people() {
            let total_size = vms.len() as u64;
            return context.document(&ListVmsResponse { vms, total_size, ..Default::default() });
        }
        if context.quiet {
            let names: String = vms.iter().map(|vm| format!("{}\n", crate::escape::line(&vm.name))).collect();
            return output::print(&names);
        }
        let mut columns =
            vec![Cut("NAME"), Whole("STATE"), Cut("BACKEND"), Whole("CPUS"), Whole("MEMORY"), Whole("AGE")];
        if self.wide {
            columns.extend([Whole("ID"), Whole("MACHINE"), Cut("ACCELERATOR"), Whole("RESTARTS"), Whole("EXIT")]);
        }
        output::table(&columns, vms.iter().map(|vm| row(vm, self.wide)))
    }
}

fn row(vm: &Vm, wide: bool) -> Vec<String> {
    let created = vm.created_at.as_option();
    let mut row = vec![
        vm.name.clone(),
        state_word(vm.state),
        vm.backend.clone(),
        vm.config.cpu.vcpu_count.max(1).to_string(),
        bytes(vm.config.memory.size_bytes.unsigned_abs()),
        created.map_or_else(|| "-".to_owned(), |t| age(now().since(time(t)))),
    ];
    if wide {
        let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        row.extend([
            vm.id.clone(),
            or_none(&vm.config.machine),
            or_none(&vm.accelerator),
            vm.restart_count.to_string(),
            or_none(&vm.exit.cause),
        ]);
    }
    row
}
