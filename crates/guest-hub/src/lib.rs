//! The host's end of the channels to the agents in the guests.
//!
//! Owned here: one task for each VM's channel; finding out what is at the other end; which answer belongs to which
//! call; streams with credit; the last metrics and an hour of history. Not here: which VM has a channel and what it
//! may do (the daemon says so when it attaches one), the messages and their bytes (`roost-guest-proto`), storage.
//!
//! ```text
//!               connect                 handshake of this session         [frames, sealed or lines]
//!   Away ──────────────────> Greeting ────────────────────────────> Roost
//!    ^                       │  ^  │ an older agent's line           │
//!    │ socket closed         │  │  └────────────────────> Seed       │ out of step, another agent, another epoch:
//!    └───────────────────────┘  └───────────────────────────┴────────┘ what was under way ends as "outcome unknown"
//!
//!   3 s without an agent, and a socket of QEMU's guest agent: that one is asked, until an agent greets.
//! ```
//!
//! The guest is hostile. A VM is known by its channel and by nothing that is said on it. What a guest can make the
//! host hold is bounded per VM, what it can make the host compute is bounded per second, and a call that it does
//! not answer ends by the caller's clock. A call is never sent twice.
#![forbid(unsafe_code)]

mod attachment;
mod backoff;
mod budget;
mod connect;
mod entry;
mod error;
mod exec;
mod files;
mod hub;
mod metrics;
mod policy;
mod qemu_ga;
mod request;
mod session;
mod status;
mod stream;
mod supervisor;

pub use attachment::{Attachment, Endpoint, HubConfig};
pub use error::CallError;
pub use exec::{ExecControl, ExecHandle, Output, Stdin};
pub use files::Pull;
pub use hub::Hub;
pub use metrics::{MetricsPoint, MetricsSample, MetricsWatch};
pub use roost_guest_proto as proto;
pub use status::{Dropped, Flavour, HubEvent, Status};
