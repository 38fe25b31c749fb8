//! `roost doctor`: what of this host helps or hinders, each finding with its fix. Reads only; the
//! one thing it writes is a probe file in the state directory, to time a disk sync.

use std::path::Path;

use roost_engine::BackendEntry;
use roost_host::stats;

/// One finding.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finding {
    /// Stable, e.g. `kvm`.
    pub(crate) id: String,
    /// How bad it is.
    pub(crate) severity: Severity,
    /// In a few words.
    pub(crate) title: String,
    /// What was seen.
    pub(crate) detail: String,
    /// What to do; empty when there is nothing to do.
    pub(crate) fix: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Info,
    /// Works, less well than it could.
    Warning,
    /// Does not work.
    Error,
}

fn finding(id: impl Into<String>, severity: Severity, title: &str, detail: impl Into<String>, fix: &str) -> Finding {
    Finding { id: id.into(), severity, title: title.to_owned(), detail: detail.into(), fix: fix.to_owned() }
}

/// Looks at everything. Blocks for some tens of milliseconds: call it off the async threads.
pub(crate) fn examine(state_dir: &Path, backends: &[BackendEntry]) -> Vec<Finding> {
    let mut findings = vec![user(), kvm()];
    findings.extend(backends.iter().map(backend));
    findings.push(memory());
    findings.push(disk(state_dir));
    findings.push(sync_speed(state_dir));
    findings.push(page_merging());
    findings
}

fn user() -> Finding {
    if rustix::process::geteuid().is_root() {
        return finding("user", Severity::Ok, "running as root", "every kind of confinement and network is open", "");
    }
    let detail = "user-mode networking, own files, one uid for every machine; root would add TAP networks made by Roost and a uid per VM";
    finding("user", Severity::Info, "running without root", detail, "")
}

fn kvm() -> Finding {
    use rustix::fs::{Access, access};
    let (cpu, modules) = (stats::cpu(), stats::kvm_modules());
    let real = modules.intel || modules.amd;
    let virtualisation = cpu.as_ref().is_ok_and(stats::Cpu::has_virtualisation);
    let path = Path::new("/dev/kvm");
    if !path.exists() {
        let (detail, fix) = if virtualisation {
            ("the CPU can virtualise and /dev/kvm is missing", "sudo modprobe kvm_intel || sudo modprobe kvm_amd")
        } else {
            (
                "the CPU shows no vmx or svm: guests run in software emulation",
                "enable virtualisation in the firmware, or nested virtualisation in the hypervisor above",
            )
        };
        return finding("kvm", Severity::Warning, "no KVM", detail, fix);
    }
    if modules.pvm && !real {
        let detail =
            "/dev/kvm is a page-table KVM (kvm_pvm) that interprets a stock kernel: guests run in software emulation";
        return finding(
            "kvm",
            Severity::Warning,
            "KVM is present and not usable",
            detail,
            "use a host with kvm_intel or kvm_amd",
        );
    }
    if access(path, Access::READ_OK | Access::WRITE_OK).is_err() {
        let fix = "sudo usermod -aG kvm $USER, then log in again";
        return finding(
            "kvm",
            Severity::Warning,
            "no right to use KVM",
            "/dev/kvm cannot be opened for reading and writing",
            fix,
        );
    }
    if !virtualisation && !real {
        let detail = "/dev/kvm opens, and neither the CPU nor the kernel's modules say that it is real";
        return finding("kvm", Severity::Warning, "KVM is doubtful", detail, "");
    }
    finding("kvm", Severity::Ok, "KVM is usable", "/dev/kvm opens on a CPU that can virtualise", "")
}

fn backend(entry: &BackendEntry) -> Finding {
    let name = entry.backend.name();
    let id = format!("backend.{name}");
    match &entry.capabilities {
        Ok(capabilities) => {
            let details: Vec<String> = capabilities.details.iter().map(|(k, v)| format!("{k}: {v}")).collect();
            finding(id, Severity::Ok, &format!("backend {name} works"), details.join("; "), "")
        }
        Err(why) => {
            let fix = if name.as_str() == "qemu" { "sudo apt-get install qemu-system-x86" } else { "" };
            finding(id, Severity::Error, &format!("backend {name} cannot be used"), why, fix)
        }
    }
}

fn memory() -> Finding {
    match stats::memory() {
        Ok(memory) => {
            let mib = |bytes: u64| bytes >> 20;
            let detail = format!(
                "{} MiB of {} MiB available; huge pages: {} of {} free",
                mib(memory.available_bytes),
                mib(memory.total_bytes),
                memory.hugepages.free,
                memory.hugepages.total
            );
            if mib(memory.available_bytes) < 512 {
                return finding(
                    "memory",
                    Severity::Warning,
                    "little memory",
                    detail,
                    "end something, or give VMs less",
                );
            }
            finding("memory", Severity::Ok, "memory", detail, "")
        }
        Err(error) => finding("memory", Severity::Warning, "memory is unknown", error.to_string(), ""),
    }
}

fn disk(state_dir: &Path) -> Finding {
    match stats::disk_space(state_dir) {
        Ok(space) => {
            let detail = format!("{} MiB free in {}", space.available_bytes >> 20, state_dir.display());
            if space.available_bytes < 1 << 30 {
                return finding("disk", Severity::Warning, "little disk space", detail, "free some, or move state_dir");
            }
            finding("disk", Severity::Ok, "disk space", detail, "")
        }
        Err(error) => finding("disk", Severity::Error, "disk space is unknown", error.to_string(), ""),
    }
}

fn sync_speed(state_dir: &Path) -> Finding {
    match stats::measure_fdatasync(state_dir, 16) {
        Ok(median) => {
            let detail = format!(
                "a sync of the state directory's disk takes {:.2} ms (median of 16)",
                median.as_secs_f64() * 1e3
            );
            if median.as_millis() > 20 {
                let fix = "every acknowledged request waits for one: put state_dir on a faster disk";
                return finding("disk-sync", Severity::Warning, "slow disk sync", detail, fix);
            }
            finding("disk-sync", Severity::Ok, "disk sync", detail, "")
        }
        Err(error) => {
            finding("disk-sync", Severity::Error, "the state directory cannot be written", error.to_string(), "")
        }
    }
}

fn page_merging() -> Finding {
    match std::fs::read_to_string("/sys/kernel/mm/ksm/run") {
        Ok(text) if text.trim() == "1" => finding(
            "page-merging",
            Severity::Ok,
            "page merging is on",
            "equal pages of VMs that allow it are shared",
            "",
        ),
        Ok(_) => finding(
            "page-merging",
            Severity::Info,
            "page merging is off",
            "memory.backing.merge has no effect",
            "echo 1 | sudo tee /sys/kernel/mm/ksm/run",
        ),
        Err(_) => finding("page-merging", Severity::Info, "no page merging", "the kernel has no KSM", ""),
    }
}
