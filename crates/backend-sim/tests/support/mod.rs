//! What the tests of the simulated backend share.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(unreachable_pub, reason = "a module of several test binaries")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use roost_backend::Definition;
use roost_backend::conformance::{Act, GuestKind};
use roost_backend_sim::Control;
use roost_model::spec::{Boot, Memory};
use roost_model::{Bytes, LaunchId, VmId, VmSpec};
use tempfile::TempDir;

/// Whatever takes longer hangs.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A host process on a directory of its own; killed when this is dropped.
pub struct HostProcess {
    dir: TempDir,
    child: Child,
}

impl HostProcess {
    pub fn start(args: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let child = spawn(&dir.path().join("host.sock"), args);
        Self { dir, child }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("host.sock")
    }

    /// Kills it and starts another on the same socket.
    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.socket(), &[]);
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_roost-simhost"))
}

fn spawn(socket: &Path, args: &[&str]) -> Child {
    let mut command = Command::new(binary());
    command.arg("--socket").arg(socket).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

/// Another VM at each call.
pub fn definition(guest: GuestKind) -> Definition {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut random = [0; 10];
    random[..4].copy_from_slice(&n.to_be_bytes());
    random[4..8].copy_from_slice(&std::process::id().to_be_bytes());
    let kernel_args = match guest {
        GuestKind::Plain => "quiet",
        GuestKind::Deaf => "quiet sim.deaf",
    };
    let boot = Boot {
        kernel_path: Some("/boot/vmlinuz".parse().unwrap()),
        kernel_args: kernel_args.parse().unwrap(),
        ..Boot::default()
    };
    Definition {
        id: VmId::from_parts(1, random),
        name: format!("sim-{n}").parse().unwrap(),
        spec: VmSpec::minimal(Memory::fixed(Bytes::from_mib(64)), boot),
    }
}

pub fn launch(n: u8) -> LaunchId {
    LaunchId::from_parts(1, [n; 10])
}

pub fn control(act: Act) -> Control {
    match act {
        Act::PowerOff => Control::PowerOff,
        Act::Panic => Control::Panic,
        Act::Reset => Control::Reset,
        Act::Kill => Control::Kill,
    }
}
