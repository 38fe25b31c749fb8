//! Which sockets listen: sock_diag(7) for TCP, and the tables `/proc/net/{tcp,udp}{,6}`.
//!
//! The table of TCP holds every connection, and the kernel walks its whole hash to print it, milliseconds on a large
//! guest; asked by netlink for those that listen it looks at nothing else. A kernel without that has the table.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::text::{fields, hexadecimal, lines, number};
use crate::platform::netlink::Netlink;

/// Of all protocols together.
pub(super) const MAX_SOCKETS: usize = 512;
/// Of each table. The kernel lists TCP sockets that listen first.
const MAX_TABLE: usize = 4 * 1024 * 1024;
/// Read at a time.
const CHUNK: usize = 16 * 1024;

/// include/net/tcp_states.h. A UDP socket that is connected to nobody is in the state of a closed TCP one.
const TCP_LISTEN: u8 = 0x0A;
const UDP_UNCONNECTED: u8 = 0x07;

// From linux/sock_diag.h, linux/inet_diag.h, linux/in.h and linux/socket.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_REQUEST: usize = 56;
const INET_DIAG_MESSAGE: usize = 72;
const IPPROTO_TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Socket {
    pub protocol: &'static str,
    pub address: IpAddr,
    pub port: u16,
    pub inode: u64,
}

/// The TCP sockets that listen, of both families, and whether there are more.
pub(super) fn ask_for_tcp() -> io::Result<(Vec<Socket>, bool)> {
    let mut netlink = Netlink::open_protocol(Some(rustix::net::netlink::SOCK_DIAG))?;
    let mut sockets = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut request = [0; INET_DIAG_REQUEST];
        (request[0], request[1]) = (family, IPPROTO_TCP);
        request[4..8].copy_from_slice(&(1u32 << TCP_LISTEN).to_ne_bytes());
        sockets.extend(netlink.dump(SOCK_DIAG_BY_FAMILY, SOCK_DIAG_BY_FAMILY, &request, parse_message)?);
    }
    let more = sockets.len() > MAX_SOCKETS;
    sockets.truncate(MAX_SOCKETS);
    Ok((sockets, more))
}

/// `struct inet_diag_msg`, whose ports and addresses are in the network's order.
fn parse_message(body: &[u8]) -> Option<Socket> {
    let body = body.get(..INET_DIAG_MESSAGE)?;
    let address = &body[8..24];
    let (protocol, address) = match body[0] {
        AF_INET => ("tcp", <[u8; 4]>::try_from(&address[..4]).ok()?.into()),
        AF_INET6 => ("tcp6", <[u8; 16]>::try_from(address).ok()?.into()),
        _ => return None,
    };
    let port = u16::from_be_bytes([body[4], body[5]]);
    let inode = u32::from_ne_bytes(*body.last_chunk()?);
    (body[1] == TCP_LISTEN && port != 0).then(|| Socket { protocol, address, port, inode: inode.into() })
}

/// Adds the sockets of a table that listen. Returns whether some may be missing.
pub(super) fn read_table(
    path: &Path,
    protocol: &'static str,
    buffer: &mut Vec<u8>,
    sockets: &mut Vec<Socket>,
) -> io::Result<bool> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())?;
    buffer.clear();
    let mut read = 0;
    while read < MAX_TABLE {
        let kept = buffer.len();
        buffer.resize(kept + CHUNK, 0);
        let got = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut buffer[kept..]));
        buffer.truncate(kept + *got.as_ref().unwrap_or(&0));
        let got = got?;
        read += got;
        let whole = if got == 0 { buffer.len() } else { memchr::memrchr(b'\n', buffer).map_or(0, |at| at + 1) };
        let (mut listening, mut others) = (false, false);
        for line in lines(&buffer[..whole]) {
            match parse_line(line, protocol) {
                Some(Some(socket)) if sockets.len() < MAX_SOCKETS => {
                    listening = true;
                    sockets.push(socket);
                }
                Some(Some(_)) => return Ok(true),
                Some(None) => others = true,
                None => {}
            }
        }
        buffer.drain(..whole);
        // A server with a hundred thousand connections need not list them for this: once a whole chunk is of
        // connections, the listening ones are over. A line that does not end is not the kernel's.
        if got == 0 || (protocol.starts_with("tcp") && others && !listening) || buffer.len() > CHUNK {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `None`: no line of a socket. `Some(None)`: one that does not listen.
fn parse_line(line: &[u8], protocol: &'static str) -> Option<Option<Socket>> {
    let mut fields = fields(line).skip(1);
    let (address, port) = parse_endpoint(fields.next()?)?;
    let (_, remote_port) = parse_endpoint(fields.next()?)?;
    let state = hexadecimal(fields.next()?)?;
    // Queues, timer, retransmits, user, timeout.
    let inode = number(fields.nth(5)?)?;
    let listens = match protocol {
        "tcp" | "tcp6" => state == u64::from(TCP_LISTEN),
        _ => state == u64::from(UDP_UNCONNECTED) && remote_port == 0,
    };
    Some((listens && port != 0).then_some(Socket { protocol, address, port, inode }))
}

/// `0100007F:0016`: the address in words of this machine's byte order, the port as it is written.
fn parse_endpoint(field: &[u8]) -> Option<(IpAddr, u16)> {
    let colon = memchr::memchr(b':', field)?;
    let port = u16::try_from(hexadecimal(&field[colon + 1..])?).ok()?;
    let word = |digits: &[u8]| Some(u32::try_from(hexadecimal(digits)?).ok()?.to_ne_bytes());
    let address = match &field[..colon] {
        digits if digits.len() == 8 => Ipv4Addr::from(word(digits)?).into(),
        digits if digits.len() == 32 => {
            let mut bytes = [0; 16];
            for (bytes, digits) in bytes.chunks_exact_mut(4).zip(digits.chunks_exact(8)) {
                bytes.copy_from_slice(&word(digits)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sockets_that_listen_are_told_from_those_that_do_not() {
        let ssh = b"   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1065 1 0 100 0 0 10 0";
        let socket = parse_line(ssh, "tcp").unwrap().unwrap();
        assert_eq!((socket.port, socket.inode), (22, 1065));
        if cfg!(target_endian = "little") {
            assert_eq!(socket.address, IpAddr::from([127, 0, 0, 1]));
        }
        let connected =
            b"   1: 0100007F:0016 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 2000 1 0";
        assert_eq!(parse_line(connected, "tcp"), Some(None));
        let dns = b" 100: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 3000 2 0 0";
        assert_eq!(parse_line(dns, "udp6").unwrap().unwrap().address, IpAddr::from(Ipv6Addr::UNSPECIFIED));
        let header =
            b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        assert_eq!(parse_line(header, "tcp"), None);
    }

    #[test]
    fn hostile_lines_are_none() {
        for wrong in [
            &b""[..],
            b"0:",
            b"0: 0100007F 00000000:0000 0A a b c d e 1",
            b"0: 0100007F:10000 00000000:0000 0A a b c d e 1",
            b"0: 0100007:0016 00000000:0000 0A a b c d e 1",
            b"0: 0100007F:0016 00000000:0000 0A a b c d e -1",
            b"0: 0100007F:0016 00000000:0000 0A",
        ] {
            assert_eq!(parse_line(wrong, "tcp"), None, "{wrong:?}");
        }
    }

    #[test]
    fn connections_behind_the_listening_ones_are_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tcp");
        let line = |n: usize, state: &str| format!("{n}: 0100007F:{n:04X} 00000000:0000 {state} 0 0 0 0 0 {n}\n");
        let mut text = "  sl  local_address ...\n".to_owned();
        text.extend((1..=3).map(|n| line(n, "0A")));
        text.extend((1..=2000).map(|n| line(n, "01")));
        text.push_str(&line(4, "0A"));
        std::fs::write(&path, text).unwrap();
        let mut sockets = Vec::new();
        assert!(!read_table(&path, "tcp", &mut Vec::new(), &mut sockets).unwrap());
        assert_eq!(sockets.iter().map(|socket| socket.port).collect::<Vec<_>>(), [1, 2, 3]);
        // Of UDP they are in no order.
        std::fs::write(&path, (1..=600).map(|n| line(n, "07")).collect::<String>()).unwrap();
        let mut sockets = Vec::new();
        assert!(read_table(&path, "udp", &mut Vec::new(), &mut sockets).unwrap());
        assert_eq!(sockets.len(), MAX_SOCKETS);
        // A line without an end.
        std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
        let mut buffer = Vec::new();
        assert!(!read_table(&path, "udp", &mut buffer, &mut Vec::new()).unwrap());
        assert!(buffer.capacity() < 4 * CHUNK);
    }

    #[test]
    fn netlink_and_the_table_tell_of_the_same_sockets() {
        let listeners = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("[::1]:0").unwrap()];
        let mut buffer = Vec::new();
        let (asked, more) = ask_for_tcp().unwrap();
        assert!(!more);
        for (listener, protocol) in listeners.iter().zip(["tcp", "tcp6"]) {
            let mut table = Vec::new();
            read_table(&Path::new("/proc/net").join(protocol), protocol, &mut buffer, &mut table).unwrap();
            let address = listener.local_addr().unwrap();
            let find =
                |sockets: &[Socket]| sockets.iter().find(|it| SocketAddr::new(it.address, it.port) == address).cloned();
            assert!(find(&asked).is_some(), "{asked:?}");
            assert_eq!(find(&asked), find(&table));
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_a_parser(text in proptest::collection::vec(any::<u8>(), 0..200), fields in "[0-9A-F:]{0,40}( [0-9A-F:]{0,40}){0,9}") {
            parse_line(&text, "tcp");
            parse_line(fields.as_bytes(), "udp6");
            parse_message(&text);
        }
    }
}
