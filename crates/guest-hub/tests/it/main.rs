//! The hub against peers over real sockets: scripted ones, hostile ones, and real agents where they are installed.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod agent;
mod calls;
mod copies;
mod epochs;
mod hostile;
mod metrics;
mod old_agents;
mod qemu_ga;
mod streams;
mod support;
