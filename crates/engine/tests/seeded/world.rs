//! A daemon of tests: engine, store and simulated host in one seeded world. The host and the
//! database outlive the engine, as they do in life.

use crate::guests::Guests;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use roost_backend::Backend;
use roost_backend_sim::{Faults, SimBackend, SimClock, SimConfig, SimHost, Sleep};
use roost_engine::{
    Accepted, Address, Clock, CreateVm, Engine, EngineConfig, EngineError, LocalDispatch, RequestVm, Seams,
};
use roost_model::operation::Goal;
use roost_model::spec::{Boot, Memory};
use roost_model::{Bytes, Operation, Priority, ProjectId, Vm, VmId, VmSpec};
use roost_store::Store;
use tempfile::TempDir;

use crate::executor::World;

pub const LONG: Duration = Duration::from_secs(3600);

impl SimClock for World {
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.now_ms())
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        Clock::sleep(self, duration)
    }
}

/// What survives an engine.
#[derive(Clone)]
pub struct Lab {
    pub world: World,
    pub host: Arc<SimHost>,
    pub faults: Faults,
    pub guests: Arc<Guests>,
    pub settings: EngineConfig,
    database: PathBuf,
    _dir: Arc<TempDir>,
}

impl Lab {
    pub fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = World::new(seed);
        let host = SimHost::new(Arc::new(world.clone()));
        let guests = Arc::new(Guests::new(world.clone()));
        Self {
            host,
            faults: Faults::default(),
            guests,
            settings: EngineConfig { default_backend: "sim".parse().unwrap(), ..EngineConfig::default() },
            database: dir.path().join("state.db"),
            world,
            _dir: Arc::new(dir),
        }
    }

    /// Starts an engine over what is there. Outside `World::run`: the store drives itself.
    pub fn start(&self) -> Engine {
        let store = Store::open_blocking(&self.database).unwrap();
        let (events, received) = roost_backend::events();
        let config =
            SimConfig { clock: Arc::new(self.world.clone()), faults: self.faults.clone(), ..SimConfig::default() };
        let backend: Arc<dyn Backend> = Arc::new(SimBackend::on(Arc::clone(&self.host), config, events));
        let seams = Seams {
            clock: Arc::new(self.world.clone()),
            rng: Arc::new(self.world.clone()),
            spawner: Arc::new(self.world.clone()),
            dispatch: Arc::new(LocalDispatch::default()),
            guests: Arc::<Guests>::clone(&self.guests),
            ids: Arc::default(),
        };
        let settings = self.settings.clone();
        self.world.run(async move { Engine::start(settings, seams, store, vec![backend], received).await.unwrap() })
    }

    /// The daemon dies where it stands.
    pub fn kill(&self, engine: Engine) {
        self.world.kill_all();
        drop(engine);
    }
}

pub fn spec(kernel_args: &str) -> VmSpec {
    let boot = Boot {
        kernel_path: Some("/boot/vmlinuz".parse().unwrap()),
        kernel_args: kernel_args.parse().unwrap(),
        ..Boot::default()
    };
    VmSpec::minimal(Memory::fixed(Bytes::from_mib(64)), boot)
}

pub fn create(name: &str, start: bool) -> CreateVm {
    CreateVm {
        project: ProjectId::DEFAULT,
        id: None,
        name: Some(name.parse().unwrap()),
        backend: None,
        spec: spec(""),
        start,
        priority: Priority::Default,
        idempotency_key: None,
    }
}

pub fn wish(vm: VmId, goal: Goal) -> RequestVm {
    RequestVm {
        project: ProjectId::DEFAULT,
        vm: Address::Id(vm),
        goal,
        priority: Priority::Default,
        resource_version: None,
        idempotency_key: None,
    }
}

/// Asks and waits for the end.
pub async fn ask(engine: &Engine, vm: VmId, goal: Goal) -> Result<Operation, EngineError> {
    let accepted = engine.request(wish(vm, goal)).await?;
    finished(engine, &accepted).await
}

pub async fn finished(engine: &Engine, accepted: &Accepted) -> Result<Operation, EngineError> {
    Ok(engine.wait(ProjectId::DEFAULT, accepted.operation.id, LONG).await?.0)
}

pub async fn vm(engine: &Engine, id: VmId) -> Vm {
    engine.vm(ProjectId::DEFAULT, Address::Id(id)).await.unwrap()
}

/// Waits until the VM's record is so.
pub async fn until(engine: &Engine, id: VmId, so: impl Fn(&Vm) -> bool) -> Vm {
    let mut watch = engine.watch(ProjectId::DEFAULT, None).await.unwrap();
    loop {
        let now = vm(engine, id).await;
        if so(&now) {
            return now;
        }
        watch.next().await.unwrap().expect("the engine goes on");
    }
}
