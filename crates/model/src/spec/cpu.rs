//! Processors: how many, in which shape, of which model.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::capability::Capability;
use crate::error::Invalid;
use crate::text::checked_text;

/// The most virtual CPUs that any backend is asked for.
const MOST_VCPUS: u32 = 1024;

/// Processors of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// Virtual CPUs at boot.
    pub vcpu_count: u32,
    /// Room for hot-plug; at least `vcpu_count`.
    pub max_vcpu_count: u32,
    /// `None`: as the backend likes.
    pub topology: Option<Topology>,
    /// Features switched on or off on top of the model.
    pub features: BTreeMap<CpuFeature, bool>,
    /// `None`: the fastest that the accelerator offers.
    pub model: Option<CpuModel>,
}

/// The shape in which CPUs appear to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Sockets.
    pub sockets: u32,
    /// Cores in each socket.
    pub cores_per_socket: u32,
    /// Threads in each core.
    pub threads_per_core: u32,
}

/// A CPU model by the hypervisor's name for it (`host`, `max`, `Skylake-Server-v4`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuModel(String);

/// The name of a CPU feature (`avx2`, `hle`, `x2apic`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuFeature(String);

impl Default for Cpu {
    fn default() -> Self {
        Self { vcpu_count: 1, max_vcpu_count: 1, topology: None, features: BTreeMap::new(), model: None }
    }
}

impl Cpu {
    /// `count` CPUs and nothing else asked.
    pub fn with_count(count: u32) -> Self {
        Self { vcpu_count: count, max_vcpu_count: count, ..Self::default() }
    }

    pub(crate) fn check(&self) -> Result<(), Invalid> {
        if !(1..=MOST_VCPUS).contains(&self.vcpu_count) {
            return Err(Invalid::new("vcpu_count", self.vcpu_count, "is out of range").permit(["1 to 1024"]));
        }
        if !(self.vcpu_count..=MOST_VCPUS).contains(&self.max_vcpu_count) {
            return Err(Invalid::new("max_vcpu_count", self.max_vcpu_count, "is out of range")
                .permit([format!("{} (vcpu_count) to 1024", self.vcpu_count)]));
        }
        if let Some(t) = self.topology {
            let product = t
                .sockets
                .checked_mul(t.cores_per_socket)
                .and_then(|n| n.checked_mul(t.threads_per_core))
                .ok_or_else(|| Invalid::new("topology", format!("{t:?}"), "is too large"))?;
            if product != self.max_vcpu_count {
                return Err(Invalid::new(
                    "topology",
                    format!("{}x{}x{}", t.sockets, t.cores_per_socket, t.threads_per_core),
                    "does not multiply to max_vcpu_count",
                )
                .permit([format!("a product of {}", self.max_vcpu_count)]));
            }
        }
        Ok(())
    }

    pub(crate) fn needs(&self) -> Vec<Capability> {
        let mut needs = Vec::new();
        if self.max_vcpu_count > self.vcpu_count {
            needs.push(Capability::CpuHotplug);
        }
        if self.topology.is_some() {
            needs.push(Capability::CpuTopology);
        }
        if self.model.is_some() {
            needs.push(Capability::CpuModel);
        }
        if !self.features.is_empty() {
            needs.push(Capability::CpuFeatures);
        }
        needs
    }
}

macro_rules! cpu_word {
    ($name:ident, $field:literal) => {
        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                let fits = (1..=64).contains(&text.len())
                    && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
                if fits {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(Invalid::new($field, text, "is not a name").permit(["1-64 letters, digits, '-', '_' or '.'"]))
                }
            }
        }
    };
}
cpu_word!(CpuModel, "model");
cpu_word!(CpuFeature, "features");
checked_text!(CpuModel, CpuFeature);
