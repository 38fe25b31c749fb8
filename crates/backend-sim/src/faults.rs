//! What goes wrong, where and how often, as a test says.
//!
//! Every method of the backend passes numbered steps; a fault strikes at one of them:
//!
//! | method | 0 | 1 | 2 | 3 | 4 |
//! |---|---|---|---|---|---|
//! | create | nothing done | recorded | defined on the host | | |
//! | boot | nothing done | intent recorded | machine made, held at its gate | machine recorded | CPUs run |
//! | shutdown, pause, resume, reboot | nothing done | done | | | |
//! | clear | nothing done | machine gone | forgotten | | |
//! | delete | nothing done | machine gone | definition gone | forgotten | |
//! | ping, capabilities, info, console | nothing done | | | | |
//! | adopt (per VM) | nothing done | | | | |

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use roost_backend::BackendError;
use roost_model::VmId;
use roost_model::state::Machine;
use tokio::sync::watch;

/// A method of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// `ping`
    Ping,
    /// `capabilities`
    Capabilities,
    /// `create`
    Create,
    /// `boot`
    Boot,
    /// `shutdown`
    Shutdown,
    /// `pause`
    Pause,
    /// `resume`
    Resume,
    /// `reboot`
    Reboot,
    /// `info`
    Info,
    /// `adopt`
    Adopt,
    /// `clear`
    Clear,
    /// `delete`
    Delete,
    /// `console`
    Console,
    /// `agent`
    Agent,
}

/// Where a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// In which method.
    pub method: Method,
    /// For which VM; `None` for any.
    pub vm: Option<VmId>,
    /// At which matching call, counted from 1 since the fault was injected.
    pub call: u32,
    /// At which step of the call; see the module's table.
    pub step: u32,
    /// At every matching call from `call` on, not only at that one.
    pub repeats: bool,
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The call fails.
    Fail(BackendError),
    /// The call does not go on until [`Injected::release`].
    Hang,
    /// `info` or `adopt` says that this is there. Other methods take no notice.
    Lie(Machine),
    /// The whole backend dies, as with its daemon: no call of it ever returns, none does anything
    /// more, no event comes. Machines at their gates vanish; those that run go on.
    Die,
    /// The call goes on after this long by the backend's clock.
    Slow(Duration),
}

/// A backend died, as it was told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Death {
    /// In which method.
    pub method: Method,
    /// For which VM, if for one.
    pub vm: Option<VmId>,
    /// At which step.
    pub step: u32,
}

/// The faults of a backend. Clones share them, so that they outlive the instance.
#[derive(Clone, Default)]
pub struct Faults {
    shared: Arc<Shared>,
}

/// A fault that was injected.
#[derive(Debug, Clone)]
pub struct Injected {
    hits: Arc<watch::Sender<u32>>,
    gate: Arc<watch::Sender<bool>>,
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    /// How many rules there are: nearly always none, and then nobody takes the lock.
    armed: AtomicUsize,
    on_death: Mutex<Option<OnDeath>>,
}

type OnDeath = Arc<dyn Fn(Death) + Send + Sync>;

struct Rule {
    point: Point,
    fault: Fault,
    calls: u32,
    injected: Injected,
}

impl Point {
    /// At the start of the next call of the method, for any VM.
    pub fn new(method: Method) -> Self {
        Self { method, vm: None, call: 1, step: 0, repeats: false }
    }

    /// Only for this VM.
    pub fn vm(self, vm: VmId) -> Self {
        Self { vm: Some(vm), ..self }
    }

    /// Only at the `n`th matching call from now on, counted from 1.
    pub fn call(self, n: u32) -> Self {
        Self { call: n, ..self }
    }

    /// At this step of the call.
    pub fn step(self, step: u32) -> Self {
        Self { step, ..self }
    }

    /// At every matching call from that one on.
    pub fn always(self) -> Self {
        Self { repeats: true, ..self }
    }
}

impl Fault {
    /// A failure that may pass.
    pub fn transient(reason: &'static str) -> Self {
        Fault::Fail(BackendError::transient(reason, format!("injected: {reason}")))
    }

    /// A failure that repeats itself.
    pub fn permanent(reason: &'static str) -> Self {
        Fault::Fail(BackendError::permanent(reason, format!("injected: {reason}")))
    }
}

impl Faults {
    /// Lets a fault strike at a point.
    pub fn inject(&self, point: Point, fault: Fault) -> Injected {
        let injected = Injected { hits: Arc::new(watch::Sender::new(0)), gate: Arc::new(watch::Sender::new(false)) };
        let mut rules = self.rules();
        rules.push(Rule { point, fault, calls: 0, injected: injected.clone() });
        self.shared.armed.store(rules.len(), Ordering::Release);
        injected
    }

    /// Takes back every fault and lets go of what hangs.
    pub fn heal(&self) {
        let mut rules = self.rules();
        self.shared.armed.store(0, Ordering::Release);
        for rule in rules.drain(..) {
            rule.injected.release();
        }
    }

    /// Called on the thread where a backend dies. The caller of the backend is to be dropped then, as
    /// it would be with its process; nothing that it waits for will ever come.
    pub fn on_death(&self, callback: impl Fn(Death) + Send + Sync + 'static) {
        *self.shared.on_death.lock().expect("no code panics while it holds this lock") = Some(Arc::new(callback));
    }

    /// What strikes here, if anything. A fault that strikes once is used up.
    pub(crate) fn strike(&self, method: Method, vm: Option<VmId>, step: u32) -> Option<(Fault, Injected)> {
        if self.shared.armed.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut rules = self.rules();
        let mut struck = None;
        for (i, rule) in rules.iter_mut().enumerate() {
            let Point { vm: of, call, repeats, .. } = rule.point;
            if rule.point.method != method || rule.point.step != step || of.is_some_and(|of| Some(of) != vm) {
                continue;
            }
            rule.calls += 1;
            if struck.is_none() && (rule.calls == call || repeats && rule.calls > call) {
                struck = Some((i, rule.fault.clone(), rule.injected.clone(), repeats));
            }
        }
        let (i, fault, injected, repeats) = struck?;
        if !repeats {
            rules.remove(i);
            self.shared.armed.store(rules.len(), Ordering::Release);
        }
        injected.hits.send_modify(|hits| *hits += 1);
        Some((fault, injected))
    }

    pub(crate) fn report(&self, death: Death) {
        let callback = self.shared.on_death.lock().expect("no code panics while it holds this lock").clone();
        if let Some(callback) = callback {
            callback(death);
        }
    }

    fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.shared.rules.lock().expect("no code panics while it holds this lock")
    }
}

impl Injected {
    /// How often it has struck.
    pub fn hits(&self) -> u32 {
        *self.hits.borrow()
    }

    /// Resolves when it has struck.
    pub async fn struck(&self) {
        // The sender lives in `self`: the channel cannot be closed.
        let _ = self.hits.subscribe().wait_for(|hits| *hits > 0).await;
    }

    /// Lets every call that hangs here go on, now and later.
    pub fn release(&self) {
        self.gate.send_replace(true);
    }

    pub(crate) async fn released(&self) {
        let _ = self.gate.subscribe().wait_for(|open| *open).await;
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.rules().iter().map(|r| (&r.point, &r.fault))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_at_its_call_and_step_only() {
        let (faults, vm, other) = (Faults::default(), VmId::from_parts(1, [1; 10]), VmId::from_parts(1, [2; 10]));
        let injected = faults.inject(Point::new(Method::Boot).vm(vm).call(2).step(1), Fault::transient("NO"));
        let strikes = |vm, step| faults.strike(Method::Boot, Some(vm), step).is_some();
        assert!(!strikes(vm, 1), "the first call");
        assert!(!strikes(vm, 0) && !strikes(other, 1));
        assert!(strikes(vm, 1), "the second");
        assert!(!strikes(vm, 1), "used up");
        assert_eq!(injected.hits(), 1);
        faults.inject(Point::new(Method::Ping).always(), Fault::Hang);
        assert!((0..3).all(|_| faults.strike(Method::Ping, None, 0).is_some()));
        faults.heal();
        assert!(faults.strike(Method::Ping, None, 0).is_none());
    }
}
