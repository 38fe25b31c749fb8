//! What every backend has to keep: the obligations of [`Backend`], each as a check that runs on the
//! real thing.
//!
//! A backend's test implements [`Harness`] and calls [`run_all`]; each obligation is also a function
//! of its own. A check works on VMs of its own, which are deleted when it is over; whatever is left on
//! the host or on record then is a failure as well. What a harness cannot do (let a guest panic, say) or a
//! backend has no capability for is skipped, and the report says so.
//!
//! The daemon's death is played by dropping the backend and making another over the same host. What
//! is not checked here: speed, guests' contents, and deaths of the process in the middle of a system
//! call, which need a process to kill.
//!
//! [`Backend`]: crate::Backend

mod adoption;
mod crowd;
mod exits;
mod harness;
mod lifecycle;
mod records;
mod stage;

use std::fmt;
use std::time::{Duration, Instant};

use thiserror::Error;

pub use adoption::*;
pub use crowd::*;
pub use exits::*;
pub use harness::{Act, GuestKind, Harness, Scale, Subject};
pub use lifecycle::*;
pub use records::*;

/// How a check came out.
pub type Outcome = Result<Held, Failure>;

/// A check that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// The obligation is kept.
    Kept,
    /// It could not be checked here, for this reason.
    Skipped(String),
}

/// An obligation that is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{obligation}: {what}")]
pub struct Failure {
    /// The function that checks it.
    pub obligation: &'static str,
    /// What was seen instead.
    pub what: String,
}

/// What became of every obligation.
#[derive(Debug, Default)]
pub struct Report {
    /// Kept, with the time that the check took.
    pub kept: Vec<(&'static str, Duration)>,
    /// Not checked, and why.
    pub skipped: Vec<(&'static str, String)>,
    /// Not kept.
    pub failed: Vec<Failure>,
}

impl Report {
    /// Panics with all that failed.
    pub fn assert_kept(&self) {
        assert!(self.failed.is_empty(), "obligations of a backend that are not kept:\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (obligation, took) in &self.kept {
            writeln!(f, "kept    {obligation} ({} ms)", took.as_millis())?;
        }
        for (obligation, why) in &self.skipped {
            writeln!(f, "skipped {obligation}: {why}")?;
        }
        for failure in &self.failed {
            writeln!(f, "FAILED  {failure}")?;
        }
        Ok(())
    }
}

macro_rules! obligations {
    ($($name:ident,)+) => {
        /// The names of all obligations, in the order in which [`run_all`] checks them.
        pub const OBLIGATIONS: &[&str] = &[$(stringify!($name)),+];

        /// Checks the obligations whose names `wanted` takes, one after the other.
        pub async fn run(harness: &dyn Harness, wanted: impl Fn(&str) -> bool) -> Report {
            let mut report = Report::default();
            $(
                if wanted(stringify!($name)) {
                    let begun = Instant::now();
                    // Boxed: the futures of all the checks together are large.
                    match Box::pin($name(harness)).await {
                        Ok(Held::Kept) => report.kept.push((stringify!($name), begun.elapsed())),
                        Ok(Held::Skipped(why)) => report.skipped.push((stringify!($name), why)),
                        Err(failure) => report.failed.push(failure),
                    }
                }
            )+
            report
        }
    };
}

obligations! {
    answers_before_it_is_asked_to_act,
    create_is_idempotent,
    info_is_honest,
    a_second_boot_is_refused,
    pause_and_resume_are_idempotent,
    pause_and_resume_need_a_living_machine,
    a_forced_shutdown_is_idempotent,
    shutting_down_what_does_not_run_succeeds,
    a_guest_obeys_a_graceful_shutdown,
    a_deaf_guest_is_forced_at_the_deadline,
    a_reboot_keeps_the_launch,
    a_deaf_guest_is_reset_at_the_deadline,
    a_cleared_machine_boots_again,
    clear_ends_a_living_machine,
    delete_ends_a_living_machine,
    deleting_what_is_gone_succeeds,
    the_console_is_known_at_any_time,
    the_channels_into_a_guest_are_those_of_a_machine_that_is_up,
    a_power_off_is_told_once,
    a_panic_is_told_once,
    a_kill_is_told_once,
    a_reset_is_no_end,
    a_power_off_without_daemon_is_found,
    a_panic_without_daemon_is_found,
    a_kill_without_daemon_is_found,
    an_end_that_was_told_is_found_again,
    everything_is_on_record,
    a_record_that_fails_leaves_nothing_unrecorded,
    a_record_that_cannot_be_forgotten_is_tried_again,
    a_dropped_create_is_completed,
    a_dropped_boot_leaves_nothing,
    a_dropped_shutdown_leaves_the_machine_to_clear,
    a_dropped_clear_is_completed,
    a_dropped_delete_is_completed,
    a_running_machine_is_adopted,
    a_paused_machine_is_adopted,
    what_never_ran_is_adopted,
    adopting_twice_changes_nothing,
    adoption_answers_in_order,
    many_vms_at_once,
}

/// Checks every obligation, one after the other.
pub async fn run_all(harness: &dyn Harness) -> Report {
    run(harness, |_| true).await
}
