//! `roost daemon`: starting, stopping and looking at the daemon of this state directory.
//!
//! Nothing is ended by name or by number: the process that holds the lock is taken by pidfd, and is
//! told to stop only if it is a `roostd`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Stdio};
use std::time::Duration;

use clap::{Args, Subcommand};
use roost_client::Error as ClientError;
use roost_client::v1::{BackendDescription, GetVersionResponse, ListVmsRequest};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use tokio::io::AsyncReadExt;

use crate::context::Context;
use crate::error::Failure;
use crate::escape;
use crate::progress::Spinner;
use crate::values::{STATES, duration, word_of};

/// The daemon's program.
const PROGRAM: &str = "roostd";
/// How much of the log is shown when it does not start.
const LAST_OF_LOG: u64 = 4096;

/// The daemon itself.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start it in the background
    Start(Start),
    /// Stop it; guests go on
    Stop(Stop),
    /// Show whether it runs (exit code 3 when not)
    Status,
}

/// Starts the daemon.
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// How long it may take to be ready
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "60s")]
    timeout: Duration,
    /// Flags for roostd, e.g. -- --backend sim
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

/// Stops the daemon.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// How long it may take
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s")]
    timeout: Duration,
}

/// Runs a command.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::Start(command) => command.run(context).await,
        Command::Stop(command) => command.run(context).await,
        Command::Status => status(context).await,
    }
}

impl Start {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        if let Ok(version) = context.client.version().await {
            let pid = holder(&context.paths.state_dir).map(|h| format!(", pid {}", h.pid)).unwrap_or_default();
            return context.say(&format!("the daemon runs already (version {}{pid})", version.version));
        }
        let state_dir = &context.paths.state_dir;
        let log_path = state_dir.join("daemon.log");
        let log = open_log(state_dir, &log_path).map_err(|e| {
            Failure::other(
                format!("{} cannot be written: {e}", log_path.display()),
                "is the state directory yours? ROOST_STATE_DIR names another",
            )
        })?;
        let before = log.metadata().map_or(0, |m| m.len());
        let program = program();
        let mut command = std::process::Command::new(&program);
        command.args(&self.flags).env("ROOST_READY_FD", "1");
        // Said only where the user said it: a state directory of one's own moves the sockets too.
        if std::env::var_os("ROOST_STATE_DIR").is_some_and(|dir| !dir.is_empty()) {
            command.env("ROOST_STATE_DIR", state_dir);
        }
        if context.socket_given {
            command.env("ROOST_SOCKET", &context.paths.socket);
        }
        // Away from our terminal: neither its Ctrl-C nor its end reaches the daemon.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().map_err(|e| {
            Failure::other(
                format!("{} cannot be started: {e}", program.display()),
                "install roostd beside roost, or on the PATH",
            )
        })?;
        let pid = child.id();
        let ready = child.stdout.take().expect("it is piped");
        let spinner = Spinner::new(context, "starting the daemon");
        let outcome = tokio::time::timeout(self.timeout, until_ready(ready)).await;
        drop(spinner);
        match outcome {
            Ok(true) => context.say(&format!("the daemon runs (pid {pid}, socket {})", context.paths.socket.display())),
            Ok(false) => {
                let exit = child.wait().map(|s| s.to_string()).unwrap_or_default();
                let said = since(&log_path, before).trim_end().replace('\n', "\n  ");
                crate::error::eprint(&format!("  {}\n", escape::lines(&said)));
                Err(Failure::other(
                    format!("the daemon did not start ({exit})"),
                    format!("its words are above, and at the end of {}", log_path.display()),
                ))
            }
            Err(_) => Err(Failure::Timeout {
                message: format!("the daemon (pid {pid}) is not ready yet"),
                hint: format!("it goes on starting; {} says how far it is", log_path.display()),
            }),
        }
    }
}

impl Stop {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let Some(holder) = holder(&context.paths.state_dir) else {
            return context.say("no daemon runs");
        };
        let cannot = |e: rustix::io::Errno| {
            Failure::other(format!("the daemon (pid {}) cannot be stopped: {e}", holder.pid), "is it another user's?")
        };
        pidfd_send_signal(&holder.pidfd, Signal::TERM).map_err(cannot)?;
        let spinner = Spinner::new(context, "stopping the daemon");
        let ended = ends_within(holder.pidfd, self.timeout).await.map_err(cannot)?;
        drop(spinner);
        if !ended {
            return Err(Failure::Timeout {
                message: format!("the daemon (pid {}) has not stopped yet", holder.pid),
                hint: format!("{} says what it does", context.paths.state_dir.join("daemon.log").display()),
            });
        }
        context.say("the daemon has stopped; guests go on, and the next daemon finds them")
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    running: bool,
    socket: PathBuf,
    state_dir: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<GetVersionResponse>,
    backends: Vec<BackendDescription>,
    /// How many VMs are in each state.
    vms: std::collections::BTreeMap<&'static str, u64>,
}

async fn status(context: &Context) -> Result<(), Failure> {
    let mut status = Status {
        running: false,
        socket: context.paths.socket.clone(),
        state_dir: context.paths.state_dir.clone(),
        pid: holder(&context.paths.state_dir).map(|h| h.pid.as_raw_nonzero().get()),
        version: None,
        backends: Vec::new(),
        vms: std::collections::BTreeMap::new(),
    };
    match context.client.version().await {
        Ok(version) => {
            status.running = true;
            status.version = Some(version);
            status.backends = context.client.list_backends().await?;
            for state in STATES {
                let request = ListVmsRequest { states: vec![state.into()], page_size: 1, ..Default::default() };
                status.vms.insert(word_of(state), context.client.list_vms(request).await?.total_size);
            }
        }
        Err(ClientError::Unreachable { .. }) => {}
        Err(other) => return Err(other.into()),
    }
    if context.for_people() {
        context.say_lines(&text(&status))?;
    } else {
        context.document(&status)?;
    }
    if status.running { Ok(()) } else { Err(Failure::Told(3)) }
}

fn text(status: &Status) -> String {
    let mut out = String::new();
    let mut row = |label: &str, value: &str| out.push_str(&format!("{label:<10} {}\n", escape::line(value)));
    match (&status.version, status.pid) {
        (Some(_), Some(pid)) => row("Status:", &format!("running, pid {pid}")),
        (Some(_), None) => row("Status:", "running"),
        (None, Some(pid)) => row("Status:", &format!("process {pid} holds the state directory but does not answer")),
        (None, None) => row("Status:", "not running"),
    }
    if let Some(version) = &status.version {
        row("Version:", &version.version);
    }
    row("Socket:", &status.socket.display().to_string());
    row("State:", &status.state_dir.display().to_string());
    for backend in &status.backends {
        let default = status.version.as_ref().is_some_and(|v| v.default_backend == backend.name);
        let mut text = backend.name.clone();
        text.push_str(if default { " (default)" } else { "" });
        if !backend.available {
            text.push_str(&format!(": not available: {}", backend.reason));
        }
        row("Backend:", &text);
    }
    if status.running {
        let all: u64 = status.vms.values().sum();
        let counts: Vec<_> =
            STATES.into_iter().map(word_of).filter(|s| status.vms.get(s).is_some_and(|n| *n > 0)).collect();
        let counts: Vec<_> = counts.into_iter().map(|s| format!("{} {s}", status.vms[s])).collect();
        let counts = if counts.is_empty() { String::new() } else { format!(" ({})", counts.join(", ")) };
        row("VMs:", &format!("{all}{counts}"));
    } else {
        row("Next:", "roost daemon start");
    }
    out
}

/// The daemon of a state directory, by its lock.
struct Holder {
    pid: Pid,
    pidfd: OwnedFd,
}

/// `None` when no daemon holds it: the lock's file stays when its daemon ends.
fn holder(state_dir: &Path) -> Option<Holder> {
    let text = std::fs::read_to_string(state_dir.join("lock")).ok()?;
    let pid = Pid::from_raw(text.trim().parse().ok().filter(|n: &i32| *n > 0)?)?;
    // First the descriptor, then the look: what was looked at is what the descriptor holds.
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    let program = std::fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).ok()?;
    let name = program.file_name()?.to_str()?;
    // The kernel says so of a program that was replaced while it runs.
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    (name == PROGRAM && holds(pid, &state_dir.join("lock"))).then_some(Holder { pid, pidfd })
}

/// Whether the process has the lock's file open: a number in a lock that was left behind may be
/// anybody's by now, another daemon's too.
fn holds(pid: Pid, lock: &Path) -> bool {
    let Ok(lock) = lock.metadata() else { return false };
    let Ok(open) = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())) else { return false };
    open.flatten().any(|fd| fd.path().metadata().is_ok_and(|file| (file.dev(), file.ino()) == (lock.dev(), lock.ino())))
}

/// Whether the process ends within this time. Waited for on a thread of its own, so that Ctrl-C is
/// heard meanwhile.
async fn ends_within(process: OwnedFd, time: Duration) -> rustix::io::Result<bool> {
    let limit =
        Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() };
    let wait = move || poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)).map(|events| events > 0);
    tokio::task::spawn_blocking(wait).await.expect("waiting does not panic")
}

/// Beside us, else wherever the PATH finds it.
fn program() -> PathBuf {
    let beside = std::env::current_exe().map(|own| own.with_file_name(PROGRAM));
    beside.ok().filter(|p| p.exists()).unwrap_or_else(|| PathBuf::from(PROGRAM))
}

fn open_log(state_dir: &Path, path: &Path) -> io::Result<File> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
    File::options().append(true).create(true).mode(0o600).open(path)
}

/// What was written to the log since it had this length, or the end of that.
fn since(path: &Path, length: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.max(end.saturating_sub(LAST_OF_LOG))))?;
        let mut bytes = Vec::new();
        file.take(LAST_OF_LOG).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

/// Whether it said `ready`; its end closes the pipe.
async fn until_ready(pipe: ChildStdout) -> bool {
    let Ok(mut pipe) = tokio::process::ChildStdout::from_std(pipe) else { return false };
    let mut said = Vec::new();
    let mut piece = [0; 256];
    loop {
        match pipe.read(&mut piece).await {
            Ok(0) | Err(_) => return false,
            Ok(got) => said.extend_from_slice(&piece[..got]),
        }
        if said.split(|b| *b == b'\n').any(|line| line == b"ready") {
            return true;
        }
    }
}
