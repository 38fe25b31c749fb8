//! Where devices sit: fixed places, so that a device that comes or goes moves no other.
//!
//! ```text
//!   q35, slots of pcie.0          microvm, virtio-mmio buses from the last one down, which is
//!     1       left for graphics     the order in which a guest finds them: disks, then NICs,
//!     2       random numbers        then the rest, in the spec's order
//!     3       SCSI controller
//!     4..11   NICs
//!     12      virtio-serial, for agents
//!     16..23  virtio disks, up to 3 functions each
//!     24..27  SATA controllers beyond the built-in one
//!     31      the chipset's own
//! ```

use roost_backend::BackendError;
use roost_model::VmSpec;
use roost_model::spec::{Bus, MachineType};
use serde_json::{Value, json};

use super::unsupported;

/// The virtio-mmio buses that devices are put on (`microvm_devices_init` in `hw/i386/microvm.c`). With a
/// second IO-APIC there are 24, one on each of its pins; number 0 is left out, as Linux gets no interrupt
/// from pin 0. Without one there are 8, on pins of the first.
const MMIO_BUSES: std::ops::RangeInclusive<usize> = 1..=23;
const FEW_MMIO_BUSES: std::ops::RangeInclusive<usize> = 0..=7;

const RANDOM_SLOT: usize = 2;
const SCSI_SLOT: usize = 3;
const FIRST_NIC_SLOT: usize = 4;
const SERIAL_SLOT: usize = 12;
const FIRST_DISK_SLOT: usize = 16;
const DISK_SLOTS: usize = 8;
const FIRST_SATA_SLOT: usize = 24;

/// What a place is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Disk,
    Nic,
    Scsi,
    Random,
    Serial,
}

#[derive(Debug)]
pub(super) struct Places {
    machine: MachineType,
    /// More virtio disks than slots for them.
    shared_slots: bool,
    /// Disks and NICs on PCI so far.
    disks: usize,
    nics: usize,
    /// What is left of virtio-mmio.
    buses: std::iter::Rev<std::ops::RangeInclusive<usize>>,
    devices: usize,
}

impl Places {
    /// `second_ioapic`: a microvm has one.
    pub(super) fn new(machine: MachineType, second_ioapic: bool, spec: &VmSpec) -> Self {
        let virtio_disks = spec.storage.iter().filter(|disk| disk.bus == Bus::Virtio).count();
        let buses = if second_ioapic { MMIO_BUSES } else { FEW_MMIO_BUSES };
        let devices = buses.clone().count();
        Self { machine, shared_slots: virtio_disks > DISK_SLOTS, disks: 0, nics: 0, buses: buses.rev(), devices }
    }

    /// The driver of a virtio device and its place, ready for more properties.
    pub(super) fn virtio(&mut self, kind: &str, role: Role) -> Result<Value, BackendError> {
        match self.machine {
            MachineType::Q35 => {
                let mut device = json!({ "driver": format!("virtio-{kind}-pci"), "bus": "pcie.0" });
                device["addr"] = self.pci(role).into();
                if role == Role::Disk && self.shared_slots && self.disks <= DISK_SLOTS {
                    device["multifunction"] = true.into();
                }
                Ok(device)
            }
            MachineType::Microvm => {
                let Some(bus) = self.buses.next() else {
                    let permitted = format!("{} virtio devices, one of them for random numbers", self.devices);
                    return Err(unsupported("devices", self.devices + 1, "microvm has too few places", &permitted));
                };
                Ok(json!({ "driver": format!("virtio-{kind}-device"), "bus": format!("virtio-mmio-bus.{bus}") }))
            }
        }
    }

    fn pci(&mut self, role: Role) -> String {
        let (slot, function) = match role {
            Role::Random => (RANDOM_SLOT, 0),
            Role::Scsi => (SCSI_SLOT, 0),
            Role::Serial => (SERIAL_SLOT, 0),
            Role::Nic => {
                self.nics += 1;
                (FIRST_NIC_SLOT + self.nics - 1, 0)
            }
            Role::Disk => {
                let index = self.disks;
                self.disks += 1;
                (FIRST_DISK_SLOT + index % DISK_SLOTS, index / DISK_SLOTS)
            }
        };
        address(slot, function)
    }

    /// The place of SATA controller `index`, from 1: number 0 is built in.
    pub(super) fn sata_controller(index: usize) -> String {
        address(FIRST_SATA_SLOT + index - 1, 0)
    }
}

/// A PCI address as `-device` takes it: hexadecimal slot and function.
fn address(slot: usize, function: usize) -> String {
    format!("{slot:#x}.{function:#x}")
}
