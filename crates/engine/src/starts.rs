//! How many machines start at the same time, and who starts next: the operation of the highest priority,
//! among equals the one that has waited longest. Everything else that is done to a VM waits for nobody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use roost_model::Priority;
use tokio::sync::oneshot;

/// Turns at starting a machine.
#[derive(Debug)]
pub(crate) struct Starts(Mutex<State>);

#[derive(Debug)]
struct State {
    free: usize,
    arrivals: u64,
    /// By priority, then by arrival.
    waiting: BTreeMap<(Priority, u64), oneshot::Sender<Turn>>,
}

/// A turn; over when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Starts>);

impl Starts {
    pub(crate) fn new(at_once: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { free: at_once.max(1), arrivals: 0, waiting: BTreeMap::new() })))
    }

    /// Waits for a turn. Dropping the future gives the place up.
    pub(crate) async fn turn(self: &Arc<Self>, priority: Priority) -> Turn {
        let come = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Turn(Arc::clone(self));
            }
            let (send, come) = oneshot::channel();
            let arrival = state.arrivals;
            state.arrivals += 1;
            state.waiting.insert((priority, arrival), send);
            come
        };
        come.await.expect("whoever ends a turn passes it on, and a sender is never dropped unused before its receiver")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        while let Some((_, next)) = state.waiting.pop_first() {
            if next.is_closed() {
                continue;
            }
            drop(state);
            // Whoever gave up in this moment drops the turn in what comes back, and it is passed on from there.
            let _passed_on = next.send(Turn(Arc::clone(&self.0)));
            return;
        }
        state.free += 1;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn the_highest_priority_goes_first_and_equals_in_order() {
        let starts = Starts::new(1);
        let first = starts.turn(Priority::Low).now_or_never().expect("nobody is before it");
        let order = std::cell::RefCell::new(Vec::new());
        let mut waiting: Vec<_> = [Priority::Low, Priority::Default, Priority::Critical, Priority::Default]
            .into_iter()
            .enumerate()
            .map(|(n, priority)| {
                let (starts, order) = (&starts, &order);
                // Ends its turn at once, so that the next one's comes.
                Box::pin(async move {
                    let _turn = starts.turn(priority).await;
                    order.borrow_mut().push(n);
                })
            })
            .collect();
        for turn in &mut waiting {
            assert!(turn.as_mut().now_or_never().is_none());
        }
        assert_eq!(*order.borrow(), [0; 0]);
        drop(first);
        let mut all = futures::future::join_all(waiting);
        while (&mut all).now_or_never().is_none() {}
        assert_eq!(*order.borrow(), [2, 1, 3, 0]);
        assert!(starts.turn(Priority::Low).now_or_never().is_some(), "the last one gave its turn back");
    }

    #[test]
    fn who_gives_up_is_passed_over() {
        let starts = Starts::new(1);
        let first = starts.turn(Priority::Default).now_or_never().expect("nobody is before it");
        let mut gone = Box::pin(starts.turn(Priority::Critical));
        let mut late = Box::pin(starts.turn(Priority::Critical));
        let mut stays = Box::pin(starts.turn(Priority::Low));
        assert!((&mut gone).now_or_never().is_none());
        assert!((&mut late).now_or_never().is_none());
        assert!((&mut stays).now_or_never().is_none());
        drop(gone);
        drop(first);
        // This one gives up when its turn has come already.
        drop(late);
        assert!((&mut stays).now_or_never().is_some());
    }
}
