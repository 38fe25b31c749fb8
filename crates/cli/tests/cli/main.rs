//! `roost` as a user runs it: the program itself, against nothing, the simulator, and real machines.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot be set up has failed")]

mod alone;
mod daemon;
mod real;
mod simulated;
mod support;
