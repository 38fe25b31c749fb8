//! A single-threaded executor with a clock and a random source of its own: the order in which tasks
//! run is drawn from a seed, and time moves only when nothing else can.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use roost_engine::{Clock, Rng, Spawner};
use roost_model::Timestamp;

/// 2026-01-01T00:00:00Z, so that times in records look like times.
const EPOCH_MS: i64 = 1_767_225_600_000;

/// A world with one seed. Clones share it.
#[derive(Clone)]
pub struct World(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    ready: Arc<Mutex<BTreeSet<u64>>>,
}

struct State {
    now_ms: u64,
    random: u64,
    next_task: u64,
    next_timer: u64,
    tasks: BTreeMap<u64, BoxFuture<'static, ()>>,
    timers: BTreeMap<(u64, u64), Option<Waker>>,
    polls: u64,
}

struct TaskWaker {
    task: u64,
    ready: Arc<Mutex<BTreeSet<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.lock().unwrap().insert(self.task);
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let state = State {
            now_ms: 0,
            random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            next_task: 0,
            next_timer: 0,
            tasks: BTreeMap::new(),
            timers: BTreeMap::new(),
            polls: 0,
        };
        World(Arc::new(Shared { state: Mutex::new(state), ready: Arc::default() }))
    }

    /// A number below `bound`.
    pub fn below(&self, bound: usize) -> usize {
        usize::try_from(self.random() % bound as u64).unwrap()
    }

    pub fn now_ms(&self) -> u64 {
        self.0.state.lock().unwrap().now_ms
    }

    /// How many times a task was polled: equal for two runs that took the same course.
    pub fn polls(&self) -> u64 {
        self.0.state.lock().unwrap().polls
    }

    /// Runs the future and everything it spawns until it ends. Panics when nothing can move.
    pub fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let result = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&result);
        self.spawn(Box::pin(async move {
            let value = future.await;
            *slot.lock().unwrap() = Some(value);
        }));
        loop {
            if let Some(value) = result.lock().unwrap().take() {
                return value;
            }
            match self.pick() {
                Some(task) => self.poll(task),
                None => self.advance(),
            }
        }
    }

    /// Drops every task where it stands: the death of the process.
    pub fn kill_all(&self) {
        let tasks = std::mem::take(&mut self.0.state.lock().unwrap().tasks);
        // Outside the lock: what a task drops may use the clock.
        drop(tasks);
        self.0.ready.lock().unwrap().clear();
    }

    fn random(&self) -> u64 {
        let mut state = self.0.state.lock().unwrap();
        // xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators".
        state.random ^= state.random >> 12;
        state.random ^= state.random << 25;
        state.random ^= state.random >> 27;
        state.random.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn pick(&self) -> Option<u64> {
        let count = self.0.ready.lock().unwrap().len();
        if count == 0 {
            return None;
        }
        let chosen = self.below(count);
        let mut ready = self.0.ready.lock().unwrap();
        let task = *ready.iter().nth(chosen).unwrap();
        ready.remove(&task);
        Some(task)
    }

    fn poll(&self, task: u64) {
        let taken = {
            let mut state = self.0.state.lock().unwrap();
            state.polls += 1;
            state.tasks.remove(&task)
        };
        let Some(mut future) = taken else { return };
        let waker = Waker::from(Arc::new(TaskWaker { task, ready: Arc::clone(&self.0.ready) }));
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.0.state.lock().unwrap().tasks.insert(task, future);
        }
    }

    fn advance(&self) {
        let mut state = self.0.state.lock().unwrap();
        let (&(at, _), _) = state.timers.first_key_value().expect("every task waits and there is no timer: a deadlock");
        state.now_ms = state.now_ms.max(at);
        let now = state.now_ms;
        for (_, waker) in state.timers.range_mut(..=(now, u64::MAX)) {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
        // A timer whose future was never polled again is over all the same.
        state.timers.retain(|(at, _), waker| *at > now || waker.is_some());
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World")
    }
}

impl Clock for World {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(EPOCH_MS + i64::try_from(self.now_ms()).unwrap())
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let mut state = self.0.state.lock().unwrap();
        let at = state.now_ms.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        state.next_timer += 1;
        Box::pin(Sleep { world: self.clone(), key: (at, state.next_timer) })
    }
}

impl Rng for World {
    fn fill(&self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&self.random().to_le_bytes()[..chunk.len()]);
        }
    }
}

impl Spawner for World {
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        let mut state = self.0.state.lock().unwrap();
        let task = state.next_task;
        state.next_task += 1;
        state.tasks.insert(task, future);
        drop(state);
        self.0.ready.lock().unwrap().insert(task);
    }
}

struct Sleep {
    world: World,
    key: (u64, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.world.0.state.lock().unwrap();
        if state.now_ms >= self.key.0 {
            state.timers.remove(&self.key);
            return Poll::Ready(());
        }
        state.timers.insert(self.key, Some(context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.world.0.state.lock().unwrap().timers.remove(&self.key);
    }
}
