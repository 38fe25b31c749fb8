//! The seams through which the engine reaches time, chance, tasks and wake-ups.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use roost_backend::BackendError;
use roost_model::operation::Progress;
use roost_model::{Timestamp, Vm, VmId};
use tokio::sync::{Notify, watch};

/// Time.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The wall clock. May jump; used for what is recorded.
    fn now(&self) -> Timestamp;

    /// Resolves after `duration` of a clock that does not jump.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;
}

/// Chance: IDs and jitter.
pub trait Rng: Send + Sync + std::fmt::Debug {
    /// Fills the buffer with unpredictable bytes (predictable ones in a seeded test).
    fn fill(&self, buffer: &mut [u8]);
}

/// Tasks. A spawned future runs to its end unless the whole executor is dropped; the engine ends
/// its own by asking them to.
pub trait Spawner: Send + Sync + std::fmt::Debug {
    /// Runs the future concurrently.
    fn spawn(&self, future: BoxFuture<'static, ()>);
}

/// Wake-ups. A hint only: the database is the truth, and a lost wake-up costs a reconcile period.
#[async_trait]
pub trait Dispatch: Send + Sync + std::fmt::Debug {
    /// There may be work for this VM.
    fn wake(&self, vm: VmId);

    /// The next VM that there may be work for. Wake-ups of one VM may be folded into one.
    async fn woken(&self) -> VmId;
}

/// What is done inside guests, through their agents.
#[async_trait]
pub trait Guests: Send + Sync + std::fmt::Debug {
    /// Sees to it that the tools of a running VM are installed; what is there already is left alone. `told` is
    /// where it says how far it is.
    async fn install(&self, vm: &Vm, told: &watch::Sender<Progress>) -> Result<(), BackendError>;
}

/// Dispatch within one process.
#[derive(Debug, Default)]
pub struct LocalDispatch {
    queue: Mutex<(VecDeque<VmId>, BTreeSet<VmId>)>,
    notify: Notify,
}

#[async_trait]
impl Dispatch for LocalDispatch {
    fn wake(&self, vm: VmId) {
        let mut queue = self.queue.lock().expect("no code panics while it holds this lock");
        if queue.1.insert(vm) {
            queue.0.push_back(vm);
        }
        self.notify.notify_one();
    }

    async fn woken(&self) -> VmId {
        loop {
            {
                let mut queue = self.queue.lock().expect("no code panics while it holds this lock");
                if let Some(vm) = queue.0.pop_front() {
                    queue.1.remove(&vm);
                    return vm;
                }
            }
            self.notify.notified().await;
        }
    }
}

/// Resolves once the engine is to stop.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // The sender lives in the engine, which outlives whoever waits here.
    let _stop = stopping.wait_for(|s| *s).await;
}

/// A number in 0..1 for jitter.
pub(crate) fn jitter(rng: &dyn Rng) -> f64 {
    let mut bytes = [0; 4];
    rng.fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

/// An ID that comes after those made before it.
macro_rules! new_id {
    ($type:ty, $seams:expr) => {{
        let mut random = [0; 10];
        $seams.rng.fill(&mut random);
        let (unix_ms, bytes) = $seams.ids.next($seams.clock.now().unix_ms().unsigned_abs(), random);
        <$type>::from_parts(unix_ms, bytes)
    }};
}
pub(crate) use new_id;
