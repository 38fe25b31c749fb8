//! gRPC clients that put a socket's path where the host's name belongs.
//!
//! Over a Unix socket, gRPC's C core (Python, C++, Ruby, PHP) and grpc-java send the socket's path
//! as `:authority`, percent-encoded or not. That is no authority, and the HTTP/2 library resets the
//! stream before any code of ours is asked (hyperium/h2#487). Nobody looks at the authority of a
//! Unix socket, so [`AnyAuthority`] reads along with what comes in and turns the characters that
//! are at fault into `-`.
//!
//! It changes bytes in place and never their number: frames keep their lengths, and both ends'
//! header tables keep theirs. It owns no part of HTTP/2 beyond finding that one value (RFC 9113 §4
//! and §6.2, RFC 7541 §5 and §6); what it cannot follow (Huffman coding, broken frames) it leaves
//! as it is, for the library to judge. HTTP/1.1 passes untouched.
//!
//! ```text
//!   Preface --PRI *...--> FrameHead <--> Payload(header block: Field -> Name -> Value) | Skip
//!      \--anything else--> Off
//! ```

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A server's end of a connection, whose peer may send any `:authority`.
#[derive(Debug)]
pub struct AnyAuthority<S> {
    stream: S,
    frames: Frames,
}

impl<S> AnyAuthority<S> {
    /// Wraps a fresh connection.
    pub fn new(stream: S) -> Self {
        Self { stream, frames: Frames::new() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AnyAuthority<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.frames.pass(&mut buf.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AnyAuthority<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const AUTHORITY: &[u8] = b":authority";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The reader of frames.
#[derive(Debug)]
struct Frames {
    state: State,
    /// Bytes of the header block that this frame still holds.
    fragment: usize,
    /// Bytes after them.
    padding: usize,
    /// Whether the header block ends with this frame.
    ends: bool,
    block: Block,
}

/// Where in the stream of frames the next byte is. A count is never 0 when a byte is awaited.
#[derive(Debug)]
enum State {
    Preface {
        seen: usize,
    },
    Head {
        head: [u8; 9],
        seen: usize,
    },
    /// The length of the padding; `lead` bytes and the block follow, `rest` in all.
    PadLength {
        lead: usize,
        rest: usize,
    },
    /// Bytes before the block.
    Lead(usize),
    /// The block.
    Fragment,
    /// Bytes up to the next frame.
    Tail(usize),
    /// Nothing that can be followed.
    Off,
}

/// Where in a header block the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    /// The first byte of a field's representation.
    Field,
    /// The rest of a number.
    Number { so_far: usize, shift: u32, what: What },
    /// The first byte of a name's or value's length.
    Length(What),
    /// A name; `matches`: whether it is `:authority` so far.
    Name { left: usize, seen: usize, matches: bool },
    /// A value.
    Value { left: usize, change: bool },
    /// Nothing that can be followed.
    Lost,
}

/// What a number or a length is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// A field from a table, or a new size of it: the representation ends with it.
    Whole,
    /// The index of a literal field's name.
    NameIndex,
    /// A name's length.
    Name { coded: bool },
    /// A value's length.
    Value { authority: bool, coded: bool },
}

impl Frames {
    fn new() -> Self {
        Self { state: State::Preface { seen: 0 }, fragment: 0, padding: 0, ends: false, block: Block::Field }
    }

    fn pass(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let used = self.step(bytes);
            bytes = &mut bytes[used..];
            self.settle();
        }
    }

    /// Takes the next bytes, as many as are alike; at least one, but for the one that is no preface.
    fn step(&mut self, bytes: &mut [u8]) -> usize {
        match &mut self.state {
            State::Off => bytes.len(),
            State::Preface { seen } if bytes[0] == PREFACE[*seen] => {
                *seen += 1;
                1
            }
            State::Preface { .. } => {
                self.state = State::Off;
                0
            }
            State::Head { head, seen } => {
                head[*seen] = bytes[0];
                *seen += 1;
                1
            }
            State::PadLength { lead, rest } => {
                self.padding = usize::from(bytes[0]);
                self.state = match rest.checked_sub(*lead + self.padding) {
                    Some(fragment) => {
                        self.fragment = fragment;
                        State::Lead(*lead)
                    }
                    None => State::Off,
                };
                1
            }
            State::Lead(left) | State::Tail(left) => {
                let used = bytes.len().min(*left);
                *left -= used;
                used
            }
            State::Fragment => {
                let used = bytes.len().min(self.fragment);
                for byte in &mut bytes[..used] {
                    self.block = self.block.take(byte);
                }
                self.fragment -= used;
                used
            }
        }
    }

    /// Goes on from whatever is complete.
    fn settle(&mut self) {
        loop {
            self.state = match self.state {
                State::Preface { seen } if seen == PREFACE.len() => State::Head { head: [0; 9], seen: 0 },
                State::Head { head, seen: 9 } => self.begin(head),
                State::Lead(0) => State::Fragment,
                State::Fragment if self.fragment == 0 => match self.block {
                    Block::Lost => State::Off,
                    // A block ends between two fields.
                    block if self.ends && block != Block::Field => State::Off,
                    _ => State::Tail(self.padding),
                },
                State::Tail(0) => State::Head { head: [0; 9], seen: 0 },
                _ => return,
            };
        }
    }

    /// What follows a frame's head.
    fn begin(&mut self, head: [u8; 9]) -> State {
        let [high, middle, low, kind, flags, ..] = head;
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let lead = match kind {
            HEADERS if flags & PRIORITY != 0 => 5,
            HEADERS | CONTINUATION => 0,
            _ => return State::Tail(length),
        };
        self.ends = flags & END_HEADERS != 0;
        self.padding = 0;
        if kind == HEADERS && flags & PADDED != 0 {
            return length.checked_sub(1).map_or(State::Off, |rest| State::PadLength { lead, rest });
        }
        match length.checked_sub(lead) {
            Some(fragment) => {
                self.fragment = fragment;
                State::Lead(lead)
            }
            None => State::Off,
        }
    }
}

impl Block {
    /// Takes one byte, changing it where it is part of the value that is looked for.
    fn take(self, byte: &mut u8) -> Self {
        match self {
            Block::Field => match *byte {
                b if b & 0x80 != 0 => Block::number(b, 7, What::Whole),
                b if b & 0x40 != 0 => Block::number(b, 6, What::NameIndex),
                b if b & 0x20 != 0 => Block::number(b, 5, What::Whole),
                b => Block::number(b, 4, What::NameIndex),
            },
            Block::Length(What::Name { .. }) => Block::number(*byte, 7, What::Name { coded: *byte & 0x80 != 0 }),
            Block::Length(What::Value { authority, .. }) => {
                Block::number(*byte, 7, What::Value { authority, coded: *byte & 0x80 != 0 })
            }
            Block::Length(What::Whole | What::NameIndex) | Block::Lost => Block::Lost,
            Block::Number { so_far, shift, what } => {
                // No header is longer than this many digits say.
                if shift > 21 {
                    return Block::Lost;
                }
                let so_far = so_far + (usize::from(*byte & 0x7f) << shift);
                if *byte & 0x80 != 0 {
                    return Block::Number { so_far, shift: shift + 7, what };
                }
                Block::known(so_far, what)
            }
            Block::Name { left, seen, matches } => {
                let matches = matches && AUTHORITY.get(seen) == Some(byte);
                match left {
                    1 => {
                        let authority = matches && seen + 1 == AUTHORITY.len();
                        Block::Length(What::Value { authority, coded: false })
                    }
                    _ => Block::Name { left: left - 1, seen: seen + 1, matches },
                }
            }
            Block::Value { left, change } => {
                if change && matches!(byte, b'%' | b'/') {
                    *byte = b'-';
                }
                match left {
                    1 => Block::Field,
                    _ => Block::Value { left: left - 1, change },
                }
            }
        }
    }

    /// A number that begins in the low `bits` of a byte (RFC 7541 §5.1).
    fn number(byte: u8, bits: u32, what: What) -> Self {
        let most = (1 << bits) - 1;
        match byte & most {
            n if n == most => Block::Number { so_far: usize::from(most), shift: 0, what },
            n => Block::known(usize::from(n), what),
        }
    }

    /// What follows a number.
    fn known(number: usize, what: What) -> Self {
        let value_of = |authority| Block::Length(What::Value { authority, coded: false });
        match (what, number) {
            (What::Whole, _) => Block::Field,
            (What::NameIndex, 0) => Block::Length(What::Name { coded: false }),
            // Entry 1 of the static table is `:authority` (RFC 7541, appendix A).
            (What::NameIndex, index) => value_of(index == 1),
            (What::Name { .. }, 0) => value_of(false),
            (What::Name { coded }, left) => Block::Name { left, seen: 0, matches: !coded },
            (What::Value { .. }, 0) => Block::Field,
            (What::Value { authority, coded }, left) => Block::Value { left, change: authority && !coded },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header field as gRPC's C core writes it: a literal with its name, not Huffman-coded.
    fn literal(name: &str, value: &str) -> Vec<u8> {
        let mut field = vec![0x40];
        for text in [name, value] {
            match text.len() {
                n @ 0..127 => field.push(n as u8),
                n => field.extend([0x7f, ((n - 127) & 0x7f) as u8 | 0x80, ((n - 127) >> 7) as u8]),
            }
            field.extend(text.as_bytes());
        }
        field
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.extend(payload);
        frame
    }

    fn block(authority: &[u8]) -> Vec<u8> {
        [literal(":path", "/a%2F/B").as_slice(), authority, &[0x83, 0x86], &literal("x-path", "/a%2Fb")].concat()
    }

    fn passed(bytes: &[u8], chunk: usize) -> Vec<u8> {
        let mut frames = Frames::new();
        let mut bytes = bytes.to_vec();
        bytes.chunks_mut(chunk).for_each(|chunk| frames.pass(chunk));
        bytes
    }

    fn with_preface(frames: &[Vec<u8>]) -> Vec<u8> {
        [PREFACE.to_vec(), frame(4, 0, &[0, 4, 0, 0, 64, 0]), frames.concat()].concat()
    }

    /// Every way of writing it, in a block that is whole, padded, with priority, or in two frames.
    fn connection(authority: &[u8]) -> Vec<Vec<u8>> {
        let block = block(authority);
        let padded = [&[3, 0, 0, 0, 0, 16], block.as_slice(), &[b'/'; 3]].concat();
        let (first, second) = block.split_at(block.len() / 2);
        vec![
            with_preface(&[frame(HEADERS, END_HEADERS, &block), frame(0, 1, b"/%/%")]),
            with_preface(&[frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &padded), frame(0, 1, b"/%/%")]),
            with_preface(&[frame(HEADERS, 0, first), frame(CONTINUATION, END_HEADERS, second), frame(0, 1, b"/%")]),
        ]
    }

    #[test]
    fn the_authority_is_changed_and_nothing_else() {
        let long = format!("%2Frun%2F{}", "x/".repeat(90));
        for path in ["tmp%2Froost%2Fapi.sock", "/run/roost/api.sock", long.as_str()] {
            let fixed = path.replace(['%', '/'], "-");
            let by_index = |value: &str| [vec![0x41], literal("", value)[2..].to_vec()].concat();
            let unindexed = |value: &str| [vec![0x01], literal("", value)[2..].to_vec()].concat();
            for write in [&|v: &str| literal(":authority", v), &by_index as &dyn Fn(&str) -> Vec<u8>, &unindexed] {
                for (before, after) in connection(&write(path)).iter().zip(connection(&write(&fixed))) {
                    for chunk in [1, 2, 7, before.len()] {
                        assert_eq!(passed(before, chunk), after, "{path} in pieces of {chunk}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_followed_passes_as_it_is() {
        let http1 = b"GET /a%2Fb HTTP/1.1\r\nhost: a%2Fb\r\n\r\n";
        assert_eq!(passed(http1, 3), http1);
        // A Huffman-coded value: the bytes mean something else.
        let coded = [0x41, 0x83, b'%', b'/', b'%'];
        for before in connection(&coded) {
            assert_eq!(passed(&before, 5), before);
        }
    }

    proptest! {
        /// Nothing panics, nothing depends on how bytes come in, and nothing but `%` and `/` changes.
        #[test]
        fn any_bytes_pass_in_any_pieces(
            frames in proptest::collection::vec((0u8..11, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..6),
            chunk in 1usize..20,
        ) {
            let frames: Vec<Vec<u8>> = frames.iter().map(|(kind, flags, payload)| frame(*kind, *flags, payload)).collect();
            let before = with_preface(&frames);
            let after = passed(&before, before.len());
            prop_assert_eq!(&passed(&before, chunk), &after);
            for (b, a) in before.iter().zip(&after) {
                prop_assert!(a == b || (matches!(b, b'%' | b'/') && *a == b'-'));
            }
        }
    }
}
