//! What differs by operating system, behind names that are the same on each.
//!
//! A system is a folder here; `safe`, `freeze`, `identity` and `diagnose` call what it exports. The parsers in it
//! are pure functions over bytes; what acts takes a [`System`], so that a test can stand on a directory of its own.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::run::Program;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;

/// Where files and programs of this system are.
#[derive(Debug, Clone)]
pub struct System {
    root: PathBuf,
    path: Vec<PathBuf>,
    env: Vec<(OsString, OsString)>,
}

impl Default for System {
    fn default() -> Self {
        Self::at("/")
    }
}

impl System {
    /// One whose files and programs are beneath `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let path = ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"];
        Self { path: path.map(|directory| root.join(directory)).into(), root, env: Vec::new() }
    }

    /// One whose files are beneath `root` and whose programs are in `path`.
    pub fn new(root: impl Into<PathBuf>, path: Vec<PathBuf>) -> Self {
        Self { root: root.into(), path, env: Vec::new() }
    }

    /// For every program that is run: a proxy, an answer to its questions.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The file that an absolute path stands for.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub(crate) fn path(&self) -> &[PathBuf] {
        &self.path
    }

    /// Whether it is the running system itself, and not a directory that stands for one.
    pub(crate) fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Whether there is such a program.
    pub(crate) fn has(&self, program: &str) -> bool {
        crate::run::find(program.as_ref(), &self.path).is_some()
    }

    /// A program with this system's environment.
    pub(crate) fn program<S: AsRef<std::ffi::OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Program {
        self.env.iter().fold(Program::new(argv), |program, (name, value)| program.env(name, value))
    }
}
