//! Short runs of QEMU that answer a question: what can this binary do, does `/dev/kvm` work.
//!
//! Such a run is in no record. It ends by itself (its commands, `quit` at the end, lie in its
//! socket before it starts; its guest ends its machine), so that nothing is left even when this
//! process dies in the middle; and it is killed when the question is dropped.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use roost_backend::BackendError;
use roost_host::exits::ExitStatus;
use roost_host::launch::{Launch, LaunchError};
use roost_host::process::Process;
use rustix::fs::{MemfdFlags, SealFlags};

use crate::exits::{Exited, Exits};

/// What a run may say on its standard output and error; what is more is refused to it.
const SAID_LIMIT: u64 = 64 * 1024;

#[derive(Debug)]
pub(crate) struct Trial {
    process: Process,
    exited: Exited,
    said: OwnedFd,
}

impl Trial {
    /// Starts a run with its descriptors at their numbers.
    pub(crate) fn start(
        binary: &Path,
        args: Vec<OsString>,
        fds: Vec<(OwnedFd, RawFd)>,
        exits: &Exits,
    ) -> Result<Self, BackendError> {
        let exhausted = |e: std::io::Error| crate::host_error("HOST_EXHAUSTED", &e);
        let said = bounded_file().map_err(exhausted)?;
        let (stdout, stderr) = (said.try_clone().map_err(exhausted)?, said.try_clone().map_err(exhausted)?);
        let mut launch = Launch::new(binary).args(args).stdout(stdout).stderr(stderr);
        for (fd, number) in fds {
            launch = launch.fd(fd, number);
        }
        let gated = launch.spawn_gated().map_err(|e| not_started(binary, &e))?;
        let exited = exits.watch(gated.process())?;
        let process = gated.release().map_err(|e| not_started(binary, &e))?;
        Ok(Self { process, exited, said })
    }

    /// Waits for the end; `None` when it did not come in time.
    pub(crate) async fn end(&mut self, limit: Duration) -> Option<Option<ExitStatus>> {
        tokio::time::timeout(limit, &mut self.exited).await.ok().map(|exit| exit.ok().flatten())
    }

    /// What it said on its standard output and error, in lines.
    pub(crate) fn said(&self) -> Vec<String> {
        // The position is shared with the run: it is how much it wrote.
        let written = rustix::fs::tell(&self.said).unwrap_or(0).min(SAID_LIMIT);
        let mut text = vec![0; usize::try_from(written).unwrap_or(0)];
        let read = rustix::io::pread(&self.said, &mut text[..], 0).unwrap_or(0);
        crate::log::printable(&text[..read])
    }

    /// The last line of it.
    pub(crate) fn last_words(&self) -> String {
        self.said().pop().unwrap_or_default()
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // The watcher collects it. One that is gone already is what is wanted.
        let _ = self.process.kill();
    }
}

/// A file without a name that holds these bytes.
pub(crate) fn file_with(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let mut file = std::fs::File::from(rustix::fs::memfd_create("roost-trial", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// A file without a name that cannot grow: a run that never stops talking fills no memory.
fn bounded_file() -> std::io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("roost-trial", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&file, SAID_LIMIT)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::GROW)?;
    Ok(file)
}

/// Why the program could not become a process.
pub(crate) fn not_started(program: &Path, error: &LaunchError) -> BackendError {
    let message = crate::chain(error);
    match error {
        LaunchError::Child { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            BackendError::permanent("PROGRAM_NOT_FOUND", message)
                .hint(format!("check that {} and its interpreter exist", program.display()))
        }
        LaunchError::Child { source, .. } if source.raw_os_error() == Some(8) => {
            BackendError::permanent("PROGRAM_NOT_EXECUTABLE", format!("{} is not a program", program.display()))
        }
        LaunchError::Child { .. } => BackendError::permanent("PROGRAM_NOT_EXECUTABLE", message),
        _ => BackendError::transient("HOST_EXHAUSTED", message),
    }
}
