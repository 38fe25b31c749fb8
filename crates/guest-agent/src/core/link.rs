//! One connection to a host: its codec, what waits to be sent on it, its session.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use roost_guest_proto::{Decoder, Encoder, GuestMessage, LegacyRequest, NoiseHandshake, Outbox, Policy};

use crate::metrics::{Collectors, Group};

/// Messages that wait on a link before no more requests are read from it.
const HIGH_WATER: usize = 512 * 1024;
/// Messages that the outbox takes.
const OUTBOX: usize = 1 << 20;
/// Messages that wait for the outbox. Every one is the answer to a request that was read, and none is read while
/// there are any; but one read may hold many.
const MAX_DEFERRED: usize = 4096;

/// A connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) fd: OwnedFd,
    pub(crate) token: u64,
    pub(crate) name: String,
    /// The agent speaks first.
    pub(crate) port: bool,
    /// It stays open while hosts come and go.
    pub(crate) lasting: bool,
    /// The place that it was opened at; `None`: it was accepted.
    pub(crate) place: Option<usize>,
    /// A host is there.
    pub(crate) connected: bool,
    /// There may be something to read; room to write.
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) decoder: Decoder,
    pub(crate) encoder: Encoder,
    pub(crate) outbox: Outbox,
    /// Bytes on their way, and how many of them are gone.
    pub(crate) out: Vec<u8>,
    pub(crate) out_at: usize,
    deferred: VecDeque<Vec<u8>>,
    pub(crate) dropped_answers: u64,
    pub(crate) session: Option<Session>,
    /// Sealing was agreed on, and the host's part of it is awaited: nothing else may go out.
    pub(crate) noise: Option<Box<NoiseHandshake>>,
    pub(crate) streams: BTreeMap<u32, u64>,
    pub(crate) subscription: Option<Subscription>,
    pub(crate) metrics: Metrics,
    pub(crate) last_sent: Instant,
    pub(crate) last_received: Instant,
    pub(crate) sequence: u64,
    /// Requests without an ID: their answers have to go in order.
    pub(crate) legacy: VecDeque<LegacyRequest>,
    pub(crate) legacy_busy: bool,
    /// The peer's requests had no ID, so neither have its errors.
    pub(crate) legacy_peer: bool,
}

/// How a connection came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkKind {
    /// A device.
    Device,
    /// A socket that was connected here, or inherited: in all else like a device.
    Connected,
    /// By a host that dialled.
    Accepted,
}

/// What was agreed on in a hello and its handshake.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) name: String,
    /// The answer, for a host that did not hear it.
    pub(crate) handshake: Vec<u8>,
    /// Something came since.
    pub(crate) touched: bool,
    pub(crate) policy: Policy,
    /// Frames may be compressed.
    pub(crate) compressed: bool,
}

/// Metrics at an interval.
#[derive(Debug, Clone)]
pub(crate) struct Subscription {
    pub(crate) groups: Vec<Group>,
    pub(crate) interval: Duration,
    /// `None`: one is being collected, or waits for it.
    pub(crate) due: Option<Instant>,
}

/// A frame of metrics to be collected.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) groups: Vec<Group>,
    /// Of the request, if it has one.
    pub(crate) id: Option<String>,
    /// The subscription's, which is at this interval.
    pub(crate) interval: Option<Duration>,
}

/// The collectors of a link: what is told once, is told once to each host.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Not while they are at work.
    pub(crate) collectors: Option<Box<Collectors>>,
    pub(crate) busy: bool,
    pub(crate) asked: VecDeque<Ask>,
    /// Counts the hosts, so that what was collected for one goes to no other.
    pub(crate) host: u64,
}

impl Metrics {
    fn new_host(&mut self) {
        self.host += 1;
        self.asked.clear();
        if let Some(collectors) = &mut self.collectors {
            collectors.new_session();
        }
    }
}

impl Link {
    pub(crate) fn new(
        fd: OwnedFd,
        token: u64,
        name: String,
        kind: LinkKind,
        place: Option<usize>,
        now: Instant,
    ) -> Self {
        Self {
            fd,
            token,
            name,
            port: kind != LinkKind::Accepted,
            lasting: kind == LinkKind::Device,
            place,
            connected: false,
            readable: false,
            writable: true,
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            outbox: Outbox::new(OUTBOX),
            out: Vec::new(),
            out_at: 0,
            deferred: VecDeque::new(),
            dropped_answers: 0,
            session: None,
            noise: None,
            streams: BTreeMap::new(),
            subscription: None,
            metrics: Metrics::default(),
            last_sent: now,
            last_received: now,
            sequence: 0,
            legacy: VecDeque::new(),
            legacy_busy: false,
            legacy_peer: false,
        }
    }

    /// Says something to the host, in its turn.
    pub(crate) fn say(&mut self, message: &GuestMessage) {
        self.say_json(message.to_json());
    }

    /// The same for what is JSON already.
    pub(crate) fn say_json(&mut self, json: Vec<u8>) {
        if !self.connected {
            return;
        }
        if self.deferred.is_empty() && self.outbox.waiting() + json.len() <= OUTBOX {
            // Below the limit, so it is taken.
            let _ = self.outbox.message(json);
        } else if self.deferred.len() < MAX_DEFERRED {
            self.deferred.push_back(json);
        } else {
            self.dropped_answers += 1;
        }
    }

    /// What nobody waits for: only where there is room.
    pub(crate) fn mention(&mut self, message: &GuestMessage) {
        if self.outbox.waiting() < HIGH_WATER / 2 {
            self.say(message);
        }
    }

    /// Moves what waits into the outbox as it empties.
    pub(crate) fn refill(&mut self) {
        while let Some(json) = self.deferred.front() {
            if self.outbox.waiting() > 0 && self.outbox.waiting() + json.len() > OUTBOX {
                return;
            }
            if let Some(json) = self.deferred.pop_front() {
                let _ = self.outbox.message(json);
            }
        }
    }

    /// The host does not take what it asked for: it is not asked for more.
    pub(crate) fn is_clogged(&self) -> bool {
        !self.deferred.is_empty() || self.outbox.waiting() > HIGH_WATER || self.legacy.len() >= 100
    }

    /// There is something that would leave if there were room.
    pub(crate) fn has_output(&self) -> bool {
        self.out_at < self.out.len() || (self.noise.is_none() && (!self.outbox.is_idle() || !self.deferred.is_empty()))
    }

    /// Forgets the host and what was agreed on with it. What is half written stays, as its rest must follow.
    pub(crate) fn forget_host(&mut self) {
        self.decoder.reset();
        self.encoder.reset();
        self.outbox.clear();
        self.deferred.clear();
        self.out = Vec::new();
        self.out_at = 0;
        self.session = None;
        self.noise = None;
        self.streams.clear();
        self.subscription = None;
        self.metrics.new_host();
        self.legacy.clear();
        self.legacy_busy = false;
        self.legacy_peer = false;
    }
}
