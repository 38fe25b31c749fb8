//! Who is sent when: everybody in turn, nobody beyond their credit.
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use roost_guest_proto::{Channel, DATA_CHUNK, Decoder, Encoder, Event, Kind, Outbox, Pulled, ReceiveWindow, WINDOW};

struct Line {
    outbox: Outbox,
    encoder: Encoder,
    decoder: Decoder,
}

impl Line {
    fn new() -> Self {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        encoder.use_frames(false, None);
        decoder.use_frames(false, None);
        Self { outbox: Outbox::new(1 << 20), encoder, decoder }
    }

    /// What arrives when up to `limit` bytes leave.
    fn deliver(&mut self, limit: usize, pull: impl FnMut(u32, Channel, &mut [u8]) -> Pulled) -> Vec<Event> {
        let mut out = Vec::new();
        self.outbox.fill(&mut self.encoder, &mut out, limit, pull);
        let mut input = out.as_slice();
        std::iter::from_fn(|| self.decoder.next(&mut input)).collect()
    }
}

fn endless(_: u32, _: Channel, buffer: &mut [u8]) -> Pulled {
    Pulled::Bytes(buffer.len())
}

#[test]
fn messages_go_first_and_metrics_behind_answers() {
    let mut line = Line::new();
    line.outbox.open(1, Channel::Output);
    line.outbox.ready(1, Channel::Output);
    line.outbox.metrics(b"metrics".to_vec());
    line.outbox.message(b"answer".to_vec()).unwrap();
    let events = line.deliver(200_000, endless);
    assert!(matches!(&events[0], Event::Message(message) if message.as_slice() == b"answer"));
    assert!(matches!(&events[1], Event::Message(message) if message.as_slice() == b"metrics"));
    assert!(matches!(&events[2], Event::Frame(frame) if frame.kind == Kind::Data));
}

#[test]
fn old_metrics_give_way_and_answers_do_not() {
    let mut outbox = Outbox::new(1000);
    for _ in 0..300 {
        outbox.metrics(vec![0; 10]);
        assert!(outbox.waiting() <= 1000);
    }
    outbox.message(vec![0; 100]).unwrap_err();
    let mut outbox = Outbox::new(1000);
    outbox.message(vec![0; 5000]).unwrap();
    let full = outbox.message(vec![0; 1]).unwrap_err();
    assert_eq!((full.waiting, full.permitted), (5000, 1000));
}

#[test]
fn a_stream_without_credit_waits_and_the_others_do_not() {
    let mut line = Line::new();
    for stream in [1, 2] {
        line.outbox.open(stream, Channel::Output);
        line.outbox.ready(stream, Channel::Output);
    }
    let count = |events: &[Event], stream: u32| -> usize {
        let of = |event: &Event| matches!(event, Event::Frame(frame) if frame.stream == stream);
        let len = |event: &Event| if let Event::Frame(frame) = event { frame.payload.len() } else { 0 };
        events.iter().filter(|event| of(event)).map(len).sum()
    };
    let events = line.deliver(10 << 20, endless);
    assert_eq!((count(&events, 1), count(&events, 2)), (WINDOW as usize, WINDOW as usize));
    assert!(line.outbox.is_idle());
    line.outbox.grant(2, Channel::Output, 7);
    let events = line.deliver(10 << 20, endless);
    assert_eq!((count(&events, 1), count(&events, 2)), (0, 7));
}

#[test]
fn sixty_four_streams_get_the_same() {
    let mut line = Line::new();
    for stream in 1..=64 {
        line.outbox.open(stream, Channel::Output);
        line.outbox.ready(stream, Channel::Output);
    }
    // All of them speak without end, and there is room for one chunk at a time.
    let mut sent = BTreeMap::<u32, usize>::new();
    for _ in 0..64 {
        for event in line.deliver(DATA_CHUNK, endless) {
            let Event::Frame(frame) = event else { panic!() };
            *sent.entry(frame.stream).or_default() += 1;
        }
    }
    assert_eq!(sent.len(), 64, "everybody had a turn");
    assert!(sent.values().all(|&turns| turns == 1), "{sent:?}");
}

#[test]
fn an_end_comes_after_the_data_and_once() {
    let mut line = Line::new();
    line.outbox.open(5, Channel::Error);
    line.outbox.ready(5, Channel::Error);
    let mut left = 100_000usize;
    let events = line.deliver(1 << 20, |_, _, buffer| {
        let len = buffer.len().min(left);
        left -= len;
        if len == 0 { Pulled::End } else { Pulled::Bytes(len) }
    });
    let Some(Event::Frame(last)) = events.last() else { panic!() };
    assert_eq!(last.kind, Kind::End);
    assert!(!line.outbox.is_open(5, Channel::Error));
    line.outbox.ready(5, Channel::Error);
    assert!(line.outbox.is_idle());
}

proptest! {
    /// Random sources, a receiver that uses what it got at random: all arrives, in order, and no window is overrun.
    #[test]
    fn all_arrives(lens in proptest::collection::vec(0usize..600_000, 1..6), steps in proptest::collection::vec(1usize..300_000, 1..8)) {
        let mut line = Line::new();
        let mut left: BTreeMap<u32, usize> = BTreeMap::new();
        let mut windows: BTreeMap<u32, ReceiveWindow> = BTreeMap::new();
        let mut got: BTreeMap<u32, usize> = BTreeMap::new();
        for (at, &len) in lens.iter().enumerate() {
            let stream = at as u32 + 1;
            line.outbox.open(stream, Channel::Output);
            line.outbox.ready(stream, Channel::Output);
            left.insert(stream, len);
            windows.insert(stream, ReceiveWindow::default());
        }
        let mut ended = 0;
        let mut rounds = 0;
        let mut steps = steps.iter().cycle();
        while ended < lens.len() {
            rounds += 1;
            prop_assert!(rounds < 10_000, "it does not come to an end");
            let limit = *steps.next().unwrap();
            let events = line.deliver(limit, |stream, _, buffer| {
                let left = left.get_mut(&stream).unwrap();
                if *left == 0 {
                    return Pulled::End;
                }
                let len = buffer.len().min(*left);
                *left -= len;
                Pulled::Bytes(len)
            });
            for event in events {
                let Event::Frame(frame) = event else { panic!() };
                if frame.kind == Kind::End {
                    ended += 1;
                    continue;
                }
                let window = windows.get_mut(&frame.stream).unwrap();
                prop_assert!(window.received(frame.payload.len()).is_ok());
                *got.entry(frame.stream).or_default() += frame.payload.len();
                if let Some(grant) = window.used(frame.payload.len()) {
                    line.outbox.grant(frame.stream, Channel::Output, grant);
                }
            }
        }
        for (at, &len) in lens.iter().enumerate() {
            prop_assert_eq!(got.get(&(at as u32 + 1)).copied().unwrap_or(0), len);
        }
    }
}
