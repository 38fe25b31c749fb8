//! Who waits for the end of which operation.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use roost_model::{Operation, OperationId, Vm};
use tokio::sync::oneshot;

/// How an operation ended: its record, and the VM's where it still exists.
pub(crate) type Ended = Arc<(Operation, Option<Vm>)>;

/// Who waits for the end of which operation. A waiter registers, then reads the record, then waits:
/// an end in between is not missed.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<BTreeMap<OperationId, Vec<oneshot::Sender<Ended>>>>);

impl Waiters {
    pub(crate) fn register(&self, id: OperationId) -> oneshot::Receiver<Ended> {
        let (send, receive) = oneshot::channel();
        let mut all = self.lock();
        let waiting = all.entry(id).or_default();
        waiting.retain(|w| !w.is_closed());
        waiting.push(send);
        receive
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

    /// Drops the entry of an operation that nobody waits for any more.
    pub(crate) fn forget_if_idle(&self, id: OperationId) {
        let mut all = self.lock();
        if let Some(waiting) = all.get_mut(&id) {
            waiting.retain(|w| !w.is_closed());
            if waiting.is_empty() {
                all.remove(&id);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<OperationId, Vec<oneshot::Sender<Ended>>>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}
