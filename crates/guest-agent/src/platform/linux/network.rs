//! The guest's network as it is, and its interfaces as they are to be.

use std::io;
use std::net::IpAddr;

use roost_guest_proto::results::{Interface, Network};
use roost_guest_proto::{ErrorBody, ErrorCode, InterfaceIdentity};

use super::facts::read_text;
use super::netlink::{Address, Link, Netlink, Route};
use crate::platform::System;

/// The most addresses that one interface is given, or shown with.
const MAX_ADDRESSES: usize = 64;

/// The most interfaces that an error names.
const MAX_NAMED: usize = 20;

/// Interfaces, gateways and name servers.
pub(crate) fn network(system: &System) -> io::Result<Network> {
    let mut netlink = Netlink::open()?;
    let (links, addresses, routes) = (netlink.links()?, netlink.addresses()?, netlink.routes()?);
    let interfaces = links.into_iter().map(|link| {
        let own = addresses.iter().filter(|address| address.index == link.index);
        Interface {
            addresses: own.take(MAX_ADDRESSES).map(|own| format!("{}/{}", own.address, own.prefix)).collect(),
            name: link.name,
            index: link.index,
            mac: link.mac.filter(|mac| *mac != [0; 6]).map(format_mac),
            mtu: link.mtu,
            up: link.up,
            running: link.running,
            loopback: link.loopback,
        }
    });
    let defaults = routes.iter().filter(|route| route.prefix == 0).map(|route| route.gateway.to_string());
    let resolv_conf = read_text(system, "/etc/resolv.conf").unwrap_or_default();
    Ok(Network {
        interfaces: interfaces.collect(),
        gateways: defaults.take(MAX_ADDRESSES).collect(),
        truncated: false,
        name_servers: parse_name_servers(&resolv_conf),
    })
}

/// resolv.conf(5): the first three count.
fn parse_name_servers(text: &str) -> Vec<String> {
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.split_whitespace().next());
    servers
        .filter(|server| server.split('%').next().is_some_and(|it| it.parse::<IpAddr>().is_ok()))
        .take(3)
        .map(str::to_owned)
        .collect()
}

fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// An interface that is to be another one, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InterfacePlan {
    find: Find,
    mac: Option<[u8; 6]>,
    addresses: Vec<(IpAddr, u8)>,
    gateway: Option<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Find {
    Name(String),
    Mac([u8; 6]),
}

impl InterfacePlan {
    pub(crate) fn parse(identity: &InterfaceIdentity) -> Result<Self, ErrorBody> {
        let mac = |field: &str, text: &Option<String>| text.as_deref().map(|text| parse_mac(field, text)).transpose();
        let find = match (&identity.name, mac("interfaces.current_mac", &identity.current_mac)?) {
            (Some(name), _) => Find::Name(name.clone()),
            (None, Some(mac)) => Find::Mac(mac),
            (None, None) => return Err(wrong("interfaces", "", "a name or a current_mac")),
        };
        if identity.addresses.len() > MAX_ADDRESSES {
            let message = format!("interfaces.addresses: {}; permitted: {MAX_ADDRESSES}", identity.addresses.len());
            return Err(ErrorBody::field("interfaces.addresses", message));
        }
        let addresses = identity.addresses.iter().map(|text| parse_address(text)).collect::<Result<Vec<_>, _>>()?;
        let gateway = identity.gateway.as_deref().map(|text| {
            let gateway = text.parse::<IpAddr>().ok().filter(|it| !it.is_unspecified() && !it.is_multicast());
            gateway.ok_or_else(|| wrong("interfaces.gateway", text, "an address, like 10.0.0.1"))
        });
        Ok(Self { find, mac: mac("interfaces.mac", &identity.mac)?, addresses, gateway: gateway.transpose()? })
    }

    /// Makes it so. An interface that is so already is left alone.
    pub(crate) fn apply(&self) -> Result<(), ErrorBody> {
        let mut netlink = Netlink::open().map_err(|error| failed("rtnetlink", error))?;
        let link = self.find(&netlink.links().map_err(|error| failed("its list", error))?)?;
        self.change(&mut netlink, &link).map_err(|error| failed(&link.name, error))
    }

    fn find(&self, links: &[Link]) -> Result<Link, ErrorBody> {
        let found: Vec<_> = match &self.find {
            Find::Name(name) => links.iter().filter(|link| link.name == *name).collect(),
            // Once it is the new one, it is found by that.
            Find::Mac(mac) => {
                let by = |mac: [u8; 6]| links.iter().filter(move |link| link.mac == Some(mac)).collect::<Vec<_>>();
                let found = by(*mac);
                if found.is_empty() { self.mac.map(by).unwrap_or_default() } else { found }
            }
        };
        match found[..] {
            [link] if !link.loopback => Ok(link.clone()),
            [_] => Err(wrong("interfaces.name", "lo", "an interface that is no loopback")),
            [] => {
                let known: Vec<_> = links.iter().take(MAX_NAMED).map(|link| link.name.as_str()).collect();
                let wanted = match &self.find {
                    Find::Name(name) => name.chars().take(64).collect(),
                    Find::Mac(mac) => format_mac(*mac),
                };
                let message = format!("interfaces: none is {wanted:?}; there are: {}", known.join(", "));
                Err(ErrorBody::new(ErrorCode::NotFound, message))
            }
            _ => Err(wrong("interfaces.current_mac", "", "one that only one interface has; name it instead")),
        }
    }

    fn change(&self, netlink: &mut Netlink, link: &Link) -> io::Result<()> {
        let mut routes: Vec<Route> = netlink.routes()?;
        routes.retain(|route| route.index == link.index && !route.automatic);
        let mut addresses = netlink.addresses()?;
        addresses.retain(|address| address.index == link.index);
        if let Some(mac) = self.mac.filter(|mac| link.mac != Some(*mac)) {
            // Down and up again: what the kernel derived from the old one (fe80::/64 among it) goes.
            netlink.set_up(link.index, false)?;
            let set = netlink.set_mac(link.index, mac);
            netlink.set_up(link.index, link.up || set.is_ok())?;
            set?;
        } else if !link.up && !self.addresses.is_empty() {
            netlink.set_up(link.index, true)?;
        }
        if self.addresses.is_empty() {
            // Going down has taken the IPv6 ones.
            let mut lost = addresses.iter().filter(|it| it.address.is_ipv6() && !is_link_local(it.address));
            lost.try_for_each(|address| netlink.add_address(address))?;
        } else {
            let wanted =
                |old: &Address| self.addresses.contains(&(old.address, old.prefix)) || is_link_local(old.address);
            for old in netlink.addresses()?.iter().filter(|old| old.index == link.index && !wanted(old)) {
                match netlink.remove_address(old) {
                    // A secondary one goes with its primary.
                    Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
                    removed => removed?,
                }
            }
            for &(address, prefix) in &self.addresses {
                netlink.add_address(&Address { index: link.index, address, prefix })?;
            }
        }
        if let Some(gateway) = self.gateway {
            let unspecified = match gateway {
                IpAddr::V4(_) => IpAddr::from([0; 4]),
                IpAddr::V6(_) => IpAddr::from([0; 16]),
            };
            let default = Route {
                index: link.index,
                destination: unspecified,
                prefix: 0,
                gateway,
                priority: 0,
                automatic: false,
            };
            netlink.add_route(&default)?;
            routes.retain(|route| route.prefix > 0 || route.gateway.is_ipv4() != gateway.is_ipv4());
        }
        for route in routes {
            match netlink.add_route(&route) {
                // Its gateway is on a network that the interface has left.
                Err(error) if error.kind() == io::ErrorKind::NetworkUnreachable || !self.addresses.is_empty() => {}
                added => added?,
            }
        }
        Ok(())
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn failed(what: &str, error: io::Error) -> ErrorBody {
    let (code, why) = match error.kind() {
        io::ErrorKind::PermissionDenied => (ErrorCode::PermissionDenied, "CAP_NET_ADMIN is needed".to_owned()),
        _ => (ErrorCode::CommandFailed, error.to_string()),
    };
    ErrorBody::new(code, format!("interfaces: {what}: {why}"))
}

fn wrong(field: &str, value: &str, permitted: &str) -> ErrorBody {
    let value: String = value.chars().take(64).collect();
    ErrorBody::field(field, format!("{field}: {value:?}; permitted: {permitted}"))
}

fn parse_mac(field: &str, text: &str) -> Result<[u8; 6], ErrorBody> {
    let bytes: Vec<_> = text
        .split(':')
        .filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .filter_map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    let mac = <[u8; 6]>::try_from(bytes).ok().filter(|mac| text.len() == 17 && *mac != [0; 6] && mac[0] & 1 == 0);
    mac.ok_or_else(|| wrong(field, text, "a station's address, like 52:54:00:12:34:56"))
}

fn parse_address(text: &str) -> Result<(IpAddr, u8), ErrorBody> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let (address, prefix) = (address.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?);
        let most = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= most && !address.is_unspecified() && !address.is_multicast()).then_some((address, prefix))
    });
    parsed.ok_or_else(|| wrong("interfaces.addresses", text, "an address and a prefix, like 10.0.0.2/24"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(mac: &str, address: &str, gateway: &str) -> InterfaceIdentity {
        InterfaceIdentity {
            name: Some("eth0".into()),
            mac: Some(mac.into()),
            addresses: vec![address.into()],
            gateway: Some(gateway.into()),
            ..InterfaceIdentity::default()
        }
    }

    #[test]
    fn what_an_interface_may_be() {
        let plan = InterfacePlan::parse(&identity("52:54:00:AB:cd:01", "10.0.0.2/24", "10.0.0.1")).unwrap();
        assert_eq!(plan.mac, Some([0x52, 0x54, 0, 0xab, 0xcd, 1]));
        assert!(InterfacePlan::parse(&identity("52:54:00:ab:cd:01", "fd00::2/64", "fe80::1")).is_ok());
        for (mac, address, gateway, field) in [
            ("52:54:00:ab:cd", "10.0.0.2/24", "10.0.0.1", "interfaces.mac"),
            ("01:00:5e:00:00:01", "10.0.0.2/24", "10.0.0.1", "interfaces.mac"),
            ("+2:54:00:ab:cd:01", "10.0.0.2/24", "10.0.0.1", "interfaces.mac"),
            ("52:54:00:ab:cd:01", "10.0.0.2", "10.0.0.1", "interfaces.addresses"),
            ("52:54:00:ab:cd:01", "10.0.0.2/33", "10.0.0.1", "interfaces.addresses"),
            ("52:54:00:ab:cd:01", "10.0.0.2/24", "0.0.0.0", "interfaces.gateway"),
        ] {
            let error = InterfacePlan::parse(&identity(mac, address, gateway)).unwrap_err();
            assert_eq!(error.details.unwrap()["field"], field);
        }
        assert!(InterfacePlan::parse(&InterfaceIdentity::default()).is_err());
    }

    #[test]
    fn which_interface_it_is() {
        let link = |index, name: &str, last| Link {
            index,
            name: name.into(),
            mac: Some([2, 0, 0, 0, 0, last]),
            loopback: name == "lo",
            ..Link::default()
        };
        let links = [link(1, "lo", 0), link(2, "eth0", 1), link(3, "eth1", 2), link(4, "eth2", 2)];
        let by_mac = |current: &str, mac: Option<&str>| {
            let identity = InterfaceIdentity {
                current_mac: Some(current.into()),
                mac: mac.map(str::to_owned),
                ..InterfaceIdentity::default()
            };
            InterfacePlan::parse(&identity).unwrap().find(&links)
        };
        assert_eq!(by_mac("02:00:00:00:00:01", None).unwrap().name, "eth0");
        assert_eq!(by_mac("02:00:00:00:00:09", Some("02:00:00:00:00:01")).unwrap().name, "eth0", "done before");
        assert!(by_mac("02:00:00:00:00:02", None).unwrap_err().message.contains("only one"));
        assert!(by_mac("02:00:00:00:00:09", None).unwrap_err().message.contains("eth0, eth1, eth2"));
    }

    #[test]
    fn name_servers() {
        let text = "# nameserver 1.1.1.1\nnameserver 10.0.0.1\nnameserver\tfe80::1%eth0\nnameserver x\nsearch a\nnameserver ::1\n";
        assert_eq!(parse_name_servers(text), ["10.0.0.1", "fe80::1%eth0", "::1"]);
    }
}
