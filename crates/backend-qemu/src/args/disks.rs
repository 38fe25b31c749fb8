//! Block devices: two nodes each (the file, its format) and the guest's device on top.

use roost_backend::{BackendError, Definition};
use roost_model::spec::{Bus, Device, Disk, DiskFormat, MachineType};
use serde_json::{Value, json};

use super::places::{Places, Role};
use super::{Args, Plan, unsupported};

/// Ports of one AHCI controller.
const SATA_PORTS: usize = 6;
/// The longest serial number that virtio-blk and IDE carry (`VIRTIO_BLK_ID_BYTES`).
const SERIAL_LENGTH: usize = 20;

/// The name of a disk's top block node. Node names hold 31 bytes, a disk's ID 32: so by its number.
pub(crate) fn node_name(index: usize) -> String {
    format!("disk{index}")
}

pub(super) fn add(vm: &Definition, plan: &Plan<'_>, places: &mut Places, args: &mut Args) -> Result<(), BackendError> {
    let mut sata = 0;
    let mut scsi = 0;
    for (index, disk) in vm.spec.storage.iter().enumerate() {
        let block_device = plan.block_devices.get(index).copied().unwrap_or(false);
        args.json("-blockdev", &file_node(index, disk, block_device));
        args.json("-blockdev", &format_node(index, disk));
        let mut device = match disk.bus {
            Bus::Virtio => places.virtio("blk", Role::Disk)?,
            Bus::Scsi => {
                if scsi == 0 {
                    let mut controller = places.virtio("scsi", Role::Scsi)?;
                    controller["id"] = "roost-scsi".into();
                    args.json("-device", &controller);
                }
                scsi += 1;
                json!({ "driver": optical(disk, "scsi-cd", "scsi-hd"), "bus": "roost-scsi.0", "scsi-id": scsi - 1, "lun": 0 })
            }
            Bus::Sata => {
                if plan.machine == MachineType::Microvm {
                    let field = format!("storage[{index}].interface_type");
                    return Err(unsupported(field, disk.bus, "microvm has no SATA", "virtio, scsi, or machine q35"));
                }
                sata += 1;
                sata_device(disk, sata - 1, args)
            }
        };
        device["id"] = format!("disk-{}", disk.id).into();
        device["drive"] = node_name(index).into();
        if disk.id.len() <= SERIAL_LENGTH {
            device["serial"] = disk.id.as_str().into();
        }
        if let Some(place) = boot_index(vm, &disk.id) {
            device["bootindex"] = place.into();
        }
        args.json("-device", &device);
    }
    Ok(())
}

/// The place in the boot order: as listed, or the root device and then the disks as they come.
pub(super) fn boot_index(vm: &Definition, id: &str) -> Option<usize> {
    let listed = &vm.spec.boot.boot_order;
    if !listed.is_empty() {
        return listed.iter().position(|l| l == id).map(|at| at + 1);
    }
    let disks = &vm.spec.storage;
    let root = disks.iter().filter(|disk| disk.is_root_device);
    let order = root.chain(disks.iter().filter(|disk| !disk.is_root_device));
    order.enumerate().find(|(_, disk)| disk.id == id).map(|(at, _)| at + 1)
}

fn file_node(index: usize, disk: &Disk, block_device: bool) -> Value {
    json!({
        "driver": if block_device { "host_device" } else { "file" },
        "node-name": format!("{}-file", node_name(index)),
        "filename": disk.path.as_str(),
        "read-only": disk.read_only,
        "auto-read-only": false,
        "locking": "on",
        "discard": "unmap",
        // The host's cache, and a flush when the guest asks for one.
        "cache": { "direct": false, "no-flush": false },
    })
}

fn format_node(index: usize, disk: &Disk) -> Value {
    json!({
        "driver": match disk.format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        },
        "node-name": node_name(index),
        "file": format!("{}-file", node_name(index)),
        "read-only": disk.read_only,
        "discard": "unmap",
        "cache": { "direct": false, "no-flush": false },
    })
}

fn sata_device(disk: &Disk, number: usize, args: &mut Args) -> Value {
    let (controller, port) = (number / SATA_PORTS, number % SATA_PORTS);
    let bus = match controller {
        0 => format!("ide.{port}"),
        extra => {
            let id = format!("roost-sata{extra}");
            if port == 0 {
                let addr = Places::sata_controller(extra);
                args.json("-device", &json!({ "driver": "ich9-ahci", "id": id, "bus": "pcie.0", "addr": addr }));
            }
            format!("{id}.{port}")
        }
    };
    json!({ "driver": optical(disk, "ide-cd", "ide-hd"), "bus": bus })
}

fn optical(disk: &Disk, cd: &'static str, hd: &'static str) -> &'static str {
    match disk.device {
        Device::Cdrom => cd,
        Device::Disk => hd,
    }
}
