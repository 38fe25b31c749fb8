//! A `roostd` on a directory of its own, from the directory of this program.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use roost_client::{Client, v1};
use tempfile::TempDir;

use crate::host;

/// Dropping it ends it with all that belongs to it.
#[derive(Debug)]
pub(crate) struct Daemon {
    dir: TempDir,
    settings: Vec<String>,
    child: Option<Child>,
}

impl Daemon {
    /// A daemon with these `KEY=VALUE` settings, serving.
    pub(crate) fn start(settings: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("rb").tempdir()?;
        let settings = settings.iter().map(|s| (*s).to_owned()).collect();
        let mut daemon = Self { dir, settings, child: None };
        daemon.start_again()?;
        Ok(daemon)
    }

    /// From the start of the program to its line that it serves.
    pub(crate) fn start_again(&mut self) -> Result<Duration> {
        ensure!(self.child.is_none(), "the daemon runs already");
        let program = beside_us("roostd")?;
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = Command::new(&program);
        command.arg("--state-dir").arg(self.state_dir()).env("ROOST_READY_FD", "1");
        for setting in &self.settings {
            command.arg("--set").arg(setting);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let begun = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let stdout = child.stdout.take().context("standard output is a pipe")?;
        self.child = Some(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let took = begun.elapsed();
        if line != "ready\n" {
            bail!("roostd did not start: {}", std::fs::read_to_string(self.log()).unwrap_or_default());
        }
        Ok(took)
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the daemon runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Ends it in order.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the daemon runs")?;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        ensure!(child.wait()?.success(), "roostd did not end well");
        Ok(())
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the daemon runs")?.id())
    }

    /// A client with a connection of its own.
    pub(crate) fn client(&self) -> Client {
        Client::connect_unix(self.state_dir().join("run/api.sock"))
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone = child.kill();
            let _reaped = child.wait();
        }
        for (pid, _) in host::processes_of(self.dir.path()) {
            host::end(pid, Some(self.dir.path()));
        }
    }
}

/// A program that was built with this one.
pub(crate) fn beside_us(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "{} is missing: `make bench` builds what is measured", path.display());
    Ok(path)
}

/// Creates a VM and boots it; its ID.
pub(crate) async fn start_vm(client: &Client, mut request: v1::CreateVmRequest) -> Result<String> {
    request.start = true;
    let made = client.create_vm(request).await?;
    ensure!(made.state == v1::VmState::VM_STATE_RUNNING, "{} does not run: {:?}", made.vm_id, made.operation);
    Ok(made.vm_id)
}

/// Ends a VM at once.
pub(crate) async fn delete_vm(client: &Client, vm_id: String) -> Result<()> {
    client.delete_vm(v1::DeleteVmRequest { vm_id, force: true, ..Default::default() }).await?;
    Ok(())
}

/// The process that is the VM's machine.
pub(crate) async fn pid_of(client: &Client, vm: &str) -> Result<u32> {
    let info = client.get_vm_info(vm).await?;
    Ok(info.backend_info.get("pid").context("a QEMU tells its pid")?.parse()?)
}
