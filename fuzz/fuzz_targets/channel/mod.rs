//! What both ends of the agent channel do with bytes: take them apart in any pieces, within bounds.

use roost_guest_proto::{
    Channel, Decoder, Event, HEADER_LEN, Header, Kind, MAX_FRAME, MAX_LINE, TreeDecoder, Violation,
};
use serde_json::Value;

/// How an input is to be read: its first byte.
pub struct Script<'a> {
    /// Frames from the start; else lines, until one of them asks for frames.
    frames: bool,
    compressed: bool,
    /// So many bytes at a time. 0: all at once.
    piece: usize,
    /// What is fed.
    bytes: std::borrow::Cow<'a, [u8]>,
}

impl<'a> Script<'a> {
    pub fn new(input: &'a [u8]) -> Option<Self> {
        let (&flags, rest) = input.split_first()?;
        let frames = flags & 1 != 0;
        let bytes = if frames && flags & 4 != 0 { with_headers(rest).into() } else { rest.into() };
        Some(Self { frames, compressed: flags & 2 != 0, piece: usize::from(flags >> 3), bytes })
    }

    /// Everything that comes out. `line` says whether the session goes on in frames.
    pub fn run(&self, mut line: impl FnMut(&[u8]) -> bool, mut message: impl FnMut(&[u8])) {
        let mut whole = Vec::new();
        self.feed(self.bytes.len().max(1), &mut line, &mut |event| whole.push(event));
        if self.piece > 0 {
            let mut pieces = Vec::new();
            self.feed(self.piece, &mut line, &mut |event| pieces.push(event));
            assert_eq!(whole, pieces, "pieces of {} bytes tell something else", self.piece);
        }
        let mut tree = TreeDecoder::default();
        let mut in_step = true;
        for event in &whole {
            match event {
                Seen::Message(text) => message(text),
                Seen::Frame(Kind::Data, _, _, bytes) => {
                    let mut bytes = bytes.as_slice();
                    // A tree that is broken is over.
                    while in_step {
                        match tree.next(&mut bytes) {
                            Ok(Some(_)) => {}
                            Ok(None) => break,
                            Err(_) => in_step = false,
                        }
                    }
                }
                Seen::Line(_) | Seen::Frame(..) | Seen::Problem(_) => {}
            }
        }
    }

    fn feed(&self, piece: usize, line: &mut dyn FnMut(&[u8]) -> bool, seen: &mut dyn FnMut(Seen)) {
        let mut decoder = Decoder::default();
        if self.frames {
            decoder.use_frames(self.compressed, None);
        }
        for mut input in self.bytes.chunks(piece) {
            while let Some(event) = decoder.next(&mut input) {
                seen(match event {
                    Event::Line(text) => {
                        assert!(!text.is_empty() && text.len() <= MAX_LINE && !text.contains(&b'\n'));
                        if line(&text) {
                            decoder.use_frames(self.compressed, None);
                        }
                        Seen::Line(text.to_vec())
                    }
                    Event::Message(text) => {
                        assert!(!text.is_empty() && text.len() <= MAX_LINE);
                        Seen::Message(text.to_vec())
                    }
                    Event::Frame(frame) => {
                        assert!(frame.payload.len() <= MAX_FRAME);
                        let is_number = matches!(frame.kind, Kind::Credit | Kind::Reset);
                        assert!(!is_number || frame.number().is_some());
                        Seen::Frame(frame.kind, frame.stream, frame.channel, frame.payload)
                    }
                    Event::Problem(violation) => Seen::Problem(violation),
                });
            }
            assert!(input.is_empty(), "all that was fed is taken");
            assert!(decoder.held() <= 2 * MAX_LINE + MAX_FRAME, "{} bytes held", decoder.held());
        }
    }
}

/// An event without what cannot be compared.
#[derive(Debug, PartialEq)]
enum Seen {
    Line(Vec<u8>),
    Message(Vec<u8>),
    Frame(Kind, u32, Channel, Vec<u8>),
    Problem(Violation),
}

/// Frames whose headers are right, so that a changed byte does not end at the checksum: of each twelve bytes, what a
/// header has of its own is kept, and its length is what there is.
fn with_headers(mut input: &[u8]) -> Vec<u8> {
    let mut frames = Vec::with_capacity(input.len() + HEADER_LEN);
    while let Some((template, rest)) = input.split_first_chunk::<HEADER_LEN>() {
        let kinds = [Kind::Message, Kind::Data, Kind::Credit, Kind::End, Kind::Reset, Kind::Sealed];
        let channels = [Channel::Input, Channel::Output, Channel::Error];
        let wanted = usize::from(u16::from_le_bytes([template[8], template[9]]));
        let (payload, rest) = rest.split_at(wanted.min(rest.len()));
        let kind = kinds[usize::from(template[1].wrapping_sub(1)) % kinds.len()];
        let stream = u32::from_le_bytes([template[4], template[5], template[6], template[7]]);
        let channel = channels[usize::from(template[2] & 3) % channels.len()];
        let mut header = Header::new(kind, stream, channel, payload.len() as u32);
        header.compressed = template[2] & 4 != 0;
        header.continued = template[2] & 8 != 0;
        frames.extend(header.encode());
        frames.extend(payload);
        input = rest;
    }
    frames.extend(input);
    frames
}

/// Whether a value need not come back as it was, in the last digit of some number.
pub fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => {
            let exact = |value: f64| value.fract() == 0.0 && value.abs() < (1u64 << f64::MANTISSA_DIGITS) as f64;
            number.is_f64() && !number.as_f64().is_some_and(exact)
        }
        Value::Array(values) => values.iter().any(has_fraction),
        Value::Object(fields) => fields.values().any(has_fraction),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}
