//! Health: is there room, memory, a network; has anything failed.

use roost_guest_proto::results::{CheckResult, CheckResults, Disk, DiskSpace, Health};
use roost_guest_proto::{ErrorBody, HealthCheck};
use rustix::fs::{StatVfs, statvfs};

use super::lists::{Page, page};
use super::{Context, Failure, Outcome};
use crate::platform;

const WARNING: f64 = 80.0;
const CRITICAL: f64 = 90.0;

pub(super) fn check_disk_space(
    context: &Context,
    warning: Option<f64>,
    critical: Option<f64>,
) -> Result<Outcome, Failure> {
    let (warning, critical) = (warning.unwrap_or(WARNING), critical.unwrap_or(CRITICAL));
    for (field, value) in [("warning_threshold", warning), ("critical_threshold", critical)] {
        if !(0.0..=100.0).contains(&value) {
            return Err(ErrorBody::field(field, format!("{field}: {value}; permitted: percent, 0 to 100")).into());
        }
    }
    if warning > critical {
        let message =
            format!("warning_threshold: {warning}; permitted: at most critical_threshold, which is {critical}");
        return Err(ErrorBody::field("warning_threshold", message).into());
    }
    let space = disk_space(context, warning, critical);
    let Page { items, truncated, .. } = page(space.disks, None, None);
    Ok(Outcome::data(&DiskSpace { disks: items, truncated, ..space }))
}

pub(super) fn run_check(context: &Context, check: HealthCheck) -> Outcome {
    Outcome::data(&look(context, check))
}

pub(super) fn run_all_checks(context: &Context) -> Result<Outcome, Failure> {
    let mut checks = Vec::new();
    for check in HealthCheck::ALL {
        context.check()?;
        checks.push(look(context, *check));
    }
    // What cannot be found out here is not what is wrong with the guest.
    let known = checks.iter().map(|check| check.status).filter(|status| *status != Health::Unknown);
    Ok(Outcome::data(&CheckResults { status: known.max().unwrap_or(Health::Unknown), checks }))
}

fn look(context: &Context, check: HealthCheck) -> CheckResult {
    let (status, message) = match check {
        HealthCheck::DiskSpace => disks(context),
        HealthCheck::FileSystems => file_systems(context),
        HealthCheck::Memory => memory(context),
        HealthCheck::Load => load(context),
        HealthCheck::Services => services(context),
        HealthCheck::Network => network(context),
        HealthCheck::Time => time(context),
        HealthCheck::Processes => processes(context),
        HealthCheck::Reboot => reboot(context),
    };
    CheckResult { name: check.as_str().to_owned(), status, message }
}

type Looked = (Health, String);

fn unknown(error: impl std::fmt::Display) -> Looked {
    (Health::Unknown, error.to_string())
}

fn level(percent: f64, warning: f64, critical: f64) -> Health {
    if percent >= critical {
        Health::Critical
    } else if percent >= warning {
        Health::Warning
    } else {
        Health::Healthy
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (1000.0 * part as f64 / whole as f64).round() / 10.0 }
}

/// Those on disks of the guest's own: another machine's may never answer.
fn disk_space(context: &Context, warning: f64, critical: f64) -> DiskSpace {
    let mut seen = std::collections::HashSet::new();
    let mounts = platform::mounts(&context.system).unwrap_or_default();
    let mounts = mounts.into_iter().filter(|mount| mount.is_on_disk() && seen.insert(mount.device.clone()));
    let disks: Vec<_> = mounts
        .filter_map(|mount| {
            let usage = statvfs(&mount.mount_point).ok()?;
            let disk = Disk { filesystem: mount.filesystem, ..disk(&usage, warning, critical) };
            Some(Disk { mount_point: mount.mount_point.to_string_lossy().into_owned(), ..disk })
        })
        .collect();
    let status = disks.iter().map(|disk| disk.status).max().unwrap_or(Health::Unknown);
    DiskSpace { status, warning_threshold: warning, critical_threshold: critical, disks, truncated: false }
}

fn disk(usage: &StatVfs, warning: f64, critical: f64) -> Disk {
    let bytes = |blocks: u64| blocks.saturating_mul(usage.f_frsize);
    let used = usage.f_blocks.saturating_sub(usage.f_bfree);
    // As df has it: what is kept for root is not there for anybody else.
    let used_percent = percent(used, used.saturating_add(usage.f_bavail));
    let inodes_used_percent = percent(usage.f_files.saturating_sub(usage.f_ffree), usage.f_files);
    Disk {
        total_bytes: bytes(usage.f_blocks),
        used_bytes: bytes(used),
        available_bytes: bytes(usage.f_bavail),
        used_percent,
        inodes_used_percent,
        status: level(used_percent.max(inodes_used_percent), warning, critical),
        ..Disk::default()
    }
}

fn disks(context: &Context) -> Looked {
    let space = disk_space(context, WARNING, CRITICAL);
    let fullest = space.disks.iter().max_by(|a, b| a.used_percent.total_cmp(&b.used_percent));
    match fullest {
        None => unknown("no file system is on a disk"),
        Some(disk) => (
            space.status,
            format!("{}: {}% in use, the most of {}", disk.mount_point, disk.used_percent, space.disks.len()),
        ),
    }
}

fn file_systems(context: &Context) -> Looked {
    let mounts = match platform::mounts(&context.system) {
        Ok(mounts) => mounts,
        Err(error) => return unknown(error),
    };
    // Mounted to be written to, and the file system is not: the kernel found an error on it.
    let broken = mounts.iter().filter(|it| it.is_on_disk() && !it.read_only && it.read_only_filesystem);
    let broken: Vec<_> = broken.map(|mount| mount.mount_point.to_string_lossy()).collect();
    match broken.is_empty() {
        true => (Health::Healthy, "none has become read-only".to_owned()),
        false => (Health::Critical, format!("read-only by themselves, after an error: {}", broken.join(", "))),
    }
}

fn memory(context: &Context) -> Looked {
    match platform::memory(&context.system) {
        Err(error) => unknown(error),
        Ok(memory) => {
            let used = percent(memory.total_kb.saturating_sub(memory.available_kb), memory.total_kb);
            let swap = percent(memory.swap_total_kb.saturating_sub(memory.swap_free_kb), memory.swap_total_kb);
            (level(used, 90.0, 95.0), format!("{used}% of the memory and {swap}% of the swap in use"))
        }
    }
}

fn load(context: &Context) -> Looked {
    match platform::load_average(&context.system) {
        Err(error) => unknown(error),
        Ok([_, five, _]) => {
            let cpus = platform::cpus();
            let each = 100.0 * five / cpus as f64;
            (level(each, 150.0, 400.0), format!("{five} over five minutes, on {cpus} CPUs"))
        }
    }
}

fn services(context: &Context) -> Looked {
    match platform::failed_services(context) {
        Err(failure) => unknown(failure.error()),
        Ok((failed, total)) if failed.is_empty() => (Health::Healthy, format!("none of {total} has failed")),
        Ok((mut failed, _)) => {
            failed.truncate(20);
            (Health::Warning, format!("failed: {}", failed.join(", ")))
        }
    }
}

fn network(context: &Context) -> Looked {
    match platform::network(&context.system) {
        Err(error) => unknown(error),
        Ok(network) => {
            let live = network.interfaces.iter().filter(|it| !it.loopback && it.running && !it.addresses.is_empty());
            let live: Vec<_> = live.map(|interface| interface.name.as_str()).take(10).collect();
            match (live.is_empty(), network.gateways.is_empty()) {
                (true, _) => (Health::Warning, "no interface has a link and an address".to_owned()),
                (false, true) => (Health::Warning, format!("{}: an address, but no default gateway", live.join(", "))),
                (false, false) => {
                    (Health::Healthy, format!("{}: gateway {}", live.join(", "), network.gateways.join(", ")))
                }
            }
        }
    }
}

fn time(context: &Context) -> Looked {
    // systemd-timesyncd and chrony tell the kernel; adjtimex(2) would need no file, and tells as little.
    let synchronized = context.system.file("/run/systemd/timesync/synchronized").exists();
    let chrony = context.system.file("/run/chrony").is_dir();
    match (synchronized, chrony) {
        (true, _) => (Health::Healthy, "systemd-timesyncd has synchronised the clock".to_owned()),
        (_, true) => (Health::Healthy, "chrony runs".to_owned()),
        _ => unknown("no time service that is known here"),
    }
}

fn processes(context: &Context) -> Looked {
    match platform::process_states(&context.system) {
        Err(error) => unknown(error),
        Ok(states) => {
            let count = |state: char| states.get(&state).copied().unwrap_or(0);
            let (stuck, zombies, all) = (count('D'), count('Z'), states.values().sum::<usize>());
            let status = if stuck > 20 || zombies > 100 { Health::Warning } else { Health::Healthy };
            (status, format!("{all}, of which {stuck} wait for a device and {zombies} are zombies"))
        }
    }
}

fn reboot(context: &Context) -> Looked {
    // Debian and Ubuntu, and SUSE.
    let asks = ["/run/reboot-required", "/run/reboot-needed"];
    match asks.iter().find(|path| context.system.file(path).exists()) {
        Some(path) => (Health::Warning, format!("a package asks for a reboot ({path})")),
        None => (Health::Healthy, "nothing asks for a reboot".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_and_levels() {
        assert_eq!((percent(1, 3), percent(1, 0)), (33.3, 0.0));
        let levels = [79.9, 80.0, 90.0].map(|used| level(used, WARNING, CRITICAL));
        assert_eq!(levels, [Health::Healthy, Health::Warning, Health::Critical]);
    }
}
