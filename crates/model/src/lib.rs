//! The domain of Roost: what a VM is, what may be asked of it, and what to do next.
//!
//! Everything here is synchronous and pure. There is no I/O, no async, no wire type and no SQL:
//! clocks and randomness are arguments. The three views of a VM are three types, joined by pure
//! functions:
//!
//! ```text
//!   request --admit--> Desired ----+
//!                                  +--plan--> steps --(a backend acts)--> Observed
//!   backend report --observe--> Observed                                     |
//!                                  +--phase--> VmState  <--------------------+
//! ```
#![forbid(unsafe_code)]

pub mod admit;
pub mod capability;
pub mod error;
pub mod execution;
pub mod id;
pub mod name;
pub mod observe;
pub mod operation;
pub mod plan;
pub mod resource;
pub mod spec;
pub mod state;
mod text;
pub mod time;
pub mod units;
pub mod vm;

pub use capability::{Capabilities, Capability};
pub use error::{Invalid, Refusal};
pub use execution::{Execution, ExecutionStatus, Job};
pub use id::{ExecutionId, JobId, LaunchId, NodeId, OperationId, ProjectId, VmId};
pub use name::{BackendName, VmName};
pub use operation::{Operation, OperationKind, Priority, Status};
pub use resource::{Resource, ResourceKind};
pub use spec::VmSpec;
pub use state::{Desired, ExitCause, Machine, Observed, Power, VmState};
pub use time::Timestamp;
pub use units::Bytes;
pub use vm::Vm;
