//! QEMU's guest agent, for guests that have no other: what stock images bring along.
//!
//! It answers one request at a time, in order and without IDs, so requests take turns on the connection and each waits
//! for its answer before the next is sent. Where one does not come, or does not fit, the connection is made anew and
//! synchronised. Commands that run are asked after, less and less often, so that others get their turn in between.

mod codec;
mod exec;
mod files;
mod system;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use roost_guest_proto::{LegacyRequest, Request, Response};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::backoff::Backoff;
use crate::entry::{Answer, Control, Entry, Op};
use crate::error::CallError;
use crate::status::{Flavour, Status};
use crate::stream::Closed;
use codec::{Connection, Failure};

const CONNECT: Duration = Duration::from_secs(10);
const RETRY_MIN: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(60);

fn unsupported<T>(capability: &'static str) -> Result<T, CallError> {
    Err(CallError::Unsupported { capability, flavour: Flavour::QemuGuestAgent })
}

/// Asks it on behalf of the VM until the inbox closes, and then finishes what was begun.
pub(crate) async fn serve(entry: Arc<Entry>, path: PathBuf, mut inbox: mpsc::Receiver<Op>) {
    let mut backoff = Backoff::new(&entry.config, RETRY_MIN, RETRY_MAX);
    loop {
        let why = match timeout(CONNECT, Connection::open(&path)).await {
            Ok(Ok(connection)) => {
                backoff.succeeded();
                match carry(&entry, Client::new(connection), &mut inbox).await {
                    Some(why) => why,
                    None => return,
                }
            }
            Ok(Err(failure)) => failure.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        let why = format!("QEMU's guest agent: {why}");
        let _ = entry.control.send(Control::QemuGa(Box::new(Status::away(entry.vm, why))));
        let until = Instant::now() + backoff.failed(rand::random()).wait;
        loop {
            tokio::select! {
                () = sleep_until(until) => break,
                op = inbox.recv() => match op {
                    Some(op) => drop(op.reply.send(Err(entry.not_connected()))),
                    None => return,
                },
            }
        }
    }
}

/// Why the connection is over; `None`: the inbox is closed and nothing is left to do.
async fn carry(entry: &Arc<Entry>, client: Client, inbox: &mut mpsc::Receiver<Op>) -> Option<String> {
    let status = match client.status(entry).await {
        Ok(status) => status,
        Err(error) => return Some(error.to_string()),
    };
    let _ = entry.control.send(Control::QemuGa(Box::new(status)));
    // Whoever has the connection is in here, so nothing outside may wait for it.
    let mut running: FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send + '_>>> = FuturesUnordered::new();
    let mut open = true;
    let mut thaw_at: Option<Instant> = None;
    loop {
        if !open && running.is_empty() && thaw_at.is_none() {
            return None;
        }
        let thaw = async {
            match thaw_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            op = inbox.recv(), if open => match op {
                None => open = false,
                Some(op) => match &op.request {
                    // A guest that stays frozen is a dead one: nobody may forget to thaw it.
                    Request::Freeze(freeze) => {
                        thaw_at = Some(Instant::now() + Duration::from_millis(freeze.timeout_ms));
                        running.push(Box::pin(one(&client, op)));
                    }
                    Request::Thaw(_) => {
                        thaw_at = None;
                        running.push(Box::pin(one(&client, op)));
                    }
                    _ => running.push(Box::pin(one(&client, op))),
                },
            },
            Some(()) = running.next() => {}
            () = thaw => {
                thaw_at = None;
                let thaw = client.ask("guest-fsfreeze-thaw", Value::Null);
                running.push(Box::pin(async { drop(thaw.await) }));
            }
        }
        if let Some(why) = client.broken.get().cloned() {
            // Each finds out by itself that nothing answers any more.
            while running.next().await.is_some() {}
            return Some(why);
        }
    }
}

async fn one(client: &Client, op: Op) {
    let Op { id, request, what, stream, mut reply } = op;
    let answer = match &request {
        Request::Exec(exec) => client.exec(exec, &mut reply).await,
        Request::UnsafeCommand(command) => client.exec(&command.into(), &mut reply).await,
        Request::FilePush(file) => match &stream {
            Some(stream) => client.push(file, stream).await,
            None => unsupported("file.push"),
        },
        Request::FilePull(file) => match &stream {
            Some(stream) => client.pull(file, stream).await,
            None => unsupported("file.pull"),
        },
        Request::SafeCommand(command) => client.safe(command).await,
        Request::Ping(_) => client.ask("guest-ping", Value::Null).await.map(|_| done()),
        Request::Freeze(freeze) if freeze.paths.is_empty() => client.count("guest-fsfreeze-freeze", Value::Null).await,
        Request::Freeze(freeze) => {
            client.count("guest-fsfreeze-freeze-list", json!({ "mountpoints": freeze.paths })).await
        }
        Request::Thaw(_) => client.count("guest-fsfreeze-thaw", Value::Null).await,
        Request::Legacy(LegacyRequest::Shutdown) => client.shutdown().await,
        Request::Metrics(_) | Request::Subscribe(_) => unsupported("metrics"),
        Request::FileStat(_) => unsupported("file.stat"),
        Request::Identity(_) => unsupported("identity"),
        Request::Signal(_) => unsupported("signal"),
        Request::Resize(_) => unsupported("exec.pty"),
        Request::Cancel(_) => unsupported("cancel"),
        Request::Hello(_)
        | Request::Noise(_)
        | Request::KeepAliveResponse(_)
        | Request::Legacy(_)
        | Request::Batch(_) => unsupported("request"),
    };
    if let Some(stream) = stream {
        stream.close(Closed::Over);
    }
    let answer = answer.map(|response| Response { id, ..response }).map_err(|error| match error {
        CallError::OutcomeUnknown { why, .. } => CallError::OutcomeUnknown { what, why },
        CallError::Timeout { after, .. } => CallError::Timeout { what, after },
        error => error,
    });
    // Whoever asked may have left.
    let _ = reply.send(answer);
}

fn done() -> Response {
    Response::success(String::new())
}

/// The connection, which requests take turns on.
#[derive(Debug)]
struct Client {
    connection: tokio::sync::Mutex<Connection>,
    /// Why it is of no use any more.
    broken: OnceLock<String>,
}

impl Client {
    fn new(connection: Connection) -> Self {
        Self { connection: tokio::sync::Mutex::new(connection), broken: OnceLock::new() }
    }

    /// One request and its answer. Must not be dropped in between: the next would take the answer for its own.
    async fn ask(&self, command: &'static str, arguments: Value) -> Result<Value, CallError> {
        let mut connection = self.connection.lock().await;
        connection.ask(command, arguments).await.map_err(|failure| match failure {
            Failure::Refused(error) => CallError::Guest(error),
            Failure::TooLarge { size, permitted } => {
                CallError::TooLarge { what: "the guest's answer", size, permitted }
            }
            Failure::Broken(why) => {
                let why = self.broken.get_or_init(|| why).clone();
                CallError::OutcomeUnknown { what: command, why }
            }
        })
    }

    async fn count(&self, command: &'static str, arguments: Value) -> Answer {
        let count = self.ask(command, arguments).await?;
        Ok(Response { data: Some(json!({ "filesystems": count.as_u64() })), ..done() })
    }
}
