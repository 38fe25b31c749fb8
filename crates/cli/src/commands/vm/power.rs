//! `roost vm start|stop|pause|resume|reboot`.

use clap::Args;
use clap_complete::ArgValueCompleter;
use roost_client::v1::{BootVmRequest, PauseVmRequest, RebootVmRequest, ResumeVmRequest, ShutdownVmRequest};

use super::change::{Common, Patience, Verb, change};
use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::Failure;
use crate::values::whole_seconds;

/// Starts VMs.
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Names or IDs
    #[arg(required = true, value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vms: Vec<String>,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    common: Common,
}

/// Stops VMs.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// Names or IDs
    #[arg(required = true, value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vms: Vec<String>,
    /// End them at once, as by pulling the plug
    #[arg(long, short, conflicts_with = "timeout")]
    force: bool,
    /// How long the guest may take to power off before it is ended by force [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds)]
    timeout: Option<u32>,
    #[command(flatten)]
    common: Common,
}

/// Pauses VMs.
#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// Names or IDs
    #[arg(required = true, value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vms: Vec<String>,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    common: Common,
}

/// Resumes VMs.
#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// Names or IDs
    #[arg(required = true, value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vms: Vec<String>,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    common: Common,
}

/// Reboots VMs.
#[derive(Debug, Args)]
pub(crate) struct Reboot {
    /// Names or IDs
    #[arg(required = true, value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vms: Vec<String>,
    /// Reset them at once, as by the reset button
    #[arg(long, short, conflicts_with = "timeout")]
    force: bool,
    /// How long the guest may take to shut down before it is reset [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds)]
    timeout: Option<u32>,
    #[command(flatten)]
    common: Common,
}

impl Start {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let verb = Verb { doing: "starting", done: "started" };
        change(context, verb, &self.vms, &self.common, self.patience.timeout, async |vm_id| {
            let idempotency_key = self.common.key();
            let request = BootVmRequest { vm_id, idempotency_key, r#async: true, ..Default::default() };
            context.client.boot_vm(request).await
        })
        .await
    }
}

impl Stop {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let verb = Verb { doing: "stopping", done: "stopped" };
        change(context, verb, &self.vms, &self.common, None, async |vm_id| {
            let request = ShutdownVmRequest {
                vm_id,
                force: self.force,
                timeout_seconds: self.timeout.unwrap_or_default(),
                idempotency_key: self.common.key(),
                r#async: true,
                ..Default::default()
            };
            context.client.shutdown_vm(request).await
        })
        .await
    }
}

impl Pause {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let verb = Verb { doing: "pausing", done: "paused" };
        change(context, verb, &self.vms, &self.common, self.patience.timeout, async |vm_id| {
            let idempotency_key = self.common.key();
            let request = PauseVmRequest { vm_id, idempotency_key, r#async: true, ..Default::default() };
            context.client.pause_vm(request).await
        })
        .await
    }
}

impl Resume {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let verb = Verb { doing: "resuming", done: "resumed" };
        change(context, verb, &self.vms, &self.common, self.patience.timeout, async |vm_id| {
            let idempotency_key = self.common.key();
            let request = ResumeVmRequest { vm_id, idempotency_key, r#async: true, ..Default::default() };
            context.client.resume_vm(request).await
        })
        .await
    }
}

impl Reboot {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let verb = Verb { doing: "rebooting", done: "rebooted" };
        change(context, verb, &self.vms, &self.common, None, async |vm_id| {
            let request = RebootVmRequest {
                vm_id,
                force: self.force,
                timeout_seconds: self.timeout.unwrap_or_default(),
                idempotency_key: self.common.key(),
                r#async: true,
                ..Default::default()
            };
            context.client.reboot_vm(request).await
        })
        .await
    }
}
