//! What is known of a channel.

use std::fmt;
use std::time::SystemTime;

use roost_model::VmId;

/// What is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// Roost's agent: everything.
    Roost,
    /// The first agent, which speaks lines: metrics, safe and unsafe commands.
    Seed,
    /// An older vsock peer: one command after the other, and nothing else.
    Legacy,
    /// QEMU's: commands without a terminal, files, freeze and thaw.
    QemuGuestAgent,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Roost => "the Roost agent",
            Self::Seed => "the first agent",
            Self::Legacy => "the older vsock agent",
            Self::QemuGuestAgent => "QEMU's guest agent",
        })
    }
}

/// What was refused from a VM since it was attached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Lines and messages that were too long.
    pub long: u64,
    /// Messages that are none, or not of this time.
    pub messages: u64,
    /// Frames that did not fit the session or their stream.
    pub frames: u64,
    /// Bytes skipped while out of step.
    pub bytes: u64,
    /// Answers to nothing that was asked: forged, replayed or too late.
    pub replies: u64,
}

/// A channel as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    pub vm: VmId,
    pub connected: bool,
    /// Why it is not.
    pub why: Option<String>,
    /// Of the agent that is connected. This and what follows is the guest's word.
    pub flavour: Option<Flavour>,
    pub version: String,
    pub platform: String,
    pub capabilities: Vec<String>,
    pub boot_id: Option<String>,
    pub agent_id: Option<String>,
    /// The epoch that the agent is in.
    pub epoch: Option<u64>,
    /// Frames are sealed under the VM's key.
    pub sealed: bool,
    /// When it became connected, or ceased to be.
    pub since: SystemTime,
    pub dropped: Dropped,
}

impl Status {
    pub(crate) fn away(vm: VmId, why: impl Into<String>) -> Self {
        Self {
            vm,
            connected: false,
            why: Some(why.into()),
            flavour: None,
            version: String::new(),
            platform: String::new(),
            capabilities: Vec::new(),
            boot_id: None,
            agent_id: None,
            epoch: None,
            sealed: false,
            since: SystemTime::now(),
            dropped: Dropped::default(),
        }
    }

    pub(crate) fn connected(vm: VmId, flavour: Flavour) -> Self {
        Self { connected: true, why: None, flavour: Some(flavour), ..Self::away(vm, String::new()) }
    }
}

/// What the daemon is told without asking.
#[derive(Debug, Clone, PartialEq)]
pub enum HubEvent {
    Connected {
        vm: VmId,
        status: Box<Status>,
    },
    /// It is looked for again.
    Lost {
        vm: VmId,
        why: String,
    },
    /// The agent is in the epoch that the VM was attached with.
    Ready {
        vm: VmId,
        epoch: u64,
    },
    /// Attempts have failed so often that the channel rests for a while.
    Refused {
        vm: VmId,
        why: String,
    },
}
