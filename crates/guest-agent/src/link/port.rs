//! Which virtio-serial port is the agent's. Names first, as the host gave them; numbers only when no name fits.
//!
//! Names come from sysfs, so that it works without udev; the links that udev makes are looked at too, for a sysfs that
//! is not mounted.

use std::fs;
use std::path::{Path, PathBuf};

use roost_guest_proto::PORT_NAME;

/// The names by which older hosts call it.
const OTHER_NAMES: &[&str] = &["org.infinibay.agent", "org.infinibay.agent.0"];

/// Ports of QEMU's own agent: shared by those hosts that give no other.
const QEMU_AGENT: &str = "org.qemu.guest_agent.";

/// Ports that are certainly somebody else's.
const FOREIGN: &[&str] = &["com.redhat.", "org.spice-space.", "org.libguestfs."];

/// A port that a guest has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) device: PathBuf,
    /// As the host calls it; empty where it said nothing.
    pub(crate) name: String,
}

/// The ports that a guest has, by the two directories that tell: `/sys/class/virtio-ports` and `/dev`.
pub(crate) fn ports(sys: &Path, dev: &Path) -> Vec<Port> {
    let mut found: Vec<Port> = Vec::new();
    for entry in fs::read_dir(sys).into_iter().flatten().flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        found.push(Port { device: dev.join(entry.file_name()), name: name.trim().to_owned() });
    }
    for entry in fs::read_dir(dev.join("virtio-ports")).into_iter().flatten().flatten() {
        let device = fs::canonicalize(entry.path()).unwrap_or_else(|_| entry.path());
        if !found.iter().any(|port| port.device == device) {
            found.push(Port { device, name: entry.file_name().to_string_lossy().into_owned() });
        }
    }
    for entry in fs::read_dir(dev).into_iter().flatten().flatten() {
        let device = entry.path();
        if number(&device).is_some() && !found.iter().any(|port| port.device == device) {
            found.push(Port { device, name: String::new() });
        }
    }
    found
}

/// The order in which to try them.
pub(crate) fn in_order(mut ports: Vec<Port>) -> Vec<Port> {
    ports.retain(|port| rank(port).is_some());
    ports.sort_by_key(|port| (rank(port), number(&port.device)));
    ports
}

fn rank(port: &Port) -> Option<u8> {
    Some(match port.name.as_str() {
        PORT_NAME => 0,
        name if OTHER_NAMES.contains(&name) => 1,
        name if name.starts_with(QEMU_AGENT) => 2,
        name if FOREIGN.iter().any(|foreign| name.starts_with(foreign)) => return None,
        // A port with a name of its own is for somebody who knows it.
        "" => match number(&port.device)? {
            (_, 1) => 3,
            (_, 0) => return None,
            _ => 4,
        },
        _ => 5,
    })
}

/// `vport3p1` is port 1 of device 3. Port 0 is a console.
fn number(device: &Path) -> Option<(u32, u32)> {
    let (device, port) = device.file_name()?.to_str()?.strip_prefix("vport")?.split_once('p')?;
    Some((device.parse().ok()?, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(device: &str, name: &str) -> Port {
        Port { device: PathBuf::from("/dev").join(device), name: name.to_owned() }
    }

    #[test]
    fn the_order_of_detection() {
        let all = vec![
            port("vport2p2", ""),
            port("vport2p0", ""),
            port("vport1p3", "org.example.other"),
            port("vport2p1", ""),
            port("vport1p2", "org.qemu.guest_agent.0"),
            port("vport1p4", "com.redhat.spice.0"),
            port("vport1p5", "org.infinibay.agent"),
            port("vport1p6", "org.roost.agent.0"),
        ];
        let names: Vec<String> =
            in_order(all).iter().map(|port| port.device.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["vport1p6", "vport1p5", "vport1p2", "vport2p1", "vport2p2", "vport1p3"]);
    }

    #[test]
    fn names_come_from_sysfs_and_from_links() {
        let root = tempfile::tempdir().unwrap();
        let (sys, dev) = (root.path().join("sys"), root.path().join("dev"));
        fs::create_dir_all(sys.join("vport1p1")).unwrap();
        fs::write(sys.join("vport1p1/name"), "org.roost.agent.0\n").unwrap();
        fs::create_dir_all(dev.join("virtio-ports")).unwrap();
        for device in ["vport1p1", "vport2p1", "vport3p1", "null"] {
            fs::write(dev.join(device), "").unwrap();
        }
        std::os::unix::fs::symlink("../vport2p1", dev.join("virtio-ports/org.qemu.guest_agent.0")).unwrap();
        let found = in_order(ports(&sys, &dev));
        let names: Vec<&str> = found.iter().map(|port| port.name.as_str()).collect();
        assert_eq!(names, ["org.roost.agent.0", "org.qemu.guest_agent.0", ""]);
        assert!(ports(Path::new("/nowhere"), Path::new("/nowhere")).is_empty());
    }
}
