//! The places where hosts are met: opened, lost, opened again.

use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::epoll::EventFlags;

use super::peer::{Link, LinkKind};
use super::{Agent, Target, chance};
use crate::link::backoff::Backoff;
use crate::link::endpoint::{Endpoint, Listener, Opened};
use crate::{debug, info, warning};

/// The most connections that were accepted and are still open.
const MAX_ACCEPTED: usize = 8;

/// How often a kind of socket is asked for that the kernel does not know: about a minute.
const NO_DRIVER: u32 = 6;

/// A place to meet a host, as it is now.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) endpoint: Endpoint,
    state: State,
    pub(super) backoff: Backoff,
}

#[derive(Debug)]
enum State {
    /// The next attempt is then.
    Waiting(Instant),
    Open,
    Listening(Listener, u64),
    /// It cannot be opened (again).
    Dead,
}

impl Place {
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting(until) => Some(until),
            State::Open | State::Listening(..) | State::Dead => None,
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        matches!(self.state, State::Dead)
    }
}

impl Agent {
    /// Brings the places in line with the settings, and tries all that wait at once.
    pub(super) fn open_places(&mut self, now: Instant) {
        let wanted = self.config.devices.clone();
        let (kept, gone): (Vec<usize>, Vec<usize>) =
            (0..self.places.len()).partition(|&at| wanted.contains(&self.places[at].endpoint));
        // Numbers of places stay what they are, because links and listeners go by them.
        for at in gone {
            if let State::Listening(_, token) = self.places[at].state {
                self.forget(token);
            }
            self.places[at].state = State::Dead;
            let links: Vec<u64> = self.links.iter().filter(|it| it.1.place == Some(at)).map(|it| *it.0).collect();
            for id in links {
                self.drop_link(id, "its device is no longer in the settings");
            }
        }
        for at in kept {
            let place = &mut self.places[at];
            if matches!(place.state, State::Waiting(_)) || (place.is_dead() && !place.endpoint.is_once()) {
                place.state = State::Waiting(now);
                place.backoff.succeeded();
            }
        }
        for endpoint in wanted {
            if !self.places.iter().any(|place| place.endpoint == endpoint) {
                self.places.push(Place { endpoint, state: State::Waiting(now), backoff: Backoff::default() });
            }
        }
        self.retry_places(now);
    }

    /// Opens what is due.
    pub(super) fn retry_places(&mut self, now: Instant) {
        for at in 0..self.places.len() {
            if self.places[at].deadline().is_some_and(|deadline| deadline <= now) {
                self.open_place(at, now);
            }
        }
    }

    fn open_place(&mut self, at: usize, now: Instant) {
        let opened = self.places[at].endpoint.open();
        let shown = self.places[at].endpoint.to_string();
        let opened = opened.and_then(|opened| match opened {
            Opened::Port(fd, name) => self.add_link(fd, name, LinkKind::Device, Some(at), now),
            Opened::Stream(fd) => self.add_link(fd, shown.clone(), LinkKind::Connected, Some(at), now),
            Opened::Listener(listener) => {
                let token = self.watch(listener.as_fd(), Target::Listener(at), EventFlags::IN)?;
                self.places[at].state = State::Listening(listener, token);
                self.places[at].backoff.succeeded();
                info!("listening on {shown}");
                Ok(())
            }
        });
        let Err(error) = opened else { return };
        // The driver may be loaded a little later than the agent; a kernel that has none is not asked for ever.
        let no_driver = error.raw_os_error() == Some(libc::EAFNOSUPPORT);
        if self.places[at].endpoint.is_once() || (no_driver && self.places[at].backoff.failures() >= NO_DRIVER) {
            info!("{shown} is not used: {error}");
            self.places[at].state = State::Dead;
            return;
        }
        self.place_failed(at, &format!("{shown}: {error}"), now);
    }

    /// A place is lost, or was not to be had: the next attempt is later.
    pub(super) fn place_failed(&mut self, at: usize, why: &str, now: Instant) {
        let place = &mut self.places[at];
        if place.endpoint.is_once() {
            place.state = State::Dead;
            return;
        }
        let wait = place.backoff.failed(chance());
        let circuit = if place.backoff.is_open() { " (circuit open)" } else { "" };
        // The first one is news; the others are the same again.
        if place.backoff.failures() == 1 {
            warning!("{why}; next attempt in {wait:.1?}");
        } else {
            debug!("{why}; attempt {}, next in {wait:.1?}{circuit}", place.backoff.failures());
        }
        place.state = State::Waiting(now + wait);
    }

    fn add_link(
        &mut self,
        fd: std::os::fd::OwnedFd,
        name: String,
        kind: LinkKind,
        place: Option<usize>,
        now: Instant,
    ) -> std::io::Result<()> {
        let id = self.next;
        self.next += 1;
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP;
        // The first event says whether a host is there.
        let token = self.watch(&fd, Target::Link(id), flags)?;
        info!("{name} is open");
        self.links.insert(id, Link::new(fd, token, name, kind, place, now));
        if let Some(at) = place {
            self.places[at].state = State::Open;
        }
        Ok(())
    }

    /// Takes the connections that wait.
    pub(super) fn accept(&mut self, at: usize) {
        loop {
            let State::Listening(listener, _) = &self.places[at].state else { return };
            match listener.accept() {
                Ok(fd) => {
                    let accepted = self.links.values().filter(|link| link.place.is_none()).count();
                    if accepted >= MAX_ACCEPTED {
                        warning!("{} connections are open, no more are taken", accepted);
                        continue;
                    }
                    let name = format!("{}#{}", self.places[at].endpoint, self.next);
                    if let Err(error) = self.add_link(fd, name, LinkKind::Accepted, None, Instant::now()) {
                        warning!("a connection is not taken: {error}");
                    }
                }
                Err(error) => match error.kind() {
                    std::io::ErrorKind::WouldBlock => return,
                    std::io::ErrorKind::PermissionDenied => warning!("{}: {error}", self.places[at].endpoint),
                    std::io::ErrorKind::Interrupted | std::io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        // Such as no descriptor left: this place begins again.
                        let why = format!("{}: {error}", self.places[at].endpoint);
                        if let State::Listening(_, token) = self.places[at].state {
                            self.forget(token);
                        }
                        self.place_failed(at, &why, Instant::now());
                        return;
                    }
                },
            }
        }
    }
}
