//! What the checks work with: a backend with its events, VMs with their records, and the cleaning up
//! after each check, which is a check itself.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use roost_model::observe::Report;
use roost_model::plan::Stop;
use roost_model::state::Machine;
use roost_model::{Capabilities, ExitCause, LaunchId, Resource, ResourceKind, VmId};

use super::harness::{Act, GuestKind, Harness, Scale, Subject};
use super::{Failure, Held, Outcome};
use crate::{
    Adoptee, Backend, BackendError, Definition, Event, EventReceiver, Happened, Journal, JournalError, MemoryJournal,
    events,
};

/// The result of one step of a check; the text says what was seen instead of what should have been.
pub(super) type Seen<T = ()> = Result<T, String>;

/// Fails the check unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(super) use ensure;

/// One check's world.
pub(super) struct Stage<'h> {
    pub(super) harness: &'h dyn Harness,
    pub(super) scale: Scale,
    pub(super) capabilities: Capabilities,
    backend: Option<Box<dyn Backend>>,
    events: EventReceiver,
    /// Events that came while others were waited for.
    untaken: VecDeque<Event>,
    vms: Vec<Arc<StagedVm>>,
}

/// A VM of a check with its record, which outlives the backends.
pub(super) struct StagedVm {
    pub(super) definition: Definition,
    pub(super) journal: TestJournal,
    launch: Mutex<Option<LaunchId>>,
}

/// A journal that gives way at every write, so that a call can be dropped there, and that fails when
/// it is told to.
#[derive(Debug)]
pub(super) struct TestJournal {
    inner: MemoryJournal,
    records_until_failure: AtomicUsize,
    forgets_until_failure: AtomicUsize,
    failures: AtomicUsize,
}

/// Runs a check and cleans up after it. `wants` may skip it.
pub(super) async fn conduct(
    obligation: &'static str,
    harness: &dyn Harness,
    wants: impl FnOnce(&Stage<'_>) -> Result<(), String>,
    check: impl AsyncFnOnce(&mut Stage<'_>) -> Seen,
) -> Outcome {
    let fail = |what| Failure { obligation, what };
    let mut stage = Stage::set(harness).await.map_err(fail)?;
    if let Err(why) = wants(&stage) {
        return Ok(Held::Skipped(why));
    }
    let checked = check(&mut stage).await;
    let cleaned = stage.clean_up().await;
    checked.map_err(fail)?;
    cleaned.map_err(|what| fail(format!("afterwards: {what}")))?;
    Ok(Held::Kept)
}

/// Nothing special is needed.
pub(super) fn always(_: &Stage<'_>) -> Result<(), String> {
    Ok(())
}

impl<'h> Stage<'h> {
    async fn set(harness: &'h dyn Harness) -> Seen<Self> {
        let (tx, rx) = events();
        let scale = harness.scale();
        let backend = harness.backend(tx).await;
        let capabilities = within(scale.patience, "capabilities", backend.capabilities()).await?;
        let capabilities = capabilities.map_err(|e| format!("capabilities failed: {}", told(&e)))?;
        Ok(Self {
            harness,
            scale,
            capabilities,
            backend: Some(backend),
            events: rx,
            untaken: VecDeque::new(),
            vms: Vec::new(),
        })
    }

    /// The backend that lives now.
    pub(super) fn backend(&self) -> &dyn Backend {
        self.backend.as_deref().expect("a check that lets the daemon die starts it again before it acts")
    }

    /// A new VM, to be deleted when the check is over.
    pub(super) fn vm(&mut self, guest: GuestKind) -> Arc<StagedVm> {
        let vm = Arc::new(StagedVm {
            definition: self.harness.definition(guest),
            journal: TestJournal::default(),
            launch: Mutex::new(None),
        });
        self.vms.push(Arc::clone(&vm));
        vm
    }

    /// A new VM that is created.
    pub(super) async fn created(&mut self, guest: GuestKind) -> Seen<Arc<StagedVm>> {
        let vm = self.vm(guest);
        self.create(&vm).await?;
        Ok(vm)
    }

    /// A new VM that runs.
    pub(super) async fn running(&mut self, guest: GuestKind) -> Seen<(Arc<StagedVm>, LaunchId)> {
        let vm = self.created(guest).await?;
        let launch = self.boot(&vm).await?;
        Ok((vm, launch))
    }

    pub(super) async fn create(&self, vm: &StagedVm) -> Seen {
        self.call("create", self.backend().create(&vm.definition, &vm.journal)).await
    }

    /// Boots it as a new launch.
    pub(super) async fn boot(&self, vm: &StagedVm) -> Seen<LaunchId> {
        let launch = vm.next_launch();
        let booted = self.call("boot", self.backend().boot(&vm.definition, launch, &vm.journal)).await?;
        ensure!(!booted.accelerator.is_empty(), "boot does not say how guest instructions run");
        Ok(launch)
    }

    pub(super) async fn shutdown(&self, vm: &StagedVm, stop: Stop) -> Seen<ExitCause> {
        self.call("shutdown", self.backend().shutdown(vm.id(), stop)).await
    }

    pub(super) async fn pause(&self, vm: &StagedVm) -> Seen {
        self.call("pause", self.backend().pause(vm.id())).await
    }

    pub(super) async fn resume(&self, vm: &StagedVm) -> Seen {
        self.call("resume", self.backend().resume(vm.id())).await
    }

    pub(super) async fn reboot(&self, vm: &StagedVm, stop: Stop) -> Seen {
        self.call("reboot", self.backend().reboot(vm.id(), stop)).await
    }

    pub(super) async fn clear(&self, vm: &StagedVm) -> Seen {
        let resources = vm.resources();
        self.call("clear", self.backend().clear(vm.id(), &resources, &vm.journal)).await?;
        let left: Vec<_> = vm.resources().into_iter().filter(|r| r.launch.is_some()).collect();
        ensure!(left.is_empty(), "clear left records of launches: {left:?}");
        Ok(())
    }

    pub(super) async fn delete(&self, vm: &StagedVm) -> Seen {
        let resources = vm.resources();
        self.call("delete", self.backend().delete(vm.id(), &resources, &vm.journal)).await
    }

    /// What `info` says is there. A VM that is gone may be an error or `Absent`.
    pub(super) async fn look(&self, vm: &StagedVm) -> Seen<Report> {
        let info = within(self.scale.patience, "info", self.backend().info(vm.id())).await?;
        match info {
            Ok(info) => {
                let up = info.report.machine.is_up();
                ensure!(
                    up == info.metrics.is_some(),
                    "info of a {} machine has metrics: {:?}",
                    info.report.machine,
                    info.metrics
                );
                Ok(info.report)
            }
            Err(error) if error.kind == crate::ErrorKind::NotFound => {
                Ok(Report { machine: Machine::Absent, launch: None })
            }
            Err(error) => Err(format!("info failed: {}", told(&error))),
        }
    }

    /// Checks that `info` says this.
    pub(super) async fn expect(&self, vm: &StagedVm, machine: Machine, when: &str) -> Seen<Report> {
        let report = self.look(vm).await?;
        ensure!(report.machine == machine, "{when}, info says {:?}, not {machine:?}", report.machine);
        if machine.is_up() {
            ensure!(report.launch == vm.launch(), "{when}, info names {:?}, not {:?}", report.launch, vm.launch());
        }
        Ok(report)
    }

    /// Checks that `info` says that it ended so.
    pub(super) async fn expect_ended(&self, vm: &StagedVm, cause: ExitCause, when: &str) -> Seen {
        match self.look(vm).await?.machine {
            Machine::Ended { cause: seen, .. } if seen == cause => Ok(()),
            other => Err(format!("{when}, info says {other:?}, not that it ended by {cause}")),
        }
    }

    /// Waits until the guest can be made to act.
    pub(super) async fn guest_up(&self, vm: &StagedVm) -> Seen {
        let up = within(self.scale.patience, "the guest", self.harness.guest_up(&vm.subject()?)).await?;
        up.map_err(|e| format!("the harness's guest did not come up: {e}"))
    }

    /// Acts on the machine from outside.
    pub(super) async fn act(&self, vm: &StagedVm, act: Act) -> Seen {
        let acted = within(self.scale.patience, "the harness", self.harness.act(act, &vm.subject()?)).await?;
        acted.map_err(|e| format!("the harness could not do {act:?}: {e}"))
    }

    /// The next event of this VM that is not a reset.
    pub(super) async fn next_event(&mut self, vm: &StagedVm) -> Seen<Event> {
        let fits = |event: &Event| event.vm == vm.id() && event.happened != Happened::Reset;
        if let Some(i) = self.untaken.iter().position(fits) {
            return Ok(self.untaken.remove(i).expect("the position was found just now"));
        }
        let (events, untaken) = (&mut self.events, &mut self.untaken);
        let next = async {
            loop {
                match events.recv().await {
                    Some(event) if fits(&event) => return Ok(event),
                    Some(event) => untaken.push_back(event),
                    None => return Err("the backend hung up its events".to_owned()),
                }
            }
        };
        within(self.scale.patience, "the event", next).await?
    }

    /// The daemon dies. Answers with the events that nobody had taken from it.
    pub(super) async fn die(&mut self) -> Seen<Vec<Event>> {
        self.backend = None;
        let (events, mut rest) = (&mut self.events, Vec::from(std::mem::take(&mut self.untaken)));
        let drain = async {
            while let Some(event) = events.recv().await {
                rest.push(event);
            }
            rest
        };
        within(self.scale.patience, "the end of the events of a dropped backend", drain).await
    }

    /// The daemon starts again. Nothing is adopted yet.
    pub(super) async fn start(&mut self) {
        self.backend = None;
        let (tx, rx) = events();
        self.events = rx;
        self.untaken.clear();
        self.backend = Some(self.harness.backend(tx).await);
    }

    /// The daemon dies and starts again. Nothing is adopted yet.
    pub(super) async fn restart(&mut self) -> Seen {
        self.die().await?;
        self.start().await;
        Ok(())
    }

    /// Has these VMs adopted.
    pub(super) async fn adopt(&self, vms: &[&StagedVm]) -> Seen<Vec<Report>> {
        let adoptees: Vec<Adoptee> = vms.iter().map(|vm| vm.adoptee()).collect();
        let reports = within(self.scale.patience, "adopt", self.backend().adopt(adoptees)).await?;
        ensure!(reports.len() == vms.len(), "adopt of {} VMs gave {} answers", vms.len(), reports.len());
        reports.into_iter().map(|r| r.map_err(|e| format!("adopt failed: {}", told(&e)))).collect()
    }

    /// Has one VM adopted.
    pub(super) async fn adopt_one(&self, vm: &StagedVm) -> Seen<Report> {
        Ok(self.adopt(&[vm]).await?.remove(0))
    }

    /// Checks that nothing of the VM is on the host or on record.
    pub(super) async fn expect_nothing_left(&self, vm: &StagedVm) -> Seen {
        let left = self.harness.leftovers(vm.id()).await;
        ensure!(left.is_empty(), "left on the host: {left:?}");
        let recorded = vm.resources();
        ensure!(recorded.is_empty(), "left on record: {recorded:?}");
        Ok(())
    }

    pub(super) async fn call<T>(&self, method: &str, call: impl Future<Output = Result<T, BackendError>>) -> Seen<T> {
        within(self.scale.patience, method, call).await?.map_err(|e| format!("{method} failed: {}", told(&e)))
    }

    /// Waits for a call that has to fail.
    pub(super) async fn refused<T>(
        &self,
        method: &str,
        call: impl Future<Output = Result<T, BackendError>>,
    ) -> Seen<BackendError> {
        match within(self.scale.patience, method, call).await? {
            Ok(_) => Err(format!("{method} succeeded")),
            Err(error) => Ok(error),
        }
    }

    /// A daemon that has adopted nothing deletes everything by the records alone.
    async fn clean_up(mut self) -> Seen {
        self.backend = None;
        self.start().await;
        let mut first = Ok(());
        for vm in std::mem::take(&mut self.vms) {
            vm.journal.heal();
            let deleted = self.delete(&vm).await;
            let clean = match deleted {
                Ok(()) => self.expect_nothing_left(&vm).await,
                failed => failed,
            };
            if first.is_ok() {
                first = clean;
            }
        }
        first
    }
}

impl StagedVm {
    pub(super) fn id(&self) -> VmId {
        self.definition.id
    }

    /// The launch that was begun last.
    pub(super) fn launch(&self) -> Option<LaunchId> {
        *self.launch.lock().expect("no code panics while it holds this lock")
    }

    /// The next launch's ID, from now on the VM's last.
    pub(super) fn next_launch(&self) -> LaunchId {
        let launch = new_launch();
        *self.launch.lock().expect("no code panics while it holds this lock") = Some(launch);
        launch
    }

    pub(super) fn resources(&self) -> Vec<Resource> {
        self.journal.inner.resources()
    }

    pub(super) fn adoptee(&self) -> Adoptee {
        Adoptee { definition: self.definition.clone(), launch: self.launch(), resources: self.resources() }
    }

    fn subject(&self) -> Seen<Subject> {
        let launch = self.launch().ok_or("the check acts on a machine that it never launched")?;
        Ok(Subject { definition: self.definition.clone(), launch, resources: self.resources() })
    }
}

impl TestJournal {
    /// The write number `n` of a record, counted from 0, fails, and so do all after it.
    pub(super) fn fail_records_from(&self, n: usize) {
        self.records_until_failure.store(n, Ordering::Relaxed);
    }

    /// The same for what is to be forgotten.
    pub(super) fn fail_forgets_from(&self, n: usize) {
        self.forgets_until_failure.store(n, Ordering::Relaxed);
    }

    /// Fails no more.
    pub(super) fn heal(&self) {
        self.fail_records_from(usize::MAX);
        self.fail_forgets_from(usize::MAX);
        self.failures.store(0, Ordering::Relaxed);
    }

    /// How many writes have failed since it was healed.
    pub(super) fn failures(&self) -> usize {
        self.failures.load(Ordering::Relaxed)
    }

    async fn write(&self, left: &AtomicUsize) -> Result<(), JournalError> {
        give_way().await;
        let before = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| match n {
            usize::MAX => None,
            n => Some(n.saturating_sub(1)),
        });
        if before == Ok(0) {
            self.failures.fetch_add(1, Ordering::Relaxed);
            return Err(JournalError("the test's disk is full".to_owned()));
        }
        Ok(())
    }
}

impl Default for TestJournal {
    fn default() -> Self {
        Self {
            inner: MemoryJournal::default(),
            records_until_failure: AtomicUsize::new(usize::MAX),
            forgets_until_failure: AtomicUsize::new(usize::MAX),
            failures: AtomicUsize::new(0),
        }
    }
}

#[async_trait]
impl Journal for TestJournal {
    async fn record(&self, resource: Resource) -> Result<(), JournalError> {
        self.write(&self.records_until_failure).await?;
        self.inner.record(resource).await?;
        // Dropped here, the record is written and its caller never hears of it.
        give_way().await;
        Ok(())
    }

    async fn forget(&self, kind: ResourceKind, key: &str) -> Result<(), JournalError> {
        self.write(&self.forgets_until_failure).await?;
        self.inner.forget(kind, key).await?;
        give_way().await;
        Ok(())
    }
}

/// Polls the call at most `polls` times, whenever it asks for it and no longer than `at_most`, and then
/// drops it: `None`.
pub(super) async fn cut<T>(polls: usize, at_most: Duration, call: impl Future<Output = T>) -> Option<T> {
    let mut call = pin!(call);
    let mut left = polls;
    let polled = poll_fn(|context| {
        left = left.saturating_sub(1);
        match call.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    });
    tokio::time::timeout(at_most, polled).await.unwrap_or(None)
}

/// The points at which calls are dropped: each of the first ones, then ever fewer.
pub(super) fn cut_points(scale: Scale) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), |n| Some(n + 1 + n / 8)).take(scale.cuts)
}

/// Waits, but not for ever.
pub(super) async fn within<T>(patience: Duration, what: &str, future: impl Future<Output = T>) -> Seen<T> {
    tokio::time::timeout(patience, future).await.map_err(|_| format!("{what} did not come within {patience:?}"))
}

/// An error as a failure shows it.
pub(super) fn told(error: &BackendError) -> String {
    format!("{} ({:?}): {error}", error.reason, error.kind)
}

async fn give_way() {
    let mut given = false;
    poll_fn(|context| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// An ID that no launch of any run has had: of this moment, this process, and the next number in it.
pub(super) fn new_launch() -> LaunchId {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut random = [0; 10];
    random[..4].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    random[4..8].copy_from_slice(&std::process::id().to_be_bytes());
    random[8..].copy_from_slice(&now.subsec_micros().to_be_bytes()[2..]);
    LaunchId::from_parts(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), random)
}
