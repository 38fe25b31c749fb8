//! Who is to be told that a process ended.
//!
//! Owns the exit watcher and one task that hands each exit to the one who asked for it. A process
//! that nobody asks about is watched all the same where it is our child, so that it leaves no zombie.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roost_backend::BackendError;
use roost_host::exits::{ExitStatus, ExitWatcher};
use roost_host::process::Process;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

/// The end of one process; `None` inside: it was not our child, so that nobody knows how it ended.
pub(crate) type Exited = oneshot::Receiver<Option<ExitStatus>>;

#[derive(Debug)]
pub(crate) struct Exits {
    watcher: ExitWatcher,
    waiting: Arc<Mutex<Waiting>>,
    task: AbortHandle,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    by_token: HashMap<u64, oneshot::Sender<Option<ExitStatus>>>,
}

impl Exits {
    /// Needs a tokio runtime around it.
    pub(crate) fn start() -> Result<Self, BackendError> {
        let (watcher, mut exits) = ExitWatcher::start().map_err(|e| crate::host_error("WATCHER_FAILED", &e))?;
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let task = tokio::spawn({
            let waiting = Arc::clone(&waiting);
            async move {
                while let Some(exit) = exits.recv().await {
                    let waiter = lock(&waiting).by_token.remove(&exit.token);
                    if let Some(waiter) = waiter {
                        // Nobody may want to know any more.
                        let _ = waiter.send(exit.status);
                    }
                }
            }
        });
        Ok(Self { watcher, waiting, task: task.abort_handle() })
    }

    /// Watches a process. Dropping the receiver is allowed: a child is collected all the same.
    pub(crate) fn watch(&self, process: &Process) -> Result<Exited, BackendError> {
        let (sender, receiver) = oneshot::channel();
        let token = {
            let mut waiting = lock(&self.waiting);
            let token = waiting.next;
            waiting.next += 1;
            waiting.by_token.insert(token, sender);
            token
        };
        self.watcher.watch(process, token).map_err(|e| {
            lock(&self.waiting).by_token.remove(&token);
            crate::host_error("WATCHER_FAILED", &e)
        })?;
        Ok(receiver)
    }
}

impl Drop for Exits {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
