//! Finding out who is there, and starting again when that is in doubt.

use std::time::Duration;

use rand::Rng;
use roost_guest_proto::{
    Envelope, GuestMessage, Handshake, Hello, LegacyOutput, LegacyReply, NoiseHandshake, NoiseLine, PROTOCOL_VERSION,
    Request, Sealer, Upgrade,
};
use tokio::time::Instant;

use super::legacy::Legacy;
use super::{Identity, Phase, Roost, Seed, Session};
use crate::attachment::HubConfig;
use crate::request::random_id;
use crate::status::{Flavour, HubEvent, Status};

/// Newlines that push out whatever half frame an agent holds: the longest payload and its header.
const PUSH: usize = roost_guest_proto::MAX_FRAME + roost_guest_proto::HEADER_LEN;
/// A guest that asks for it gets a hello at once, but not more often.
const SHORTEST_GAP: Duration = Duration::from_millis(100);
/// A hello that nobody answers is repeated less and less often, up to this.
const LONGEST_GAP: Duration = Duration::from_secs(60);
/// What is kept of a guest's words about itself.
const MAX_TEXT: usize = 128;
const MAX_CAPABILITIES: usize = 128;

/// A hello was sent, and no answer of this session has come.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) session: String,
    line: Vec<u8>,
    sends: u32,
    sent: Instant,
    next: Instant,
    /// An older agent spoke, and may yet turn out to be a new one.
    old: Option<(Instant, Option<Handshake>)>,
}

impl Greeting {
    pub(super) fn unsent(now: Instant) -> Self {
        Self { session: String::new(), line: Vec::new(), sends: 0, sent: now, next: now, old: None }
    }

    pub(super) fn deadline(&self, config: &HubConfig) -> Instant {
        match &self.old {
            Some((since, _)) => self.next.min(*since + config.hello_retry),
            None => self.next,
        }
    }
}

/// The handshake came, and the exchange of keys is under way.
#[derive(Debug)]
pub(super) struct Sealing {
    session: String,
    handshake: Handshake,
    noise: Option<NoiseHandshake>,
    pub(super) until: Instant,
}

impl Session {
    /// Says hello, of a new session.
    pub(super) fn greet(&mut self, now: Instant) {
        let mut upgrades = vec![Upgrade::Frames, Upgrade::Zstd];
        if self.attachment.key.is_some() {
            upgrades.push(Upgrade::E2e);
        }
        let session = random_id();
        let hello = Hello {
            version: PROTOCOL_VERSION.to_owned(),
            session: session.clone(),
            epoch: self.attachment.epoch,
            upgrades,
            metrics_interval_ms: Some(self.attachment.metrics_interval_ms()),
            policy: self.attachment.told_policy(),
        };
        let line = Envelope::new(Request::Hello(hello)).to_json();
        self.encoder.reset();
        self.outbox.clear();
        self.encoder.line(&line, &mut self.out);
        let next = now + self.entry.config.hello_retry;
        self.phase = Phase::Greeting(Box::new(Greeting { session, line, sends: 1, sent: now, next, old: None }));
    }

    /// The session is over. What was under way is lost, and the next one begins.
    pub(super) fn begin_anew(&mut self, why: &str, now: Instant) {
        let was_told = self.is_established() || self.quiet.take().is_some();
        self.lose(why);
        if was_told {
            self.entry.publish(Status::away(self.entry.vm, why));
            let _ = self.events.send(HubEvent::Lost { vm: self.entry.vm, why: why.to_owned() });
        }
        self.greet(now);
    }

    /// Tells the agent of another policy, when that breaks nothing off.
    pub(super) fn greet_if_idle(&mut self, now: Instant) {
        let Phase::Roost(roost) = &self.phase else { return };
        let idle = self.pending.is_empty() && self.streams.is_empty() && self.outbox.is_idle();
        if self.greet_when_idle && idle {
            self.greet_when_idle = false;
            self.quiet = Some(roost.agent.clone());
            self.lose("the agent was told of another policy");
            self.greet(now);
        }
    }

    pub(super) fn tick_greeting(&mut self, now: Instant) {
        let flushed = self.is_flushed();
        let retry = self.entry.config.hello_retry;
        let Phase::Greeting(greeting) = &mut self.phase else { return };
        if greeting.old.as_ref().is_some_and(|(since, _)| now >= *since + retry) {
            let handshake = greeting.old.take().and_then(|(_, handshake)| handshake);
            return self.establish_seed(handshake);
        }
        if now < greeting.next {
            return;
        }
        // What was sent before is still on this side: another one would only wait behind it.
        if flushed {
            if greeting.sends % 4 == 1 {
                self.out.resize(self.out.len() + PUSH, b'\n');
            }
            self.out.extend_from_slice(&greeting.line);
            self.out.push(b'\n');
            greeting.sends += 1;
            greeting.sent = now;
        }
        let doubled = retry.saturating_mul(1 << greeting.sends.saturating_sub(2).min(10)).min(LONGEST_GAP);
        let jitter = if greeting.sends > 3 { rand::rng().random_range(0.75..1.0) } else { 1.0 };
        greeting.next = now + doubled.mul_f64(jitter);
        // Nobody who was expected back at once: callers are to know.
        if greeting.sends > 3 && self.quiet.take().is_some() {
            self.entry.publish(Status::away(self.entry.vm, "it does not answer"));
            let why = "it does not answer".to_owned();
            let _ = self.events.send(HubEvent::Lost { vm: self.entry.vm, why });
        }
    }

    /// A line while greeting.
    pub(super) fn greeting_line(&mut self, line: &[u8], now: Instant) {
        let searching = self.decoder.is_searching();
        let message = match GuestMessage::parse(line) {
            Ok(message) => message,
            // Skipped bytes look like anything.
            Err(_) if searching => return,
            Err(_) => {
                if is_legacy_answer(line) {
                    return self.establish_legacy();
                }
                return self.refuse_message(line.len());
            }
        };
        let Phase::Greeting(greeting) = &mut self.phase else { return };
        match message {
            GuestMessage::Handshake(handshake) if handshake.session.as_ref() == Some(&greeting.session) => {
                self.answered(line, handshake, now);
            }
            // Of an earlier session.
            GuestMessage::Handshake(handshake) if handshake.session.is_some() => self.refuse_message(line.len()),
            // An agent that just came, and may have missed the hello.
            GuestMessage::Handshake(handshake) if handshake.protocol.is_some() => {
                greeting.old = None;
                if now >= greeting.sent + SHORTEST_GAP {
                    greeting.next = now;
                }
            }
            _ if searching => {}
            GuestMessage::Handshake(handshake) => greeting.old = Some((now, Some(handshake))),
            _ => drop(greeting.old.get_or_insert((now, None))),
        }
    }

    fn answered(&mut self, line: &[u8], handshake: Handshake, now: Instant) {
        let Phase::Greeting(greeting) = &mut self.phase else { return };
        let chosen = |upgrade| handshake.upgrades.contains(&upgrade);
        let frames = chosen(Upgrade::Frames);
        if frames && chosen(Upgrade::E2e) {
            let Some(key) = &self.attachment.key else { return self.refuse_message(line.len()) };
            let mut noise = NoiseHandshake::host(key, &greeting.line, line);
            let Ok(data) = noise.first() else { return };
            let message = Envelope::new(Request::Noise(NoiseLine { data })).to_json();
            self.decoder.use_lines();
            self.encoder.line(&message, &mut self.out);
            let session = std::mem::take(&mut greeting.session);
            let until = now + 4 * self.entry.config.hello_retry;
            self.phase = Phase::Sealing(Box::new(Sealing { session, handshake, noise: Some(noise), until }));
            return;
        }
        let session = std::mem::take(&mut greeting.session);
        self.establish(session, handshake, frames, None, now);
    }

    /// A line while keys are exchanged.
    pub(super) fn sealing_line(&mut self, line: &[u8], now: Instant) {
        let message = GuestMessage::parse(line);
        let Phase::Sealing(sealing) = &mut self.phase else { return };
        match message {
            Ok(GuestMessage::Noise(noise)) => {
                let Some(exchange) = sealing.noise.take() else { return };
                match exchange.complete(&noise.data) {
                    Ok(sealers) => {
                        let session = std::mem::take(&mut sealing.session);
                        let handshake = sealing.handshake.clone();
                        self.establish(session, handshake, true, Some(sealers), now);
                    }
                    Err(error) => {
                        tracing::debug!(vm = %self.entry.vm, %error, "the keys do not match");
                        self.refuse_message(line.len());
                        // The deadline starts again: a wrong key is wrong the next time, too, and must not spin.
                    }
                }
            }
            // The answer to a hello that was sent twice.
            Ok(GuestMessage::Handshake(handshake)) if handshake.session.as_ref() == Some(&sealing.session) => {}
            Ok(GuestMessage::Handshake(handshake)) if handshake.session.is_none() => {
                let agent = Identity::of(&handshake);
                if agent != Identity::of(&sealing.handshake) {
                    self.begin_anew("the agent was started again", now);
                }
            }
            _ => self.refuse_message(line.len()),
        }
    }

    fn establish(
        &mut self,
        session: String,
        handshake: Handshake,
        frames: bool,
        sealers: Option<(Sealer, Sealer)>,
        now: Instant,
    ) {
        let compressed = handshake.upgrades.contains(&Upgrade::Zstd);
        let sealed = sealers.is_some();
        if frames {
            let (seal, open) = sealers.unzip();
            self.decoder.use_frames(compressed, open);
            self.encoder.use_frames(compressed, seal);
        } else {
            self.decoder.use_lines();
        }
        let agent = Identity::of(&handshake);
        self.heard = now;
        self.phase = Phase::Roost(Roost { session, agent: agent.clone(), frames, doubt: None, ping: None });
        let mut status = status_of(self.entry.vm, Flavour::Roost, &handshake);
        status.sealed = sealed;
        let same = self.quiet.take().is_some_and(|before| before == agent);
        self.publish(status, same);
        if handshake.epoch.is_none_or(|epoch| epoch == self.attachment.epoch) {
            let _ = self.events.send(HubEvent::Ready { vm: self.entry.vm, epoch: self.attachment.epoch });
        }
        self.watchers_changed(now);
        for op in std::mem::take(&mut self.parked) {
            self.op(op, now);
        }
    }

    fn establish_seed(&mut self, handshake: Option<Handshake>) {
        let status = match &handshake {
            Some(handshake) => status_of(self.entry.vm, Flavour::Seed, handshake),
            None => Status::connected(self.entry.vm, Flavour::Seed),
        };
        self.encoder.reset();
        self.decoder.use_lines();
        self.phase = Phase::Seed(Seed { platform: status.platform.clone(), metrics: Default::default(), poll: None });
        self.arrived(status);
    }

    fn establish_legacy(&mut self) {
        self.encoder.reset();
        self.phase = Phase::Legacy(Legacy::default());
        self.arrived(Status::connected(self.entry.vm, Flavour::Legacy));
    }

    fn arrived(&mut self, status: Status) {
        self.quiet = None;
        self.publish(status, false);
        let now = Instant::now();
        self.watchers_changed(now);
        for op in std::mem::take(&mut self.parked) {
            self.op(op, now);
        }
    }

    fn publish(&self, status: Status, same: bool) {
        self.entry.publish(status.clone());
        if !same {
            let _ = self.events.send(HubEvent::Connected { vm: self.entry.vm, status: Box::new(status) });
        }
    }

    /// A handshake in a session that is established.
    pub(super) fn handshake_again(&mut self, handshake: &Handshake, now: Instant) {
        match &mut self.phase {
            Phase::Roost(roost) => {
                if handshake.session.as_ref() == Some(&roost.session) {
                    // The answer to a hello that was sent twice.
                    self.decoder.resume_frames();
                    roost.doubt = None;
                } else if handshake.session.is_none() && Identity::of(handshake) == roost.agent {
                    // The same agent opened its port again. It may still be in this session; if it is not, what
                    // comes next does not fit, and nothing that comes is doubt enough.
                    self.decoder.resume_frames();
                    roost.doubt = Some(now);
                    self.ping(None);
                } else if handshake.session.is_none() {
                    self.begin_anew("the agent was started again", now);
                } else {
                    self.refuse_message(0);
                }
            }
            Phase::Seed(_) | Phase::Legacy(_) if handshake.protocol.is_some() => {
                self.begin_anew("another agent took its place", now);
            }
            Phase::Seed(_) => {
                self.lose("the agent was started again");
                let status = status_of(self.entry.vm, Flavour::Seed, handshake);
                self.phase =
                    Phase::Seed(Seed { platform: status.platform.clone(), metrics: Default::default(), poll: None });
                self.arrived(status);
            }
            _ => {}
        }
    }
}

impl Identity {
    pub(super) fn of(handshake: &Handshake) -> Self {
        Self {
            boot_id: handshake.boot_id.as_deref().map(bounded),
            agent_id: handshake.agent_id.as_deref().map(bounded),
        }
    }
}

fn bounded(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

fn status_of(vm: roost_model::VmId, flavour: Flavour, handshake: &Handshake) -> Status {
    Status {
        version: bounded(&handshake.version),
        platform: bounded(&handshake.platform),
        capabilities: handshake.capabilities.iter().take(MAX_CAPABILITIES).map(|text| bounded(text)).collect(),
        boot_id: handshake.boot_id.as_deref().map(bounded),
        agent_id: handshake.agent_id.as_deref().map(bounded),
        epoch: handshake.epoch,
        ..Status::connected(vm, flavour)
    }
}

/// An older vsock peer knows no hello, and says so in one of its two forms.
fn is_legacy_answer(line: &[u8]) -> bool {
    let Ok(value) = roost_guest_proto::parse_strict(line) else { return false };
    if value.get("id").is_some() {
        return false;
    }
    let newer = || {
        serde_json::from_value::<LegacyReply>(value.clone())
            .is_ok_and(|reply| matches!(reply, LegacyReply::Error { .. }))
    };
    newer() || serde_json::from_value::<LegacyOutput>(value.clone()).is_ok()
}
