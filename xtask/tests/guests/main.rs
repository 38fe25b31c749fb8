//! The guests of `guests/`, booted by a real QEMU under software emulation.

#![allow(clippy::unwrap_used, reason = "tests and what only tests call")]

mod micro;
mod qemu;
mod tiny;
