//! The opened database.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

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
    committed: Arc<watch::Sender<u64>>,
    mode: Mode,
}

enum Mode {
    /// A writer task batches what queues up.
    Grouped { queue: mpsc::UnboundedSender<Box<dyn Job>>, ended: watch::Receiver<bool> },
    /// Every call completes within one poll, on a runtime of its own.
    Blocking { runtime: tokio::runtime::Runtime },
}

impl Store {
    /// Opens the database, and makes it where there is none. Call it within a tokio runtime. An
    /// older schema is backed up, then migrated; a newer one is refused.
    pub async fn open(path: &Path) -> Result<Store, StoreError> {
        let opened = sqlite::open(path).await?;
        let committed = Arc::new(watch::Sender::new(0));
        let (queue, receiver) = mpsc::unbounded_channel();
        let (running, ended) = watch::channel(false);
        let (ours, ticks) = (opened.clone(), Arc::clone(&committed));
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
        Ok(Store { inner: Arc::new(Inner { opened, committed, mode: Mode::Grouped { queue, ended } }) })
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
        let committed = Arc::new(watch::Sender::new(0));
        Ok(Store { inner: Arc::new(Inner { opened, committed, mode: Mode::Blocking { runtime } }) })
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
            Mode::Grouped { queue, .. } => queue.send(job).map_err(|_| closed())?,
            Mode::Blocking { runtime } => {
                runtime.block_on(writer::batch(&self.inner.opened, vec![job], &self.inner.committed));
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

    /// Ticks after each commit that has written events for the relay.
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.inner.committed.subscribe()
    }

    /// Closes the database, when this is its last clone: what was queued is committed first. What was
    /// acknowledged is durable without this; it only leaves a tidy file.
    pub async fn close(self) {
        let Ok(Inner { opened, mode, .. }) = Arc::try_unwrap(self.inner) else { return };
        match mode {
            Mode::Grouped { queue, mut ended } => {
                drop(queue);
                // An error is its sender's end, which is what is waited for.
                let _ended = ended.wait_for(|e| *e).await;
                sqlite::close(opened).await;
            }
            Mode::Blocking { runtime } => {
                runtime.block_on(sqlite::close(opened));
                runtime.shutdown_background();
            }
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
