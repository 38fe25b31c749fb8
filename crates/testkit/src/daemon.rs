//! One `roostd` on a temporary directory.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use roost_client::{Client, v1};
use roost_host::fault::Point;
use roost_host::process::{Process, ProcessIdent};
use tempfile::TempDir;

use crate::disk::Disk;

/// Something of a daemon's that is still there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leftover {
    /// A process that names the daemon's directory.
    Process(u32, String),
    /// A file or socket beneath its runtime directory or among its volumes.
    File(PathBuf),
}

/// A `roostd` on a temporary directory. Dropping it ends the daemon and every process of its VMs.
#[derive(Debug)]
pub struct TestDaemon {
    dir: TempDir,
    disk: Option<Disk>,
    settings: Vec<String>,
    child: Option<Child>,
}

impl TestDaemon {
    /// A daemon with these `KEY=VALUE` settings, serving.
    pub fn start(settings: &[&str]) -> Self {
        let mut daemon = Self::new(settings);
        daemon.restart();
        daemon
    }

    /// The same, its state directory on a disk of so many MiB. `None`: we are not root, and that is said.
    pub fn start_on_disk(mib: u32, settings: &[&str]) -> Option<Self> {
        let mut daemon = Self::new(settings);
        daemon.disk = Some(Disk::new(&daemon.own_state_dir(), mib)?);
        daemon.restart();
        Some(daemon)
    }

    fn new(settings: &[&str]) -> Self {
        // Short: the paths of sockets below it are.
        let dir = tempfile::Builder::new().prefix("rt").tempdir().expect("a temporary directory can be made");
        let settings = settings.iter().map(|s| (*s).to_owned()).collect();
        Self { dir, disk: None, settings, child: None }
    }

    /// What a daemon with these settings says instead of serving.
    pub fn refused(settings: &[&str]) -> String {
        match Self::new(settings).try_start() {
            Ok(()) => panic!("it serves"),
            Err(said) => said,
        }
    }

    /// Starts it again after `kill` or `stop`.
    pub fn restart(&mut self) {
        if let Err(said) = self.try_start() {
            panic!("roostd did not start: {said}");
        }
    }

    /// Starts it; or what it said instead of serving.
    pub fn try_start(&mut self) -> Result<(), String> {
        let mut child = self.spawn();
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it was piped");
        let read = BufReader::new(stdout).read_line(&mut line);
        if read.is_ok() && line == "ready\n" {
            self.child = Some(child);
            return Ok(());
        }
        child.wait().expect("it can be waited for");
        Err(self.log())
    }

    /// Starts one that is to die at this point, before or after it serves, and waits until it has.
    pub async fn start_and_die(&mut self, point: Point) {
        self.arm(point, 1);
        self.child = Some(self.spawn());
        self.died().await;
    }

    fn spawn(&self) -> Child {
        assert!(self.child.is_none(), "it runs already");
        let program = program("roostd");
        let mut command = self.disk.as_ref().map_or_else(|| Command::new(&program), |disk| disk.command(&program));
        command.arg("--state-dir").arg(self.own_state_dir()).env("ROOST_READY_FD", "1");
        command.env("ROOST_FAULT_FILE", self.fault_path());
        for setting in &self.settings {
            command.arg("--set").arg(setting);
        }
        let log =
            std::fs::File::options().create(true).append(true).open(self.log_path()).expect("the log can be written");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("roostd can be started: build it with `cargo build --workspace --bins`")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("our own child can be killed");
        child.wait().expect("our own child can be waited for");
    }

    /// From now on it dies at this point, when it comes there for the `times`th time.
    pub fn arm(&self, point: Point, times: usize) {
        std::fs::write(self.fault_path(), format!("{} {times}", point.name())).expect("the directory is ours");
    }

    /// Waits until it has died at the point that it was armed with, which is forgotten. Panics if it does not.
    pub async fn died(&mut self) {
        let armed = std::fs::read_to_string(self.fault_path()).expect("it was armed");
        let mut child = self.child.take().expect("it runs");
        if let Some(process) = Process::of_child(&child).expect("our own child can be looked at")
            && !process.wait_gone(Duration::from_secs(60)).await.expect("our own child can be waited for")
        {
            self.child = Some(child);
            panic!("it never came to {armed}; it said:\n{}", self.log());
        }
        let status = child.wait().expect("our own child can be waited for");
        assert_eq!(status.signal(), Some(9), "it was to die at {armed}; it said:\n{}", self.log());
        std::fs::remove_file(self.fault_path()).expect("it was armed");
    }

    /// Ends it in order; whether it ended with success.
    pub fn stop(&mut self) -> bool {
        let mut child = self.child.take().expect("it runs");
        let process = Process::of_child(&child).expect("our own child can be looked at");
        if let Some(process) = process {
            process.signal(roost_host::process::Signal::TERM).expect("our own child can be told");
        }
        child.wait().expect("our own child can be waited for").success()
    }

    /// A client with a connection of its own.
    pub fn client(&self) -> Client {
        Client::connect_unix(self.state_dir().join("run/api.sock"))
    }

    /// Its state directory, as it is seen from here.
    pub fn state_dir(&self) -> PathBuf {
        let dir = self.own_state_dir();
        self.disk.as_ref().map_or_else(|| dir.clone(), |disk| disk.seen(&dir))
    }

    /// The disk that it was started on.
    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("it was started on a disk of its own")
    }

    /// Its state directory, as it sees it.
    fn own_state_dir(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = std::fs::File::open(self.log_path()) {
            let _partial = file.read_to_string(&mut text);
        }
        text
    }

    /// The one VM, as its record is now.
    pub async fn vm(&self, client: &Client, vm: &str) -> v1::Vm {
        client.get_vm_info(vm).await.expect("the VM exists").vm.into_option().expect("an answer has a record")
    }

    /// Waits until the VM's record is so.
    pub async fn until(&self, client: &Client, vm: &str, so: impl Fn(&v1::Vm) -> bool) -> v1::Vm {
        let request = v1::WatchVmsRequest { snapshot: true, vm_ids: vec![vm.to_owned()], ..Default::default() };
        let mut watch = client.watch_vms(request).await.expect("events can be watched");
        let wait = async {
            while let Some(event) = watch.next().await.expect("the stream goes on") {
                if let Some(record) = event.vm.into_option()
                    && so(&record)
                {
                    return record;
                }
            }
            panic!("the daemon ended while {vm} was waited for");
        };
        match tokio::time::timeout(Duration::from_secs(120), wait).await {
            Ok(record) => record,
            Err(_) => panic!("{vm} is still {:?}; the daemon said:\n{}", self.vm(client, vm).await, self.log()),
        }
    }

    /// Processes that name this daemon's directory: the hypervisors and keepers of its VMs.
    pub fn guest_processes(&self) -> Vec<(u32, String)> {
        let own = [self.child.as_ref().map(Child::id), self.disk.as_ref().map(Disk::holder), Some(std::process::id())];
        let marker = self.dir.path().to_str().expect("temporary paths are Unicode").to_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc is there").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            if !own.contains(&Some(pid)) && names(pid, &marker) {
                let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                found.push((pid, comm.trim().to_owned()));
            }
        }
        found
    }

    /// Waits until no more than this many of them are left.
    pub async fn until_guest_processes(&self, most: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let all = self.guest_processes();
            if all.len() <= most {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let handles: Vec<_> = all.iter().filter_map(|(pid, _)| process(*pid)).collect();
            // Whichever is first. One that was gone before it was looked at is not waited for.
            if handles.len() == all.len() {
                let ends = handles.iter().map(|process| Box::pin(process.wait_gone(left)));
                let (gone, ..) = futures::future::select_all(ends).await;
                assert!(gone.expect("they can be waited for"), "still there: {:?}", self.guest_processes());
            }
        }
    }

    /// Kills the hypervisors of its VMs, and waits until nothing of them runs.
    pub async fn end_guests(&self) {
        for (pid, comm) in self.guest_processes() {
            if comm.starts_with("qemu")
                && let Some(process) = process(pid)
            {
                process.kill().expect("it is ours");
            }
        }
        self.until_guest_processes(0).await;
    }

    /// Whatever VMs have left on the host.
    pub fn leftovers(&self) -> Vec<Leftover> {
        let processes = self.guest_processes().into_iter().filter(|(_, comm)| comm != "roost-simhost");
        let mut found: Vec<_> = processes.map(|(pid, comm)| Leftover::Process(pid, comm)).collect();
        for dir in ["run/vms", "volumes"] {
            files_below(&self.state_dir().join(dir), &mut found);
        }
        found.sort();
        found
    }

    fn fault_path(&self) -> PathBuf {
        self.dir.path().join("fault")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _dead = child.kill();
            let _reaped = child.wait();
        }
        for process in self.guest_processes().iter().filter_map(|(pid, _)| process(*pid)) {
            let _gone = process.kill();
        }
    }
}

/// A program that was built beside the test.
pub(crate) fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let dir = test.parent().and_then(Path::parent).expect("tests are in target/<profile>/deps");
    dir.join(name)
}

/// Whether a process names the directory in its arguments, its environment, or an open descriptor.
fn names(pid: u32, marker: &str) -> bool {
    let contains = |bytes: &[u8]| bytes.windows(marker.len()).any(|w| w == marker.as_bytes());
    if std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|bytes| contains(&bytes)) {
        return true;
    }
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors
        .flatten()
        .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.to_str().is_some_and(|to| contains(to.as_bytes()))))
}

/// A process by its identity: the number may be given away at any time. `None`: it is gone.
fn process(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let start_time_ticks = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
    let boot_id = roost_host::process::boot_id().ok()?.to_owned();
    Process::open(&ProcessIdent { pid, start_time_ticks, boot_id }).ok()?
}

fn files_below(dir: &Path, found: &mut Vec<Leftover>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        found.push(Leftover::File(entry.path()));
    }
}
