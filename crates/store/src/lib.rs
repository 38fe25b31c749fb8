//! The database: the only truth.
//!
//! Owns the schema and its migrations, rows and their conversion to the model and back, and group
//! commit. Not here: decisions (the engine's), and the lock on the state directory (the daemon's).
//!
//! ```text
//!   write(closure) --> queue --> one writer: BEGIN, many closures, their events, COMMIT --> answers
//!   read(closure)  --> a reader's snapshot
//! ```
#![forbid(unsafe_code)]

mod error;
mod migration;
mod sql;
mod sqlite;
mod store;
mod table;
mod tx;
mod writer;

pub use error::StoreError;
pub use migration::SCHEMA_VERSION;
pub use store::Store;
pub use table::events::{Event, NewEvent};
pub use table::executions::ExecutionFilter;
pub use table::idempotency::IdempotencyRecord;
pub use table::nodes::NodeRecord;
pub use table::operations::OperationFilter;
pub use table::vms::VmFilter;
pub use tx::Tx;
