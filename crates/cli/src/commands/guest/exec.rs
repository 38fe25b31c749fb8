//! `roost exec`: a program in a guest, as if it ran here.
//!
//! What it writes reaches our stdout and stderr as it is, and its exit code becomes ours.

use std::io::{self, IsTerminal, Write};

use clap::Args;
use clap_complete::ArgValueCompleter;
use roost_client::v1::exec_request::Message as Asked;
use roost_client::v1::exec_response::Message as Told;
use roost_client::v1::{Command, ExecStart, Execution, ExecutionStatus, Terminal};
use roost_client::{ExecInput, ExecOutput};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::{Failure, eprint};
use crate::escape;
use crate::output;
use crate::terminal::RawTerminal;
use crate::values::{key_value, whole_seconds};

/// Bytes of input sent at a time.
const PIECE: usize = 32 << 10;

/// Runs a program in a guest.
#[derive(Debug, Args)]
#[command(after_help = "\
The exit code is the program's; 128 and its number if a signal ended it, 127 if there is no such program.
What may be a secret goes by --secret: it is wiped in the guest and never shown.")]
pub(crate) struct Exec {
    /// Give it our standard input
    #[arg(long, short)]
    interactive: bool,
    /// On a terminal of its own
    #[arg(long, short)]
    tty: bool,
    /// As this user of the guest: a name or a number
    #[arg(long, short, value_name = "USER", default_value = "", hide_default_value = true)]
    user: String,
    /// In this directory of the guest
    #[arg(long, short, value_name = "DIR", default_value = "", hide_default_value = true)]
    workdir: String,
    /// A variable (repeatable)
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// A variable with the value that it has here, wiped after use (repeatable)
    #[arg(long, value_name = "NAME")]
    secret: Vec<String>,
    /// End it when it takes longer
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds)]
    timeout: Option<u32>,
    /// The command is a line for the guest's /bin/sh
    #[arg(long)]
    shell: bool,
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
    /// The program and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Exec {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        if self.tty && !io::stdin().is_terminal() {
            return Err(Failure::usage("--tty: our standard input is no terminal", "leave out -t"));
        }
        let (tty, interactive) = (self.tty, self.interactive);
        let start = self.start()?;
        let (input, mut output) = context.client.exec(start).await?.into_split();
        // A refusal comes before the terminal is touched.
        let execution = match output.next().await? {
            Some(Told::Started(execution)) => *execution,
            _ => return Err(Failure::other("the daemon did not say that the program was started", "")),
        };
        let cannot = |e| Failure::other(format!("the terminal cannot be put in raw mode: {e}"), "");
        let raw = if tty && interactive { Some(RawTerminal::enter().map_err(cannot)?) } else { None };
        let ended = pump(input, &mut output, interactive, tty).await;
        drop(raw);
        let ended = ended?.unwrap_or(execution);
        code_of(&ended)
    }

    fn start(self) -> Result<ExecStart, Failure> {
        let Self { interactive, tty, user, workdir, env, secret, timeout, shell, vm, mut command } = self;
        let mut secrets = Vec::with_capacity(secret.len());
        for name in secret {
            let value = std::env::var(&name).map_err(|_| {
                Failure::usage(format!("--secret {name}: there is no such variable here"), "export it first")
            })?;
            secrets.push((name, value));
        }
        let program = if shell { std::mem::take(&mut command).join(" ") } else { command.remove(0) };
        let command = Command {
            command: program,
            args: command,
            shell,
            env: env.into_iter().collect(),
            secrets: secrets.into_iter().collect(),
            working_dir: workdir,
            user,
            timeout_seconds: timeout.unwrap_or_default(),
            ..Default::default()
        };
        let terminal = tty.then(|| Terminal { term: std::env::var("TERM").unwrap_or_default(), ..size() });
        Ok(ExecStart {
            vm_id: vm,
            command: command.into(),
            stdin: interactive,
            terminal: terminal.into(),
            ..Default::default()
        })
    }
}

/// Both directions, until the program is over.
async fn pump(
    input: ExecInput,
    output: &mut ExecOutput,
    interactive: bool,
    tty: bool,
) -> Result<Option<Execution>, Failure> {
    let mut sending = std::pin::pin!(send(input, interactive, tty));
    let mut sent = None;
    loop {
        tokio::select! {
            // Kept once it is over: dropping it would end the call.
            input = &mut sending, if sent.is_none() => sent = Some(input),
            told = output.next() => match told? {
                Some(Told::Stdout(bytes)) => output::write(&bytes)?,
                Some(Told::Stderr(bytes)) => {
                    // If it is gone there is nobody to tell.
                    let _gone = io::stderr().write_all(&bytes);
                }
                Some(Told::Finished(execution)) => return Ok(Some(*execution)),
                Some(Told::Started(_)) => {}
                None => return Ok(None),
            },
        }
    }
}

/// Sends input and what happens to our terminal. Why a call is over is told by the output.
async fn send(mut input: ExecInput, interactive: bool, tty: bool) -> ExecInput {
    let mut stdin = tokio::io::stdin();
    let mut piece = vec![0; PIECE];
    let mut open = interactive;
    // A terminal that cannot tell its size keeps the one it has.
    let mut resized = if tty { signal(SignalKind::window_change()).ok() } else { None };
    while open || resized.is_some() {
        let changed = async {
            match &mut resized {
                Some(resized) => resized.recv().await,
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            got = stdin.read(&mut piece), if open => match got {
                Ok(0) | Err(_) => {
                    open = false;
                    Asked::StdinEnd(true)
                }
                Ok(got) => Asked::Stdin(piece[..got].to_vec()),
            },
            _ = changed => Asked::Resize(Box::new(size())),
        };
        if input.send(message).await.is_err() {
            return input;
        }
    }
    input
}

fn size() -> Terminal {
    let (rows, cols) = rustix::termios::tcgetwinsize(io::stdin()).map_or((24, 80), |size| (size.ws_row, size.ws_col));
    Terminal { rows: u32::from(rows.max(1)), cols: u32::from(cols.max(1)), ..Default::default() }
}

/// The program's exit code as ours.
fn code_of(execution: &Execution) -> Result<(), Failure> {
    match (execution.exit_code, execution.signal) {
        (Some(0), None) => Ok(()),
        (Some(code), None) => {
            if !execution.error.is_empty() {
                eprint(&format!("error: {}\n", escape::line(&execution.error)));
            }
            Err(Failure::Told(u8::try_from(code).unwrap_or(255)))
        }
        (_, Some(signal)) => Err(Failure::Told(u8::try_from(128 + signal).unwrap_or(255))),
        (None, None) if execution.status == ExecutionStatus::EXECUTION_STATUS_SUCCEEDED => Ok(()),
        (None, None) => {
            let why = if execution.error.is_empty() { super::status_word(execution) } else { execution.error.clone() };
            Err(Failure::other(why, format!("roost execution get {} has all that is kept of it", execution.id)))
        }
    }
}
