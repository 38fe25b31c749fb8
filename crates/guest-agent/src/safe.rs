//! Safe commands: typed, checked, and answered with typed data.
//!
//! [`run`] blocks, so it belongs on a worker thread. Each action has a time limit, and the output of what it runs is
//! bounded. Nothing here goes through a shell, and no text of the host's reaches a program but as one argument of a
//! closed alphabet. How services, packages and the rest are reached is `platform`'s.

mod actions;
mod health;
mod lists;
mod outcome;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use roost_guest_proto::{CommandType, ErrorBody, ErrorCode, Response, SafeAction, SafeCommand};

pub(crate) use outcome::{Failure, Outcome, check_success, not_supported};

use crate::platform::System;
use crate::run::{Cancel, Finished, Program};

/// How long a command may take that says nothing of it.
pub const DEFAULT_TIME: Duration = Duration::from_secs(30);

/// The same for one that changes packages, which may have much to fetch.
pub const DEFAULT_PACKAGE_TIME: Duration = Duration::from_secs(600);

/// The longest that a command may ask for.
pub const MAX_TIME: Duration = Duration::from_secs(24 * 3600);

/// What a safe command works with.
#[derive(Debug, Clone)]
pub struct Context {
    pub system: System,
    /// Ends the command.
    pub cancel: Cancel,
    /// Set while file systems are frozen (`Freezer::frozen`): then nothing that writes is begun.
    pub frozen: Arc<AtomicBool>,
    /// When its time is up. [`run`] sets it.
    deadline: Option<Instant>,
}

impl Context {
    pub fn new(system: System, cancel: Cancel, frozen: Arc<AtomicBool>) -> Self {
        Self { system, cancel, frozen, deadline: None }
    }

    /// The same for what has no more time than that.
    pub(crate) fn within(self, time: Duration) -> Self {
        Self { deadline: Instant::now().checked_add(time), ..self }
    }

    /// What is left of the command's time.
    pub(crate) fn left(&self) -> Duration {
        self.deadline.map_or(DEFAULT_TIME, |deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether there is reason to stop.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.cancel.is_cancelled() {
            return Err(ErrorBody::new(ErrorCode::Cancelled, "cancelled").into());
        }
        if self.left().is_zero() {
            return Err(ErrorBody::new(ErrorCode::CommandTimeout, "the command's time is up").into());
        }
        Ok(())
    }

    /// Runs a program in what is left of the time. That it fails is no error yet.
    pub(crate) fn finish(&self, program: Program) -> Result<Finished, Failure> {
        self.check()?;
        let finished = program.time(self.left()).run(self.system.path(), &self.cancel)?;
        outcome::check_ending(finished)
    }

    /// Runs a program that has to succeed.
    pub(crate) fn succeed(&self, program: Program) -> Result<Finished, Failure> {
        outcome::check_success(self.finish(program)?)
    }
}

/// Carries out a safe command.
pub fn run(command: &SafeCommand, context: &Context) -> Response {
    let started = Instant::now();
    let result =
        SafeAction::parse(&command.command_type, command.params.as_ref()).map_err(Failure::from).and_then(|action| {
            let time = time_of(&action, command.timeout);
            let context = Context { deadline: started.checked_add(time), ..context.clone() };
            if !action.only_reads() && context.frozen.load(Ordering::Acquire) {
                let message = format!("{}: file systems are frozen; thaw them first", action.name());
                return Err(ErrorBody::new(ErrorCode::CommandFailed, message).into());
            }
            context.check()?;
            actions::carry_out(&action, &context)
        });
    let mut response = match result {
        Ok(outcome) => outcome.into_response(&command.id),
        Err(failure) => failure.into_response(&command.id),
    };
    response.command_type = CommandType::Safe;
    response.execution_time_ms = started.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
    response
}

fn time_of(action: &SafeAction, asked: Option<u64>) -> Duration {
    let default = match action {
        SafeAction::PackageInstall { .. } | SafeAction::PackageRemove { .. } | SafeAction::PackageUpdate { .. } => {
            DEFAULT_PACKAGE_TIME
        }
        _ => DEFAULT_TIME,
    };
    asked.map_or(default, Duration::from_secs).min(MAX_TIME)
}

#[cfg(test)]
mod tests;
