//! What a response says when a request failed.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What kind of failure it was.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
            /// A code that this version does not know, kept as it came.
            Other(String),
        }

        impl ErrorCode {
            /// The code on the wire.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Other(text) => text,
                }
            }

            fn from_text(text: &str) -> Self {
                match text {
                    $($text => Self::$name,)*
                    // Bounded, as it comes from the other end.
                    _ => Self::Other(text.chars().take(64).collect()),
                }
            }
        }
    };
}

codes! {
    DeviceNotFound = "DEVICE_NOT_FOUND",
    ConnectionFailed = "CONNECTION_FAILED",
    /// The request has a field that is missing, of the wrong type or out of range.
    InvalidMessage = "INVALID_MESSAGE",
    CommandTimeout = "COMMAND_TIMEOUT",
    /// The VM's policy, or the guest's kernel, does not permit it.
    PermissionDenied = "PERMISSION_DENIED",
    CommandFailed = "COMMAND_FAILED",
    /// No such type of request or action.
    UnknownCommand = "UNKNOWN_COMMAND",
    /// Too many, too much or too large; or what the agent may use is used up.
    ResourceLimit = "RESOURCE_LIMIT",
    /// The request is for an epoch that is not the agent's: the VM was restored or forked since.
    EpochMismatch = "EPOCH_MISMATCH",
    Cancelled = "CANCELLED",
    /// The guest has no means for it; the message names what is missing.
    NotSupported = "NOT_SUPPORTED",
    /// No such file, service, package, process or command.
    NotFound = "NOT_FOUND",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::from_text(&text))
    }
}

/// Why a request failed: for a program, for a person, and what else is known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorBody {
    pub code: ErrorCode,
    pub message: String,
    /// Absent or null: nothing more is known. The seeds' peers look for the key.
    #[serde(default)]
    pub details: Option<Value>,
}

impl ErrorBody {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: None }
    }

    /// A field is wrong: the details name it.
    pub fn field(field: &str, message: impl Into<String>) -> Self {
        let details = Some(serde_json::json!({ "field": field }));
        Self { code: ErrorCode::InvalidMessage, message: message.into(), details }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_texts() {
        assert_eq!(serde_json::to_string(&ErrorCode::EpochMismatch).unwrap(), "\"EPOCH_MISMATCH\"");
        assert_eq!(serde_json::from_str::<ErrorCode>("\"COMMAND_TIMEOUT\"").unwrap(), ErrorCode::CommandTimeout);
        let other: ErrorCode = serde_json::from_str("\"OF_A_NEWER_PEER\"").unwrap();
        assert_eq!(serde_json::to_string(&other).unwrap(), "\"OF_A_NEWER_PEER\"");
    }

    #[test]
    fn a_seed_error_without_details() {
        let error: ErrorBody = serde_json::from_str(r#"{"code":"COMMAND_FAILED","message":"no"}"#).unwrap();
        assert_eq!(error.details, None);
        assert!(serde_json::to_string(&error).unwrap().contains("\"details\":null"));
    }
}
