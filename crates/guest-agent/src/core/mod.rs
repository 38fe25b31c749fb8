//! The agent's one loop: it owns every connection, program and deadline, and never blocks but in epoll.
//!
//! ```text
//!   places ──open──> links ──bytes──> channel ──requests──> dispatch ──> programs (processes, pipes)
//!     ^ back-off       ^                                        │──────> transfers, safe commands ... (threads)
//!     └── gone ────────┘ <──────── answers, streams, metrics ───┘
//! ```
//!
//! Everything is registered edge-triggered: a port whose host is gone is "hung up" all the time, and costs no
//! wake-up until that changes. What may have more to give is kept in a list (`hot`) and looked at in turn.
//!
//! Not here: how a program is started (`exec`), how a port is found (`link`), what is said (`guest-proto`).

mod channel;
mod dispatch;
mod facts;
mod job;
#[path = "link.rs"]
mod peer;
mod places;
mod programs;
mod reports;
mod serve;
mod transfer;
mod workers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use roost_guest_proto::{Response, Secret};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::Timespec;

use crate::config::{Config, Sources};
use crate::exec::capture::Budget;
use crate::exec::process::Starter;
use crate::exec::users::{Database, User};
use crate::freeze::Freezer;
use crate::{error, info, log, sys, warning};

use facts::Facts;
use job::Job;
use peer::Link;
use places::Place;
use workers::Workers;

/// What all captures may hold together.
const CAPTURES: usize = 8 << 20;
/// The bytes that one read takes.
const READ: usize = 64 * 1024;

/// What a descriptor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Signals,
    Workers,
    Listener(usize),
    Link(u64),
    Output(u64),
    Error(u64),
    Input(u64),
}

/// What a thread comes back with.
#[derive(Debug)]
enum Outcome {
    Response(Box<Response>),
    Metrics(Box<reports::Collected>),
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    epoll: OwnedFd,
    targets: BTreeMap<u64, Target>,
    next: u64,
    signals: OwnedFd,
    sources: Sources,
    config: Arc<Config>,
    places: Vec<Place>,
    links: BTreeMap<u64, Link>,
    jobs: BTreeMap<u64, Job>,
    workers: Workers<Outcome>,
    starter: Starter,
    budget: Budget,
    own: User,
    secrets: BTreeMap<String, Secret>,
    facts: Facts,
    epoch: Option<u64>,
    /// Once the request of this ID has worked, the epoch is this.
    next_epoch: Option<(String, u64)>,
    freezer: Arc<Freezer>,
    /// Links and outputs that may have more to give.
    hot: VecDeque<Target>,
    /// Links on which something may leave.
    dirty: BTreeSet<u64>,
    buffer: Vec<u8>,
    stop: bool,
}

impl Agent {
    /// An agent by these settings; it meets nobody yet.
    pub fn new(sources: Sources, config: Config) -> io::Result<Self> {
        let signals = sys::signals(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
        // What a command leaves behind becomes a child of the agent, which waits for it and can end it.
        if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
            warning!("what a command leaves behind is not found: {error}");
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let workers = Workers::new()?;
        let own = Database::read()
            .user(&rustix::process::geteuid().as_raw().to_string())
            .map_err(|error| io::Error::other(error.message))?;
        let mut agent = Self {
            epoll,
            targets: BTreeMap::new(),
            next: 1,
            signals,
            sources,
            config: Arc::new(config),
            places: Vec::new(),
            links: BTreeMap::new(),
            jobs: BTreeMap::new(),
            workers,
            starter: Starter::new()?,
            budget: Budget::new(CAPTURES),
            own,
            secrets: BTreeMap::new(),
            facts: Facts::read(),
            epoch: None,
            next_epoch: None,
            freezer: Arc::new(Freezer::default()),
            hot: VecDeque::new(),
            dirty: BTreeSet::new(),
            buffer: vec![0; READ],
            stop: false,
        };
        let token = agent.register(Target::Signals);
        epoll::add(&agent.epoll, &agent.signals, EventData::new_u64(token), EventFlags::IN)?;
        let token = agent.register(Target::Workers);
        epoll::add(&agent.epoll, agent.workers.wake_fd(), EventData::new_u64(token), EventFlags::IN)?;
        Ok(agent)
    }

    /// Works until it is told to stop. An error: it has no place left to meet a host at.
    pub fn run(mut self) -> io::Result<()> {
        self.apply_log_level();
        self.open_places(Instant::now());
        let mut events: Vec<epoll::Event> = Vec::with_capacity(64);
        while !self.stop {
            let now = Instant::now();
            if self.places.iter().all(Place::is_dead) && self.links.is_empty() {
                return Err(io::Error::other("no device is left to meet a host at"));
            }
            let wait = if self.hot.is_empty() {
                self.next_deadline().map(|deadline| deadline.saturating_duration_since(now))
            } else {
                Some(Duration::ZERO)
            };
            let wait = wait.map(|wait| Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            });
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), wait.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                if let Some(&target) = self.targets.get(&event.data.u64()) {
                    self.event(target, event.flags);
                }
            }
            for _ in 0..self.hot.len() {
                if let Some(target) = self.hot.pop_front() {
                    self.turn(target);
                }
            }
            self.due(Instant::now());
            while let Some(id) = self.dirty.pop_first() {
                self.flush(id);
            }
        }
        self.shut_down();
        Ok(())
    }

    /// A number for what a descriptor is for. Numbers are not used again, so that an event that comes late is nobody's.
    fn register(&mut self, target: Target) -> u64 {
        let token = self.next;
        self.next += 1;
        self.targets.insert(token, target);
        token
    }

    /// Watches a descriptor, edge-triggered. The number is forgotten with `forget`; the descriptor, when it is closed.
    fn watch(&mut self, fd: impl AsFd, target: Target, flags: EventFlags) -> io::Result<u64> {
        let token = self.register(target);
        if let Err(error) = epoll::add(&self.epoll, fd, EventData::new_u64(token), flags | EventFlags::ET) {
            self.targets.remove(&token);
            return Err(error.into());
        }
        Ok(token)
    }

    fn forget(&mut self, token: u64) {
        self.targets.remove(&token);
    }

    fn heat(&mut self, target: Target) {
        if !self.hot.contains(&target) {
            self.hot.push_back(target);
        }
    }

    fn event(&mut self, target: Target, flags: EventFlags) {
        match target {
            Target::Signals => self.take_signals(),
            Target::Workers => self.take_results(),
            Target::Listener(place) => self.accept(place),
            Target::Link(id) => self.link_event(id, flags),
            Target::Output(_) | Target::Error(_) | Target::Input(_) => self.turn(target),
        }
    }

    fn turn(&mut self, target: Target) {
        match target {
            Target::Link(id) => self.read_link(id),
            Target::Output(id) => self.output_ready(id, false),
            Target::Error(id) => self.output_ready(id, true),
            Target::Input(id) => self.write_input(id),
            Target::Signals | Target::Workers | Target::Listener(_) => {}
        }
    }

    fn take_signals(&mut self) {
        // Each is 128 bytes (signalfd_siginfo), and begins with its number.
        let mut infos = [0u8; 128 * 8];
        let (mut child, mut reload) = (false, false);
        while let Ok(len) = rustix::io::read(&self.signals, &mut infos) {
            for info in infos[..len].chunks_exact(128) {
                match i32::from_ne_bytes([info[0], info[1], info[2], info[3]]) {
                    libc::SIGCHLD => child = true,
                    libc::SIGHUP => reload = true,
                    signal => {
                        info!("signal {signal}: the agent stops");
                        self.stop = true;
                    }
                }
            }
            if len < infos.len() {
                break;
            }
        }
        if child {
            self.reap();
        }
        if reload {
            self.reload();
        }
    }

    /// Settings again. A mistake in them leaves all as it was.
    fn reload(&mut self) {
        match Config::load(&self.sources) {
            Ok(config) => {
                self.config = Arc::new(config);
                self.apply_log_level();
                self.open_places(Instant::now());
                info!("settings are read again");
            }
            Err(error) => error!("settings stay as they were: {error}"),
        }
    }

    fn apply_log_level(&self) {
        log::set_level(if self.config.debug { log::Level::Debug } else { log::Level::Info });
        if self.config.kernel_log
            && let Err(error) = log::use_kernel_log()
        {
            warning!("/dev/kmsg: {error}");
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let jobs = self.jobs.values().filter_map(Job::deadline);
        let places = self.places.iter().filter_map(Place::deadline);
        let links = self.links.values().filter_map(|link| self.link_deadline(link));
        jobs.chain(places).chain(links).min()
    }

    fn due(&mut self, now: Instant) {
        let jobs: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.deadline().is_some_and(|deadline| deadline <= now))
            .map(|(&id, _)| id)
            .collect();
        for id in jobs {
            self.job_due(id, now);
        }
        if self.places.iter().any(|place| place.deadline().is_some_and(|deadline| deadline <= now)) {
            self.retry_places(now);
        }
        let links: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, link)| self.link_deadline(link).is_some_and(|deadline| deadline <= now))
            .map(|(&id, _)| id)
            .collect();
        for id in links {
            self.link_due(id, now);
        }
    }

    fn take_results(&mut self) {
        for (id, outcome) in self.workers.results() {
            match outcome {
                Outcome::Response(response) => self.thread_done(id, response),
                Outcome::Metrics(collected) => self.metrics_done(id, *collected),
            }
        }
    }

    /// Nothing of what it started for a host that waits goes on without it.
    fn shut_down(&mut self) {
        self.tell_status("stopping", None);
        while let Some(id) = self.dirty.pop_first() {
            self.flush(id);
        }
        for job in self.jobs.values_mut() {
            job.cancel_thread();
            if let job::Work::Program(program) = &job.work
                && let Some(process) = &program.process
            {
                process.kill();
            }
        }
    }
}

/// Any number; only so that many agents do not do the same at once.
fn chance() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}
