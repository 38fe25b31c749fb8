//! Being told that a process ended: one thread, one epoll set, any number of pidfds.
//!
//! Owns: the watching thread and the set; collecting the exit status of our own children.
//! Not here: what an exit means, which is its receiver's business; anything that polls.
//!
//! ```text
//!   watch(process, token) ──> watched ──(process ends)──> reaped ──> Exit { token, status } sent once
//!                                └──────unwatch(token)──> nothing is sent
//! ```
//!
//! A pidfd of a process that has ended is readable and stays so; one that is added after the end
//! reports at once. That is why no exit can fall between `open` and `watch`.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, epoll};
use rustix::io::Errno;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub use crate::process::ExitStatus;
use crate::process::Process;

/// One process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// As given to [`ExitWatcher::watch`].
    pub token: u64,
    /// `None` when it was not our child (adopted after a restart of the daemon), or somebody else
    /// has collected it.
    pub status: Option<ExitStatus>,
}

/// Why watching failed.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The token is in use; two processes under one token could not be told apart.
    #[error("token {token} is being watched already")]
    TokenInUse {
        /// The token at fault.
        token: u64,
    },
    /// No thread, no descriptor or no memory for the set.
    #[error("{call} for the exit watcher failed")]
    Call {
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The watcher. Dropping it ends its thread; processes are left as they are.
#[derive(Debug)]
pub struct ExitWatcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Key of the event that ends the thread; watches count up from zero and never get there.
const STOP: u64 = u64::MAX;

#[derive(Debug)]
struct Shared {
    epoll: OwnedFd,
    stop: OwnedFd,
    watches: Mutex<Watches>,
}

/// Keys in the epoll set are numbers used once, so that an event fetched before `unwatch` cannot be
/// taken for one of a later watch under the same token.
#[derive(Debug, Default)]
struct Watches {
    next_key: u64,
    by_key: HashMap<u64, Watch>,
    key_of: HashMap<u64, u64>,
}

#[derive(Debug)]
struct Watch {
    token: u64,
    process: Process,
    /// Keeps the descriptor number open for as long as the set holds it.
    pidfd: Arc<OwnedFd>,
}

impl ExitWatcher {
    /// Starts the thread. Exits arrive at the receiver in the order in which they are seen; dropping
    /// the receiver is allowed (children are still collected).
    ///
    /// # Errors
    /// No descriptor or thread is to be had.
    pub fn start() -> Result<(Self, UnboundedReceiver<Exit>), WatchError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| call("epoll_create1", errno))?;
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| call("eventfd", errno))?;
        epoll::add(&epoll, &stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)
            .map_err(|errno| call("epoll_ctl", errno))?;
        let shared = Arc::new(Shared { epoll, stop, watches: Mutex::default() });
        let (sender, receiver) = unbounded_channel();
        let thread = std::thread::Builder::new()
            .name("roost-exits".to_owned())
            .stack_size(256 * 1024)
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run(&sender)
            })
            .map_err(|source| WatchError::Call { call: "clone", source })?;
        Ok((Self { shared, thread: Some(thread) }, receiver))
    }

    /// Reports the end of `process` once, under `token`; at once if it has ended already.
    ///
    /// # Errors
    /// The token is in use, this very handle is watched already, or the set cannot grow.
    pub fn watch(&self, process: &Process, token: u64) -> Result<(), WatchError> {
        let mut watches = self.shared.watches();
        if watches.key_of.contains_key(&token) {
            return Err(WatchError::TokenInUse { token });
        }
        let key = watches.next_key;
        watches.next_key += 1;
        let pidfd = process.shared_pidfd();
        // The lock is held: the thread cannot see the event before the watch is in the table.
        epoll::add(&self.shared.epoll, &*pidfd, epoll::EventData::new_u64(key), epoll::EventFlags::IN)
            .map_err(|errno| call("epoll_ctl", errno))?;
        watches.key_of.insert(token, key);
        watches.by_key.insert(key, Watch { token, process: process.clone(), pidfd });
        Ok(())
    }

    /// Stops watching. Nothing is sent for the token after this returns, except what the receiver
    /// holds already. Unknown tokens are ignored: the exit may just have been reported.
    pub fn unwatch(&self, token: u64) {
        let mut watches = self.shared.watches();
        if let Some(key) = watches.key_of.remove(&token)
            && let Some(watch) = watches.by_key.remove(&key)
        {
            self.shared.forget(&watch);
        }
    }

    /// How many processes are watched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.watches().by_key.len()
    }

    /// Whether nothing is watched.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for ExitWatcher {
    fn drop(&mut self) {
        // Writing 1 to an eventfd fails only when the counter is full, and then it is readable anyway.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, sender: &UnboundedSender<Exit>) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => panic!("epoll_wait on a set that we own: {errno}"),
            }
            for event in &events {
                let key = event.data.u64();
                if key == STOP {
                    return;
                }
                self.ended(key, sender);
            }
        }
    }

    fn ended(&self, key: u64, sender: &UnboundedSender<Exit>) {
        let mut watches = self.watches();
        let Some(watch) = watches.by_key.remove(&key) else {
            return;
        };
        watches.key_of.remove(&watch.token);
        self.forget(&watch);
        // The process has ended, so this does not wait; what cannot be told is told as unknown.
        let status = watch.process.reap().unwrap_or(None);
        // Sent under the lock: after `unwatch` returned, nothing more may come. A dropped receiver
        // wants no exits.
        let _ = sender.send(Exit { token: watch.token, status });
    }

    /// Takes the pidfd out of the set. Closing it would not: other handles share it.
    fn forget(&self, watch: &Watch) {
        // Fails only if the descriptor is not in the set, which is what is wanted.
        let _ = epoll::delete(&self.epoll, &*watch.pidfd);
    }

    fn watches(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn call(call: &'static str, errno: Errno) -> WatchError {
    WatchError::Call { call, source: errno.into() }
}
