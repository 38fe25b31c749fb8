//! The repository's own tasks, as functions: `cargo xtask` calls them, and so do tests that need a guest.
//!
//! Owned here: building the guests of `guests/` into a cache. Safe to call from many threads and
//! processes at once. Deliberately absent: anything that Roost itself needs while it runs.

#![forbid(unsafe_code)]

mod agent;
mod cache;
mod cpio;
mod micro;
mod modules;
mod packages;
mod tiny;

use std::path::{Path, PathBuf};

pub use agent::{static_agent, static_agent_in};
pub use cache::{Cache, Inputs};
pub use micro::{micro_guest, micro_guest_in};
pub use tiny::{GUEST_UP, KERNEL_ARGS, TinyGuest, microvm_kernel_args, tiny_guest, tiny_guest_in};

/// The root of the repository that this was built from.
pub fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().expect("the crate is one directory below the root").to_owned()
}
