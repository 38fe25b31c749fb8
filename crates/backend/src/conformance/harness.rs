//! What a backend's test provides.

use std::time::Duration;

use async_trait::async_trait;
use roost_model::{LaunchId, Resource, VmId};

use crate::{Backend, Definition, EventSender};

/// A backend under test, with the means to act on its machines from outside.
#[async_trait]
pub trait Harness: Send + Sync {
    /// An instance as a daemon makes one when it starts. All instances of one harness share the host:
    /// dropping one and making another is the daemon's death and its next start.
    async fn backend(&self, events: EventSender) -> Box<dyn Backend>;

    /// A small VM that boots on this host; another one at each call.
    fn definition(&self, guest: GuestKind) -> Definition;

    /// Resolves when the guest has come up so far that it hears requests and can be made to act.
    async fn guest_up(&self, vm: &Subject) -> Result<(), String>;

    /// Whether [`Harness::act`] can do this.
    fn can(&self, act: Act) -> bool;

    /// Acts on a running machine from outside; there may be no backend at that moment. Need not wait for
    /// the effect.
    async fn act(&self, act: Act, vm: &Subject) -> Result<(), String>;

    /// Whatever the host still holds that belongs to the VM: processes, files, sockets, whether on record
    /// or not. Logs that are kept until `delete` count.
    async fn leftovers(&self, vm: VmId) -> Vec<String>;

    /// How long things may take and how much is to be tried.
    fn scale(&self) -> Scale {
        Scale::default()
    }
}

/// A guest to be defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestKind {
    /// It shuts down when it is asked to.
    Plain,
    /// It does not hear requests to shut down.
    Deaf,
}

/// Something done to a running machine from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// The guest powers itself off.
    PowerOff,
    /// The guest's kernel panics.
    Panic,
    /// The guest resets itself.
    Reset,
    /// The machine's process is killed.
    Kill,
}

/// The machine that is acted on.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its VM.
    pub definition: Definition,
    /// Its launch.
    pub launch: LaunchId,
    /// Everything on record for the VM.
    pub resources: Vec<Resource>,
}

/// How long things may take and how much is to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// Whatever takes longer than this hangs.
    pub patience: Duration,
    /// The deadline that is given to a deaf guest.
    pub short_grace: Duration,
    /// How many points of a call are tried for dropping it.
    pub cuts: usize,
    /// How many VMs there are at once.
    pub crowd: usize,
}

impl Default for Scale {
    fn default() -> Self {
        Self { patience: Duration::from_secs(30), short_grace: Duration::from_millis(300), cuts: 24, crowd: 16 }
    }
}
