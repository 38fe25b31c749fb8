//! `roost console`: the serial console as a terminal.
//!
//! ```text
//!   terminal --raw keys--> [Ctrl-] ends it] --AttachConsole--> guest
//!   terminal <-------------- what the guest writes, unchanged ------
//! ```
//!
//! Unlike everywhere else what the guest writes reaches the terminal as it is: that is what a console
//! is for. The terminal is put back when it ends, whatever way that is.

use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Args;
use clap_complete::ArgValueCompleter;
use roost_client::{ConsoleInput, ConsoleOutput};
use tokio::io::AsyncReadExt;

use crate::commands::completion::vm_names;
use crate::context::Context;
use crate::error::{Failure, eprint};
use crate::escape;
use crate::output;
use crate::terminal::RawTerminal;

/// Ctrl-].
const DETACH: u8 = 0x1d;
/// When what was piped in is all sent, the guest may be silent for so long before it has said all.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// What was typed right before the detach key has so long to reach the guest.
const LAST_KEYS: Duration = Duration::from_millis(500);

/// A VM's serial console, both ways.
#[derive(Debug, Args)]
pub(crate) struct Console {
    /// Name or ID
    #[arg(value_name = "VM", add = ArgValueCompleter::new(vm_names))]
    vm: String,
}

/// Why it ended.
#[derive(Debug, PartialEq)]
enum End {
    /// The user's wish.
    Detached,
    /// All that was piped in is sent, and the guest is silent.
    InputOver,
    /// The machine is gone, or the daemon.
    GuestGone,
}

impl Console {
    /// Runs the command.
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let (input, output) = context.client.attach_console(&self.vm).await?.into_split();
        let name = escape::line(&self.vm).into_owned();
        let raw = if io::stdin().is_terminal() {
            if !context.quiet {
                eprint(&format!("Attached to the console of {name}. Ctrl-] detaches; the VM goes on.\r\n"));
            }
            let cannot = |e| Failure::other(format!("the terminal cannot be put in raw mode: {e}"), "");
            Some(RawTerminal::enter().map_err(cannot)?)
        } else {
            None
        };
        let interactive = raw.is_some();
        let end = pump(input, output).await;
        drop(raw);
        let end = end?;
        if interactive && !context.quiet {
            let told = match end {
                End::Detached | End::InputOver => "Detached",
                End::GuestGone => "The console is closed",
            };
            eprint(&format!("\n{told}. roost vm get {name} shows how the VM is.\n"));
        }
        Ok(())
    }
}

async fn pump(input: ConsoleInput, mut output: ConsoleOutput) -> Result<End, Failure> {
    let end = pump_until_end(input, &mut output).await?;
    if end == End::Detached {
        // The input is dropped: when the daemon has taken all of it, it ends the line.
        let ended = async {
            while let Ok(Some(bytes)) = output.next().await {
                output::write(&bytes)?;
            }
            Ok(())
        };
        return tokio::time::timeout(LAST_KEYS, ended).await.unwrap_or(Ok(())).map(|()| end);
    }
    Ok(end)
}

async fn pump_until_end(input: ConsoleInput, output: &mut ConsoleOutput) -> Result<End, Failure> {
    let mut sending = std::pin::pin!(send_keys(input));
    let mut sent = None;
    loop {
        tokio::select! {
            // Kept once it is over: dropping the input would end the line.
            over = &mut sending, if sent.is_none() => match over {
                (End::Detached, _) => return Ok(End::Detached),
                // Why a line is over is told by the output.
                (End::InputOver | End::GuestGone, input) => sent = Some(input),
            },
            bytes = output.next() => match bytes? {
                Some(bytes) => output::write(&bytes)?,
                None => return Ok(End::GuestGone),
            },
            () = tokio::time::sleep(LAST_WORDS), if sent.is_some() => return Ok(End::InputOver),
        }
    }
}

async fn send_keys(mut input: ConsoleInput) -> (End, ConsoleInput) {
    let mut stdin = tokio::io::stdin();
    let mut keys = vec![0; 4096];
    loop {
        let got = match stdin.read(&mut keys).await {
            Ok(0) | Err(_) => return (End::InputOver, input),
            Ok(got) => &keys[..got],
        };
        let (before, detach) = match got.iter().position(|b| *b == DETACH) {
            Some(at) => (&got[..at], true),
            None => (got, false),
        };
        if !before.is_empty() && input.send(before).await.is_err() {
            return (End::GuestGone, input);
        }
        if detach {
            return (End::Detached, input);
        }
    }
}
