//! What a backend can do, asked before it is asked to do it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::spec::VmSpec;

macro_rules! capabilities {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// One thing that a backend can or cannot do. The text form is stable and part of the API.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Capability {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
        }

        impl Capability {
            /// Every capability there is.
            pub const ALL: &'static [Capability] = &[$(Capability::$variant,)*];

            /// The stable name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Capability::$variant => $text,)* }
            }
        }
    };
}

capabilities! {
    /// Stop and continue the virtual CPUs.
    Pause = "pause",
    /// Ask the guest to power off (ACPI or the like) instead of ending it.
    GracefulShutdown = "graceful-shutdown",
    /// Reset or restart the guest.
    Reboot = "reboot",
    /// A guest's panic is told apart from a power-off.
    PanicEvents = "panic-events",
    /// Find running machines again after the daemon's death.
    Adopt = "adopt",
    /// Boot a kernel given from outside.
    DirectKernelBoot = "direct-kernel-boot",
    /// Boot from a disk by firmware.
    DiskBoot = "disk-boot",
    /// A serial console.
    SerialConsole = "serial-console",
    /// A channel to an agent in the guest.
    AgentChannel = "agent-channel",
    /// Disks in raw format.
    RawDisk = "disk-raw",
    /// Disks in qcow2 format.
    Qcow2Disk = "disk-qcow2",
    /// CD-ROM drives.
    Cdrom = "cdrom",
    /// The SCSI bus for disks.
    ScsiBus = "disk-bus-scsi",
    /// The SATA bus for disks.
    SataBus = "disk-bus-sata",
    /// User-mode networking: no root needed.
    UserNetwork = "network-user",
    /// A TAP that exists already.
    TapNetwork = "network-tap",
    /// Sockets, cores and threads as asked.
    CpuTopology = "cpu-topology",
    /// A CPU model by name.
    CpuModel = "cpu-model",
    /// CPU features switched one by one.
    CpuFeatures = "cpu-features",
    /// Room for virtual CPUs to be added while the machine runs.
    CpuHotplug = "cpu-hotplug",
    /// Room for memory to be added while the machine runs.
    MemoryHotplug = "memory-hotplug",
    /// Guest memory that another process can map.
    SharedMemory = "memory-shared",
    /// Guest memory on huge pages.
    Hugepages = "memory-hugepages",
    /// Same-page merging of guest memory.
    MemoryMerge = "memory-merge",
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one backend on this host can do, as probed, never guessed from a version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities {
    /// The set.
    pub have: BTreeSet<Capability>,
    /// Machine types that a spec may name; the first is the default. Empty: the field is not used.
    pub machines: Vec<String>,
    /// Accelerators that work here (`kvm`, `tcg`); the first is what `auto` takes.
    pub accelerators: Vec<String>,
    /// Most virtual CPUs that a VM may have.
    pub max_vcpus: u32,
    /// What else is worth showing, e.g. `version`, `binary`, `accelerator-reason`.
    pub details: BTreeMap<String, String>,
}

impl Capabilities {
    /// Whether the backend has it.
    pub fn has(&self, capability: Capability) -> bool {
        self.have.contains(&capability)
    }

    /// The first capability that the spec needs and this backend lacks.
    pub fn lacking(&self, spec: &VmSpec) -> Option<Capability> {
        spec.needs().into_iter().find(|c| !self.has(*c))
    }
}
