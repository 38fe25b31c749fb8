//! What the system says of itself: os-release, uname, /proc, the firmware's tables.

use std::collections::HashMap;
use std::io::{self, Read};
use std::time::Duration;

use roost_guest_proto::results::{OsInfo, SystemInfo};

use super::{package_manager, service_manager};
use crate::platform::System;

/// The most that is read of a file of these.
const MAX_FILE: u64 = 256 * 1024;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) total_kb: u64,
    pub(crate) available_kb: u64,
    pub(crate) swap_total_kb: u64,
    pub(crate) swap_free_kb: u64,
}

pub(crate) fn read_text(system: &System, path: &str) -> io::Result<String> {
    let mut text = Vec::new();
    std::fs::File::open(system.file(path))?.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn read_line(system: &System, path: &str) -> Option<String> {
    let text = read_text(system, path).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.chars().take(256).collect())
}

pub(crate) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

pub(crate) fn uptime(system: &System) -> io::Result<Duration> {
    let text = read_text(system, "/proc/uptime")?;
    let seconds = text.split_whitespace().next().and_then(|word| word.parse().ok());
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

pub(crate) fn memory(system: &System) -> io::Result<Memory> {
    Ok(parse_memory(&read_text(system, "/proc/meminfo")?))
}

pub(crate) fn load_average(system: &System) -> io::Result<[f64; 3]> {
    let text = read_text(system, "/proc/loadavg")?;
    let mut numbers = text.split_whitespace().map(|word| word.parse().unwrap_or_default());
    Ok(std::array::from_fn(|_| numbers.next().unwrap_or_default()))
}

pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

pub(crate) fn os_info(system: &System) -> OsInfo {
    let release = ["/etc/os-release", "/usr/lib/os-release"].into_iter().find_map(|path| read_text(system, path).ok());
    let release = release.unwrap_or_default();
    let release = parse_os_release(&release);
    let field = |key: &str| release.get(key).cloned().unwrap_or_default();
    let kernel = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    OsInfo {
        id: field("ID"),
        name: field("NAME"),
        version: field("VERSION_ID"),
        pretty_name: field("PRETTY_NAME"),
        kernel: text(kernel.sysname()),
        kernel_version: text(kernel.release()),
        architecture: text(kernel.machine()),
        service_manager: service_manager(system).map(str::to_owned),
        package_manager: package_manager(system).map(str::to_owned),
    }
}

pub(crate) fn system_info(system: &System) -> SystemInfo {
    let memory = memory(system).unwrap_or_default();
    let firmware = ["/sys/class/dmi/id/sys_vendor", "/sys/class/dmi/id/product_name"];
    let firmware: Vec<_> = firmware.iter().filter_map(|path| read_line(system, path)).collect();
    let cpu = read_text(system, "/proc/cpuinfo").unwrap_or_default();
    let cpu_model = cpu.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == "model name");
    SystemInfo {
        hostname: hostname(),
        os: os_info(system),
        cpus: cpus(),
        cpu_model: cpu_model.map(|(_, model)| model.trim().to_owned()),
        memory_total_kb: memory.total_kb,
        memory_available_kb: memory.available_kb,
        swap_total_kb: memory.swap_total_kb,
        uptime_seconds: uptime(system).unwrap_or_default().as_secs(),
        load_average: load_average(system).unwrap_or_default(),
        boot_id: read_line(system, "/proc/sys/kernel/random/boot_id"),
        machine_id: read_line(system, "/etc/machine-id"),
        hardware: (!firmware.is_empty()).then(|| firmware.join(" ")),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// os-release(5): assignments of a shell's, quoted or not. Nothing is expanded.
fn parse_os_release(text: &str) -> HashMap<&str, String> {
    let value = |value: &str| {
        let value = value.trim();
        let quoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        let mut chars = quoted.unwrap_or(value).chars();
        let mut text = String::new();
        while let Some(c) = chars.next().filter(|_| text.len() < 256) {
            text.extend(if c == '\\' { chars.next() } else { Some(c) });
        }
        text
    };
    let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    lines.map(|(key, text)| (key.trim(), value(text))).collect()
}

fn parse_memory(text: &str) -> Memory {
    let kb = |key: &str| {
        let mut values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        values.next().and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or_default()
    };
    Memory {
        total_kb: kb("MemTotal"),
        available_kb: kb("MemAvailable"),
        swap_total_kb: kb("SwapTotal"),
        swap_free_kb: kb("SwapFree"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_os_release() {
        let release =
            parse_os_release("# c\nNAME=\"Debian \\\"x\\\"\"\nID=debian\nVERSION_ID='12'\nBROKEN\nPRETTY_NAME=\"a\n");
        assert_eq!((release["NAME"].as_str(), release["ID"].as_str()), ("Debian \"x\"", "debian"));
        assert_eq!((release["VERSION_ID"].as_str(), release["PRETTY_NAME"].as_str()), ("12", "\"a"));
    }

    #[test]
    fn a_meminfo() {
        let memory =
            parse_memory("MemTotal:        8000 kB\nMemAvailable:    5000 kB\nSwapTotal:  0 kB\nMemTotalX: 1 kB\n");
        assert_eq!((memory.total_kb, memory.available_kb, memory.swap_free_kb), (8000, 5000, 0));
    }

    #[test]
    fn this_machine() {
        let info = system_info(&System::default());
        assert!(info.memory_total_kb > info.memory_available_kb && info.memory_available_kb > 0);
        assert_eq!(info.os.kernel, "Linux");
        assert!(info.cpus > 0 && info.uptime_seconds > 0 && !info.hostname.is_empty());
    }
}
