//! The cache of built guests: one directory per set of inputs, complete or absent.
//!
//! Owned here: where it is, how a directory is named, and that concurrent builders (test processes
//! start in parallel) build it once. Not owned: what goes into it.
//!
//! ```text
//! absent --lock--> build in a sibling --rename--> complete, never written again
//! ```
//!
//! Nothing is ever removed from it: the whole cache may be deleted at any time by the user.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

/// A directory of entries, each named `<kind>-<digest of its inputs>`.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The user's cache: `ROOST_GUEST_CACHE`, else `$XDG_CACHE_HOME/roost/guest`, else
    /// `$HOME/.cache/roost/guest`.
    pub fn from_env() -> Result<Self> {
        let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let root = match (set("ROOST_GUEST_CACHE"), set("XDG_CACHE_HOME"), set("HOME")) {
            (Some(cache), _, _) => cache,
            (None, Some(xdg), _) => xdg.join("roost/guest"),
            (None, None, Some(home)) => home.join(".cache/roost/guest"),
            (None, None, None) => {
                bail!("no place for the guest cache: set ROOST_GUEST_CACHE, XDG_CACHE_HOME or HOME")
            }
        };
        Ok(Self::at(std::path::absolute(root)?))
    }

    /// A cache in `root`, which is made when it is first needed.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory made from `inputs`. Where there is none, `build` fills an empty directory, which
    /// takes its final name when that succeeded. Other callers for the same inputs wait meanwhile,
    /// whether they are threads or processes.
    pub fn entry(&self, kind: &str, inputs: &Inputs, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let name = format!("{kind}-{}", inputs.digest());
        let entry = self.root.join(&name);
        if entry.is_dir() {
            return Ok(entry);
        }

        fs::create_dir_all(&self.root)
            .with_context(|| format!("cannot make the guest cache {}", self.root.display()))?;
        let lock_path = self.root.join(format!(".{name}.lock"));
        let lock = File::create(&lock_path).with_context(|| format!("cannot make {}", lock_path.display()))?;
        lock.lock().with_context(|| format!("cannot lock {}", lock_path.display()))?;
        if entry.is_dir() {
            return Ok(entry);
        }

        // Holding the lock, so a directory of this name is what a builder that died left behind.
        let partial = self.root.join(format!(".{name}.partial"));
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("cannot remove {}", partial.display()))?;
        }
        fs::create_dir(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
        if let Err(error) = build(&partial) {
            // The build's error is the one to report; what is left is removed by the next builder.
            let _ = fs::remove_dir_all(&partial);
            return Err(error);
        }
        fs::rename(&partial, &entry).with_context(|| format!("cannot put {} in place", entry.display()))?;
        Ok(entry)
    }
}

/// What an entry is made from, in the order given. Equal inputs give the same entry.
#[derive(Debug, Clone, Default)]
pub struct Inputs(Sha256);

impl Inputs {
    /// No inputs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one input. Length prefixes keep `("ab", "c")` and `("a", "bc")` apart.
    pub fn add(&mut self, label: &str, content: impl AsRef<[u8]>) -> &mut Self {
        for part in [label.as_bytes(), content.as_ref()] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// 128 bits in hexadecimal: enough to tell the inputs of one user apart, and a short name.
    fn digest(&self) -> String {
        let digest = self.0.clone().finalize();
        digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn inputs(content: &str) -> Inputs {
        let mut inputs = Inputs::new();
        inputs.add("content", content);
        inputs
    }

    #[test]
    fn equal_inputs_are_built_once_even_by_concurrent_callers() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let builds = AtomicU32::new(0);
        let entries: Vec<PathBuf> = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        cache
                            .entry("thing", &inputs("a"), |dir| {
                                builds.fetch_add(1, Ordering::SeqCst);
                                Ok(fs::write(dir.join("file"), "made")?)
                            })
                            .unwrap()
                    })
                })
                .collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).collect()
        });
        assert_eq!(builds.load(Ordering::SeqCst), 1);
        for entry in &entries {
            assert_eq!(entry, &entries[0]);
            assert_eq!(fs::read_to_string(entry.join("file")).unwrap(), "made");
        }
    }

    #[test]
    fn other_inputs_give_another_entry() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let a = cache.entry("thing", &inputs("a"), |_| Ok(())).unwrap();
        let b = cache.entry("thing", &inputs("b"), |_| Ok(())).unwrap();
        assert_ne!(a, b);
        let joined = |parts: &[(&str, &str)]| {
            let mut inputs = Inputs::new();
            for (label, content) in parts {
                inputs.add(label, content);
            }
            inputs.digest()
        };
        assert_ne!(joined(&[("ab", "c")]), joined(&[("a", "bc")]));
    }

    #[test]
    fn a_failed_or_interrupted_build_leaves_no_entry_and_does_not_disturb_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let failed = cache.entry("thing", &inputs("a"), |dir| {
            fs::write(dir.join("half"), "")?;
            bail!("no disk")
        });
        assert_eq!(failed.unwrap_err().to_string(), "no disk");

        // As a builder that was killed leaves it.
        let partial = dir.path().join(format!(".thing-{}.partial", inputs("a").digest()));
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join("half"), "").unwrap();

        let entry = cache.entry("thing", &inputs("a"), |dir| Ok(fs::write(dir.join("whole"), "")?)).unwrap();
        let names: Vec<_> = fs::read_dir(&entry).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["whole"]);
    }
}
