//! What leaves next: answers before metrics, messages before data, streams in turn.
//!
//! The outbox holds messages and control frames; data stays where it comes from (a pipe, a file, a queue) and is
//! asked for only when it is a stream's turn, there is credit, and there is room. So a stream that is not drained
//! costs nothing, and one with ten gigabytes to say gets one chunk for every chunk of the others.

use std::collections::{BTreeMap, VecDeque};

use zeroize::Zeroizing;

use crate::codec::Encoder;
use crate::flow::SendWindow;
use crate::frame::{Channel, DATA_CHUNK, ResetCode};

/// The messages that wait take more room than is permitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{waiting} bytes of messages wait to be sent; permitted: at most {permitted}")]
pub struct QueueFull {
    pub waiting: usize,
    pub permitted: usize,
}

/// What a source gives when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pulled {
    /// So many bytes, and perhaps more.
    Bytes(usize),
    /// Nothing for now; [`Outbox::ready`] when there is.
    Empty,
    /// Nothing ever again: the channel ends.
    End,
    /// It failed: the stream is reset.
    Failed,
}

/// Keys that take turns. A key is in it at most once.
#[derive(Debug, Clone)]
pub struct Ring<K>(VecDeque<K>);

impl<K> Default for Ring<K> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<K: PartialEq + Copy> Ring<K> {
    /// Adds a key behind all others, unless it is in already.
    pub fn add(&mut self, key: K) {
        if !self.0.contains(&key) {
            self.0.push_back(key);
        }
    }

    /// Takes the key whose turn it is.
    pub fn take(&mut self) -> Option<K> {
        self.0.pop_front()
    }

    pub fn retain(&mut self, keep: impl FnMut(&K) -> bool) {
        self.0.retain(keep);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Debug, Clone, Copy)]
enum Control {
    Credit(u32, Channel, u32),
    End(u32, Channel),
    Reset(u32, ResetCode),
}

#[derive(Debug, Default)]
struct Source {
    window: SendWindow,
    /// It has something to say, and waits for credit.
    starved: bool,
}

/// Everything that waits to be sent on one channel.
#[derive(Debug)]
pub struct Outbox {
    urgent: VecDeque<Zeroizing<Vec<u8>>>,
    metrics: VecDeque<Vec<u8>>,
    waiting: usize,
    permitted: usize,
    control: VecDeque<Control>,
    sources: BTreeMap<(u32, Channel), Source>,
    ring: Ring<(u32, Channel)>,
}

impl Outbox {
    /// The most metrics frames that wait; the oldest gives way.
    pub const METRICS: usize = 100;

    /// An outbox that takes messages of `permitted` bytes together.
    pub fn new(permitted: usize) -> Self {
        Self {
            urgent: VecDeque::new(),
            metrics: VecDeque::new(),
            waiting: 0,
            permitted,
            control: VecDeque::new(),
            sources: BTreeMap::new(),
            ring: Ring::default(),
        }
    }

    /// Forgets everything: the connection is gone.
    pub fn clear(&mut self) {
        *self = Self::new(self.permitted);
    }

    /// Forgets the streams; messages stay. The peer began anew.
    pub fn clear_streams(&mut self) {
        self.control.clear();
        self.sources.clear();
        self.ring = Ring::default();
    }

    /// A message that is somebody's answer. An outbox that is empty takes any message.
    pub fn message(&mut self, json: Vec<u8>) -> Result<(), QueueFull> {
        if self.waiting > 0 && self.waiting + json.len() > self.permitted {
            return Err(QueueFull { waiting: self.waiting, permitted: self.permitted });
        }
        self.waiting += json.len();
        self.urgent.push_back(Zeroizing::new(json));
        Ok(())
    }

    /// A message that the next one of its kind replaces in worth: where there is no room, the oldest goes.
    pub fn metrics(&mut self, json: Vec<u8>) {
        while self.metrics.len() >= Self::METRICS || self.waiting + json.len() > self.permitted {
            let Some(oldest) = self.metrics.pop_front() else { return };
            self.waiting -= oldest.len();
        }
        self.waiting += json.len();
        self.metrics.push_back(json);
    }

    /// Bytes of messages that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// A channel of a stream on which this end sends.
    pub fn open(&mut self, stream: u32, channel: Channel) {
        self.sources.insert((stream, channel), Source::default());
    }

    /// The channel has something to say, or its end.
    pub fn ready(&mut self, stream: u32, channel: Channel) {
        let Some(source) = self.sources.get_mut(&(stream, channel)) else { return };
        // Without credit it cannot even tell its end: whether there is more is known by asking, with room for it.
        if source.window.left() == 0 {
            source.starved = true;
        } else {
            self.ring.add((stream, channel));
        }
    }

    /// The peer granted a channel more.
    pub fn grant(&mut self, stream: u32, channel: Channel, bytes: u32) {
        let Some(source) = self.sources.get_mut(&(stream, channel)) else { return };
        source.window.grant(bytes);
        if source.starved && source.window.left() > 0 {
            source.starved = false;
            self.ring.add((stream, channel));
        }
    }

    /// Grants the peer more. Grants that wait are put together.
    pub fn credit(&mut self, stream: u32, channel: Channel, bytes: u32) {
        for control in &mut self.control {
            if let Control::Credit(s, c, waiting) = control
                && (*s, *c) == (stream, channel)
            {
                *waiting = waiting.saturating_add(bytes);
                return;
            }
        }
        self.control.push_back(Control::Credit(stream, channel, bytes));
    }

    /// Ends a channel that has nothing to say, such as an input that was refused.
    pub fn end(&mut self, stream: u32, channel: Channel) {
        self.forget(stream, Some(channel));
        self.control.push_back(Control::End(stream, channel));
    }

    /// Ends a stream as a whole, whatever it still had to say.
    pub fn reset(&mut self, stream: u32, code: ResetCode) {
        self.close(stream);
        self.control.push_back(Control::Reset(stream, code));
    }

    /// Forgets a stream without a word.
    pub fn close(&mut self, stream: u32) {
        self.forget(stream, None);
        self.control.retain(|control| !matches!(control, Control::Credit(s, ..) if *s == stream));
    }

    fn forget(&mut self, stream: u32, channel: Option<Channel>) {
        let gone = |key: &(u32, Channel)| key.0 == stream && channel.is_none_or(|channel| key.1 == channel);
        self.sources.retain(|key, _| !gone(key));
        self.ring.retain(|key| !gone(key));
    }

    /// A channel is open: neither its end nor a reset was sent.
    pub fn is_open(&self, stream: u32, channel: Channel) -> bool {
        self.sources.contains_key(&(stream, channel))
    }

    /// Nothing would leave now.
    pub fn is_idle(&self) -> bool {
        self.urgent.is_empty() && self.metrics.is_empty() && self.control.is_empty() && self.ring.is_empty()
    }

    /// Appends to `out` what leaves next, until it holds `limit` bytes (it may pass it by one message or chunk) or
    /// nothing may leave. `pull` is asked for the data of the channel whose turn it is.
    pub fn fill(
        &mut self,
        encoder: &mut Encoder,
        out: &mut Vec<u8>,
        limit: usize,
        mut pull: impl FnMut(u32, Channel, &mut [u8]) -> Pulled,
    ) {
        while out.len() < limit {
            if let Some(control) = self.control.pop_front() {
                match control {
                    Control::Credit(stream, channel, bytes) => encoder.credit(stream, channel, bytes, out),
                    Control::End(stream, channel) => encoder.end(stream, channel, out),
                    Control::Reset(stream, code) => encoder.reset_stream(stream, code, out),
                }
            } else if let Some(message) = self.urgent.pop_front() {
                self.waiting -= message.len();
                encoder.message(&message, out);
            } else if let Some(message) = self.metrics.pop_front() {
                self.waiting -= message.len();
                encoder.message(&message, out);
            } else if let Some((stream, channel)) = self.ring.take() {
                self.turn(encoder, out, stream, channel, &mut pull);
            } else {
                return;
            }
        }
    }

    fn turn(
        &mut self,
        encoder: &mut Encoder,
        out: &mut Vec<u8>,
        stream: u32,
        channel: Channel,
        pull: &mut impl FnMut(u32, Channel, &mut [u8]) -> Pulled,
    ) {
        let Some(source) = self.sources.get_mut(&(stream, channel)) else { return };
        let limit = (source.window.left() as usize).min(DATA_CHUNK);
        let (len, pulled) = encoder.data_from(stream, channel, limit, out, |buffer| {
            let pulled = pull(stream, channel, buffer);
            (if let Pulled::Bytes(len) = pulled { len } else { 0 }, pulled)
        });
        source.window.take(len);
        match pulled {
            Pulled::Bytes(_) => self.ready(stream, channel),
            Pulled::Empty => {}
            Pulled::End => {
                encoder.end(stream, channel, out);
                self.forget(stream, Some(channel));
            }
            Pulled::Failed => self.reset(stream, ResetCode::Failed),
        }
    }
}
