//! The whole engine, over a real database and simulated machines, under a seeded executor: any
//! interleaving can be drawn, every failure can be repeated by its seed.
#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a failed step of a test is a failed test; modules of one program"
)]

mod chaos;
mod executor;
mod guests;
mod lifecycle;
mod world;
