//! Lines at which a debug build can be made to die, for the tests that kill the daemon at each.
//!
//! Owns: the list of the lines, and the death. Not here: what is at them, and what has to be true
//! afterwards; a test walks over [`Point::ALL`] and says that.
//!
//! A program dies at the point that is named in the file that `ROOST_FAULT_FILE` names: a file, so
//! that a program can be told after it has started. `gate-opened 2` there means the second time that
//! it comes by. In a release build nothing of this is there.

/// Reads the file at every point: a test writes it when it is ready.
#[cfg(debug_assertions)]
const VARIABLE: &str = "ROOST_FAULT_FILE";

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)+) => {
        /// One line of what is done to a machine. Named by what has just been done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point {
            $($(#[$doc])* $point,)+
        }

        impl Point {
            /// All of them, in the order in which a machine comes by.
            pub const ALL: &[Point] = &[$(Point::$point),+];

            /// What it is called in the file.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)+
                }
            }
        }
    };
}

points! {
    /// Asked to make what a machine needs; nothing is on record.
    DefineAsked = "define-asked",
    /// Its directory is on record.
    DefineRecorded = "define-recorded",
    /// Its directory is there.
    DefineMade = "define-made",
    /// About to start it; nothing of it is on record.
    LaunchAsked = "launch-asked",
    /// What will be made is on record.
    LaunchRecorded = "launch-recorded",
    /// Its run directory is there.
    LaunchDirMade = "launch-dir-made",
    /// Its control socket listens.
    LaunchSocketBound = "launch-socket-bound",
    /// Its console's socket listens.
    LaunchConsoleBound = "launch-console-bound",
    /// The keeper of its serial line waits at its gate.
    LaunchKeeperBorn = "launch-keeper-born",
    /// So does the hypervisor.
    LaunchVmmBorn = "launch-vmm-born",
    /// Who they are is on record.
    LaunchIdentified = "launch-identified",
    /// A gate has been told to open; nobody knows yet whether its child has become its program.
    GateOpened = "gate-opened",
    /// The keeper's gate is open, the hypervisor's is not.
    LaunchKeeperReleased = "launch-keeper-released",
    /// Both are; nobody has asked whether the CPUs run.
    LaunchReleased = "launch-released",
    /// The CPUs run; only this program knows.
    LaunchUp = "launch-up",
    /// A launch failed; what it made is there.
    UndoBegun = "undo-begun",
    /// Its processes are gone.
    UndoKilled = "undo-killed",
    /// Its run directory is gone.
    UndoDirRemoved = "undo-dir-removed",
    /// It is off the record.
    UndoForgotten = "undo-forgotten",
    /// About to stop the CPUs.
    PauseAsked = "pause-asked",
    /// They stand; only this program knows.
    PauseDone = "pause-done",
    /// About to let them go on.
    ResumeAsked = "resume-asked",
    /// They go on; only this program knows.
    ResumeDone = "resume-done",
    /// About to reset the guest.
    ResetAsked = "reset-asked",
    /// It starts anew; only this program knows.
    ResetDone = "reset-done",
    /// About to ask the guest to shut down.
    ShutdownAsked = "shutdown-asked",
    /// The guest has ended; only this program knows.
    ShutdownEnded = "shutdown-ended",
    /// About to tell the hypervisor to quit.
    QuitAsked = "quit-asked",
    /// It was told.
    QuitSent = "quit-sent",
    /// It is gone.
    QuitDone = "quit-done",
    /// About to clear away what is on record of a launch.
    ClearBegun = "clear-begun",
    /// Its processes are gone.
    ClearEnded = "clear-ended",
    /// Its run directory is gone.
    ClearDirRemoved = "clear-dir-removed",
    /// It is off the record.
    ClearForgotten = "clear-forgotten",
    /// A machine found again at the start has been looked at, and nothing is written of that.
    AdoptFound = "adopt-found",
    /// A VM's own directory is gone.
    RemoveDirRemoved = "remove-dir-removed",
    /// It is off the record; the VM is not.
    RemoveForgotten = "remove-forgotten",
}

/// Dies here, if this is the point that was named.
#[inline]
pub fn point(point: Point) {
    #[cfg(debug_assertions)]
    armed::die_if_named(point);
    #[cfg(not(debug_assertions))]
    let _nothing = point;
}

#[cfg(debug_assertions)]
mod armed {
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::{Point, VARIABLE};

    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    /// How often the named point was passed.
    static PASSED: AtomicUsize = AtomicUsize::new(0);

    pub(super) fn die_if_named(point: Point) {
        let Some(file) = FILE.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from)) else { return };
        let Ok(text) = std::fs::read_to_string(file) else { return };
        let (name, times) = text.trim().split_once(' ').unwrap_or((text.trim(), "1"));
        if name == point.name() && times.parse() == Ok(PASSED.fetch_add(1, Ordering::Relaxed) + 1) {
            // SIGKILL to oneself does not come back. Should it ever, the test must not pass by it.
            let killed = kill_process(getpid(), Signal::KILL);
            panic!("still alive after SIGKILL at {}: {killed:?}", point.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Point;

    #[test]
    fn every_point_has_a_name_of_its_own() {
        let names: BTreeSet<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }
}
