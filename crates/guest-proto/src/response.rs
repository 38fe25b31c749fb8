//! What a guest says to a host.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ErrorBody;
use crate::hello::{Handshake, NoiseLine};
use crate::json::{JsonError, parse_strict};
use crate::request::{KeepAlive, Ping};

/// Which of the two kinds of command a response belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommandType {
    #[default]
    Safe,
    Unsafe,
}

/// The answer to a request: `{"type": "response", ...}`; some older senders leave the type out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Response {
    pub id: String,
    pub success: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended the command, by number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// What is no UTF-8 is replaced, and `stdout_lossy` says so.
    #[serde(default)]
    pub stdout: String,
    #[serde(default)]
    pub stderr: String,
    #[serde(default)]
    pub execution_time_ms: u64,
    #[serde(default)]
    pub command_type: CommandType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
    /// Bytes left out in the middle of `stdout`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stdout_truncated: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stderr_truncated: u64,
    #[serde(default, skip_serializing_if = "is_false")]
    pub stdout_lossy: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    pub stderr_lossy: bool,
    /// The epoch that the agent was in when it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Response {
    /// It worked.
    pub fn success(id: impl Into<String>) -> Self {
        Self { id: id.into(), success: true, ..Self::default() }
    }

    /// It did not.
    pub fn failure(id: impl Into<String>, error: ErrorBody) -> Self {
        Self { id: id.into(), error: Some(error), ..Self::default() }
    }
}

/// `{"type": "metrics", ...}`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricsMessage<T = Value> {
    pub timestamp: String,
    pub data: T,
    /// Of the request that asked for this frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// How far a request has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub id: String,
    /// Bytes, or steps.
    #[serde(default)]
    pub done: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The process that was started, in the first progress of a streamed command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// Something went wrong that is nobody's answer: `{"type": "error_report" | "error", ...}`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorReport {
    #[serde(default)]
    pub timestamp: String,
    #[serde(flatten)]
    pub error: ErrorBody,
}

/// How the agent's connections are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionStatus {
    pub timestamp: String,
    pub status: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What a path is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    pub kind: FileKind,
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub modified: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Other,
}

macro_rules! messages {
    ($($(#[$doc:meta])* $variant:ident($inner:ty) = $tag:literal,)*) => {
        /// Anything that a guest may say.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(tag = "type")]
        pub enum GuestMessage {
            $($(#[$doc])* #[serde(rename = $tag)] $variant($inner),)*
        }

        impl GuestMessage {
            fn from_value(kind: &str, value: Value) -> Result<Self, GuestError> {
                match kind {
                    $($tag => fields(kind, value).map(Self::$variant),)*
                    _ => Err(GuestError::Type(kind.chars().take(64).collect())),
                }
            }
        }
    };
}

messages! {
    Handshake(Handshake) = "handshake",
    Noise(NoiseLine) = "noise",
    Response(Box<Response>) = "response",
    Metrics(MetricsMessage) = "metrics",
    Progress(Progress) = "progress",
    Ping(Ping) = "ping",
    Pong(Ping) = "pong",
    KeepAlive(KeepAlive) = "keep_alive",
    ConnectionStatus(ConnectionStatus) = "connection_status",
    ErrorReport(ErrorReport) = "error_report",
    Error(ErrorReport) = "error",
}

/// Why a text is nothing that a guest says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    #[error("no JSON")]
    Json(#[source] JsonError),
    #[error("no message has the type {0:?}")]
    Type(String),
    #[error("{kind}: {message}")]
    Fields { kind: String, message: String },
}

fn fields<T: DeserializeOwned>(kind: &str, value: Value) -> Result<T, GuestError> {
    serde_json::from_value(value).map_err(|error| GuestError::Fields {
        kind: kind.to_owned(),
        message: error.to_string().chars().take(512).collect(),
    })
}

impl GuestMessage {
    /// The message in a line or frame.
    pub fn parse(text: &[u8]) -> Result<Self, GuestError> {
        let mut value = parse_strict(text).map_err(GuestError::Json)?;
        let kind = match value.get("type") {
            Some(Value::String(kind)) => kind.clone(),
            // Some of the first agents leave it out of a response.
            None if value.get("id").is_some() && value.get("success").is_some() => "response".to_owned(),
            _ => return Err(GuestError::Type(String::new())),
        };
        // It is in the variant now; a handshake would keep it among what else it tells.
        value.as_object_mut().map(|fields| fields.remove("type"));
        Self::from_value(&kind, value)
    }

    /// The message as it is sent.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("keys are texts, and nothing in it fails")
    }
}

impl From<Response> for GuestMessage {
    fn from(response: Response) -> Self {
        Self::Response(Box::new(response))
    }
}
