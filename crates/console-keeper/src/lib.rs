//! The keeper of one VM's serial line: a small process that outlives the daemon.
//!
//! Owns: the console log and its cap, the clients that are attached, what goes to and from the
//! guest's serial port. Not here: starting the keeper, the hypervisor, who may ask the daemon for a
//! console; what the bytes mean. They are the guest's, and hostile: they are kept and passed on, never
//! read.
//!
//! ```text
//!    hypervisor's serial port                       clients (the daemon, `roost console`)
//!         │  descriptor 3, a connected socket            │ │ │  descriptor 4, a listening socket
//!         └──────────────── keeper ──────────────────────┴─┴─┘
//!                              │ descriptor 5, a directory
//!                      console.log, console.log.1
//! ```
//!
//! What the guest writes goes to the log and to every client, and neither may hold it up: a client
//! that falls too far behind is cut off, and a full disk costs log bytes only. What a client writes
//! goes to the guest through a bounded queue, which holds the client up when it is full.
//! A client gets the last bytes first, then the live ones.
//!
//! The keeper ends when the hypervisor closes its end, or on `SIGTERM`.
#![forbid(unsafe_code)]

mod begin;
mod client;
mod follow;
mod keeper;
mod log;
mod tail;

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

pub use begin::mark_begin;
pub use follow::{Follower, Since};
pub use keeper::run;
pub use tail::read_tail;

/// Where the program finds the connected socket of the guest's serial port.
pub const GUEST_FD: RawFd = 3;
/// Where the program finds the listening socket for clients.
pub const LISTENER_FD: RawFd = 4;
/// Where the program finds the directory of the log.
pub const LOG_DIR_FD: RawFd = 5;

/// The log that is being written.
pub const LOG_FILE: &str = "console.log";
/// The log before it.
pub const OLD_LOG_FILE: &str = "console.log.1";
/// Where in the log the machine's last start is.
pub const BEGIN_FILE: &str = "console.begin";

/// The limits of a keeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeeperConfig {
    /// Both log files together never exceed this.
    pub log_cap_bytes: u64,
    /// What a client gets of the past when it attaches.
    pub replay_bytes: usize,
    /// A client with more than this still to be sent is cut off.
    pub client_queue_bytes: usize,
    /// Client input that the guest has not taken yet; beyond it the clients wait.
    pub guest_queue_bytes: usize,
    /// Clients at once; one more is hung up on.
    pub max_clients: usize,
    /// How long clients are given to take the last bytes once the guest is gone.
    pub drain: Duration,
}

impl Default for KeeperConfig {
    fn default() -> Self {
        Self {
            log_cap_bytes: 1024 * 1024,
            replay_bytes: 4096,
            client_queue_bytes: 256 * 1024,
            guest_queue_bytes: 64 * 1024,
            max_clients: 16,
            drain: Duration::from_secs(2),
        }
    }
}

/// The smallest cap: two files of at least a page.
pub const MIN_LOG_CAP_BYTES: u64 = 8192;

impl KeeperConfig {
    /// Checks the limits against each other.
    ///
    /// # Errors
    /// Names the limit at fault and what is permitted.
    pub fn check(&self) -> Result<(), KeeperError> {
        let at_fault = |what, value, permitted| Err(KeeperError::Limit { what, value, permitted });
        if self.log_cap_bytes < MIN_LOG_CAP_BYTES {
            return at_fault("--cap", self.log_cap_bytes, format!("at least {MIN_LOG_CAP_BYTES}"));
        }
        // Otherwise a client would be cut off for its own replay.
        if self.replay_bytes > self.client_queue_bytes {
            let value = self.replay_bytes as u64;
            return at_fault("--replay", value, format!("at most {}", self.client_queue_bytes));
        }
        Ok(())
    }
}

/// What a keeper works on.
#[derive(Debug)]
pub struct KeeperFds {
    /// Connected socket; the other end is the hypervisor's serial port.
    pub guest: OwnedFd,
    /// Listening Unix socket.
    pub listener: OwnedFd,
    /// Directory of the log.
    pub log_dir: OwnedFd,
    /// Once this is readable, the keeper ends.
    pub stop: Option<OwnedFd>,
}

/// Why a keeper could not go on.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// A limit makes no sense.
    #[error("{what} is {value}: {permitted} is permitted")]
    Limit {
        /// The option.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What would do.
        permitted: String,
    },
    /// A symbolic link, a device or the like stands where a log file belongs: somebody tampers.
    #[error("{name} in the log directory is not a regular file")]
    NotALog {
        /// The file.
        name: &'static str,
    },
    /// A system call failed.
    #[error("{call} on {what} failed")]
    Call {
        /// The system call.
        call: &'static str,
        /// Its object.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
