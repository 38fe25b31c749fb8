//! Builds the guest agent as guests run it: one static program.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cache::{Cache, Inputs};
use crate::repository;

/// The guest images are for this one too.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What the program is made from. Another dependency shows in the lock file.
const SOURCES: &[&str] = &[
    "crates/guest-agent/Cargo.toml",
    "crates/guest-agent/src",
    "crates/guest-proto/Cargo.toml",
    "crates/guest-proto/src",
];

/// The path of a static `roost-agent` in the user's cache, built first where it is not there.
pub fn static_agent() -> Result<PathBuf> {
    static_agent_in(&Cache::from_env()?)
}

/// The same from another cache.
pub fn static_agent_in(cache: &Cache) -> Result<PathBuf> {
    let mut inputs = Inputs::new();
    inputs.add("target", TARGET);
    for source in ["Cargo.lock", "rust-toolchain.toml"].iter().chain(SOURCES) {
        add(&mut inputs, &repository().join(source))?;
    }
    let entry = cache.entry("agent", &inputs, build)?;
    Ok(entry.join("roost-agent"))
}

fn add(inputs: &mut Inputs, path: &Path) -> Result<()> {
    if path.is_dir() {
        let mut below: Vec<PathBuf> =
            fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<_, std::io::Error>>()?;
        below.sort();
        return below.iter().try_for_each(|path| add(inputs, path));
    }
    let name = path.strip_prefix(repository()).unwrap_or(path).as_os_str().as_encoded_bytes();
    let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    inputs.add("name", name).add("source", content);
    Ok(())
}

fn build(dir: &Path) -> Result<()> {
    // Of its own, so that no other build waits for this one or throws its results away.
    let target_dir = target_dir().join("agent-build");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--locked", "--profile", "agent", "--package", "roost-guest-agent", "--bin", "roost-agent"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(repository())
        .stdin(Stdio::null())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the agent cannot be built: {}", String::from_utf8_lossy(&output.stderr).trim());
    let built = target_dir.join(TARGET).join("agent/roost-agent");
    fs::copy(&built, dir.join("roost-agent")).with_context(|| format!("cannot copy {}", built.display()))?;
    Ok(())
}

fn target_dir() -> PathBuf {
    let given = env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    repository().join(given.unwrap_or_else(|| "target".into()))
}
