//! The guest agent: whether there is a channel to it, and what it may be asked to do.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{AbsolutePath, words};
use crate::error::Invalid;
use crate::text::checked_text;

/// What the guest agent is for this VM. The defaults let it report and be asked typed things; running
/// programs and reaching files have to be permitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Whether there is a channel.
    pub channel: AgentChannel,
    /// Whether programs of the caller's choice may be run.
    pub allow_exec: bool,
    /// Directories of the guest within which files may be read and written; none: no file access.
    pub file_roots: Vec<AbsolutePath>,
    /// The guest's user that programs run as when the caller names none; `None` is the agent's own.
    pub exec_user: Option<GuestUser>,
    /// How often the agent reports metrics.
    pub metrics_interval: Duration,
}

/// Whether there is a channel to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentChannel {
    /// Where the backend has one to offer.
    #[default]
    Auto,
    /// There is one, or the VM is refused.
    On,
    /// There is none.
    Off,
}

words!(AgentChannel, "channel", "auto" => Auto, "on" => On, "off" => Off);

/// What a VM does when nothing was done in it for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Idle {
    /// After this long without a command, a file copied or a console attached.
    pub timeout: Duration,
    /// What happens then.
    pub action: IdleAction,
}

/// What happens to a VM that is idle for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdleAction {
    /// It is shut down.
    #[default]
    Stop,
    /// It is deleted.
    Delete,
}

words!(IdleAction, "idle_action", "stop" => Stop, "delete" => Delete);

/// A name of a user in a guest, as `useradd` of the usual distributions takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GuestUser(String);

checked_text!(GuestUser);

impl FromStr for GuestUser {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let first = |b: u8| b.is_ascii_lowercase() || b == b'_';
        let rest = |b: u8| first(b) || b.is_ascii_digit() || b == b'-' || b == b'.';
        let bytes = text.as_bytes();
        let fits = (1..=32).contains(&bytes.len()) && first(bytes[0]) && bytes.iter().all(|b| rest(*b));
        if fits {
            return Ok(Self(text.to_owned()));
        }
        Err(Invalid::new("user", text, "is no user name")
            .permit(["1-32 lower-case letters, digits, '_', '-' or '.', starting with a letter or '_'"]))
    }
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            channel: AgentChannel::Auto,
            allow_exec: false,
            file_roots: Vec::new(),
            exec_user: None,
            metrics_interval: Duration::from_secs(30),
        }
    }
}

impl Agent {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.file_roots.len() > 32 {
            return Err(
                Invalid::new("file_roots", self.file_roots.len(), "has too many entries").permit(["at most 32"])
            );
        }
        let seconds = self.metrics_interval.as_secs();
        if !(1..=3600).contains(&seconds) {
            return Err(
                Invalid::new("metrics_interval_seconds", seconds, "is out of range").permit(["1 second to 1 hour"])
            );
        }
        Ok(())
    }
}

impl Idle {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let seconds = self.timeout.as_secs();
        if (10..=365 * 86_400).contains(&seconds) {
            return Ok(());
        }
        Err(Invalid::new("idle_timeout_seconds", seconds, "is out of range").permit(["10 seconds to 1 year"]))
    }
}
