//! The opened database.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::StoreError;
use crate::sqlite::{self, Opened};
use crate::tx::Tx;
use crate::writer::{self, Closure, Job};

/// The opened database. Clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    opened: Opened,
    /// The position of the last event.
    position: Arc<watch::Sender<u64>>,
    mode: Mode,
}

enum Mode {
    /// A writer task batches what queues up.
    Grouped { queue: Mutex<Option<mpsc::UnboundedSender<Box<dyn Job>>>>, ended: watch::Receiver<bool> },
    /// Every call completes within one poll, on a runtime of its own.
    Blocking { runtime: tokio::runtime::Runtime },
}

impl Store {
    /// Opens the database, and makes it where there is none. Call it within a tokio runtime. An
    /// older schema is backed up, then migrated; a newer one is refused.
    pub async fn open(path: &Path) -> Result<Store, StoreError> {
        let opened = sqlite::open(path).await?;
        let position = Arc::new(watch::Sender::new(last_position(&opened).await?));
        let (queue, receiver) = mpsc::unbounded_channel();
        let (running, ended) = watch::channel(false);
        let (ours, ticks) = (opened.clone(), Arc::clone(&position));
        // A thread of its own is woken by the database's thread directly, several times for each write;
        // the runtime's workers take a detour.
        let runtime = tokio::runtime::Handle::current();
        let writer = move || {
            runtime.block_on(writer::run(ours, receiver, ticks));
            running.send_replace(true);
        };
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(writer)
            .map_err(|e| StoreError::Unavailable(e.to_string()))?;
        let mode = Mode::Grouped { queue: Mutex::new(Some(queue)), ended };
        Ok(Store { inner: Arc::new(Inner { opened, position, mode }) })
    }

    /// Opens the database so that every read and write completes within one poll, whatever executor
    /// polls it: a deterministic one drives the real database like this. Must not be called within a
    /// tokio runtime.
    pub fn open_blocking(path: &Path) -> Result<Store, StoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|e| StoreError::Unavailable(e.to_string()))?;
        let opened = runtime.block_on(sqlite::open(path))?;
        let position = Arc::new(watch::Sender::new(runtime.block_on(last_position(&opened))?));
        Ok(Store { inner: Arc::new(Inner { opened, position, mode: Mode::Blocking { runtime } }) })
    }

    /// Runs the closure in a transaction and resolves after the commit. The closure may run more than
    /// once and has no effects elsewhere; when it fails, it has written nothing. Dropping the future
    /// does not take a write back that is under way.
    pub async fn write<T, E, F>(&self, closure: F) -> Result<T, E>
    where
        F: for<'a> Fn(&'a Tx) -> BoxFuture<'a, Result<T, E>> + Send + Sync + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Box<dyn Job> = Box::new(Closure { run: closure, result: None, reply });
        let closed = || StoreError::Unavailable("the store is closed".to_owned());
        match &self.inner.mode {
            Mode::Grouped { queue, .. } => {
                let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.as_ref().ok_or_else(closed)?.send(job).map_err(|_| closed())?;
            }
            Mode::Blocking { runtime } => {
                runtime.block_on(writer::batch(&self.inner.opened, vec![job], &self.inner.position));
            }
        }
        answer.await.map_err(|_| closed())?
    }

    /// Runs the closure on a snapshot.
    pub async fn read<T, E, F>(&self, closure: F) -> Result<T, E>
    where
        F: for<'a> Fn(&'a Tx) -> BoxFuture<'a, Result<T, E>> + Send + Sync + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        match &self.inner.mode {
            Mode::Grouped { .. } => self.snapshot(closure).await,
            Mode::Blocking { runtime } => runtime.block_on(self.snapshot(closure)),
        }
    }

    /// Runs a closure that makes a single query, on a snapshot. The trips around a transaction are most
    /// of what a short read costs.
    pub async fn read_one<T, E, F>(&self, closure: F) -> Result<T, E>
    where
        F: for<'a> Fn(&'a Tx) -> BoxFuture<'a, Result<T, E>> + Send + Sync + 'static,
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let tx = Tx::once(&self.inner.opened.readers, &self.inner.opened.path);
        match &self.inner.mode {
            Mode::Grouped { .. } => closure(&tx).await,
            Mode::Blocking { runtime } => runtime.block_on(closure(&tx)),
        }
    }

    /// The position of the last event. It changes after each commit that tells of something.
    pub fn position(&self) -> watch::Receiver<u64> {
        self.inner.position.subscribe()
    }

    /// Closes the database: what was queued is committed first, what comes later is refused. What was
    /// acknowledged is durable without this; it only leaves a tidy file.
    pub async fn close(self) {
        match &self.inner.mode {
            Mode::Grouped { queue, ended } => {
                drop(queue.lock().unwrap_or_else(PoisonError::into_inner).take());
                // An error is its sender's end, which is what is waited for.
                let mut ended = ended.clone();
                let _ended = ended.wait_for(|e| *e).await;
                sqlite::close(&self.inner.opened).await;
            }
            Mode::Blocking { runtime } => runtime.block_on(sqlite::close(&self.inner.opened)),
        }
    }

    async fn snapshot<T, E, F>(&self, closure: F) -> Result<T, E>
    where
        F: for<'a> Fn(&'a Tx) -> BoxFuture<'a, Result<T, E>>,
        E: From<StoreError>,
    {
        let tx = Tx::begin(&self.inner.opened.readers, &self.inner.opened.path).await?;
        let result = closure(&tx).await;
        tx.rollback().await?;
        result
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

async fn last_position(opened: &Opened) -> Result<u64, StoreError> {
    Tx::once(&opened.readers, &opened.path).events().last_position().await
}
