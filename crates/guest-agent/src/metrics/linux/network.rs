//! What the interfaces carry: `/proc/net/dev`, its difference to an earlier one, and what netlink says of each.

use std::io;

use roost_guest_proto::metrics::{Group, InterfaceMetrics, NetworkMetrics};

use super::files::Files;
use super::text::{fields, lines, number, printable};
use crate::metrics::rates::{Baseline, grown, per_second, round};
use crate::metrics::{Failure, Notes};
use crate::platform::netlink::{Address, Link, Netlink};

const MAX_DEV: usize = 256 * 1024;
/// In a frame.
const MAX_INTERFACES: usize = 128;
const MAX_NAME: usize = 16;
/// Of one interface.
const MAX_ADDRESSES: usize = 16;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counters {
    bytes: u64,
    packets: u64,
    errors: u64,
    dropped: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Interface {
    name: Vec<u8>,
    received: Counters,
    sent: Counters,
}

#[derive(Debug, Default)]
pub(super) struct Network {
    base: Baseline<Vec<Interface>>,
    last: Option<Vec<InterfaceMetrics>>,
}

impl Network {
    pub(super) fn collect(&mut self, files: &mut Files, notes: &mut Notes) -> Result<NetworkMetrics, Failure> {
        let is_due = self.base.is_due();
        if let Some(interfaces) = self.last.clone().filter(|_| !is_due) {
            return Ok(NetworkMetrics { interfaces });
        }
        let (now, more) = parse(files.read("proc/net/dev", MAX_DEV)?);
        if more {
            let what = format!("more than {MAX_INTERFACES} interfaces: the others are left out");
            notes.say(Group::Network, None, &what);
        }
        // The counters are worth a frame without the rest.
        let (links, addresses) = links().unwrap_or_else(|source| {
            let what = "cannot ask the kernel for addresses";
            notes.add(Group::Network, Some("netlink"), &Failure::System { what, source });
            Default::default()
        });
        let described = |now: &[Interface], rates: &dyn Fn(&Interface) -> InterfaceMetrics| -> Vec<_> {
            now.iter().map(|interface| describe(rates(interface), interface, &links, &addresses)).collect()
        };
        let without_rates = described(&now, &totals);
        // Too soon for rates, and nothing to repeat.
        if !is_due {
            return Ok(NetworkMetrics { interfaces: without_rates });
        }
        let told = self
            .base
            .replace(now, |before, now, seconds| described(now, &|it| with_rates(before, it, seconds)))
            .unwrap_or(without_rates);
        Ok(NetworkMetrics { interfaces: self.last.insert(told).clone() })
    }

    pub(super) fn begin(&mut self, files: &mut Files) {
        if let Ok(text) = files.read("proc/net/dev", MAX_DEV) {
            self.base.replace(parse(text).0, |_, _, _| ());
        }
    }
}

/// What no file tells of both families.
fn links() -> io::Result<(Vec<Link>, Vec<Address>)> {
    let mut netlink = Netlink::open()?;
    Ok((netlink.links()?, netlink.addresses()?))
}

/// The interfaces, and whether there were more.
fn parse(text: &[u8]) -> (Vec<Interface>, bool) {
    let mut interfaces = Vec::new();
    for interface in lines(text).filter_map(parse_line) {
        if interfaces.len() == MAX_INTERFACES {
            return (interfaces, true);
        }
        interfaces.push(interface);
    }
    (interfaces, false)
}

/// `eth0: bytes packets errs drop fifo frame compressed multicast bytes packets errs drop fifo colls carrier compressed`
fn parse_line(line: &[u8]) -> Option<Interface> {
    // The first number may stand right behind the colon.
    let colon = memchr::memrchr(b':', line)?;
    let name = line[..colon].trim_ascii();
    if name.is_empty() || name.len() > MAX_NAME {
        return None;
    }
    let mut values = [0u64; 16];
    let mut fields = fields(&line[colon + 1..]).map(number);
    for value in &mut values {
        *value = fields.next()??;
    }
    let counters = |at: usize| Counters {
        bytes: values[at],
        packets: values[at + 1],
        errors: values[at + 2],
        dropped: values[at + 3],
    };
    Some(Interface { name: name.to_vec(), received: counters(0), sent: counters(8) })
}

fn totals(interface: &Interface) -> InterfaceMetrics {
    let Interface { name, received, sent } = interface;
    InterfaceMetrics {
        name: printable(name, MAX_NAME),
        bytes_received: received.bytes,
        bytes_sent: sent.bytes,
        packets_received: received.packets,
        packets_sent: sent.packets,
        errors_in: received.errors,
        errors_out: sent.errors,
        dropped_in: Some(received.dropped),
        dropped_out: Some(sent.dropped),
        ..InterfaceMetrics::default()
    }
}

fn with_rates(before: &[Interface], now: &Interface, seconds: f64) -> InterfaceMetrics {
    let metrics = totals(now);
    // One that is new has no rate yet.
    let Some(before) = before.iter().find(|earlier| earlier.name == now.name) else { return metrics };
    let rate = |before: u64, now: u64| Some(per_second(before, now, seconds));
    // A few errors an hour are a finding, so not in whole numbers.
    let errors = |before: u64, now: u64| Some(round(grown(before, now) as f64 / seconds, 3));
    InterfaceMetrics {
        bytes_received_per_sec: rate(before.received.bytes, now.received.bytes),
        bytes_sent_per_sec: rate(before.sent.bytes, now.sent.bytes),
        packets_received_per_sec: rate(before.received.packets, now.received.packets),
        packets_sent_per_sec: rate(before.sent.packets, now.sent.packets),
        errors_in_per_sec: errors(before.received.errors, now.received.errors),
        errors_out_per_sec: errors(before.sent.errors, now.sent.errors),
        ..metrics
    }
}

fn describe(
    metrics: InterfaceMetrics,
    interface: &Interface,
    links: &[Link],
    addresses: &[Address],
) -> InterfaceMetrics {
    let Some(link) = links.iter().find(|link| link.name.as_bytes() == interface.name) else { return metrics };
    let own = addresses.iter().filter(|address| address.index == link.index).take(MAX_ADDRESSES);
    let octets = |mac: [u8; 6]| mac.map(|octet| format!("{octet:02x}")).join(":");
    InterfaceMetrics {
        ip_addresses: own.map(|address| address.address.to_string()).collect(),
        is_up: link.up && link.running,
        mac: link.mac.filter(|mac| *mac != [0; 6]).map(octets),
        ..metrics
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEV: &[u8] = b"Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:   24006     298    0    0    0     0          0         0    24006     298    0    0    0     0       0          0
  eth0:251783161   13494    1    2    0     0          0         0   916312   10094    3    4    0     0       0          0
";

    #[test]
    fn interfaces_are_read_and_headers_are_not() {
        let (interfaces, more) = parse(DEV);
        assert_eq!((interfaces.len(), more), (2, false));
        let metrics = totals(&interfaces[1]);
        assert_eq!(metrics.name, "eth0");
        assert_eq!((metrics.bytes_received, metrics.packets_received, metrics.errors_in), (251783161, 13494, 1));
        assert_eq!((metrics.bytes_sent, metrics.packets_sent, metrics.errors_out), (916312, 10094, 3));
        assert_eq!((metrics.dropped_in, metrics.dropped_out), (Some(2), Some(4)));
    }

    #[test]
    fn rates_are_per_interface_and_a_new_one_has_none() {
        let before = parse(DEV).0;
        let mut now = before.clone();
        now[1].received.bytes += 4000;
        now[1].received.errors += 1;
        now[1].sent.packets = 10;
        let metrics = with_rates(&before, &now[1], 2.0);
        assert_eq!(metrics.bytes_received_per_sec, Some(2000));
        assert_eq!(metrics.errors_in_per_sec, Some(0.5));
        assert_eq!(metrics.packets_sent_per_sec, Some(5), "a counter that began anew");
        assert_eq!(with_rates(&before[..1], &now[1], 2.0).bytes_received_per_sec, None);
    }

    #[test]
    fn there_is_a_limit_and_it_is_told() {
        let line = |n: usize| format!("veth{n}: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n");
        let (interfaces, more) = parse((0..200).map(line).collect::<String>().as_bytes());
        assert_eq!((interfaces.len(), more), (MAX_INTERFACES, true));
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in "[a-z:]{0,20}([ 0-9a:-]{0,30}){0,6}") {
            parse(text.as_bytes());
        }
    }
}
