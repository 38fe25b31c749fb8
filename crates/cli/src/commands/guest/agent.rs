//! `roost agent`: the agent in a guest itself.

use buffa_types::google::protobuf::Struct;
use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use roost_client::v1::{
    AgentKind, FreezeRequest, GetGuestInfoRequest, GetGuestInfoResponse, RunActionRequest, ThawRequest,
};
use serde_json::Value;

use super::told;
use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::Failure;
use crate::escape;
use crate::output;
use crate::values::{age, key_value, now, time, whole_seconds};

/// The agent in a guest.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Whether it is connected, which one it is, and what it says of its system
    #[command(visible_alias = "info")]
    Version(One),
    /// Let it check its devices, permissions and drivers
    Diagnose(One),
    /// Carry out any of its typed actions
    Run(Run),
    /// Stop writing to the guest's file systems, for a while at most
    Freeze(Freeze),
    /// Write again
    Thaw(One),
}

/// One VM.
#[derive(Debug, Args)]
pub(crate) struct One {
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
}

/// A typed action.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// How long it may take [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds)]
    timeout: Option<u32>,
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
    /// Its name, e.g. SystemInfo, CheckDiskSpace, HostnameSet
    #[arg(value_name = "ACTION")]
    action: String,
    /// Its fields; a value that is JSON is taken as that
    #[arg(value_name = "FIELD=VALUE", value_parser = key_value)]
    fields: Vec<(String, String)>,
}

/// A freeze.
#[derive(Debug, Args)]
pub(crate) struct Freeze {
    /// For how long at most; then the guest writes again by itself
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds, default_value = "60s")]
    timeout: u32,
    /// A mount point [default: every file system that is on a disk] (repeatable)
    #[arg(long = "path", value_name = "DIR")]
    paths: Vec<String>,
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
}

/// Runs a command.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Version(One { vm }) => {
            let info = context.client.get_guest_info(GetGuestInfoRequest { vm_id: vm, ..Default::default() }).await?;
            if context.for_people() { output::print(&describe(&info)) } else { context.document(&info) }
        }
        Command::Diagnose(One { vm }) => action(context, vm, "Diagnose".to_owned(), Vec::new(), 0).await,
        Command::Run(Run { timeout, vm, action: name, fields }) => {
            action(context, vm, name, fields, timeout.unwrap_or_default()).await
        }
        Command::Freeze(Freeze { timeout, paths, vm }) => {
            let request = FreezeRequest { vm_id: vm, timeout_seconds: timeout, paths, ..Default::default() };
            let answer = context.client.freeze(request).await?;
            if !context.for_people() {
                return context.document(&answer);
            }
            context.say(&format!(
                "frozen for {} at most; roost agent thaw ends it",
                age(std::time::Duration::from_secs(timeout.into()))
            ))
        }
        Command::Thaw(One { vm }) => {
            let answer = context.client.thaw(ThawRequest { vm_id: vm, ..Default::default() }).await?;
            if context.for_people() { context.say("thawed") } else { context.document(&answer) }
        }
    }
}

async fn action(
    context: &Context,
    vm: String,
    name: String,
    fields: Vec<(String, String)>,
    timeout_seconds: u32,
) -> Result<(), Failure> {
    let field = |(name, text): (String, String)| (name, serde_json::from_str(&text).unwrap_or(Value::String(text)));
    let params: Value = Value::Object(fields.into_iter().map(field).collect());
    let params: Struct = serde_json::from_value(params).map_err(|e| Failure::usage(format!("FIELD=VALUE: {e}"), ""))?;
    let request =
        RunActionRequest { vm_id: vm, action: name, params: params.into(), timeout_seconds, ..Default::default() };
    let answer = context.client.run_action(request).await?;
    if !context.for_people() {
        return context.document(&answer);
    }
    // What it found is the answer; a program's output beside it says the same.
    if let Some(data) = answer.data.as_option().filter(|data| !data.is_null()) {
        let found = serde_json::to_value(data).unwrap_or_default();
        output::document(&found, output::Format::Yaml)?;
        let mut execution = answer.execution.into_option().unwrap_or_default();
        execution.stdout.clear();
        return told(context, Some(execution), "");
    }
    told(context, answer.execution.into_option(), "")
}

fn describe(info: &GetGuestInfoResponse) -> String {
    let none = Default::default();
    let agent = info.agent.as_option().unwrap_or(&none);
    let kind = match agent.kind.as_known() {
        Some(AgentKind::AGENT_KIND_ROOST) => "roost-agent",
        Some(AgentKind::AGENT_KIND_LINES) => "an agent that speaks lines",
        Some(AgentKind::AGENT_KIND_QEMU_GUEST_AGENT) => "the QEMU guest agent",
        Some(AgentKind::AGENT_KIND_LEGACY_VSOCK) => "an older vsock agent",
        Some(AgentKind::AGENT_KIND_UNSPECIFIED) | None => "",
    };
    let since = agent.since.as_option().map(|at| age(now().since(time(at)))).unwrap_or_default();
    let mut out = if agent.connected {
        format!("agent      {kind} {}, connected for {since}\n", escape::line(&agent.version))
    } else {
        format!("agent      not connected: {}\n", escape::line(&agent.reason))
    };
    let mut say = |name: &str, value: &str| {
        if !value.is_empty() {
            out.push_str(&format!("{name:<10} {}\n", escape::line(value)));
        }
    };
    say("platform", &agent.platform);
    say("can", &agent.capabilities.join(" "));
    say("channel", if agent.sealed { "encrypted" } else { "" });
    let system = info.system.as_option().and_then(|system| serde_json::to_value(system).ok()).unwrap_or_default();
    let text = |pointer: &str| system.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    say("hostname", text("/hostname"));
    say("system", text("/os/pretty_name"));
    say("kernel", text("/os/kernel_version"));
    out
}
