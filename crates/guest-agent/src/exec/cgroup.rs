//! A cgroup for each command, where the guest has a tree that the agent may write: what a command started is then
//! found and ended however it hides, and its limits hold for all of it together.
//!
//! With cgroup v2, groups are made once and used again while they are empty, and a program starts inside one: no
//! process is ever moved, which costs the kernel a grace period. With v1, only a command that has limits gets groups.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use roost_guest_proto::Limits;
use rustix::process::{Pid, Signal};

/// The most empty groups that are kept.
const POOL: usize = 8;

/// Where this guest's groups are.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    v2: Option<PathBuf>,
    /// The v2 tree has memory and processes to limit.
    v2_limits: bool,
    v1_memory: Option<PathBuf>,
    v1_pids: Option<PathBuf>,
    pool: Vec<Group>,
    /// Left by commands of which something still runs.
    lingering: Vec<Group>,
    made: u64,
    failures: u32,
}

/// The groups of one command.
#[derive(Debug)]
pub(crate) struct Group {
    v2: Option<V2>,
    v1: Vec<PathBuf>,
    /// `cgroup.procs` of the v1 groups.
    enter: Vec<OwnedFd>,
    limited: bool,
    /// Some kernels end whatever starts in a group that was.
    killed: Cell<bool>,
}

#[derive(Debug)]
struct V2 {
    path: PathBuf,
    directory: File,
    procs: File,
}

impl Cgroups {
    /// Looks for trees that may be written.
    pub(crate) fn detect() -> Self {
        let mut found = Self::default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for mount in mounts.lines().filter_map(Mount::parse) {
            let Some(base) = mount.own_directory(&own) else { continue };
            if mount.kind == "cgroup2" {
                found.use_v2(&base);
            } else if mount.has("memory") {
                found.v1_memory = Some(base).filter(|base| writable(base));
            } else if mount.has("pids") {
                found.v1_pids = Some(base).filter(|base| writable(base));
            }
        }
        found
    }

    fn use_v2(&mut self, base: &Path) {
        let execs = base.join("roost-exec");
        if fs::create_dir(&execs).is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists) {
            return;
        }
        sweep(&execs);
        let available = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
        let wanted: Vec<&str> =
            ["memory", "pids"].into_iter().filter(|name| available.split_whitespace().any(|it| it == *name)).collect();
        if wanted.len() == 2 {
            let text: String = wanted.iter().map(|name| format!("+{name} ")).collect();
            let enable = || {
                write(&base.join("cgroup.subtree_control"), text.trim_end())?;
                write(&execs.join("cgroup.subtree_control"), text.trim_end())
            };
            // A group that has groups with limits may hold no process but the root's: the agent moves aside.
            self.v2_limits = enable().is_ok() || {
                let aside = base.join("roost-agent");
                let moved =
                    fs::create_dir(&aside).or_else(exists).and_then(|()| write(&aside.join("cgroup.procs"), "0"));
                let enabled = moved.is_ok() && enable().is_ok();
                if moved.is_ok() && !enabled {
                    let _ = write(&base.join("cgroup.procs"), "0");
                    let _ = fs::remove_dir(&aside);
                }
                enabled
            };
        }
        self.v2 = Some(execs);
    }

    /// What limits hold by.
    pub(crate) fn can_limit(&self) -> (bool, bool) {
        let v2 = self.v2.is_some() && self.v2_limits;
        (v2 || self.v1_memory.is_some(), v2 || self.v1_pids.is_some())
    }

    /// Groups for a command; `None` where there is nothing to gain.
    pub(crate) fn take(&mut self, limits: &Limits) -> io::Result<Option<Group>> {
        self.reap();
        let limited = limits.memory_bytes.is_some() || limits.processes.is_some();
        if !limited && let Some(group) = self.pool.pop() {
            return Ok(Some(group));
        }
        self.made += 1;
        let name = format!("{}-{}", std::process::id(), self.made);
        let mut group = Group { v2: None, v1: Vec::new(), enter: Vec::new(), limited, killed: Cell::new(false) };
        if let Some(base) = &self.v2 {
            let path = base.join(&name);
            fs::create_dir(&path)?;
            let directory = File::open(&path)?;
            let procs = OpenOptions::new().read(true).write(true).open(path.join("cgroup.procs"))?;
            group.v2 = Some(V2 { path: path.clone(), directory, procs });
            if self.v2_limits {
                if let Some(bytes) = limits.memory_bytes {
                    write(&path.join("memory.max"), &bytes.to_string())?;
                    let _ = write(&path.join("memory.swap.max"), "0");
                }
                if let Some(count) = limits.processes {
                    write(&path.join("pids.max"), &count.to_string())?;
                }
            }
        }
        if limited && !self.v2_limits {
            let v1 = [
                (&self.v1_memory, "memory.limit_in_bytes", limits.memory_bytes),
                (&self.v1_pids, "pids.max", limits.processes),
            ];
            for (base, file, limit) in v1 {
                let (Some(base), Some(limit)) = (base, limit) else { continue };
                let path = base.join(format!("roost-{name}"));
                fs::create_dir(&path)?;
                group.v1.push(path.clone());
                write(&path.join(file), &limit.to_string())?;
                group.enter.push(OpenOptions::new().write(true).open(path.join("cgroup.procs"))?.into());
            }
        }
        Ok(if group.v2.is_none() && group.v1.is_empty() { None } else { Some(group) })
    }

    /// A program could not start in one: they were removed, or this kernel does not let it.
    pub(crate) fn failed(&mut self) {
        self.pool.clear();
        self.failures += 1;
        if self.failures >= 3 {
            self.v2 = None;
        }
    }

    /// Takes back the groups of a command that is over.
    pub(crate) fn give_back(&mut self, group: Group) {
        if !group.is_empty() {
            self.lingering.push(group);
        } else if !group.limited && !group.killed.get() && self.pool.len() < POOL {
            self.pool.push(group);
        }
    }

    /// Removes what has become empty.
    fn reap(&mut self) {
        if !self.lingering.is_empty() {
            self.lingering.retain(|group| !group.is_empty());
        }
    }
}

impl Group {
    /// Where a program starts.
    pub(crate) fn start_in(&self) -> Option<BorrowedFd<'_>> {
        self.v2.as_ref().map(|v2| v2.directory.as_fd())
    }

    /// What it enters on its way.
    pub(crate) fn enter(&self) -> &[OwnedFd] {
        &self.enter
    }

    /// Everything that a command started is in it, whatever it did to hide.
    pub(crate) fn holds_all(&self) -> bool {
        self.v2.is_some()
    }

    /// SIGKILL to all there is.
    pub(crate) fn kill(&self) {
        self.killed.set(true);
        if let Some(v2) = &self.v2
            && write(&v2.path.join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        // A kernel before 5.14, or v1: they may fork meanwhile, so look again.
        for _ in 0..100 {
            let processes = self.processes();
            if processes.is_empty() {
                return;
            }
            for pid in processes {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }

    fn processes(&self) -> Vec<Pid> {
        let mut text = String::new();
        if let Some(v2) = &self.v2 {
            text.push_str(&fs::read_to_string(v2.path.join("cgroup.procs")).unwrap_or_default());
        }
        for path in &self.v1 {
            text.push_str(&fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default());
        }
        text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
    }

    fn is_empty(&self) -> bool {
        if let Some(v2) = &self.v2
            && !matches!(v2.procs.read_at(&mut [0; 16], 0), Ok(0))
        {
            return false;
        }
        self.v1.is_empty() || self.processes().is_empty()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.enter.clear();
        for path in self.v1.iter().chain(self.v2.as_ref().map(|v2| &v2.path)) {
            let _ = fs::remove_dir(path);
        }
    }
}

/// Removes the empty groups that an agent before this one left. One that runs (there may be several) keeps its own.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split_once('-')).map_or("", |(owner, _)| owner);
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !Path::new("/proc").join(owner).join("stat").exists() {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn exists(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

fn writable(base: &Path) -> bool {
    rustix::fs::access(base, rustix::fs::Access::WRITE_OK).is_ok()
}

/// One write: a control file takes its value whole. It is not created where it is missing.
fn write(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// A line of mountinfo that is about cgroups.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let mut fields = after.split(' ');
        let (kind, _, options) = (fields.next()?, fields.next()?, fields.next()?);
        matches!(kind, "cgroup" | "cgroup2").then_some(Self { root, point, kind, options })
    }

    fn has(&self, controller: &str) -> bool {
        self.options.split(',').any(|it| it == controller)
    }

    /// The directory of the agent's own group in this tree, by what `/proc/self/cgroup` says.
    fn own_directory(&self, own: &str) -> Option<PathBuf> {
        let path = own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let ours = if self.kind == "cgroup2" {
                controllers.is_empty()
            } else {
                controllers.split(',').any(|it| !it.is_empty() && self.has(it))
            };
            ours.then_some(path)
        })?;
        let inside = path.strip_prefix(self.root.trim_end_matches('/')).unwrap_or("");
        // A group outside of what this mount shows cannot be reached through it.
        if inside.split('/').any(|part| part == "..") {
            return None;
        }
        Some(Path::new(self.point).join(inside.trim_start_matches('/')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_and_own_groups() {
        let own = "8:pids:/a\n4:cpu,memory:/b/c\n1:name=systemd:/x\n0::/system.slice/agent.service\n";
        let v2 =
            Mount::parse("30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate").unwrap();
        assert_eq!(v2.own_directory(own).unwrap(), Path::new("/sys/fs/cgroup/system.slice/agent.service"));
        let memory = Mount::parse("31 25 0:27 /b /sys/fs/cgroup/memory rw - cgroup cgroup rw,cpu,memory").unwrap();
        assert!(memory.has("memory") && !memory.has("pids"));
        assert_eq!(memory.own_directory(own).unwrap(), Path::new("/sys/fs/cgroup/memory/c"));
        assert!(Mount::parse("31 25 0:27 / /proc rw - proc proc rw").is_none());
        assert!(v2.own_directory("0::/../other\n").is_none());
    }
}
