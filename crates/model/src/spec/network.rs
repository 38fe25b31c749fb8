//! Network interfaces: user-mode networking, or a TAP that somebody else made.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{check_device_id, words};
use crate::error::Invalid;

/// One network interface of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Unique within the VM.
    pub id: String,
    /// `None`: derived from the VM's ID and the interface's index, locally administered.
    pub mac_address: Option<MacAddress>,
    /// What it is attached to.
    pub kind: NicKind,
}

/// What a network interface is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum NicKind {
    /// User-mode networking: no root, no reach to the host; ports come in only as listed.
    User {
        /// Host ports handed to the guest.
        port_forwards: Vec<Forward>,
    },
    /// An existing TAP of the host. It is opened, and neither made, configured nor removed.
    Tap {
        /// The interface's name.
        device: String,
    },
}

/// A host port handed to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address on the host to listen on.
    pub host_address: IpAddr,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the guest.
    pub guest_port: u16,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

words!(Protocol, "protocol", "tcp" => Tcp, "udp" => Udp);

/// A unicast MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// A locally administered unicast address from 5 bytes that the caller keeps unique.
    pub const fn local(rest: [u8; 5]) -> Self {
        Self([0x52, rest[0], rest[1], rest[2], rest[3], rest[4]])
    }
}

impl Nic {
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        check_device_id(&self.id)?;
        match &self.kind {
            NicKind::User { port_forwards } => check_forwards(port_forwards),
            NicKind::Tap { device } => check_interface_name(device).map_err(|e| e.at("tap_device")),
        }
    }
}

/// A host interface's name: what the kernel takes (`dev_valid_name`), less what needs quoting.
pub(crate) fn check_interface_name(name: &str) -> Result<(), Invalid> {
    let fits = (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && name != "."
        && name != "..";
    if fits {
        Ok(())
    } else {
        Err(Invalid::new("interface", name, "is not an interface's name")
            .permit(["1-15 letters, digits, '-', '_' or '.'"]))
    }
}

fn check_forwards(forwards: &[Forward]) -> Result<(), Invalid> {
    // Each is compared with those before it, and all of them are one argument of a hypervisor.
    const MOST: usize = 128;
    if forwards.len() > MOST {
        return Err(Invalid::new("port_forwards", forwards.len(), "has too many entries").permit(["at most 128"]));
    }
    for (i, forward) in forwards.iter().enumerate() {
        let at = format!("port_forwards[{i}]");
        if forward.host_port == 0 || forward.guest_port == 0 {
            return Err(Invalid::new("port", 0, "is not a port").permit(["1 to 65535"]).under(&at));
        }
        let clash = forwards[..i].iter().any(|f| {
            (f.protocol, f.host_address, f.host_port) == (forward.protocol, forward.host_address, forward.host_port)
        });
        if clash {
            return Err(Invalid::new("host_port", forward.host_port, "is forwarded twice").under(&at));
        }
    }
    Ok(())
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddress {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let refuse = |problem: &str| Invalid::new("mac_address", text, problem).permit(["aa:bb:cc:dd:ee:ff, unicast"]);
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part.and_then(|p| u8::from_str_radix(p, 16).ok()).ok_or_else(|| refuse("is not a MAC address"))?;
        }
        if parts.next().is_some() || bytes == [0; 6] {
            return Err(refuse("is not a MAC address"));
        }
        if bytes[0] & 1 == 1 {
            return Err(refuse("is a multicast address"));
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> String {
        mac.to_string()
    }
}
