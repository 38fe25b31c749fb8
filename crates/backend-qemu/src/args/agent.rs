//! The channels into the guest: two ports of one virtio-serial device, each a Unix socket that was made for
//! QEMU and handed over listening, so that any later daemon can connect to it.
//!
//! The second port is what the guest agent of stock images looks for.

use roost_backend::{BackendError, Definition};
use roost_model::spec::AgentChannel;
use serde_json::json;

use super::places::{Places, Role};
use super::{AGENT_FD, Args, Plan, QEMU_GUEST_AGENT_FD, unsupported};

/// Ports by the names that agents look for, with the socket's descriptor and the name of its chardev.
const PORTS: [(&str, &str, i32); 2] =
    [("org.roost.agent.0", "agent0", AGENT_FD), ("org.qemu.guest_agent.0", "qga0", QEMU_GUEST_AGENT_FD)];

/// Adds the ports. Comes last: a board without a place left goes without, unless a channel is demanded.
///
/// Returns whether they are there, and with that whether QEMU needs the sockets.
pub(super) fn add(
    vm: &Definition,
    plan: &Plan<'_>,
    places: &mut Places,
    args: &mut Args,
) -> Result<bool, BackendError> {
    let wanted = vm.spec.agent.channel;
    if wanted == AgentChannel::Off {
        return Ok(false);
    }
    let place = if plan.probe.has("device:virtserialport") {
        places.virtio("serial", Role::Serial)
    } else {
        Err(unsupported("agent.channel", wanted, "this QEMU has no virtio-serial", "auto or off"))
    };
    let mut device = match place {
        Ok(device) => device,
        Err(_) if wanted == AgentChannel::Auto => return Ok(false),
        Err(error) => return Err(error),
    };
    device["id"] = "roost-serial".into();
    // Port 0 is left to consoles.
    device["max_ports"] = (PORTS.len() + 1).into();
    args.json("-device", &device);
    for ((name, chardev, fd), number) in PORTS.into_iter().zip(1..) {
        args.value("-chardev", format!("socket,id={chardev},fd={fd},server=on,wait=off"));
        args.json(
            "-device",
            &json!({ "driver": "virtserialport", "bus": "roost-serial.0", "nr": number, "chardev": chardev, "name": name }),
        );
    }
    Ok(true)
}
