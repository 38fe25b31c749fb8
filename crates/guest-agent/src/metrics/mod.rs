//! What the agent sees of its guest, group by group.
//!
//! Owned here: which groups a frame holds, what is kept from one frame to the next, the time between frames, and the
//! owner's own collectors. How each figure is read is the platform's, in a folder of its own. Not here: when a frame
//! is due, where it goes, and its shape, which is `roost_guest_proto::metrics`.
//!
//! A group that fails leaves the others alone and says why in the frame. Everything that could wait has a time limit:
//! a file system that hangs, a program that does. Nothing grows with what the guest does: what is counted is capped,
//! what is shown is cut and made printable, so that a frame stays below the longest line.
//!
//! Collection blocks, for milliseconds as a rule and a few seconds at worst: it belongs on a worker's thread.
//! Between two collections there is no thread, no timer and no open file.

mod interval;
#[cfg(target_os = "linux")]
mod linux;
mod plugins;
mod rates;
mod services;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use roost_guest_proto::metrics::{Collection, GroupError, HostInfo, SystemMetrics};
use roost_guest_proto::results::Service;
use serde::Deserialize;

pub use roost_guest_proto::metrics::{Group, MetricsData};

use crate::platform::{System, service_manager};
#[cfg(target_os = "linux")]
use linux as sources;

/// Entries of `errors` in one frame.
const MAX_ERRORS: usize = 64;

/// A static group that was asked for by name is at most so old.
const FRESH: Duration = Duration::from_secs(5);

/// The collectors' part of the agent's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How many processes a frame lists: those that use the most. At most 100.
    pub processes: usize,
    /// A directory of programs that measure what the agent does not. None: there are none.
    pub plugins: Option<PathBuf>,
    pub plugin_timeout_ms: u64,
    /// How often they run, at most.
    pub plugin_interval_seconds: u64,
    /// How long a file system may take to say how full it is.
    pub mount_timeout_ms: u64,
    /// How often it is looked whether services and the host's description changed.
    pub static_interval_seconds: u64,
    /// Where `proc`, `sys`, `etc` and `run` are: `/`, but in tests.
    #[serde(skip)]
    pub root: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            processes: 20,
            plugins: None,
            plugin_timeout_ms: 2000,
            plugin_interval_seconds: 30,
            mount_timeout_ms: 1000,
            static_interval_seconds: 60,
            root: PathBuf::from("/"),
        }
    }
}

/// The collectors, with what they remember.
#[derive(Debug)]
pub struct Collectors {
    sources: sources::Sources,
    plugins: plugins::Plugins,
    host: Static<HostInfo>,
    services: Static<Vec<Service>>,
    /// Where services are asked for.
    system: System,
    static_interval: Duration,
    slowdown: interval::Slowdown,
}

impl Collectors {
    /// Reads what the first frame's rates count from. Costs well under a millisecond.
    pub fn new(config: &Config) -> Self {
        Self {
            sources: sources::Sources::new(config),
            plugins: plugins::Plugins::new(config),
            host: Static::default(),
            services: Static::default(),
            system: System::at(config.root.clone()),
            static_interval: Duration::from_secs(config.static_interval_seconds),
            slowdown: interval::Slowdown::default(),
        }
    }

    /// A frame of these groups; of all, where none is named.
    pub fn collect(&mut self, groups: &[Group]) -> MetricsData {
        let started = Instant::now();
        let mut data = MetricsData::default();
        let mut notes = Notes::default();
        for &group in Group::ALL {
            if (groups.is_empty() || groups.contains(&group))
                && let Err(failure) = self.collect_group(group, groups.is_empty(), &mut data, &mut notes)
            {
                notes.add(group, None, &failure);
            }
        }
        self.sources.shrink();
        data.errors = notes.errors;
        data.collection = Some(Collection {
            elapsed_us: started.elapsed().as_micros().try_into().unwrap_or(u64::MAX),
            slowdown: self.slowdown.factor(),
        });
        data
    }

    /// The time until the next frame: what was asked for, or longer while the guest is short of memory. Call it once
    /// for each frame.
    pub fn interval(&mut self, asked: Duration) -> Duration {
        self.slowdown.observe(&self.sources.shortage());
        self.slowdown.stretch(asked)
    }

    /// The next frame of all groups has the static ones too: somebody listens who has not seen them.
    pub fn new_session(&mut self) {
        self.host.sent = false;
        self.services.sent = false;
    }

    fn collect_group(
        &mut self,
        group: Group,
        all: bool,
        data: &mut MetricsData,
        notes: &mut Notes,
    ) -> Result<(), Failure> {
        let SystemMetrics {
            cpu,
            memory,
            disk,
            network,
            system,
            pressure,
            processes,
            ports,
            windows_services,
            services,
            host,
        } = &mut data.system;
        match group {
            Group::Cpu => *cpu = Some(self.sources.cpu()?),
            Group::Memory => *memory = Some(self.sources.memory()?),
            Group::Disk => *disk = Some(self.sources.disk(notes)?),
            Group::Network => *network = Some(self.sources.network(notes)?),
            Group::System => *system = Some(self.sources.system()?),
            Group::Pressure => *pressure = self.sources.pressure()?,
            Group::Processes => *processes = Some(self.sources.processes(notes)?),
            Group::Ports => *ports = Some(self.sources.ports(notes)?),
            Group::Services => {
                *windows_services = Some(Vec::new());
                let oldest = if all { self.static_interval } else { FRESH };
                self.services.refresh(oldest, || services::collect(&self.system, notes));
                *services = self.services.send(all)?;
                if services.is_none() {
                    data.unchanged.push(group.to_string());
                }
            }
            Group::Host => {
                let oldest = if all { self.static_interval } else { FRESH };
                self.host.refresh(oldest, || self.sources.host(service_manager(&self.system)));
                *host = self.host.send(all)?;
                if host.is_none() {
                    data.unchanged.push(group.to_string());
                }
            }
            Group::Plugins => data.plugins = self.plugins.collect(notes)?,
        }
        Ok(())
    }
}

/// Why a group, or a part of one, is missing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The kernel says something else than was expected.
    #[error("/{path}: {what}")]
    Content { path: &'static str, what: &'static str },
    #[error("{what}")]
    System { what: &'static str, source: std::io::Error },
    #[error("{0}")]
    Other(String),
}

/// So many characters of a text, as they may be shown.
fn printable(text: &str, max: usize) -> String {
    text.chars().take(max).map(|it| if it.is_control() { '?' } else { it }).collect()
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message
}

/// The errors of a frame as they come together.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    errors: Vec<GroupError>,
}

impl Notes {
    pub(crate) fn add(&mut self, group: Group, source: Option<&str>, error: &dyn std::error::Error) {
        self.say(group, source, &chain(error));
    }

    pub(crate) fn say(&mut self, group: Group, source: Option<&str>, message: &str) {
        if self.errors.len() < MAX_ERRORS {
            let source = source.map(|source| printable(source, 128));
            self.errors.push(GroupError { group: group.to_string(), source, message: printable(message, 256) });
        }
    }
}

/// A group that seldom changes.
///
/// ```text
///             refresh: other than before, or a new session
///        ┌───────────────────────────────────────────┐
///        v                                           │
///     to send ── send in a frame of all groups ──> sent ──> "unchanged" in the next ones
/// ```
#[derive(Debug)]
struct Static<T> {
    value: Option<Result<T, String>>,
    read_at: Option<Instant>,
    sent: bool,
}

impl<T> Default for Static<T> {
    fn default() -> Self {
        Self { value: None, read_at: None, sent: false }
    }
}

impl<T: Clone + PartialEq> Static<T> {
    /// Reads it, if what is known is older than that.
    fn refresh(&mut self, oldest: Duration, read: impl FnOnce() -> Result<T, Failure>) {
        if self.read_at.is_some_and(|at| at.elapsed() < oldest) {
            return;
        }
        let now = read().map_err(|failure| chain(&failure));
        self.read_at = Some(Instant::now());
        if self.value.as_ref() != Some(&now) {
            self.value = Some(now);
            self.sent = false;
        }
    }

    /// `None`: a frame of all groups leaves it out, as it is known already.
    fn send(&mut self, all: bool) -> Result<Option<T>, Failure> {
        match &self.value {
            Some(Ok(_)) if all && self.sent => Ok(None),
            Some(Ok(value)) => {
                // One that asked for it by name may not be the one that gets the frames of all groups.
                self.sent |= all;
                Ok(Some(value.clone()))
            }
            Some(Err(message)) => Err(Failure::Other(message.clone())),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::fs;
    use std::path::Path;

    use roost_guest_proto::{GuestMessage, MAX_LINE, MetricsMessage};

    use super::*;

    fn write(root: &Path, path: &str, text: impl AsRef<[u8]>) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn write_program(root: &Path, path: &str, script: &str) {
        write(root, path, format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(root.join(path), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// Makes a root one of OpenRC with these services.
    pub(super) fn write_openrc(root: &Path, states: &str) {
        fs::create_dir_all(root.join("run/openrc")).unwrap();
        write(root, "states", states);
        write_program(root, "sbin/rc-status", &format!("exec /bin/cat {}/states", root.display()));
        write_program(root, "sbin/rc-update", ":");
        write_program(root, "sbin/rc-service", ":");
    }

    fn config(root: &Path) -> Config {
        Config { root: root.to_owned(), ..Config::default() }
    }

    fn errors(data: &MetricsData) -> Vec<(&str, Option<&str>)> {
        data.errors.iter().map(|error| (error.group.as_str(), error.source.as_deref())).collect()
    }

    #[test]
    fn one_group_that_fails_says_why_and_the_others_are_there() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/meminfo", "MemTotal: 100 kB\nMemAvailable: 40 kB\n");
        write(root.path(), "proc/stat", "nothing\n");
        let data = Collectors::new(&config(root.path())).collect(&[Group::Cpu, Group::System, Group::Memory]);
        assert_eq!(data.system.memory.unwrap().used_kb, 60);
        assert_eq!(data.errors[0].message, "/proc/stat: no line of processors");
        assert!(data.errors[1].message.ends_with("proc/uptime: No such file or directory (os error 2)"));
        assert_eq!((data.system.cpu, data.system.system), (None, None));
        assert_eq!(data.errors.len(), 2);
    }

    #[test]
    fn nothing_but_the_groups_that_were_asked_for_is_collected() {
        let mut collectors = Collectors::new(&Config::default());
        for &group in Group::ALL {
            let data = collectors.collect(&[group]);
            let value = serde_json::to_value(&data.system).unwrap();
            let keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
            match group {
                Group::Plugins => assert!(keys.is_empty(), "{keys:?}"),
                // A kernel without the account has none.
                Group::Pressure => assert!(keys.is_empty() || keys == ["pressure"], "{keys:?}"),
                Group::Services => assert_eq!(keys, ["services", "windows_services"]),
                _ => assert_eq!(keys, [group.as_str()]),
            }
        }
    }

    #[test]
    fn static_groups_go_once_then_on_change_and_to_whoever_names_them() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/sys/kernel/random/boot_id", "first\n");
        write_openrc(root.path(), "sshd = started\n");
        let mut collectors = Collectors::new(&Config { static_interval_seconds: 0, ..config(root.path()) });
        let is_there = |data: &MetricsData| (data.system.host.is_some(), data.system.services.is_some());

        let first = collectors.collect(&[]);
        assert_eq!((is_there(&first), first.unchanged.len()), ((true, true), 0));
        let mut second = collectors.collect(&[]);
        assert_eq!(is_there(&second), (false, false));
        assert_eq!(second.unchanged, ["services", "host"]);
        second.carry_forward(&first);
        assert_eq!(second.system.services, first.system.services);

        write(root.path(), "proc/sys/kernel/random/boot_id", "second\n");
        let changed = collectors.collect(&[]);
        assert_eq!(changed.system.host.unwrap().boot_id.as_deref(), Some("second"));
        assert_eq!(changed.unchanged, ["services"]);

        assert!(collectors.collect(&[Group::Services]).system.services.is_some());
        assert_eq!(is_there(&collectors.collect(&[])), (false, false));
        collectors.new_session();
        assert_eq!(is_there(&collectors.collect(&[])), (true, true));
    }

    #[test]
    fn a_static_group_is_not_read_again_within_its_interval() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/sys/kernel/random/boot_id", "first\n");
        let mut collectors = Collectors::new(&config(root.path()));
        collectors.collect(&[]);
        write(root.path(), "proc/sys/kernel/random/boot_id", "second\n");
        assert_eq!(collectors.collect(&[]).unchanged, ["services", "host"]);
    }

    /// Every list is full, every text as long as it gets, and of characters that JSON doubles.
    #[test]
    fn the_fullest_frame_fits_into_a_line() {
        let root = tempfile::tempdir().unwrap();
        let text = |length: usize| "\\\"\u{1}".repeat(length);
        let mut stat = "cpu 1 1 1 1 1 1 1 1\n".to_owned();
        let mut mounts = String::new();
        let mut interfaces = String::new();
        let mut disks = String::new();
        let mut sockets = String::new();
        for n in 0..2000 {
            let _ = writeln!(stat, "cpu{n} 1 1 1 1 1 1 1 1");
            let _ = writeln!(mounts, "1 1 8:{n} / /m{n}{} rw - nfs d rw", text(300).replace('\u{1}', ""));
            let _ = writeln!(interfaces, "\"\\\"\\\"\\\"\\\"{n:06}:{}", " 18446744073709551615".repeat(16));
            let _ = writeln!(disks, "8 {n} {n}{} {}", text(19), "18446744073709551615 ".repeat(11));
            let _ =
                writeln!(sockets, "0: {}:{:04X} {}:0000 07 0 0 0 0 0 {n}", "A1B2C3D4".repeat(4), n + 1, "0".repeat(32));
        }
        write(root.path(), "proc/stat", stat);
        write(root.path(), "proc/self/mountinfo", mounts);
        write(root.path(), "proc/net/dev", interfaces);
        write(root.path(), "proc/diskstats", disks);
        for table in ["tcp", "udp"] {
            write(root.path(), &format!("proc/net/{table}"), "");
            write(root.path(), &format!("proc/net/{table}6"), &sockets);
        }
        for pid in 1..150 {
            let tail = "S 1 1 1 0 -1 0 1 1 1 1 99999 99999 0 0 20 0 1 0 1 1 18446744073709551615 1";
            write(root.path(), &format!("proc/{pid}/stat"), format!("{pid} ({}) {tail}", text(40)));
            write(root.path(), &format!("proc/{pid}/cmdline"), text(200));
            let exe = text(80);
            std::os::unix::fs::symlink(&exe, root.path().join(format!("proc/{pid}/exe"))).unwrap();
        }
        write(root.path(), "proc/uptime", "18446744073709551615.0");
        write(root.path(), "proc/loadavg", "1e300 1e300 1e300");
        write(root.path(), "proc/meminfo", "MemTotal: 18446744073709551615 kB\nMemFree: 1 kB\n");
        write(root.path(), "proc/cpuinfo", format!("model name: {}", text(100)));
        write(root.path(), "etc/os-release", format!("NAME={0}\nVERSION_ID={0}", text(100)));
        let name = |n: usize| format!("{}{n:04}", "\\\"".repeat(62));
        write_openrc(root.path(), &(0..1000).map(|n| format!("{} = started\n", name(n))).collect::<String>());
        for n in 0..1000 {
            write(root.path(), &format!("etc/init.d/{}", name(n)), format!("description=\"{}\"", text(100)));
        }
        let plugins = root.path().join("plugins");
        for n in 0..16 {
            let value = format!("{{\"{}\": 1}}", "\\u0001".repeat(2700));
            write_program(
                root.path(),
                &format!("plugins/{n:02}{}", "p".repeat(60)),
                &format!("cat <<'END'\n{value}\nEND"),
            );
        }
        fs::set_permissions(&plugins, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

        let mut collectors =
            Collectors::new(&Config { processes: 1000, plugins: Some(plugins), ..config(root.path()) });
        let data = collectors.collect(&[]);
        let system = &data.system;
        assert_eq!(system.processes.as_ref().unwrap().len(), 100);
        assert_eq!(system.processes.as_ref().unwrap()[0].name.len(), 64);
        assert_eq!(system.ports.as_ref().unwrap().len(), 512);
        assert_eq!(system.services.as_ref().unwrap().len(), 512);
        assert_eq!(system.network.as_ref().unwrap().interfaces.len(), 128);
        assert_eq!(system.cpu.as_ref().unwrap().cores_usage.len(), 1024);
        assert!(data.plugins.len() >= 7 && data.errors.len() == MAX_ERRORS, "{:?}", errors(&data));
        let data = serde_json::to_value(data).unwrap();
        let message = GuestMessage::Metrics(MetricsMessage { timestamp: String::new(), data, id: None }).to_json();
        assert!(message.len() < MAX_LINE * 9 / 10, "{} bytes", message.len());
        assert!(message.len() > MAX_LINE / 4, "{} bytes are no test of it", message.len());
    }
}
