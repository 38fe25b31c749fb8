//! Calls on their way to the guest.

use std::sync::Arc;
use std::time::Duration;

use rand::RngCore;
use roost_guest_proto::{
    Cancel, Channel, Envelope, KeepAlive, MAX_LINE, MetricsRequest, Ping, Request, ResetCode, Subscribe,
};
use tokio::time::Instant;

use super::{MAX_IGNORED, Pending, Phase, Session};
use crate::attachment::Attachment;
use crate::entry::{Answer, Op, Reply};
use crate::error::CallError;
use crate::request::{for_seed, random_id};
use crate::stream::Closed;

/// The first agent is not asked more often.
const SEED_POLL: Duration = Duration::from_secs(1);

impl Session {
    /// A call that arrives while the agent is told of another policy waits for the end of that.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet.is_some()
    }

    pub(crate) fn park(&mut self, op: Op) {
        self.parked.push(op);
    }

    /// Sends a call.
    pub(crate) fn op(&mut self, op: Op, now: Instant) {
        if op.reply.is_closed() {
            return;
        }
        let refused = match &mut self.phase {
            Phase::Roost(roost) => {
                let frames = roost.frames;
                self.roost_op(op, frames)
            }
            Phase::Seed(seed) => {
                let platform = seed.platform.clone();
                self.seed_op(op, &platform)
            }
            Phase::Legacy(legacy) => {
                legacy.op(op, now, &mut self.outbox);
                None
            }
            Phase::Greeting(_) | Phase::Sealing(_) => Some((op, self.entry.not_connected())),
        };
        if let Some((op, error)) = refused {
            if let Some(stream) = op.stream {
                stream.close(Closed::Over);
            }
            let _ = op.reply.send(Err(error));
        }
    }

    fn roost_op(&mut self, op: Op, frames: bool) -> Option<(Op, CallError)> {
        if op.stream.is_some() && !frames {
            let flavour = self.flavour();
            return Some((op, CallError::Unsupported { capability: "frames", flavour }));
        }
        if let Request::Ping(_) = op.request {
            self.ping(Some(op.reply));
            return None;
        }
        let metrics = matches!(op.request, Request::Metrics(_));
        let identity = matches!(op.request, Request::Identity(_));
        let mut envelope = Envelope::new(op.request);
        envelope.epoch = Some(self.attachment.epoch);
        let json = envelope.to_json();
        let op = Op { request: envelope.request, ..op };
        if let Err(error) = self.send(json, op.what) {
            return Some((op, error));
        }
        if let Some(stream) = &op.stream {
            if stream.sends {
                self.outbox.open(stream.number, Channel::Input);
                // It may have been written to already.
                self.outbox.ready(stream.number, Channel::Input);
            }
            self.streams.insert(stream.number, stream.clone());
        }
        let stream = op.stream.as_ref().map(|stream| stream.number);
        self.pending.insert(op.id, Pending { what: op.what, reply: op.reply, stream, metrics, identity });
        None
    }

    fn seed_op(&mut self, op: Op, platform: &str) -> Option<(Op, CallError)> {
        let request = match for_seed(op.request.clone(), platform) {
            Ok(request) => request,
            Err(error) => return Some((op, error)),
        };
        let is_metrics = matches!(request, Request::Metrics(_));
        if let Err(error) = self.send(Envelope::new(request).to_json(), op.what) {
            return Some((op, error));
        }
        if is_metrics {
            if let Phase::Seed(seed) = &mut self.phase {
                seed.metrics.retain(|reply| !reply.is_closed());
                seed.metrics.push_back(op.reply);
            }
            return None;
        }
        let pending = Pending { what: op.what, reply: op.reply, stream: None, metrics: false, identity: false };
        self.pending.insert(op.id, pending);
        None
    }

    fn send(&mut self, json: Vec<u8>, what: &'static str) -> Result<(), CallError> {
        if json.len() > MAX_LINE {
            return Err(CallError::TooLarge { what, size: json.len(), permitted: MAX_LINE });
        }
        self.outbox
            .message(json)
            .map_err(|full| CallError::QueueFull { waiting: full.waiting, permitted: full.permitted })
    }

    /// Something of the hub's own, whose answer is of no interest. Lost where there is no room.
    fn send_and_ignore(&mut self, id: String, request: Request) {
        let mut envelope = Envelope::new(request);
        envelope.epoch = Some(self.attachment.epoch);
        if self.outbox.message(envelope.to_json()).is_ok() {
            if self.ignored.len() == MAX_IGNORED {
                self.ignored.pop_front();
            }
            self.ignored.push_back(id);
        }
    }

    pub(super) fn tell_to_cancel(&mut self, target: &str) {
        let id = random_id();
        self.send_and_ignore(id.clone(), Request::Cancel(Cancel { id, target: target.to_owned() }));
    }

    /// Asks for a sign of life, on its own behalf or a caller's.
    pub(super) fn ping(&mut self, reply: Option<Reply>) {
        // Within what every JSON reader takes for a whole number.
        let sequence = rand::rng().next_u64() >> 12;
        if reply.is_none() {
            self.pings.retain(|_, reply| reply.is_some());
        }
        if self.outbox.message(Envelope::new(Request::Ping(Ping { sequence })).to_json()).is_ok() {
            self.pings.insert(sequence, reply);
        }
    }

    pub(super) fn answer_keep_alive(&mut self, sequence_number: u64) {
        let timestamp = jiff::Timestamp::now().to_string();
        let answer = Request::KeepAliveResponse(KeepAlive { sequence_number, timestamp });
        // Gives way where there is no room.
        self.outbox.metrics(Envelope::new(answer).to_json());
    }

    /// Nobody waits for a call any more.
    pub(crate) fn abandon(&mut self, id: &str) {
        self.parked.retain(|op| op.id != id);
        if let Some(pending) = self.pending.remove(id) {
            if let Some(number) = pending.stream {
                if let Some(stream) = self.streams.remove(&number) {
                    stream.close(Closed::Over);
                }
                self.outbox.reset(number, ResetCode::Cancelled);
            }
            if matches!(self.phase, Phase::Roost(_)) {
                self.tell_to_cancel(id);
            }
            return;
        }
        self.pings.retain(|_, reply| reply.as_ref().is_none_or(|reply| !reply.is_closed()));
        match &mut self.phase {
            Phase::Seed(seed) => seed.metrics.retain(|reply| !reply.is_closed()),
            Phase::Legacy(legacy) => legacy.abandon(id),
            _ => {}
        }
    }

    /// The daemon said something else of the VM. `Err`: it is at another place.
    pub(crate) fn attach(&mut self, attachment: Arc<Attachment>, now: Instant) -> Result<(), ()> {
        let before = std::mem::replace(&mut self.attachment, attachment);
        if before.endpoint != self.attachment.endpoint {
            return Err(());
        }
        if before.epoch != self.attachment.epoch {
            self.begin_anew("the VM is in another epoch", now);
        } else if !before.says_the_same_as(&self.attachment) {
            match self.phase {
                Phase::Roost(_) => self.greet_when_idle = true,
                Phase::Greeting(_) | Phase::Sealing(_) => self.greet(now),
                Phase::Seed(_) | Phase::Legacy(_) => {}
            }
        }
        Ok(())
    }

    /// Asks the agent for what the watchers want, or for what the attachment says where there are none.
    pub(crate) fn watchers_changed(&mut self, now: Instant) {
        let wanted = self.entry.watchers.wanted();
        let was_told = std::mem::replace(&mut self.subscribed, wanted.is_some());
        match &mut self.phase {
            Phase::Roost(_) => {
                let (groups, interval_ms) = match wanted {
                    Some((groups, interval)) => {
                        let watched = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
                        let usual = self.attachment.metrics_interval_ms();
                        (groups, if usual == 0 { watched } else { watched.min(usual) })
                    }
                    // The hello said it already.
                    None if !was_told => return,
                    None => (Vec::new(), self.attachment.metrics_interval_ms()),
                };
                let id = random_id();
                self.send_and_ignore(id.clone(), Request::Subscribe(Subscribe { id, groups, interval_ms }));
            }
            Phase::Seed(seed) => seed.poll = wanted.map(|_| now),
            Phase::Greeting(_) | Phase::Sealing(_) | Phase::Legacy(_) => {}
        }
    }

    pub(super) fn poll_seed(&mut self, now: Instant) {
        let interval = self.entry.watchers.wanted().map(|(_, interval)| interval.max(SEED_POLL));
        if interval.is_some() {
            self.outbox.metrics(Envelope::new(Request::Metrics(MetricsRequest::default())).to_json());
        }
        if let Phase::Seed(seed) = &mut self.phase {
            seed.poll = interval.map(|interval| now + interval);
        }
    }

    pub(super) fn deliver(reply: Reply, answer: Answer) {
        // Nobody may wait any more.
        let _ = reply.send(answer);
    }
}
