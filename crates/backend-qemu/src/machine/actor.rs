//! The one task of a living machine.
//!
//! It owns the control connection. It answers requests, follows QEMU's events and the end of its
//! process, and reports each machine's end exactly once. When the connection breaks while the
//! process lives, it connects again, ever more slowly.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use roost_backend::{Event, EventSender, Happened};
use roost_host::exits::ExitStatus;
use roost_model::{ExitCause, LaunchId, VmId};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::{Identity, Request, Run, View, connect};
use crate::config::QMP_SOCKET;
use crate::ending;
use crate::exits::Exited;
use crate::qmp::{self, Command, Connection, Message, QmpError};

/// Answers that may be outstanding; a caller that gave up counts until QEMU answers.
const PENDING_LIMIT: usize = 64;
/// Resets of a guest are reported at most so often. Firmware may add one of its own to each.
const RESET_PERIOD: Duration = Duration::from_secs(1);
/// How long the last words of a process that ended are read.
const LAST_WORDS: Duration = Duration::from_secs(1);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// How long an attempt to connect again may take.
const GREETING: Duration = Duration::from_secs(3);

type Connecting = Pin<Box<dyn Future<Output = Result<(Connection, String), QmpError>> + Send>>;

/// The control connection.
pub(crate) enum Link {
    /// It is there.
    Up(Connection),
    /// It is tried again at that time, then after twice the delay.
    Down { at: Instant, delay: Duration },
    /// It is being tried.
    Connecting { attempt: Connecting, delay: Duration },
}

/// What an answer is for.
#[derive(Debug)]
enum Pending {
    Caller {
        command: &'static str,
        answer: oneshot::Sender<Result<Value, QmpError>>,
    },
    /// Asked by the actor: why did the CPUs stop or go on?
    Status,
}

pub(super) struct Actor {
    vm: VmId,
    launch: LaunchId,
    link: Link,
    socket: PathBuf,
    log: PathBuf,
    view: watch::Sender<View>,
    events: EventSender,
    pending: HashMap<u64, Pending>,
    /// A power-off is to be held.
    hold: watch::Receiver<bool>,
    ended_by_us: bool,
    /// QEMU said that a signal from outside ends it.
    ended_by_signal: bool,
    last_reset: Option<Instant>,
    last_disk_failure: Option<Instant>,
}

/// What the loop woke up for.
enum Woken {
    Message(Result<Message, QmpError>),
    Connected(Result<(Connection, String), QmpError>),
    RetryDue,
}

impl Link {
    /// Not there, to be tried soon.
    pub(crate) fn down() -> Self {
        Link::Down { at: Instant::now() + FIRST_RETRY, delay: FIRST_RETRY }
    }

    /// Cancel-safe: what it waits for stays in `self`.
    async fn wake(&mut self) -> Woken {
        match self {
            Link::Up(connection) => Woken::Message(connection.next().await),
            Link::Down { at, .. } => {
                tokio::time::sleep_until(*at).await;
                Woken::RetryDue
            }
            Link::Connecting { attempt, .. } => Woken::Connected(attempt.await),
        }
    }
}

impl Actor {
    pub(super) fn new(
        identity: &Identity,
        link: Link,
        view: watch::Sender<View>,
        events: EventSender,
        hold: watch::Receiver<bool>,
    ) -> Self {
        Self {
            vm: identity.definition.id,
            launch: identity.launch,
            link,
            socket: identity.run_dir.join(QMP_SOCKET),
            log: identity.log.clone(),
            view,
            events,
            pending: HashMap::new(),
            hold,
            ended_by_us: ending::is_marked(&identity.run_dir),
            ended_by_signal: false,
            last_reset: None,
            last_disk_failure: None,
        }
    }

    /// Ends with the process, or when nobody holds the machine any more.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>, mut exited: Exited) {
        loop {
            tokio::select! {
                woken = self.link.wake() => self.woken(woken),
                request = requests.recv() => match request {
                    Some(request) => self.take(request),
                    None => return,
                },
                // An error: the machine's handle has gone.
                changed = self.hold.changed() => match changed {
                    Ok(()) => self.hold_changed(),
                    Err(_) => return,
                },
                exit = &mut exited => {
                    // An error: whoever watches the process has gone, and so are we.
                    if let Ok(status) = exit {
                        self.process_ended(status).await;
                    }
                    return;
                }
            }
        }
    }

    fn woken(&mut self, woken: Woken) {
        match woken {
            Woken::Message(Ok(message)) => self.message(message),
            Woken::Message(Err(error)) => self.lost(&error),
            Woken::RetryDue => {
                if let Link::Down { delay, .. } = self.link {
                    let socket = self.socket.clone();
                    let attempt = Box::pin(async move { connect(&socket, GREETING).await });
                    self.link = Link::Connecting { attempt, delay };
                }
            }
            Woken::Connected(Ok((connection, status))) => {
                tracing::info!(vm_id = %self.vm, status, "QEMU answers again");
                self.link = Link::Up(connection);
                self.view.send_modify(|view| view.connected = true);
                self.now(&status);
            }
            Woken::Connected(Err(error)) => {
                if let Link::Connecting { delay, .. } = self.link {
                    let delay = (delay * 2).min(LAST_RETRY);
                    tracing::debug!(vm_id = %self.vm, %error, ?delay, "QEMU does not answer");
                    self.link = Link::Down { at: Instant::now() + delay, delay };
                }
            }
        }
    }

    /// The connection is of no use any more.
    fn lost(&mut self, error: &QmpError) {
        // The usual end of a process begins like this: no warning.
        if *error != QmpError::Closed {
            tracing::warn!(vm_id = %self.vm, %error, "the control connection is given up");
        }
        self.link = Link::down();
        self.view.send_modify(|view| view.connected = false);
        for (_, pending) in self.pending.drain() {
            if let Pending::Caller { answer, .. } = pending {
                // The caller may have given up.
                let _ = answer.send(Err(error.clone()));
            }
        }
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Execute { command, answer } => match self.send(&command) {
                Ok(id) => {
                    self.pending.insert(id, Pending::Caller { command: command.name, answer });
                }
                Err(error) => {
                    // The caller may have given up.
                    let _ = answer.send(Err(error));
                }
            },
            Request::EndedByUs => self.ended_by_us = true,
        }
    }

    /// Whoever wanted to reboot it gave up: a machine that is off is off.
    fn hold_changed(&mut self) {
        let hold = *self.hold.borrow_and_update();
        if !hold && self.view.borrow().run == Run::Held {
            self.end(ExitCause::PowerOff);
        }
    }

    fn send(&mut self, command: &Command) -> Result<u64, QmpError> {
        let Link::Up(connection) = &mut self.link else {
            return Err(QmpError::Closed);
        };
        if self.pending.len() >= PENDING_LIMIT {
            return Err(QmpError::Overloaded { waiting: self.pending.len() });
        }
        connection.send(command)
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Event(event) => self.event(&event),
            Message::Return { id, value } => self.answer(id, Ok(value)),
            Message::Error { id, text, .. } => self.answer(id, Err(text)),
            Message::Greeting { .. } => {}
        }
    }

    fn answer(&mut self, id: Option<u64>, result: Result<Value, String>) {
        match id.and_then(|id| self.pending.remove(&id)) {
            Some(Pending::Caller { command, answer }) => {
                let result = result.map_err(|text| QmpError::Refused { command, text });
                // The caller may have given up.
                let _ = answer.send(result);
            }
            Some(Pending::Status) => {
                if let Ok(status) = result {
                    self.now(status["status"].as_str().unwrap_or_default());
                }
            }
            None => {}
        }
    }

    fn event(&mut self, event: &qmp::Event) {
        match event.name.as_str() {
            "SHUTDOWN" => match event.text("reason") {
                "guest-shutdown" if *self.hold.borrow() => self.set(Run::Held),
                "guest-shutdown" | "guest-reset" => self.end(ExitCause::PowerOff),
                "guest-panic" => self.end(ExitCause::Panic),
                "host-error" => self.end(ExitCause::Crashed),
                // The process ends of it; its cause is told when it has.
                "host-signal" => self.ended_by_signal = true,
                _ => {}
            },
            "GUEST_PANICKED" => self.end(ExitCause::Panic),
            "RESET" => self.reset(event.truth("guest")),
            "STOP" if self.expects("stop") => self.set(Run::Paused),
            "RESUME" if self.expects("cont") => self.set(Run::Running),
            "STOP" | "RESUME" => self.ask_status(),
            "BLOCK_IO_ERROR" => self.disk_failed(event),
            _ => {}
        }
    }

    /// Whether this command is under way: QEMU sends its event before its answer.
    fn expects(&self, name: &str) -> bool {
        self.pending.values().any(|p| matches!(p, Pending::Caller { command, .. } if *command == name))
    }

    /// The CPUs stopped or go on, and nobody here asked for it.
    fn ask_status(&mut self) {
        let run = self.view.borrow().run;
        if matches!(run, Run::Held | Run::Ended(_)) {
            // The stop that goes with an end, be it held.
            return;
        }
        // Without a connection the answer comes with the next one.
        if let Ok(id) = self.send(&Command::new("query-status")) {
            self.pending.insert(id, Pending::Status);
        }
    }

    /// QEMU's own word on its state, asked because something other than us changed it.
    pub(super) fn now(&mut self, status: &str) {
        let before = self.view.borrow().run;
        match (before, Run::of_status(status)) {
            // What happens to one that is held is its reboot's business.
            (Run::Held, Run::Ended(ExitCause::PowerOff) | Run::Paused) | (Run::Ended(_), _) => {}
            (_, Run::Ended(ExitCause::PowerOff)) if *self.hold.borrow() => self.set(Run::Held),
            (_, Run::Ended(cause)) => self.end(cause),
            (before, now) if before == now && !self.view.borrow().unasked => {}
            (_, now) => {
                self.view.send_modify(|view| view.unasked = false);
                self.set(now);
                self.report(if now == Run::Paused { Happened::Paused } else { Happened::Resumed });
            }
        }
    }

    fn reset(&mut self, by_guest: bool) {
        self.view.send_modify(|view| view.resets += 1);
        let again = self.last_reset.is_some_and(|at| at.elapsed() < RESET_PERIOD);
        if by_guest && !again {
            self.report(Happened::Reset);
        }
        // One that was asked for counts too: firmware follows it with one of its own.
        if !again {
            self.last_reset = Some(Instant::now());
        }
    }

    /// A guest can bring these about as fast as it likes: one a minute is logged.
    fn disk_failed(&mut self, event: &qmp::Event) {
        if self.last_disk_failure.is_some_and(|at| at.elapsed() < Duration::from_secs(60)) {
            return;
        }
        self.last_disk_failure = Some(Instant::now());
        let (node, operation) = (event.text("node-name"), event.text("operation"));
        tracing::warn!(vm_id = %self.vm, node, operation, no_space = event.truth("nospace"), "a disk failed");
    }

    fn set(&mut self, run: Run) {
        self.view.send_if_modified(|view| {
            let changes = view.run != run && !matches!(view.run, Run::Ended(_));
            if changes {
                view.run = run;
            }
            changes
        });
    }

    /// The machine ended. Reported once: an end is final.
    fn end(&mut self, cause: ExitCause) {
        if matches!(self.view.borrow().run, Run::Ended(_)) {
            return;
        }
        tracing::info!(vm_id = %self.vm, %cause, "the machine ended");
        self.set(Run::Ended(cause));
        self.report(Happened::Ended(cause));
    }

    fn report(&self, happened: Happened) {
        // Nobody listens any more when the daemon ends.
        let _ = self.events.send(Event { vm: self.vm, launch: self.launch, happened });
    }

    async fn process_ended(&mut self, status: Option<ExitStatus>) {
        // What it said before it ended may still be in the socket.
        let last_words = async {
            while let Link::Up(connection) = &mut self.link {
                match connection.next().await {
                    Ok(message) => self.message(message),
                    Err(error) => self.lost(&error),
                }
            }
        };
        // Whoever inherited its end of the socket keeps us from reading to the end.
        let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
        let known = self.view.borrow().run;
        let cause = if known == Run::Held { ExitCause::PowerOff } else { self.cause_of(status) };
        if cause == ExitCause::Crashed && !matches!(known, Run::Ended(_)) {
            let said = crate::log::tail(&self.log, 0).join("; ");
            tracing::error!(vm_id = %self.vm, ?status, said, "QEMU crashed");
        }
        self.end(cause);
        self.lost(&QmpError::Closed);
        self.view.send_modify(|view| view.gone = true);
    }

    fn cause_of(&self, status: Option<ExitStatus>) -> ExitCause {
        // Signals from outside, as far as they can be told from a crash's own.
        const OUTSIDE: [i32; 4] = [1, 2, 9, 15];
        match status {
            _ if self.ended_by_us => ExitCause::Forced,
            _ if self.ended_by_signal => ExitCause::Killed,
            Some(ExitStatus::Signaled(signal)) if OUTSIDE.contains(&signal) => ExitCause::Killed,
            Some(ExitStatus::Signaled(_)) => ExitCause::Crashed,
            Some(ExitStatus::Exited(code)) if code != 0 => ExitCause::Crashed,
            // By its own decision without an error, or nobody knows: it was not its guest.
            Some(ExitStatus::Exited(_)) | None => ExitCause::Killed,
        }
    }
}
