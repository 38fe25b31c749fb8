//! What listens, and the process that holds each socket.
//!
//! A socket is known by its inode; whose it is takes a look at every descriptor of every process. So that is done only
//! when there is a socket that was not there before, and the answer is kept for as long as the socket is listed.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use roost_guest_proto::metrics::{Group, PortInfo};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::CWD;

use super::files::{Files, is_absent};
use super::pids;
use super::sockets::{self, MAX_SOCKETS, Socket};
use super::text::{number, printable};
use crate::metrics::{Failure, Notes};

/// Descriptors that one search looks at.
const MAX_DESCRIPTORS: usize = 64 * 1024;
/// A socket that nobody was found to hold (the kernel's own, another container's) is searched for again after that.
const PATIENCE: Duration = Duration::from_secs(60);
const MAX_NAME: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    pid: u32,
    start: u64,
}

#[derive(Debug, Default)]
pub(super) struct Ports {
    /// By inode, in order.
    owners: Vec<(u64, Option<Owner>)>,
    searched: Option<Instant>,
    /// This kernel, or root directory, has the tables alone.
    only_tables: bool,
}

impl Ports {
    pub(super) fn new(files: &Files) -> Self {
        // Netlink tells of this kernel, and of no other root.
        Self { only_tables: files.path("") != Path::new("/"), ..Self::default() }
    }

    pub(super) fn collect(&mut self, files: &mut Files, notes: &mut Notes) -> Result<Vec<PortInfo>, Failure> {
        let (sockets, more) = self.sockets(files)?;
        if more {
            let what = format!("more than {MAX_SOCKETS} sockets, or too long a table: the others are left out");
            notes.say(Group::Ports, None, &what);
        }
        let path = files.path("proc");
        let failed = |source| Failure::Read { path: path.clone(), source };
        let proc = pids::open(CWD, &path.to_string_lossy()).map_err(failed)?;
        self.find_owners(&sockets, &proc, files.buffer()).map_err(failed)?;
        Ok(sockets.iter().map(|socket| self.describe(socket, &proc, files.buffer())).collect())
    }

    fn sockets(&mut self, files: &mut Files) -> Result<(Vec<Socket>, bool), Failure> {
        let asked = if self.only_tables { None } else { sockets::ask_for_tcp().ok() };
        self.only_tables = asked.is_none();
        let tables: &[_] = if self.only_tables { &["tcp", "tcp6", "udp", "udp6"] } else { &["udp", "udp6"] };
        let (mut found, mut more) = asked.unwrap_or_default();
        for protocol in tables {
            let path = files.path(format!("proc/net/{protocol}"));
            match sockets::read_table(&path, protocol, files.buffer(), &mut found) {
                Ok(cut) => more |= cut,
                // A kernel without IPv6.
                Err(error) if is_absent(&error) && protocol.ends_with('6') => {}
                Err(source) => return Err(Failure::Read { path, source }),
            }
        }
        Ok((found, more))
    }

    fn find_owners(&mut self, sockets: &[Socket], proc: &OwnedFd, buffer: &mut Vec<u8>) -> io::Result<()> {
        let mut inodes: Vec<u64> = sockets.iter().map(|socket| socket.inode).filter(|inode| *inode != 0).collect();
        inodes.sort_unstable();
        inodes.dedup();
        // A process may have ended, and left its socket to a child of it.
        self.owners.retain(|(inode, owner)| {
            let is_there =
                |owner: &Owner| pids::read_stat(proc, owner.pid, buffer).is_some_and(|stat| stat.start == owner.start);
            inodes.binary_search(inode).is_ok() && owner.as_ref().is_none_or(is_there)
        });
        let is_new = inodes.iter().any(|inode| self.position(*inode).is_err());
        let is_due = self.searched.is_none_or(|at| at.elapsed() >= PATIENCE)
            && self.owners.iter().any(|(_, owner)| owner.is_none());
        if is_new || is_due {
            // Those that are known stay as they are.
            self.owners.retain(|(_, owner)| owner.is_some());
            let wanted: Vec<u64> = inodes.into_iter().filter(|inode| self.position(*inode).is_err()).collect();
            self.owners.extend(search(&wanted, proc, buffer)?);
            self.owners.sort_unstable_by_key(|(inode, _)| *inode);
            self.searched = Some(Instant::now());
        }
        Ok(())
    }

    fn position(&self, inode: u64) -> Result<usize, usize> {
        self.owners.binary_search_by_key(&inode, |(inode, _)| *inode)
    }

    fn describe(&self, socket: &Socket, proc: &OwnedFd, buffer: &mut Vec<u8>) -> PortInfo {
        let owner = self.position(socket.inode).ok().and_then(|position| self.owners[position].1.as_ref());
        let name = owner.and_then(|owner| pids::read_stat(proc, owner.pid, buffer));
        PortInfo {
            port: socket.port,
            protocol: socket.protocol.to_owned(),
            state: if socket.protocol.starts_with("tcp") { "LISTEN" } else { "UNCONN" }.to_owned(),
            process_id: owner.map(|owner| owner.pid),
            process_name: name.map(|stat| printable(stat.name, MAX_NAME)),
            is_listening: true,
            address: Some(socket.address.to_string()),
        }
    }
}

/// The first process that holds each of the sockets, which are in order. `None` for those that nobody holds, as far
/// as this process may see.
fn search(wanted: &[u64], proc: &OwnedFd, buffer: &mut Vec<u8>) -> io::Result<Vec<(u64, Option<Owner>)>> {
    let mut found: Vec<(u64, Option<Owner>)> = wanted.iter().map(|inode| (*inode, None)).collect();
    let mut missing = wanted.len();
    let mut budget = MAX_DESCRIPTORS;
    pids::numbers(proc, |pid| {
        // It ended, or is another user's and this one may not look.
        let Ok(descriptors) = pids::open(proc.as_fd(), &format!("{pid}/fd")) else { return true };
        let mut holds = Vec::new();
        let walked = pids::numbers(&descriptors, |descriptor| {
            budget = budget.saturating_sub(1);
            let mut target = [std::mem::MaybeUninit::uninit(); 64];
            let link = rustix::fs::readlinkat_raw(&descriptors, descriptor.to_string(), &mut target);
            if let Ok((link, _)) = link
                && let Some(inode) = socket_inode(link)
                && let Ok(position) = wanted.binary_search(&inode)
                && found[position].1.is_none()
            {
                holds.push(position);
            }
            budget > 0
        });
        if walked.is_ok()
            && !holds.is_empty()
            && let Some(pids::Stat { start, .. }) = pids::read_stat(proc, pid, buffer)
        {
            for position in holds {
                // Twice, where it has two descriptors of one socket.
                missing -= usize::from(found[position].1.is_none());
                found[position].1 = Some(Owner { pid, start });
            }
        }
        missing > 0 && budget > 0
    })?;
    Ok(found)
}

/// `socket:[12345]`
fn socket_inode(link: &[u8]) -> Option<u64> {
    number(link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn own_sockets_come_and_go(mut ports: Ports) {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let connection = TcpStream::connect(address).unwrap();
        let mut files = Files::new("/".into());
        let mut told = ports.collect(&mut files, &mut Notes::default()).unwrap();
        let is_own = |told: &[PortInfo], port: u16, protocol: &str| {
            let of_port = told.iter().find(|it| it.port == port && it.protocol == protocol);
            of_port.is_some_and(|it| it.process_id == Some(std::process::id()))
        };
        assert!(is_own(&told, address.port(), "tcp"), "{told:?}");
        assert!(is_own(&told, udp.local_addr().unwrap().port(), "udp"), "{told:?}");
        let from = connection.local_addr().unwrap().port();
        assert!(!told.iter().any(|it| it.port == from && it.protocol == "tcp"), "{told:?}");

        // A second time it is known, and without the socket it is forgotten.
        drop(tcp);
        told = ports.collect(&mut files, &mut Notes::default()).unwrap();
        assert!(!is_own(&told, address.port(), "tcp"));
        assert!(is_own(&told, udp.local_addr().unwrap().port(), "udp"));
    }

    #[test]
    fn this_process_owns_what_it_listens_on() {
        own_sockets_come_and_go(Ports::new(&Files::new("/".into())));
    }

    #[test]
    fn a_kernel_without_sock_diag_tells_the_same_by_its_tables() {
        own_sockets_come_and_go(Ports { only_tables: true, ..Ports::default() });
    }

    #[test]
    fn links_to_sockets_are_told_from_others() {
        assert_eq!(socket_inode(b"socket:[77]"), Some(77));
        assert_eq!(socket_inode(b"socket:[]"), None);
        assert_eq!(socket_inode(b"/tmp/socket:[77]"), None);
    }
}
