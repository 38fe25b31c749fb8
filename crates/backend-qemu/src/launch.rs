//! Starting a machine so that dying at any line leaves nothing that is not found again.
//!
//! ```text
//!   record: what will be made ──> make: run directory, sockets, two children at their gates
//!       ──> record: who they are ──> release ──> QEMU says that its CPUs run
//! ```
//!
//! - Before the first record nothing is made. A death between the records ends the children: their
//!   gates see the end of file. What they leave, the run directory, is in the record.
//! - After the second record each process is found by it, released or not.
//! - The daemon is connected to QEMU's control socket before QEMU exists: the socket is made here,
//!   handed over listening, and answers as soon as QEMU reads it. Nothing polls for it, and it
//!   takes a connection of the next daemon as well.
//! - What fails after the first record is undone here; what is dropped is undone by `clear`.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use roost_backend::{BackendError, Journal};
use roost_console_keeper::{GUEST_FD, LISTENER_FD, LOG_DIR_FD, mark_begin};
use roost_host::dirs::{ensure_private_dir, remove_tree_beneath};
use roost_host::fault::{self, Point};
use roost_host::launch::{Gated, Launch};
use roost_host::sockets::{SocketError, bind_unix, connect_unix, socketpair};
use roost_host::tap::open_tap;
use roost_model::spec::NicKind;
use roost_model::{LaunchId, VmSpec};

use crate::args::{AGENT_FD, FIRST_TAP_FD, QEMU_GUEST_AGENT_FD, QMP_FD, SERIAL_FD};
use crate::config::{AGENT_SOCKET, CONSOLE_DIR, CONSOLE_SOCKET, QEMU_GUEST_AGENT_SOCKET, QEMU_LOG, QMP_SOCKET};
use crate::exits::{Exited, Exits};
use crate::machine::{Processes, kill};
use crate::record::{LAUNCH_KEY, LaunchRecord};
use crate::trial::not_started;

/// All that the making of a machine's processes needs to know.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<std::ffi::OsString>,
    pub(crate) taps: Vec<String>,
    /// Whether QEMU expects the agents' sockets.
    pub(crate) agent: bool,
    pub(crate) run_dir: PathBuf,
    pub(crate) state_dir: PathBuf,
    /// The keeper's program and the cap of its log; `None`: no serial line.
    pub(crate) console: Option<(PathBuf, u64)>,
}

/// Two children at their gates. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Waiting {
    vmm: Gated,
    console: Option<Gated>,
    pub(crate) exited: Exited,
    /// Connected to the control socket that QEMU will answer.
    pub(crate) control: UnixStream,
}

/// The names of the TAPs that a spec needs opened, in the order of their descriptors.
pub(crate) fn taps(spec: &VmSpec) -> Vec<String> {
    let taps = spec.network.iter().filter_map(|nic| match &nic.kind {
        NicKind::Tap { device } => Some(device.clone()),
        NicKind::User { .. } => None,
    });
    taps.collect()
}

/// Makes the run directory with its sockets, and the children. Blocks for a millisecond or two.
pub(crate) fn make(order: Order, exits: &Exits) -> Result<Waiting, BackendError> {
    let Order { program, args, taps, agent, run_dir, state_dir, console } = order;
    let host = |e: &dyn std::error::Error| crate::host_error("HOST_DIRECTORY", e);
    ensure_private_dir(&run_dir).map_err(|e| host(&e))?;
    fault::point(Point::LaunchDirMade);
    ensure_private_dir(&state_dir).map_err(|e| host(&e))?;
    let stderr = crate::log::open(&state_dir.join(QEMU_LOG)).map_err(|e| host(&e))?;
    let taps = taps.iter().map(|name| open_tap(name).map_err(|e| tap_error(&e))).collect::<Result<Vec<_>, _>>()?;

    let qmp_socket = run_dir.join(QMP_SOCKET);
    let listener = bind_unix(&qmp_socket).map_err(|e| socket_error(&e))?;
    let control = connect_unix(&qmp_socket).map_err(|e| socket_error(&e))?;
    fault::point(Point::LaunchSocketBound);
    let mut launch = Launch::new(&program).args(args).cwd(&run_dir).fd(OwnedFd::from(listener), QMP_FD);
    for (tap, number) in taps.into_iter().zip(FIRST_TAP_FD..) {
        launch = launch.fd(tap, number);
    }
    if agent {
        for (name, number) in [(AGENT_SOCKET, AGENT_FD), (QEMU_GUEST_AGENT_SOCKET, QEMU_GUEST_AGENT_FD)] {
            let listener = bind_unix(&run_dir.join(name)).map_err(|e| socket_error(&e))?;
            launch = launch.fd(OwnedFd::from(listener), number);
        }
    }
    let mut keeper = None;
    if let Some((keeper_program, cap)) = console {
        let (guest_end, keeper_end) = socketpair().map_err(|e| socket_error(&e))?;
        launch = launch.fd(guest_end, SERIAL_FD);
        let listener = bind_unix(&run_dir.join(CONSOLE_SOCKET)).map_err(|e| socket_error(&e))?;
        fault::point(Point::LaunchConsoleBound);
        let log_dir = ensure_private_dir(&state_dir.join(CONSOLE_DIR)).map_err(|e| host(&e))?;
        mark_begin(&log_dir).map_err(|e| host(&e))?;
        let gated = Launch::new(&keeper_program)
            .args(["--cap".to_owned(), cap.to_string()])
            .cwd(&run_dir)
            .fd(keeper_end, GUEST_FD)
            .fd(OwnedFd::from(listener), LISTENER_FD)
            .fd(log_dir, LOG_DIR_FD)
            .stderr(stderr.as_fd().try_clone_to_owned().map_err(|e| host(&e))?)
            .spawn_gated()
            .map_err(|e| not_started(&keeper_program, &e))?;
        // Nobody waits for it: it ends with QEMU. Watched, so that it is collected.
        drop(exits.watch(gated.process())?);
        fault::point(Point::LaunchKeeperBorn);
        keeper = Some(gated);
    }
    let vmm = launch.stderr(stderr).spawn_gated().map_err(|e| not_started(&program, &e))?;
    let exited = exits.watch(vmm.process())?;
    fault::point(Point::LaunchVmmBorn);
    Ok(Waiting { vmm, console: keeper, exited, control })
}

impl Waiting {
    /// The record that names both children.
    pub(crate) fn record(&self, before: &LaunchRecord) -> LaunchRecord {
        LaunchRecord {
            vmm: Some(self.vmm.ident().clone()),
            console: self.console.as_ref().map(|gated| gated.ident().clone()),
            ..before.clone()
        }
    }

    /// Both children, before and after they have become their programs.
    pub(crate) fn processes(&self) -> Processes {
        Processes {
            vmm: self.vmm.process().clone(),
            console: self.console.as_ref().map(|gated| gated.process().clone()),
        }
    }

    /// Opens the gates, and blocks until both have become their programs. The keeper's is first: it ends
    /// with QEMU, also with one that never was, while a QEMU that is let go by a daemon that then dies
    /// would run with nobody at its serial line.
    pub(crate) fn release(self, program: &Path, keeper: &Path) -> Result<(Exited, UnixStream), BackendError> {
        if let Some(console) = self.console {
            console.release().map_err(|e| not_started(keeper, &e))?;
            fault::point(Point::LaunchKeeperReleased);
        }
        self.vmm.release().map_err(|e| not_started(program, &e))?;
        fault::point(Point::LaunchReleased);
        Ok((self.exited, self.control))
    }
}

/// Undoes a launch that failed: no process, no directory, no record. What cannot be undone now is
/// left to `clear`, which finds it by the record.
pub(crate) async fn undo(launch: LaunchId, run_dir: &Path, processes: Option<Processes>, journal: &dyn Journal) {
    let undone = async {
        fault::point(Point::UndoBegun);
        if let Some(processes) = processes {
            kill(&processes.vmm).await?;
            if let Some(console) = processes.console {
                kill(&console).await?;
            }
        }
        fault::point(Point::UndoKilled);
        remove_run_dir(run_dir).await?;
        fault::point(Point::UndoDirRemoved);
        journal.forget(roost_model::ResourceKind::Process, LAUNCH_KEY).await?;
        fault::point(Point::UndoForgotten);
        Ok::<(), BackendError>(())
    };
    if let Err(error) = undone.await {
        tracing::warn!(%launch, run_dir = %run_dir.display(), %error, "a failed launch is left to be cleared");
    }
}

/// Removes a run directory and what is in it, if there is one.
pub(crate) async fn remove_run_dir(run_dir: &Path) -> Result<(), BackendError> {
    remove_dir(run_dir.to_owned()).await
}

/// Removes a directory and what is in it, if there is one.
pub(crate) async fn remove_dir(dir: PathBuf) -> Result<(), BackendError> {
    crate::backend::on_thread(move || {
        let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
            return Err(BackendError::permanent(
                "HOST_DIRECTORY",
                format!("{} is no directory of a VM", dir.display()),
            ));
        };
        if !parent.exists() {
            return Ok(());
        }
        remove_tree_beneath(parent, name).map(drop).map_err(|e| crate::host_error("HOST_DIRECTORY", &e))
    })
    .await
}

fn socket_error(error: &SocketError) -> BackendError {
    match error {
        SocketError::InUse { path } => {
            let message = format!("a machine of this VM runs already: it listens on {}", path.display());
            BackendError::permanent("WRONG_STATE", message).hint("clear it away first")
        }
        error => crate::host_error("HOST_SOCKET", error),
    }
}

fn tap_error(error: &roost_host::tap::TapError) -> BackendError {
    use roost_host::tap::TapError;
    let message = crate::chain(error);
    match error {
        TapError::Busy { .. } => BackendError::transient("TAP_IN_USE", message).hint("stop what uses the TAP"),
        TapError::Permission { .. } => BackendError::permanent("TAP_FORBIDDEN", message)
            .hint("make the TAP with `ip tuntap add NAME mode tap user USER`, USER being the daemon's"),
        TapError::Call { .. } => BackendError::transient("HOST_EXHAUSTED", message),
        TapError::BadName { .. } | TapError::NotFound { .. } | TapError::NotATap { .. } => {
            BackendError::permanent("TAP_NOT_FOUND", message).hint("name an existing TAP of this host")
        }
    }
}
