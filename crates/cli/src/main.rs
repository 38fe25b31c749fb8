//! `roost`: the command line of the API.
//!
//! Owns what people type and read: arguments, spec files, tables, progress, exit codes. It decides
//! nothing about VMs: every command is calls of the daemon's API through `roost-client`.
//!
//! ```text
//!   arguments --clap--> commands/<noun> --client--> daemon
//!                             |
//!                output (table | json | yaml) or error (text, hint, exit code)
//! ```
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod context;
mod error;
mod escape;
mod output;
mod paths;
mod progress;
mod spec;
mod terminal;
mod values;

use std::process::ExitCode;
use std::task::Poll;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use clap_complete::CompleteEnv;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Cli;
use crate::context::Context;
use crate::error::Failure;

/// An answer that is on its way when we are interrupted may take so long.
const LAST_ANSWER: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    // The shell asks for candidates by running us with COMPLETE set.
    CompleteEnv::with_factory(Cli::command).bin("roost").complete();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return error::report(&Failure::other(format!("cannot start: {error}"), "")),
    };
    let outcome = runtime.block_on(until_signalled(cli));
    // A thread may still wait for a key; it ends with the process.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => error::report(&failure),
    }
}

/// Runs the command. A signal drops it where it is, which restores whatever it holds, the terminal
/// before all.
async fn until_signalled(cli: Cli) -> Result<(), Failure> {
    let cannot = |e| Failure::other(format!("signals cannot be received: {e}"), "");
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot)?;
    let context = Context::new(&cli.global)?;
    let mut command = std::pin::pin!(commands::run(cli.command, &context));
    tokio::select! {
        outcome = &mut command => outcome,
        _ = interrupt.recv() => Err(interrupted(command, &context).await),
        _ = terminate.recv() => Err(Failure::Signal(15)),
        _ = hangup.recv() => Err(Failure::Signal(1)),
    }
}

/// What was asked for goes on. If its answer is on its way it is awaited, because it says what to come
/// back to.
async fn interrupted(command: impl Future<Output = Result<(), Failure>>, context: &Context) -> Failure {
    let mut command = std::pin::pin!(command);
    let answered = std::future::poll_fn(|task| match command.as_mut().poll(task) {
        Poll::Pending if context.is_asking() => Poll::Pending,
        _ => Poll::Ready(()),
    });
    if context.is_asking() {
        let _late = tokio::time::timeout(LAST_ANSWER, answered).await;
    }
    Failure::Interrupted { going_on: context.going_on(), unanswered: context.is_asking() }
}
