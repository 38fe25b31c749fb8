//! The agent in a guest: it waits for its host on a port or a socket, and does what it is asked.
//!
//! Owned here: connections and their return, programs and their end, files beneath what is permitted, secrets in
//! memory, settings. What is said is `guest-proto`'s.
//!
//! One thread owns all of that and blocks nowhere but in epoll; what blocks (safe commands, freezing, files) has a
//! thread for as long as it takes. There is no async runtime, no inet socket, and no unsafe code but in `sys` and in
//! the system's own `platform::linux::sys`.

mod core;
mod exec;
mod files;
mod link;
#[allow(unsafe_code, reason = "what has no safe form: see the module")]
mod sys;

pub mod args;
pub mod config;
pub mod diagnose;
pub mod freeze;
pub mod identity;
pub mod log;
pub mod metrics;
pub mod platform;
pub mod run;
pub mod safe;

pub use crate::core::Agent;
pub use crate::sys::prepare;
