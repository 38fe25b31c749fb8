//! `roost vm start|stop|pause|resume|reboot`.

use clap::Args;
use clap_complete::ArgValueCompleter;
use roost_client::v1::{BootVmRequest, PauseVmRequest, RebootVmRequest, ResumeVmRequest, ShutdownVmRequest};

use super::change::{Common, Patience, Verb, change};
use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::Failure;
use crate::values::whole_seconds;

/// VMs whose guests are not asked: `start`, `pause`, `resume`.
#[derive(Debug, Args)]
pub(crate) struct AtOnce {
    /// Names or IDs
    #[arg(required = true, value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vms: Vec<String>,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    common: Common,
}

/// VMs whose guests are asked to shut down, for a while: `stop`, `reboot`.
#[derive(Debug, Args)]
pub(crate) struct Asking {
    /// Names or IDs
    #[arg(required = true, value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vms: Vec<String>,
    /// Do not ask the guests: as by pulling the plug, or by the reset button
    #[arg(long, short, conflicts_with = "timeout")]
    force: bool,
    /// How long a guest may take to shut down before it is done by force [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds)]
    timeout: Option<u32>,
    #[command(flatten)]
    common: Common,
}

impl AtOnce {
    /// `roost vm start`.
    pub(crate) async fn start(self, context: &Context) -> Result<(), Failure> {
        let verb = Verb { doing: "starting", done: "started" };
        let ask = async |vm_id| {
            let idempotency_key = self.common.key();
            let request = BootVmRequest { vm_id, idempotency_key, r#async: true, ..Default::default() };
            Ok(context.client.boot_vm(request).await?)
        };
        change(context, verb, &self.vms, &self.common, self.patience.timeout, ask).await
    }

    /// `roost vm pause`.
    pub(crate) async fn pause(self, context: &Context) -> Result<(), Failure> {
        let verb = Verb { doing: "pausing", done: "paused" };
        let ask = async |vm_id| {
            let idempotency_key = self.common.key();
            let request = PauseVmRequest { vm_id, idempotency_key, r#async: true, ..Default::default() };
            Ok(context.client.pause_vm(request).await?)
        };
        change(context, verb, &self.vms, &self.common, self.patience.timeout, ask).await
    }

    /// `roost vm resume`.
    pub(crate) async fn resume(self, context: &Context) -> Result<(), Failure> {
        let verb = Verb { doing: "resuming", done: "resumed" };
        let ask = async |vm_id| {
            let idempotency_key = self.common.key();
            let request = ResumeVmRequest { vm_id, idempotency_key, r#async: true, ..Default::default() };
            Ok(context.client.resume_vm(request).await?)
        };
        change(context, verb, &self.vms, &self.common, self.patience.timeout, ask).await
    }
}

impl Asking {
    /// `roost vm stop`.
    pub(crate) async fn stop(self, context: &Context) -> Result<(), Failure> {
        let verb = Verb { doing: "stopping", done: "stopped" };
        let ask = async |vm_id| {
            let request = ShutdownVmRequest {
                vm_id,
                force: self.force,
                timeout_seconds: self.timeout.unwrap_or_default(),
                idempotency_key: self.common.key(),
                r#async: true,
                ..Default::default()
            };
            Ok(context.client.shutdown_vm(request).await?)
        };
        change(context, verb, &self.vms, &self.common, None, ask).await
    }

    /// `roost vm reboot`.
    pub(crate) async fn reboot(self, context: &Context) -> Result<(), Failure> {
        let verb = Verb { doing: "rebooting", done: "rebooted" };
        let ask = async |vm_id| {
            let request = RebootVmRequest {
                vm_id,
                force: self.force,
                timeout_seconds: self.timeout.unwrap_or_default(),
                idempotency_key: self.common.key(),
                r#async: true,
                ..Default::default()
            };
            Ok(context.client.reboot_vm(request).await?)
        };
        change(context, verb, &self.vms, &self.common, None, ask).await
    }
}
