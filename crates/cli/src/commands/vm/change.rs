//! What all commands that change VMs share: ask, follow to the end, tell.
//!
//! Every request is sent with `async`, so that its operation is known before it is waited for: an
//! interruption can then say how to come back.

use std::time::Duration;

use clap::Args;
use roost_client::v1::{BootVmResponse, VmState};
use roost_client::{Changed, EnumValue};

use crate::context::Context;
use crate::error::{Failure, eprint};
use crate::output;
use crate::progress::follow;
use crate::values::duration;

/// Flags of every command that changes something.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Do not wait: print the operation's ID
    #[arg(long = "async")]
    pub(crate) asynchronous: bool,
    /// Repeat the command safely: the same key gives the same answer
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
}

/// How long to wait for what was asked.
#[derive(Debug, Args)]
pub(crate) struct Patience {
    /// How long to wait for the end of the operation, e.g. 90s; it goes on after that
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "asynchronous")]
    pub(crate) timeout: Option<Duration>,
}

/// What is being done, as the user is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verb {
    /// "starting".
    pub(crate) doing: &'static str,
    /// "started".
    pub(crate) done: &'static str,
}

/// The answer of every change has this shape.
pub(crate) type Answer = BootVmResponse;

impl Common {
    /// The key for the wire.
    pub(crate) fn key(&self) -> String {
        self.idempotency_key.clone().unwrap_or_default()
    }

    fn check(&self, vms: &[String]) -> Result<(), Failure> {
        if self.idempotency_key.is_some() && vms.len() > 1 {
            return Err(Failure::usage("one idempotency key is for one VM", "repeat the command for each VM"));
        }
        Ok(())
    }
}

/// Asks for the same change of each of these VMs, then waits for all.
pub(crate) async fn change(
    context: &Context,
    verb: Verb,
    vms: &[String],
    common: &Common,
    at_most: Option<Duration>,
    ask: impl AsyncFn(String) -> Result<Changed, Failure>,
) -> Result<(), Failure> {
    common.check(vms)?;
    let mut outcomes = Vec::with_capacity(vms.len());
    for vm in vms {
        let asked = context.ask(ask(vm.clone())).await;
        if let Ok(changed) = &asked
            && !common.asynchronous
        {
            context.waits_for(&changed.operation.id);
        }
        outcomes.push((vm.clone(), asked));
    }
    settle(context, verb, outcomes, common.asynchronous, at_most, vms.len() > 1).await
}

/// Waits for what was asked, and tells what became of it; `many` is the shape of the document.
pub(crate) async fn settle(
    context: &Context,
    verb: Verb,
    asked: Vec<(String, Result<Changed, Failure>)>,
    asynchronous: bool,
    at_most: Option<Duration>,
    many: bool,
) -> Result<(), Failure> {
    let all = asked.len();
    let end = at_most.map(|d| std::time::Instant::now() + d);
    let mut answers = Vec::with_capacity(all);
    let mut failures = Vec::new();
    for (vm, asked) in asked {
        let outcome = match asked {
            Ok(changed) => {
                let left = end.map(|e| e.saturating_duration_since(std::time::Instant::now()));
                one(context, verb, &vm, changed, asynchronous, left).await
            }
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(answer) => answers.push(answer),
            Err(failure) => {
                if many {
                    eprint(&format!("{}: {}", crate::escape::line(&vm), failure.text()));
                }
                failures.push(failure);
            }
        }
    }
    if !context.for_people() {
        match answers.first() {
            _ if many => context.document(&answers)?,
            Some(answer) => context.document(answer)?,
            None => {}
        }
    }
    match failures.len() {
        0 => Ok(()),
        1 if !many => Err(failures.remove(0)),
        failed => Err(Failure::Several { failed, all, exit: failures[0].exit() }),
    }
}

async fn one(
    context: &Context,
    verb: Verb,
    vm: &str,
    changed: Changed,
    asynchronous: bool,
    at_most: Option<Duration>,
) -> Result<Answer, Failure> {
    let Changed { vm_id, mut state, mut operation } = changed;
    if asynchronous {
        if context.for_people() {
            // Not a result line but the answer: it is printed in any case.
            output::print(&format!("{}\n", crate::escape::line(&operation.id)))?;
        }
    } else {
        operation = follow(context, &format!("{} {vm}", verb.doing), operation, at_most).await?;
        if context.for_people() {
            context.say(&format!("{vm}: {}", verb.done))?;
        } else {
            state = state_of(context, &vm_id, state).await;
        }
    }
    Ok(Answer { vm_id, state, operation: operation.into(), ..Default::default() })
}

/// The state as it is after the operation; of a VM that is gone, what the answer said.
async fn state_of(context: &Context, vm_id: &str, told: EnumValue<VmState>) -> EnumValue<VmState> {
    match context.client.get_vm_info(vm_id).await {
        Ok(info) => info.state,
        Err(_) => told,
    }
}
