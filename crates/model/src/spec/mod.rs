//! What a VM is to be: the parsed and checked form of the seed's `VmConfig`.
//!
//! A `VmSpec` that exists has been through [`VmSpec::check`] at the edge; the wire form is another
//! type, and so is a hypervisor's. Field names are the wire's, so that an error's path reads the
//! same on every face.

mod agent;
mod boot;
mod cpu;
mod memory;
mod network;
mod restart;
mod storage;
pub mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use agent::{Agent, AgentChannel, GuestUser, Idle, IdleAction};
pub use boot::{AbsolutePath, Boot, KernelArgs};
pub use cpu::{Cpu, CpuFeature, CpuModel, Topology};
pub use memory::{Backing, Memory};
pub use network::{Forward, MacAddress, Nic, NicKind, Protocol};
pub use restart::{RestartMode, RestartPolicy};
pub use storage::{Bus, Device, Disk, DiskFormat};
pub use tools::{Tool, ToolName, ToolVersion};

use crate::capability::Capability;
use crate::error::Invalid;

/// The desired shape of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Processors.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// What the VM starts from.
    pub boot: Boot,
    /// Disks and CD-ROM drives, in the order of their device names.
    pub storage: Vec<Disk>,
    /// Network interfaces, in order.
    pub network: Vec<Nic>,
    /// The serial console.
    pub console: Console,
    /// The owner's own words; never interpreted.
    pub metadata: BTreeMap<String, String>,
    /// What happens when the machine ends by itself.
    pub restart_policy: RestartPolicy,
    /// The VM is deleted this long after its creation.
    pub time_to_live: Option<Duration>,
    /// The machine type; `None` is the backend's default.
    pub machine: Option<MachineType>,
    /// How guest instructions run.
    pub accelerator: Accelerator,
    /// The guest agent.
    #[serde(default)]
    pub agent: Agent,
    /// What is installed in the guest as part of the creation, in order.
    #[serde(default)]
    pub tools: Vec<Tool>,
    /// What happens when nothing is done in the VM for a while.
    #[serde(default)]
    pub idle: Option<Idle>,
}

/// The serial console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// Whether there is one.
    pub enabled: bool,
}

/// A board that a hypervisor emulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineType {
    /// PCI Express, ACPI, firmware: the general-purpose one.
    Q35,
    /// virtio-mmio only, no PCI: the smallest.
    Microvm,
}

/// How guest instructions run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The best that the host can really do.
    #[default]
    Auto,
    /// The host's KVM, or an error.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// Implements the text form of a closed set of words.
macro_rules! words {
    ($type:ident, $field:literal, $($text:literal => $variant:ident),+ $(,)?) => {
        impl $type {
            /// The word on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $($type::$variant => $text,)+ }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::error::Invalid;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($text => Ok($type::$variant),)+
                    _ => Err($crate::error::Invalid::new($field, text, "is not one of the permitted words")
                        .permit([$($text),+])),
                }
            }
        }
    };
}
pub(crate) use words;

words!(MachineType, "machine", "q35" => Q35, "microvm" => Microvm);
words!(Accelerator, "accelerator", "auto" => Auto, "kvm" => Kvm, "tcg" => Tcg);

impl VmSpec {
    /// The smallest spec: one CPU, the given memory, everything else as a newcomer would leave it.
    pub fn minimal(memory: Memory, boot: Boot) -> Self {
        Self {
            cpu: Cpu::default(),
            memory,
            boot,
            storage: Vec::new(),
            network: Vec::new(),
            console: Console { enabled: true },
            metadata: BTreeMap::new(),
            restart_policy: RestartPolicy::default(),
            time_to_live: None,
            machine: None,
            accelerator: Accelerator::Auto,
            agent: Agent::default(),
            tools: Vec::new(),
            idle: None,
        }
    }

    /// Checks what no single field can: limits, references and uniqueness across fields.
    pub fn check(&self) -> Result<(), Invalid> {
        self.cpu.check().map_err(|e| e.under("cpu"))?;
        self.memory.check().map_err(|e| e.under("memory"))?;
        self.check_devices()?;
        self.check_boot()?;
        self.restart_policy.check().map_err(|e| e.under("restart_policy"))?;
        self.check_metadata()?;
        self.agent.check().map_err(|e| e.under("agent"))?;
        self.check_tools()?;
        if let Some(idle) = self.idle {
            idle.check()?;
        }
        if let Some(ttl) = self.time_to_live
            && !(1..=10 * 365 * 86_400).contains(&ttl.as_secs())
        {
            return Err(
                Invalid::new("time_to_live_seconds", ttl.as_secs(), "is out of range").permit(["1 second to 10 years"])
            );
        }
        Ok(())
    }

    /// What a backend must have to run this spec.
    pub fn needs(&self) -> BTreeSet<Capability> {
        let mut needs = BTreeSet::new();
        needs.extend(self.cpu.needs());
        needs.extend(self.memory.needs());
        needs.insert(if self.boot.kernel_path.is_some() { Capability::DirectKernelBoot } else { Capability::DiskBoot });
        needs.extend(self.storage.iter().flat_map(Disk::needs));
        needs.extend(self.network.iter().map(|nic| match nic.kind {
            NicKind::User { .. } => Capability::UserNetwork,
            NicKind::Tap { .. } => Capability::TapNetwork,
        }));
        if self.console.enabled {
            needs.insert(Capability::SerialConsole);
        }
        if self.agent.channel == AgentChannel::On || !self.tools.is_empty() {
            needs.insert(Capability::AgentChannel);
        }
        needs
    }

    fn check_devices(&self) -> Result<(), Invalid> {
        const MOST_DISKS: usize = 24;
        const MOST_NICS: usize = 8;
        if self.storage.len() > MOST_DISKS {
            return Err(Invalid::new("storage", self.storage.len(), "has too many devices").permit(["at most 24"]));
        }
        if self.network.len() > MOST_NICS {
            return Err(Invalid::new("network", self.network.len(), "has too many interfaces").permit(["at most 8"]));
        }
        let mut ids = BTreeSet::new();
        let mut paths = BTreeSet::new();
        for (i, disk) in self.storage.iter().enumerate() {
            let at = format!("storage[{i}]");
            disk.check().map_err(|e| e.under(&at))?;
            if !ids.insert(disk.id.as_str()) {
                return Err(Invalid::new("id", &disk.id, "is used twice").under(&at));
            }
            if !disk.read_only && !paths.insert(&disk.path) {
                return Err(Invalid::new("path", &disk.path, "is written by two devices").under(&at));
            }
        }
        let mut macs = BTreeSet::new();
        for (i, nic) in self.network.iter().enumerate() {
            let at = format!("network[{i}]");
            nic.check().map_err(|e| e.under(&at))?;
            if !ids.insert(nic.id.as_str()) {
                return Err(Invalid::new("id", &nic.id, "is used twice").under(&at));
            }
            if let Some(mac) = nic.mac_address
                && !macs.insert(mac)
            {
                return Err(Invalid::new("mac_address", mac, "is used twice").under(&at));
            }
        }
        if self.storage.iter().filter(|d| d.is_root_device).count() > 1 {
            return Err(
                Invalid::new("storage", "", "has more than one root device").permit(["is_root_device on at most one"])
            );
        }
        Ok(())
    }

    fn check_boot(&self) -> Result<(), Invalid> {
        if self.boot.kernel_path.is_none() && self.storage.is_empty() {
            return Err(Invalid::new("boot", "", "names nothing to start from")
                .permit(["boot.kernel_path, or a disk in storage"]));
        }
        if self.boot.kernel_path.is_none() && self.boot.initrd_path.is_some() {
            return Err(Invalid::new("boot.initrd_path", "", "needs boot.kernel_path"));
        }
        if self.boot.kernel_path.is_none() && !self.boot.kernel_args.is_empty() {
            return Err(Invalid::new("boot.kernel_args", &self.boot.kernel_args, "needs boot.kernel_path"));
        }
        let mut seen = BTreeSet::new();
        for (i, id) in self.boot.boot_order.iter().enumerate() {
            let at = format!("boot.boot_order[{i}]");
            let known: Vec<&str> =
                self.storage.iter().map(|d| d.id.as_str()).chain(self.network.iter().map(|n| n.id.as_str())).collect();
            if !known.contains(&id.as_str()) {
                return Err(Invalid::new(at, id, "names no device of this VM").permit(known));
            }
            if !seen.insert(id) {
                return Err(Invalid::new(at, id, "is listed twice"));
            }
        }
        Ok(())
    }

    fn check_tools(&self) -> Result<(), Invalid> {
        if self.tools.len() > 64 {
            return Err(Invalid::new("tools", self.tools.len(), "has too many entries").permit(["at most 64"]));
        }
        if !self.tools.is_empty() && self.agent.channel == AgentChannel::Off {
            return Err(Invalid::new("tools", self.tools.len(), "needs the guest agent")
                .permit(["agent.channel auto or on", "no tools"]));
        }
        let mut names = BTreeSet::new();
        for (i, tool) in self.tools.iter().enumerate() {
            let at = format!("tools[{i}]");
            tool.check(self.agent.allow_exec).map_err(|e| e.under(&at))?;
            if !names.insert(tool.name.as_str()) {
                return Err(Invalid::new("name", &tool.name, "is listed twice").under(&at));
            }
        }
        Ok(())
    }

    fn check_metadata(&self) -> Result<(), Invalid> {
        if self.metadata.len() > 64 {
            return Err(Invalid::new("metadata", self.metadata.len(), "has too many entries").permit(["at most 64"]));
        }
        for (key, value) in &self.metadata {
            if key.is_empty() || key.len() > 128 || key.chars().any(char::is_control) {
                return Err(
                    Invalid::new("metadata", key, "is not a key").permit(["1-128 bytes without control characters"])
                );
            }
            if value.len() > 4096 {
                return Err(
                    Invalid::new(format!("metadata.{key}"), value, "is too long").permit(["at most 4096 bytes"])
                );
            }
        }
        Ok(())
    }
}

/// A device's ID within its VM: it becomes part of device names, so its alphabet is small.
pub(crate) fn check_device_id(id: &str) -> Result<(), Invalid> {
    let fits = (1..=32).contains(&id.len())
        && id.as_bytes()[0].is_ascii_alphabetic()
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fits {
        Ok(())
    } else {
        Err(Invalid::new("id", id, "is not a device ID")
            .permit(["1-32 letters, digits, '-' or '_', starting with a letter"]))
    }
}

#[cfg(test)]
mod tests;
