//! The guest agent: whether there is a channel to it.

use serde::{Deserialize, Serialize};

use super::words;

/// The guest agent of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Whether there is a channel.
    pub channel: AgentChannel,
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
