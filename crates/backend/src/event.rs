//! What a backend reports without having been asked.

use roost_model::{ExitCause, LaunchId, VmId};
use tokio::sync::mpsc;

/// Something that happened to a machine by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// The VM.
    pub vm: VmId,
    /// The launch that it happened to; a listener drops events of launches that are over.
    pub launch: LaunchId,
    /// What happened.
    pub happened: Happened,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// The machine ended. Its process may linger until `clear`.
    Ended(ExitCause),
    /// The guest reset itself and runs on.
    Reset,
    /// Its CPUs were stopped by something other than `pause` (an I/O error on a full disk, a debugger).
    Paused,
    /// They went on by something other than `resume`.
    Resumed,
}

/// Where a backend puts its events.
pub type EventSender = mpsc::UnboundedSender<Event>;
/// Where the engine takes them from.
pub type EventReceiver = mpsc::UnboundedReceiver<Event>;

/// A channel for one engine and all of its backends.
pub fn events() -> (EventSender, EventReceiver) {
    mpsc::unbounded_channel()
}
