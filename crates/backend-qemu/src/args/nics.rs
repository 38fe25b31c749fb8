//! Network interfaces: virtio, on QEMU's user-mode network or on a TAP that was opened for it.

use std::net::IpAddr;

use roost_backend::{BackendError, Definition};
use roost_model::VmId;
use roost_model::spec::{Forward, MacAddress, NicKind, Protocol};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::disks::boot_index;
use super::places::{Places, Role};
use super::{Args, FIRST_TAP_FD, unsupported};

/// The address of interface `index` of a VM that names none: the same whenever it is asked for.
pub(crate) fn mac_of(vm: VmId, index: usize) -> MacAddress {
    let digest = Sha256::new().chain_update(vm.uuid().as_bytes()).chain_update((index as u64).to_be_bytes()).finalize();
    MacAddress::local([digest[0], digest[1], digest[2], digest[3], digest[4]])
}

pub(super) fn add(vm: &Definition, places: &mut Places, args: &mut Args) -> Result<(), BackendError> {
    let mut taps = 0;
    for (index, nic) in vm.spec.network.iter().enumerate() {
        let id = format!("net{index}");
        let backend = match &nic.kind {
            NicKind::User { port_forwards } => {
                let forwards = port_forwards.iter().enumerate().map(|(i, forward)| {
                    let field = format!("network[{index}].port_forwards[{i}].host_address");
                    forward_rule(forward, &field)
                });
                let forwards: Vec<Value> = forwards.collect::<Result<_, _>>()?;
                // Without `restrict` the guest reaches the host's loopback at 10.0.2.2.
                let mut user = json!({ "type": "user", "id": id, "restrict": true });
                if !forwards.is_empty() {
                    user["hostfwd"] = forwards.into();
                }
                user
            }
            NicKind::Tap { .. } => {
                taps += 1;
                json!({ "type": "tap", "id": id, "fds": (FIRST_TAP_FD + taps - 1).to_string(), "vhost": false })
            }
        };
        args.json("-netdev", &backend);
        let mut device = places.virtio("net", Role::Nic)?;
        device["id"] = format!("nic-{}", nic.id).into();
        device["netdev"] = id.into();
        device["mac"] = nic.mac_address.unwrap_or_else(|| mac_of(vm.id, index)).to_string().into();
        match boot_index(vm, &nic.id) {
            Some(place) => device["bootindex"] = place.into(),
            // Nothing boots from it: no need for its boot ROM, which another package carries.
            None if device["bus"] == "pcie.0" => device["romfile"] = "".into(),
            None => {}
        }
        args.json("-device", &device);
    }
    Ok(())
}

/// `hostfwd` of `-netdev user`: QEMU's user-mode network listens on IPv4 only.
fn forward_rule(forward: &Forward, field: &str) -> Result<Value, BackendError> {
    let IpAddr::V4(address) = forward.host_address else {
        let problem = "user-mode networking listens on IPv4 only";
        return Err(unsupported(
            field,
            forward.host_address,
            problem,
            "127.0.0.1, 0.0.0.0 or another IPv4 address of the host",
        ));
    };
    let protocol = match forward.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    Ok(json!({ "str": format!("{protocol}:{address}:{}-:{}", forward.host_port, forward.guest_port) }))
}
