//! The simulated backend: machines without a hypervisor, stricter than any real one.
//!
//! Owns: [`SimHost`], which holds simulated machines; [`SimBackend`], the [`Backend`] over it;
//! [`Faults`], which make it fail, hang, lie, dawdle or die where a test says; [`SimClock`], through
//! which a test owns its time. Not here: guests that compute anything, files, processes, networks.
//!
//! ```text
//!   SimBackend --requests--> SimHost (in this process: an Arc that may outlive the backend)
//!        \------over a socket------> roost-simhost, a process that outlives the daemon: SimHost
//! ```
//!
//! The in-process form spawns nothing and reads no clock but [`SimClock`], so that a seeded executor
//! can run it deterministically: one that is given the same polls gives the same results.
//!
//! A simulated guest reads its kernel command line: `sim.deaf` makes it ignore requests to shut
//! down, `sim.boot_ms=N` and `sim.shutdown_ms=N` make it take its time.
//!
//! [`Backend`]: roost_backend::Backend
#![forbid(unsafe_code)]

mod backend;
mod clock;
mod config;
mod faults;
mod guest;
mod host;
mod link;
mod remote;
mod request;

pub use backend::SimBackend;
pub use clock::{ManualClock, SimClock, Sleep, TokioClock};
pub use config::SimConfig;
pub use faults::{Death, Fault, Faults, Injected, Method, Point};
pub use guest::Guest;
pub use host::SimHost;
pub use remote::{HostControl, HostOptions, MAX_FRAME_BYTES, ServeError, serve};
pub use request::{Control, ControlError};
