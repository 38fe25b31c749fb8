//! What the older vsock peers say, one JSON object a line, one answer for each.
//!
//! ```text
//!   {cmd, args[], env?: ["K=V"]}                             -> {exit_code, stdout, stderr, error?}
//!   {type: "execute" | "get_secrets" | "shutdown", payload}  -> {type: "success" | "error", payload?, error?}
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::request::ParseError;
use crate::secret::Secret;

/// A request in one of the two forms.
#[derive(Debug, Clone, PartialEq)]
pub enum LegacyRequest {
    /// The older form.
    Run(LegacyCommand),
    /// The newer form of the same.
    Execute(LegacyCommand),
    /// Secrets to hold for later commands, where the payload has any. The answer names what is held, never a value.
    GetSecrets(BTreeMap<String, Secret>),
    Shutdown,
}

/// A command: a program and its arguments, without a shell.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct LegacyCommand {
    #[serde(alias = "command")]
    pub cmd: String,
    #[serde(default)]
    pub args: Vec<String>,
    /// `K=V` each.
    #[serde(default)]
    pub env: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
struct SecretsPayload {
    #[serde(default)]
    secrets: BTreeMap<String, Secret>,
}

impl LegacyRequest {
    /// The request, if the object has one of the forms; `None` where it has neither.
    pub fn parse(value: &Value) -> Option<Result<Self, ParseError>> {
        let object = value.as_object()?;
        let command = |value: &Value, form: fn(LegacyCommand) -> Self| {
            LegacyCommand::deserialize(value).map(form).map_err(|error| ParseError::fields(value, "cmd", error))
        };
        match object.get("type").and_then(Value::as_str) {
            None if object.contains_key("cmd") => Some(command(value, Self::Run)),
            Some("execute") => Some(command(object.get("payload").unwrap_or(&Value::Null), Self::Execute)),
            Some("get_secrets") => {
                let payload = match object.get("payload") {
                    None | Some(Value::Null) => Ok(SecretsPayload::default()),
                    Some(payload) => SecretsPayload::deserialize(payload),
                };
                Some(
                    payload
                        .map(|payload| Self::GetSecrets(payload.secrets))
                        .map_err(|error| ParseError::fields(value, "get_secrets", error)),
                )
            }
            Some("shutdown") => Some(Ok(Self::Shutdown)),
            _ => None,
        }
    }
}

/// What came of a command, in the older form; also the payload of the newer one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegacyOutput {
    pub exit_code: i32,
    pub stdout: String,
    pub stderr: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// An answer in the newer form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum LegacyReply {
    Success {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        payload: Option<Value>,
    },
    Error {
        error: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        payload: Option<Value>,
    },
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_forms() {
        let run = LegacyRequest::parse(&json!({"cmd": "ls", "args": ["-l"], "env": ["A=b"]})).unwrap().unwrap();
        let command = LegacyCommand { cmd: "ls".into(), args: vec!["-l".into()], env: Some(vec!["A=b".into()]) };
        assert_eq!(run, LegacyRequest::Run(command.clone()));
        let execute = json!({"type": "execute", "payload": {"cmd": "ls", "args": ["-l"], "env": ["A=b"]}});
        assert_eq!(LegacyRequest::parse(&execute).unwrap().unwrap(), LegacyRequest::Execute(command));
        assert_eq!(LegacyRequest::parse(&json!({"type": "shutdown"})).unwrap().unwrap(), LegacyRequest::Shutdown);
        assert!(LegacyRequest::parse(&json!({"type": "execute"})).unwrap().is_err());
        assert!(LegacyRequest::parse(&json!({"type": "SafeCommand"})).is_none());
        assert!(LegacyRequest::parse(&json!([])).is_none());
    }

    #[test]
    fn answers() {
        let reply = serde_json::to_value(LegacyReply::Error { error: "no".into(), payload: None }).unwrap();
        assert_eq!(reply, json!({"type": "error", "error": "no"}));
        let output = serde_json::to_value(LegacyOutput { exit_code: 1, ..Default::default() }).unwrap();
        assert_eq!(output, json!({"exit_code": 1, "stdout": "", "stderr": ""}));
    }
}
