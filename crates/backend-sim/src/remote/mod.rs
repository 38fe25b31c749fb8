//! Machines in a process of their own, `roost-simhost`, which outlives the daemon.
//!
//! Owns the protocol and its two ends. One connection is one session of [`SimHost`]: when it breaks,
//! machines at their gates vanish, and the others live on. Frames are JSON, one to a line, of at most
//! [`MAX_FRAME_BYTES`]; requests are pipelined, and those that need not wait are carried out in the order in
//! which they came.
//!
//! ```text
//!   client                              host
//!     hello {version}          ->
//!                              <-       hello {version, host}      a new `host` lost all machines
//!     ask {id, request}        ->
//!     cancel {id}              ->                                  nobody waits for it any more
//!                              <-       answer {id, result}
//!                              <-       told {event}
//! ```
//!
//! [`SimHost`]: crate::SimHost

mod client;
mod control;
mod frame;
mod server;

pub(crate) use client::{RemoteLink, RemoteOptions};
pub use control::HostControl;
pub use server::{HostOptions, ServeError, serve};

/// The longest frame.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// Machines in one request: with as many devices as a VM may have, their frame is below the limit.
pub(crate) const BATCH: usize = 500;
