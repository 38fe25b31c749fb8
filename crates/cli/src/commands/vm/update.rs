//! `roost vm update`.

use std::path::PathBuf;

use clap::Args;
use clap_complete::ArgValueCompleter;
use roost_client::v1::UpdateVmRequest;

use super::change::{Common, Patience, Verb, change};
use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::Failure;
use crate::spec::file;
use crate::spec::flags::ConfigFlags;

/// Changes a VM's configuration.
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
    /// Replace the configuration by that of a file as for roost vm create; flags change it further
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// Refuse if the VM has changed since this version [default: the version that the flags change]
    #[arg(long, value_name = "N")]
    resource_version: Option<u64>,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    config: ConfigFlags,
}

impl Update {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let (mut config, seen) = match &self.file {
            Some(path) => {
                let mut documents = file::read(path).await?;
                if documents.len() > 1 {
                    return Err(Failure::usage("the file has several documents, and one VM is to be changed", ""));
                }
                (documents.remove(0).config.into_option().unwrap_or_default(), 0)
            }
            None if !self.config.any() => {
                let hint = "give a flag such as --memory 1GiB, or a file with -f";
                return Err(Failure::usage("there is nothing to change", hint));
            }
            None => {
                let info = context.client.get_vm_info(&self.vm).await?;
                (info.config.into_option().unwrap_or_default(), info.vm.resource_version)
            }
        };
        self.config.apply(&mut config)?;
        let verb = Verb { doing: "updating", done: "updated" };
        let resource_version = self.resource_version.unwrap_or(seen);
        let vms = std::slice::from_ref(&self.vm);
        change(context, verb, vms, &self.common, self.patience.timeout, async |vm_id| {
            let request = UpdateVmRequest {
                vm_id,
                config: config.clone().into(),
                idempotency_key: self.common.key(),
                r#async: true,
                resource_version,
                ..Default::default()
            };
            Ok(context.client.update_vm(request).await?)
        })
        .await
    }
}
