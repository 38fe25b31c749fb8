//! A real daemon on a directory of its own, for tests that cross crates.
//!
//! Owns starting, killing and restarting `roostd`, and finding whatever belongs to it on the host.
//! Not here: what the daemon should do; its tests say that.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot be set up has failed")]

mod daemon;
mod disk;
mod spec;

pub use daemon::{Leftover, TestDaemon};
pub use disk::Disk;
pub use spec::{micro, micro_on, sim, tiny};
