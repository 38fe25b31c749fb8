//! Following an operation to its end.
//!
//! Where somebody watches, its progress is shown beside a spinner, as the daemon's events tell it;
//! otherwise nothing is printed. Nothing here polls.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use roost_client::v1::{Operation, OperationStatus, WatchVmsRequest};
use roost_client::{Client, has_ended};

use crate::context::Context;
use crate::error::Failure;
use crate::escape;

/// Without a limit of the user's own an operation's deadline is the limit.
const NO_LIMIT: Duration = Duration::from_secs(u32::MAX as u64);

/// What is being waited for, on screen; gone when dropped.
pub(crate) struct Spinner(Option<ProgressBar>);

impl Spinner {
    /// Shows this text where somebody watches.
    pub(crate) fn new(context: &Context, text: &str) -> Self {
        let spinner = context.shows_progress().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
            bar.set_style(style.expect("the template is well-formed"));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let spinner = Self(spinner);
        spinner.say(text);
        spinner
    }

    /// Shows another text.
    pub(crate) fn say(&self, text: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(escape::line(text).into_owned());
        }
    }

    fn watched(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// Waits for an operation's end. `label` says to the user what is being done.
///
/// # Errors
///
/// [`Failure::Operation`] when it came to nothing, [`Failure::Timeout`] when `at_most` was not enough.
pub(crate) async fn follow(
    context: &Context,
    label: &str,
    operation: Operation,
    at_most: Option<Duration>,
) -> Result<Operation, Failure> {
    let id = operation.id.clone();
    let operation = if has_ended(&operation) {
        operation
    } else {
        let spinner = Spinner::new(context, label);
        let waited = tokio::select! {
            waited = context.client.wait_operation(&id, at_most.unwrap_or(NO_LIMIT)) => waited,
            never = show(&context.client, &spinner, label, &operation) => match never {},
        };
        drop(spinner);
        waited.map_err(|error| lost_sight(&id, error))?
    };
    if !has_ended(&operation) {
        return Err(Failure::Timeout {
            message: format!("operation {id} ({}) has not ended yet", operation.kind),
            hint: format!(
                "it goes on; come back with roost operation wait {id}, or end it with roost operation cancel {id}"
            ),
        });
    }
    context.has_ended(&id);
    match operation.status.as_known() {
        Some(OperationStatus::OPERATION_STATUS_SUCCEEDED) => Ok(operation),
        _ => Err(Failure::Operation(Box::new(operation))),
    }
}

/// A daemon that goes away takes up its operations again when it is back.
fn lost_sight(id: &str, error: roost_client::Error) -> Failure {
    match Failure::from(error) {
        gone if gone.exit() == 3 => Failure::NotRunning {
            message: format!("the daemon went away while operation {id} was waited for: {gone}"),
            hint: format!("roost daemon status; the next daemon goes on with it: roost operation wait {id}"),
        },
        other => other,
    }
}

/// Keeps the spinner's text true until it is dropped. That something cannot be shown is no failure.
async fn show(client: &Client, spinner: &Spinner, label: &str, operation: &Operation) -> std::convert::Infallible {
    if spinner.watched() {
        spinner.say(&text(label, operation));
        let request = WatchVmsRequest { vm_ids: vec![operation.vm_id.clone()], snapshot: false, ..Default::default() };
        if let Ok(mut watch) = client.watch_vms(request).await {
            while let Ok(Some(event)) = watch.next().await {
                if let Some(now) = event.operation.as_option().filter(|o| o.id == operation.id) {
                    spinner.say(&text(label, now));
                }
            }
        }
    }
    std::future::pending().await
}

fn text(label: &str, operation: &Operation) -> String {
    let mut text = label.to_owned();
    if let Some(progress) = operation.progress.as_option() {
        if progress.percent > 0 {
            text.push_str(&format!(" {}%", progress.percent));
        }
        if !progress.message.is_empty() {
            text.push_str(&format!(": {}", progress.message));
        }
    }
    if operation.attempt > 1 {
        text.push_str(&format!(" (attempt {})", operation.attempt));
    }
    text
}
