//! The loop: one thread, one `poll`.
//!
//! ```text
//!   Serving ──(guest's end of file | stop)──> Draining ──(clients have all | time is up)──> done
//! ```
//!
//! While serving, the guest's socket is always read, whatever the clients and the disk do. While
//! draining, nothing is read any more; clients get what is queued for them.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use roost_host::sockets::peer_credentials;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::client::{Client, Outlet};
use crate::log::CappedLog;
use crate::tail::{Replay, read_tail_at};
use crate::{KeeperConfig, KeeperError, KeeperFds};

/// Read at once from the guest, and from a client.
const CHUNK: usize = 16 * 1024;

/// How long no client is accepted after `accept` failed for want of something (descriptors, memory):
/// `poll` would report the waiting client at once, again and again.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How often the guest is read once more when the keeper is told to stop: a guest that never stops
/// talking must not keep it.
const LAST_READS: usize = 64;

/// Keeps the line until the guest's end is closed or `fds.stop` is readable.
///
/// # Errors
/// The limits make no sense, the log directory was tampered with, or the sockets are not sockets.
/// Nothing that a guest, a client or a full disk does is an error.
pub fn run(config: &KeeperConfig, fds: KeeperFds) -> Result<(), KeeperError> {
    config.check()?;
    let mut keeper = Keeper::new(config, fds)?;
    while keeper.turn()? == Turn::Again {}
    keeper.drain()
}

#[derive(PartialEq, Eq)]
enum Turn {
    Again,
    Over,
}

struct Keeper<'a> {
    config: &'a KeeperConfig,
    guest: Outlet,
    listener: OwnedFd,
    stop: Option<OwnedFd>,
    log: CappedLog,
    replay: Replay,
    clients: Vec<Client>,
    chunk: Vec<u8>,
    own_uid: u32,
    accept_again: Option<Instant>,
}

/// What `poll` said, in the order in which the descriptors were given.
struct Events {
    guest: PollFlags,
    listener: PollFlags,
    stop: PollFlags,
    clients: Vec<PollFlags>,
}

impl<'a> Keeper<'a> {
    fn new(config: &'a KeeperConfig, fds: KeeperFds) -> Result<Self, KeeperError> {
        let KeeperFds { guest, listener, log_dir, stop } = fds;
        check_sockets(&guest, &listener)?;
        let past = read_tail_at(log_dir.as_fd(), config.replay_bytes).unwrap_or_default();
        Ok(Self {
            config,
            guest: Outlet::new(guest, config.guest_queue_bytes),
            listener,
            stop,
            log: CappedLog::open(log_dir, config.log_cap_bytes)?,
            replay: Replay::new(&past, config.replay_bytes),
            clients: Vec::new(),
            chunk: vec![0; CHUNK],
            own_uid: rustix::process::geteuid().as_raw(),
            accept_again: None,
        })
    }

    fn turn(&mut self) -> Result<Turn, KeeperError> {
        let events = self.poll()?;
        // Input first: room in the guest's queue is what decides whether clients are read.
        if events.guest.contains(PollFlags::OUT) {
            self.guest.flush();
        }
        if !events.guest.difference(PollFlags::OUT).is_empty() && self.read_guest() == Turn::Over {
            return Ok(Turn::Over);
        }
        self.serve_clients(&events.clients);
        if !events.listener.is_empty() {
            self.accept();
        }
        if !events.stop.is_empty() {
            for _ in 0..LAST_READS {
                if self.read_guest() == Turn::Over {
                    break;
                }
            }
            return Ok(Turn::Over);
        }
        Ok(Turn::Again)
    }

    fn poll(&mut self) -> Result<Events, KeeperError> {
        let room = self.guest.room() > 0;
        let now = Instant::now();
        let pause = self.accept_again.map(|again| again.saturating_duration_since(now));
        let pause = pause.filter(|pause| !pause.is_zero());
        if pause.is_none() {
            self.accept_again = None;
        }
        let accepts = if pause.is_none() { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(&self.guest.socket, PollFlags::IN | wants_out(&self.guest)),
            PollFd::new(&self.listener, accepts),
        ];
        let stop_at = self.stop.as_ref().map(|stop| {
            fds.push(PollFd::new(stop, PollFlags::IN));
            fds.len() - 1
        });
        let first_client = fds.len();
        let mut polled = Vec::with_capacity(self.clients.len());
        for (index, client) in self.clients.iter().enumerate() {
            // A hang-up is reported whether asked for or not: a client that is gone waits outside
            // of the set until there is room for what it left.
            if client.hung_up && !room {
                continue;
            }
            let reads = if client.reads && room { PollFlags::IN } else { PollFlags::empty() };
            fds.push(PollFd::new(&client.out.socket, reads | wants_out(&client.out)));
            polled.push(index);
        }
        let timeout = pause.and_then(|pause| Timespec::try_from(pause).ok());
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            // Interrupted: nothing is reported, and the next turn asks again.
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(call("poll", "the sockets", errno)),
        }
        let mut clients = vec![PollFlags::empty(); self.clients.len()];
        for (fd, index) in fds[first_client..].iter().zip(polled) {
            clients[index] = fd.revents();
        }
        Ok(Events {
            guest: fds[0].revents(),
            listener: fds[1].revents(),
            stop: stop_at.map_or(PollFlags::empty(), |at| fds[at].revents()),
            clients,
        })
    }

    /// Guest → log, replay and every client. Over: the hypervisor has closed its end.
    fn read_guest(&mut self) -> Turn {
        let got = match rustix::io::read(&self.guest.socket, &mut self.chunk[..]) {
            Ok(0) => return Turn::Over,
            Ok(got) => got,
            Err(Errno::AGAIN | Errno::INTR) => return Turn::Again,
            Err(_gone) => return Turn::Over,
        };
        let bytes = &self.chunk[..got];
        self.log.append(bytes);
        self.replay.push(bytes);
        // A client that is cut off sees its connection close and may attach again.
        self.clients.retain_mut(|client| client.hung_up || client.out.push(bytes).is_ok());
        Turn::Again
    }

    fn serve_clients(&mut self, events: &[PollFlags]) {
        let Self { clients, guest, chunk, .. } = self;
        // `read_guest` may have cut some off; events are told by position, so those are off now.
        // A turn later `poll` says them again.
        if clients.len() != events.len() {
            return;
        }
        let mut events = events.iter();
        clients.retain_mut(|client| {
            let event = events.next().copied().unwrap_or(PollFlags::empty());
            serve(client, event, guest, chunk)
        });
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No more than the limit in one turn: a flood of clients must not hold the guest up.
        for _ in 0..self.config.max_clients {
            let socket = match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return,
                // The client went away before its turn came.
                Err(Errno::CONNABORTED | Errno::INTR) => continue,
                Err(_short_of_something) => {
                    self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            };
            let permitted = peer_credentials(&socket).is_ok_and(|peer| peer.uid == self.own_uid || peer.uid == 0);
            if !permitted || self.clients.len() >= self.config.max_clients {
                continue;
            }
            let mut client = Client::new(socket, self.config.client_queue_bytes);
            if self.replay.slices().iter().all(|part| client.out.push(part).is_ok()) {
                self.clients.push(client);
            }
        }
    }

    /// The guest is gone: those who wait to attach get the replay, and everybody the rest.
    fn drain(mut self) -> Result<(), KeeperError> {
        self.accept();
        let until = Instant::now() + self.config.drain;
        loop {
            self.clients.retain_mut(|client| {
                client.out.flush();
                !client.out.is_empty()
            });
            let left = until.saturating_duration_since(Instant::now());
            if self.clients.is_empty() || left.is_zero() {
                return Ok(());
            }
            let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
            let mut fds: Vec<PollFd<'_>> =
                self.clients.iter().map(|client| PollFd::new(&client.out.socket, PollFlags::OUT)).collect();
            match rustix::event::poll(&mut fds, Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(call("poll", "the clients", errno)),
            }
        }
    }
}

/// `false`: the client is done with.
fn serve(client: &mut Client, event: PollFlags, guest: &mut Outlet, chunk: &mut [u8]) -> bool {
    if event.contains(PollFlags::OUT) {
        client.out.flush();
    }
    if event.intersects(PollFlags::HUP | PollFlags::ERR) {
        client.hung_up = true;
    }
    let room = guest.room().min(chunk.len());
    if client.reads && room > 0 && event.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
        match rustix::io::read(&client.out.socket, &mut chunk[..room]) {
            // Within the room that there is, so never refused. A client may close its sending half
            // and go on reading.
            Ok(got) if got > 0 => client.reads = guest.push(&chunk[..got]).is_ok(),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => client.reads = false,
        }
    }
    !client.is_done()
}

fn wants_out(outlet: &Outlet) -> PollFlags {
    if outlet.is_empty() { PollFlags::empty() } else { PollFlags::OUT }
}

/// The wrong descriptors at the agreed numbers are told at the start, not by silence later.
fn check_sockets(guest: &OwnedFd, listener: &OwnedFd) -> Result<(), KeeperError> {
    let guest_is = "the guest's socket";
    let listener_is = "the listening socket";
    rustix::net::sockopt::socket_type(guest).map_err(|errno| call("getsockopt", guest_is, errno))?;
    match rustix::net::sockopt::socket_acceptconn(listener) {
        Ok(true) => {}
        Ok(false) => return Err(call("accept", listener_is, Errno::INVAL)),
        Err(errno) => return Err(call("getsockopt", listener_is, errno)),
    }
    for (fd, what) in [(guest, guest_is), (listener, listener_is)] {
        rustix::io::ioctl_fionbio(fd, true).map_err(|errno| call("ioctl FIONBIO", what, errno))?;
    }
    Ok(())
}

fn call(call: &'static str, what: &'static str, errno: Errno) -> KeeperError {
    KeeperError::Call { call, what, source: errno.into() }
}
