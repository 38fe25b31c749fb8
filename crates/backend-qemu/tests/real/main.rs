//! The backend on real QEMU, under software emulation.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod adoption;
mod conformance;
mod launch_steps;
mod lifecycle;
mod linux;
mod measure;
mod refusals;
mod support;
mod taps;
