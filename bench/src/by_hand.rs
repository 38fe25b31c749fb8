//! The same QEMU without Roost: the very arguments that Roost gives, with the two sockets that they
//! name by descriptor put in by hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Past this something is broken.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a QEMU was started.
#[derive(Debug)]
pub(crate) struct CommandLine(Vec<String>);

/// A QEMU that was started by hand. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Qemu {
    child: Child,
    control: BufReader<UnixStream>,
    serial: UnixStream,
}

impl CommandLine {
    /// That of a running one. Its program is put in place of the one that runs: it may stand before that.
    pub(crate) fn of(pid: u32, program: Option<&Path>) -> Result<Self> {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline"))?;
        let text = String::from_utf8(bytes)?;
        let mut args: Vec<String> = text.split_terminator('\0').map(str::to_owned).collect();
        if let Some(program) = program {
            args[0] = program.to_str().context("a path of ours is Unicode")?.to_owned();
        }
        for chardev in ["qmp", "serial0"] {
            let prefix = format!("socket,id={chardev},fd=");
            ensure!(args.iter().any(|arg| arg.starts_with(&prefix)), "QEMU has no {prefix}... among {args:?}");
        }
        Ok(Self(args))
    }

    /// Starts it. Its control socket listens before it exists, as a shell script cannot do it but a
    /// fair comparison must: nobody polls.
    pub(crate) fn start(&self, dir: &Path) -> Result<Qemu> {
        let socket = dir.join("by-hand.sock");
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let listener = OwnedFd::from(UnixListener::bind(&socket)?);
        let control = UnixStream::connect(&socket)?;
        let (serial, guest_end) = UnixStream::pair()?;
        let guest_end = OwnedFd::from(guest_end);
        for inherited in [&listener, &guest_end] {
            rustix::io::fcntl_setfd(inherited, rustix::io::FdFlags::empty())?;
        }
        let args = self.0[1..].iter().map(|arg| {
            let (fd, old) = match arg {
                arg if arg.starts_with("socket,id=qmp,fd=") => (listener.as_raw_fd(), "fd=3"),
                arg if arg.starts_with("socket,id=serial0,fd=") => (guest_end.as_raw_fd(), "fd=4"),
                arg => return arg.clone(),
            };
            arg.replacen(old, &format!("fd={fd}"), 1)
        });
        let mut command = Command::new(&self.0[0]);
        command.args(args).env_clear().stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start {}", self.0[0]))?;
        for ours in [&control, &serial] {
            ours.set_read_timeout(Some(PATIENCE))?;
        }
        Ok(Qemu { child, control: BufReader::new(control), serial })
    }
}

impl Qemu {
    /// Waits until QMP says that its CPUs run.
    pub(crate) fn until_running(&mut self) -> Result<()> {
        let ask = b"{\"execute\":\"query-status\"}";
        self.control.get_mut().write_all(b"{\"execute\":\"qmp_capabilities\"}")?;
        self.control.get_mut().write_all(ask)?;
        let mut line = String::new();
        loop {
            line.clear();
            ensure!(self.control.read_line(&mut line)? > 0, "QEMU has ended");
            if line.contains("\"status\": \"running\"") {
                return Ok(());
            }
            if line.contains("\"status\":") {
                self.control.get_mut().write_all(ask)?;
            }
        }
    }

    /// Waits until the guest has written this on its serial line.
    pub(crate) fn until_written(&mut self, text: &str) -> Result<()> {
        let (mut seen, mut chunk) = (Vec::new(), [0; 4096]);
        while !contains(&seen, text) {
            let got = self.serial.read(&mut chunk).context("the guest said nothing for long")?;
            ensure!(got > 0, "QEMU has ended");
            seen.extend_from_slice(&chunk[..got]);
        }
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Whether the guest's output holds this text.
pub(crate) fn contains(output: &[u8], text: &str) -> bool {
    output.windows(text.len()).any(|w| w == text.as_bytes())
}
