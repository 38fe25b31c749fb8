//! The API's wire types, and the one edge where they meet the domain.
//!
//! Owns what `proto/vmm/v1` generates (messages, server traits, clients), the conversions to and
//! from `roost-model`, the check of JSON that comes in, and the form of errors that go out. It
//! serves nothing and decides nothing: who listens, who may call and what a call does belong to the
//! daemon.
//!
//! ```text
//!   JSON --strict_json--> message --from_proto--> domain --(the engine)--> domain --to_proto--> message
//!                |                       |                         |
//!                +-----------------------+------------ status -----+--> error with an ErrorDetail
//! ```
#![forbid(unsafe_code)]

pub mod any_authority;
pub mod from_proto;
pub mod status;
pub mod strict_json;
pub mod to_proto;

// Generated code is held to its generator's rules.
#[allow(missing_debug_implementations, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::await_holding_lock)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/generated.rs"));
}

pub use any_authority::AnyAuthority;
pub use generated::vmm;
pub use strict_json::StrictJson;

/// The API's `FileDescriptorSet` with all it imports, for reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
