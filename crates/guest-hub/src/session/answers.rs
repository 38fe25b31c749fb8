//! What the guest says in a session, and whose it is.

use roost_guest_proto::{ErrorCode, GuestMessage, Response};
use tokio::time::Instant;

use super::{Phase, Session};
use crate::error::CallError;
use crate::status::{Dropped, HubEvent, Status};
use crate::stream::Closed;

/// How Roost's agent writes metrics: what begins so is kept without a look at the rest.
const METRICS: &[u8] = br#"{"type":"metrics","#;

impl Session {
    pub(super) fn line(&mut self, line: &[u8], now: Instant) {
        match &self.phase {
            Phase::Greeting(_) => self.greeting_line(line, now),
            Phase::Sealing(_) => self.sealing_line(line, now),
            Phase::Roost(roost) if roost.frames => {
                // Out of step, and this may be where to start again.
                if let Ok(GuestMessage::Handshake(handshake)) = GuestMessage::parse(line) {
                    self.handshake_again(&handshake, now);
                }
            }
            Phase::Roost(_) | Phase::Seed(_) => self.message(line, now),
            Phase::Legacy(_) => self.legacy_line(line, now),
        }
    }

    pub(super) fn framed_message(&mut self, message: &[u8], now: Instant) {
        match &self.phase {
            Phase::Roost(_) => self.message(message, now),
            // Of the session before.
            _ => self.refuse_message(message.len()),
        }
    }

    fn message(&mut self, text: &[u8], now: Instant) {
        if text.starts_with(METRICS) && self.nobody_waits_for_metrics() {
            self.heard_from_agent(now);
            return self.metrics(text, now);
        }
        let message = match GuestMessage::parse(text) {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(vm = %self.entry.vm, ?error, "refused from the guest");
                return self.refuse_message(text.len());
            }
        };
        self.heard_from_agent(now);
        match message {
            GuestMessage::Response(response) => self.response(*response),
            GuestMessage::Metrics(metrics) => {
                self.metrics(text, now);
                let reply = match &mut self.phase {
                    Phase::Seed(seed) => seed.metrics.pop_front(),
                    _ => metrics.id.as_deref().and_then(|id| {
                        let pending = self.pending.get(id)?;
                        if pending.metrics { self.pending.remove(id).map(|pending| pending.reply) } else { None }
                    }),
                };
                if let Some(reply) = reply {
                    let response =
                        Response { data: Some(metrics.data), ..Response::success(metrics.id.unwrap_or_default()) };
                    Self::deliver(reply, Ok(response));
                }
            }
            GuestMessage::Progress(progress) => {
                let stream = self.pending.get(&progress.id).and_then(|pending| pending.stream);
                match (stream.and_then(|number| self.streams.get(&number)), progress.pid) {
                    (Some(stream), Some(pid)) => stream.set_pid(pid),
                    (Some(_), None) => {}
                    (None, _) if self.pending.contains_key(&progress.id) => {}
                    (None, _) => self.refuse_message(text.len()),
                }
            }
            GuestMessage::Pong(pong) => match self.pings.remove(&pong.sequence) {
                Some(Some(reply)) => Self::deliver(reply, Ok(Response::success(String::new()))),
                Some(None) => {}
                None => self.unknown_reply(text.len()),
            },
            GuestMessage::KeepAlive(alive) => self.answer_keep_alive(alive.sequence_number),
            GuestMessage::Handshake(handshake) => self.handshake_again(&handshake, now),
            GuestMessage::ErrorReport(report) | GuestMessage::Error(report) => {
                let message: String = report.error.message.chars().take(256).collect();
                tracing::debug!(vm = %self.entry.vm, code = %report.error.code, ?message, "the agent reports");
            }
            GuestMessage::Ping(_) | GuestMessage::ConnectionStatus(_) => {}
            GuestMessage::Noise(_) => self.refuse_message(text.len()),
        }
    }

    fn nobody_waits_for_metrics(&self) -> bool {
        match &self.phase {
            Phase::Seed(seed) => seed.metrics.is_empty(),
            _ => !self.pending.values().any(|pending| pending.metrics),
        }
    }

    fn metrics(&mut self, text: &[u8], now: Instant) {
        let permitted = self.entry.config.metrics_bytes;
        if text.len() > permitted || self.entry.metrics.store(text, now).is_err() {
            self.refuse_message(text.len());
        }
    }

    fn unknown_reply(&mut self, bytes: usize) {
        self.budget.junk(bytes);
        self.entry.counters.add(Dropped { replies: 1, ..Dropped::default() });
    }

    fn response(&mut self, response: Response) {
        let Some(pending) = self.pending.remove(&response.id) else {
            match self.ignored.iter().position(|id| *id == response.id) {
                Some(at) => drop(self.ignored.remove(at)),
                None => self.unknown_reply(response.stdout.len() + response.stderr.len()),
            }
            return;
        };
        if let Some(number) = pending.stream {
            self.outbox.close(number);
            if let Some(stream) = self.streams.remove(&number) {
                stream.close(Closed::Over);
            }
        }
        let epoch = self.attachment.epoch;
        // An agent that refuses to enter an epoch, or what is for another one, is in the one before.
        let refused = response.error.as_ref().is_some_and(|error| error.code == ErrorCode::EpochMismatch);
        let stays = refused || (pending.identity && !response.success);
        if let Some(other) = response.epoch.filter(|other| *other != epoch && !stays) {
            let why = format!("it answered in epoch {other}, and the VM is in {epoch}");
            return Self::deliver(pending.reply, Err(CallError::OutcomeUnknown { what: pending.what, why }));
        }
        if pending.identity && response.success {
            self.entry.publish(Status { epoch: Some(epoch), ..self.entry.status() });
            let _ = self.events.send(HubEvent::Ready { vm: self.entry.vm, epoch });
        }
        Self::deliver(pending.reply, Ok(response));
    }
}
