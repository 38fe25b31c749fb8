//! The host of simulated machines: what a real one's kernel, processes and files would be.
//!
//! Owns every machine and definition, whatever becomes of the backends. A backend works in a
//! *session*, which stands for its process: when that ends, machines that are still held at their
//! gates vanish, and nobody is told of the ends of the others until a new session adopts them.
//!
//! ```text
//!   (nothing) -prepare-> Gated -release-> Running <-pause/resume, stall/recover-> Paused
//!                          |                 |                                      |
//!        abandon, the end of its session     +---- power-off, panic, kill, shutdown +
//!                          v                                     v
//!                      (nothing) <------------- clear --------- Ended
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use roost_backend::{Event, EventSender, Happened};
use roost_model::state::Machine;
use roost_model::{ExitCause, LaunchId, VmId};
use tokio::sync::Notify;

use crate::clock::SimClock;
use crate::guest::Guest;
use crate::request::{Control, ControlError, Found, HostError, Reply, Request, Sought, There};

/// Resets of one machine are reported at most this often.
const RESET_EVENT_INTERVAL: Duration = Duration::from_secs(1);

/// Holds simulated machines. An `Arc` of it outlives the backends that work on it.
pub struct SimHost {
    clock: Arc<dyn SimClock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    vms: BTreeMap<VmId, Entry>,
    sessions: BTreeMap<SessionId, Session>,
    next_session: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionId(u64);

struct Session {
    events: EventSender,
    report_asked_ends: bool,
}

struct Entry {
    guest: Guest,
    machine: Option<SimMachine>,
}

struct SimMachine {
    launch: LaunchId,
    phase: Phase,
    /// Who holds its gate, and then who is told of its end.
    session: Option<SessionId>,
    /// When its CPUs began to run.
    running_since: Duration,
    last_reset_event: Option<Duration>,
    resets: u64,
    changed: Arc<Notify>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Gated,
    Running,
    Paused { stalled: bool },
    Ended { cause: ExitCause, lingering: bool },
}

impl SimHost {
    /// A host without machines.
    pub fn new(clock: Arc<dyn SimClock>) -> Arc<Self> {
        Arc::new(Self { clock, state: Mutex::default() })
    }

    /// The guest powers itself off.
    pub fn guest_power_off(&self, vm: VmId) -> Result<(), ControlError> {
        self.control(vm, Control::PowerOff)
    }

    /// The guest's kernel panics.
    pub fn guest_panic(&self, vm: VmId) -> Result<(), ControlError> {
        self.control(vm, Control::Panic)
    }

    /// The guest resets itself.
    pub fn guest_reset(&self, vm: VmId) -> Result<(), ControlError> {
        self.control(vm, Control::Reset)
    }

    /// Somebody kills the machine's process.
    pub fn kill(&self, vm: VmId) -> Result<(), ControlError> {
        self.control(vm, Control::Kill)
    }

    /// Acts on a machine from outside.
    pub fn control(&self, vm: VmId, control: Control) -> Result<(), ControlError> {
        let now = self.clock.elapsed();
        let mut state = self.lock();
        let machine = state.vms.get_mut(&vm).and_then(|e| e.machine.as_mut());
        let machine = machine.filter(|m| m.phase != Phase::Gated).ok_or(ControlError::NoMachine(vm))?;
        let happened = match (control, machine.phase) {
            (_, Phase::Gated | Phase::Ended { .. }) => return Err(ControlError::NoMachine(vm)),
            (Control::Kill, _) => {
                state.end(vm, Phase::Ended { cause: ExitCause::Killed, lingering: false }, false);
                return Ok(());
            }
            (Control::Recover, Phase::Paused { stalled: true }) => {
                machine.phase = Phase::Running;
                Happened::Resumed
            }
            (_, Phase::Paused { .. }) => return Err(ControlError::Stopped(vm)),
            (Control::Recover, Phase::Running) => return Ok(()),
            (Control::PowerOff | Control::Panic, Phase::Running) => {
                let cause = if control == Control::Panic { ExitCause::Panic } else { ExitCause::PowerOff };
                state.end(vm, Phase::Ended { cause, lingering: true }, false);
                return Ok(());
            }
            (Control::Stall, Phase::Running) => {
                machine.phase = Phase::Paused { stalled: true };
                Happened::Paused
            }
            (Control::Reset, Phase::Running) => {
                machine.resets += 1;
                if machine.last_reset_event.is_some_and(|at| now < at + RESET_EVENT_INTERVAL) {
                    return Ok(());
                }
                machine.last_reset_event = Some(now);
                Happened::Reset
            }
        };
        state.tell(vm, happened);
        Ok(())
    }

    /// What is there of the VM.
    pub fn machine(&self, vm: VmId) -> (Machine, Option<LaunchId>) {
        let found = self.lock().found(vm);
        (found.machine, found.launch)
    }

    /// What this host holds that belongs to the VM.
    pub fn leftovers(&self, vm: VmId) -> Vec<String> {
        let state = self.lock();
        let Some(entry) = state.vms.get(&vm) else { return Vec::new() };
        let machine = entry.machine.as_ref().map(|m| format!("machine of {} ({:?})", m.launch, m.phase));
        [format!("definition of {vm}")].into_iter().chain(machine).collect()
    }

    /// VMs whose machines live: those that hold memory and could run.
    pub fn living(&self) -> Vec<VmId> {
        let state = self.lock();
        let lives = |e: &Entry| e.machine.as_ref().is_some_and(|m| m.phase.is_up());
        state.vms.iter().filter(|(_, e)| lives(e)).map(|(vm, _)| *vm).collect()
    }

    /// Whether it holds no machine and no definition.
    pub fn is_empty(&self) -> bool {
        self.lock().vms.is_empty()
    }

    /// How many machines there are, ended ones included: their ends are still to be told.
    pub fn machines(&self) -> usize {
        self.lock().vms.values().filter(|e| e.machine.is_some()).count()
    }

    pub(crate) fn open_session(&self, events: EventSender, report_asked_ends: bool) -> SessionId {
        let mut state = self.lock();
        let id = SessionId(state.next_session);
        state.next_session += 1;
        state.sessions.insert(id, Session { events, report_asked_ends });
        id
    }

    /// The session's process is gone: its gates close.
    pub(crate) fn close_session(&self, id: SessionId) {
        let mut state = self.lock();
        if state.sessions.remove(&id).is_none() {
            return;
        }
        for entry in state.vms.values_mut() {
            let Some(machine) = entry.machine.as_mut().filter(|m| m.session == Some(id)) else { continue };
            machine.session = None;
            if machine.phase == Phase::Gated {
                entry.machine = None;
            }
        }
    }

    /// Carries out a request. Dropping the future stops waiting; what was done stays done.
    pub(crate) async fn execute(&self, session: SessionId, request: Request) -> Result<Reply, HostError> {
        match request {
            Request::Release { vm, launch } => self.release(vm, launch).await,
            Request::Shutdown { vm, grace_ms } => self.shutdown(session, vm, grace_ms).await,
            Request::Reboot { vm, grace_ms } => self.reboot(session, vm, grace_ms).await,
            at_once => self.execute_at_once(session, at_once),
        }
    }

    /// Carries out a request that nobody has to wait for.
    pub(crate) fn execute_at_once(&self, session: SessionId, request: Request) -> Result<Reply, HostError> {
        let now = self.clock.elapsed();
        let mut state = self.lock();
        match request {
            Request::Ping => Ok(Reply::Done),
            Request::Define { vm, guest } => {
                state.define(vm, guest);
                Ok(Reply::Done)
            }
            Request::Prepare { vm, launch } => state.prepare(session, vm, launch),
            Request::Abandon { vm, launch } => {
                if let Some(entry) = state.vms.get_mut(&vm) {
                    entry.machine.take_if(|m| m.launch == launch && m.phase == Phase::Gated);
                }
                Ok(Reply::Done)
            }
            Request::Pause { vm } => {
                let machine = state.of_session(session, vm)?;
                match machine.phase {
                    Phase::Running | Phase::Paused { .. } => machine.phase = Phase::Paused { stalled: false },
                    phase => return Err(phase.wrong(vm, "only a running one can be paused")),
                }
                Ok(Reply::Done)
            }
            Request::Resume { vm } => {
                let machine = state.of_session(session, vm)?;
                match machine.phase {
                    Phase::Running | Phase::Paused { .. } => machine.phase = Phase::Running,
                    phase => return Err(phase.wrong(vm, "only a paused one can be resumed")),
                }
                Ok(Reply::Done)
            }
            Request::Info { vm } => Ok(Reply::There { there: state.there(vm, now) }),
            Request::Adopt { vms } => {
                Ok(Reply::Found { found: vms.into_iter().map(|sought| state.adopt(session, sought)).collect() })
            }
            Request::Clear { vm, recorded } => state.clear(vm, recorded),
            Request::Remove { vm } => match state.vms.get(&vm).and_then(|e| e.machine.as_ref()) {
                Some(machine) => Err(machine.phase.wrong(vm, "it must be cleared away before its VM is removed")),
                None => {
                    state.vms.remove(&vm);
                    Ok(Reply::Done)
                }
            },
            Request::Control { vm, control } => {
                drop(state);
                self.control(vm, control)?;
                Ok(Reply::Done)
            }
            Request::Leftovers { vm } => {
                drop(state);
                Ok(Reply::Left { left: self.leftovers(vm) })
            }
            Request::Release { .. } | Request::Shutdown { .. } | Request::Reboot { .. } => {
                unreachable!("`execute` waits for these")
            }
        }
    }

    async fn release(&self, vm: VmId, launch: LaunchId) -> Result<Reply, HostError> {
        let boot_time = {
            let mut state = self.lock();
            let entry = state.vms.get_mut(&vm).ok_or(HostError::NoMachine { vm })?;
            entry.machine.as_ref().filter(|m| m.launch == launch).ok_or(HostError::NoMachine { vm })?;
            entry.guest.boot_time()
        };
        if !boot_time.is_zero() {
            self.clock.sleep(boot_time).await;
        }
        let now = self.clock.elapsed();
        let mut state = self.lock();
        let machine = state.vms.get_mut(&vm).and_then(|e| e.machine.as_mut()).filter(|m| m.launch == launch);
        let machine = machine.ok_or(HostError::NoMachine { vm })?;
        match machine.phase {
            Phase::Gated => {
                machine.phase = Phase::Running;
                machine.running_since = now;
                Ok(Reply::Done)
            }
            phase => Err(phase.wrong(vm, "its gate was opened before")),
        }
    }

    async fn shutdown(&self, session: SessionId, vm: VmId, grace_ms: Option<u64>) -> Result<Reply, HostError> {
        let (launch, obeys) = {
            let mut state = self.lock();
            let Some(entry) = state.vms.get(&vm) else { return Err(HostError::NoMachine { vm }) };
            // What is stopped is stopped, even where nobody knows any more how it came to that.
            if entry.machine.is_none() {
                return Ok(Reply::Ended { cause: ExitCause::Forced });
            }
            let guest = entry.guest.clone();
            let machine = state.of_session(session, vm)?;
            match machine.phase {
                Phase::Ended { cause, .. } => return Ok(Reply::Ended { cause }),
                Phase::Gated => return Err(machine.phase.wrong(vm, "it is being launched")),
                Phase::Paused { .. } => (machine.launch, None),
                Phase::Running => (machine.launch, (!guest.deaf).then(|| guest.shutdown_time())),
            }
        };
        if let Some(grace_ms) = grace_ms {
            let grace = Duration::from_millis(grace_ms);
            let obeyed = obeys.filter(|takes| *takes <= grace);
            self.wait_for_end(vm, launch, obeyed.unwrap_or(grace)).await;
            if obeyed.is_some() {
                self.lock().end_asked(vm, launch, ExitCause::PowerOff);
            }
        }
        let mut state = self.lock();
        state.end_asked(vm, launch, ExitCause::Forced);
        match state.vms.get(&vm).and_then(|e| e.machine.as_ref()).map(|m| m.phase) {
            Some(Phase::Ended { cause, .. }) => Ok(Reply::Ended { cause }),
            // It was cleared away by somebody else meanwhile.
            _ => Err(HostError::NoMachine { vm }),
        }
    }

    async fn reboot(&self, session: SessionId, vm: VmId, grace_ms: Option<u64>) -> Result<Reply, HostError> {
        let (launch, obeys) = {
            let mut state = self.lock();
            let guest = state.vms.get(&vm).ok_or(HostError::NoMachine { vm })?.guest.clone();
            let machine = state.of_session(session, vm)?;
            if machine.phase != Phase::Running {
                return Err(machine.phase.wrong(vm, "only a running one can be rebooted"));
            }
            (machine.launch, (!guest.deaf).then(|| guest.shutdown_time()))
        };
        if let Some(grace_ms) = grace_ms {
            let grace = Duration::from_millis(grace_ms);
            self.wait_for_end(vm, launch, obeys.unwrap_or(grace).min(grace)).await;
        }
        let mut state = self.lock();
        let machine = state.of_session(session, vm)?;
        if machine.phase != Phase::Running || machine.launch != launch {
            return Err(machine.phase.wrong(vm, "it ended while it was to be rebooted"));
        }
        machine.resets += 1;
        Ok(Reply::Done)
    }

    /// Waits until the launch has ended, at most so long.
    async fn wait_for_end(&self, vm: VmId, launch: LaunchId, at_most: Duration) {
        let mut sleep = self.clock.sleep(at_most);
        loop {
            let changed = {
                let state = self.lock();
                let machine = state.vms.get(&vm).and_then(|e| e.machine.as_ref());
                match machine.filter(|m| m.launch == launch && m.phase.is_up()) {
                    Some(machine) => Arc::clone(&machine.changed).notified_owned(),
                    None => return,
                }
            };
            tokio::select! {
                biased;
                () = changed => {}
                () = &mut sleep => return,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

impl State {
    fn define(&mut self, vm: VmId, guest: Guest) {
        self.vms.entry(vm).and_modify(|e| e.guest = guest.clone()).or_insert(Entry { guest, machine: None });
    }

    fn prepare(&mut self, session: SessionId, vm: VmId, launch: LaunchId) -> Result<Reply, HostError> {
        let entry = self.vms.get_mut(&vm).ok_or(HostError::NotDefined { vm })?;
        if let Some(machine) = &entry.machine {
            return Err(machine.phase.wrong(vm, "a VM has one machine at a time"));
        }
        entry.machine = Some(SimMachine {
            launch,
            phase: Phase::Gated,
            session: Some(session),
            running_since: Duration::ZERO,
            last_reset_event: None,
            resets: 0,
            changed: Arc::default(),
        });
        Ok(Reply::Done)
    }

    fn adopt(&mut self, session: SessionId, sought: Sought) -> Found {
        let Sought { vm, guest, defined, launch } = sought;
        // A host that was started anew has lost what was defined; the record has it still.
        if defined && !self.vms.contains_key(&vm) {
            self.define(vm, guest);
        }
        if let Some(entry) = self.vms.get_mut(&vm) {
            // Whoever held its gate has a successor now, even if nobody has noticed its death yet.
            entry.machine.take_if(|m| m.phase == Phase::Gated && m.session != Some(session));
            match &mut entry.machine {
                Some(machine) => machine.session = Some(session),
                none => {
                    // A machine that is on record as made and is not there has been killed.
                    *none = launch.map(|launch| SimMachine {
                        launch,
                        phase: Phase::Ended { cause: ExitCause::Killed, lingering: false },
                        session: Some(session),
                        running_since: Duration::ZERO,
                        last_reset_event: None,
                        resets: 0,
                        changed: Arc::default(),
                    });
                }
            }
        }
        self.found(vm)
    }

    fn clear(&mut self, vm: VmId, recorded: bool) -> Result<Reply, HostError> {
        let Some(machine) = self.vms.get_mut(&vm).and_then(|e| e.machine.as_ref()) else { return Ok(Reply::Done) };
        if !recorded {
            return Err(HostError::Unrecorded { vm, launch: machine.launch });
        }
        if machine.phase.is_up() {
            self.end(vm, Phase::Ended { cause: ExitCause::Forced, lingering: false }, true);
        }
        if let Some(entry) = self.vms.get_mut(&vm) {
            entry.machine = None;
        }
        Ok(Reply::Done)
    }

    fn end_asked(&mut self, vm: VmId, launch: LaunchId, cause: ExitCause) {
        let machine = self.vms.get(&vm).and_then(|e| e.machine.as_ref());
        if machine.is_some_and(|m| m.launch == launch && m.phase.is_up()) {
            self.end(vm, Phase::Ended { cause, lingering: true }, true);
        }
    }

    fn end(&mut self, vm: VmId, end: Phase, asked: bool) {
        let Some(machine) = self.vms.get_mut(&vm).and_then(|e| e.machine.as_mut()) else { return };
        machine.phase = end;
        machine.changed.notify_waiters();
        let session = machine.session.and_then(|id| self.sessions.get(&id));
        if let (Phase::Ended { cause, .. }, Some(session)) = (end, session)
            && (!asked || session.report_asked_ends)
        {
            self.tell(vm, Happened::Ended(cause));
        }
    }

    /// Puts an event where the machine's session wants it. A session without listener is on its way out.
    fn tell(&self, vm: VmId, happened: Happened) {
        let Some(machine) = self.vms.get(&vm).and_then(|e| e.machine.as_ref()) else { return };
        if let Some(session) = machine.session.and_then(|id| self.sessions.get(&id)) {
            let _ = session.events.send(Event { vm, launch: machine.launch, happened });
        }
    }

    /// The VM's machine, for a session that has launched or adopted it.
    fn of_session(&mut self, session: SessionId, vm: VmId) -> Result<&mut SimMachine, HostError> {
        let machine = self.vms.get_mut(&vm).and_then(|e| e.machine.as_mut()).ok_or(HostError::NoMachine { vm })?;
        if machine.session != Some(session) {
            return Err(HostError::NotAdopted { vm });
        }
        Ok(machine)
    }

    fn found(&self, vm: VmId) -> Found {
        match self.vms.get(&vm) {
            None => Found { machine: Machine::Absent, launch: None },
            Some(Entry { machine: None, .. }) => Found { machine: Machine::Defined, launch: None },
            Some(Entry { machine: Some(machine), .. }) => match machine.phase {
                Phase::Gated => Found { machine: Machine::Defined, launch: None },
                phase => Found { machine: phase.machine(), launch: Some(machine.launch) },
            },
        }
    }

    fn there(&self, vm: VmId, now: Duration) -> There {
        let entry = self.vms.get(&vm);
        let machine = entry.and_then(|e| e.machine.as_ref());
        let uptime =
            machine.filter(|m| m.phase.is_up()).map_or(Duration::ZERO, |m| now.saturating_sub(m.running_since));
        There {
            found: self.found(vm),
            gated: machine.is_some_and(|m| m.phase == Phase::Gated),
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            resets: machine.map_or(0, |m| m.resets),
            guest: entry.map(|e| e.guest.clone()).unwrap_or_default(),
        }
    }
}

impl Phase {
    /// Whether the guest is there.
    fn is_up(self) -> bool {
        matches!(self, Phase::Running | Phase::Paused { .. })
    }

    fn machine(self) -> Machine {
        match self {
            Phase::Gated => Machine::Defined,
            Phase::Running => Machine::Running,
            Phase::Paused { .. } => Machine::Paused,
            Phase::Ended { cause, lingering } => Machine::Ended { cause, lingering },
        }
    }

    fn wrong(self, vm: VmId, wanted: &str) -> HostError {
        let is = match self {
            Phase::Gated => "being launched".to_owned(),
            phase => phase.machine().to_string(),
        };
        HostError::WrongState { vm, is, wanted: wanted.to_owned() }
    }
}

impl fmt::Debug for SimHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("SimHost").field("vms", &state.vms.len()).field("sessions", &state.sessions.len()).finish()
    }
}
