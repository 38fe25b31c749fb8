//! Builds the micro guest of `guests/micro`, which has no operating system.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cache::{Cache, Inputs};
use crate::repository;

/// For gcc. An ELF64 file of 32-bit code: every loader of PVH kernels takes that.
const FLAGS: &[&str] = &[
    "-m64",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    // It has one segment, writable and executable: it never turns paging on.
    "-Wl,--no-warn-rwx-segments",
];

/// The path of the micro guest's kernel in the user's cache, built first where it is not there.
pub fn micro_guest() -> Result<PathBuf> {
    micro_guest_in(&Cache::from_env()?)
}

/// The same from another cache.
pub fn micro_guest_in(cache: &Cache) -> Result<PathBuf> {
    let sources = repository().join("guests/micro");
    let (code, script) = (sources.join("guest.S"), sources.join("guest.ld"));
    let mut inputs = Inputs::new();
    inputs.add("flags", FLAGS.join(" "));
    for file in [&code, &script] {
        inputs.add("source", fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    let entry = cache.entry("micro", &inputs, |dir| {
        let output = Command::new("gcc")
            .args(FLAGS)
            .arg("-T")
            .arg(&script)
            .arg("-o")
            .arg(dir.join("micro.elf"))
            .arg(&code)
            .stdin(Stdio::null())
            .output()
            .context("cannot run gcc")?;
        ensure!(output.status.success(), "gcc: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    })?;
    Ok(entry.join("micro.elf"))
}
