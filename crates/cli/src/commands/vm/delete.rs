//! `roost vm delete`.

use clap::Args;
use clap_complete::ArgValueCompleter;
use roost_client::v1::{DeleteVmRequest, VmState};

use super::change::{Common, Verb, change};
use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::Failure;

/// Deletes VMs.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Names or IDs
    #[arg(required = true, value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vms: Vec<String>,
    /// End and delete a VM that still runs
    #[arg(long, short)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

impl Delete {
    /// Runs the command. Without --force nothing is deleted if one of the VMs still runs.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut versions = std::collections::BTreeMap::new();
        if !self.force {
            for vm in &self.vms {
                let info = context.client.get_vm_info(vm).await?;
                if let Some(VmState::VM_STATE_RUNNING | VmState::VM_STATE_PAUSED) = info.state.as_known() {
                    return Err(Failure::Precondition {
                        message: format!("{vm} is {}", crate::values::state_word(info.state)),
                        hint: format!("stop it first with roost vm stop {vm}, or delete it as it runs with --force"),
                    });
                }
                versions.insert(vm.clone(), info.vm.resource_version);
            }
        }
        let verb = Verb { doing: "deleting", done: "deleted" };
        change(context, verb, &self.vms, &self.common, None, async |vm_id| {
            // What was looked at is what is deleted: a VM that was started in between is refused.
            let resource_version = versions.get(&vm_id).copied().unwrap_or_default();
            let request = DeleteVmRequest {
                vm_id,
                force: self.force,
                idempotency_key: self.common.key(),
                r#async: true,
                resource_version,
                ..Default::default()
            };
            context.client.delete_vm(request).await
        })
        .await
    }
}
