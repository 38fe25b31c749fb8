//! One stream, between whoever reads and writes it and the session that carries it.
//!
//! What comes in waits here until it is read; the peer has credit for so much and no more. What goes out waits here
//! until it is its turn; the writer waits for room. Each channel's bytes are in one buffer, so that a peer that sends
//! them one by one costs no more than their number, and the order of the channels is kept as runs.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use roost_guest_proto::{Channel, Overrun, Pulled, ReceiveWindow, ResetCode, WINDOW};
use tokio::sync::{Notify, mpsc};

use crate::entry::Control;

/// Bytes that a writer may be ahead.
const OUTGOING: usize = WINDOW as usize;
/// Past so many changes between channels, their order is kept no more exactly.
const MAX_RUNS: usize = 1024;
/// The most that one read gives.
const MAX_READ: usize = 64 * 1024;

/// Why a stream is over before its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Closed {
    /// The response is there; nothing more comes.
    #[error("it is over")]
    Over,
    #[error("{0}")]
    Lost(String),
    #[error("the guest reset the stream")]
    Reset(Option<ResetCode>),
}

#[derive(Debug)]
struct Incoming {
    channel: Channel,
    bytes: BytesMut,
    window: ReceiveWindow,
    ended: bool,
}

#[derive(Debug, Default)]
struct State {
    incoming: Vec<Incoming>,
    runs: VecDeque<(Channel, usize)>,
    outgoing: VecDeque<Bytes>,
    outgoing_len: usize,
    /// Nothing more will be written.
    finished: bool,
    /// What is written is not to be sent as a whole.
    failed: bool,
    closed: Option<Closed>,
    pid: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) number: u32,
    /// This end writes.
    pub(crate) sends: bool,
    state: Mutex<State>,
    readable: Notify,
    writable: Notify,
    /// For a session that waits for the stream by itself.
    changed: Notify,
    control: mpsc::UnboundedSender<Control>,
    /// Bytes held for all streams of the VM.
    held: Arc<AtomicUsize>,
}

impl Stream {
    pub(crate) fn new(
        number: u32,
        receives: &[Channel],
        sends: bool,
        control: mpsc::UnboundedSender<Control>,
        held: Arc<AtomicUsize>,
    ) -> Arc<Self> {
        let incoming = |&channel: &Channel| Incoming {
            channel,
            bytes: BytesMut::new(),
            window: ReceiveWindow::default(),
            ended: false,
        };
        let state = State { incoming: receives.iter().map(incoming).collect(), ..State::default() };
        Arc::new(Self {
            number,
            sends,
            state: Mutex::new(state),
            readable: Notify::new(),
            writable: Notify::new(),
            changed: Notify::new(),
            control,
            held,
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().expect("nothing panics while it holds the lock"))
    }

    // The session's side.

    /// Bytes came in. An error: more than there was credit for, or on a channel that is not this end's to read.
    pub(crate) fn received(&self, channel: Channel, bytes: &[u8]) -> Result<(), Overrun> {
        let result = self.with(|state| {
            if state.closed.is_some() {
                return Ok(());
            }
            let refused = Overrun { sent: bytes.len() as u64, permitted: 0 };
            let incoming = state.incoming.iter_mut().find(|incoming| incoming.channel == channel).ok_or(refused)?;
            if incoming.ended {
                return Err(refused);
            }
            incoming.window.received(bytes.len())?;
            if bytes.is_empty() {
                return Ok(());
            }
            incoming.bytes.extend_from_slice(bytes);
            self.held.fetch_add(bytes.len(), Ordering::Relaxed);
            let full = state.runs.len() >= MAX_RUNS;
            match state.runs.iter_mut().rev().take(if full { MAX_RUNS } else { 1 }).find(|run| run.0 == channel) {
                Some(run) => run.1 += bytes.len(),
                None => state.runs.push_back((channel, bytes.len())),
            }
            Ok(())
        });
        self.readable.notify_one();
        result
    }

    pub(crate) fn ended(&self, channel: Channel) {
        self.with(|state| {
            if let Some(incoming) = state.incoming.iter_mut().find(|incoming| incoming.channel == channel) {
                incoming.ended = true;
            }
        });
        self.readable.notify_one();
    }

    /// What to send next.
    pub(crate) fn pull(&self, buffer: &mut [u8]) -> Pulled {
        let pulled = self.with(|state| {
            if state.failed {
                return Pulled::Failed;
            }
            let mut filled = 0;
            while let Some(front) = state.outgoing.front_mut()
                && filled < buffer.len()
            {
                let part = front.len().min(buffer.len() - filled);
                buffer[filled..filled + part].copy_from_slice(&front[..part]);
                front.advance(part);
                filled += part;
                if front.is_empty() {
                    state.outgoing.pop_front();
                }
            }
            state.outgoing_len -= filled;
            match filled {
                0 if state.finished => Pulled::End,
                0 => Pulled::Empty,
                _ => Pulled::Bytes(filled),
            }
        });
        if matches!(pulled, Pulled::Bytes(_)) {
            self.writable.notify_one();
        }
        pulled
    }

    pub(crate) fn close(&self, why: Closed) {
        self.with(|state| {
            if state.closed.is_none() {
                state.closed = Some(why);
            }
            state.outgoing.clear();
            state.outgoing_len = 0;
        });
        self.readable.notify_one();
        self.writable.notify_one();
        self.changed.notify_one();
    }

    pub(crate) fn set_pid(&self, pid: u32) {
        self.with(|state| state.pid = Some(pid));
    }

    /// Until the other side read, wrote or left.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Bytes that wait to be read.
    pub(crate) fn waiting(&self) -> usize {
        self.with(|state| state.runs.iter().map(|run| run.1).sum())
    }

    // The user's side.

    pub(crate) fn pid(&self) -> Option<u32> {
        self.with(|state| state.pid)
    }

    /// Bytes that were written and have not left yet.
    pub(crate) fn unsent(&self) -> usize {
        self.with(|state| state.outgoing_len)
    }

    pub(crate) fn closed(&self) -> Option<Closed> {
        self.with(|state| state.closed.clone())
    }

    /// The next bytes; `None` at the end, of whatever kind.
    pub(crate) async fn read(&self) -> Option<(Channel, Bytes)> {
        loop {
            if let Some(next) = self.try_read() {
                return next;
            }
            self.readable.notified().await;
        }
    }

    /// `None`: nothing yet. `Some(None)`: nothing ever again.
    fn try_read(&self) -> Option<Option<(Channel, Bytes)>> {
        let (next, grant) = self.with(|state| {
            let Some(run) = state.runs.front_mut() else {
                let over = state.closed.is_some() || state.incoming.iter().all(|incoming| incoming.ended);
                return (over.then_some(None), None);
            };
            let channel = run.0;
            let len = run.1.min(MAX_READ);
            run.1 -= len;
            if run.1 == 0 {
                state.runs.pop_front();
            }
            let Some(incoming) = state.incoming.iter_mut().find(|incoming| incoming.channel == channel) else {
                return (Some(None), None);
            };
            let bytes = incoming.bytes.split_to(len).freeze();
            if incoming.bytes.is_empty() {
                incoming.bytes = BytesMut::new();
            }
            let grant = if incoming.ended { None } else { incoming.window.used(len) };
            self.held.fetch_sub(len, Ordering::Relaxed);
            (Some(Some((channel, bytes))), grant.filter(|_| state.closed.is_none()).map(|grant| (channel, grant)))
        });
        if let Some((channel, bytes)) = grant {
            // A session that is gone needs no credit.
            let _ = self.control.send(Control::Credit { stream: self.number, channel, bytes });
        }
        if matches!(next, Some(Some(_))) {
            self.changed.notify_one();
        }
        next
    }

    /// Waits for room. An error: nobody takes it any more.
    pub(crate) async fn write(&self, mut bytes: Bytes) -> Result<(), Closed> {
        while !bytes.is_empty() {
            let wrote = self.with(|state| {
                if let Some(closed) = &state.closed {
                    return Err(closed.clone());
                }
                let len = bytes.len().min(OUTGOING - state.outgoing_len);
                if len == 0 {
                    return Ok(None);
                }
                let was_empty = state.outgoing_len == 0;
                let part = bytes.split_to(len);
                // Many small writes share one piece, so that each byte costs a byte.
                match state.outgoing.back_mut() {
                    Some(back) if back.len() + len <= 4096 => {
                        let mut joined = BytesMut::with_capacity(8192);
                        joined.extend_from_slice(back);
                        joined.extend_from_slice(&part);
                        *back = joined.freeze();
                    }
                    _ => state.outgoing.push_back(part),
                }
                state.outgoing_len += len;
                Ok(Some(was_empty))
            })?;
            match wrote {
                Some(true) => self.ready(),
                Some(false) => {}
                None => self.writable.notified().await,
            }
        }
        Ok(())
    }

    /// Nothing more will be written.
    pub(crate) fn finish(&self) {
        self.with(|state| state.finished = true);
        self.ready();
    }

    /// What was written is not whole and never will be.
    pub(crate) fn fail(&self) {
        self.with(|state| state.failed = true);
        self.ready();
    }

    fn ready(&self) {
        let _ = self.control.send(Control::Ready { stream: self.number });
        self.changed.notify_one();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let waiting = self.waiting();
        self.held.fetch_sub(waiting, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(receives: &[Channel], sends: bool) -> (Arc<Stream>, mpsc::UnboundedReceiver<Control>, Arc<AtomicUsize>) {
        let (control, notices) = mpsc::unbounded_channel();
        let held = Arc::new(AtomicUsize::new(0));
        (Stream::new(1, receives, sends, control, held.clone()), notices, held)
    }

    #[tokio::test]
    async fn order_credit_and_end() {
        let (stream, mut notices, held) = stream(&[Channel::Output, Channel::Error], false);
        for (channel, bytes) in
            [(Channel::Output, &b"ab"[..]), (Channel::Error, b"c"), (Channel::Output, b"d"), (Channel::Output, b"e")]
        {
            stream.received(channel, bytes).unwrap();
        }
        assert_eq!(held.load(Ordering::Relaxed), 5);
        let mut read = Vec::new();
        for _ in 0..3 {
            read.push(stream.read().await.unwrap());
        }
        assert_eq!(read[0], (Channel::Output, Bytes::from_static(b"ab")));
        assert_eq!(read[1], (Channel::Error, Bytes::from_static(b"c")));
        assert_eq!(read[2], (Channel::Output, Bytes::from_static(b"de")));
        assert!(stream.received(Channel::Input, b"x").is_err(), "not a channel to read");
        let window = vec![0; WINDOW as usize - 4];
        stream.received(Channel::Output, &window).unwrap();
        assert!(stream.received(Channel::Output, b"x").is_err(), "beyond the window");
        stream.ended(Channel::Output);
        stream.ended(Channel::Error);
        assert!(stream.received(Channel::Error, b"x").is_err(), "behind the end");
        let mut count = 0;
        while let Some((_, bytes)) = stream.read().await {
            count += bytes.len();
        }
        assert_eq!((count, held.load(Ordering::Relaxed)), (window.len(), 0));
        assert!(notices.try_recv().is_err(), "a channel that has ended needs no credit");
    }

    #[tokio::test]
    async fn bytes_one_by_one_cost_their_number() {
        let (stream, _notices, _) = stream(&[Channel::Output, Channel::Error], false);
        for _ in 0..100_000 {
            stream.received(Channel::Output, b"o").unwrap();
            stream.received(Channel::Error, b"e").unwrap();
        }
        stream.with(|state| assert!(state.runs.len() <= MAX_RUNS));
        stream.close(Closed::Over);
        let (mut output, mut error) = (0, 0);
        while let Some((channel, bytes)) = stream.read().await {
            let (count, byte) = if channel == Channel::Output { (&mut output, b'o') } else { (&mut error, b'e') };
            *count += bytes.len();
            assert!(bytes.iter().all(|&b| b == byte));
        }
        assert_eq!((output, error), (100_000, 100_000));
    }

    #[tokio::test]
    async fn a_writer_waits_for_room() {
        let (stream, mut notices, _) = stream(&[], true);
        let writer = tokio::spawn({
            let stream = stream.clone();
            async move {
                stream.write(Bytes::from(vec![7; 3 * OUTGOING])).await.unwrap();
                stream.finish();
            }
        });
        let mut taken = 0;
        let mut buffer = vec![0; 10_000];
        loop {
            match stream.pull(&mut buffer) {
                Pulled::Bytes(len) => taken += len,
                Pulled::Empty => assert!(matches!(notices.recv().await, Some(Control::Ready { stream: 1 }))),
                Pulled::End => break,
                Pulled::Failed => panic!(),
            }
        }
        writer.await.unwrap();
        assert_eq!(taken, 3 * OUTGOING);
        stream.close(Closed::Over);
        assert_eq!(stream.write(Bytes::from_static(b"x")).await, Err(Closed::Over));
    }
}
