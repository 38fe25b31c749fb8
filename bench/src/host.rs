//! The machine that the figures are from, and what its processes have used.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::stats::median;

/// What a reader must know to compare figures.
pub(crate) fn facts() -> Vec<(&'static str, String)> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key));
        line.map_or_else(|| "unknown".to_owned(), |l| l.trim_matches([' ', '\t', ':', '"', '=']).to_owned())
    };
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    vec![
        ("cpu", format!("{cores} x {}", field(&cpuinfo, "model name"))),
        ("memory", field(&read("/proc/meminfo"), "MemTotal")),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("system", field(&read("/etc/os-release"), "PRETTY_NAME")),
        ("qemu", qemu_version()),
        ("load before", read("/proc/loadavg")),
    ]
}

/// The median time of an fdatasync after a write of 4 KiB to a file in the directory, in ms.
pub(crate) fn fdatasync_p50_ms(dir: &Path, times: u64) -> Result<f64> {
    let path = dir.join("sync");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let page = [7; 4096];
    let mut took = Vec::new();
    for n in 0..times {
        file.write_all_at(&page, n % 8 * 4096)?;
        let begun = Instant::now();
        file.sync_data()?;
        took.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    fs::remove_file(&path)?;
    Ok(median(&took))
}

/// CPU time of a process with all threads it has had, in ms; the kernel tells it in ticks of 10 ms.
pub(crate) fn cpu_ms(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("/proc/PID/stat has another form")?;
    // utime and stime are the fields 14 and 15; `rest` begins with the third.
    let ticks = rest.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(ticks as f64 * 1e3 / rustix::param::clock_ticks_per_second() as f64)
}

/// CPU time of the threads that a process has now, in ms, to the nanosecond.
pub(crate) fn cpu_of_threads_ms(pid: u32) -> Result<f64> {
    let mut ns = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let text = fs::read_to_string(thread.path().join("schedstat"))?;
        ns += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(ns as f64 / 1e6)
}

/// Processes that name the directory among their arguments or descriptors, except this one.
pub(crate) fn processes_of(dir: &Path) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir("/proc") else { return found };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid != std::process::id() && names(pid, dir) {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            found.push((pid, comm.trim().to_owned()));
        }
    }
    found
}

/// Ends a process by a descriptor that cannot come to mean another one, if it still names the directory.
pub(crate) fn end(pid: u32, dir: Option<&Path>) {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let Some(pid_of) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(pidfd) = pidfd_open(pid_of, PidfdFlags::empty()) else { return };
    if dir.is_none_or(|dir| names(pid, dir)) {
        let _gone_already = pidfd_send_signal(&pidfd, Signal::KILL);
    }
}

fn names(pid: u32, dir: &Path) -> bool {
    let marker = dir.as_os_str().as_encoded_bytes();
    let contains = |bytes: &[u8]| bytes.windows(marker.len()).any(|w| w == marker);
    if fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|bytes| contains(&bytes)) {
        return true;
    }
    let links = [format!("/proc/{pid}/cwd")].into_iter().map(Into::into);
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().map(|fd| fd.path());
    let mut links = links.chain(descriptors);
    links
        .any(|link: std::path::PathBuf| fs::read_link(link).is_ok_and(|to| contains(to.as_os_str().as_encoded_bytes())))
}

fn qemu_version() -> String {
    let output = std::process::Command::new("qemu-system-x86_64").arg("--version").output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}
