//! The guests: the hub that speaks with their agents, wired to the engine's record.
//!
//! Owned here: which VM has a channel (it follows the record), the record of what is done in a guest, jobs, tools,
//! idleness. Not here: the channels themselves (`roost-guest-hub`), wires (`serve`).
//!
//! ```text
//!   the record's events ──> follow ──> Hub::attach, detach
//!   the hub's events ─────> conditions AgentConnected, GuestReady
//!   a call ──> execution on record ──> hub ──> its end on record ──> answer
//! ```

mod failure;
mod follow;
mod idle;
mod jobs;
mod run;
mod tools;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use roost_engine::Engine;
use roost_guest_hub::{Hub, HubConfig, HubEvent};
use roost_model::{LaunchId, VmId};
use tokio::sync::{SetOnce, mpsc};
use tokio::task::JoinHandle;

pub(crate) use failure::Failure;
pub(crate) use run::Running;

/// Everything that is done inside guests. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Guests {
    /// The channels.
    pub(crate) hub: Hub,
    /// Set right after both exist: the engine asks this for tools, and this writes to the engine's record.
    engine: Arc<SetOnce<Engine>>,
    /// Machines whose channel is attached.
    attached: Arc<Mutex<HashMap<VmId, Attached>>>,
}

/// A machine whose channel is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attached {
    launch: Option<LaunchId>,
    generation: u64,
    /// When a person was last seen at its console; activity that the hub does not know.
    touched: Instant,
}

/// What a task that nobody aborts has come to; a panic of its is ours.
pub(crate) async fn joined<T>(work: JoinHandle<T>) -> T {
    work.await.unwrap_or_else(|broken| std::panic::resume_unwind(broken.into_panic()))
}

/// What happens on the channels, until `start` takes it.
pub(crate) type HubEvents = mpsc::UnboundedReceiver<HubEvent>;

impl Guests {
    pub(crate) fn new() -> (Self, HubEvents) {
        let (hub, events) = Hub::new(HubConfig::default());
        (Self { hub, engine: Arc::default(), attached: Arc::default() }, events)
    }

    /// Begins to follow the record. Ends with the engine.
    pub(crate) fn start(&self, engine: Engine, events: HubEvents) {
        if self.engine.set(engine).is_err() {
            unreachable!("started once");
        }
        tokio::spawn(follow::follow_record(self.clone()));
        tokio::spawn(follow::follow_hub(self.clone(), events));
        tokio::spawn(idle::watch(self.clone()));
    }

    pub(crate) fn engine(&self) -> &Engine {
        self.engine.get().expect("started before anything can ask")
    }

    /// Somebody is at the VM's console.
    pub(crate) fn touch(&self, vm: VmId) {
        if let Some(attached) = self.lock().get_mut(&vm) {
            attached.touched = Instant::now();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, Attached>> {
        self.attached.lock().expect("no code panics while it holds this lock")
    }
}
