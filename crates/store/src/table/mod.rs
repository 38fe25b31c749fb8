//! One file per table: its rows, and their way to the model and back.

pub(crate) mod events;
pub(crate) mod executions;
pub(crate) mod history;
pub(crate) mod idempotency;
pub(crate) mod jobs;
pub(crate) mod nodes;
pub(crate) mod operations;
pub(crate) mod resources;
pub(crate) mod vms;
