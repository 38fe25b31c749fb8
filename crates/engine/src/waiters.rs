//! Who waits for the end of which operation.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use roost_model::{Operation, OperationId, Vm};
use tokio::sync::oneshot;

/// How an operation ended: its record, and the VM's where it still exists.
pub(crate) type Ended = Arc<(Operation, Option<Vm>)>;

/// Who waits for the end of which operation. Whoever takes a place before the operation is recorded, or
/// takes one and then reads the record, misses no end.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<BTreeMap<OperationId, Vec<oneshot::Sender<Ended>>>>);

/// A place among those who wait for one operation's end. Dropping it gives it back.
pub(crate) struct Place {
    id: OperationId,
    ended: oneshot::Receiver<Ended>,
    waiters: Arc<Waiters>,
}

impl Waiters {
    pub(crate) fn register(self: &Arc<Self>, id: OperationId) -> Place {
        let (send, ended) = oneshot::channel();
        self.lock().entry(id).or_default().push(send);
        Place { id, ended, waiters: Arc::clone(self) }
    }

    pub(crate) fn end(&self, operation: &Operation, vm: Option<&Vm>) {
        let waiting = self.lock().remove(&operation.id);
        if let Some(waiting) = waiting {
            let ended = Arc::new((operation.clone(), vm.cloned()));
            for waiter in waiting {
                let _gone = waiter.send(Arc::clone(&ended));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<OperationId, Vec<oneshot::Sender<Ended>>>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

impl Place {
    /// Whose end is waited for.
    pub(crate) fn id(&self) -> OperationId {
        self.id
    }

    /// Resolves at the end; `None` when the engine has let go of it.
    pub(crate) async fn ended(&mut self) -> Option<Ended> {
        (&mut self.ended).await.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.ended.close();
        let mut all = self.waiters.lock();
        if let Some(waiting) = all.get_mut(&self.id) {
            waiting.retain(|w| !w.is_closed());
            if waiting.is_empty() {
                all.remove(&self.id);
            }
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.id).finish()
    }
}
