//! The trait's methods, and what is known of each VM.
//!
//! A VM has one turn: `boot`, `adopt`, `clear` and `delete` take it in order, and what they do on
//! another thread keeps it until that is done. So `clear` after a dropped `boot` begins when nothing
//! of that boot is under way any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use roost_backend::{
    Adoptee, AgentEndpoint, Backend, BackendError, Booted, ConsoleEndpoint, Definition, EventSender, Info, Journal,
};
use roost_host::dirs::ensure_private_dir;
use roost_host::fault::{self, Point};
use roost_host::launch::find_program;
use roost_host::process::Process;
use roost_model::observe::Report;
use roost_model::plan::Stop;
use roost_model::spec::Backing;
use roost_model::{BackendName, Capabilities, ExitCause, LaunchId, Machine as Observed, Resource, VmId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::accel::{self, Choice, Verdict};
use crate::args::{self, Plan};
use crate::config::{CONSOLE_DIR, CONSOLE_SOCKET, QEMU_LOG, QemuConfig};
use crate::exits::Exits;
use crate::launch::{self, Order};
use crate::machine::{Identity, Machine, greet, wrong_state};
use crate::probe::{Binary, Probe};
use crate::qmp::QmpError;
use crate::record::{LaunchRecord, directory};
use crate::{adopt, clear, files, info, log};

/// Machines that are adopted at the same time.
const ADOPTED_AT_ONCE: usize = 64;
/// How long a QEMU that closed its control connection may take to end.
const LAST_GASP: Duration = Duration::from_secs(2);

/// QEMU as a backend. Dropping it leaves every machine running, to be adopted by the next one.
#[derive(Debug)]
pub struct QemuBackend {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: QemuConfig,
    events: EventSender,
    exits: Exits,
    vms: Mutex<HashMap<VmId, Entry>>,
    tools: Mutex<Option<Arc<Tools>>>,
}

/// What is known of one VM.
#[derive(Debug)]
struct Entry {
    turn: Arc<Semaphore>,
    machine: Option<Arc<Machine>>,
    /// Released, and not known to have come up.
    starting: Option<(LaunchId, Process)>,
    /// How its last machine ended, where that is not the machine's to tell any more.
    ended: Option<Report>,
}

impl Default for Entry {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), machine: None, starting: None, ended: None }
    }
}

/// A VM's turn. Shared with what runs on other threads.
type Turn = Arc<OwnedSemaphorePermit>;

/// What works here.
#[derive(Debug)]
struct Tools {
    probe: Probe,
    verdict: Verdict,
}

/// Runs what blocks where it may, to its end even when nobody waits for it any more.
pub(crate) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackendError> + Send + 'static,
) -> Result<T, BackendError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(BackendError::transient("STOPPING", "the daemon is stopping")),
        },
    }
}

impl QemuBackend {
    /// Sets it up; nothing is looked at yet. Needs a tokio runtime around it. Events of all machines
    /// go to `events`.
    ///
    /// # Errors
    /// A path of the configuration cannot be used, or the host has no thread to spare.
    pub fn new(config: QemuConfig, events: EventSender) -> Result<Self, BackendError> {
        for (key, path) in [
            ("run_dir", &config.run_dir),
            ("state_dir", &config.state_dir),
            ("cache_dir", &config.cache_dir),
            ("console_binary", &config.console_binary),
        ] {
            // Records hold paths as text.
            if !path.is_absolute() || path.to_str().is_none() {
                let message = format!("qemu.{key} is {path:?}: an absolute path in UTF-8 is permitted");
                return Err(BackendError::permanent("BAD_CONFIGURATION", message));
            }
        }
        let exits = Exits::start()?;
        let shared = Shared { config, events, exits, vms: Mutex::default(), tools: Mutex::default() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Probed once for each binary.
    async fn tools(&self) -> Result<Arc<Tools>, BackendError> {
        let Shared { config, exits, tools, .. } = &*self.shared;
        let binary = Binary::find(&config.binary)?;
        let known = lock(tools).clone();
        if let Some(known) = known.filter(|known| known.probe.binary == binary) {
            return Ok(known);
        }
        let probe = Probe::of(binary, config, exits).await?;
        let verdict = accel::verdict(&probe, config, exits).await;
        let found = Arc::new(Tools { probe, verdict });
        *lock(tools) = Some(Arc::clone(&found));
        Ok(found)
    }

    async fn turn(&self, vm: VmId) -> Turn {
        let turn = Arc::clone(&lock(&self.shared.vms).entry(vm).or_default().turn);
        Arc::new(turn.acquire_owned().await.expect("nobody closes a VM's turn"))
    }

    fn machine(&self, vm: VmId) -> Option<Arc<Machine>> {
        lock(&self.shared.vms).get(&vm).and_then(|entry| entry.machine.clone())
    }

    /// The machine to act on, or why there is none.
    fn living(&self, vm: VmId, action: &str) -> Result<Arc<Machine>, BackendError> {
        self.machine(vm).ok_or_else(|| match self.at_rest(vm).machine {
            Observed::Absent => unknown(vm),
            machine => wrong_state(action, machine),
        })
    }

    /// What there is of a VM that has no machine.
    fn at_rest(&self, vm: VmId) -> Report {
        let ended = lock(&self.shared.vms).get(&vm).and_then(|entry| entry.ended);
        let has_files = self.shared.config.vm_state_dir(vm).is_dir();
        match ended {
            _ if !has_files => Report { machine: Observed::Absent, launch: None },
            Some(report) => report,
            None => Report { machine: Observed::Defined, launch: None },
        }
    }

    fn update<T>(&self, vm: VmId, change: impl FnOnce(&mut Entry) -> T) -> T {
        change(lock(&self.shared.vms).entry(vm).or_default())
    }

    /// Everything that can be said against a definition before anything is made.
    async fn prepare(&self, vm: &Definition) -> Result<(Arc<Tools>, Choice, args::Built), BackendError> {
        let tools = self.tools().await?;
        let config = &self.shared.config;
        let choice = accel::choose(vm.spec.accelerator, config.accelerator, &tools.probe, &tools.verdict)?;
        let spec = vm.spec.clone();
        let checked = on_thread(move || files::check(&spec)).await?;
        let machine = vm.spec.machine.unwrap_or(config.machine);
        let plan = Plan { machine, probe: &tools.probe, accelerator: &choice, block_devices: &checked.block_devices };
        let built = args::build(vm, &plan)?;
        Ok((tools, choice, built))
    }

    /// Runs what blocks on another thread, to its end even when nobody waits for it any more. The turn,
    /// and this backend's end, come after it: after what it made is dropped, too, if nobody takes it.
    async fn in_turn<T: Send + 'static>(
        &self,
        turn: &Turn,
        work: impl FnOnce(&Shared) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let (turn, shared) = (Arc::clone(turn), Arc::clone(&self.shared));
        // Fields are dropped in their order.
        let (made, _turn, _shared) = on_thread(move || Ok((work(&shared)?, turn, shared))).await?;
        Ok(made)
    }

    /// From the first record to a machine whose CPUs run. What fails in it is undone by the caller.
    async fn launch(
        &self,
        vm: &Definition,
        turn: &Turn,
        record: &LaunchRecord,
        identity: Identity,
        order: Order,
        journal: &dyn Journal,
    ) -> Result<Arc<Machine>, (BackendError, Option<crate::machine::Processes>)> {
        let limits = self.shared.config.limits;
        let (program, keeper) = (order.program.clone(), self.shared.config.console_binary.clone());
        let qemu_log = order.state_dir.join(QEMU_LOG);
        let log_start = log::length(&qemu_log);
        let made = self.in_turn(turn, move |shared| launch::make(order, &shared.exits));
        let waiting = made.await.map_err(|e| (e, None))?;
        let processes = waiting.processes();
        let failed = |e: BackendError| (e, Some(processes.clone()));
        let launch = identity.launch;
        let resource = waiting.record(record).resource(launch);
        journal.record(resource).await.map_err(|e| failed(e.into()))?;
        fault::point(Point::LaunchIdentified);
        self.update(vm.id, |entry| entry.starting = Some((launch, processes.vmm.clone())));
        let released = self.in_turn(turn, move |_| waiting.release(&program, &keeper));
        let (mut exited, control) = released.await.map_err(&failed)?;
        let greeting = match greet(control, limits.launch + preallocation(vm)).await {
            Ok(greeting) => greeting,
            Err(error @ QmpError::Timeout { .. }) => {
                let message = format!("QEMU does not answer: {error}");
                return Err(failed(BackendError::transient("QMP_TIMEOUT", message).hint("the host may be overloaded")));
            }
            Err(error) => {
                // It ends because of what it says on its standard error, which is worth more.
                let ended = tokio::time::timeout(LAST_GASP, &mut exited).await;
                let lines = log::tail(&qemu_log, log_start);
                return Err(failed(match ended {
                    Ok(status) => log::explain(&lines, &how_it_ended(status.ok().flatten())),
                    Err(_still_there) => error.into(),
                }));
            }
        };
        Ok(Machine::launched(identity, processes, greeting, exited, self.shared.events.clone()))
    }
}

#[async_trait]
impl Backend for QemuBackend {
    fn name(&self) -> &BackendName {
        &self.shared.config.name
    }

    async fn ping(&self) -> Result<(), BackendError> {
        let keeper = &self.shared.config.console_binary;
        if find_program(keeper).is_none() {
            let message = format!("{} is not a program that this user may run", keeper.display());
            return Err(
                BackendError::permanent("KEEPER_NOT_FOUND", message).hint("install roost-console beside the daemon")
            );
        }
        self.tools().await.map(drop)
    }

    async fn capabilities(&self) -> Result<Capabilities, BackendError> {
        let tools = self.tools().await?;
        let config = &self.shared.config;
        let best = accel::choose(Default::default(), config.accelerator, &tools.probe, &tools.verdict)?;
        let mut accelerators = vec![best.name().to_owned()];
        for (name, works) in [("kvm", tools.verdict.works), ("tcg", tools.probe.accelerators.contains("tcg"))] {
            if works && name != best.name() {
                accelerators.push(name.to_owned());
            }
        }
        let mut capabilities = tools.probe.capabilities(config, accelerators);
        capabilities.details.insert("accelerator-reason".to_owned(), best.reason);
        Ok(capabilities)
    }

    async fn create(&self, vm: &Definition, journal: &dyn Journal) -> Result<(), BackendError> {
        self.prepare(vm).await?;
        let dir = self.shared.config.vm_state_dir(vm.id);
        fault::point(Point::DefineAsked);
        journal.record(directory(&dir)).await?;
        fault::point(Point::DefineRecorded);
        let turn = self.turn(vm.id).await;
        let make = move |_: &Shared| {
            let made = ensure_private_dir(&dir.join(CONSOLE_DIR));
            made.map(drop).map_err(|e| crate::host_error("HOST_DIRECTORY", &e))
        };
        self.in_turn(&turn, make).await?;
        fault::point(Point::DefineMade);
        Ok(())
    }

    async fn boot(&self, vm: &Definition, launch: LaunchId, journal: &dyn Journal) -> Result<Booted, BackendError> {
        let turn = self.turn(vm.id).await;
        if let Some(machine) = self.machine(vm.id) {
            return Err(wrong_state("start", machine.observed()));
        }
        let starting = self.update(vm.id, |entry| entry.starting.clone());
        if starting.is_some_and(|(_, process)| process.is_alive().unwrap_or(true)) {
            return Err(wrong_state("start", Observed::Running));
        }
        let (tools, choice, args::Built { args, agent }) = self.prepare(vm).await?;
        let config = &self.shared.config;
        let machine = tools.probe.machine(vm.spec.machine.unwrap_or(config.machine))?.name.clone();
        let record = LaunchRecord {
            run_dir: config.vm_run_dir(vm.id),
            vmm: None,
            console: None,
            accelerator: choice.to_string(),
            machine: machine.clone(),
        };
        let identity = Identity {
            definition: Arc::new(vm.clone()),
            launch,
            accelerator: choice.to_string(),
            machine,
            run_dir: record.run_dir.clone(),
            log: config.vm_state_dir(vm.id).join(QEMU_LOG),
        };
        let order = Order {
            program: tools.probe.binary.path.clone(),
            args,
            taps: launch::taps(&vm.spec),
            agent,
            run_dir: record.run_dir.clone(),
            state_dir: config.vm_state_dir(vm.id),
            console: vm.spec.console.enabled.then(|| (config.console_binary.clone(), config.console_log_bytes)),
        };
        fault::point(Point::LaunchAsked);
        journal.record(record.resource(launch)).await?;
        fault::point(Point::LaunchRecorded);
        match self.launch(vm, &turn, &record, identity, order, journal).await {
            Ok(machine) => {
                fault::point(Point::LaunchUp);
                self.update(vm.id, |entry| {
                    entry.machine = Some(machine);
                    entry.starting = None;
                    entry.ended = None;
                });
                Ok(Booted { accelerator: choice.to_string() })
            }
            Err((error, processes)) => {
                launch::undo(launch, &record.run_dir, processes, journal).await;
                self.update(vm.id, |entry| entry.starting = None);
                Err(error)
            }
        }
    }

    async fn shutdown(&self, vm: VmId, stop: Stop) -> Result<ExitCause, BackendError> {
        if let Some(machine) = self.machine(vm) {
            return machine.shutdown(stop, &self.shared.config.limits).await;
        }
        match self.at_rest(vm).machine {
            Observed::Absent => Err(unknown(vm)),
            Observed::Ended { cause, .. } => Ok(cause),
            _ => Ok(ExitCause::Forced),
        }
    }

    async fn pause(&self, vm: VmId) -> Result<(), BackendError> {
        self.living(vm, "pause")?.pause(&self.shared.config.limits).await
    }

    async fn resume(&self, vm: VmId) -> Result<(), BackendError> {
        self.living(vm, "resume")?.resume(&self.shared.config.limits).await
    }

    async fn reboot(&self, vm: VmId, stop: Stop) -> Result<(), BackendError> {
        self.living(vm, "reboot")?.reboot(stop, &self.shared.config.limits).await
    }

    async fn info(&self, vm: VmId) -> Result<Info, BackendError> {
        log::cut(&self.shared.config.vm_state_dir(vm).join(QEMU_LOG));
        if let Some(machine) = self.machine(vm) {
            return info::of(&machine, &self.shared.config.limits).await;
        }
        let starting = lock(&self.shared.vms).get(&vm).and_then(|entry| entry.starting.clone());
        match starting {
            Some((launch, process)) if process.is_alive().unwrap_or(true) => info::of_process(launch, &process),
            _ => Ok(Info { report: self.at_rest(vm), metrics: None, details: Default::default() }),
        }
    }

    async fn adopt(&self, vms: Vec<Adoptee>) -> Vec<Result<Report, BackendError>> {
        let adopted = futures::stream::iter(vms).map(|adoptee| self.adopt_one(adoptee));
        adopted.buffered(ADOPTED_AT_ONCE).collect().await
    }

    async fn clear(&self, vm: VmId, resources: &[Resource], journal: &dyn Journal) -> Result<(), BackendError> {
        let _turn = self.turn(vm).await;
        self.clear_in_turn(vm, resources, journal).await
    }

    async fn delete(&self, vm: VmId, resources: &[Resource], journal: &dyn Journal) -> Result<(), BackendError> {
        let _turn = self.turn(vm).await;
        self.clear_in_turn(vm, resources, journal).await?;
        clear::belongings(resources, &vm.uuid().to_string(), journal).await?;
        lock(&self.shared.vms).remove(&vm);
        Ok(())
    }

    async fn agent(&self, vm: VmId) -> Result<AgentEndpoint, BackendError> {
        let Some(machine) = self.machine(vm).filter(|machine| machine.observed().is_up()) else {
            return match self.at_rest(vm).machine {
                Observed::Absent => Err(unknown(vm)),
                _ => Ok(AgentEndpoint::default()),
            };
        };
        Ok(machine.identity.agent())
    }

    async fn console(&self, vm: VmId) -> Result<ConsoleEndpoint, BackendError> {
        let state_dir = self.shared.config.vm_state_dir(vm);
        let keeper = self.machine(vm).and_then(|machine| {
            let keeper = machine.processes.console.clone()?;
            keeper.is_alive().unwrap_or(false).then(|| machine.identity.run_dir.join(CONSOLE_SOCKET))
        });
        if keeper.is_none() && !state_dir.is_dir() {
            return Err(unknown(vm));
        }
        Ok(ConsoleEndpoint { socket: keeper, log_dir: state_dir.join(CONSOLE_DIR) })
    }
}

impl QemuBackend {
    async fn adopt_one(&self, adoptee: Adoptee) -> Result<Report, BackendError> {
        let vm = adoptee.definition.id;
        let _turn = self.turn(vm).await;
        if let Some(machine) = self.machine(vm) {
            // Adopted before: what it says now is what counts.
            return info::of(&machine, &self.shared.config.limits).await.map(|info| info.report);
        }
        let Shared { config, exits, events, .. } = &*self.shared;
        let state_dir = config.vm_state_dir(vm);
        log::cut(&state_dir.join(QEMU_LOG));
        let found = adopt::find(adoptee, &state_dir, exits, events, &config.limits).await;
        fault::point(Point::AdoptFound);
        self.update(vm, |entry| {
            entry.machine = found.machine;
            entry.ended = match &found.report {
                Ok(report) if matches!(report.machine, Observed::Ended { .. }) => Some(*report),
                _ => None,
            };
        });
        found.report
    }

    async fn clear_in_turn(&self, vm: VmId, resources: &[Resource], journal: &dyn Journal) -> Result<(), BackendError> {
        let limits = &self.shared.config.limits;
        let machine = self.machine(vm);
        if let Some(machine) = &machine {
            machine.quit(limits).await?;
        }
        clear::launches(resources, &vm.uuid().to_string(), limits, journal).await?;
        self.update(vm, |entry| {
            let ended = entry
                .machine
                .take()
                .map(|machine| Report { machine: machine.observed(), launch: Some(machine.identity.launch) });
            entry.ended = ended.or(entry.ended).map(|mut report| {
                if let Observed::Ended { lingering, .. } = &mut report.machine {
                    *lingering = false;
                }
                report
            });
            entry.starting = None;
        });
        Ok(())
    }
}

/// What QEMU may need beyond the usual before it answers: it clears every huge page first, several GiB a
/// second on any host.
fn preallocation(vm: &Definition) -> Duration {
    match vm.spec.memory.backing {
        Backing::Hugepages { .. } => Duration::from_secs(vm.spec.memory.size.mib().div_ceil(1024)),
        Backing::Anonymous | Backing::Shared => Duration::ZERO,
    }
}

fn unknown(vm: VmId) -> BackendError {
    BackendError::not_found(format!("there is nothing of {vm} on this host"))
}

fn how_it_ended(status: Option<roost_host::exits::ExitStatus>) -> String {
    use roost_host::exits::ExitStatus;
    match status {
        Some(ExitStatus::Exited(code)) => format!("QEMU ended with code {code}"),
        Some(ExitStatus::Signaled(signal)) => format!("QEMU was ended by signal {signal}"),
        None => "QEMU ended".to_owned(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
