//! The engine itself: what it holds, its main loop, and its end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};

use roost_backend::{Backend, EventReceiver};
use roost_model::admit::Candidate;
use roost_model::{BackendName, Capabilities, NodeId, Refusal, VmId};
use roost_store::{NodeRecord, Store, StoreError};
use tokio::sync::watch;

use crate::actor::{self, Inbox};
use crate::config::EngineConfig;
use crate::error::EngineError;
use crate::ids::Ids;
use crate::seam::{Clock, Dispatch, Guests, Rng, Spawner, new_id, stopped};
use crate::starts::Starts;
use crate::waiters::Waiters;
use crate::{adopt, executions, watch as watching};

/// The seams through which the engine reaches the world, but for the store and the backends.
#[derive(Debug, Clone)]
pub struct Seams {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub rng: Arc<dyn Rng>,
    /// Tasks.
    pub spawner: Arc<dyn Spawner>,
    /// Wake-ups.
    pub dispatch: Arc<dyn Dispatch>,
    /// What is done inside guests.
    pub guests: Arc<dyn Guests>,
    /// The order of IDs.
    pub ids: Arc<Ids>,
}

/// One configured backend and what is known of it.
#[derive(Debug, Clone)]
pub struct BackendEntry {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// What it can do, or why it cannot be used here.
    pub capabilities: Result<Capabilities, String>,
}

/// The engine. Clones share it.
#[derive(Debug, Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) seams: Seams,
    pub(crate) config: EngineConfig,
    pub(crate) node: NodeId,
    pub(crate) epoch: u64,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) starts: Arc<Starts>,
    pub(crate) stopping: watch::Sender<bool>,
    backends: BTreeMap<BackendName, Mutex<BackendEntry>>,
    actors: Mutex<BTreeMap<VmId, Arc<Inbox>>>,
    /// VMs whose machines could not be adopted yet; asked for again with every tick.
    unreachable: Mutex<BTreeSet<VmId>>,
    /// Tasks that the engine has spawned and that have not ended.
    tasks: watch::Sender<usize>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("node", &self.node).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Engine {
    /// Takes up what is recorded: finds machines again, resumes operations, and begins to serve.
    pub async fn start(
        config: EngineConfig,
        seams: Seams,
        store: Store,
        backends: Vec<Arc<dyn Backend>>,
        events: EventReceiver,
    ) -> Result<Engine, EngineError> {
        let mut entries = BTreeMap::new();
        for backend in backends {
            let capabilities = backend.capabilities().await.map_err(|e| e.to_string());
            entries.insert(backend.name().clone(), Mutex::new(BackendEntry { backend, capabilities }));
        }
        let node = take_epoch(&store, &seams).await?;
        let inner = Arc::new(Inner {
            store,
            seams,
            node: node.id,
            epoch: node.epoch,
            waiters: Arc::default(),
            starts: Starts::new(config.parallel_starts),
            stopping: watch::Sender::new(false),
            backends: entries,
            actors: Mutex::default(),
            unreachable: Mutex::default(),
            tasks: watch::Sender::new(0),
            config,
        });
        executions::give_up_open(&inner).await?;
        adopt::adopt_all(&inner).await?;
        inner.spawn(main_loop(Arc::clone(&inner), events));
        Ok(Engine { inner })
    }

    /// Ends every task of the engine. Guests go on; what was acknowledged is taken up at the next start.
    pub async fn stop(&self) {
        self.inner.stopping.send_replace(true);
        let mut tasks = self.inner.tasks.subscribe();
        // The sender lives in `inner`, which outlives this wait.
        let _all_ended = tasks.wait_for(|n| *n == 0).await;
    }

    /// The configured backends.
    pub fn backends(&self) -> Vec<BackendEntry> {
        self.inner
            .backends
            .values()
            .map(|e| e.lock().expect("no code panics while it holds this lock").clone())
            .collect()
    }

    /// The node's ID and the epoch of this start.
    pub fn node(&self) -> (NodeId, u64) {
        (self.inner.node, self.inner.epoch)
    }

    /// The settings that it runs with.
    pub fn config(&self) -> &EngineConfig {
        &self.inner.config
    }
}

impl Inner {
    pub(crate) fn backend(&self, name: &BackendName) -> Result<BackendEntry, Refusal> {
        match self.backends.get(name) {
            Some(entry) => Ok(entry.lock().expect("no code panics while it holds this lock").clone()),
            None => {
                Err(Refusal::UnknownBackend { name: name.to_string(), known: self.backends.keys().cloned().collect() })
            }
        }
    }

    /// The named backend; one that was unusable is asked again, since somebody may have mended it.
    pub(crate) async fn refreshed_backend(&self, name: &BackendName) -> Result<BackendEntry, Refusal> {
        let mut entry = self.backend(name)?;
        if entry.capabilities.is_err() {
            entry.capabilities = entry.backend.capabilities().await.map_err(|e| e.to_string());
            if let Some(slot) = self.backends.get(name) {
                *slot.lock().expect("no code panics while it holds this lock") = entry.clone();
            }
        }
        Ok(entry)
    }

    /// Runs `judge` with every backend as admission sees it.
    pub(crate) fn with_candidates<T>(&self, judge: impl FnOnce(&[Candidate<'_>]) -> T) -> T {
        let entries: Vec<_> = self
            .backends
            .iter()
            .map(|(name, entry)| {
                (name, entry.lock().expect("no code panics while it holds this lock").capabilities.clone())
            })
            .collect();
        let candidates: Vec<_> = entries
            .iter()
            .map(|(name, capabilities)| Candidate { name, capabilities: capabilities.as_ref().map_err(String::as_str) })
            .collect();
        judge(&candidates)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Remembers, or forgets, that a VM's machine could not be adopted.
    pub(crate) fn set_unreachable(&self, vm: VmId, unreachable: bool) {
        let mut all = self.unreachable.lock().expect("no code panics while it holds this lock");
        if unreachable {
            all.insert(vm);
        } else {
            all.remove(&vm);
        }
    }

    pub(crate) fn is_unreachable(&self, vm: VmId) -> bool {
        self.unreachable.lock().expect("no code panics while it holds this lock").contains(&vm)
    }

    /// Spawns a task that `stop` waits for.
    pub(crate) fn spawn(self: &Arc<Self>, future: impl Future<Output = ()> + Send + 'static) {
        struct Ended(Arc<Inner>);
        impl Drop for Ended {
            fn drop(&mut self) {
                self.0.tasks.send_modify(|n| *n -= 1);
            }
        }
        self.tasks.send_modify(|n| *n += 1);
        let ended = Ended(Arc::clone(self));
        self.seams.spawner.spawn(Box::pin(async move {
            let _ended = ended;
            future.await;
        }));
    }

    /// Sees to it that the VM's actor looks at it (again), and hands it an event.
    pub(crate) fn rouse(self: &Arc<Self>, vm: VmId, event: Option<roost_backend::Event>) {
        if self.is_stopping() {
            return;
        }
        let mut actors = self.actors.lock().expect("no code panics while it holds this lock");
        let inbox = actors.entry(vm).or_insert_with(|| {
            let inbox = Arc::new(Inbox::default());
            self.spawn(actor::run(Arc::clone(self), vm, Arc::clone(&inbox)));
            inbox
        });
        inbox.put(event);
    }

    /// Drops an idle actor, unless something came in meanwhile. Returns whether it is dropped.
    pub(crate) fn retire(&self, vm: VmId, inbox: &Inbox) -> bool {
        let mut actors = self.actors.lock().expect("no code panics while it holds this lock");
        if inbox.has_work() {
            return false;
        }
        actors.remove(&vm);
        true
    }
}

/// Wakes actors on wake-ups, backend events and the timer.
async fn main_loop(inner: Arc<Inner>, mut events: EventReceiver) {
    let mut stopping = inner.stopping.subscribe();
    let mut tick = inner.seams.clock.sleep(inner.config.reconcile_period);
    let mut events_open = true;
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stopping) => return,
            event = events.recv(), if events_open => match event {
                Some(event) => inner.rouse(event.vm, Some(event)),
                None => events_open = false,
            },
            vm = inner.seams.dispatch.woken() => inner.rouse(vm, None),
            () = &mut tick => {
                tick = inner.seams.clock.sleep(inner.config.reconcile_period);
                if let Err(error) = reconcile(&inner).await {
                    tracing::warn!(error = %error, "the reconciler could not read the database");
                }
            }
        }
    }
}

/// Wakes every VM whose record says that something is to be done, from the record alone.
async fn reconcile(inner: &Arc<Inner>) -> Result<(), StoreError> {
    let now = inner.seams.clock.now();
    let unsettled: Vec<VmId> =
        inner.store.read_one(move |tx| Box::pin(async move { tx.vms().unsettled(now).await })).await?;
    let unreachable = inner.unreachable.lock().expect("no code panics while it holds this lock").clone();
    for vm in unsettled.into_iter().chain(unreachable) {
        inner.rouse(vm, None);
    }
    watching::prune(inner).await
}

/// Makes this node's record at the first start; counts its epoch at every start.
async fn take_epoch(store: &Store, seams: &Seams) -> Result<NodeRecord, StoreError> {
    let (new, now) = (new_id!(NodeId, seams), seams.clock.now());
    store
        .write(move |tx| {
            Box::pin(async move {
                let mut node =
                    tx.nodes().this_node().await?.unwrap_or(NodeRecord { id: new, epoch: 0, last_start: now });
                node.epoch += 1;
                node.last_start = now;
                tx.nodes().put(&node).await?;
                Ok(node)
            })
        })
        .await
}
