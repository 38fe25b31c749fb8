//! Bytes as a peer may send them: in any pieces, out of step, too long, or none that make sense.
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use proptest::prelude::*;
use roost_guest_proto::{
    Channel, DATA_CHUNK, Decoder, Encoder, Event, Frame, HEADER_LEN, Header, Key, Kind, MAX_FRAME, MAX_LINE,
    NoiseHandshake, ResetCode, Sealer, Violation,
};

/// An event without what a test cannot compare.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Line(Vec<u8>),
    Message(Vec<u8>),
    Frame(Kind, u32, Channel, Vec<u8>),
    Problem(Violation),
}

fn feed(decoder: &mut Decoder, mut bytes: &[u8]) -> Vec<Seen> {
    let mut seen = Vec::new();
    while let Some(event) = decoder.next(&mut bytes) {
        seen.push(match event {
            Event::Line(line) => Seen::Line(line.to_vec()),
            Event::Message(message) => Seen::Message(message.to_vec()),
            Event::Frame(Frame { kind, stream, channel, payload }) => Seen::Frame(kind, stream, channel, payload),
            Event::Problem(violation) => Seen::Problem(violation),
        });
    }
    assert!(bytes.is_empty(), "all that was fed is taken");
    seen
}

fn framed(compressed: bool, sealer: Option<Sealer>) -> Decoder {
    let mut decoder = Decoder::default();
    decoder.use_frames(compressed, sealer);
    decoder
}

fn sealers() -> (Sealer, Sealer) {
    let key = Key::from_bytes([3; 32]);
    let mut host = NoiseHandshake::host(&key, b"{}", b"{}");
    let (reply, _, open) = NoiseHandshake::agent(&key, b"{}", b"{}").answer(&host.first().unwrap()).unwrap();
    (host.complete(&reply).unwrap().0, open)
}

#[test]
fn lines_end_in_newlines_of_either_kind() {
    let mut decoder = Decoder::default();
    let seen = feed(&mut decoder, b"{\"a\":1}\r\n\n\r\n{}\n{\"par");
    assert_eq!(seen, [Seen::Line(b"{\"a\":1}".to_vec()), Seen::Line(b"{}".to_vec())]);
    assert!(decoder.is_partial());
    assert_eq!(feed(&mut decoder, b"t\":2}\n"), [Seen::Line(b"{\"part\":2}".to_vec())]);
    assert!(!decoder.is_partial());
}

#[test]
fn a_line_without_end_is_bounded_and_dropped() {
    let mut decoder = Decoder::default();
    let block = vec![b'x'; 64 * 1024];
    let mut problems = 0;
    for _ in 0..4096 {
        problems += feed(&mut decoder, &block).len();
        assert!(decoder.held() <= 2 * MAX_LINE, "{} bytes held", decoder.held());
    }
    assert_eq!(problems, 1);
    assert_eq!(decoder.dropped().lines, 1);
    assert_eq!(feed(&mut decoder, b"\n{}\n"), [Seen::Line(b"{}".to_vec())]);
}

#[test]
fn the_longest_line_passes() {
    let mut decoder = Decoder::default();
    let mut line = vec![b'x'; MAX_LINE];
    line.push(b'\n');
    assert_eq!(feed(&mut decoder, &line), [Seen::Line(vec![b'x'; MAX_LINE])]);
    line.insert(0, b'x');
    assert_eq!(feed(&mut decoder, &line), [Seen::Problem(Violation::LongLine)]);
}

#[test]
fn a_hello_at_a_boundary_is_found_at_once() {
    let mut decoder = framed(false, None);
    let mut encoder = Encoder::default();
    encoder.use_frames(false, None);
    let mut bytes = Vec::new();
    encoder.data(1, Channel::Input, b"abc", &mut bytes);
    bytes.extend_from_slice(b"{\"type\":\"hello\"}\n");
    let seen = feed(&mut decoder, &bytes);
    assert_eq!(seen[0], Seen::Frame(Kind::Data, 1, Channel::Input, b"abc".to_vec()));
    assert!(matches!(seen[1], Seen::Problem(Violation::OutOfStep(_))));
    assert_eq!(seen[2], Seen::Line(b"{\"type\":\"hello\"}".to_vec()));
    assert!(decoder.is_searching());
    decoder.use_frames(false, None);
    let mut bytes = Vec::new();
    encoder.message(b"{}", &mut bytes);
    assert_eq!(feed(&mut decoder, &bytes), [Seen::Message(b"{}".to_vec())]);
}

/// Whatever part of a frame was taken in, the newlines that a host puts in front of a second hello push it out.
#[test]
fn a_half_read_frame_is_pushed_out_by_newlines() {
    let mut whole = Vec::new();
    let mut encoder = Encoder::default();
    encoder.use_frames(false, None);
    encoder.data(1, Channel::Input, &[b'{'; DATA_CHUNK], &mut whole);
    let mut largest = Header::new(Kind::Data, 1, Channel::Input, MAX_FRAME as u32).encode().to_vec();
    largest.push(1);
    let cuts = (0..HEADER_LEN + 2).chain([whole.len() - 1]).map(|cut| whole[..cut].to_vec()).chain([largest]);
    for start in cuts {
        let mut decoder = framed(false, None);
        feed(&mut decoder, &start);
        let mut hello = vec![b'\n'; MAX_FRAME + HEADER_LEN];
        hello.extend_from_slice(b"{\"type\":\"hello\"}\n");
        let seen = feed(&mut decoder, &hello);
        assert_eq!(seen.last(), Some(&Seen::Line(b"{\"type\":\"hello\"}".to_vec())), "cut after {}", start.len());
    }
}

#[test]
fn in_search_only_what_may_be_a_hello_comes_out() {
    let mut decoder = framed(false, None);
    let mut bytes = b"\n".to_vec();
    bytes.extend_from_slice(b"no json\n");
    bytes.extend_from_slice(&vec![b'{'; 1 << 20]);
    bytes.extend_from_slice(b"\n{\"type\":\"hello\"}\n");
    let seen = feed(&mut decoder, &bytes);
    assert_eq!(seen.len(), 2, "{:?}", seen.len());
    assert_eq!(seen[1], Seen::Line(b"{\"type\":\"hello\"}".to_vec()));
    assert!(decoder.held() < 128 * 1024);
}

#[test]
fn a_message_too_long_is_dropped_and_the_next_one_is_not() {
    let mut decoder = framed(false, None);
    let mut encoder = Encoder::default();
    encoder.use_frames(false, None);
    let mut bytes = Vec::new();
    encoder.message(&vec![b'a'; MAX_LINE + 1], &mut bytes);
    encoder.message(&vec![b'b'; MAX_LINE], &mut bytes);
    let seen = feed(&mut decoder, &bytes);
    assert_eq!(seen, [Seen::Problem(Violation::LongMessage), Seen::Message(vec![b'b'; MAX_LINE])]);
    assert_eq!(decoder.dropped().messages, 1);
}

#[test]
fn compressed_frames_are_bounded() {
    let mut decoder = framed(true, None);
    let mut encoder = Encoder::default();
    encoder.use_frames(true, None);
    let mut bytes = Vec::new();
    encoder.data(1, Channel::Output, &[b'a'; 30_000], &mut bytes);
    assert!(bytes.len() < 1000, "{} bytes", bytes.len());
    assert_eq!(feed(&mut decoder, &bytes), [Seen::Frame(Kind::Data, 1, Channel::Output, vec![b'a'; 30_000])]);
    assert_eq!(feed(&mut framed(false, None), &bytes), [Seen::Problem(Violation::Compressed)], "not agreed on");

    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
    let mut header = Header::new(Kind::Data, 1, Channel::Output, bomb.len() as u32);
    header.compressed = true;
    let bytes = [header.encode().as_slice(), &bomb].concat();
    assert_eq!(feed(&mut decoder, &bytes), [Seen::Problem(Violation::Compressed)]);
}

#[test]
fn plain_and_sealed_do_not_mix() {
    let mut encoder = Encoder::default();
    encoder.use_frames(false, None);
    let mut plain = Vec::new();
    encoder.message(b"{}", &mut plain);
    let (seal, open) = sealers();
    let mut decoder = framed(false, Some(open));
    assert_eq!(feed(&mut decoder, &plain), [Seen::Problem(Violation::NotSealed)]);
    assert!(decoder.is_searching());

    encoder.use_frames(false, Some(seal));
    let mut sealed = Vec::new();
    encoder.message(b"{}", &mut sealed);
    assert_eq!(feed(&mut framed(false, None), &sealed), [Seen::Problem(Violation::NoKeys)]);
}

#[test]
fn numbers_have_four_bytes() {
    let mut decoder = framed(false, None);
    let bytes = [Header::new(Kind::Credit, 1, Channel::Input, 3).encode().as_slice(), &[1, 2, 3]].concat();
    assert_eq!(feed(&mut decoder, &bytes), [Seen::Problem(Violation::Payload(Kind::Credit))]);
    let bytes = [Header::new(Kind::End, 1, Channel::Input, 1).encode().as_slice(), &[1]].concat();
    assert_eq!(feed(&mut decoder, &bytes), [Seen::Problem(Violation::Payload(Kind::End))]);
}

#[derive(Debug, Clone)]
enum Say {
    Message(usize),
    Data(u32, Channel, Vec<u8>),
    Credit(u32, Channel, u32),
    End(u32, Channel),
    Reset(u32),
}

fn channel() -> impl Strategy<Value = Channel> {
    prop_oneof![Just(Channel::Input), Just(Channel::Output), Just(Channel::Error)]
}

fn say() -> impl Strategy<Value = Say> {
    prop_oneof![
        prop_oneof![1usize..100, 30_000usize..200_000].prop_map(Say::Message),
        (any::<u32>(), channel(), proptest::collection::vec(any::<u8>(), 1..2000))
            .prop_map(|(s, c, d)| Say::Data(s, c, d)),
        (any::<u32>(), channel(), any::<u32>()).prop_map(|(s, c, n)| Say::Credit(s, c, n)),
        (any::<u32>(), channel()).prop_map(|(s, c)| Say::End(s, c)),
        any::<u32>().prop_map(Say::Reset),
    ]
}

proptest! {
    /// What one end says, the other hears, in whatever pieces it comes, compressed, sealed or neither.
    #[test]
    fn both_ends_agree(
        sayings in proptest::collection::vec(say(), 0..20),
        piece in prop_oneof![1usize..40, 1000usize..70_000],
        compressed: bool,
        sealed: bool,
    ) {
        let (seal, open) = if sealed { let (a, b) = sealers(); (Some(a), Some(b)) } else { (None, None) };
        let mut encoder = Encoder::default();
        encoder.use_frames(compressed, seal);
        let mut decoder = framed(compressed, open);
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for saying in sayings {
            match saying {
                Say::Message(len) => {
                    let message = vec![b'm'; len];
                    encoder.message(&message, &mut bytes);
                    expected.push(Seen::Message(message));
                }
                Say::Data(stream, channel, data) => {
                    encoder.data_from(stream, channel, data.len(), &mut bytes, |buffer| {
                        buffer.copy_from_slice(&data);
                        (data.len(), ())
                    });
                    expected.push(Seen::Frame(Kind::Data, stream, channel, data));
                }
                Say::Credit(stream, channel, number) => {
                    encoder.credit(stream, channel, number, &mut bytes);
                    expected.push(Seen::Frame(Kind::Credit, stream, channel, number.to_le_bytes().to_vec()));
                }
                Say::End(stream, channel) => {
                    encoder.end(stream, channel, &mut bytes);
                    expected.push(Seen::Frame(Kind::End, stream, channel, vec![]));
                }
                Say::Reset(stream) => {
                    encoder.reset_stream(stream, ResetCode::Failed, &mut bytes);
                    expected.push(Seen::Frame(Kind::Reset, stream, Channel::Input, vec![4, 0, 0, 0]));
                }
            }
        }
        let seen: Vec<_> = bytes.chunks(piece).flat_map(|part| feed(&mut decoder, part)).collect();
        prop_assert_eq!(seen, expected);
        prop_assert!(!decoder.is_partial());
    }

    /// Any bytes at all: memory stays bounded, and a hello behind enough newlines is heard.
    #[test]
    fn any_bytes_then_a_hello(
        noise in proptest::collection::vec(prop_oneof![Just(0xA7u8), Just(b'\n'), Just(b'{'), any::<u8>()], 0..3000),
        frames: bool,
        piece in 1usize..500,
    ) {
        let mut decoder = if frames { framed(true, None) } else { Decoder::default() };
        for part in noise.chunks(piece) {
            feed(&mut decoder, part);
            prop_assert!(decoder.held() <= 2 * MAX_LINE + MAX_FRAME);
        }
        let mut hello = vec![b'\n'; MAX_FRAME + HEADER_LEN];
        hello.extend_from_slice(b"{\"type\":\"hello\"}\n");
        let seen = feed(&mut decoder, &hello);
        prop_assert_eq!(seen.last(), Some(&Seen::Line(b"{\"type\":\"hello\"}".to_vec())));
    }
}
