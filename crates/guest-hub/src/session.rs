//! One connection: bytes and calls in, bytes and answers out. No I/O and no waiting; the clock is an argument.
//!
//! ```text
//!   Greeting ──handshake of this session──> [Sealing ──noise──>] Roost
//!    │  ^ a hello at once, again after 0.5 s behind newlines, then less and less often
//!    │  └── anything that says: another agent, another epoch, out of step for 0.5 s, sealing lost
//!    ├──a line of the first agent's──> Seed
//!    └──a line of an older vsock peer──> Legacy
//! ```

mod answers;
mod calls;
mod greeting;
mod legacy;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use roost_guest_proto::Violation;
use roost_guest_proto::{Channel, Decoder, Dropped as DecoderDropped, Encoder, Event, Frame, Kind, Outbox, ResetCode};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::attachment::Attachment;
use crate::budget::Budget;
use crate::entry::{Entry, Op, Reply, earlier};
use crate::error::CallError;
use crate::status::{Dropped, Flavour, HubEvent};
use crate::stream::{Closed, Stream};
use greeting::{Greeting, Sealing};
use legacy::Legacy;

/// What is filled into the outgoing buffer at a time.
const FILL: usize = 64 * 1024;
/// Messages and frames in one turn.
const TURN: usize = 64;
/// IDs of the hub's own requests, whose answers are of no interest.
const MAX_IGNORED: usize = 64;

#[derive(Debug)]
enum Phase {
    Greeting(Box<Greeting>),
    Sealing(Box<Sealing>),
    Roost(Roost),
    Seed(Seed),
    Legacy(Legacy),
}

/// A session with Roost's agent.
#[derive(Debug)]
struct Roost {
    session: String,
    agent: Identity,
    frames: bool,
    /// Since when the decoder looks for a line to start again at, or doubts that the agent is still in this session.
    doubt: Option<Instant>,
    /// Since when a sign of life is awaited.
    ping: Option<Instant>,
}

/// Which run of which agent it is, by its own word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Identity {
    boot_id: Option<String>,
    agent_id: Option<String>,
}

#[derive(Debug)]
struct Seed {
    platform: String,
    /// Calls that wait for the next metrics.
    metrics: VecDeque<Reply>,
    /// When to ask for metrics on behalf of watchers.
    poll: Option<Instant>,
}

#[derive(Debug)]
struct Pending {
    what: &'static str,
    reply: Reply,
    stream: Option<u32>,
    /// A call for metrics is answered by metrics.
    metrics: bool,
    identity: bool,
}

#[derive(Debug)]
pub(crate) struct Session {
    entry: Arc<Entry>,
    attachment: Arc<Attachment>,
    events: mpsc::UnboundedSender<HubEvent>,
    decoder: Decoder,
    encoder: Encoder,
    outbox: Outbox,
    out: Vec<u8>,
    written: usize,
    unread: Vec<u8>,
    phase: Phase,
    /// Calls that wait for the end of a handshake that changes nothing for them.
    parked: Vec<Op>,
    pending: HashMap<String, Pending>,
    streams: HashMap<u32, Arc<Stream>>,
    pings: HashMap<u64, Option<Reply>>,
    ignored: VecDeque<String>,
    heard: Instant,
    budget: Budget,
    counted: DecoderDropped,
    /// The agent is to be told of another policy as soon as nothing is under way.
    greet_when_idle: bool,
    /// Connected before, and expected to be again at once: callers need not know.
    quiet: Option<Identity>,
    /// The agent was told of watchers.
    subscribed: bool,
}

impl Session {
    pub(crate) fn new(
        entry: Arc<Entry>,
        attachment: Arc<Attachment>,
        events: mpsc::UnboundedSender<HubEvent>,
        now: Instant,
    ) -> Self {
        let outbox = Outbox::new(entry.config.buffer_bytes);
        let mut session = Self {
            entry,
            attachment,
            events,
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            outbox,
            out: Vec::new(),
            written: 0,
            unread: Vec::new(),
            phase: Phase::Greeting(Box::new(Greeting::unsent(now))),
            parked: Vec::new(),
            pending: HashMap::new(),
            streams: HashMap::new(),
            pings: HashMap::new(),
            ignored: VecDeque::new(),
            heard: now,
            budget: Budget::new(now),
            counted: DecoderDropped::default(),
            greet_when_idle: false,
            quiet: None,
            subscribed: false,
        };
        session.greet(now);
        session
    }

    /// An agent is at the other end, and calls can be sent.
    pub(crate) fn is_established(&self) -> bool {
        matches!(self.phase, Phase::Roost(_) | Phase::Seed(_) | Phase::Legacy(_))
    }

    /// Something was said, of whatever kind.
    pub(crate) fn was_established(&self) -> bool {
        self.is_established() || self.quiet.is_some()
    }

    /// Bytes from the guest. Call only when [`Session::has_more`] says no.
    pub(crate) fn receive(&mut self, bytes: &[u8], now: Instant) {
        // Cheap to look through, but not free: a line that never ends, or is empty, gives no event.
        let framed = matches!(&self.phase, Phase::Roost(roost) if roost.frames) && !self.decoder.is_searching();
        let lines = if framed { 0 } else { memchr::memchr_iter(b'\n', bytes).count() };
        self.budget.read(bytes.len(), lines);
        let mut rest = bytes;
        self.take_turn(&mut rest, now);
        self.unread.extend_from_slice(rest);
    }

    /// Bytes were read and wait for their turn.
    pub(crate) fn has_more(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Goes on with them.
    pub(crate) fn receive_more(&mut self, now: Instant) {
        let mut unread = std::mem::take(&mut self.unread);
        let mut rest = unread.as_slice();
        self.take_turn(&mut rest, now);
        let used = unread.len() - rest.len();
        if used < unread.len() {
            unread.drain(..used);
            self.unread = unread;
        }
    }

    /// As much as one channel may do before the others have their turn.
    fn take_turn(&mut self, bytes: &mut &[u8], now: Instant) {
        for _ in 0..TURN {
            let Some(event) = self.decoder.next(bytes) else { break };
            match event {
                Event::Line(line) => {
                    self.budget.message(line.len());
                    self.line(&line, now);
                }
                Event::Message(message) => {
                    self.budget.message(message.len());
                    self.framed_message(&message, now);
                }
                Event::Frame(frame) => self.frame(frame, now),
                Event::Problem(problem) => self.problem(&problem, now),
            }
            if self.budget.is_spent() {
                break;
            }
        }
        self.count_decoder();
    }

    /// Adds what the decoder refused to the VM's counts.
    fn count_decoder(&mut self) {
        let (now, before) = (self.decoder.dropped(), self.counted);
        if now == before {
            return;
        }
        self.counted = now;
        self.entry.counters.add(Dropped {
            long: (now.lines - before.lines) + (now.messages - before.messages),
            frames: now.frames - before.frames,
            bytes: now.bytes - before.bytes,
            ..Dropped::default()
        });
    }

    fn refuse_message(&mut self, bytes: usize) {
        self.budget.junk(bytes);
        self.entry.counters.add(Dropped { messages: 1, ..Dropped::default() });
    }

    fn refuse_frame(&mut self, bytes: usize) {
        self.budget.junk(bytes);
        self.entry.counters.add(Dropped { frames: 1, ..Dropped::default() });
    }

    fn problem(&mut self, problem: &Violation, now: Instant) {
        tracing::debug!(vm = %self.entry.vm, %problem, "refused from the guest");
        self.budget.junk(256);
        let Phase::Roost(roost) = &mut self.phase else { return };
        match problem {
            Violation::OutOfStep(_) => drop(roost.doubt.get_or_insert(now)),
            // The other end cannot know; only a new exchange helps.
            Violation::Seal(_) | Violation::NotSealed | Violation::NoKeys => {
                self.begin_anew("its sealed session was lost", now)
            }
            _ => {}
        }
    }

    fn frame(&mut self, frame: Frame, now: Instant) {
        let Frame { kind, stream: number, channel, payload } = &frame;
        if !matches!(self.phase, Phase::Roost(_)) {
            return self.refuse_frame(payload.len());
        }
        self.heard_from_agent(now);
        let Some(stream) = self.streams.get(number).cloned() else {
            // What was on its way when a stream was given up is nobody's fault, but it is not free either.
            return self.refuse_frame(payload.len());
        };
        match kind {
            Kind::Data => {
                // Credit pays for the bytes, but not for frames of none.
                self.budget.message(0);
                self.budget.refund(payload.len());
                match stream.received(*channel, payload) {
                    Ok(()) if self.entry.held() > self.entry.config.stream_bytes => {
                        self.break_off(*number, "more output waits to be read than one VM may have");
                    }
                    Ok(()) => {}
                    Err(overrun) => {
                        self.refuse_frame(payload.len());
                        self.break_off(*number, &overrun.to_string());
                    }
                }
            }
            Kind::Credit => {
                self.budget.message(0);
                if let Some(bytes) = frame.number() {
                    self.outbox.grant(*number, *channel, bytes);
                }
            }
            Kind::End => stream.ended(*channel),
            Kind::Reset => {
                let code = frame.number().and_then(ResetCode::from_number);
                self.outbox.close(*number);
                stream.close(Closed::Reset(code));
            }
            Kind::Message | Kind::Sealed => self.refuse_frame(payload.len()),
        }
    }

    /// The peer misused a stream: it and its call end.
    fn break_off(&mut self, number: u32, how: &str) {
        let Some(stream) = self.streams.remove(&number) else { return };
        self.outbox.reset(number, ResetCode::Overrun);
        stream.close(Closed::Lost(how.to_owned()));
        let id = self.pending.iter().find(|(_, pending)| pending.stream == Some(number)).map(|(id, _)| id.clone());
        if let Some((id, pending)) = id.and_then(|id| self.pending.remove_entry(&id)) {
            let _ = pending.reply.send(Err(CallError::Violation { what: pending.what, how: how.to_owned() }));
            self.tell_to_cancel(&id);
        }
    }

    /// Something that only the agent of this session can have said.
    fn heard_from_agent(&mut self, now: Instant) {
        self.heard = now;
        if let Phase::Roost(roost) = &mut self.phase {
            roost.doubt = None;
            roost.ping = None;
        }
    }

    /// What came on a stream was read.
    pub(crate) fn credit(&mut self, stream: u32, channel: Channel, bytes: u32) {
        if self.streams.contains_key(&stream) && matches!(&self.phase, Phase::Roost(roost) if roost.frames) {
            self.outbox.credit(stream, channel, bytes);
        }
    }

    pub(crate) fn ready(&mut self, stream: u32) {
        if self.streams.contains_key(&stream) {
            self.outbox.ready(stream, Channel::Input);
        }
    }

    /// What is to be written next; empty where there is nothing.
    pub(crate) fn outgoing(&mut self) -> &[u8] {
        if self.written == self.out.len() {
            self.written = 0;
            // Given back when it is empty, so that an idle channel costs little.
            self.out = Vec::new();
            if self.is_established() && !self.outbox.is_idle() {
                let streams = &self.streams;
                self.outbox.fill(&mut self.encoder, &mut self.out, FILL, |number, _, buffer| {
                    match streams.get(&number) {
                        Some(stream) => stream.pull(buffer),
                        None => roost_guest_proto::Pulled::End,
                    }
                });
            }
        }
        &self.out[self.written..]
    }

    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
    }

    fn is_flushed(&self) -> bool {
        self.written == self.out.len()
    }

    /// Until when nothing may be read, because the guest says too much.
    pub(crate) fn blocked_until(&mut self, now: Instant) -> Option<Instant> {
        self.budget.blocked_until(now)
    }

    /// When [`Session::tick`] has something to do, if nothing happens before.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let config = &self.entry.config;
        match &self.phase {
            Phase::Greeting(greeting) => Some(greeting.deadline(config)),
            Phase::Sealing(sealing) => Some(sealing.until),
            Phase::Roost(roost) => {
                let sign_of_life = match roost.ping {
                    Some(sent) => sent + config.keep_alive,
                    None => self.heard + config.keep_alive,
                };
                earlier(roost.doubt.map(|since| since + config.hello_retry), Some(sign_of_life))
            }
            Phase::Seed(seed) => seed.poll,
            Phase::Legacy(legacy) => legacy.deadline(),
        }
    }

    /// Does what is due. An error: the connection is worth nothing any more.
    pub(crate) fn tick(&mut self, now: Instant) -> Result<(), String> {
        let (keep_alive, retry) = (self.entry.config.keep_alive, self.entry.config.hello_retry);
        match &mut self.phase {
            Phase::Greeting(_) => self.tick_greeting(now),
            Phase::Sealing(sealing) => {
                if now >= sealing.until {
                    self.begin_anew("it did not finish the exchange of keys", now);
                }
            }
            Phase::Roost(roost) => {
                if roost.doubt.is_some_and(|since| now >= since + retry) {
                    self.begin_anew("it was out of step", now);
                } else if let Some(sent) = roost.ping {
                    if now >= sent + keep_alive {
                        return Err(format!("it gave no sign of life for {:?}", 2 * keep_alive));
                    }
                } else if now >= self.heard + keep_alive {
                    roost.ping = Some(now);
                    self.ping(None);
                }
            }
            Phase::Seed(seed) => {
                if seed.poll.is_some_and(|due| now >= due) {
                    self.poll_seed(now);
                }
            }
            Phase::Legacy(legacy) => legacy.tick(now)?,
        }
        self.greet_if_idle(now);
        Ok(())
    }

    /// The connection is gone.
    pub(crate) fn end(mut self, why: &str) {
        for op in self.parked.drain(..) {
            let error = CallError::NotConnected { vm: self.entry.vm, why: why.to_owned() };
            let _ = op.reply.send(Err(error));
        }
        self.lose(why);
    }

    /// What is under way is lost, and nobody knows how far it got.
    fn lose(&mut self, why: &str) {
        for stream in self.streams.drain().map(|(_, stream)| stream) {
            stream.close(Closed::Lost(why.to_owned()));
        }
        let unknown = |what| Err(CallError::OutcomeUnknown { what, why: why.to_owned() });
        for pending in self.pending.drain().map(|(_, pending)| pending) {
            let _ = pending.reply.send(unknown(pending.what));
        }
        for reply in self.pings.drain().filter_map(|(_, reply)| reply) {
            let _ = reply.send(unknown("ping"));
        }
        match &mut self.phase {
            Phase::Seed(seed) => {
                for reply in seed.metrics.drain(..) {
                    let _ = reply.send(unknown("Metrics"));
                }
            }
            Phase::Legacy(legacy) => legacy.lose(why),
            _ => {}
        }
        self.ignored.clear();
        self.outbox.clear();
    }

    fn flavour(&self) -> Flavour {
        match self.phase {
            Phase::Seed(_) => Flavour::Seed,
            Phase::Legacy(_) => Flavour::Legacy,
            _ => Flavour::Roost,
        }
    }
}
