//! `roost vm create`.

use std::path::PathBuf;

use clap::Args;
use roost_client::Changed;
use roost_client::v1::{BulkCreateVmsRequest, CreateVmRequest};
use roost_model::VmName;

use super::change::{Common, Patience, Verb, settle};
use crate::context::Context;
use crate::error::Failure;
use crate::spec::file;
use crate::spec::flags::ConfigFlags;

/// Creates a VM, or many.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The VM's name; one is made when it is left out
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Read the VM from a YAML or JSON file, or several from a file of several documents (- is standard input); the
    /// fields are those of CreateVmRequest
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// Boot it right away
    #[arg(long)]
    start: bool,
    /// The backend that runs it [default: the daemon's]
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Create N of them, NAME-1 to NAME-N: all, or none
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000), requires = "name")]
    count: Option<u16>,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    config: ConfigFlags,
}

impl Create {
    /// Runs the command. Everything is read and checked before anything is sent.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut requests = self.requests().await?;
        let verb = match requests.iter().all(|r| r.start) {
            true => Verb { doing: "creating and starting", done: "created and started" },
            false => Verb { doing: "creating", done: "created" },
        };
        let many = self.count.is_some() || requests.len() > 1;
        let names: Vec<String> = requests.iter().map(|r| r.name.clone()).collect();
        let changed = if many {
            let bulk = BulkCreateVmsRequest {
                vms: requests,
                idempotency_key: self.common.key(),
                r#async: true,
                ..Default::default()
            };
            context.ask(context.client.bulk_create_vms(bulk)).await?
        } else {
            let mut request = requests.remove(0);
            request.r#async = true;
            if self.common.idempotency_key.is_some() {
                request.idempotency_key = self.common.key();
            }
            vec![context.ask(context.client.create_vm(request)).await?]
        };
        if !self.common.asynchronous {
            changed.iter().for_each(|c| context.waits_for(&c.operation.id));
        }
        let label = |(name, changed): (String, Changed)| {
            (if name.is_empty() { changed.vm_id.clone() } else { name }, Ok(changed))
        };
        let asked = names.into_iter().zip(changed).map(label).collect();
        settle(context, verb, asked, self.common.asynchronous, self.patience.timeout, many).await
    }

    async fn requests(&self) -> Result<Vec<CreateVmRequest>, Failure> {
        let mut requests = match &self.file {
            Some(path) => file::read(path).await?,
            None => vec![CreateVmRequest { config: self.config.create()?.into(), ..Default::default() }],
        };
        if requests.len() > 1 && self.name.is_some() {
            return Err(Failure::usage(
                "the file has several documents, and one name is for one VM",
                "leave the name out: each document has its own",
            ));
        }
        for request in &mut requests {
            if self.file.is_some() {
                self.config.apply(request.config.get_or_insert_default())?;
            }
            if let Some(name) = &self.name {
                request.name.clone_from(name);
            }
            if let Some(backend) = &self.backend {
                request.backend.clone_from(backend);
            }
            request.start |= self.start;
        }
        if let (Some(count), Some(request)) = (self.count, requests.first()) {
            let numbered = |i| CreateVmRequest { name: format!("{}-{i}", request.name), ..request.clone() };
            requests = (1..=count).map(numbered).collect();
        }
        for request in requests.iter().filter(|r| !r.name.is_empty()) {
            let _fits: VmName = request.name.parse()?;
        }
        Ok(requests)
    }
}
