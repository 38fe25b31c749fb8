//! What of the engine can be set.

use std::time::Duration;

use roost_model::BackendName;

/// What of the engine can be set.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The backend of a VM that names none.
    pub default_backend: BackendName,
    /// How often unsettled VMs are looked at again without a signal.
    pub reconcile_period: Duration,
    /// How long a guest may take to shut down when the request does not say.
    pub shutdown_grace: Duration,
    /// How many machines start at the same time; at least one.
    pub parallel_starts: usize,
    /// How many events are kept for watchers that resume.
    pub events_kept: u64,
    /// How long ended operations and idempotency keys are kept.
    pub history_kept: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            default_backend: "qemu".parse().expect("a valid backend name"),
            reconcile_period: Duration::from_secs(5),
            shutdown_grace: Duration::from_secs(30),
            parallel_starts: 8,
            events_kept: 100_000,
            history_kept: Duration::from_secs(7 * 86_400),
        }
    }
}
