//! Measured facts about processes and about the host. Everything is read on demand; nothing samples.
//!
//! Owns: reading `/proc`, `/sys` and the file system's numbers into plain structures.
//! Not here: what the numbers mean for a VM, and which accelerator is chosen because of them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::param::{clock_ticks_per_second, page_size};

use crate::process::{Process, ProcessError, Stat, is_gone};

/// What one process has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessStats {
    /// CPU time in user mode, all threads; the kernel tells it in clock ticks (10 ms).
    pub cpu_user_ns: u64,
    /// CPU time in the kernel, all threads; the same resolution.
    pub cpu_system_ns: u64,
    /// Memory resident now.
    pub rss_bytes: u64,
    /// Threads now.
    pub threads: u64,
    /// Storage traffic; `None` where `/proc/<pid>/io` is not ours to read.
    pub io: Option<ProcessIo>,
}

/// Storage traffic of one process, as `/proc/<pid>/io` counts it: page cache hits are not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessIo {
    /// Bytes that storage delivered.
    pub read_bytes: u64,
    /// Bytes that storage was given.
    pub write_bytes: u64,
}

/// Memory of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total_bytes: u64,
    /// What a new program can have without swapping (`MemAvailable`).
    pub available_bytes: u64,
    /// The default huge page pool.
    pub hugepages: Hugepages,
}

/// The default huge page pool of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hugepages {
    /// Bytes of one page; 0 where the kernel has none.
    pub page_bytes: u64,
    /// Pages in the pool.
    pub total: u64,
    /// Pages that nobody uses; some may be promised already.
    pub free: u64,
}

/// The processor of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// CPUs that this process may run on.
    pub count: u32,
    /// `GenuineIntel`, `AuthenticAMD`; the implementer's code on ARM; empty if the kernel does not say.
    pub vendor: String,
    /// Feature flags as `/proc/cpuinfo` spells them.
    pub flags: BTreeSet<String>,
}

impl Cpu {
    /// Intel's (`vmx`) or AMD's (`svm`) virtualisation is there for us to use.
    #[must_use]
    pub fn has_virtualisation(&self) -> bool {
        self.flags.contains("vmx") || self.flags.contains("svm")
    }

    /// The host is itself a guest: the bit that hypervisors set for this.
    #[must_use]
    pub fn under_hypervisor(&self) -> bool {
        self.flags.contains("hypervisor")
    }
}

/// Which KVM the kernel has, loaded or built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvmModules {
    /// `kvm_intel`: VT-x.
    pub intel: bool,
    /// `kvm_amd`: AMD-V.
    pub amd: bool,
    /// `kvm_pvm`: page-table virtualisation without hardware help; interprets a stock kernel.
    pub pvm: bool,
}

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Its size.
    pub total_bytes: u64,
    /// What an ordinary user may still write.
    pub available_bytes: u64,
}

/// Why a fact could not be had.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// A file could not be read or written.
    #[error("{call} of {path:?} failed")]
    File {
        /// The system call.
        call: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file lacks what its manual page promises.
    #[error("{path:?} does not say {field}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// What is not in it.
        field: &'static str,
    },
    /// The process could not be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// What `process` has used so far; `None` if it has ended.
///
/// # Errors
/// `/proc` is not readable.
pub fn process_stats(process: &Process) -> Result<Option<ProcessStats>, StatsError> {
    let pid = process.ident().pid;
    let Some(stat) = Stat::read(pid)? else {
        return Ok(None);
    };
    let io = read_io(pid)?;
    // Alive after the reading, so the number was its own all the while.
    if !process.is_alive()? {
        return Ok(None);
    }
    let tick_ns = 1_000_000_000 / clock_ticks_per_second().max(1);
    Ok(Some(ProcessStats {
        cpu_user_ns: stat.user_ticks * tick_ns,
        cpu_system_ns: stat.system_ticks * tick_ns,
        rss_bytes: stat.rss_pages * page_size() as u64,
        threads: stat.threads,
        io,
    }))
}

/// Memory of the host, now.
///
/// # Errors
/// `/proc/meminfo` is not readable.
pub fn memory() -> Result<Memory, StatsError> {
    let path = Path::new("/proc/meminfo");
    let text = read(path)?;
    let value = |field: &'static str| {
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok())
    };
    let need = |field| value(field).ok_or_else(|| StatsError::Missing { path: path.to_owned(), field });
    Ok(Memory {
        total_bytes: need("MemTotal")? * 1024,
        available_bytes: need("MemAvailable")? * 1024,
        // A kernel without huge pages has no such lines.
        hugepages: Hugepages {
            page_bytes: value("Hugepagesize").unwrap_or(0) * 1024,
            total: value("HugePages_Total").unwrap_or(0),
            free: value("HugePages_Free").unwrap_or(0),
        },
    })
}

/// The processor of the host.
///
/// # Errors
/// `/proc/cpuinfo` is not readable.
pub fn cpu() -> Result<Cpu, StatsError> {
    let text = read(Path::new("/proc/cpuinfo"))?;
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(parse_cpu(&text, u32::try_from(count).unwrap_or(u32::MAX)))
}

/// Which KVM the kernel has.
#[must_use]
pub fn kvm_modules() -> KvmModules {
    let loaded = |name: &str| Path::new("/sys/module").join(name).is_dir();
    KvmModules { intel: loaded("kvm_intel"), amd: loaded("kvm_amd"), pvm: loaded("kvm_pvm") }
}

/// Room on the file system that holds `path`.
///
/// # Errors
/// `path` does not exist.
pub fn disk_space(path: &Path) -> Result<DiskSpace, StatsError> {
    let stat = rustix::fs::statvfs(path).map_err(|errno| file("statvfs", path, errno))?;
    Ok(DiskSpace {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

/// The median time of an `fdatasync` after 4 KiB appended, on the file system that holds `dir`: what
/// one durable commit costs at least. Blocks for `samples` of them; leaves nothing behind.
///
/// # Errors
/// `dir` is not writable, or full.
pub fn measure_fdatasync(dir: &Path, samples: usize) -> Result<Duration, StatsError> {
    let block = [0u8; 4096];
    let probe = Probe::create(dir)?;
    let mut times = Vec::with_capacity(samples);
    for _ in 0..samples.max(1) {
        let mut left = &block[..];
        while !left.is_empty() {
            let wrote = rustix::io::write(&probe.fd, left).map_err(|errno| file("write", &probe.path, errno))?;
            left = &left[wrote..];
        }
        let from = Instant::now();
        rustix::fs::fdatasync(&probe.fd).map_err(|errno| file("fdatasync", &probe.path, errno))?;
        times.push(from.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// A file that is gone when this is.
struct Probe {
    path: PathBuf,
    fd: std::os::fd::OwnedFd,
}

impl Probe {
    fn create(dir: &Path) -> Result<Self, StatsError> {
        let path = dir.join(format!(".roost-fdatasync-{}", std::process::id()));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| file("open", &path, errno))?;
        Ok(Self { path, fd })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Nothing can be done about a file that does not go away, and it is 4 KiB a sample.
        let _ = fs::remove_file(&self.path);
    }
}

/// `None`: not ours to read, or the process ended, which the caller finds out.
fn read_io(pid: u32) -> Result<Option<ProcessIo>, StatsError> {
    let path = PathBuf::from(format!("/proc/{pid}/io"));
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied || is_gone(&error) => {
            return Ok(None);
        }
        Err(source) => {
            return Err(StatsError::File { call: "read", path, source });
        }
    };
    Ok(parse_io(&text))
}

fn parse_io(text: &str) -> Option<ProcessIo> {
    let value = |field| text.lines().find_map(|line| line.strip_prefix(field)?.trim().parse::<u64>().ok());
    Some(ProcessIo { read_bytes: value("read_bytes:")?, write_bytes: value("write_bytes:")? })
}

/// The first processor's lines; the kernel keeps them alike.
fn parse_cpu(text: &str, count: u32) -> Cpu {
    let value = |names: &[&str]| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            names.contains(&name.trim()).then(|| value.trim().to_owned())
        })
    };
    let flags = value(&["flags", "Features"]).unwrap_or_default();
    Cpu {
        count,
        vendor: value(&["vendor_id", "CPU implementer"]).unwrap_or_default(),
        flags: flags.split_ascii_whitespace().map(str::to_owned).collect(),
    }
}

fn read(path: &Path) -> Result<String, StatsError> {
    fs::read_to_string(path).map_err(|source| StatsError::File { call: "read", path: path.to_owned(), source })
}

fn file(call: &'static str, path: &Path, errno: Errno) -> StatsError {
    StatsError::File { call, path: path.to_owned(), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::ProcessIdent;

    #[test]
    fn this_process_uses_what_it_uses() {
        let us = Process::open(&ProcessIdent::current().unwrap()).unwrap().expect("we run");
        let before = process_stats(&us).unwrap().expect("we run");
        let burnt = || process_stats(&us).unwrap().expect("we run").cpu_user_ns - before.cpu_user_ns;
        let deadline = Instant::now() + Duration::from_secs(20);
        while burnt() < 30_000_000 {
            assert!(Instant::now() < deadline, "no CPU time is counted");
            std::hint::black_box((0..100_000u64).sum::<u64>());
        }
        let block = vec![1u8; 32 << 20];
        let after = process_stats(&us).unwrap().expect("we run");
        assert!(after.rss_bytes >= before.rss_bytes + (30 << 20), "{before:?} {after:?}");
        assert!(after.threads >= 1);
        drop(std::hint::black_box(block));
        let (written, dir) =
            (|| process_stats(&us).unwrap().unwrap().io.unwrap().write_bytes, tempfile::tempdir().unwrap());
        let before = written();
        fs::write(dir.path().join("file"), vec![1u8; 1 << 20]).unwrap();
        // Some file systems (tmpfs) count nothing; the number never goes back.
        assert!(written() >= before);
    }

    #[test]
    fn a_process_that_ended_has_no_numbers() {
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "exec sleep 1000"]).spawn().unwrap();
        let process = Process::of_child(&child).unwrap().expect("it runs");
        assert!(process_stats(&process).unwrap().is_some());
        process.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(process_stats(&process).unwrap(), None);
    }

    #[test]
    fn the_host_has_memory_cpus_and_disk() {
        let memory = memory().unwrap();
        assert!(memory.total_bytes >= memory.available_bytes && memory.available_bytes > 0);
        assert!(memory.total_bytes > 64 << 20);
        assert!(memory.hugepages.free <= memory.hugepages.total);
        let cpu = cpu().unwrap();
        assert!(cpu.count >= 1 && !cpu.flags.is_empty(), "{cpu:?}");
        let disk = disk_space(&std::env::temp_dir()).unwrap();
        assert!(disk.total_bytes >= disk.available_bytes && disk.total_bytes > 0);
        assert!(matches!(disk_space(Path::new("/nonexistent")), Err(StatsError::File { call: "statvfs", .. })));
        let _ = kvm_modules();
    }

    #[test]
    fn fdatasync_is_measured_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let median = measure_fdatasync(dir.path(), 9).unwrap();
        assert!(median > Duration::ZERO && median < Duration::from_secs(20), "{median:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(measure_fdatasync(&dir.path().join("missing"), 1).is_err());
    }

    #[test]
    fn cpuinfo_of_several_machines() {
        let intel = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vmx hypervisor\n\nprocessor\t: 1\nflags\t: fpu\n";
        let cpu = parse_cpu(intel, 2);
        assert_eq!((cpu.vendor.as_str(), cpu.count), ("GenuineIntel", 2));
        assert!(cpu.has_virtualisation() && cpu.under_hypervisor());
        let arm = "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n";
        let cpu = parse_cpu(arm, 1);
        assert_eq!(cpu.vendor, "0x41");
        assert!(cpu.flags.contains("asimd") && !cpu.has_virtualisation() && !cpu.under_hypervisor());
        assert_eq!(parse_cpu("", 1).vendor, "");
    }

    #[test]
    fn io_counters() {
        let text =
            "rchar: 9\nwchar: 9\nsyscr: 1\nsyscw: 1\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 1\n";
        assert_eq!(parse_io(text), Some(ProcessIo { read_bytes: 4096, write_bytes: 8192 }));
        assert_eq!(parse_io("rchar: 1\n"), None);
    }
}
