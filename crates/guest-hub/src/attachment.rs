//! What the daemon says of a VM's channel, and of all of them.

use std::path::PathBuf;
use std::time::Duration;

use roost_guest_proto::{Key, Policy};
use roost_model::VmId;

/// Limits and times of every channel.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// Calls that may be under way with one VM.
    pub queue: usize,
    /// For calls that name no time of their own.
    pub call_timeout: Duration,
    /// Silence after which an agent is asked for a sign of life; after as much again it is taken for gone.
    pub keep_alive: Duration,
    /// Bytes of messages that may wait for one VM.
    pub buffer_bytes: usize,
    /// Bytes of output and files of one VM that nobody has read yet. What passes it ends the stream that did.
    pub stream_bytes: usize,
    /// Commands and copies with a stream that may be under way with one VM.
    pub streams: usize,
    /// A copy that moves no byte for so long ends.
    pub stall: Duration,
    /// A hello that is not answered is sent again.
    pub hello_retry: Duration,
    /// How long QEMU's guest agent is not asked, because a better one may greet.
    pub fallback_after: Duration,
    pub connect_timeout: Duration,
    /// After a peer that hangs up.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// Failures in a row after which the channel rests.
    pub circuit_failures: u32,
    pub circuit_open: Duration,
    /// The longest metrics frame that is kept.
    pub metrics_bytes: usize,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            queue: 100,
            call_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(30),
            buffer_bytes: 1 << 20,
            stream_bytes: 8 << 20,
            streams: 64,
            stall: Duration::from_secs(60),
            hello_retry: Duration::from_millis(500),
            fallback_after: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(10),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(300),
            circuit_failures: 15,
            circuit_open: Duration::from_secs(60),
            metrics_bytes: 256 * 1024,
        }
    }
}

/// Where a channel is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket that leads to the agent's port.
    Unix(PathBuf),
    /// A Unix socket that takes `CONNECT <port>` first, as vhost-device-vsock, Firecracker and Cloud Hypervisor have.
    Vsock { uds: PathBuf, port: u32 },
}

/// A VM's channel, and what may be done over it.
#[derive(Debug, Clone)]
pub struct Attachment {
    pub vm: VmId,
    pub endpoint: Endpoint,
    /// The socket of QEMU's own guest agent, for guests that have no other.
    pub qemu_guest_agent: Option<PathBuf>,
    /// What the agent is told. What it leaves open is filled in from the fields below.
    pub policy: Policy,
    /// Commands of the caller's choice (`Exec`, `UnsafeCommand`).
    pub allow_exec: bool,
    /// Absolute directories in the guest beneath which files may be copied and looked at.
    pub file_roots: Vec<String>,
    /// The user that commands run as; a call that names another is refused. `None`: as the call says.
    pub exec_user: Option<String>,
    /// Zero: none but on request.
    pub metrics_interval: Duration,
    /// Counts the VM's restores and forks.
    pub epoch: u64,
    /// The key that the VM was given at its creation; with it, the channel is sealed where the agent can.
    pub key: Option<Key>,
}

impl Attachment {
    /// The policy as the agent is told.
    pub(crate) fn told_policy(&self) -> Policy {
        Policy {
            unsafe_commands: self.policy.unsafe_commands.or(Some(self.allow_exec)),
            file_roots: self.policy.file_roots.clone().or_else(|| Some(self.file_roots.clone())),
        }
    }

    /// What the agent was told in a hello is still so.
    pub(crate) fn says_the_same_as(&self, other: &Self) -> bool {
        self.told_policy() == other.told_policy()
            && self.metrics_interval == other.metrics_interval
            && self.key == other.key
    }

    pub(crate) fn metrics_interval_ms(&self) -> u64 {
        u64::try_from(self.metrics_interval.as_millis()).unwrap_or(u64::MAX)
    }
}
