//! Interfaces, addresses and routes, through the kernel's rtnetlink (rtnetlink(7), linux/rtnetlink.h).
//!
//! By hand, because a guest need not have `ip`, and the agent opens no inet socket. Requests are few and small: each
//! is sent, and answered, before the next.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};

/// The most entries of one dump.
const MAX_ENTRIES: usize = 65_536;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;
const IFF_RUNNING: u32 = 0x40;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_KERNEL: u8 = 2;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    pub(crate) running: bool,
    pub(crate) loopback: bool,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) index: u32,
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
}

/// A route of the main table, through a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) index: u32,
    /// With a prefix of 0 it is the default.
    pub(crate) destination: IpAddr,
    pub(crate) prefix: u8,
    pub(crate) gateway: IpAddr,
    pub(crate) priority: u32,
    /// Made by the kernel or by a router's advertisement, which bring it back by themselves.
    pub(crate) automatic: bool,
}

/// A channel to the kernel's routing.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        // Protocol 0 is NETLINK_ROUTE.
        Self::open_protocol(None)
    }

    /// Another part of the kernel than its routing, for [`Netlink::dump`].
    pub(crate) fn open_protocol(protocol: Option<rustix::net::Protocol>) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        self.dump(RTM_GETLINK, RTM_NEWLINK, &[0; 16], parse_link)
    }

    pub(crate) fn addresses(&mut self) -> io::Result<Vec<Address>> {
        self.dump(RTM_GETADDR, RTM_NEWADDR, &[0; 8], parse_address)
    }

    pub(crate) fn routes(&mut self) -> io::Result<Vec<Route>> {
        self.dump(RTM_GETROUTE, RTM_NEWROUTE, &[0; 12], parse_route)
    }

    pub(crate) fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        self.change(RTM_NEWLINK, 0, &link_body(index, if up { IFF_UP } else { 0 }, IFF_UP), &[])
    }

    pub(crate) fn set_mac(&mut self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        self.change(RTM_NEWLINK, 0, &link_body(index, 0, 0), &[(IFLA_ADDRESS, &mac)])
    }

    pub(crate) fn add_address(&mut self, address: &Address) -> io::Result<()> {
        self.address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, address)
    }

    pub(crate) fn remove_address(&mut self, address: &Address) -> io::Result<()> {
        self.address(RTM_DELADDR, 0, address)
    }

    fn address(&mut self, kind: u16, flags: u16, address: &Address) -> io::Result<()> {
        let (family, bytes) = octets(address.address);
        let [a, b, c, d] = address.index.to_ne_bytes();
        let body = [family, address.prefix, 0, 0, a, b, c, d];
        self.change(kind, flags, &body, &[(IFA_LOCAL, &bytes), (IFA_ADDRESS, &bytes)])
    }

    pub(crate) fn add_route(&mut self, route: &Route) -> io::Result<()> {
        let (family, gateway) = octets(route.gateway);
        let (_, destination) = octets(route.destination);
        let body = [family, route.prefix, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
        let (index, priority) = (route.index.to_ne_bytes(), route.priority.to_ne_bytes());
        let mut attributes = vec![(RTA_OIF, &index[..]), (RTA_GATEWAY, &gateway)];
        if route.prefix > 0 {
            attributes.push((RTA_DST, &destination));
        }
        if route.priority > 0 {
            attributes.push((RTA_PRIORITY, &priority));
        }
        self.change(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &body, &attributes)
    }

    fn change(&mut self, kind: u16, flags: u16, body: &[u8], attributes: &[(u16, &[u8])]) -> io::Result<()> {
        self.request(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body, attributes)?;
        self.replies(|_, _| {})
    }

    /// A list: what `parse` makes of each reply of the kind `answer`.
    pub(crate) fn dump<T>(
        &mut self,
        kind: u16,
        answer: u16,
        body: &[u8],
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        self.request(kind, NLM_F_REQUEST | NLM_F_DUMP, body, &[])?;
        let mut entries = Vec::new();
        self.replies(|kind, body| {
            if kind == answer && entries.len() < MAX_ENTRIES {
                entries.extend(parse(body));
            }
        })?;
        Ok(entries)
    }

    fn request(&mut self, kind: u16, flags: u16, body: &[u8], attributes: &[(u16, &[u8])]) -> io::Result<()> {
        self.sequence += 1;
        let message = encode(kind, flags, self.sequence, body, attributes);
        send(&self.socket, &message, SendFlags::empty())?;
        Ok(())
    }

    /// Takes the replies to the last request, up to the one that ends them.
    fn replies(&mut self, mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let (received, _) = match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                received => received?,
            };
            let mut rest = &buffer[..received];
            while let Some((kind, sequence, body, after)) = split_message(rest) {
                rest = after;
                match kind {
                    _ if sequence != self.sequence => {}
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = body.first_chunk().map_or(i32::MIN, |code| i32::from_ne_bytes(*code));
                        return if code == 0 {
                            Ok(())
                        } else {
                            Err(io::Error::from_raw_os_error(code.saturating_neg()))
                        };
                    }
                    _ => take(kind, body),
                }
            }
        }
    }
}

fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

fn link_body(index: u32, flags: u32, change: u32) -> Vec<u8> {
    [&[0; 4], &index.to_ne_bytes()[..], &flags.to_ne_bytes(), &change.to_ne_bytes()].concat()
}

fn encode(kind: u16, flags: u16, sequence: u32, body: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![0; 16];
    message.extend(body);
    for (kind, value) in attributes {
        pad(&mut message);
        message.extend((4 + value.len() as u16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(*value);
    }
    pad(&mut message);
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message[8..12].copy_from_slice(&sequence.to_ne_bytes());
    message
}

fn pad(message: &mut Vec<u8>) {
    message.resize(message.len().next_multiple_of(4), 0);
}

/// One message: its type, its sequence, its body, and what comes behind it.
fn split_message(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let body = bytes.get(16..length)?;
    let kind = u16::from_ne_bytes(*bytes[4..].first_chunk()?);
    let sequence = u32::from_ne_bytes(*bytes[8..].first_chunk()?);
    Some((kind, sequence, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let value = bytes.get(4..length)?;
        // The two highest bits are flags.
        let kind = u16::from_ne_bytes(*bytes[2..].first_chunk()?) & 0x3fff;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let flags = number(body.get(8..)?)?;
    let mut link = Link {
        index: number(body.get(4..)?)?,
        up: flags & IFF_UP != 0,
        running: flags & IFF_RUNNING != 0,
        loopback: flags & IFF_LOOPBACK != 0,
        ..Link::default()
    };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned(),
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_MTU => link.mtu = number(value).unwrap_or_default(),
            _ => {}
        }
    }
    Some(link)
}

fn parse_address(body: &[u8]) -> Option<Address> {
    let (prefix, index) = (*body.get(1)?, number(body.get(4..)?)?);
    let (mut local, mut peer) = (None, None);
    for (kind, value) in attributes(body.get(8..)?) {
        match kind {
            IFA_LOCAL => local = address(value),
            IFA_ADDRESS => peer = address(value),
            _ => {}
        }
    }
    // On a point-to-point link these differ, and the peer's is none of this guest's.
    Some(Address { index, address: local.or(peer)?, prefix })
}

fn parse_route(body: &[u8]) -> Option<Route> {
    let &[family, prefix, _, _, table, protocol, _, kind, ..] = body else { return None };
    if table != RT_TABLE_MAIN || kind != RTN_UNICAST {
        return None;
    }
    let (mut index, mut gateway, mut priority) = (None, None, 0);
    let mut destination = match family {
        AF_INET => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    for (kind, value) in attributes(body.get(12..)?) {
        match kind {
            RTA_OIF => index = number(value),
            RTA_GATEWAY => gateway = address(value),
            RTA_DST => destination = address(value)?,
            RTA_PRIORITY => priority = number(value)?,
            _ => {}
        }
    }
    let automatic = protocol == RTPROT_KERNEL || (family == AF_INET6 && protocol == 9);
    Some(Route { index: index?, destination, prefix, gateway: gateway?, priority, automatic })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn this_machine() {
        let mut netlink = Netlink::open().unwrap();
        let links = netlink.links().unwrap();
        let loopback = links.iter().find(|link| link.loopback).expect("every namespace has one");
        assert_eq!((loopback.name.as_str(), loopback.index), ("lo", 1));
        let addresses = netlink.addresses().unwrap();
        assert!(addresses.iter().all(|address| links.iter().any(|link| link.index == address.index)));
        netlink.routes().unwrap();
    }

    #[test]
    fn a_message_and_back() {
        let message = encode(7, 1, 9, &[1; 8], &[(3, b"abc"), (4, b"")]);
        let (kind, sequence, body, rest) = split_message(&message).unwrap();
        assert_eq!((kind, sequence, rest), (7, 9, &[][..]));
        assert_eq!(attributes(&body[8..]).collect::<Vec<_>>(), [(3, &b"abc"[..]), (4, b"")]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(prop_oneof![0u8..20, any::<u8>()], 0..120)) {
            split_message(&bytes);
            parse_link(&bytes);
            parse_address(&bytes);
            parse_route(&bytes);
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4);
        }
    }
}
