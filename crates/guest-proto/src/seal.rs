//! End-to-end encryption of the channel: Noise NNpsk0 with the key that the host placed in the VM.
//!
//! ```text
//!   host:  hello    ──>               the prologue is the line of the hello, a newline, the line of the handshake,
//!   agent:          <── handshake     so neither can be changed in between
//!   host:  noise    ──>               psk, e
//!   agent:          <── noise         e, ee; frames are sealed from here on
//!   host:  sealed frames ──>
//! ```
//!
//! A sealed frame's payload is one Noise message over the real header (kind, flags, stream) and the real payload, so
//! that who listens sees lengths and times only. Keys live as long as a session: a new hello, a new exchange.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use snow::{Builder, HandshakeState, StatelessTransportState};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::frame::{Channel, HEADER_LEN, Header, HeaderError, INNER_LEN, Kind};

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
const TAG_LEN: usize = 16;

/// The 32 bytes that the host and one VM share.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Key([u8; 32]);

/// A key in a form that is none. The value is not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key is 32 bytes, 64 hexadecimal digits or their base64; this has {0} bytes")]
pub struct KeyError(pub usize);

impl Key {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// 32 bytes as they are (fw_cfg), or as text (a file, a variable).
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        if let Ok(key) = <[u8; 32]>::try_from(bytes) {
            return Ok(Self(key));
        }
        let text = bytes.trim_ascii();
        if text.len() == 64 && text.iter().all(u8::is_ascii_hexdigit) {
            let digit = |at: usize| char::from(text[at]).to_digit(16).unwrap_or(0) as u8;
            return Ok(Self(std::array::from_fn(|at| digit(2 * at) << 4 | digit(2 * at + 1))));
        }
        let decoded = STANDARD.decode(text).map(Zeroizing::new).map_err(|_| KeyError(bytes.len()))?;
        <[u8; 32]>::try_from(decoded.as_slice()).map(Self).map_err(|_| KeyError(bytes.len()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Why something does not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("not of this session, or changed on the way")]
    Noise,
    #[error("no base64")]
    Base64,
    #[error("too short to hold a header")]
    Short,
    #[error("the header inside is none")]
    Header(#[source] HeaderError),
}

/// The exchange, before there are keys.
pub struct NoiseHandshake(Box<HandshakeState>);

impl fmt::Debug for NoiseHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoiseHandshake(..)")
    }
}

impl NoiseHandshake {
    /// The host's side. The lines are without their newlines.
    pub fn host(key: &Key, hello: &[u8], handshake: &[u8]) -> Self {
        Self::new(key, hello, handshake, |builder| builder.build_initiator())
    }

    /// The agent's side.
    pub fn agent(key: &Key, hello: &[u8], handshake: &[u8]) -> Self {
        Self::new(key, hello, handshake, |builder| builder.build_responder())
    }

    fn new(
        key: &Key,
        hello: &[u8],
        handshake: &[u8],
        build: fn(Builder<'_>) -> Result<HandshakeState, snow::Error>,
    ) -> Self {
        let prologue = [hello, b"\n", handshake].concat();
        let state = PATTERN
            .parse()
            .map(Builder::new)
            .and_then(|builder| builder.psk(0, &key.0))
            .and_then(|builder| builder.prologue(&prologue))
            .and_then(build)
            .expect("the pattern is a constant, and it needs a key and nothing else");
        Self(Box::new(state))
    }

    /// The host's first message, for a `noise` line.
    pub fn first(&mut self) -> Result<String, SealError> {
        let mut buffer = [0; 256];
        let len = self.0.write_message(&[], &mut buffer).map_err(|_| SealError::Noise)?;
        Ok(STANDARD.encode(&buffer[..len]))
    }

    /// The agent takes the host's message and gives its answer, and one sealer for each direction.
    pub fn answer(mut self, data: &str) -> Result<(String, Sealer, Sealer), SealError> {
        self.read(data)?;
        let reply = self.first()?;
        let (seal, open) = self.finish()?;
        Ok((reply, seal, open))
    }

    /// The host takes the agent's answer. The first sealer is for what it sends.
    pub fn complete(mut self, data: &str) -> Result<(Sealer, Sealer), SealError> {
        self.read(data)?;
        self.finish()
    }

    fn read(&mut self, data: &str) -> Result<(), SealError> {
        let message = STANDARD.decode(data).map_err(|_| SealError::Base64)?;
        let mut buffer = [0; 256];
        self.0.read_message(&message, &mut buffer).map(drop).map_err(|_| SealError::Noise)
    }

    fn finish(self) -> Result<(Sealer, Sealer), SealError> {
        let state = self.0.into_stateless_transport_mode().map_err(|_| SealError::Noise)?;
        let state = Arc::new(state);
        Ok((Sealer { state: state.clone(), nonce: 0 }, Sealer { state, nonce: 0 }))
    }
}

/// The keys of a session, for one direction: the first of a pair seals, the second opens. Each counts its frames,
/// so that none is taken twice or out of order.
pub struct Sealer {
    state: Arc<StatelessTransportState>,
    nonce: u64,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

impl Sealer {
    /// Appends a sealed frame to `out`.
    pub(crate) fn seal(&mut self, header: Header, payload: &[u8], out: &mut Vec<u8>) {
        let mut plain = Zeroizing::new(Vec::with_capacity(INNER_LEN + payload.len()));
        plain.extend_from_slice(&header.encode_inner());
        plain.extend_from_slice(payload);
        let start = out.len();
        let len = plain.len() + TAG_LEN;
        out.extend_from_slice(&Header::new(Kind::Sealed, 0, Channel::Input, len as u32).encode());
        out.resize(start + HEADER_LEN + len, 0);
        self.state
            .write_message(self.nonce, &plain, &mut out[start + HEADER_LEN..])
            .expect("the buffer fits, and 2^64 messages are never sent");
        self.nonce += 1;
    }

    /// What a sealed frame holds.
    pub(crate) fn open(&mut self, payload: &[u8]) -> Result<(Header, Vec<u8>), SealError> {
        let mut plain = vec![0; payload.len()];
        let len = self.state.read_message(self.nonce, payload, &mut plain).map_err(|_| SealError::Noise)?;
        self.nonce += 1;
        plain.truncate(len);
        let inner = plain.first_chunk::<INNER_LEN>().ok_or(SealError::Short)?;
        let header = Header::decode_inner(inner, len - INNER_LEN).map_err(SealError::Header)?;
        plain.drain(..INNER_LEN);
        Ok((header, plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(host: &Key, agent: &Key) -> Result<[(Sealer, Sealer); 2], SealError> {
        let mut left = NoiseHandshake::host(host, b"{hello}", b"{handshake}");
        let right = NoiseHandshake::agent(agent, b"{hello}", b"{handshake}");
        let (reply, seal, open) = right.answer(&left.first()?)?;
        Ok([left.complete(&reply)?, (seal, open)])
    }

    #[test]
    fn both_ways_and_nothing_twice() {
        let key = Key::from_bytes([7; 32]);
        let [(mut host, _), (_, mut agent)] = pair(&key, &key).unwrap();
        let mut out = Vec::new();
        let header = Header::new(Kind::Data, 9, Channel::Error, 0);
        host.seal(header, b"secret", &mut out);
        assert!(!out.windows(6).any(|part| part == b"secret"));
        let (inner, plain) = agent.open(&out[HEADER_LEN..]).unwrap();
        assert_eq!(
            (inner.kind, inner.stream, inner.channel, plain.as_slice()),
            (Kind::Data, 9, Channel::Error, &b"secret"[..])
        );
        assert_eq!(agent.open(&out[HEADER_LEN..]), Err(SealError::Noise), "a replay");
    }

    #[test]
    fn another_key_another_hello_another_byte() {
        let (a, b) = (Key::from_bytes([1; 32]), Key::from_bytes([2; 32]));
        assert!(pair(&a, &b).is_err());

        let mut host = NoiseHandshake::host(&a, b"{hello}", b"{handshake}");
        let agent = NoiseHandshake::agent(&a, b"{hello, but less}", b"{handshake}");
        assert_eq!(agent.answer(&host.first().unwrap()).unwrap_err(), SealError::Noise);

        let [(mut host, _), (_, mut agent)] = pair(&a, &a).unwrap();
        let mut out = Vec::new();
        host.seal(Header::new(Kind::End, 1, Channel::Input, 0), b"", &mut out);
        out[HEADER_LEN] ^= 1;
        assert_eq!(agent.open(&out[HEADER_LEN..]), Err(SealError::Noise));
    }

    #[test]
    fn keys_in_their_forms() {
        let key = Key::from_bytes(std::array::from_fn(|at| at as u8));
        let raw: Vec<u8> = (0..32).collect();
        let hex = crate::hex(&raw);
        assert_eq!(Key::parse(&raw), Ok(key.clone()));
        assert_eq!(Key::parse(format!("{hex}\n").as_bytes()), Ok(key.clone()));
        assert_eq!(Key::parse(STANDARD.encode(&raw).as_bytes()), Ok(key.clone()));
        assert_eq!(Key::parse(b"short"), Err(KeyError(5)));
        assert_eq!(format!("{key:?}"), "Key(..)");
    }
}
