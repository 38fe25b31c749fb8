//! What Roost asks of the machine that it runs on: processes, exits, directories, sockets, TAPs, facts.
//!
//! This is the only crate with `unsafe` code, and only where `rustix` and the standard library have
//! no safe form: the modules marked here, and one registration with tokio in [`process`].
//!
//! Absent on purpose: any knowledge of VMs, hypervisors, the database or the API (but for the names in
//! [`fault`], a list of lines for tests). Nothing here
//! decides; nothing here signals a process by its number or by its name.
#![deny(clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn)]

pub mod dirs;
pub mod exits;
pub mod fault;
#[allow(unsafe_code, reason = "the number of a descriptor becomes its owner")]
pub mod inherited;
#[allow(unsafe_code, reason = "fork and what a forked child may call have no safe form")]
pub mod launch;
pub mod process;
#[allow(unsafe_code, reason = "signal sets and signalfd have no safe form")]
pub mod signals;
#[allow(unsafe_code, reason = "rustix cannot represent a peer without a process number")]
pub mod sockets;
pub mod stats;
#[allow(unsafe_code, reason = "TUNSETIFF is an ioctl with a C structure")]
pub mod tap;
