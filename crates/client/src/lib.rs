//! A typed client of the daemon's API over its Unix socket.
//!
//! Owns the connection (HTTP/2, shared by all calls, made again when it is lost) and the decoding
//! of errors. It does not retry, does not print, and knows no configuration: the caller says where
//! the socket is.
//!
//! ```no_run
//! # async fn demo() -> Result<(), roost_client::Error> {
//! use roost_client::{Client, v1};
//!
//! let client = Client::connect_unix("/run/roost/roost.sock");
//! let page = client.list_vms(v1::ListVmsRequest::default()).await?;
//! for vm in page.vms {
//!     println!("{} {:?}", vm.name, vm.state);
//! }
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]

mod client;
mod console;
mod error;
mod guest;
mod stream;

pub use buffa::EnumValue;
pub use client::{Changed, Client, has_ended};
pub use connectrpc::ErrorCode;
pub use console::{Console, ConsoleInput, ConsoleOutput};
pub use error::Error;
pub use guest::{Exec, ExecInput, ExecOutput, PullFile, WatchMetrics};
pub use roost_api::vmm::v1;
pub use stream::{ConsoleLog, Watch};
