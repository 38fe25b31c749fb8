//! What a host asks of a guest. Names in capitals are the first agent's; the others are in its style.
//!
//! A request is parsed in two steps: the text into a strict JSON value, then the fields of its type. What is
//! wrong is told with the request's ID, so that it can be answered. Fields that this version does not know are
//! left alone: a newer host may send them.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{ErrorBody, ErrorCode};
use crate::hello::{Hello, NoiseLine};
use crate::json::parse_strict;
use crate::legacy::LegacyRequest;
use crate::secret::Secret;

/// The longest line that is looked at in search of a hello or a handshake.
pub(crate) const MAX_HELLO: usize = 64 * 1024;

/// The longest ID of a request.
pub const MAX_ID: usize = 128;

/// The most requests in one batch.
pub const MAX_BATCH: usize = 100;

/// A request with what any of them may carry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Envelope {
    #[serde(flatten)]
    pub request: Request,
    /// The epoch that it is for; another one than the agent's is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// W3C trace context, for the agent's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Why a text is no request.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("no valid request")]
pub struct ParseError {
    /// Whose answer says so, where the text gave that much away.
    pub id: Option<String>,
    #[source]
    pub error: ErrorBody,
}

impl ParseError {
    pub(crate) fn fields(value: &Value, kind: &str, error: serde_json::Error) -> Self {
        let message = format!("{kind}: {}", bounded(&error.to_string(), 512));
        Self { id: id_of(value), error: ErrorBody::new(ErrorCode::InvalidMessage, message) }
    }

    fn new(value: &Value, error: ErrorBody) -> Self {
        Self { id: id_of(value), error }
    }
}

fn bounded(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}

fn id_of(value: &Value) -> Option<String> {
    value.get("id")?.as_str().filter(|id| id.len() <= MAX_ID).map(str::to_owned)
}

macro_rules! requests {
    ($($(#[$doc:meta])* $variant:ident($inner:ty) = $tag:literal,)*) => {
        /// What a host may ask.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(tag = "type")]
        pub enum Request {
            $($(#[$doc])* #[serde(rename = $tag)] $variant($inner),)*
            /// What an older vsock peer asks.
            #[serde(skip)]
            Legacy(LegacyRequest),
            /// Several requests, each answered by itself.
            #[serde(skip)]
            Batch(Batch),
        }

        impl Request {
            /// Every type there is.
            pub const TYPES: &'static [&'static str] = &[$($tag,)* "Batch"];

            fn from_value(kind: &str, value: Value) -> Result<Self, ParseError> {
                match kind {
                    $($tag => fields(kind, value).map(Self::$variant),)*
                    "Batch" => Batch::from_value(value).map(Self::Batch),
                    _ => {
                        let message = format!("no request has the type {:?}", bounded(kind, 64));
                        let mut error = ErrorBody::new(ErrorCode::UnknownCommand, message);
                        error.details = Some(serde_json::json!({ "permitted": Self::TYPES }));
                        Err(ParseError::new(&value, error))
                    }
                }
            }
        }
    };
}

requests! {
    Hello(Hello) = "hello",
    Noise(NoiseLine) = "noise",
    SafeCommand(SafeCommand) = "SafeCommand",
    UnsafeCommand(UnsafeCommand) = "UnsafeCommand",
    /// One metrics frame, now.
    Metrics(MetricsRequest) = "Metrics",
    Exec(Box<Exec>) = "Exec",
    Signal(Signal) = "Signal",
    Resize(Resize) = "Resize",
    Cancel(Cancel) = "Cancel",
    FilePush(FilePush) = "FilePush",
    FilePull(FilePull) = "FilePull",
    FileStat(FileStat) = "FileStat",
    Freeze(Freeze) = "Freeze",
    Thaw(Thaw) = "Thaw",
    Identity(Identity) = "Identity",
    Subscribe(Subscribe) = "Subscribe",
    Ping(Ping) = "ping",
    KeepAliveResponse(KeepAlive) = "keep_alive_response",
}

fn fields<T: DeserializeOwned>(kind: &str, value: Value) -> Result<T, ParseError> {
    let id = id_of(&value);
    // By value, so that strings (secrets among them) are moved and not copied.
    serde_json::from_value(value).map_err(|error| ParseError { id, ..ParseError::fields(&Value::Null, kind, error) })
}

impl Envelope {
    /// A request for whatever epoch the agent is in.
    pub fn new(request: Request) -> Self {
        Self { request, epoch: None, traceparent: None }
    }

    /// The request in a line or message.
    pub fn parse(text: &[u8]) -> Result<Self, ParseError> {
        match parse_strict(text) {
            Ok(value) => Self::from_value(value),
            Err(error) => Err(ParseError {
                id: None,
                error: ErrorBody::new(ErrorCode::InvalidMessage, bounded(&error.to_string(), 512)),
            }),
        }
    }

    fn from_value(value: Value) -> Result<Self, ParseError> {
        let Some(object) = value.as_object() else {
            return Err(ParseError::new(&value, ErrorBody::new(ErrorCode::InvalidMessage, "a request is an object")));
        };
        if object.get("id").is_some_and(|id| !id.is_null()) && id_of(&value).is_none() {
            let message = format!("id: a text of at most {MAX_ID} bytes");
            return Err(ParseError::new(&value, ErrorBody::field("id", message)));
        }
        let epoch = match object.get("epoch") {
            None | Some(Value::Null) => None,
            Some(epoch) => match epoch.as_u64() {
                Some(epoch) => Some(epoch),
                None => {
                    return Err(ParseError::new(&value, ErrorBody::field("epoch", "epoch: a whole number from 0")));
                }
            },
        };
        // A trace that is none is worth no refusal.
        let traceparent =
            object.get("traceparent").and_then(Value::as_str).filter(|text| text.len() <= 256).map(str::to_owned);
        if let Some(legacy) = LegacyRequest::parse(&value) {
            return legacy.map(|legacy| Self { request: Request::Legacy(legacy), epoch, traceparent });
        }
        let Some(kind) = object.get("type").and_then(Value::as_str) else {
            return Err(ParseError::new(&value, ErrorBody::field("type", "type: missing, or no text")));
        };
        let kind = kind.to_owned();
        let request = Request::from_value(&kind, value)?;
        // A hello has it as a field of its own.
        let epoch = epoch.filter(|_| !matches!(request, Request::Hello(_)));
        Ok(Self { request, epoch, traceparent })
    }

    /// The request as it is sent.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("keys are texts, and nothing in it fails")
    }
}

impl Request {
    /// Whose answer it gets.
    pub fn id(&self) -> Option<&str> {
        Some(match self {
            Self::SafeCommand(it) => &it.id,
            Self::UnsafeCommand(it) => &it.id,
            Self::Exec(it) => &it.id,
            Self::Signal(it) => &it.id,
            Self::Resize(it) => &it.id,
            Self::Cancel(it) => &it.id,
            Self::FilePush(it) => &it.id,
            Self::FilePull(it) => &it.id,
            Self::FileStat(it) => &it.id,
            Self::Freeze(it) => &it.id,
            Self::Thaw(it) => &it.id,
            Self::Identity(it) => &it.id,
            Self::Subscribe(it) => &it.id,
            Self::Metrics(it) => return it.id.as_deref(),
            Self::Hello(_)
            | Self::Noise(_)
            | Self::Ping(_)
            | Self::KeepAliveResponse(_)
            | Self::Legacy(_)
            | Self::Batch(_) => return None,
        })
    }
}

/// A typed action, whose fields `action` names; the agent checks them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SafeCommand {
    pub id: String,
    /// `{"action": "ServiceControl", "service": ..., "operation": ...}`
    pub command_type: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Value>,
    /// Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
}

/// The first agent's form of [`Exec`]: a line for a shell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnsafeCommand {
    pub id: String,
    pub raw_command: String,
    /// The shell's path or name; `/bin/sh` where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
}

/// Which groups of metrics; none named: all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// Metrics at an interval until the next subscription, or the next hello. 0 ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribe {
    pub id: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    pub interval_ms: u64,
}

/// Runs a program. Either `argv` or `command` is given.
///
/// Without `stream`, the output is in the response: its head and tail, if it is long. With it, the channels of that
/// stream carry input and output as they come, and the response tells the end after the last of the output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    pub id: String,
    /// The program (a path, or a name that PATH finds) and its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// A line for a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// `/bin/sh` where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// A name or a number; absent: the agent's configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Added to a small environment: PATH, HOME, USER, LOGNAME, SHELL, LANG, TERM.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The same; wiped once the program has them, and never shown.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Secret>,
    /// Names of secrets that were handed over before, to add to the environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_secrets: Vec<String>,
    /// Input comes on the stream. Without it, and without `input`, the program reads its end at once.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stdin: bool,
    /// All of the input, where there is no stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// On a terminal of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pty: Option<Pty>,
    /// Then SIGTERM, a grace, SIGKILL to all that it started. Absent: 30 s without a stream, none with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Not 0, and no stream that is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<u32>,
    #[serde(default, skip_serializing_if = "Limits::is_none")]
    pub limits: Limits,
}

impl From<&UnsafeCommand> for Exec {
    fn from(command: &UnsafeCommand) -> Self {
        let UnsafeCommand { id, raw_command, shell, timeout, working_dir, env_vars } = command;
        Self {
            id: id.clone(),
            command: Some(raw_command.clone()),
            shell: shell.clone(),
            cwd: working_dir.clone(),
            env: env_vars.clone().unwrap_or_default(),
            timeout_ms: timeout.map(|seconds| seconds.saturating_mul(1000)),
            ..Self::default()
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// A terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pty {
    pub rows: u16,
    pub cols: u16,
    /// `xterm-256color` where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<String>,
}

/// What a command may use. By a cgroup where the guest has a writable one, by rlimits otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// Of each of stdout and stderr in the response; the agent has a limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
}

impl Limits {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// A signal to a command that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    pub id: String,
    /// The ID of its request.
    pub target: String,
    /// `TERM`, `SIGTERM`, `15`, ...
    pub signal: String,
}

/// Another size for a command's terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    pub id: String,
    /// The ID of the command's request.
    pub target: String,
    pub rows: u16,
    pub cols: u16,
}

/// Ends a request that is under way; its own response says that it was cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    pub id: String,
    /// The ID of the request to end.
    pub target: String,
}

/// Several requests in one message.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    pub commands: Vec<Result<Envelope, ParseError>>,
}

impl Batch {
    fn from_value(mut value: Value) -> Result<Self, ParseError> {
        let epoch = value.get("epoch").cloned();
        let Some(Value::Array(commands)) = value.get_mut("commands").map(Value::take) else {
            return Err(ParseError::new(&value, ErrorBody::field("commands", "commands: missing, or no list")));
        };
        if commands.len() > MAX_BATCH {
            let message = format!("commands: {} in one batch; permitted: at most {MAX_BATCH}", commands.len());
            return Err(ParseError::new(&value, ErrorBody::field("commands", message)));
        }
        let one = |mut command: Value| {
            if matches!(command.get("type").and_then(Value::as_str), Some("Batch" | "hello" | "noise")) {
                let error = ErrorBody::field("type", "type: this one cannot be part of a batch");
                return Err(ParseError::new(&command, error));
            }
            if let (Some(object), Some(epoch)) = (command.as_object_mut(), &epoch) {
                object.entry("epoch").or_insert_with(|| epoch.clone());
            }
            Envelope::from_value(command)
        };
        Ok(Self { commands: commands.into_iter().map(one).collect() })
    }
}

/// A file, or a tree of files, to the guest. The bytes come on channel `Input` of the stream; the answer after its
/// end has their count in `data`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePush {
    pub id: String,
    pub stream: u32,
    /// Absolute, beneath one of the roots.
    pub path: String,
    /// Permission bits; absent: those of the file that is replaced, or 0644.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// `user`, `user:group`, names or numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Where it is given, a file that comes out different is not put in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The same; hexadecimal, of the whole file (or of the tree's stream). Without it the guest spends no time on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Go on behind what an attempt that broke off has left, which must be this many bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_at: Option<u64>,
    /// The stream is a tree (see `tree`), and `path` the directory that it goes to.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tree: bool,
    /// Make the directories that lead to it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub parents: bool,
}

/// A file, or a tree of files, from the guest. The bytes come on channel `Input` of the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePull {
    pub id: String,
    pub stream: u32,
    pub path: String,
    /// Skip so many bytes, which the host has already.
    #[serde(default)]
    pub offset: u64,
    /// No more than so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// With the SHA-256 of what was sent in the answer's `data`. (Where the processor has no instructions for it, that
    /// takes longer than sending.)
    #[serde(default, skip_serializing_if = "is_false")]
    pub sha256: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub tree: bool,
}

/// What a path is; the answer's `data` is a `FileInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    pub id: String,
    pub path: String,
    /// With the SHA-256 of its content.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sha256: bool,
    /// With what a directory holds; at most 1000 names.
    #[serde(default, skip_serializing_if = "is_false")]
    pub list: bool,
}

/// Stops writing to the guest's file systems until `Thaw`, or for so long at most: the agent thaws by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    pub id: String,
    pub timeout_ms: u64,
    /// Mount points; none named: every file system that is on a disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// Writes again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thaw {
    pub id: String,
}

/// After a restore or a fork: who this VM is now. Its envelope's epoch is the new one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub id: String,
    /// Base64, for the kernel's pool, before anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<InterfaceIdentity>,
    /// Make new SSH host keys, where there are any.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ssh_host_keys: bool,
    /// Set the clock: milliseconds since 1970, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_ms: Option<u64>,
}

/// A network interface's new address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceIdentity {
    /// `eth0`; or it is found by `current_mac`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_mac: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// `10.0.0.2/24`, each. They replace the ones it has; none given: those stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
}

/// Answered by a `pong` of the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    #[serde(default, alias = "sequence_number")]
    pub sequence: u64,
}

/// A sign of life, in either direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepAlive {
    pub sequence_number: u64,
    pub timestamp: String,
}
