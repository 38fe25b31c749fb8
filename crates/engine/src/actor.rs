//! The actor of one VM: while there is work for it, everything that happens to the VM goes through
//! here, one thing after the other. It exists while there is work and is dropped when idle.
//!
//! ```text
//!   roused -> take in events -> read the record -> an open operation? -- yes -> carry it out -+
//!      ^                                                  |no                                 |
//!      |                             clear up, react to an end, reconcile                     |
//!      +------------------------------------ again, until there is nothing -------------------+
//! ```

use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use roost_backend::{Backend, BackendError, Event, Happened};
use roost_model::observe::{Reaction, Report, observe, react};
use roost_model::operation::{AfterFailure, Claim, Goal, OperationError, Progress};
use roost_model::plan::{Step, Stop, Target, plan};
use roost_model::state::Machine;
use roost_model::vm::Failure;
use roost_model::{Capabilities, Operation, OperationId, Power, Resource, Status, Timestamp, Vm, VmId};
use roost_store::StoreError;
use tokio::sync::{Notify, watch};

use crate::adopt::adopt_again;
use crate::commit;
use crate::engine::Inner;
use crate::seam::{jitter, stopped};
use crate::step::{Act, Effect, View, look, perform};

/// Attempts after which an operation ends even when none of them was seen to fail: a job that
/// crashes its worker must not do so for ever.
const LOST_ATTEMPTS: u32 = 20;
/// A step that takes longer than this is put on record as what is being done.
const TELL_PROGRESS_AFTER: Duration = Duration::from_millis(200);
/// How long a failed attempt at reconciling without a request rests.
const REST: Duration = Duration::from_secs(5);

/// What an actor has been told.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    state: Mutex<InboxState>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct InboxState {
    events: Vec<Event>,
    poked: bool,
}

/// What an actor does next.
#[derive(Debug, PartialEq)]
enum Next {
    Again,
    Rest(Timestamp),
    Idle,
}

/// How an act came out.
enum Outcome {
    Done(Effect),
    Failed(BackendError),
    /// Somebody wants something else: the act was dropped where it was.
    Interrupted,
}

/// Everything that is on record about one VM.
struct Record {
    vm: Vm,
    open: Vec<Operation>,
    resources: Vec<Resource>,
}

impl Inbox {
    pub(crate) fn put(&self, event: Option<Event>) {
        let mut state = self.lock();
        state.events.extend(event);
        state.poked = true;
        drop(state);
        self.notify.notify_one();
    }

    pub(crate) fn has_work(&self) -> bool {
        self.lock().poked
    }

    fn drain(&self) -> Vec<Event> {
        let mut state = self.lock();
        state.poked = false;
        std::mem::take(&mut state.events)
    }

    /// Puts events back in front of what has come in since. They rouse nobody: whoever puts them back
    /// comes again by itself.
    fn put_back(&self, events: &[Event]) {
        self.lock().events.splice(..0, events.iter().copied());
    }

    async fn roused(&self) {
        while !self.has_work() {
            self.notify.notified().await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, InboxState> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

/// Runs until there is nothing more to do for the VM, or the engine stops.
pub(crate) async fn run(inner: Arc<Inner>, id: VmId, inbox: Arc<Inbox>) {
    let mut stopping = inner.stopping.subscribe();
    loop {
        let next = tokio::select! {
            biased;
            // Dropping a step is as safe as the daemon's death, and the next start takes it up.
            () = stopped(&mut stopping) => return,
            next = turn(&inner, id, &inbox) => next,
        };
        let rest_until = match next {
            Ok(Next::Again) => continue,
            Ok(Next::Rest(until)) => until,
            Ok(Next::Idle) if inner.retire(id, &inbox) => return,
            Ok(Next::Idle) => continue,
            Err(error) => {
                tracing::error!(vm_id = %id, error = %error, "the record cannot be read or written; trying again");
                inner.seams.clock.now().after(REST)
            }
        };
        let rest = rest_until.since(inner.seams.clock.now());
        tokio::select! {
            biased;
            () = stopped(&mut stopping) => return,
            () = inbox.roused() => {}
            () = inner.seams.clock.sleep(rest) => {}
        }
    }
}

/// One turn: take in events, then do the first thing that is to be done.
async fn turn(inner: &Arc<Inner>, id: VmId, inbox: &Inbox) -> Result<Next, StoreError> {
    let events = Arc::new(inbox.drain());
    if !events.is_empty()
        && let Err(error) = take_in(inner, id, Arc::clone(&events)).await
    {
        // Nobody tells an end twice: what could not be recorded now is recorded later.
        inbox.put_back(&events);
        return Err(error);
    }
    let Some(record) = load(inner, id).await? else { return Ok(Next::Idle) };
    let now = inner.seams.clock.now();
    let Ok(entry) = inner.backend(&record.vm.backend) else {
        return no_backend(inner, &record).await;
    };
    if inner.is_unreachable(id) && !adopt_again(inner, &record.vm, &record.resources).await? && record.open.is_empty() {
        return Ok(Next::Idle);
    }
    let capabilities = entry.capabilities.clone().unwrap_or_default();
    let hands = Hands { inner, inbox, backend: &*entry.backend, capabilities: &capabilities };
    let delete = record.open.iter().find(|o| matches!(o.goal, Goal::Delete { .. }));
    match delete.or(record.open.first()) {
        // The order of requests is kept: those behind a retry wait with it.
        Some(operation) if operation.run_after > now => Ok(Next::Rest(operation.run_after)),
        Some(operation) => hands.carry_out(operation.clone(), &record).await,
        None => hands.settle(&record).await,
    }
}

/// Takes events into the record.
async fn take_in(inner: &Inner, id: VmId, events: Arc<Vec<Event>>) -> Result<(), StoreError> {
    let now = inner.seams.clock.now();
    inner
        .store
        .write(move |tx| {
            let events = Arc::clone(&events);
            Box::pin(async move {
                let vm = commit::change_vm(tx, id, None, now, |vm| {
                    let launch = vm.observed.launch;
                    for event in events.iter().filter(|e| Some(e.launch) == launch) {
                        let machine = match event.happened {
                            Happened::Ended(cause) => Machine::Ended { cause, lingering: true },
                            Happened::Paused => Machine::Paused,
                            Happened::Resumed => Machine::Running,
                            Happened::Reset => continue,
                        };
                        vm.observed = observe(vm.observed, Report { machine, launch: Some(event.launch) }, now);
                    }
                })
                .await?;
                let reset = |vm: &Vm| {
                    events.iter().any(|e| Some(e.launch) == vm.observed.launch && e.happened == Happened::Reset)
                };
                if let Some(vm) = vm.filter(reset) {
                    commit::push_vm(tx, "vm.reset", &vm, None, now);
                }
                Ok(())
            })
        })
        .await
}

async fn load(inner: &Inner, id: VmId) -> Result<Option<Record>, StoreError> {
    let whole = inner.store.read_one(move |tx| Box::pin(async move { tx.vms().whole(id).await })).await?;
    Ok(whole.map(|(vm, open, resources)| Record { vm, open, resources }))
}

/// Ends the operations of a VM whose backend is no longer configured.
async fn no_backend(inner: &Inner, record: &Record) -> Result<Next, StoreError> {
    let Some(operation) = record.open.first() else { return Ok(Next::Idle) };
    let error = OperationError {
        reason: "UNKNOWN_BACKEND".to_owned(),
        message: format!("backend {} is not configured any more", record.vm.backend),
        hint: "configure it again and repeat the request".to_owned(),
        field: String::new(),
    };
    end(inner, operation, &record.vm, Status::Failed, Some(error), |vm| vm.desired.power = vm.settled_power()).await?;
    Ok(Next::Again)
}

/// What an actor works with.
struct Hands<'a> {
    inner: &'a Arc<Inner>,
    inbox: &'a Inbox,
    backend: &'a dyn Backend,
    capabilities: &'a Capabilities,
}

impl Hands<'_> {
    /// Carries an operation out, as far as it goes.
    async fn carry_out(&self, mut operation: Operation, record: &Record) -> Result<Next, StoreError> {
        let inner = self.inner;
        let Record { vm, resources, .. } = record;
        let mut view = View::of(vm, resources);
        if operation.cancel_requested {
            return self.end_cancelled(&operation, vm, view).await;
        }
        if operation.attempt >= LOST_ATTEMPTS {
            let error = BackendError::permanent(
                "ATTEMPTS_EXHAUSTED",
                format!("begun {} times and never finished", operation.attempt),
            );
            return self.fail(&operation, vm, &view, error).await;
        }
        let goal = operation.goal.clone();
        let target = Target::of(&goal, vm.desired);
        let mut rebooted = !matches!(operation.goal, Goal::Reboot { .. });
        if !rebooted && !view.observed.machine.is_up() {
            let error =
                BackendError::permanent("WRONG_STATE", format!("the VM does not run; it is {}", view.observed.machine));
            return self.fail(&operation, vm, &view, error).await;
        }
        let next_act = |view: &View, rebooted: bool| match &goal {
            Goal::Reboot { grace_ms } if !rebooted && view.observed.machine == Machine::Running => {
                Some(Act::Reboot(grace_ms.map_or(Stop::Forced, |ms| Stop::Graceful(Duration::from_millis(ms)))))
            }
            _ => match plan(target, view.observed, view.leftovers, self.capabilities).first() {
                Some(step) => Some(Act::Step(*step)),
                None => wants_tools(&goal, view).then_some(Act::Install),
            },
        };
        let Some(mut act) = next_act(&view, rebooted) else {
            return self.succeed(&operation, vm, &view).await;
        };
        // The beginning is written while the first step is under way: the writer keeps the order, so
        // that it is durable before any resource that the step records.
        let mut begun = Box::pin(self.begin(operation.clone(), act));
        let mut begun = match futures::poll!(&mut begun) {
            Poll::Ready(began) => match began? {
                Some(begun) => {
                    operation = begun;
                    None
                }
                None => return Ok(Next::Again),
            },
            Poll::Pending => {
                // What is on its way to the record is not to be told a second time.
                operation.progress = act.progress();
                Some(begun)
            }
        };
        let mut resources = resources.clone();
        loop {
            // A cause is on record before what still tells of it is cleared away, and a machine that runs before
            // anybody looks for its guest.
            if matches!(act, Act::Step(Step::Clear) | Act::Install) && view.observed != vm.observed {
                self.write_view(&view, vm.id, Some(operation.id)).await?;
            }
            let outcome = self.attempt(vm, &resources, act, Some(&operation)).await;
            if let Some(begun) = begun.take() {
                match begun.await? {
                    Some(begun) => operation = begun,
                    // It was overtaken while the step ran; the next turn finds what the step has made.
                    None => return self.abandon(vm, view).await,
                }
            }
            match outcome {
                Outcome::Done(effect) => {
                    rebooted |= matches!(effect, Effect::Rebooted);
                    view.apply(effect, inner.seams.clock.now());
                }
                Outcome::Failed(error) => return self.failed(&operation, vm, view, error).await,
                Outcome::Interrupted => return self.interrupted(&operation, vm, view).await,
            }
            match next_act(&view, rebooted) {
                Some(next) => act = next,
                None => return self.succeed(&operation, vm, &view).await,
            }
            resources = resources_of(inner, vm.id).await?;
        }
    }

    /// What is to be done when nobody asks for anything.
    async fn settle(&self, record: &Record) -> Result<Next, StoreError> {
        let Record { vm, resources, .. } = record;
        let inner = self.inner;
        let now = inner.seams.clock.now();
        let view = View::of(vm, resources);
        let uncleared = !view.observed.machine.is_up()
            && (view.leftovers.of_launches || matches!(view.observed.machine, Machine::Ended { lingering: true, .. }));
        if uncleared {
            return self.unasked(vm, resources, Act::Step(Step::Clear), view).await;
        }
        if vm.desired.deleted {
            // The request to delete it was given up; the wish was not.
            let due = vm.updated_at.after(Duration::from_secs(30));
            if due > now {
                return Ok(Next::Rest(due));
            }
            inner.record_own(vm, Goal::Delete { grace_ms: None }).await?;
            return Ok(Next::Again);
        }
        if vm.expired(now) {
            tracing::info!(vm_id = %vm.id, "its time to live is over");
            let grace_ms = u64::try_from(inner.config.shutdown_grace.as_millis()).ok();
            inner.record_own(vm, Goal::Delete { grace_ms }).await?;
            return Ok(Next::Again);
        }
        match react(vm, now, jitter(&*inner.seams.rng)) {
            Reaction::None => {}
            Reaction::Settle(power) => {
                self.change(vm, move |vm| vm.desired.power = power).await?;
                return Ok(Next::Again);
            }
            Reaction::RestartAt(restarts) => {
                self.change(vm, move |vm| vm.restarts = restarts).await?;
                return Ok(Next::Again);
            }
            Reaction::RestartNow => {
                inner.record_own(vm, Goal::Boot).await?;
                return Ok(Next::Again);
            }
            Reaction::GiveUp(failure) => {
                self.change(vm, move |vm| {
                    vm.failure = Some(failure.clone());
                    vm.desired.power = Power::Stopped;
                })
                .await?;
                return Ok(Next::Again);
            }
        }
        if let (Some(due), Machine::Ended { .. }) = (vm.restarts.due, vm.observed.machine)
            && vm.desired.power != Power::Stopped
        {
            return Ok(Next::Rest(due));
        }
        self.reconcile(vm, resources, view).await
    }

    /// Brings a VM to what is wanted of it without a request under way.
    async fn reconcile(&self, vm: &Vm, resources: &[Resource], view: View) -> Result<Next, StoreError> {
        if vm.failure.is_some() {
            return Ok(Next::Idle);
        }
        let target = Target::reconciled(vm.desired);
        match plan(target, view.observed, view.leftovers, self.capabilities).first() {
            None => Ok(Next::Idle),
            // Starting is a thing that people want to find in the history.
            Some(Step::Launch | Step::Define) if vm.desired.power != Power::Stopped => {
                self.inner.record_own(vm, Goal::Boot).await?;
                Ok(Next::Again)
            }
            Some(Step::Resume) if self.rests_paused(&view) => {
                Ok(Next::Rest(view.observed.since.after(self.inner.config.reconcile_period)))
            }
            Some(step) => self.unasked(vm, resources, Act::Step(*step), view).await,
        }
    }

    /// A machine that stopped by itself (a full disk) is not pushed on at once: it would stop again.
    fn rests_paused(&self, view: &View) -> bool {
        self.inner.seams.clock.now() < view.observed.since.after(self.inner.config.reconcile_period)
    }

    /// Carries out an act that no operation stands behind.
    async fn unasked(&self, vm: &Vm, resources: &[Resource], act: Act, mut view: View) -> Result<Next, StoreError> {
        match self.attempt(vm, resources, act, None).await {
            Outcome::Done(effect) => {
                view.apply(effect, self.inner.seams.clock.now());
                self.write_view(&view, vm.id, None).await?;
                Ok(Next::Again)
            }
            Outcome::Interrupted => self.abandon(vm, view).await,
            Outcome::Failed(error) => {
                tracing::warn!(vm_id = %vm.id, backend = %vm.backend, error = %error, act = ?act, "could not be brought to what is wanted; trying again");
                if let Some(report) = look(self.inner, self.backend, vm).await {
                    view.take(report, self.inner.seams.clock.now());
                    self.write_view(&view, vm.id, None).await?;
                }
                Ok(Next::Rest(self.inner.seams.clock.now().after(REST)))
            }
        }
    }

    /// Carries out one act, until it ends, its time is over, or somebody wants something else.
    async fn attempt(&self, vm: &Vm, resources: &[Resource], act: Act, operation: Option<&Operation>) -> Outcome {
        let clock = &self.inner.seams.clock;
        let id = operation.map(|o| o.id);
        let mut turn = None;
        if act == Act::Step(Step::Launch) {
            let priority = operation.map_or_else(Default::default, |o| o.priority);
            turn = self.unless_interrupted(vm.id, id, self.inner.starts.turn(priority)).await;
            if turn.is_none() {
                return Outcome::Interrupted;
            }
        }
        let mut allowed = act.deadline();
        if let Some(deadline) = operation.and_then(|o| o.deadline) {
            allowed = allowed.min(deadline.since(clock.now()));
        }
        let work = async {
            let (tell, mut told) = watch::channel(act.progress());
            let mut work = Box::pin(perform(self.inner, self.backend, vm, resources, act, &tell));
            let mut over = clock.sleep(allowed);
            let mut quiet = clock.sleep(TELL_PROGRESS_AFTER);
            let mut untold = operation.filter(|o| o.progress != act.progress());
            loop {
                tokio::select! {
                    biased;
                    done = &mut work => return match done {
                        Ok(effect) => Outcome::Done(effect),
                        Err(error) => Outcome::Failed(error),
                    },
                    () = &mut over => {
                        return Outcome::Failed(BackendError::transient(
                            "STEP_TIMEOUT",
                            format!("{} took longer than {} s", act.progress().message, allowed.as_secs()),
                        ));
                    }
                    // The sender lives as long as this.
                    _ = told.changed(), if operation.is_some() && untold.is_none() => untold = operation,
                    () = &mut quiet, if untold.is_some() => {
                        quiet = clock.sleep(TELL_PROGRESS_AFTER);
                        if let Some(operation) = untold.take() {
                            let progress = told.borrow_and_update().clone();
                            self.tell_progress(operation, progress).await;
                        }
                    }
                }
            }
        };
        let outcome = self.unless_interrupted(vm.id, id, work).await.unwrap_or(Outcome::Interrupted);
        drop(turn);
        outcome
    }

    /// Runs the future, unless somebody wants something else meanwhile: then it is dropped where it was.
    async fn unless_interrupted<T>(
        &self,
        vm: VmId,
        operation: Option<OperationId>,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        let mut future = Box::pin(future);
        loop {
            tokio::select! {
                biased;
                done = &mut future => return Some(done),
                () = self.inbox.notify.notified() => {
                    if self.is_interrupted(vm, operation).await {
                        return None;
                    }
                }
            }
        }
    }

    /// Puts what is being done on record for those who watch; nothing depends on it.
    async fn tell_progress(&self, operation: &Operation, progress: Progress) {
        let now = self.inner.seams.clock.now();
        let seen = Arc::new((operation.clone(), progress));
        let told: Result<(), StoreError> = self
            .inner
            .store
            .write(move |tx| {
                let seen = Arc::clone(&seen);
                Box::pin(async move {
                    commit::change_open(tx, &seen.0, now, |operation| operation.progress = seen.1.clone()).await?;
                    Ok(())
                })
            })
            .await;
        if let Err(error) = told {
            tracing::debug!(operation_id = %operation.id, error = %error, "progress was not recorded");
        }
    }

    /// Whether what is being done has become pointless.
    async fn is_interrupted(&self, vm: VmId, operation: Option<OperationId>) -> bool {
        let read: Result<bool, StoreError> = self
            .inner
            .store
            .read(move |tx| {
                Box::pin(async move {
                    Ok(match operation {
                        Some(id) => {
                            tx.operations().get(id).await?.is_none_or(|o| o.status.is_final() || o.cancel_requested)
                        }
                        None => {
                            tx.operations().open_of(vm).await?.iter().any(|o| matches!(o.goal, Goal::Delete { .. }))
                        }
                    })
                })
            })
            .await;
        read.unwrap_or(false)
    }

    async fn begin(&self, operation: Operation, act: Act) -> Result<Option<Operation>, StoreError> {
        let claim = Claim { node: self.inner.node, epoch: self.inner.epoch, worker: operation.vm.to_string() };
        let (progress, now) = (act.progress(), self.inner.seams.clock.now());
        let all = Arc::new((operation, claim, progress));
        self.inner
            .store
            .write(move |tx| {
                let all = Arc::clone(&all);
                Box::pin(async move { commit::begin(tx, &all.0, &all.1, &all.2, now).await })
            })
            .await
    }

    async fn succeed(&self, operation: &Operation, vm: &Vm, view: &View) -> Result<Next, StoreError> {
        if matches!(operation.goal, Goal::Delete { .. }) {
            self.remove(operation, vm).await?;
            return Ok(Next::Idle);
        }
        let view = view.clone();
        let now = self.inner.seams.clock.now();
        end(self.inner, operation, vm, Status::Succeeded, None, move |vm| view.write_to(vm, now)).await?;
        Ok(Next::Again)
    }

    /// The VM is gone; so is its record.
    async fn remove(&self, operation: &Operation, vm: &Vm) -> Result<(), StoreError> {
        let inner = self.inner;
        let now = inner.seams.clock.now();
        let (operation, vm) = (Arc::new(operation.clone()), Arc::new(vm.clone()));
        let ended: Option<Operation> = inner
            .store
            .write(move |tx| {
                let (operation, vm) = (Arc::clone(&operation), Arc::clone(&vm));
                Box::pin(async move {
                    for resource in tx.resources().of(vm.id).await? {
                        tracing::error!(vm_id = %vm.id, resource = ?resource, "the backend left a resource on record");
                        tx.resources().forget(vm.id, resource.kind, &resource.key).await?;
                    }
                    tx.vms().remove(vm.id).await?;
                    commit::push_vm(tx, "vm.deleted", &vm, Some(operation.id), now);
                    commit::finish(tx, &operation, Status::Succeeded, None, now).await
                })
            })
            .await?;
        if let Some(ended) = ended {
            inner.waiters.end(&ended, None);
        }
        Ok(())
    }

    /// An attempt failed: again later, or not at all.
    async fn failed(
        &self,
        operation: &Operation,
        vm: &Vm,
        mut view: View,
        error: BackendError,
    ) -> Result<Next, StoreError> {
        let inner = self.inner;
        if let Some(report) = look(inner, self.backend, vm).await {
            view.take(report, inner.seams.clock.now());
        }
        let now = inner.seams.clock.now();
        tracing::warn!(vm_id = %vm.id, backend = %vm.backend, operation_id = %operation.id, error = %error, "an attempt failed");
        match operation.after_failure(error.is_transient(), now, jitter(&*inner.seams.rng)) {
            AfterFailure::GiveUp => self.fail(operation, vm, &view, error).await,
            AfterFailure::Retry(at) => {
                let (operation, vm) = (Arc::new(operation.clone()), Arc::new(vm.clone()));
                let error: OperationError = error.into();
                let written: Result<(), StoreError> = inner
                    .store
                    .write(move |tx| {
                        let (view, error) = (view.clone(), error.clone());
                        let (operation, vm) = (Arc::clone(&operation), Arc::clone(&vm));
                        Box::pin(async move {
                            commit::change_seen(tx, &vm, Some(operation.id), now, |vm| view.write_to(vm, now)).await?;
                            commit::change_open(tx, &operation, now, |operation| {
                                operation.status = Status::Pending;
                                operation.claim = None;
                                operation.run_after = at;
                                operation.error = Some(error.clone());
                            })
                            .await?;
                            Ok(())
                        })
                    })
                    .await;
                written?;
                Ok(Next::Again)
            }
        }
    }

    /// Gives the operation up. A VM that could not be made or started is FAILED.
    async fn fail(&self, operation: &Operation, vm: &Vm, view: &View, error: BackendError) -> Result<Next, StoreError> {
        let error: OperationError = error.into();
        let marks = matches!(operation.goal, Goal::Create { .. } | Goal::Boot) && !view.observed.machine.is_up();
        let failure = marks.then(|| Failure {
            reason: error.reason.clone(),
            message: error.message.clone(),
            at: self.inner.seams.clock.now(),
        });
        let (view, now) = (view.clone(), self.inner.seams.clock.now());
        end(self.inner, operation, vm, Status::Failed, Some(error), move |vm| {
            view.write_to(vm, now);
            vm.restarts.due = None;
            vm.desired.power = vm.settled_power();
            if failure.is_some() {
                vm.failure.clone_from(&failure);
            }
        })
        .await?;
        Ok(Next::Again)
    }

    /// The act was dropped because the operation ended meanwhile, or is to end.
    async fn interrupted(&self, operation: &Operation, vm: &Vm, view: View) -> Result<Next, StoreError> {
        let id = operation.id;
        let wanted: Option<Operation> =
            self.inner.store.read(move |tx| Box::pin(async move { tx.operations().get(id).await })).await?;
        match wanted {
            Some(operation) if !operation.status.is_final() => self.end_cancelled(&operation, vm, view).await,
            _ => self.abandon(vm, view).await,
        }
    }

    async fn end_cancelled(&self, operation: &Operation, vm: &Vm, mut view: View) -> Result<Next, StoreError> {
        if let Some(report) = look(self.inner, self.backend, vm).await {
            view.take(report, self.inner.seams.clock.now());
        }
        let now = self.inner.seams.clock.now();
        end(self.inner, operation, vm, Status::Cancelled, None, move |vm| {
            view.write_to(vm, now);
            vm.desired.power = vm.settled_power();
        })
        .await?;
        Ok(Next::Again)
    }

    /// Records what is there after an act was dropped; whoever comes next goes on from that.
    async fn abandon(&self, vm: &Vm, mut view: View) -> Result<Next, StoreError> {
        if let Some(report) = look(self.inner, self.backend, vm).await {
            view.take(report, self.inner.seams.clock.now());
        }
        self.write_view(&view, vm.id, None).await?;
        Ok(Next::Again)
    }

    async fn write_view(&self, view: &View, vm: VmId, operation: Option<OperationId>) -> Result<(), StoreError> {
        let (view, now) = (view.clone(), self.inner.seams.clock.now());
        self.inner
            .store
            .write(move |tx| {
                let view = view.clone();
                Box::pin(async move {
                    commit::change_vm(tx, vm, operation, now, |vm| view.write_to(vm, now)).await?;
                    Ok(())
                })
            })
            .await
    }

    /// Changes the record by a decision that nobody asked for, unless it is out of date: a request that
    /// came in since the record was read outranks it.
    async fn change(&self, seen: &Vm, change: impl Fn(&mut Vm) + Send + Sync + 'static) -> Result<(), StoreError> {
        let (change, now) = (Arc::new(change), self.inner.seams.clock.now());
        let (id, version) = (seen.id, seen.resource_version);
        self.inner
            .store
            .write(move |tx| {
                let change = Arc::clone(&change);
                Box::pin(async move {
                    if commit::is_as_seen(tx, id, version).await? {
                        commit::change_vm(tx, id, None, now, |vm| change(vm)).await?;
                    }
                    Ok(())
                })
            })
            .await
    }
}

/// Whether the operation is to see to the guest's tools once the machine runs.
fn wants_tools(goal: &Goal, view: &View) -> bool {
    let starts = matches!(goal, Goal::Create { power: Power::Running } | Goal::Boot);
    starts && view.observed.machine == Machine::Running && !view.has_tools
}

/// Ends an operation together with a change of its VM, and tells who waits for it.
async fn end(
    inner: &Inner,
    operation: &Operation,
    vm: &Vm,
    status: Status,
    error: Option<OperationError>,
    change: impl Fn(&mut Vm) + Send + Sync + 'static,
) -> Result<(), StoreError> {
    let now = inner.seams.clock.now();
    let seen = Arc::new((operation.clone(), vm.clone(), error, change));
    let (ended, vm): (Option<Operation>, Option<Vm>) = inner
        .store
        .write(move |tx| {
            let seen = Arc::clone(&seen);
            Box::pin(async move {
                let (operation, vm, error, change) = &*seen;
                let ended = commit::finish(tx, operation, status, error.as_ref(), now).await?;
                // Whoever ended it before has said what is wanted; what was seen is true all the same.
                let outranked = ended.is_none() || tx.operations().any_open_of(vm.id).await?;
                let vm = commit::change_seen(tx, vm, Some(operation.id), now, |vm| {
                    let (desired, failure) = (vm.desired, vm.failure.clone());
                    change(vm);
                    if outranked {
                        vm.desired = desired;
                        vm.failure = failure;
                    }
                })
                .await?;
                Ok::<_, StoreError>((ended, vm))
            })
        })
        .await?;
    if let Some(ended) = ended {
        inner.waiters.end(&ended, vm.as_ref());
    }
    Ok(())
}

async fn resources_of(inner: &Inner, vm: VmId) -> Result<Vec<Resource>, StoreError> {
    inner.store.read(move |tx| Box::pin(async move { tx.resources().of(vm).await })).await
}
