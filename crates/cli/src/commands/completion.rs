//! `roost completion`, and the candidates that only the daemon knows.
//!
//! The shell's script runs `roost` again with `COMPLETE` set; a daemon that does not answer at once
//! has no candidates, and nothing is printed over the user's line.

use std::ffi::OsStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use clap_complete::CompletionCandidate;
use clap_complete::env::Shells;
use roost_client::Client;
use roost_client::v1::{ListOperationsRequest, ListVmsRequest, Operation, OperationStatus, Vm};

use crate::error::Failure;
use crate::escape;
use crate::output;
use crate::paths::Surroundings;
use crate::values::{state_word, status_word};

/// Nobody waits longer for the Tab key.
const PATIENCE: Duration = Duration::from_millis(700);
/// More are not looked through anyway.
const MOST: i32 = 200;

/// Prints what a shell needs to complete commands.
#[derive(Debug, Args)]
#[command(after_help = "\
bash:  source <(roost completion bash)    in ~/.bashrc
zsh:   source <(roost completion zsh)     in ~/.zshrc, after compinit
fish:  roost completion fish | source     in ~/.config/fish/config.fish")]
pub(crate) struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completion {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), Failure> {
        let name = match self.shell {
            Shell::Bash => "bash",
            Shell::Zsh => "zsh",
            Shell::Fish => "fish",
        };
        let shells = Shells::builtins();
        let shell = shells.completer(name).ok_or_else(|| Failure::other(format!("no completion for {name}"), ""))?;
        let mut script = Vec::new();
        shell.write_registration("COMPLETE", "roost", "roost", "roost", &mut script).map_err(Failure::Output)?;
        output::write(&script)
    }
}

/// The names of VMs.
pub(crate) fn vm_names(begun: &OsStr) -> Vec<CompletionCandidate> {
    let Some(prefix) = begun.to_str() else { return Vec::new() };
    asked(async |client| {
        let request = ListVmsRequest { page_size: MOST, name_prefix: prefix.to_owned(), ..Default::default() };
        let page = client.list_vms(request).await.ok()?;
        let candidate = |vm: &Vm| {
            CompletionCandidate::new(escape::line(&vm.name).into_owned()).help(Some(state_word(vm.state).into()))
        };
        Some(page.vms.iter().map(candidate).collect())
    })
}

/// The IDs of operations that have not ended.
pub(crate) fn operation_ids(begun: &OsStr) -> Vec<CompletionCandidate> {
    let Some(prefix) = begun.to_str() else { return Vec::new() };
    asked(async |client| {
        let open = [OperationStatus::OPERATION_STATUS_PENDING, OperationStatus::OPERATION_STATUS_RUNNING];
        let statuses = open.into_iter().map(Into::into).collect();
        let request = ListOperationsRequest { page_size: MOST, statuses, ..Default::default() };
        let page = client.list_operations(request).await.ok()?;
        let candidate = |o: &Operation| {
            let help = format!("{} {}", escape::line(&o.kind), status_word(o.status));
            CompletionCandidate::new(escape::line(&o.id).into_owned()).help(Some(help.into()))
        };
        Some(page.operations.iter().filter(|o| o.id.starts_with(prefix)).map(candidate).collect())
    })
}

/// The daemon is the one that the environment and its file mean: flags on the line are not known here.
fn asked(ask: impl AsyncFn(Client) -> Option<Vec<CompletionCandidate>>) -> Vec<CompletionCandidate> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let socket = std::env::var_os("ROOST_SOCKET").filter(|s| !s.is_empty()).map(Into::into);
    let Ok(paths) = Surroundings::of_process().paths(socket) else { return Vec::new() };
    runtime.block_on(async {
        let client = Client::connect_unix(&paths.socket);
        tokio::time::timeout(PATIENCE, ask(client)).await.ok().flatten().unwrap_or_default()
    })
}
