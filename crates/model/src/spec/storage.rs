//! Disks and CD-ROM drives.

use serde::{Deserialize, Serialize};

use super::{AbsolutePath, check_device_id, words};
use crate::capability::Capability;
use crate::error::Invalid;

/// One block device of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Unique within the VM.
    pub id: String,
    /// The file behind it.
    pub path: AbsolutePath,
    /// Whether the guest may write.
    pub read_only: bool,
    /// The disk that firmware boots first when no order is given.
    pub is_root_device: bool,
    /// How the guest sees it (`interface_type` on the wire).
    pub bus: Bus,
    /// Pinned here and always passed on: a guest that writes another format's header changes nothing.
    pub format: DiskFormat,
    /// Disk or CD-ROM.
    pub device: Device,
}

/// The bus on which a guest sees a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// virtio-blk.
    #[default]
    Virtio,
    /// virtio-scsi.
    Scsi,
    /// AHCI.
    Sata,
}

/// The format of a disk file. No other is ever opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The bytes of the disk.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// What a block device is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// A disk.
    #[default]
    Disk,
    /// A CD-ROM drive with its medium; read-only.
    Cdrom,
}

words!(Bus, "interface_type", "virtio" => Virtio, "scsi" => Scsi, "sata" => Sata);
words!(DiskFormat, "format", "raw" => Raw, "qcow2" => Qcow2);
words!(Device, "device", "disk" => Disk, "cdrom" => Cdrom);

impl Disk {
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        check_device_id(&self.id)?;
        if self.device == Device::Cdrom {
            if !self.read_only {
                return Err(Invalid::new("read_only", false, "must be true for a cdrom"));
            }
            if self.bus == Bus::Virtio {
                return Err(Invalid::new("interface_type", self.bus, "has no CD-ROM drives").permit(["scsi", "sata"]));
            }
        }
        Ok(())
    }

    pub(crate) fn needs(&self) -> Vec<Capability> {
        let mut needs = vec![match self.format {
            DiskFormat::Raw => Capability::RawDisk,
            DiskFormat::Qcow2 => Capability::Qcow2Disk,
        }];
        match self.bus {
            Bus::Virtio => {}
            Bus::Scsi => needs.push(Capability::ScsiBus),
            Bus::Sata => needs.push(Capability::SataBus),
        }
        if self.device == Device::Cdrom {
            needs.push(Capability::Cdrom);
        }
        needs
    }
}
