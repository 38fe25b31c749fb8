//! `roost vm wait`: until a VM is in a state, its guest has written something, its agent is connected, or all of it.
//!
//! It follows the event stream and the console's stream; nothing polls. It gives up early when what
//! is waited for cannot come any more: the VM is deleted, or has failed.

use std::time::Duration;

use clap::Args;
use clap_complete::ArgValueCompleter;
use roost_client::v1::{GetConsoleLogRequest, Vm, VmState, WatchVmsRequest};

use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::Failure;
use crate::progress::Spinner;
use crate::values::{age, duration, state, state_word, word_of};

/// Waits for a VM's state, or for words on its console.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
    /// Until it is in this state [default: running, unless --console or --agent is given]
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Option<VmState>,
    /// Until the guest has written this to its serial console since it was last started
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    console: Option<String>,
    /// Until the agent in the guest is connected
    #[arg(long)]
    agent: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "120s")]
    timeout: Duration,
}

impl Wait {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let usual = (self.console.is_none() && !self.agent).then_some(VmState::VM_STATE_RUNNING);
        let state = self.state.or(usual);
        let wanted: Vec<String> = state
            .map(|s| format!("to be {}", word_of(s)))
            .into_iter()
            .chain(self.console.as_ref().map(|text| format!("to write {text:?}")))
            .chain(self.agent.then(|| "to have its agent connected".to_owned()))
            .collect();
        let label = format!("waiting for {} {}", self.vm, wanted.join(" and "));
        let spinner = Spinner::new(context, &label);
        let both = async {
            if let Some(state) = state {
                self.until_state(context, state).await?;
            }
            if let Some(text) = &self.console {
                tokio::select! {
                    found = self.until_written(context, text.as_bytes()) => found,
                    ended = self.until_silent(context) => Err(ended),
                }?;
            }
            if self.agent {
                tokio::select! {
                    found = self.until_agent(context) => found,
                    ended = self.until_silent(context) => Err(ended),
                }?;
            }
            Ok::<(), Failure>(())
        };
        let outcome = tokio::time::timeout(self.timeout, both).await;
        drop(spinner);
        outcome.map_err(|_| Failure::Timeout {
            message: format!("{label}: not within {}", age(self.timeout)),
            hint: format!("roost vm get {0} and roost vm logs {0} show how far it came", self.vm),
        })??;
        if context.for_people() {
            let is = match (&self.console, state) {
                _ if self.agent => "has its agent connected".to_owned(),
                (Some(text), _) => format!("wrote {text:?}"),
                (None, state) => format!("is {}", word_of(state.unwrap_or_default())),
            };
            return context.say(&format!("{} {is}", self.vm));
        }
        context.document(&context.client.get_vm_info(&self.vm).await?)
    }

    async fn until_state(&self, context: &Context, wanted: VmState) -> Result<(), Failure> {
        self.watch(context, |vm| {
            if vm.state.as_known() == Some(wanted) {
                return Some(Ok(()));
            }
            let failed = vm.state.as_known() == Some(VmState::VM_STATE_FAILED);
            failed.then(|| Err(self.cannot(vm)))
        })
        .await
    }

    async fn until_agent(&self, context: &Context) -> Result<(), Failure> {
        let connected = |vm: &Vm| vm.conditions.iter().any(|c| c.r#type == "AgentConnected" && c.status);
        self.watch(context, |vm| connected(vm).then_some(Ok(()))).await
    }

    async fn until_written(&self, context: &Context, text: &[u8]) -> Result<(), Failure> {
        let request = GetConsoleLogRequest {
            vm_id: self.vm.clone(),
            tail_bytes: u64::MAX,
            follow: true,
            since_start: true,
            ..Default::default()
        };
        let mut log = context.client.console_log(request).await?;
        let mut seen: Vec<u8> = Vec::new();
        while let Some(bytes) = log.next().await? {
            seen.extend_from_slice(&bytes);
            if seen.windows(text.len()).any(|window| window == text) {
                return Ok(());
            }
            // The beginning of what is waited for may be in this piece, its end in the next.
            let keep = seen.len().min(text.len() - 1);
            seen.drain(..seen.len() - keep);
        }
        Err(gone(&self.vm))
    }

    /// Until the VM cannot write any more: it has failed, has ended for good, or is deleted. One that
    /// has not run yet, or that is being started, may still write.
    async fn until_silent(&self, context: &Context) -> Failure {
        let mut ran = match context.client.get_vm_info(&self.vm).await {
            Ok(info) => info.vm.started_at.as_option().is_some() && info.vm.operation_ids.is_empty(),
            Err(error) => return error.into(),
        };
        let ended = self.watch(context, |vm| match vm.state.as_known() {
            Some(VmState::VM_STATE_RUNNING) => {
                ran = true;
                None
            }
            Some(VmState::VM_STATE_FAILED) => Some(Err::<(), _>(self.cannot(vm))),
            Some(VmState::VM_STATE_CRASHED | VmState::VM_STATE_SHUTDOWN)
                if ran && vm.restart_due.as_option().is_none() =>
            {
                Some(Err(self.cannot(vm)))
            }
            _ => None,
        });
        match ended.await {
            Err(failure) => failure,
            Ok(()) => gone(&self.vm),
        }
    }

    async fn watch<T>(
        &self,
        context: &Context,
        mut look: impl FnMut(&Vm) -> Option<Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let request = WatchVmsRequest { vm_ids: vec![self.vm.clone()], snapshot: true, ..Default::default() };
        let mut watch = context.client.watch_vms(request).await?;
        while let Some(event) = watch.next().await? {
            match event.vm.as_option() {
                Some(vm) => {
                    if let Some(seen) = look(vm) {
                        return seen;
                    }
                }
                None if event.kind == "vm.deleted" => return Err(gone(&self.vm)),
                None => {}
            }
        }
        let message = "the daemon ended the stream".to_owned();
        Err(Failure::NotRunning { message, hint: "roost daemon status".to_owned() })
    }

    fn cannot(&self, vm: &Vm) -> Failure {
        let why = vm.failure.as_option().map(|f| format!(": {}", f.message)).unwrap_or_default();
        let exit = vm.exit.as_option().map(|e| format!(" ({})", e.cause)).unwrap_or_default();
        Failure::other(
            format!("{} is {}{exit}{why}", self.vm, state_word(vm.state)),
            format!("roost vm get {0} and roost vm logs {0} say more", self.vm),
        )
    }
}

fn gone(vm: &str) -> Failure {
    Failure::NotFound { message: format!("{vm} is deleted"), hint: String::new() }
}
