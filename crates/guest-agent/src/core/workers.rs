//! Threads for what blocks: started when there is work, gone when it is done.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

/// The most threads at a time; what comes beyond waits.
const MAX_THREADS: usize = 16;
/// The most that wait.
const MAX_WAITING: usize = 100;
const STACK: usize = 256 * 1024;

type Task<T> = Box<dyn FnOnce() -> T + Send>;

/// Threads whose results come back to one loop.
#[derive(Debug)]
pub(crate) struct Workers<T> {
    sender: Sender<(u64, T)>,
    receiver: Receiver<(u64, T)>,
    wake: Arc<OwnedFd>,
    running: usize,
    waiting: VecDeque<(u64, Waiting<T>)>,
}

struct Waiting<T>(Task<T>);

impl<T> std::fmt::Debug for Waiting<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waiting(..)")
    }
}

impl<T: Send + 'static> Workers<T> {
    pub(crate) fn new() -> io::Result<Self> {
        let (sender, receiver) = channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(Self { sender, receiver, wake, running: 0, waiting: VecDeque::new() })
    }

    /// Readable when a result is there.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Runs a task on a thread, now or when one is free. `Err` gives it back: too many wait.
    pub(crate) fn run(&mut self, key: u64, task: Task<T>) -> Result<(), Task<T>> {
        if self.running >= MAX_THREADS {
            if self.waiting.len() >= MAX_WAITING {
                return Err(task);
            }
            self.waiting.push_back((key, Waiting(task)));
            return Ok(());
        }
        self.start(key, task, true)
    }

    /// Runs a task on a thread of its own, however many there are: what must not wait for the others.
    pub(crate) fn run_now(&mut self, key: u64, task: Task<T>) -> Result<(), Task<T>> {
        self.start(key, task, false)
    }

    fn start(&mut self, key: u64, task: Task<T>, counted: bool) -> Result<(), Task<T>> {
        let (sender, wake) = (self.sender.clone(), self.wake.clone());
        // The task goes over by a channel, so that it is still here if no thread can be made.
        let (hand, take) = channel::<Task<T>>();
        let body = move || {
            if let Ok(task) = take.recv() {
                let result = task();
                let _ = sender.send((key | if counted { COUNTED } else { 0 }, result));
                let _ = rustix::io::write(&*wake, &1u64.to_ne_bytes());
            }
        };
        if thread::Builder::new().name("worker".into()).stack_size(STACK).spawn(body).is_err() {
            return Err(task);
        }
        if counted {
            self.running += 1;
        }
        hand.send(task).map_err(|failed| failed.0)
    }

    /// The results there are.
    pub(crate) fn results(&mut self) -> Vec<(u64, T)> {
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut count);
        let mut found = Vec::new();
        while let Ok((key, result)) = self.receiver.try_recv() {
            if key & COUNTED != 0 {
                self.running -= 1;
            }
            found.push((key & !COUNTED, result));
        }
        while self.running < MAX_THREADS
            && let Some((key, Waiting(task))) = self.waiting.pop_front()
        {
            if let Err(task) = self.start(key, task, true) {
                self.waiting.push_front((key, Waiting(task)));
                break;
            }
        }
        found
    }
}

/// Marks the results of threads that count.
const COUNTED: u64 = 1 << 63;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn more_tasks_than_threads_all_come_back() {
        let mut workers = Workers::new().unwrap();
        let mut taken = 0u64;
        for key in 0..200 {
            taken += u64::from(workers.run(key, Box::new(move || key * 2)).is_ok());
        }
        assert!(taken >= (MAX_THREADS + MAX_WAITING) as u64);
        let mut found = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        while found.len() < taken as usize {
            assert!(Instant::now() < deadline);
            let fd = workers.wake_fd();
            let mut poll = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut poll, None).unwrap();
            found.extend(workers.results());
        }
        assert!(found.iter().all(|(key, result)| result == &(key * 2)));
    }
}
