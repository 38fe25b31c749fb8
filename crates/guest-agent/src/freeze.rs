//! Freezing and thawing of file systems, with a deadline that holds whatever happens to the host or the agent.
//!
//! ```text
//!            freeze                     all are frozen
//!   Thawed ─────────> Freezing ───────────────────────────> Frozen
//!     ^                  │ one fails: back                    │
//!     ├──────────────────┤                                    │ thaw, deadline, drop
//!     │                  │ thaw, deadline                     │
//!     │                  v                                    │
//!     │    back       Overtaken   (the freezing thread undoes what it froze since)
//!     └──────────────────┴────────────────────────────────────┘
//! ```
//!
//! Two hold the deadline. A thread of the agent's waits for it and touches no file system; and a process of its own,
//! the [`guard`], thaws where the agent is killed. It is started before anything is frozen, and without it nothing is.
//!
//! A frozen file system stops whoever writes to it, the journal among them, and behind a full journal stops whoever logs.
//! So nothing is logged here while anything may be frozen, and [`Freezer::frozen`] tells the rest of the agent to keep
//! what it has to say until later.

mod guard;
mod plan;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use roost_guest_proto::{ErrorBody, ErrorCode, Freeze};
use rustix::io::Errno;
use serde_json::{Value, json};

use guard::Guard;
pub use guard::{GUARD_ARG, guard_main};
use plan::{Skipped, Target};

use crate::platform::{self, System};

/// The longest that anything stays frozen; a longer `timeout_ms` is this one.
pub const MAX_FREEZE: Duration = Duration::from_secs(300);

/// Freezes, and sees to it that what is frozen thaws.
#[derive(Debug)]
pub struct Freezer {
    shared: Arc<Shared>,
    guard_program: PathBuf,
    system: System,
    watcher: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    held: Mutex<Held>,
    changed: Condvar,
    frozen: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Held {
    state: State,
    /// Of the freeze that `state` tells of, so that a watcher of an earlier one knows itself to be late.
    number: u64,
    targets: Vec<Target>,
    guard: Option<Guard>,
    /// The last freeze was ended by its deadline.
    expired: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Thawed,
    Freezing,
    Overtaken,
    Frozen,
}

impl Default for Freezer {
    fn default() -> Self {
        Self::new(System::default(), "/proc/self/exe".into())
    }
}

impl Freezer {
    /// `guard_program` is one that calls [`guard_main`] when its only argument is [`GUARD_ARG`].
    pub fn new(system: System, guard_program: PathBuf) -> Self {
        let shared = Shared { held: Mutex::default(), changed: Condvar::new(), frozen: Arc::default() };
        Self { shared: Arc::new(shared), guard_program, system, watcher: Mutex::default() }
    }

    /// Set while anything may be frozen.
    pub fn frozen(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.shared.frozen)
    }

    /// Freezes. Everything that was asked for is frozen when it returns, or nothing is.
    pub fn freeze(&self, request: &Freeze) -> Result<Value, ErrorBody> {
        let time = Duration::from_millis(request.timeout_ms).min(MAX_FREEZE);
        if time.is_zero() {
            let permitted = MAX_FREEZE.as_millis();
            return Err(ErrorBody::field("timeout_ms", format!("timeout_ms: 0; permitted: 1 to {permitted}")));
        }
        let deadline = Instant::now() + time;
        let number = self.begin()?;
        let result = self.freeze_all(request, deadline, number);
        if result.is_err() {
            self.shared.undo();
        }
        let (frozen, skipped) = result?;
        let skipped: Vec<_> = skipped.iter().map(Skipped::to_json).collect();
        Ok(json!({ "frozen": frozen, "skipped": skipped, "timeout_ms": u64::try_from(time.as_millis()).unwrap_or(0) }))
    }

    /// Thaws. With nothing frozen it does nothing; but a freeze that its deadline has ended is an error, once: what
    /// was done meanwhile was not done on a frozen file system.
    pub fn thaw(&self) -> Result<Value, ErrorBody> {
        let mut held = self.shared.lock();
        if std::mem::take(&mut held.expired) {
            let message = "timeout_ms: the deadline had passed, and the agent had thawed the file systems by itself";
            return Err(ErrorBody::new(ErrorCode::CommandTimeout, message));
        }
        let (thawed, failed) = self.shared.end(held);
        if failed.is_empty() {
            return Ok(json!({ "thawed": thawed }));
        }
        let mut error = ErrorBody::new(ErrorCode::CommandFailed, failed.join("; "));
        error.details = Some(json!({ "thawed": thawed }));
        Err(error)
    }

    fn begin(&self) -> Result<u64, ErrorBody> {
        let mut held = self.shared.lock();
        if held.state != State::Thawed {
            return Err(ErrorBody::new(ErrorCode::CommandFailed, "file systems are frozen already; thaw them first"));
        }
        held.state = State::Freezing;
        held.number += 1;
        held.expired = false;
        Ok(held.number)
    }

    fn freeze_all(
        &self,
        request: &Freeze,
        deadline: Instant,
        number: u64,
    ) -> Result<(Vec<PathBuf>, Vec<Skipped>), ErrorBody> {
        let (targets, mut skipped) = plan::targets(&self.system, &request.paths)?;
        let guard = Guard::start(&self.guard_program, &targets, deadline).map_err(|error| {
            let message =
                format!("nothing was frozen: the process that thaws if the agent is killed cannot start: {error}");
            ErrorBody::new(ErrorCode::CommandFailed, message)
        })?;
        self.shared.lock().guard = Some(guard);
        self.watch(deadline, number)?;
        self.shared.frozen.store(true, Ordering::Release);
        let mut frozen = Vec::new();
        for target in targets {
            match platform::freeze(&target.directory) {
                Ok(()) => {}
                Err(error @ (Errno::OPNOTSUPP | Errno::BUSY)) if request.paths.is_empty() => {
                    skipped.push(Skipped { mount_point: target.mount_point, reason: explain(error).to_owned() });
                    continue;
                }
                Err(error) => return Err(refused(&target.mount_point, error)),
            }
            let mut held = self.shared.lock();
            if held.state != State::Freezing {
                // It took so long that the deadline, or a thaw, came first. Whoever came has seen all but this one.
                let _ = platform::thaw(&target.directory);
                return Err(overtaken(held.expired));
            }
            frozen.push(target.mount_point.clone());
            held.targets.push(target);
        }
        let mut held = self.shared.lock();
        if held.state != State::Freezing {
            return Err(overtaken(held.expired));
        }
        held.state = State::Frozen;
        Ok((frozen, skipped))
    }

    /// Starts the thread that thaws at the deadline.
    fn watch(&self, deadline: Instant, number: u64) -> Result<(), ErrorBody> {
        let shared = Arc::clone(&self.shared);
        let thread =
            std::thread::Builder::new().name("thaw".to_owned()).spawn(move || shared.thaw_at(deadline, number));
        let thread = thread.map_err(|error| {
            ErrorBody::new(ErrorCode::ResourceLimit, format!("nothing was frozen: no thread for the deadline: {error}"))
        })?;
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = watcher.replace(thread) {
            // Its freeze is over, so it is at its end.
            let _ = earlier.join();
        }
        Ok(())
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.shared.end(self.shared.lock());
        let watcher = self.watcher.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = watcher.take() {
            let _ = watcher.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Held> {
        // Whoever panicked: what is frozen has to thaw.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Thaws what is frozen, the last first. What was thawed, and what failed.
    fn end(&self, mut held: MutexGuard<'_, Held>) -> (Vec<PathBuf>, Vec<String>) {
        let outcome = held.thaw();
        match held.state {
            State::Thawed | State::Overtaken => {}
            // The thread that freezes finds out, and undoes the rest.
            State::Freezing => held.state = State::Overtaken,
            State::Frozen => self.thawed(held),
        }
        self.changed.notify_all();
        outcome
    }

    /// For the thread that freezes, where it failed.
    fn undo(&self) {
        let mut held = self.lock();
        held.thaw();
        self.thawed(held);
        self.changed.notify_all();
    }

    fn thawed(&self, mut held: MutexGuard<'_, Held>) {
        held.state = State::Thawed;
        held.guard = None;
        self.frozen.store(false, Ordering::Release);
    }

    fn thaw_at(&self, deadline: Instant, number: u64) {
        let mut held = self.lock();
        loop {
            if held.number != number || matches!(held.state, State::Thawed | State::Overtaken) {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            held = self.changed.wait_timeout(held, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        held.expired = true;
        self.end(held);
    }
}

impl Held {
    fn thaw(&mut self) -> (Vec<PathBuf>, Vec<String>) {
        let (mut thawed, mut failed) = (Vec::new(), Vec::new());
        while let Some(target) = self.targets.pop() {
            match platform::thaw(&target.directory) {
                Ok(()) => thawed.push(target.mount_point),
                Err(Errno::INVAL) => {
                    failed.push(format!("{}: something else had thawed it", target.mount_point.display()))
                }
                Err(error) => failed.push(format!("{}: {error}", target.mount_point.display())),
            }
        }
        (thawed, failed)
    }
}

fn explain(error: Errno) -> &'static str {
    match error {
        Errno::OPNOTSUPP => "its kind of file system cannot be frozen",
        Errno::BUSY => "something else has frozen it already",
        Errno::PERM | Errno::ACCESS => "CAP_SYS_ADMIN is needed, which the agent does not have",
        Errno::INVAL => "it is shutting down, or read-only",
        _ => "the kernel failed to freeze it",
    }
}

fn refused(mount_point: &Path, error: Errno) -> ErrorBody {
    let code = match error {
        Errno::OPNOTSUPP | Errno::NOTTY => ErrorCode::NotSupported,
        Errno::PERM | Errno::ACCESS => ErrorCode::PermissionDenied,
        _ => ErrorCode::CommandFailed,
    };
    ErrorBody::new(code, format!("nothing stays frozen: {}: {} ({error})", mount_point.display(), explain(error)))
}

fn overtaken(expired: bool) -> ErrorBody {
    match expired {
        true => {
            ErrorBody::new(ErrorCode::CommandTimeout, "nothing stays frozen: the deadline came before all were frozen")
        }
        false => ErrorBody::new(ErrorCode::Cancelled, "nothing stays frozen: a thaw came before all were frozen"),
    }
}
