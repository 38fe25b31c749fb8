//! The only orchestrator: admits requests, records them, drives VMs to what is wanted, and
//! publishes what happened.
//!
//! ```text
//!   request -> admit (model) -> record: ONE transaction -> dispatch: wake the VM's actor
//!                                                              |
//!   backend event, timer, start-up ----------------------------+
//!                                                              v
//!            actor: read the record -> plan (model) -> step (backend) -> observe -> commit -+
//!              ^----------------------------------------------------------------------------+
//!            every commit gives its events dense positions -> watchers
//! ```
//!
//! The engine reaches the world only through [`Store`](roost_store::Store), [`Clock`], [`Rng`],
//! [`Spawner`], [`Dispatch`] and [`Backend`](roost_backend::Backend); `clippy.toml` bans the rest. It
//! knows nothing of wires, SQL, processes or files.
#![forbid(unsafe_code)]

mod actor;
mod adopt;
mod commit;
mod config;
mod engine;
mod error;
mod executions;
mod ids;
mod journal;
mod query;
mod record;
mod seam;
mod starts;
mod step;
mod waiters;
mod watch;

pub use config::EngineConfig;
pub use engine::{BackendEntry, Engine, Seams};
pub use error::EngineError;
pub use executions::{ExecutionPage, NewExecution};
pub use ids::Ids;
pub use query::{Address, OperationPage, VmInfo, VmPage};
pub use record::{Accepted, CreateVm, RequestVm, UpdateVm};
pub use roost_store::{Event, ExecutionFilter, OperationFilter, VmFilter};
pub use seam::{Clock, Dispatch, Guests, LocalDispatch, Rng, Spawner};
pub use watch::Watch;
