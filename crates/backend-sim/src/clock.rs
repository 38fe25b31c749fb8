//! The simulator's time: injected, so that a test owns it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

/// A future that resolves when its time has come.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A clock that does not jump.
pub trait SimClock: Send + Sync + Debug {
    /// Time since some fixed moment.
    fn elapsed(&self) -> Duration;

    /// Resolves after `duration`.
    fn sleep(&self, duration: Duration) -> Sleep;
}

/// Real time, by tokio's timer: for daemons and the host process. It stands still where a test has
/// paused tokio's clock.
#[derive(Debug)]
pub struct TokioClock {
    start: Instant,
}

/// Time that moves only when it is told to. Clones are the same clock.
#[derive(Debug, Clone, Default)]
pub struct ManualClock {
    shared: Arc<Mutex<Manual>>,
}

#[derive(Debug, Default)]
struct Manual {
    now: Duration,
    next: u64,
    sleepers: BTreeMap<(Duration, u64), Waker>,
}

struct ManualSleep {
    shared: Arc<Mutex<Manual>>,
    key: (Duration, u64),
}

impl Default for TokioClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl SimClock for TokioClock {
    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the real clock")]
    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(duration))
    }
}

impl ManualClock {
    /// Lets time pass and wakes whoever waited for it, in the order of their deadlines.
    pub fn advance(&self, by: Duration) {
        let due: Vec<Waker> = {
            let mut manual = lock(&self.shared);
            manual.now += by;
            let limit = (manual.now, u64::MAX);
            // Woken sleepers stay listed until they are polled or dropped.
            manual.sleepers.range(..=limit).map(|(_, waker)| waker.clone()).collect()
        };
        due.into_iter().for_each(Waker::wake);
    }

    /// How long until the next sleeper is due; zero when one is due already, `None` when nobody sleeps.
    pub fn next_due(&self) -> Option<Duration> {
        let manual = lock(&self.shared);
        manual.sleepers.keys().next().map(|(at, _)| at.saturating_sub(manual.now))
    }
}

impl SimClock for ManualClock {
    fn elapsed(&self) -> Duration {
        lock(&self.shared).now
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let mut manual = lock(&self.shared);
        let key = (manual.now + duration, manual.next);
        manual.next += 1;
        manual.sleepers.insert(key, Waker::noop().clone());
        Box::pin(ManualSleep { shared: Arc::clone(&self.shared), key })
    }
}

impl Future for ManualSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut manual = lock(&self.shared);
        if manual.now >= self.key.0 {
            manual.sleepers.remove(&self.key);
            return Poll::Ready(());
        }
        manual.sleepers.insert(self.key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for ManualSleep {
    fn drop(&mut self) {
        lock(&self.shared).sleepers.remove(&self.key);
    }
}

fn lock(shared: &Mutex<Manual>) -> MutexGuard<'_, Manual> {
    shared.lock().expect("no code panics while it holds this lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_moves_only_when_told() {
        let clock = ManualClock::default();
        let mut sleep = clock.sleep(Duration::from_secs(5));
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(sleep.as_mut().poll(&mut context), Poll::Pending);
        assert_eq!(clock.next_due(), Some(Duration::from_secs(5)));
        clock.advance(Duration::from_millis(4999));
        assert_eq!(sleep.as_mut().poll(&mut context), Poll::Pending);
        clock.advance(Duration::from_millis(1));
        assert_eq!(sleep.as_mut().poll(&mut context), Poll::Ready(()));
        assert_eq!(clock.next_due(), None, "who has slept is not listed");
        drop(clock.sleep(Duration::from_secs(1)));
        assert_eq!(clock.next_due(), None, "nor is who gave up");
    }
}
