//! What a hypervisor has to offer so that the engine can run VMs on it.
//!
//! Owns the [`Backend`] trait, its errors and events, the [`Journal`] through which a backend
//! records host resources before it makes them, and the conformance suite that every backend runs.
//! A backend sees only the model: no wire types, no SQL, no engine.
#![forbid(unsafe_code)]

pub mod conformance;

mod error;
mod event;
mod journal;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;

use async_trait::async_trait;
use roost_model::observe::Report;
use roost_model::plan::Stop;
use roost_model::{BackendName, Capabilities, ExitCause, LaunchId, Resource, VmId, VmName, VmSpec};

pub use error::{BackendError, ErrorKind};
pub use event::{Event, EventReceiver, EventSender, Happened, events};
pub use journal::{Journal, JournalError, MemoryJournal};

/// The part of a VM's record that a backend needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// Its ID.
    pub id: VmId,
    /// Its name, for people who look at the host's processes.
    pub name: VmName,
    /// What it is to be. Checked, and within the backend's capabilities.
    pub spec: VmSpec,
}

/// A machine that runs, right after its launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Booted {
    /// How guest instructions run and why so, e.g. `tcg: /dev/kvm runs no stock kernel (kvm_pvm)`.
    pub accelerator: String,
}

/// A VM to be found again after the daemon's death.
#[derive(Debug, Clone)]
pub struct Adoptee {
    /// Its definition.
    pub definition: Definition,
    /// Its last recorded launch.
    pub launch: Option<LaunchId>,
    /// Everything recorded as belonging to it.
    pub resources: Vec<Resource>,
}

/// What a backend knows of a machine at this moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Info {
    /// What is there.
    pub report: Report,
    /// Counters; `None` while nothing runs.
    pub metrics: Option<Metrics>,
    /// What else is worth showing (`pid`, `machine`, `accelerator`, ...).
    pub details: BTreeMap<String, String>,
}

/// Counters of a running machine as the host sees them, since its launch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metrics {
    /// CPU time of the machine's processes, in ns.
    pub cpu_time_ns: u64,
    /// Resident memory of them, in bytes.
    pub memory_rss_bytes: u64,
    /// Time since the launch, in ms.
    pub uptime_ms: u64,
    /// Per disk, in the spec's order.
    pub disks: Vec<DiskMetrics>,
    /// Per NIC, in the spec's order; absent where the host cannot count.
    pub nics: Vec<NicMetrics>,
}

/// Counters of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskMetrics {
    /// The disk's ID in the spec.
    pub id: String,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub read_ops: u64,
    /// Writes.
    pub write_ops: u64,
}

/// Counters of one NIC, from the guest's point of view.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NicMetrics {
    /// The NIC's ID in the spec.
    pub id: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
}

/// Where a machine's serial line can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleEndpoint {
    /// A Unix socket: bytes both ways, the last few first. `None` while nothing runs.
    pub socket: Option<PathBuf>,
    /// The directory of the capped log, kept over launches until the VM is deleted.
    pub log_dir: PathBuf,
}

/// Where the channels into a guest can be reached: Unix sockets, one client at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgentEndpoint {
    /// The port of Roost's own agent (`org.roost.agent.0`); `None` while nothing runs, or where there is none.
    pub socket: Option<PathBuf>,
    /// The port of QEMU's guest agent (`org.qemu.guest_agent.0`), which stock images have.
    pub qemu_guest_agent: Option<PathBuf>,
}

/// A hypervisor.
///
/// Obligations, checked by [`conformance`]:
/// - *Idempotent.* Every method may be called again after any failure or death half-way, and then
///   completes what is missing. Stopping what is stopped, clearing what is clear, deleting what is
///   gone are successes.
/// - *Recorded first.* What is made on the host is in the [`Journal`] before it is made, with its
///   launch where it belongs to one. After `delete` nothing of it is left, in the journal or out of it.
/// - *Cancel-safe.* A caller may drop a future at any await; `clear` and `delete` then find by the
///   records whatever was made.
/// - *Honest.* `info` and `adopt` tell what is there now; they never answer from memory alone.
/// - *Exits are events.* A machine that ends by itself is reported once through the event channel
///   with its launch; nobody polls. Resets come at most once a second per machine.
/// - *One machine per VM.* `boot` of a VM that has a living machine fails with `WRONG_STATE`.
/// - *Silent about what was asked.* Ends that `shutdown`, `clear` or `delete` brought about need no
///   event; one that comes all the same carries the launch and does no harm.
///
/// Calls for one VM never overlap, but for `info`, `console` and `agent`, which may come at any time, and
/// `clear` and `delete`, which may come right after a dropped call. Calls for different VMs do.
#[async_trait]
pub trait Backend: Send + Sync + Debug {
    /// Its name as configured.
    fn name(&self) -> &BackendName;

    /// Whether it works right now. Cheap: health checks call it.
    async fn ping(&self) -> Result<(), BackendError>;

    /// What it can do on this host. Probed once, cached; answered before anything is asked of it.
    async fn capabilities(&self) -> Result<Capabilities, BackendError>;

    /// Makes what the VM needs on the host and checks what can only be checked there (files that
    /// exist and can be read, formats). Starts nothing.
    async fn create(&self, vm: &Definition, journal: &dyn Journal) -> Result<(), BackendError>;

    /// Starts the machine's process as `launch` and returns when its CPUs run.
    async fn boot(&self, vm: &Definition, launch: LaunchId, journal: &dyn Journal) -> Result<Booted, BackendError>;

    /// Ends the guest: by request and then by force at the deadline, or at once. Returns the cause
    /// when the guest's CPUs have stopped for good; the process may linger until `clear`.
    async fn shutdown(&self, vm: VmId, stop: Stop) -> Result<ExitCause, BackendError>;

    /// Stops the CPUs.
    async fn pause(&self, vm: VmId) -> Result<(), BackendError>;

    /// Lets the CPUs go on.
    async fn resume(&self, vm: VmId) -> Result<(), BackendError>;

    /// Starts the guest anew in the same process: by request and then by a reset at the deadline,
    /// or by a reset at once.
    async fn reboot(&self, vm: VmId, stop: Stop) -> Result<(), BackendError>;

    /// What is there now, with counters.
    async fn info(&self, vm: VmId) -> Result<Info, BackendError>;

    /// Finds machines again by what was recorded of them, takes up watching their ends, and says
    /// what is there. One answer per adoptee, in order. Must be fast for thousands.
    async fn adopt(&self, vms: Vec<Adoptee>) -> Vec<Result<Report, BackendError>>;

    /// Clears away all that is left of the VM's launches (processes that still run included) and
    /// forgets it in the journal. `resources` is everything recorded for the VM.
    async fn clear(&self, vm: VmId, resources: &[Resource], journal: &dyn Journal) -> Result<(), BackendError>;

    /// Removes everything that belongs to the VM. `resources` is everything recorded for it.
    async fn delete(&self, vm: VmId, resources: &[Resource], journal: &dyn Journal) -> Result<(), BackendError>;

    /// Where the channels into the guest are.
    async fn agent(&self, vm: VmId) -> Result<AgentEndpoint, BackendError>;

    /// Where the serial line is.
    async fn console(&self, vm: VmId) -> Result<ConsoleEndpoint, BackendError>;
}
