//! A host of one's own: directories that go away, a backend on real QEMU under software emulation,
//! the micro guest, and the proof that nothing is left.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use roost_backend::{Backend, Definition, Event, EventReceiver, Happened, MemoryJournal, events};
use roost_backend_qemu::{QemuBackend, QemuConfig};
use roost_model::spec::{Accelerator, Boot, MachineType, Memory};
use roost_model::{Bytes, LaunchId, VmId, VmSpec};
use tempfile::TempDir;
use uuid::Uuid;

/// Long enough for a loaded machine; a test that waits this long has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A host with a backend on it. The journals outlive the backend, as a database would.
pub(crate) struct Host {
    pub(crate) dir: TempDir,
    pub(crate) config: QemuConfig,
    pub(crate) backend: QemuBackend,
    pub(crate) events: EventReceiver,
    journals: BTreeMap<VmId, MemoryJournal>,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// Must be called within a runtime.
    pub(crate) fn with(change: impl FnOnce(&mut QemuConfig)) -> Self {
        let dir = tempfile::Builder::new().prefix("roost-qemu").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut config = QemuConfig::new(at("run"), at("state"), cache_dir(), keeper());
        config.accelerator = Accelerator::Tcg;
        change(&mut config);
        let (sender, events) = events();
        let backend = QemuBackend::new(config.clone(), sender).unwrap();
        Self { dir, config, backend, events, journals: BTreeMap::new() }
    }

    /// The daemon dies and comes back: nothing in memory is left but what its database held.
    pub(crate) fn restart(&mut self) {
        (self.backend, self.events) = self.another_daemon();
    }

    /// A backend that knows nothing yet, on the same host. Must be called within a runtime.
    pub(crate) fn another_daemon(&self) -> (QemuBackend, EventReceiver) {
        let (sender, events) = events();
        (QemuBackend::new(self.config.clone(), sender).unwrap(), events)
    }

    pub(crate) fn journal(&self, vm: &Definition) -> &MemoryJournal {
        &self.journals[&vm.id]
    }

    /// A VM that is known, and not made yet.
    pub(crate) fn define(&mut self, spec: VmSpec) -> Definition {
        spec.check().expect("the spec is one that the engine would pass on");
        let id = VmId::from_uuid(Uuid::now_v7());
        self.journals.insert(id, MemoryJournal::default());
        Definition { id, name: "test".parse().unwrap(), spec }
    }

    /// A VM that is made.
    pub(crate) async fn create(&mut self, spec: VmSpec) -> Definition {
        let vm = self.define(spec);
        self.backend.create(&vm, self.journal(&vm)).await.unwrap();
        vm
    }

    /// Starts it, and waits for its guest.
    pub(crate) async fn boot(&self, vm: &Definition) -> (LaunchId, Serial) {
        let launch = new_launch();
        self.backend.boot(vm, launch, self.journal(vm)).await.unwrap();
        let mut serial = self.serial(vm).await;
        serial.until("tick ");
        (launch, serial)
    }

    /// A machine that runs the micro guest.
    pub(crate) async fn running(&mut self) -> (Definition, LaunchId, Serial) {
        let vm = self.create(micro()).await;
        let (launch, serial) = self.boot(&vm).await;
        (vm, launch, serial)
    }

    pub(crate) async fn serial(&self, vm: &Definition) -> Serial {
        let endpoint = self.backend.console(vm.id).await.unwrap();
        Serial::connect(&endpoint.socket.expect("the machine runs"))
    }

    pub(crate) async fn clear(&self, vm: &Definition) {
        let journal = self.journal(vm);
        self.backend.clear(vm.id, &journal.resources(), journal).await.unwrap();
    }

    pub(crate) async fn delete(&self, vm: &Definition) {
        let journal = self.journal(vm);
        self.backend.delete(vm.id, &journal.resources(), journal).await.unwrap();
        assert_eq!(journal.resources(), []);
    }

    pub(crate) fn adoptee(&self, vm: &Definition, launch: Option<LaunchId>) -> roost_backend::Adoptee {
        roost_backend::Adoptee { definition: vm.clone(), launch, resources: self.journal(vm).resources() }
    }

    /// The next event, which must come.
    pub(crate) async fn event(&mut self) -> Event {
        tokio::time::timeout(DEADLINE, self.events.recv()).await.expect("an event").expect("the backend lives")
    }

    /// The next event is that end.
    pub(crate) async fn ended(&mut self, vm: &Definition, launch: LaunchId, cause: roost_model::ExitCause) {
        let event = self.event().await;
        assert_eq!(event, Event { vm: vm.id, launch, happened: Happened::Ended(cause) });
    }

    pub(crate) fn no_more_events(&mut self) {
        if let Ok(event) = self.events.try_recv() {
            panic!("one too many: {event:?}");
        }
    }

    /// QEMU's process number, as `info` tells it.
    pub(crate) async fn pid(&self, vm: &Definition) -> rustix::process::Pid {
        let info = self.backend.info(vm.id).await.unwrap();
        rustix::process::Pid::from_raw(info.details["pid"].parse().unwrap()).unwrap()
    }

    /// No process of this host, and nothing in its run directory.
    pub(crate) fn assert_nothing_runs(&self) {
        assert_eq!(processes_in(self.dir.path()), Vec::<String>::new());
        let left: Vec<_> =
            std::fs::read_dir(&self.config.run_dir).map(|d| d.map(|e| e.unwrap().path()).collect()).unwrap_or_default();
        assert_eq!(left, Vec::<PathBuf>::new());
    }

    /// The same, and no files of any VM.
    pub(crate) fn assert_nothing_left(&self) {
        self.assert_nothing_runs();
        let volumes = self.config.state_dir.join("volumes");
        let left: Vec<_> =
            std::fs::read_dir(volumes).map(|d| d.map(|e| e.unwrap().path()).collect()).unwrap_or_default();
        assert_eq!(left, Vec::<PathBuf>::new());
    }
}

/// A test that fails must not leave its guests behind.
impl Drop for Host {
    fn drop(&mut self) {
        for process in processes_in(self.dir.path()) {
            let pid = process.split(' ').next().and_then(|pid| pid.parse().ok());
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// Processes whose working directory is beneath `root`: QEMU and the keeper work in their VM's run
/// directory. A zombie has none.
pub(crate) fn processes_in(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.parse::<u32>().is_ok()
            && let Ok(cwd) = std::fs::read_link(entry.path().join("cwd"))
            && cwd.starts_with(root)
        {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push(format!("{name} {}", String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    found
}

pub(crate) fn new_launch() -> LaunchId {
    LaunchId::from_uuid(Uuid::now_v7())
}

/// The micro guest on q35.
pub(crate) fn micro() -> VmSpec {
    let kernel = xtask::micro_guest().unwrap();
    let boot = Boot { kernel_path: Some(kernel.to_str().unwrap().parse().unwrap()), ..Boot::default() };
    VmSpec::minimal(Memory::fixed(Bytes::from_mib(32)), boot)
}

pub(crate) fn micro_on(machine: MachineType) -> VmSpec {
    VmSpec { machine: Some(machine), ..micro() }
}

/// What QEMU answered is kept for the tests of one build: probing is a test of its own.
fn cache_dir() -> PathBuf {
    let built = std::env::current_exe().and_then(std::fs::metadata).and_then(|file| file.modified()).unwrap();
    let built = built.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("qemu-{built}"))
}

/// The keeper's program: built where it is not there yet.
fn keeper() -> PathBuf {
    static KEEPER: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        let test = std::env::current_exe().unwrap();
        let built = test.ancestors().nth(2).unwrap().join("roost-console");
        if !built.exists() {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let status = Command::new(cargo).args(["build", "-q", "-p", "roost-console-keeper"]).status().unwrap();
            assert!(status.success(), "the keeper is built");
        }
        built
    };
    KEEPER.get_or_init(find).clone()
}

/// A connection to a serial line.
pub(crate) struct Serial {
    stream: UnixStream,
    text: String,
}

impl Serial {
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self { stream, text: String::new() }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads until that was written, and forgets everything up to there.
    pub(crate) fn until(&mut self, what: &str) {
        self.up_to(what);
    }

    /// The same, and returns what came before it.
    pub(crate) fn up_to(&mut self, what: &str) -> String {
        let by = Instant::now() + DEADLINE;
        while !self.text.contains(what) {
            assert!(Instant::now() < by, "no {what:?} on the serial line, but {:?}", self.text);
            self.read();
        }
        let rest = self.text.split_off(self.text.find(what).expect("it is there") + what.len());
        std::mem::replace(&mut self.text, rest)
    }

    /// What comes within this time.
    pub(crate) fn during(&mut self, time: Duration) -> String {
        self.text.clear();
        let by = Instant::now() + time;
        while Instant::now() < by {
            self.read();
        }
        std::mem::take(&mut self.text)
    }

    fn read(&mut self) {
        let mut chunk = [0; 4096];
        if let Ok(got) = self.stream.read(&mut chunk) {
            self.text.push_str(&String::from_utf8_lossy(&chunk[..got]));
        }
    }
}

/// Waits on the condition itself; there is no event for the ones that this is used for.
pub(crate) async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let by = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < by, "{what}: not after {DEADLINE:?}");
        tokio::task::yield_now().await;
    }
}
