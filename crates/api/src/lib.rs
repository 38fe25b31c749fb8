//! The API's wire types, and the one edge where they meet the domain.
#![forbid(unsafe_code)]

#[allow(missing_debug_implementations, unreachable_pub, clippy::all, clippy::unwrap_used)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/generated.rs"));
}

pub use generated::vmm;
