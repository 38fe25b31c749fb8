//! When exactly QEMU was executed: a copy of this program under QEMU's name notes the time and
//! becomes QEMU.
//!
//! Roost and the run by hand start the same copy, so that what it costs is on neither side.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

const NAME: &str = "qemu-system-x86_64";

/// A stand-in for QEMU.
#[derive(Debug)]
pub(crate) struct Stamp(PathBuf);

impl Stamp {
    /// Makes it in the directory.
    pub(crate) fn make(dir: &Path) -> Result<Self> {
        let path = dir.join(NAME);
        std::fs::copy(std::env::current_exe()?, &path)?;
        let search = std::env::var_os("PATH").unwrap_or_default();
        let real = std::env::split_paths(&search).map(|dir| dir.join(NAME)).find(|path| path.exists());
        std::os::unix::fs::symlink(real.with_context(|| format!("no {NAME} is installed"))?, beside(&path, "real"))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// When it was last executed, in ms since the epoch.
    pub(crate) fn executed_ms(&self) -> Result<f64> {
        Ok(std::fs::read_to_string(beside(&self.0, "stamp"))?.parse::<f64>()?)
    }
}

/// Becomes QEMU if this is the copy; returns if it is not.
pub(crate) fn become_qemu() {
    let mut args = std::env::args_os();
    let Some(own) = args.next().map(PathBuf::from).filter(|own| own.file_name() == Some(NAME.as_ref())) else { return };
    let noted = std::fs::write(beside(&own, "stamp"), now_ms().to_string());
    let failed = Command::new(beside(&own, "real")).args(args).exec();
    eprintln!("bench: cannot become QEMU: {failed} (time noted: {noted:?})");
    std::process::exit(1);
}

/// Now, in ms since the epoch.
pub(crate) fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e3
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    path.with_file_name(format!("{NAME}.{suffix}"))
}
