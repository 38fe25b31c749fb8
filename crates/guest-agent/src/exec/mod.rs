//! Running programs: from a request to a process, its output, its end, and the end of all that it started.
//!
//! Not here: when something is read or written, and who is told (`core`).

pub(crate) mod capture;
pub(crate) mod cgroup;
mod descendants;
pub(crate) mod plan;
pub(crate) mod process;
pub(crate) mod users;
