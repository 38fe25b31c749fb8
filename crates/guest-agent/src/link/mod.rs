//! The ways to a host: where it is met, and when to try again.
//!
//! Not here: what is said on them (`core`).

pub(crate) mod backoff;
pub(crate) mod endpoint;
pub(crate) mod port;
