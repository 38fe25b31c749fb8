//! The backend over a simulated host: it records, asks the host, and lets faults strike between.
//!
//! It checks its caller as well: calls for one VM that overlap, foreign records and machines that
//! nobody recorded are the engine's bugs, and panic in debug builds.

use std::collections::BTreeMap;
use std::future::{pending, poll_fn};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;

use async_trait::async_trait;
use roost_backend::{
    Adoptee, AgentEndpoint, Backend, BackendError, Booted, ConsoleEndpoint, Definition, DiskMetrics, EventSender, Info,
    Journal, Metrics, NicMetrics,
};
use roost_model::observe::Report;
use roost_model::plan::Stop;
use roost_model::state::Machine;
use roost_model::{BackendName, Capabilities, Capability, ExitCause, LaunchId, Resource, ResourceKind, VmId};
use serde_json::json;

use crate::config::SimConfig;
use crate::faults::{Death, Fault, Method};
use crate::guest::Guest;
use crate::host::SimHost;
use crate::link::{Gate, Link, LocalLink};
use crate::remote::{RemoteLink, RemoteOptions};
use crate::request::{Found, HostError, Reply, Request, Sought, There};

/// The key of the record of a VM's definition on the host.
const DEFINITION: &str = "definition";
/// The key of the record of a VM's machine on the host.
const MACHINE: &str = "machine";
/// What a simulated machine is said to take of the host's memory.
const RSS_BYTES: u64 = 1 << 20;
/// A simulated machine is said to be busy one part in so many.
const CPU_TIME_SHARE: u64 = 100;

/// A backend whose machines are simulated.
#[derive(Debug)]
pub struct SimBackend {
    config: SimConfig,
    link: Link,
    under_way: Mutex<BTreeMap<VmId, Method>>,
    dead: AtomicBool,
}

/// A call under way; the next one for its VM may begin when this is dropped.
struct Call<'a> {
    backend: &'a SimBackend,
    vms: Vec<VmId>,
}

impl SimBackend {
    /// A backend over a host of its own in this process. [`SimBackend::host`] hands the host out, to act on
    /// machines and to outlive the backend.
    pub fn in_process(config: SimConfig, events: EventSender) -> Self {
        let host = SimHost::new(Arc::clone(&config.clock));
        Self::on(host, config, events)
    }

    /// A backend over a host that others have worked on and will: what a daemon is that was started
    /// again.
    pub fn on(host: Arc<SimHost>, config: SimConfig, events: EventSender) -> Self {
        let link = Link::Local(LocalLink::new(host, events, config.report_asked_ends));
        Self { config, link, under_way: Mutex::default(), dead: AtomicBool::new(false) }
    }

    /// A backend over the host process that listens at `socket`. Where nobody does and the configuration names
    /// a program, that is started; it outlives this process. Needs a tokio runtime around it.
    pub fn hosted(socket: impl Into<PathBuf>, config: SimConfig, events: EventSender) -> Self {
        let options = RemoteOptions {
            socket: socket.into(),
            binary: config.host_binary.clone(),
            report_asked_ends: config.report_asked_ends,
            clock: Arc::clone(&config.clock),
        };
        let link = Link::Remote(RemoteLink::new(options, events));
        Self { config, link, under_way: Mutex::default(), dead: AtomicBool::new(false) }
    }

    /// The host, where it is in this process.
    pub fn host(&self) -> Option<&Arc<SimHost>> {
        self.link.local()
    }

    /// Whether a fault has killed it.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Passes a numbered step: other tasks go first, then whatever fault there is strikes.
    async fn step(&self, method: Method, vm: Option<VmId>, step: u32) -> Result<Option<Machine>, BackendError> {
        if self.config.yields && self.link.local().is_some() {
            give_way().await;
        }
        self.strike(method, vm, step).await
    }

    async fn strike(&self, method: Method, vm: Option<VmId>, step: u32) -> Result<Option<Machine>, BackendError> {
        if self.is_dead() {
            pending::<()>().await;
        }
        match self.config.faults.strike(method, vm, step) {
            None => {}
            Some((Fault::Fail(error), _)) => return Err(error),
            Some((Fault::Lie(machine), _)) => return Ok(Some(machine)),
            Some((Fault::Slow(by), _)) => self.config.clock.sleep(by).await,
            Some((Fault::Hang, injected)) => injected.released().await,
            Some((Fault::Die, _)) => {
                self.dead.store(true, Ordering::Release);
                self.link.sever();
                self.config.faults.report(Death { method, vm, step });
            }
        }
        // It may have died while this call hung.
        if self.is_dead() {
            pending::<()>().await;
        }
        Ok(None)
    }

    fn enter(&self, method: Method, vms: Vec<VmId>) -> Call<'_> {
        let mut under_way = self.under_way();
        let other = vms.iter().find_map(|vm| Some((*vm, *under_way.get(vm)?)));
        if let Some((vm, other)) = other {
            drop(under_way);
            panic!("the caller broke the contract: {method:?} of {vm} came while {other:?} was under way");
        }
        under_way.extend(vms.iter().map(|vm| (*vm, method)));
        Call { backend: self, vms }
    }

    fn under_way(&self) -> MutexGuard<'_, BTreeMap<VmId, Method>> {
        self.under_way.lock().expect("no code panics while it holds this lock")
    }

    fn need(&self, capability: Capability) -> Result<(), BackendError> {
        if self.config.capabilities.has(capability) {
            return Ok(());
        }
        Err(BackendError::permanent("UNSUPPORTED_CAPABILITY", format!("backend {} has no {capability}", self.name())))
    }

    async fn ask(&self, request: Request) -> Result<Reply, BackendError> {
        let mut answer = pin!(self.link.ask(request));
        // What is under way when the backend dies does not go on either.
        poll_fn(|context| if self.is_dead() { Poll::Pending } else { answer.as_mut().poll(context) })
            .await
            .map_err(BackendError::from)
    }

    async fn there(&self, vm: VmId) -> Result<There, BackendError> {
        match self.ask(Request::Info { vm }).await? {
            Reply::There { there } => Ok(there),
            other => Err(odd(&other)),
        }
    }

    /// Clears the machine away and forgets what belongs to launches. With `method` for the faults.
    async fn clear_away(
        &self,
        method: Method,
        vm: VmId,
        resources: &[Resource],
        journal: &dyn Journal,
    ) -> Result<(), BackendError> {
        let mut of_launches = Vec::new();
        for resource in resources {
            if resource.kind != ResourceKind::Hosted {
                return Err(broken(format!("{vm} has a record of another backend: {resource:?}")));
            }
            if resource.launch.is_some() {
                of_launches.push(resource);
            }
        }
        self.ask(Request::Clear { vm, recorded: !of_launches.is_empty() }).await?;
        self.step(method, Some(vm), 1).await?;
        for resource in of_launches {
            journal.forget(resource.kind, &resource.key).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Backend for SimBackend {
    fn name(&self) -> &BackendName {
        &self.config.name
    }

    async fn ping(&self) -> Result<(), BackendError> {
        self.step(Method::Ping, None, 0).await?;
        self.ask(Request::Ping).await.map(|_| ())
    }

    async fn capabilities(&self) -> Result<Capabilities, BackendError> {
        self.step(Method::Capabilities, None, 0).await?;
        Ok(self.config.capabilities.clone())
    }

    async fn create(&self, vm: &Definition, journal: &dyn Journal) -> Result<(), BackendError> {
        let _call = self.enter(Method::Create, vec![vm.id]);
        self.step(Method::Create, Some(vm.id), 0).await?;
        self.check(vm)?;
        journal.record(definition_record()).await?;
        self.step(Method::Create, Some(vm.id), 1).await?;
        self.ask(Request::Define { vm: vm.id, guest: Guest::of(&vm.spec) }).await?;
        self.step(Method::Create, Some(vm.id), 2).await?;
        Ok(())
    }

    async fn boot(&self, vm: &Definition, launch: LaunchId, journal: &dyn Journal) -> Result<Booted, BackendError> {
        let _call = self.enter(Method::Boot, vec![vm.id]);
        self.step(Method::Boot, Some(vm.id), 0).await?;
        self.check(vm)?;
        let there = self.there(vm.id).await?;
        match there.found.machine {
            Machine::Absent => return Err(HostError::NotDefined { vm: vm.id }.into()),
            Machine::Defined if !there.gated => {}
            machine => {
                let is = machine.to_string();
                let wanted = "a VM has one machine at a time".to_owned();
                return Err(HostError::WrongState { vm: vm.id, is, wanted }.into());
            }
        }
        // The spec may have changed since the VM was defined.
        self.ask(Request::Define { vm: vm.id, guest: Guest::of(&vm.spec) }).await?;
        journal.record(machine_record(launch, false)).await?;
        self.step(Method::Boot, Some(vm.id), 1).await?;
        let gate = Gate::new(&self.link, vm.id, launch);
        self.ask(Request::Prepare { vm: vm.id, launch }).await?;
        self.step(Method::Boot, Some(vm.id), 2).await?;
        journal.record(machine_record(launch, true)).await?;
        self.step(Method::Boot, Some(vm.id), 3).await?;
        self.ask(Request::Release { vm: vm.id, launch }).await?;
        gate.opened();
        self.step(Method::Boot, Some(vm.id), 4).await?;
        Ok(Booted { accelerator: "simulated: nothing is computed".to_owned() })
    }

    async fn shutdown(&self, vm: VmId, stop: Stop) -> Result<ExitCause, BackendError> {
        let _call = self.enter(Method::Shutdown, vec![vm]);
        self.step(Method::Shutdown, Some(vm), 0).await?;
        if stop != Stop::Forced {
            self.need(Capability::GracefulShutdown)?;
        }
        let reply = self.ask(Request::Shutdown { vm, grace_ms: grace_ms(stop) }).await?;
        self.step(Method::Shutdown, Some(vm), 1).await?;
        match reply {
            Reply::Ended { cause } => Ok(cause),
            other => Err(odd(&other)),
        }
    }

    async fn pause(&self, vm: VmId) -> Result<(), BackendError> {
        let _call = self.enter(Method::Pause, vec![vm]);
        self.step(Method::Pause, Some(vm), 0).await?;
        self.need(Capability::Pause)?;
        self.ask(Request::Pause { vm }).await?;
        self.step(Method::Pause, Some(vm), 1).await?;
        Ok(())
    }

    async fn resume(&self, vm: VmId) -> Result<(), BackendError> {
        let _call = self.enter(Method::Resume, vec![vm]);
        self.step(Method::Resume, Some(vm), 0).await?;
        self.need(Capability::Pause)?;
        self.ask(Request::Resume { vm }).await?;
        self.step(Method::Resume, Some(vm), 1).await?;
        Ok(())
    }

    async fn reboot(&self, vm: VmId, stop: Stop) -> Result<(), BackendError> {
        let _call = self.enter(Method::Reboot, vec![vm]);
        self.step(Method::Reboot, Some(vm), 0).await?;
        self.need(Capability::Reboot)?;
        self.ask(Request::Reboot { vm, grace_ms: grace_ms(stop) }).await?;
        self.step(Method::Reboot, Some(vm), 1).await?;
        Ok(())
    }

    async fn info(&self, vm: VmId) -> Result<Info, BackendError> {
        let lie = self.step(Method::Info, Some(vm), 0).await?;
        let there = self.there(vm).await?;
        let report = Report { machine: lie.unwrap_or(there.found.machine), launch: there.found.launch };
        let details = BTreeMap::from([
            ("accelerator".to_owned(), "simulated".to_owned()),
            ("resets".to_owned(), there.resets.to_string()),
        ]);
        Ok(Info { report, metrics: there.found.machine.is_up().then(|| metrics(there)), details })
    }

    async fn adopt(&self, vms: Vec<Adoptee>) -> Vec<Result<Report, BackendError>> {
        let _call = self.enter(Method::Adopt, vms.iter().map(|a| a.definition.id).collect());
        if self.config.yields && self.link.local().is_some() {
            give_way().await;
        }
        let can = self.need(Capability::Adopt);
        let mut lies = Vec::with_capacity(vms.len());
        let mut sought = Vec::with_capacity(vms.len());
        for adoptee in &vms {
            let struck = match &can {
                Ok(()) => self.strike(Method::Adopt, Some(adoptee.definition.id), 0).await,
                Err(error) => Err(error.clone()),
            };
            if struck.is_ok() {
                sought.push(sought_by(adoptee));
            }
            lies.push(struck);
        }
        let found = match self.ask(Request::Adopt { vms: sought }).await {
            Ok(Reply::Found { found }) => Ok(found),
            Ok(other) => Err(odd(&other)),
            Err(error) => Err(error),
        };
        let mut found = found.map(|f| f.into_iter());
        let report = |struck: Result<Option<Machine>, BackendError>| {
            let lie = struck?;
            let found = found.as_mut().map_err(|e| e.clone())?;
            let Found { machine, launch } = found.next().ok_or_else(|| broken("the host's answer is short"))?;
            Ok(Report { machine: lie.unwrap_or(machine), launch })
        };
        lies.into_iter().map(report).collect()
    }

    async fn clear(&self, vm: VmId, resources: &[Resource], journal: &dyn Journal) -> Result<(), BackendError> {
        let _call = self.enter(Method::Clear, vec![vm]);
        self.step(Method::Clear, Some(vm), 0).await?;
        self.clear_away(Method::Clear, vm, resources, journal).await?;
        self.step(Method::Clear, Some(vm), 2).await?;
        Ok(())
    }

    async fn delete(&self, vm: VmId, resources: &[Resource], journal: &dyn Journal) -> Result<(), BackendError> {
        let _call = self.enter(Method::Delete, vec![vm]);
        self.step(Method::Delete, Some(vm), 0).await?;
        self.clear_away(Method::Delete, vm, resources, journal).await?;
        self.ask(Request::Remove { vm }).await?;
        self.step(Method::Delete, Some(vm), 2).await?;
        for resource in resources.iter().filter(|r| r.launch.is_none()) {
            journal.forget(resource.kind, &resource.key).await?;
        }
        self.step(Method::Delete, Some(vm), 3).await?;
        Ok(())
    }

    async fn agent(&self, vm: VmId) -> Result<AgentEndpoint, BackendError> {
        self.step(Method::Agent, Some(vm), 0).await?;
        self.need(Capability::AgentChannel)?;
        Ok(AgentEndpoint::default())
    }

    async fn console(&self, vm: VmId) -> Result<ConsoleEndpoint, BackendError> {
        self.step(Method::Console, Some(vm), 0).await?;
        self.need(Capability::SerialConsole)?;
        Ok(ConsoleEndpoint { socket: None, log_dir: self.config.log_dir.join(vm.uuid().to_string()) })
    }
}

impl SimBackend {
    fn check(&self, vm: &Definition) -> Result<(), BackendError> {
        if let Err(invalid) = vm.spec.check() {
            return Err(broken(format!("{} has a spec that was not checked: {invalid}", vm.id)));
        }
        match self.config.capabilities.lacking(&vm.spec) {
            Some(capability) => self.need(capability),
            None => Ok(()),
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut under_way = self.backend.under_way();
        for vm in &self.vms {
            under_way.remove(vm);
        }
    }
}

impl From<HostError> for BackendError {
    fn from(error: HostError) -> Self {
        let message = error.to_string();
        match error {
            HostError::NoMachine { .. } => BackendError::not_found(message),
            HostError::NotDefined { .. } => BackendError::permanent("NOT_DEFINED", message),
            HostError::WrongState { .. } => BackendError::permanent("WRONG_STATE", message),
            HostError::Unrecorded { .. } => broken(message),
            HostError::NotAdopted { .. } => BackendError::transient("NOT_ADOPTED", message),
            HostError::Gone { .. } => BackendError::transient("SIMHOST_UNREACHABLE", message),
        }
    }
}

fn sought_by(adoptee: &Adoptee) -> Sought {
    let of = |key: &str| adoptee.resources.iter().find(|r| r.kind == ResourceKind::Hosted && r.key == key);
    // A record that is no more than an intent belongs to a machine that never left its gate.
    let made = of(MACHINE).filter(|r| r.detail["made"] == true);
    Sought {
        vm: adoptee.definition.id,
        guest: Guest::of(&adoptee.definition.spec),
        defined: of(DEFINITION).is_some(),
        launch: made.and_then(|r| r.launch),
    }
}

fn definition_record() -> Resource {
    Resource { kind: ResourceKind::Hosted, key: DEFINITION.to_owned(), launch: None, detail: json!({}) }
}

fn machine_record(launch: LaunchId, made: bool) -> Resource {
    let detail = json!({ "made": made });
    Resource { kind: ResourceKind::Hosted, key: MACHINE.to_owned(), launch: Some(launch), detail }
}

fn metrics(there: There) -> Metrics {
    Metrics {
        cpu_time_ns: there.uptime_ms.saturating_mul(1_000_000) / CPU_TIME_SHARE,
        memory_rss_bytes: RSS_BYTES,
        uptime_ms: there.uptime_ms,
        disks: there.guest.disks.into_iter().map(|id| DiskMetrics { id, ..DiskMetrics::default() }).collect(),
        nics: there.guest.nics.into_iter().map(|id| NicMetrics { id, ..NicMetrics::default() }).collect(),
    }
}

fn grace_ms(stop: Stop) -> Option<u64> {
    match stop {
        Stop::Forced => None,
        Stop::Graceful(grace) => Some(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// The caller broke the contract: an error in a release build, a panic where it is tested.
fn broken(what: impl Into<String>) -> BackendError {
    let what = what.into();
    if cfg!(debug_assertions) {
        panic!("the caller broke the contract: {what}");
    }
    BackendError::permanent("CONTRACT_BROKEN", what)
}

/// An answer that does not fit its request: host and backend are of different versions.
fn odd(reply: &Reply) -> BackendError {
    BackendError::permanent(
        "SIMHOST_ANSWER",
        format!("the simulator's host gave an answer that does not fit: {reply:?}"),
    )
}

/// Lets every other task of the executor go first, once.
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
