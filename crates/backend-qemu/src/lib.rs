//! QEMU as a backend: x86_64 guests on the machines q35 and microvm, under KVM or in software.
//!
//! Owns: the arguments of QEMU, its control protocol, its processes and what they leave on the
//! host. Deliberately absent: what a VM should be doing (the engine plans), wire types, SQL.
//!
//! ```text
//!   backend ── the trait's methods, one permit per VM
//!      ├─ files        kernels and disks are looked at before QEMU sees them
//!      ├─ probe, accel what this QEMU and this host can do; asked once, cached
//!      ├─ args         spec + plan -> argv, pure
//!      ├─ launch       record, spawn at the gate, record, release; undone by `clear`
//!      ├─ machine      one actor per living machine: QMP and the end of its process -> events
//!      └─ adopt        found again by its record after the daemon's death
//! ```
//!
//! A machine is two processes: QEMU and the keeper of its serial line. QEMU stops with the cause
//! of its end in it (`-action shutdown=pause,panic=pause`), so that the cause is there to be asked
//! for even when nobody was connected at that moment.
#![forbid(unsafe_code)]

mod accel;
mod adopt;
mod args;
mod backend;
mod clear;
mod config;
mod ending;
mod exits;
mod files;
mod info;
mod launch;
mod log;
mod machine;
mod probe;
mod qmp;
mod record;
mod trial;

pub use backend::QemuBackend;
pub use config::{Limits, QemuConfig};

use std::error::Error;

use roost_backend::BackendError;

/// A failure of the host that may pass.
fn host_error(reason: &'static str, error: &dyn Error) -> BackendError {
    BackendError::transient(reason, chain(error))
}

/// An error with what it is because of.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let said = source.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = source.source();
    }
    text
}
