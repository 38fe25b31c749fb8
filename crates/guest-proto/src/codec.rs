//! Bytes into events and back. See the crate's documentation for the decoder's states.

use std::mem;

use zeroize::Zeroizing;

use crate::frame::{Channel, DATA_CHUNK, Frame, HEADER_LEN, Header, HeaderError, Kind, MAGIC, MAX_FRAME, ResetCode};
use crate::seal::{SealError, Sealer};
use crate::{MAX_LINE, request};

/// What came in.
#[derive(Debug)]
pub enum Event {
    /// A line without its newline; never empty. Of a decoder that is [`Decoder::is_searching`], it is only
    /// what may be a hello or a handshake, and anything else is to be ignored.
    Line(Zeroizing<Vec<u8>>),
    /// A whole message that came in frames.
    Message(Zeroizing<Vec<u8>>),
    /// A frame of a stream: data, credit, end or reset.
    Frame(Frame),
    /// Something was refused, and counted. Nothing needs to be done.
    Problem(Violation),
}

/// How the peer broke the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("a line longer than {MAX_LINE} bytes is dropped")]
    LongLine,
    #[error("a message longer than {MAX_LINE} bytes is dropped")]
    LongMessage,
    #[error("out of step, looking for a hello")]
    OutOfStep(#[source] HeaderError),
    #[error("a frame that does not open under this session's keys")]
    Seal(#[source] SealError),
    #[error("a frame that is not sealed, in a session that is")]
    NotSealed,
    #[error("a sealed frame in a session that has no keys")]
    NoKeys,
    #[error("a compressed frame that was not agreed on, or that does not unpack to at most {MAX_FRAME} bytes")]
    Compressed,
    #[error("a frame of kind {0:?} with the wrong length")]
    Payload(Kind),
}

/// How often something was refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    pub lines: u64,
    pub messages: u64,
    /// Bytes skipped in search of a hello.
    pub bytes: u64,
    pub frames: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Lines,
    Frames,
    Searching,
}

/// Takes in bytes, gives out events, holds at most one line or frame, and one message.
#[derive(Debug)]
pub struct Decoder {
    mode: Mode,
    line: Zeroizing<Vec<u8>>,
    /// Drop what comes up to the next newline.
    skip_line: bool,
    header: [u8; HEADER_LEN],
    header_filled: usize,
    frame: Option<Header>,
    payload: Vec<u8>,
    message: Zeroizing<Vec<u8>>,
    skip_message: bool,
    sealer: Option<Sealer>,
    compressed: bool,
    dropped: Dropped,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            mode: Mode::Lines,
            line: Zeroizing::default(),
            skip_line: false,
            header: [0; HEADER_LEN],
            header_filled: 0,
            frame: None,
            payload: Vec::new(),
            message: Zeroizing::default(),
            skip_message: false,
            sealer: None,
            compressed: false,
            dropped: Dropped::default(),
        }
    }
}

impl Decoder {
    /// Forgets everything but the counts: a new connection, which begins with lines.
    pub fn reset(&mut self) {
        *self = Self { dropped: self.dropped, ..Self::default() };
    }

    /// From the next byte on, frames. Called while the line that agreed on them is handled, so that the bytes
    /// behind it are read as frames.
    pub fn use_frames(&mut self, compressed: bool, sealer: Option<Sealer>) {
        *self = Self { mode: Mode::Frames, compressed, sealer, dropped: self.dropped, ..Self::default() };
    }

    /// From the next byte on, lines: the answer to a hello that asks for no frames, or for sealing first.
    pub fn use_lines(&mut self) {
        self.reset();
    }

    /// Goes on with the frames of the session that there is: the line that was found told nothing new.
    pub fn resume_frames(&mut self) {
        if self.mode == Mode::Searching {
            self.mode = Mode::Frames;
            self.line = Zeroizing::default();
            self.skip_line = false;
        }
    }

    /// Out of step, and looking for a line that starts again.
    pub fn is_searching(&self) -> bool {
        self.mode == Mode::Searching
    }

    /// In the middle of a line or frame: the peer owes the rest.
    pub fn is_partial(&self) -> bool {
        match self.mode {
            Mode::Lines => !self.line.is_empty() || self.skip_line,
            Mode::Frames => self.header_filled > 0 || self.frame.is_some() || !self.message.is_empty(),
            Mode::Searching => false,
        }
    }

    pub fn dropped(&self) -> Dropped {
        self.dropped
    }

    /// Bytes held for what is not yet whole.
    pub fn held(&self) -> usize {
        self.line.capacity() + self.payload.capacity() + self.message.capacity()
    }

    /// The next event that `input` gives, which is advanced past what was used; `None` when it is used up.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Event> {
        while !input.is_empty() {
            let event = match self.mode {
                Mode::Lines => self.next_line(input, MAX_LINE),
                Mode::Searching => self.next_line(input, request::MAX_HELLO),
                Mode::Frames => self.next_frame(input),
            };
            if event.is_some() {
                return event;
            }
        }
        None
    }

    fn next_line(&mut self, input: &mut &[u8], limit: usize) -> Option<Event> {
        let newline = memchr::memchr(b'\n', input);
        let (part, rest) = match newline {
            Some(at) => (&input[..at], &input[at + 1..]),
            None => (*input, &input[input.len()..]),
        };
        *input = rest;
        let searching = self.mode == Mode::Searching;
        if searching {
            self.dropped.bytes += part.len() as u64 + u64::from(newline.is_some());
        }
        let mut problem = None;
        if !self.skip_line {
            // What is searched for begins with a brace, so that other bytes cost nothing.
            let hopeless = searching && self.line.is_empty() && part.first().is_some_and(|&byte| byte != b'{');
            if hopeless || self.line.len() + part.len() > limit {
                self.line = Zeroizing::default();
                self.skip_line = true;
                if !searching {
                    self.dropped.lines += 1;
                    problem = Some(Event::Problem(Violation::LongLine));
                }
            } else {
                extend(&mut self.line, part);
            }
        }
        if newline.is_some() {
            if mem::take(&mut self.skip_line) {
                return problem;
            }
            let mut line = mem::take(&mut self.line);
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if line.is_empty() {
                return None;
            }
            return Some(Event::Line(line));
        }
        problem
    }

    fn next_frame(&mut self, input: &mut &[u8]) -> Option<Event> {
        let header = match self.frame {
            Some(header) => header,
            None => {
                if self.header_filled == 0 && input[0] != MAGIC {
                    return self.out_of_step(HeaderError::Magic(input[0]), true);
                }
                let part = input.len().min(HEADER_LEN - self.header_filled);
                self.header[self.header_filled..][..part].copy_from_slice(&input[..part]);
                self.header_filled += part;
                *input = &input[part..];
                if self.header_filled < HEADER_LEN {
                    return None;
                }
                match Header::decode(&self.header) {
                    Ok(header) => {
                        self.header_filled = 0;
                        self.payload = Vec::with_capacity(header.len as usize);
                        self.frame = Some(header);
                        header
                    }
                    Err(error) => return self.out_of_step(error, false),
                }
            }
        };
        let part = input.len().min(header.len as usize - self.payload.len());
        self.payload.extend_from_slice(&input[..part]);
        *input = &input[part..];
        if self.payload.len() < header.len as usize {
            return None;
        }
        self.frame = None;
        let payload = mem::take(&mut self.payload);
        self.whole_frame(header, payload)
    }

    /// `at_boundary`: the byte that is wrong is where a frame would begin, so it may begin a line.
    fn out_of_step(&mut self, error: HeaderError, at_boundary: bool) -> Option<Event> {
        self.mode = Mode::Searching;
        self.line = Zeroizing::default();
        self.message = Zeroizing::default();
        self.skip_message = false;
        self.skip_line = !at_boundary;
        self.dropped.frames += 1;
        if !at_boundary {
            // What was taken for a header may hold the newline in front of the hello, but no whole hello.
            let header = self.header;
            let mut rest = &header[..mem::take(&mut self.header_filled)];
            while !rest.is_empty() {
                let _ = self.next_line(&mut rest, request::MAX_HELLO);
            }
        }
        Some(Event::Problem(Violation::OutOfStep(error)))
    }

    fn violation(&mut self, violation: Violation) -> Option<Event> {
        self.dropped.frames += 1;
        Some(Event::Problem(violation))
    }

    /// Without keys in common there is no way on but a new hello.
    fn lost(&mut self, violation: Violation) -> Option<Event> {
        self.mode = Mode::Searching;
        self.line = Zeroizing::default();
        self.skip_line = false;
        self.message = Zeroizing::default();
        self.skip_message = false;
        self.violation(violation)
    }

    fn whole_frame(&mut self, mut header: Header, mut payload: Vec<u8>) -> Option<Event> {
        match (&mut self.sealer, header.kind) {
            (Some(sealer), Kind::Sealed) => match sealer.open(&payload) {
                Ok((inner, plain)) => (header, payload) = (inner, plain),
                Err(error) => return self.lost(Violation::Seal(error)),
            },
            (Some(_), _) => return self.lost(Violation::NotSealed),
            (None, Kind::Sealed) => return self.lost(Violation::NoKeys),
            (None, _) => {}
        }
        if header.compressed {
            let unpacked = if self.compressed { zstd::bulk::decompress(&payload, MAX_FRAME).ok() } else { None };
            let Some(unpacked) = unpacked else { return self.violation(Violation::Compressed) };
            payload = unpacked;
        }
        match header.kind {
            Kind::Message => self.whole_part(header.continued, payload),
            Kind::Data | Kind::End if header.kind == Kind::Data || payload.is_empty() => {
                Some(Event::Frame(Frame { kind: header.kind, stream: header.stream, channel: header.channel, payload }))
            }
            Kind::Credit | Kind::Reset if payload.len() == 4 => {
                Some(Event::Frame(Frame { kind: header.kind, stream: header.stream, channel: header.channel, payload }))
            }
            kind => self.violation(Violation::Payload(kind)),
        }
    }

    fn whole_part(&mut self, continued: bool, payload: Vec<u8>) -> Option<Event> {
        let payload = Zeroizing::new(payload);
        if !self.skip_message {
            if self.message.len() + payload.len() > MAX_LINE {
                self.message = Zeroizing::default();
                self.skip_message = continued;
                self.dropped.messages += 1;
                return Some(Event::Problem(Violation::LongMessage));
            }
            if self.message.is_empty() && !continued {
                return if payload.is_empty() { None } else { Some(Event::Message(payload)) };
            }
            extend(&mut self.message, &payload);
        }
        if continued || mem::take(&mut self.skip_message) {
            return None;
        }
        let message = mem::take(&mut self.message);
        if message.is_empty() { None } else { Some(Event::Message(message)) }
    }
}

/// Appends without leaving an unwiped copy behind when the buffer has to move.
fn extend(buffer: &mut Zeroizing<Vec<u8>>, bytes: &[u8]) {
    if buffer.capacity() - buffer.len() < bytes.len() {
        let capacity = (buffer.len() + bytes.len()).next_power_of_two().max(256);
        let mut larger = Zeroizing::new(Vec::with_capacity(capacity));
        larger.extend_from_slice(buffer);
        *buffer = larger;
    }
    buffer.extend_from_slice(bytes);
}

/// Turns messages and frames into bytes: lines first, frames once they were agreed on.
#[derive(Debug, Default)]
pub struct Encoder {
    frames: bool,
    sealer: Option<Sealer>,
    packer: Option<Packer>,
    scratch: Zeroizing<Vec<u8>>,
}

impl Encoder {
    /// Forgets everything: a new connection, which begins with lines.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// From now on, frames.
    pub fn use_frames(&mut self, compress: bool, sealer: Option<Sealer>) {
        *self = Self { frames: true, sealer, packer: compress.then(Packer::default), scratch: Zeroizing::default() };
    }

    /// Frames, rather than lines.
    pub fn is_framed(&self) -> bool {
        self.frames
    }

    /// A line, whatever was agreed on: a hello, a handshake, what an old peer says.
    pub fn line(&self, json: &[u8], out: &mut Vec<u8>) {
        debug_assert!(!json.contains(&b'\n'), "JSON on one line");
        if self.frames {
            // A peer that is out of step looks for a newline first.
            out.push(b'\n');
        }
        out.extend_from_slice(json);
        out.push(b'\n');
    }

    /// A message in the form that was agreed on. It must not be longer than [`MAX_LINE`].
    pub fn message(&mut self, json: &[u8], out: &mut Vec<u8>) {
        if !self.frames {
            return self.line(json, out);
        }
        let mut parts = json.chunks(DATA_CHUNK).peekable();
        while let Some(part) = parts.next() {
            let mut header = Header::new(Kind::Message, 0, Channel::Input, 0);
            header.continued = parts.peek().is_some();
            self.frame(header, part, out);
        }
    }

    /// Bytes of a stream, in as many frames as it takes. Credit is the caller's affair.
    pub fn data(&mut self, stream: u32, channel: Channel, bytes: &[u8], out: &mut Vec<u8>) {
        for part in bytes.chunks(DATA_CHUNK) {
            self.frame(Header::new(Kind::Data, stream, channel, 0), part, out);
        }
    }

    /// One data frame of up to `limit` bytes (at most [`DATA_CHUNK`]) that `read` puts in place; nothing
    /// where it reads nothing. Without sealing and compression, the bytes are not copied.
    pub fn data_from<R>(
        &mut self,
        stream: u32,
        channel: Channel,
        limit: usize,
        out: &mut Vec<u8>,
        read: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> (usize, R) {
        let limit = limit.min(DATA_CHUNK);
        if self.sealer.is_some() || self.packer.is_some() {
            let mut scratch = mem::take(&mut self.scratch);
            scratch.resize(limit, 0);
            let (len, result) = read(&mut scratch);
            let len = len.min(limit);
            if len > 0 {
                self.frame(Header::new(Kind::Data, stream, channel, 0), &scratch[..len], out);
            }
            self.scratch = scratch;
            return (len, result);
        }
        let start = out.len();
        out.resize(start + HEADER_LEN + limit, 0);
        let (len, result) = read(&mut out[start + HEADER_LEN..]);
        let len = len.min(limit);
        if len == 0 {
            out.truncate(start);
            return (0, result);
        }
        out.truncate(start + HEADER_LEN + len);
        let header = Header::new(Kind::Data, stream, channel, len as u32);
        out[start..start + HEADER_LEN].copy_from_slice(&header.encode());
        (len, result)
    }

    /// `bytes` more may be sent on this channel.
    pub fn credit(&mut self, stream: u32, channel: Channel, bytes: u32, out: &mut Vec<u8>) {
        self.frame(Header::new(Kind::Credit, stream, channel, 0), &bytes.to_le_bytes(), out);
    }

    /// Nothing more comes on this channel.
    pub fn end(&mut self, stream: u32, channel: Channel, out: &mut Vec<u8>) {
        self.frame(Header::new(Kind::End, stream, channel, 0), &[], out);
    }

    /// The stream is over.
    pub fn reset_stream(&mut self, stream: u32, code: ResetCode, out: &mut Vec<u8>) {
        self.frame(Header::new(Kind::Reset, stream, Channel::Input, 0), &(code as u32).to_le_bytes(), out);
    }

    fn frame(&mut self, mut header: Header, payload: &[u8], out: &mut Vec<u8>) {
        debug_assert!(self.frames, "a frame before frames were agreed on");
        let packed = self.packer.as_mut().and_then(|packer| packer.pack(payload));
        header.compressed = packed.is_some();
        let payload = packed.as_deref().unwrap_or(payload);
        match &mut self.sealer {
            Some(sealer) => sealer.seal(header, payload, out),
            None => {
                header.len = payload.len() as u32;
                out.extend_from_slice(&header.encode());
                out.extend_from_slice(payload);
            }
        }
    }
}

/// Compresses what is worth it.
#[derive(Debug, Default)]
struct Packer {
    /// Payloads to leave alone before the next attempt, after one that did not shrink.
    skip: u32,
}

impl Packer {
    /// Shorter ones are not worth a try.
    const SHORTEST: usize = 512;

    fn pack(&mut self, payload: &[u8]) -> Option<Vec<u8>> {
        if payload.len() < Self::SHORTEST {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        match zstd::bulk::compress(payload, 1) {
            Ok(packed) if packed.len() < payload.len() / 8 * 7 => Some(packed),
            _ => {
                self.skip = 15;
                None
            }
        }
    }
}
