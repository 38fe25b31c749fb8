//! The daemon: configuration, wiring, and the API in front of the engine.
//!
//! ```text
//!   config -> state directory and its lock -> store -> backends -> engine -> serve -> (signal) -> stop
//! ```
//!
//! No decision about a VM is made here: `serve` authenticates, decodes and answers; the engine decides. What is
//! done inside guests goes through `guests` to the hub.
#![forbid(unsafe_code)]

pub mod config;
mod doctor;
mod guests;
mod logging;
mod seams;
mod serve;
mod wiring;

pub use wiring::run;
