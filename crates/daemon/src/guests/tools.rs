//! Tools: what a VM's spec wants installed in its guest.
//!
//! A package goes by the agent's typed action, which leaves alone what is there. What no distribution has as a package
//! goes by a program of npm's, and what its owner knows better by a script; both need the VM's permission to run programs.

use std::time::Duration;

use async_trait::async_trait;
use roost_api::from_proto::guest::Command;
use roost_backend::BackendError;
use roost_engine::Address;
use roost_guest_hub::proto::Response;
use roost_guest_hub::{CallError, Flavour};
use roost_model::execution::Outcome;
use roost_model::operation::Progress;
use roost_model::spec::{Tool, tools};
use roost_model::{Execution, ExecutionStatus, Vm, VmId};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{Failure, Guests, follow, joined};

/// How long a guest may take from its start until its agent answers.
const UNTIL_CONNECTED: Duration = Duration::from_secs(300);
/// How long an agent that cannot install is given to be replaced by one that can.
const UNTIL_BETTER: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How long one tool may take.
const ONE_TOOL: Duration = Duration::from_secs(900);
/// What an error shows of a tool's output: its end.
const SHOWN_OUTPUT: usize = 2000;

/// Installs what npm has, unless it is there; `$1` is its command, `$2` its package, `$3` the version or nothing.
const NPM: &str = r#"have=$("$1" --version 2>/dev/null) && { [ -z "$3" ] || [ "${have%% *}" = "$3" ]; } && exit 0
exec npm install --global --no-fund --no-audit "$2${3:+@$3}""#;

/// One thing to do for a tool.
enum Part<'a> {
    Package { name: &'a str, version: Option<&'a str> },
    Npm { command: &'a str, package: &'a str, version: Option<&'a str> },
    Script(&'a str),
}

#[async_trait]
impl roost_engine::Guests for Guests {
    async fn install(&self, vm: &Vm, told: &watch::Sender<Progress>) -> Result<(), BackendError> {
        // An operation that is taken up at the start may come here before everything is wired.
        let engine = self.engine.wait().await;
        // Of the record only what is there now says that the machine runs.
        let vm = engine.vm(vm.project, Address::Id(vm.id)).await.map_err(|e| broken(&e.into()))?;
        follow::refresh(self, &vm).await.map_err(|e| broken(&e.into()))?;
        self.await_installer(vm.id).await?;
        let wanted = expanded(&vm.spec.tools);
        for (i, (name, parts)) in wanted.iter().enumerate() {
            let percent = u8::try_from(50 + 45 * i / wanted.len()).unwrap_or(95);
            told.send_replace(Progress {
                percent,
                message: format!("installing {name} ({} of {})", i + 1, wanted.len()),
            });
            for part in parts {
                let ended = self.carry_out_part(&vm, part).await.map_err(|e| of_tool(name, &e))?;
                if ended.outcome.status != ExecutionStatus::Succeeded {
                    return Err(failed(name, &ended));
                }
            }
        }
        Ok(())
    }
}

impl Guests {
    /// Waits for an agent that can install things.
    async fn await_installer(&self, vm: VmId) -> Result<(), BackendError> {
        let status = self.hub.wait_connected(vm, UNTIL_CONNECTED).await.map_err(|error| {
            BackendError::permanent("NO_AGENT", format!("its tools cannot be installed: {error}"))
                .hint("use an image with roost-agent in it, or leave out the tools; the VM is up")
        })?;
        let able = |flavour: Option<Flavour>| matches!(flavour, Some(Flavour::Roost | Flavour::Seed));
        let (until, mut flavour) = (Instant::now() + UNTIL_BETTER, status.flavour);
        while !able(flavour) && Instant::now() < until {
            sleep(LOOK_AGAIN).await;
            flavour = self.hub.status(vm).and_then(|status| status.flavour);
        }
        if able(flavour) {
            return Ok(());
        }
        let who = flavour.map_or_else(|| "no agent".to_owned(), |flavour| flavour.to_string());
        Err(BackendError::permanent("NO_AGENT", format!("its tools cannot be installed by {who}"))
            .hint("use an image with roost-agent in it, or leave out the tools; the VM is up"))
    }

    async fn carry_out_part(&self, vm: &Vm, part: &Part<'_>) -> Result<Execution, Failure> {
        let argv = match part {
            Part::Package { name, version } => {
                let mut action = json!({ "action": "PackageInstall", "package": name });
                if let Some(version) = version {
                    action["version"] = (*version).into();
                }
                let (execution, _response): (_, Response) = self.action(vm, action, ONE_TOOL).await?;
                return Ok(execution);
            }
            Part::Npm { command, package, version } => {
                vec!["-c", NPM, "npm", command, package, version.unwrap_or_default()]
            }
            Part::Script(script) => vec!["-ec", script],
        };
        let command = Command {
            command: "/bin/sh".to_owned(),
            args: argv.into_iter().map(str::to_owned).collect(),
            timeout: Some(ONE_TOOL),
            ..Command::default()
        };
        let (_begun, work) = self.run(vm, None, command, Vec::new()).await?;
        joined(work).await
    }
}

/// Each tool by its name, with what is to be done for it.
fn expanded(wanted: &[Tool]) -> Vec<(String, Vec<Part<'_>>)> {
    let mut all = Vec::new();
    for tool in wanted {
        let version = tool.version.as_ref().map(|version| version.as_str());
        match (tool.name.as_str(), &tool.script) {
            (_, Some(script)) => all.push((tool.name.to_string(), vec![Part::Script(script)])),
            (tools::DEFAULT, None) => {
                let others = |name: &str| !wanted.iter().any(|tool| tool.name.as_str() == name);
                let set = tools::DEFAULT_SET.into_iter().filter(|name| others(name));
                all.extend(set.map(|name| (name.to_owned(), parts(name, None))));
            }
            (name, None) => all.push((tool.name.to_string(), parts(name, version))),
        }
    }
    all
}

fn parts<'a>(name: &'a str, version: Option<&'a str>) -> Vec<Part<'a>> {
    match name {
        // npm is a package of its own nearly everywhere.
        "nodejs" => vec![Part::Package { name, version }, Part::Package { name: "npm", version: None }],
        "bun" => vec![Part::Npm { command: "bun", package: "bun", version }],
        "claude-code" => vec![Part::Npm { command: "claude", package: "@anthropic-ai/claude-code", version }],
        _ => vec![Part::Package { name, version }],
    }
}

fn failed(tool: &str, execution: &Execution) -> BackendError {
    let Outcome { status, exit_code, signal, stdout, stderr, error } = &execution.outcome;
    let how = match (exit_code, signal, error) {
        (_, _, Some(error)) => error.clone(),
        (_, Some(signal), None) => format!("ended by signal {signal}"),
        (Some(code), None, None) => format!("exit code {code}"),
        (None, None, None) => status.to_string(),
    };
    let output = if stderr.text.trim().is_empty() { &stdout.text } else { &stderr.text };
    let output = output.trim_end();
    let from = (0..=output.len().saturating_sub(SHOWN_OUTPUT)).rev().find(|at| output.is_char_boundary(*at));
    let shown: String = output[from.unwrap_or(0)..].chars().filter(|c| *c == '\n' || !c.is_control()).collect();
    let message = if shown.is_empty() {
        format!("the tool {tool} could not be installed: {how}")
    } else {
        format!("the tool {tool} could not be installed: {how}: {shown}")
    };
    let error = match status {
        ExecutionStatus::Unknown => BackendError::transient("TOOL_FAILED", message),
        _ => BackendError::permanent("TOOL_FAILED", message),
    };
    error.hint(format!("the VM is up; roost execution get {} has all that is kept of its output", execution.id))
}

fn of_tool(tool: &str, error: &Failure) -> BackendError {
    let message = format!("the tool {tool} could not be installed: {error}");
    match error {
        Failure::Call(CallError::Guest(body)) => {
            BackendError::permanent("TOOL_FAILED", format!("the tool {tool} could not be installed: {body}"))
        }
        Failure::Call(
            CallError::OutcomeUnknown { .. } | CallError::NotConnected { .. } | CallError::QueueFull { .. },
        )
        | Failure::Engine(_) => BackendError::transient("TOOL_FAILED", message),
        _ => BackendError::permanent("TOOL_FAILED", message),
    }
}

fn broken(error: &Failure) -> BackendError {
    BackendError::transient("TOOL_FAILED", format!("its tools could not be installed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str, version: Option<&str>) -> Tool {
        let version = version.map(|version| version.parse().expect("a version"));
        Tool { name: name.parse().expect("a name"), version, script: None }
    }

    #[test]
    fn the_default_set_gives_way_to_what_is_named() {
        let wanted = [tool("default", None), tool("nodejs", Some("18.0")), tool("jq", None)];
        let names: Vec<String> = expanded(&wanted).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["git", "bun", "claude-code", "nodejs", "jq"]);
    }

    #[test]
    fn what_npm_has_is_installed_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let program = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
        };
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        let run = |args: [&str; 3]| {
            let ran = std::process::Command::new("/bin/sh")
                .args(["-c", NPM, "npm"])
                .args(args)
                .env("PATH", &path)
                .output()
                .expect("a shell");
            (ran.status.success(), String::from_utf8_lossy(&ran.stdout).trim().to_owned())
        };
        program("npm", r#"echo "$@""#);
        assert_eq!(run(["bun", "bun", "1.1"]), (true, "install --global --no-fund --no-audit bun@1.1".to_owned()));
        program("bun", "echo 1.1");
        assert_eq!(run(["bun", "bun", ""]), (true, String::new()));
        assert_eq!(run(["bun", "bun", "1.1"]), (true, String::new()));
        assert_eq!(run(["bun", "bun", "1.2"]), (true, "install --global --no-fund --no-audit bun@1.2".to_owned()));
        program("npm", "exit 3");
        assert_eq!(run(["bun", "bun", "1.2"]), (false, String::new()));
    }
}
