//! The channel between a host and the agent inside a VM: what is said, and how it looks as bytes.
//!
//! Owned here: the messages, their JSON, the binary frames, flow control, sealing, the order in which
//! frames leave. Both ends use it: the agent without an async runtime, the daemon with one. So there is
//! no I/O here, no clock, no thread and no policy; bytes go in, events come out.
//!
//! ```text
//!   bytes ──> Decoder ──> Event::Line / Event::Frame ──> Request::parse, GuestMessage::parse
//!   bytes <── Encoder <── Outbox (messages first, then streams in turn, each within its credit)
//!
//!   the decoder:
//!                    use_frames()
//!        Lines ───────────────────────> Frames
//!                                       │   ^ use_frames(), once the caller has taken the line
//!               a byte that is no frame │   │ of a hello or a handshake
//!                                       v   │
//!                                     Searching
//! ```
//!
//! The other end is hostile: whatever it sends, memory is bounded by [`MAX_LINE`], [`MAX_FRAME`] and
//! the windows, work is linear in the bytes, and what is refused is counted, not trusted.
//! `docs/agent-protocol.md` is this contract in prose.
#![forbid(unsafe_code)]

mod codec;
mod error;
mod flow;
mod frame;
mod hello;
mod hex;
mod json;
mod legacy;
pub mod metrics;
mod outbox;
mod request;
mod response;
mod safe;
mod seal;
mod secret;
mod tree;

pub use codec::{Decoder, Dropped, Encoder, Event, Violation};
pub use error::{ErrorBody, ErrorCode};
pub use flow::{Overrun, ReceiveWindow, SendWindow};
pub use frame::{Channel, DATA_CHUNK, Frame, HEADER_LEN, Header, HeaderError, Kind, MAX_FRAME, ResetCode};
pub use hello::{Handshake, Hello, NoiseLine, Policy, Upgrade, choose_upgrades};
pub use hex::hex;
pub use json::{JsonError, MAX_DEPTH, parse_strict};
pub use legacy::{LegacyCommand, LegacyOutput, LegacyReply, LegacyRequest};
pub use outbox::{Outbox, Pulled, QueueFull, Ring};
pub use request::{
    Batch, Cancel, Envelope, Exec, FilePull, FilePush, FileStat, Freeze, Identity, InterfaceIdentity, KeepAlive,
    Limits, MAX_BATCH, MAX_ID, MetricsRequest, ParseError, Ping, Pty, Request, Resize, SafeCommand, Signal, Subscribe,
    Thaw, UnsafeCommand,
};
pub use response::{
    CommandType, ConnectionStatus, ErrorReport, FileInfo, FileKind, GuestError, GuestMessage, MetricsMessage, Progress,
    Response,
};
pub use safe::{
    CleanupTarget, HealthCheck, Hostname, MAX_DATA, MAX_LIST, MAX_STDERR, MAX_STDOUT, NameError, PackageName,
    PackageVersion, SafeAction, SearchQuery, ServiceName, ServiceOperation, SortBy, SshKey, UserName, results,
};
pub use seal::{Key, KeyError, NoiseHandshake, SealError, Sealer};
pub use secret::Secret;
pub use tree::{Entry, EntryError, EntryKind, TreeDecoder, TreeEvent, encode_entry};

/// The longest line, its newline not counted. A longer one is dropped up to the next newline.
pub const MAX_LINE: usize = 1 << 20;

/// What each channel of a stream may have in flight before the receiver grants more.
pub const WINDOW: u32 = 256 * 1024;

/// The version of the protocol that both ends state. Peers of one major version understand each other.
pub const PROTOCOL_VERSION: &str = "1.0";

/// The vsock port that the agent listens on.
pub const VSOCK_PORT: u32 = 9999;

/// The name of the virtio-serial port that the host gives a VM for its agent.
pub const PORT_NAME: &str = "org.roost.agent.0";

/// The fw_cfg item that holds the 32 bytes of a VM's channel key.
pub const KEY_FW_CFG: &str = "opt/org.roost/agent-key";
