//! How two new peers find out what they have in common.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What lines are bad at. Both ends name what they can; the agent chooses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Upgrade {
    /// Binary frames, and with them streams and files.
    Frames,
    /// Frames may be compressed.
    Zstd,
    /// Frames are sealed under the key that the host placed in the VM.
    E2e,
    /// Of a newer peer; never chosen.
    Other(String),
}

impl Upgrade {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Frames => "frames",
            Self::Zstd => "zstd",
            Self::E2e => "e2e",
            Self::Other(text) => text,
        }
    }
}

impl Serialize for Upgrade {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Upgrade {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(match text.as_str() {
            "frames" => Self::Frames,
            "zstd" => Self::Zstd,
            "e2e" => Self::E2e,
            _ => Self::Other(text),
        })
    }
}

/// What both want and this end can do. Compression and sealing are of frames: without those there is neither.
pub fn choose_upgrades(offered: &[Upgrade], can_seal: bool) -> Vec<Upgrade> {
    if !offered.contains(&Upgrade::Frames) {
        return Vec::new();
    }
    let wanted = [Upgrade::Frames, Upgrade::Zstd, Upgrade::E2e];
    wanted.into_iter().filter(|upgrade| offered.contains(upgrade) && (can_seal || *upgrade != Upgrade::E2e)).collect()
}

/// What the host lets the agent do. The agent's own configuration may only narrow it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Commands of the host's choice. Absent: as the agent's configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsafe_commands: Option<bool>,
    /// Absolute directories beneath which files may be read and written. Absent: as the agent's configuration says,
    /// which is: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_roots: Option<Vec<String>>,
}

/// The host's first line: `{"type": "hello", ...}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: String,
    /// A nonce of the host's, which the handshake echoes.
    pub session: String,
    /// Counts the VM's restores and forks; every request of this session is for this epoch.
    #[serde(default)]
    pub epoch: u64,
    #[serde(default)]
    pub upgrades: Vec<Upgrade>,
    /// 0: no metrics but on request. Absent: as the agent's configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_interval_ms: Option<u64>,
    #[serde(default)]
    pub policy: Policy,
}

/// The agent's first line: `{"type": "handshake", ...}`; also its answer to each hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshake {
    /// RFC 3339, by the guest's clock.
    pub timestamp: String,
    /// What the guest takes itself to be. Informative only: a VM is known by its channel.
    pub vm_id: String,
    /// Of the agent.
    pub version: String,
    pub platform: String,
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Of the hello that this answers; absent in one that answers none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Of the protocol; absent in an old agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Of the guest's kernel: another one after each boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// Of this run of the agent: another one after each restart of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    /// The upgrades that were chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upgrades: Vec<Upgrade>,
    /// The epoch that the agent is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// What else an agent tells of itself.
    #[serde(flatten, skip_serializing_if = "BTreeMap::is_empty")]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// `{"type": "noise", "data": base64}`, one each way between a handshake that chose `e2e` and the first frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoiseLine {
    pub data: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choosing() {
        use Upgrade::{E2e, Frames, Other, Zstd};
        assert_eq!(choose_upgrades(&[Zstd, E2e], true), []);
        assert_eq!(choose_upgrades(&[Other("x".into()), E2e, Frames], true), [Frames, E2e]);
        assert_eq!(choose_upgrades(&[E2e, Zstd, Frames], false), [Frames, Zstd]);
    }

    #[test]
    fn the_seeds_handshake() {
        let handshake: Handshake = serde_json::from_str(
            r#"{"type":"handshake","timestamp":"2026-01-01T00:00:00Z","vm_id":"x","version":"1","platform":"linux","capabilities":["a"]}"#,
        )
        .unwrap();
        assert_eq!((handshake.session, handshake.upgrades.len()), (None, 0));
    }
}
