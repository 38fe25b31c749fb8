//! One living machine: what is known of it, and the way to its actor.
//!
//! ```text
//!             +--- STOP/RESUME ---+
//!             v                   v
//!          Running <---------> Paused        held: powered off, and about to be started
//!             |  \                |          again by `reboot`
//!             |   +--> Held ------+
//!             v          v        v
//!          Ended(cause): stays what it is; the process lingers or is gone
//! ```
//!
//! The actor ([`actor`]) owns the control connection and turns what QEMU says, and the end of its
//! process, into the [`View`] and into events. What is asked of a machine ([`control`]) runs in the
//! caller's task: it sends commands through the actor and waits on the view, so that a dropped
//! caller leaves nothing half-done but what it had sent.

mod actor;
mod control;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use roost_backend::{AgentEndpoint, BackendError, Definition, EventSender};
use roost_host::process::Process;
use roost_model::{ExitCause, LaunchId, Machine as Observed};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use crate::config::{AGENT_SOCKET, QEMU_GUEST_AGENT_SOCKET};
use crate::exits::Exited;
use crate::qmp::{Command, Connection, QmpError};

use actor::Link;
pub(crate) use control::kill;

/// What is known of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) run: Run,
    /// Its process has ended.
    pub(crate) gone: bool,
    /// Its actor talks to QEMU.
    pub(crate) connected: bool,
    /// Resets so far, whoever asked for them.
    pub(crate) resets: u64,
    /// Nothing is known yet but that its process lives: `run` is a guess.
    pub(crate) unasked: bool,
}

/// Whether the guest's CPUs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    /// They do.
    Running,
    /// They do not, and can go on.
    Paused,
    /// The guest powered off, and a reboot is about to reset it.
    Held,
    /// For good.
    Ended(ExitCause),
}

/// What the actor is asked to do.
#[derive(Debug)]
enum Request {
    /// Send a command and hand its answer over.
    Execute { command: Command, answer: oneshot::Sender<Result<Value, QmpError>> },
    /// From now on the end of the process is our doing.
    EndedByUs,
}

/// A machine's two processes, as found or started.
#[derive(Debug, Clone)]
pub(crate) struct Processes {
    pub(crate) vmm: Process,
    /// The keeper of the serial line.
    pub(crate) console: Option<Process>,
}

/// What a machine is, apart from its state.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) definition: Arc<Definition>,
    pub(crate) launch: LaunchId,
    /// How its guest's instructions run, and why.
    pub(crate) accelerator: String,
    /// The versioned machine type.
    pub(crate) machine: String,
    /// Where its sockets are.
    pub(crate) run_dir: PathBuf,
    /// What QEMU says on its standard error.
    pub(crate) log: PathBuf,
}

impl Identity {
    /// The channels into the guest. A machine without one, or one of an older daemon, has no such sockets.
    pub(crate) fn agent(&self) -> AgentEndpoint {
        let there = |name: &str| Some(self.run_dir.join(name)).filter(|path| path.exists());
        AgentEndpoint { socket: there(AGENT_SOCKET), qemu_guest_agent: there(QEMU_GUEST_AGENT_SOCKET) }
    }
}

/// The handle of a living machine. Dropping the last one lets go of it: the guest runs on.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) identity: Identity,
    pub(crate) processes: Processes,
    requests: mpsc::Sender<Request>,
    /// Whether a power-off is to be held.
    hold: watch::Sender<bool>,
    view: watch::Receiver<View>,
    actor: AbortHandle,
}

/// How an actor begins.
struct Start {
    link: Link,
    run: Run,
    /// What QEMU said of itself since.
    said: Option<String>,
}

impl Machine {
    /// Starts the actor of a machine that was just launched. Its guest may have ended already: that
    /// is an event like any other.
    pub(crate) fn launched(
        identity: Identity,
        processes: Processes,
        (connection, status): (Connection, String),
        exited: Exited,
        events: EventSender,
    ) -> Arc<Self> {
        let start = Start { link: Link::Up(connection), run: Run::Running, said: Some(status) };
        Self::start(identity, processes, start, exited, events)
    }

    /// Starts the actor of a machine that was found again. What it is found to be is not an event.
    /// Without a connection nothing is known but that its process lives.
    pub(crate) fn found(
        identity: Identity,
        processes: Processes,
        greeting: Option<(Connection, String)>,
        exited: Exited,
        events: EventSender,
    ) -> Arc<Self> {
        let start = match greeting {
            Some((connection, status)) => {
                Start { link: Link::Up(connection), run: Run::of_status(&status), said: None }
            }
            None => Start { link: Link::down(), run: Run::Running, said: None },
        };
        Self::start(identity, processes, start, exited, events)
    }

    fn start(identity: Identity, processes: Processes, start: Start, exited: Exited, events: EventSender) -> Arc<Self> {
        let (requests, queue) = mpsc::channel(16);
        let connected = matches!(start.link, Link::Up(_));
        let (sender, view) =
            watch::channel(View { run: start.run, gone: false, connected, resets: 0, unasked: !connected });
        let (hold, held) = watch::channel(false);
        let mut actor = actor::Actor::new(&identity, start.link, sender, events, held);
        if let Some(status) = start.said {
            actor.now(&status);
        }
        let actor = tokio::spawn(actor.run(queue, exited)).abort_handle();
        Arc::new(Self { identity, processes, requests, hold, view, actor })
    }

    pub(crate) fn view(&self) -> View {
        *self.view.borrow()
    }

    /// What the engine calls it.
    pub(crate) fn observed(&self) -> Observed {
        self.view().run.observed()
    }

    /// What the engine calls it, by what QEMU just said of itself.
    pub(crate) fn observed_as(&self, status: Option<&str>) -> Observed {
        match (self.view().run, status) {
            // An end is final and has its cause; a reboot knows what it does.
            (known @ (Run::Ended(_) | Run::Held), _) | (known, None) => known.observed(),
            (_, Some(status)) => Run::of_status(status).observed(),
        }
    }

    /// Waits until its actor knows of the end of its process.
    pub(crate) async fn wait_gone(&self, limit: Duration) -> bool {
        self.until(limit, |view| view.gone).await
    }

    /// Sends a command and waits for its answer.
    pub(crate) async fn execute(&self, command: Command, limit: Duration) -> Result<Value, QmpError> {
        let what = command.name;
        let (answer, answered) = oneshot::channel();
        let exchange = async {
            self.requests.send(Request::Execute { command, answer }).await.map_err(|_ended| QmpError::Closed)?;
            answered.await.unwrap_or(Err(QmpError::Closed))
        };
        tokio::time::timeout(limit, exchange).await.unwrap_or(Err(QmpError::Timeout { what, limit }))
    }

    /// Waits until the view is so, or the limit. `false`: it is not.
    async fn until(&self, limit: Duration, is_so: impl FnMut(&View) -> bool) -> bool {
        let mut view = self.view.clone();
        // An error means that the actor ended; what it left is the last word.
        let waited = tokio::time::timeout(limit, view.wait_for(is_so)).await;
        matches!(waited, Ok(Ok(_)))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.actor.abort();
    }
}

impl Run {
    fn observed(self) -> Observed {
        match self {
            // Held for a moment, in the middle of a reboot.
            Run::Running | Run::Held => Observed::Running,
            Run::Paused => Observed::Paused,
            Run::Ended(cause) => Observed::Ended { cause, lingering: true },
        }
    }

    /// QEMU's run states (`qapi/run-state.json`).
    fn of_status(status: &str) -> Self {
        match status {
            // Asleep by the guest's own wish: nothing of ours wakes it, and nothing is wrong.
            "running" | "suspended" => Run::Running,
            "shutdown" => Run::Ended(ExitCause::PowerOff),
            "guest-panicked" => Run::Ended(ExitCause::Panic),
            // KVM gave up on it.
            "internal-error" => Run::Ended(ExitCause::Crashed),
            _ => Run::Paused,
        }
    }
}

/// Opens the control connection and asks for the run state.
pub(crate) async fn greet(
    stream: std::os::unix::net::UnixStream,
    limit: Duration,
) -> Result<(Connection, String), QmpError> {
    let mut connection = Connection::new(stream)?;
    let until = tokio::time::Instant::now() + limit;
    connection.handshake(limit).await?;
    let left = until.saturating_duration_since(tokio::time::Instant::now());
    let status = connection.call(&Command::new("query-status"), left).await?;
    let status = status["status"].as_str().unwrap_or_default().to_owned();
    Ok((connection, status))
}

/// The same, from the socket's path.
pub(crate) async fn connect(socket: &Path, limit: Duration) -> Result<(Connection, String), QmpError> {
    let stream = roost_host::sockets::connect_unix(socket).map_err(|e| QmpError::Io(crate::chain(&e)))?;
    greet(stream, limit).await
}

/// The machine is not in a state for this.
pub(crate) fn wrong_state(action: &str, machine: Observed) -> BackendError {
    BackendError::permanent("WRONG_STATE", format!("cannot {action} a machine that is {machine}"))
}
