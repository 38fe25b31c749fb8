//! What a simulated backend is configured with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use roost_model::{BackendName, Capabilities, Capability};

use crate::clock::{SimClock, TokioClock};
use crate::faults::Faults;

/// What a simulated backend is configured with.
#[derive(Debug, Clone)]
pub struct SimConfig {
    /// Its name.
    pub name: BackendName,
    /// What it says that it can do. It does what it says: a method whose capability is missing fails.
    pub capabilities: Capabilities,
    /// Its time.
    pub clock: Arc<dyn SimClock>,
    /// What goes wrong.
    pub faults: Faults,
    /// Where the console log of VM `x` would be: in `x` below this. Nothing is written.
    pub log_dir: PathBuf,
    /// Whether ends that `shutdown`, `clear` and `delete` bring about are reported as events too, as
    /// some hypervisors do.
    pub report_asked_ends: bool,
    /// Whether every step of a method gives way to other tasks once, so that an executor can put
    /// other work between any two of them. In process only.
    pub yields: bool,
    /// The program `roost-simhost`, to be started where nobody listens at the socket. Hosted only.
    pub host_binary: Option<PathBuf>,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            name: "sim".parse().expect("sim is a backend's name"),
            capabilities: everything(),
            clock: Arc::new(TokioClock::default()),
            faults: Faults::default(),
            log_dir: PathBuf::from("/nonexistent/roost-sim"),
            report_asked_ends: false,
            yields: true,
            host_binary: None,
        }
    }
}

/// Capabilities of a backend that can do everything.
fn everything() -> Capabilities {
    Capabilities {
        have: Capability::ALL.iter().copied().collect(),
        machines: vec!["q35".to_owned(), "microvm".to_owned()],
        accelerators: vec!["kvm".to_owned(), "tcg".to_owned()],
        max_vcpus: 1024,
        details: BTreeMap::from([("accelerator-reason".to_owned(), "nothing is computed".to_owned())]),
    }
}
