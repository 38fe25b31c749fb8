//! What the backend is told about its host.

use std::path::PathBuf;
use std::time::Duration;

use roost_model::spec::{Accelerator, MachineType};
use roost_model::{BackendName, VmId};

/// How a [`crate::QemuBackend`] is set up. Every path is absolute but `binary`, which may be a name
/// on the search path.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// The backend's name, `qemu` as a rule.
    pub name: BackendName,
    /// QEMU for x86_64.
    pub binary: PathBuf,
    /// What a VM gets that leaves the accelerator open.
    pub accelerator: Accelerator,
    /// What a VM gets that leaves the machine type open.
    pub machine: MachineType,
    /// Sockets, one directory for each running VM. Gone after a reboot of the host.
    pub run_dir: PathBuf,
    /// What is kept for as long as a VM exists: `volumes/<uuid>/`.
    pub state_dir: PathBuf,
    /// What was found out about QEMU and the host. May be removed at any time.
    pub cache_dir: PathBuf,
    /// The keeper of serial lines, `roost-console`.
    pub console_binary: PathBuf,
    /// A VM's console log never exceeds this many bytes.
    pub console_log_bytes: u64,
    /// How long things may take.
    pub limits: Limits,
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From QEMU's start until it says that its CPUs run.
    pub launch: Duration,
    /// Until a QEMU that is found again answers.
    pub adopt: Duration,
    /// A QMP command's answer.
    pub command: Duration,
    /// Between two presses of the power button: guests miss early ones.
    pub press: Duration,
    /// Between the request to quit and the kill: time to flush disks.
    pub quit: Duration,
    /// The trial of `/dev/kvm`.
    pub trial: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            launch: Duration::from_secs(20),
            adopt: Duration::from_secs(3),
            command: Duration::from_secs(5),
            press: Duration::from_secs(3),
            quit: Duration::from_secs(5),
            trial: Duration::from_secs(5),
        }
    }
}

impl QemuConfig {
    /// A configuration in which everything that can have a default has it.
    pub fn new(run_dir: PathBuf, state_dir: PathBuf, cache_dir: PathBuf, console_binary: PathBuf) -> Self {
        Self {
            name: "qemu".parse().expect("four letters are a backend's name"),
            binary: PathBuf::from("qemu-system-x86_64"),
            accelerator: Accelerator::Auto,
            machine: MachineType::Q35,
            run_dir,
            state_dir,
            cache_dir,
            console_binary,
            console_log_bytes: 1 << 20,
            limits: Limits::default(),
        }
    }

    /// Where a running VM's sockets are.
    pub(crate) fn vm_run_dir(&self, vm: VmId) -> PathBuf {
        self.run_dir.join(vm.uuid().to_string())
    }

    /// Where what belongs to a VM is kept.
    pub(crate) fn vm_state_dir(&self, vm: VmId) -> PathBuf {
        self.state_dir.join("volumes").join(vm.uuid().to_string())
    }
}

/// The control socket in a VM's run directory.
pub(crate) const QMP_SOCKET: &str = "qmp.sock";
/// The agent's socket in a VM's run directory.
pub(crate) const AGENT_SOCKET: &str = "agent.sock";
/// The socket of QEMU's guest agent in a VM's run directory.
pub(crate) const QEMU_GUEST_AGENT_SOCKET: &str = "qga.sock";
/// The serial line's socket in a VM's run directory.
pub(crate) const CONSOLE_SOCKET: &str = "console.sock";
/// The console log's directory in a VM's state directory.
pub(crate) const CONSOLE_DIR: &str = "console";
/// What QEMU writes to its standard error, in a VM's state directory.
pub(crate) const QEMU_LOG: &str = "qemu.log";
