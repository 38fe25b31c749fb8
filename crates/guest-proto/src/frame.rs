//! A frame: 12 bytes of header, then at most [`MAX_FRAME`] bytes.
//!
//! ```text
//!   0      1      2       3       4        8       12
//!   magic  kind   flags   crc8    stream   length  payload
//!                         (over the other 11 bytes; stream and length little-endian)
//! ```
//!
//! The checksum is there to notice that the two ends are out of step, not to guard against an attacker:
//! that is sealing's task.

/// The first byte of a frame. It begins no JSON text and is no ASCII.
pub(crate) const MAGIC: u8 = 0xA7;

/// The bytes of a header.
pub const HEADER_LEN: usize = 12;

/// The longest payload of one frame.
pub const MAX_FRAME: usize = 64 * 1024;

/// What a sender puts in one frame at most: header, payload and seal together fit the 32 KiB that
/// virtio_console takes in one write, and a frame in the way of a message is short.
pub const DATA_CHUNK: usize = 32 * 1024 - 64;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// (A part of) a JSON message; [`Header::CONTINUED`] says that more follows.
    Message = 1,
    /// Bytes of a channel of a stream.
    Data = 2,
    /// A u32: so many bytes more may be sent on a channel of a stream.
    Credit = 3,
    /// Nothing more comes on a channel of a stream.
    End = 4,
    /// A stream is over, whatever it still held. The payload is a [`ResetCode`].
    Reset = 5,
    /// A frame within a frame, encrypted and authenticated.
    Sealed = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Message,
            2 => Self::Data,
            3 => Self::Credit,
            4 => Self::End,
            5 => Self::Reset,
            6 => Self::Sealed,
            _ => return None,
        })
    }
}

/// The channels of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Channel {
    /// Standard input, or the content of a file in either direction.
    Input = 0,
    /// Standard output, or what a terminal shows.
    Output = 1,
    /// Standard error.
    Error = 2,
}

impl Channel {
    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Input,
            1 => Self::Output,
            2 => Self::Error,
            _ => return None,
        })
    }
}

/// Why a stream was reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ResetCode {
    /// Whoever wanted it no longer does.
    Cancelled = 1,
    /// The peer sent more than it had credit for.
    Overrun = 2,
    /// No such stream, or no longer.
    Unknown = 3,
    /// Reading or writing failed; the response says how.
    Failed = 4,
}

impl ResetCode {
    /// An unknown number is of a newer peer; the stream is over all the same.
    pub fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Cancelled,
            2 => Self::Overrun,
            3 => Self::Unknown,
            4 => Self::Failed,
            _ => return None,
        })
    }
}

/// A frame's header, already checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub channel: Channel,
    /// More of the same message follows.
    pub continued: bool,
    /// The payload is zstd; what it unpacks to is bounded by [`MAX_FRAME`] too.
    pub compressed: bool,
    /// 0 for messages.
    pub stream: u32,
    pub len: u32,
}

/// Why bytes are not a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("a frame begins with {MAGIC:#04x}, not {0:#04x}")]
    Magic(u8),
    #[error("the header's checksum is {found:#04x}, not {expected:#04x}")]
    Checksum { found: u8, expected: u8 },
    #[error("no kind of frame has the number {0}; permitted: 1 to 6")]
    Kind(u8),
    #[error("flags {0:#04x} hold bits that mean nothing")]
    Flags(u8),
    #[error("a frame of {0} bytes; permitted: at most {MAX_FRAME}")]
    Length(u32),
}

impl Header {
    const CHANNEL: u8 = 0b0000_0011;
    const COMPRESSED: u8 = 0b0000_0100;
    /// The flag of a message that goes on in the next frame.
    pub const CONTINUED: u8 = 0b0000_1000;

    /// A header of a kind that needs no flags.
    pub fn new(kind: Kind, stream: u32, channel: Channel, len: u32) -> Self {
        Self { kind, channel, continued: false, compressed: false, stream, len }
    }

    pub(crate) fn flags(&self) -> u8 {
        let mut flags = self.channel as u8;
        if self.compressed {
            flags |= Self::COMPRESSED;
        }
        if self.continued {
            flags |= Self::CONTINUED;
        }
        flags
    }

    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = MAGIC;
        bytes[1] = self.kind as u8;
        bytes[2] = self.flags();
        bytes[4..8].copy_from_slice(&self.stream.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[3] = checksum(&bytes);
        bytes
    }

    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let [magic, kind, flags, found, s0, s1, s2, s3, l0, l1, l2, l3] = *bytes;
        if magic != MAGIC {
            return Err(HeaderError::Magic(magic));
        }
        let expected = checksum(bytes);
        if found != expected {
            return Err(HeaderError::Checksum { found, expected });
        }
        let (kind, channel, compressed, continued) = split(kind, flags)?;
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        if len as usize > MAX_FRAME {
            return Err(HeaderError::Length(len));
        }
        Ok(Self { kind, channel, continued, compressed, stream: u32::from_le_bytes([s0, s1, s2, s3]), len })
    }

    /// The header inside a sealed frame: kind, flags and stream; the length is what remains.
    pub(crate) fn encode_inner(&self) -> [u8; INNER_LEN] {
        let mut bytes = [0; INNER_LEN];
        bytes[0] = self.kind as u8;
        bytes[1] = self.flags();
        bytes[4..8].copy_from_slice(&self.stream.to_le_bytes());
        bytes
    }

    pub(crate) fn decode_inner(bytes: &[u8; INNER_LEN], len: usize) -> Result<Self, HeaderError> {
        let [kind, flags, _, _, s0, s1, s2, s3] = *bytes;
        let (kind, channel, compressed, continued) = split(kind, flags)?;
        if kind == Kind::Sealed {
            return Err(HeaderError::Kind(kind as u8));
        }
        let len = u32::try_from(len).map_err(|_| HeaderError::Length(u32::MAX))?;
        Ok(Self { kind, channel, continued, compressed, stream: u32::from_le_bytes([s0, s1, s2, s3]), len })
    }
}

/// The bytes of a header inside a sealed frame.
pub(crate) const INNER_LEN: usize = 8;

fn split(kind: u8, flags: u8) -> Result<(Kind, Channel, bool, bool), HeaderError> {
    let kind = Kind::from_byte(kind).ok_or(HeaderError::Kind(kind))?;
    if flags & !(Header::CHANNEL | Header::COMPRESSED | Header::CONTINUED) != 0 {
        return Err(HeaderError::Flags(flags));
    }
    let channel = Channel::from_bits(flags & Header::CHANNEL).ok_or(HeaderError::Flags(flags))?;
    Ok((kind, channel, flags & Header::COMPRESSED != 0, flags & Header::CONTINUED != 0))
}

/// CRC-8 with the polynomial 0x07 and the initial value 0xFF over a header without its own byte. (With 0,
/// a header of zeroes would be right.)
fn checksum(bytes: &[u8; HEADER_LEN]) -> u8 {
    bytes.iter().enumerate().filter(|&(at, _)| at != 3).fold(0xFF, |crc, (_, byte)| TABLE[usize::from(crc ^ byte)])
}

const TABLE: [u8; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut crc = at as u8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x80 != 0 { (crc << 1) ^ 0x07 } else { crc << 1 };
            bit += 1;
        }
        table[at] = crc;
        at += 1;
    }
    table
};

/// A whole frame as it came in, unsealed and unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: Kind,
    pub stream: u32,
    pub channel: Channel,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The number that a credit or a reset carries.
    pub fn number(&self) -> Option<u32> {
        Some(u32::from_le_bytes(self.payload.as_slice().try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_known_header() {
        let header = Header::new(Kind::Data, 7, Channel::Error, 300);
        let bytes = header.encode();
        assert_eq!(bytes[..3], [0xA7, 2, 2]);
        assert_eq!(bytes[4..], [7, 0, 0, 0, 44, 1, 0, 0]);
        assert_eq!(Header::decode(&bytes), Ok(header));
    }

    #[test]
    fn what_no_header_may_hold() {
        let encode = |at: usize, value: u8| {
            let mut bytes = Header::new(Kind::Data, 1, Channel::Input, 1).encode();
            bytes[at] = value;
            bytes[3] = checksum(&bytes);
            Header::decode(&bytes)
        };
        assert_eq!(encode(1, 0), Err(HeaderError::Kind(0)));
        assert_eq!(encode(1, 7), Err(HeaderError::Kind(7)));
        assert_eq!(encode(2, 3), Err(HeaderError::Flags(3)));
        assert_eq!(encode(2, 0x10), Err(HeaderError::Flags(0x10)));
        assert_eq!(encode(11, 1), Err(HeaderError::Length(0x0100_0001)));
        assert_eq!(Header::decode(&[0; HEADER_LEN]), Err(HeaderError::Magic(0)));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_noticed(stream: u32, len in 0u32..=65536, at in 0usize..96) {
            let mut bytes = Header::new(Kind::Data, stream, Channel::Output, len).encode();
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert!(Header::decode(&bytes).is_err());
        }

        #[test]
        fn what_decodes_encodes_to_itself(bytes: [u8; HEADER_LEN]) {
            let mut bytes = bytes;
            bytes[0] = MAGIC;
            bytes[3] = checksum(&bytes);
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }
}
