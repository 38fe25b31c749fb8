//! `roost vm delete`.

use clap::Args;
use clap_complete::ArgValueCompleter;
use roost_client::v1::{DeleteVmRequest, VmState};
use roost_client::{Changed, EnumValue, Error};

use super::change::{Common, Verb, change};
use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::Failure;

/// How often a VM that changes under our eyes is looked at again.
const LOOKS: usize = 5;

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
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let verb = Verb { doing: "deleting", done: "deleted" };
        change(context, verb, &self.vms, &self.common, None, async |vm| self.ask(context, &vm).await).await
    }

    /// Without --force, what was looked at is what is deleted: a VM that runs, or was started in between, is refused.
    async fn ask(&self, context: &Context, vm: &str) -> Result<Changed, Failure> {
        if self.force {
            return Ok(context.client.delete_vm(self.request(vm, 0)).await?);
        }
        let mut looks = 1;
        loop {
            let info = context.client.get_vm_info(vm).await?;
            if is_up(info.state) {
                return Err(Failure::Precondition {
                    message: format!("{vm} is {}", crate::values::state_word(info.state)),
                    hint: format!("stop it first with roost vm stop {vm}, or delete it as it runs with --force"),
                });
            }
            match context.client.delete_vm(self.request(vm, info.vm.resource_version)).await {
                // The record of a VM that has just stopped still changes while it is tidied up.
                Err(error) if is_stale(&error) && looks < LOOKS => looks += 1,
                answer => return Ok(answer?),
            }
        }
    }

    fn request(&self, vm_id: &str, resource_version: u64) -> DeleteVmRequest {
        DeleteVmRequest {
            vm_id: vm_id.to_owned(),
            force: self.force,
            idempotency_key: self.common.key(),
            r#async: true,
            resource_version,
            ..Default::default()
        }
    }
}

fn is_up(state: EnumValue<VmState>) -> bool {
    matches!(state.as_known(), Some(VmState::VM_STATE_RUNNING | VmState::VM_STATE_PAUSED))
}

fn is_stale(error: &Error) -> bool {
    error.reason() == Some("STALE_RESOURCE_VERSION")
}
