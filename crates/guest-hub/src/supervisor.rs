//! The task of one VM's channel: reaches the socket, carries the session, reaches it again.
//!
//! ```text
//!   Reaching ──connected──> Carrying ──hung up, silent, refused──> Resting ──> Reaching ...
//!      │                       │                                      │
//!      └───────────────────────┴──────────── Detach ──────────────────┴──> end
//! ```
//!
//! Calls are taken in each of these: without an agent they end at once, or go to QEMU's guest agent where that one
//! answers and no other has for a while.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rand::Rng;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::attachment::Attachment;
use crate::backoff::Backoff;
use crate::connect::connect;
use crate::entry::{Control, Entry, Inbox, Op};
use crate::qemu_ga;
use crate::session::Session;
use crate::status::{HubEvent, Status};

/// Read at a time, on the stack: an idle channel has no buffer.
const READ: usize = 32 * 1024;
/// A socket that is not there yet is tried again so soon at first, and so late at most.
const ABSENT_MIN: Duration = Duration::from_millis(100);
const ABSENT_MAX: Duration = Duration::from_secs(5);
/// Somebody waits: the next attempt comes no later than this.
const POKED: Duration = Duration::from_millis(200);

pub(crate) async fn supervise(
    entry: Arc<Entry>,
    attachment: Arc<Attachment>,
    inbox: Inbox,
    events: mpsc::UnboundedSender<HubEvent>,
) {
    let config = &entry.config;
    let supervisor = Supervisor {
        absent: Backoff::new(config, ABSENT_MIN, ABSENT_MAX),
        refused: Backoff::new(config, config.backoff_min, config.backoff_max),
        fallback_at: Some(Instant::now() + config.fallback_after),
        qemu_ga: None,
        tasks: JoinSet::new(),
        entry: entry.clone(),
        attachment,
        inbox,
        events,
    };
    supervisor.run().await;
}

struct Supervisor {
    entry: Arc<Entry>,
    attachment: Arc<Attachment>,
    inbox: Inbox,
    events: mpsc::UnboundedSender<HubEvent>,
    /// Nobody listens at the socket.
    absent: Backoff,
    /// Somebody does, and hangs up.
    refused: Backoff,
    /// When to ask QEMU's guest agent, if no other has come by then.
    fallback_at: Option<Instant>,
    qemu_ga: Option<QemuGa>,
    /// Of QEMU's guest agent; aborted with this one.
    tasks: JoinSet<()>,
}

struct QemuGa {
    ops: mpsc::Sender<Op>,
    up: bool,
}

/// What the task was told while it waited for something else.
enum Wake {
    Op(Box<Op>),
    Control(Control),
    Fallback,
}

/// What is left to do of it.
enum Next {
    Go,
    Detached,
    Poked,
    /// The channel is at another place.
    Moved,
}

enum Ended {
    Detached,
    /// No fault of the peer's.
    Moved,
    Lost {
        why: String,
        was_established: bool,
    },
}

impl Supervisor {
    async fn run(mut self) {
        loop {
            let Some(stream) = self.reach().await else { break };
            match self.carry(stream).await {
                Ended::Detached => break,
                Ended::Moved => {}
                Ended::Lost { why, was_established } => {
                    if was_established {
                        self.refused.succeeded();
                    }
                    let delay = self.refused.failed(rand::rng().random());
                    if delay.resting {
                        let _ = self.events.send(HubEvent::Refused { vm: self.entry.vm, why });
                    }
                    if !self.rest(Instant::now() + delay.wait).await {
                        break;
                    }
                }
            }
        }
        self.entry.publish(Status::away(self.entry.vm, "the machine is gone"));
        self.inbox.ops.close();
        while let Some(op) = self.inbox.ops.recv().await {
            let _ = op.reply.send(Err(self.entry.not_connected()));
        }
    }

    /// A connection; `None`: detached.
    async fn reach(&mut self) -> Option<UnixStream> {
        loop {
            let attachment = self.attachment.clone();
            let mut attempt = std::pin::pin!(timeout(self.entry.config.connect_timeout, connect(&attachment.endpoint)));
            let error = loop {
                tokio::select! {
                    result = &mut attempt => match result {
                        Ok(Ok(stream)) => {
                            self.absent.succeeded();
                            return Some(stream);
                        }
                        Ok(Err(error)) => break error.to_string(),
                        Err(_) => break format!("no answer within {:?}", self.entry.config.connect_timeout),
                    },
                    wake = self.wake() => match self.serve(wake) {
                        Next::Detached => return None,
                        Next::Go | Next::Poked | Next::Moved => {}
                    },
                }
            };
            self.publish_away(&format!("its socket cannot be reached: {error}"));
            let delay = self.absent.failed(rand::rng().random());
            if delay.resting {
                let _ = self.events.send(HubEvent::Refused { vm: self.entry.vm, why: error });
            }
            if !self.rest(Instant::now() + delay.wait).await {
                return None;
            }
        }
    }

    /// Waits, or not as long if somebody waits for the agent. `false`: detached.
    async fn rest(&mut self, mut until: Instant) -> bool {
        loop {
            tokio::select! {
                () = sleep_until(until) => return true,
                wake = self.wake() => match self.serve(wake) {
                    Next::Go => {}
                    Next::Poked => until = until.min(Instant::now() + POKED),
                    Next::Moved => {
                        self.absent.succeeded();
                        self.refused.succeeded();
                        return true;
                    }
                    Next::Detached => return false,
                },
            }
        }
    }

    /// Loses nothing when it is dropped while it waits.
    async fn wake(&mut self) -> Wake {
        let fallback_at = self.fallback_at;
        let fallback = async {
            match fallback_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(op) = self.inbox.ops.recv() => Wake::Op(Box::new(op)),
            Some(control) = self.inbox.control.recv() => Wake::Control(control),
            () = fallback => Wake::Fallback,
            // The entry holds both senders, and this task holds the entry.
            else => Wake::Control(Control::Detach),
        }
    }

    /// Without a session.
    fn serve(&mut self, wake: Wake) -> Next {
        match wake {
            Wake::Op(op) => self.unconnected(*op),
            Wake::Fallback => self.ask_qemu_ga(),
            Wake::Control(Control::Detach) => return Next::Detached,
            Wake::Control(Control::Poke) => return Next::Poked,
            Wake::Control(Control::QemuGa(status)) => self.qemu_ga_news(*status),
            Wake::Control(Control::Attach(attachment)) => {
                let before = std::mem::replace(&mut self.attachment, attachment);
                self.qemu_ga_moved(&before);
                if before.endpoint != self.attachment.endpoint {
                    return Next::Moved;
                }
                return Next::Poked;
            }
            Wake::Control(
                Control::Abandon { .. } | Control::Credit { .. } | Control::Ready { .. } | Control::Watchers,
            ) => {}
        }
        Next::Go
    }

    /// A call while no agent is connected.
    fn unconnected(&mut self, op: Op) {
        let op = match &self.qemu_ga {
            Some(qemu_ga) if qemu_ga.up => match qemu_ga.ops.try_send(op) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(op) | mpsc::error::TrySendError::Closed(op)) => op,
            },
            _ => op,
        };
        let _ = op.reply.send(Err(self.entry.not_connected()));
    }

    fn ask_qemu_ga(&mut self) {
        self.fallback_at = None;
        let Some(path) = &self.attachment.qemu_guest_agent else { return };
        let (ops, inbox) = mpsc::channel(self.entry.config.queue.max(1));
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(qemu_ga::serve(self.entry.clone(), path.clone(), inbox));
        self.qemu_ga = Some(QemuGa { ops, up: false });
    }

    fn qemu_ga_news(&mut self, status: Status) {
        let Some(qemu_ga) = &mut self.qemu_ga else { return };
        let was_up = std::mem::replace(&mut qemu_ga.up, status.connected);
        let vm = self.entry.vm;
        if status.connected {
            self.entry.publish(status.clone());
            let _ = self.events.send(HubEvent::Connected { vm, status: Box::new(status) });
        } else if was_up {
            let why = status.why.clone().unwrap_or_default();
            self.entry.publish(status);
            let _ = self.events.send(HubEvent::Lost { vm, why });
        }
    }

    fn qemu_ga_moved(&mut self, before: &Attachment) {
        if before.qemu_guest_agent != self.attachment.qemu_guest_agent {
            self.qemu_ga = None;
            self.fallback_at = Some(Instant::now() + self.entry.config.fallback_after);
        }
    }

    /// There is no agent, unless QEMU's is.
    fn publish_away(&self, why: &str) {
        if !self.qemu_ga.as_ref().is_some_and(|qemu_ga| qemu_ga.up) {
            self.entry.publish(Status::away(self.entry.vm, why));
        }
    }

    async fn carry<S: AsyncRead + AsyncWrite + Unpin>(&mut self, mut stream: S) -> Ended {
        let mut session =
            Session::new(self.entry.clone(), self.attachment.clone(), self.events.clone(), Instant::now());
        self.publish_away("nobody in the guest has answered yet");
        let ended = self.carry_session(&mut stream, &mut session).await;
        let was_established = session.was_established();
        let why = match &ended {
            Ended::Detached => "the machine is gone",
            Ended::Moved => "its channel is at another place",
            Ended::Lost { why, .. } => why,
        };
        session.end(why);
        if was_established {
            self.entry.publish(Status::away(self.entry.vm, why));
            let _ = self.events.send(HubEvent::Lost { vm: self.entry.vm, why: why.to_owned() });
        }
        match ended {
            Ended::Lost { why, .. } => Ended::Lost { why, was_established },
            ended => ended,
        }
    }

    async fn carry_session<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        session: &mut Session,
    ) -> Ended {
        let lost = |why: String| Ended::Lost { why, was_established: false };
        loop {
            let now = Instant::now();
            if let Err(why) = session.tick(now) {
                return lost(why);
            }
            self.choose_agent(session, now);
            let blocked = session.blocked_until(now);
            let deadline = crate::entry::earlier(session.deadline(), blocked);
            let due = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let wake = tokio::select! {
                moved = exchange(stream, session, blocked.is_none()) => match moved {
                    Ok(Moved::Read) => {
                        if session.has_more() {
                            // Others have channels, too.
                            tokio::task::yield_now().await;
                        }
                        continue;
                    }
                    Ok(Moved::Wrote) => continue,
                    Ok(Moved::HungUp) => return lost("its socket was closed".to_owned()),
                    Err(error) => return lost(format!("its socket failed: {error}")),
                },
                wake = self.wake() => wake,
                () = due => continue,
            };
            let now = Instant::now();
            match wake {
                Wake::Op(op) if session.is_established() => session.op(*op, now),
                Wake::Op(op) if session.is_quiet() => session.park(*op),
                Wake::Op(op) => self.unconnected(*op),
                Wake::Fallback => self.ask_qemu_ga(),
                Wake::Control(control) => match control {
                    Control::Detach => return Ended::Detached,
                    Control::Poke => {}
                    Control::Attach(attachment) => {
                        let before = std::mem::replace(&mut self.attachment, attachment.clone());
                        self.qemu_ga_moved(&before);
                        if session.attach(attachment, now).is_err() {
                            return Ended::Moved;
                        }
                    }
                    Control::Abandon { id } => session.abandon(&id),
                    Control::Credit { stream, channel, bytes } => session.credit(stream, channel, bytes),
                    Control::Ready { stream } => session.ready(stream),
                    Control::Watchers => session.watchers_changed(now),
                    Control::QemuGa(status) => self.qemu_ga_news(*status),
                },
            }
        }
    }

    /// QEMU's guest agent serves while there is no other. What it has begun, it finishes.
    fn choose_agent(&mut self, session: &Session, now: Instant) {
        if session.was_established() {
            self.qemu_ga = None;
            self.fallback_at = None;
        } else if self.qemu_ga.is_none() && self.fallback_at.is_none() && self.attachment.qemu_guest_agent.is_some() {
            self.fallback_at = Some(now + self.entry.config.fallback_after);
        }
    }
}

enum Moved {
    Read,
    Wrote,
    HungUp,
}

/// Reads and hands over, or writes, whichever can be done. Loses nothing when it is dropped while it waits.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    session: &mut Session,
    may_read: bool,
) -> io::Result<Moved> {
    poll_fn(|context| {
        let outgoing = session.outgoing();
        if !outgoing.is_empty()
            && let Poll::Ready(result) = Pin::new(&mut *stream).poll_write(context, outgoing)
        {
            return Poll::Ready(match result {
                Ok(0) => Ok(Moved::HungUp),
                Ok(bytes) => {
                    session.wrote(bytes);
                    Ok(Moved::Wrote)
                }
                Err(error) => Err(error),
            });
        }
        if !may_read {
            return Poll::Pending;
        }
        if session.has_more() {
            session.receive_more(Instant::now());
            return Poll::Ready(Ok(Moved::Read));
        }
        let mut buffer = [const { MaybeUninit::uninit() }; READ];
        let mut buffer = ReadBuf::uninit(&mut buffer);
        match Pin::new(&mut *stream).poll_read(context, &mut buffer) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(Ok(Moved::HungUp)),
            Poll::Ready(Ok(())) => {
                session.receive(buffer.filled(), Instant::now());
                Poll::Ready(Ok(Moved::Read))
            }
        }
    })
    .await
}
