//! What QEMU's guest agent knows of its guest.

use roost_guest_proto::{Response, SafeCommand};
use serde_json::{Value, json};

use super::{Client, done, unsupported};
use crate::entry::{Answer, Entry};
use crate::error::CallError;
use crate::status::{Flavour, Status};

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().chars().take(128).collect()
}

impl Client {
    /// Who it is and what it can do.
    pub(super) async fn status(&self, entry: &Entry) -> Result<Status, CallError> {
        let info = self.ask("guest-info", Value::Null).await?;
        let commands = info.get("supported_commands").and_then(Value::as_array);
        let capabilities = commands
            .into_iter()
            .flatten()
            .filter(|command| command.get("enabled").and_then(Value::as_bool) == Some(true))
            .take(128)
            .map(|command| text(command, "name"))
            .collect();
        // Older ones do not know it.
        let os = self.optional("guest-get-osinfo").await?;
        Ok(Status {
            version: text(&info, "version"),
            platform: text(&os, "id"),
            capabilities,
            ..Status::connected(entry.vm, Flavour::QemuGuestAgent)
        })
    }

    /// Null where it does not know the command, or it is switched off.
    async fn optional(&self, command: &'static str) -> Result<Value, CallError> {
        match self.ask(command, Value::Null).await {
            Ok(value) => Ok(value),
            Err(CallError::Guest(_)) => Ok(Value::Null),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn safe(&self, command: &SafeCommand) -> Answer {
        match command.command_type.get("action").and_then(Value::as_str) {
            Some("SystemInfo" | "OsInfo") => {
                let data = json!({
                    "agent": text(&self.ask("guest-info", Value::Null).await?, "version"),
                    "os": self.optional("guest-get-osinfo").await?,
                    "hostname": self.optional("guest-get-host-name").await?.get("host-name"),
                    "interfaces": self.optional("guest-network-get-interfaces").await?,
                });
                Ok(Response { data: Some(data), ..done() })
            }
            _ => unsupported("safe command other than SystemInfo and OsInfo"),
        }
    }

    /// It is answered only if it does not work.
    pub(super) async fn shutdown(&self) -> Answer {
        let sent = self.connection.lock().await.tell("guest-shutdown", json!({ "mode": "powerdown" })).await;
        sent.map_err(|failure| CallError::OutcomeUnknown { what: "shutdown", why: failure.to_string() })?;
        Ok(done())
    }
}
