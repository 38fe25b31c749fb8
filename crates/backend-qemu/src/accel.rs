//! How guest instructions run: KVM where it really works, software emulation otherwise.
//!
//! ```text
//!   facts about the host ──> against KVM: a reason in words ──> tcg
//!                       └──> nothing against it ──> trial ──> kvm, or a reason ──> tcg
//! ```
//!
//! A `/dev/kvm` that opens proves nothing: some kernels offer one that interprets a stock kernel's
//! instructions one by one. So the last word has a trial: a guest of a few bytes that counts to
//! fifty million, which takes any real KVM a fraction of a second. The verdict holds for one boot
//! of the host and one QEMU, and is cached for them.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use roost_backend::BackendError;
use roost_host::exits::ExitStatus;
use roost_host::process::boot_id;
use roost_host::stats::{self, KvmModules};
use roost_model::spec::Accelerator;
use serde::{Deserialize, Serialize};

use crate::config::QemuConfig;
use crate::exits::Exits;
use crate::probe::{Binary, Probe};
use crate::trial::{Trial, file_with};

/// The accelerator of one launch, and why it is that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) kvm: bool,
    pub(crate) reason: String,
}

/// Whether KVM works here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) works: bool,
    /// Why, in words.
    pub(crate) reason: String,
    /// What the user can do about it; may be empty.
    pub(crate) hint: String,
}

impl Choice {
    pub(crate) fn name(&self) -> &'static str {
        if self.kvm { "kvm" } else { "tcg" }
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name(), self.reason)
    }
}

/// The accelerator for a spec's wish: its own word, or else the configuration's, or else the best.
pub(crate) fn choose(
    wish: Accelerator,
    config: Accelerator,
    probe: &Probe,
    verdict: &Verdict,
) -> Result<Choice, BackendError> {
    let (wanted, whose) = match wish {
        Accelerator::Auto => (config, "by the configuration"),
        own => (own, "by the VM's spec"),
    };
    let choice = match wanted {
        Accelerator::Kvm if !verdict.works => {
            let message = format!("KVM is demanded {whose} and does not work here: {}", verdict.reason);
            return Err(BackendError::permanent("KVM_UNAVAILABLE", message).hint(if verdict.hint.is_empty() {
                "leave the accelerator at auto"
            } else {
                &verdict.hint
            }));
        }
        Accelerator::Kvm => Choice { kvm: true, reason: format!("demanded {whose}") },
        Accelerator::Tcg => Choice { kvm: false, reason: format!("demanded {whose}") },
        Accelerator::Auto => Choice { kvm: verdict.works, reason: verdict.reason.clone() },
    };
    if !choice.kvm && !probe.accelerators.contains("tcg") {
        let message = format!("{} was built without software emulation; {choice}", probe.binary.path.display());
        return Err(BackendError::permanent("TCG_UNAVAILABLE", message).hint("install a QEMU with TCG"));
    }
    Ok(choice)
}

/// The verdict on this host's KVM: cached, or from the facts, or from a trial.
pub(crate) async fn verdict(probe: &Probe, config: &QemuConfig, exits: &Exits) -> Verdict {
    if let Some(against) = against(&Facts::of_this_host(), probe) {
        return against;
    }
    let file = config.cache_dir.join("kvm.json");
    let boot = boot_id().unwrap_or_default();
    if let Some(cached) = read_cache(&file)
        && cached.boot == boot
        && cached.binary == probe.binary
    {
        return cached.verdict;
    }
    let verdict = trial(probe, config, exits).await;
    let cached = Cached { boot: boot.to_owned(), binary: probe.binary.clone(), verdict: verdict.clone() };
    let written = roost_host::dirs::ensure_private_dir(&config.cache_dir).and_then(|_| {
        let text = serde_json::to_vec(&cached).expect("strings and truths have a JSON form");
        roost_host::dirs::atomic_write(&file, &text, 0o600)
    });
    if let Err(error) = written {
        tracing::warn!(backend = %config.name, file = %file.display(), %error, "the verdict on KVM is not cached");
    }
    verdict
}

#[derive(Serialize, Deserialize)]
struct Cached {
    boot: String,
    binary: Binary,
    verdict: Verdict,
}

fn read_cache(file: &Path) -> Option<Cached> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

/// What the host says about its KVM.
#[derive(Debug)]
struct Facts {
    device: Device,
    modules: KvmModules,
    /// `vmx` or `svm`.
    virtualisation: bool,
}

#[derive(Debug)]
enum Device {
    Missing,
    Refused(io::Error),
    Opens,
}

impl Facts {
    fn of_this_host() -> Self {
        let device = match std::fs::File::options().read(true).write(true).open("/dev/kvm") {
            Ok(_) => Device::Opens,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Device::Missing,
            Err(e) => Device::Refused(e),
        };
        let virtualisation = stats::cpu().is_ok_and(|cpu| cpu.has_virtualisation());
        Self { device, modules: stats::kvm_modules(), virtualisation }
    }
}

/// What speaks against KVM before anything is tried.
fn against(facts: &Facts, probe: &Probe) -> Option<Verdict> {
    let no = |reason: String, hint: &str| Some(Verdict { works: false, reason, hint: hint.to_owned() });
    let KvmModules { intel, amd, pvm } = facts.modules;
    match &facts.device {
        Device::Missing => no(
            "there is no /dev/kvm".to_owned(),
            "switch virtualisation on in the firmware, or load kvm_intel or kvm_amd",
        ),
        Device::Refused(e) => {
            no(format!("/dev/kvm does not open: {e}"), "add the daemon's user to the group that owns /dev/kvm (kvm)")
        }
        Device::Opens if !probe.accelerators.contains("kvm") => {
            no("this QEMU was built without KVM".to_owned(), "install a QEMU with KVM")
        }
        Device::Opens if pvm && !intel && !amd => no("/dev/kvm runs no stock kernel (kvm_pvm)".to_owned(), ""),
        Device::Opens if !intel && !amd && !facts.virtualisation => no(
            "/dev/kvm is there, but neither kvm_intel nor kvm_amd, and the CPU has neither vmx nor svm".to_owned(),
            "",
        ),
        Device::Opens => None,
    }
}

/// The port at which the trial's guest ends its machine.
const EXIT_PORT: u16 = 0xf4;
/// What it writes there, and what QEMU's `isa-debug-exit` makes of it.
const EXIT_VALUE: u8 = 0x2a;
const EXIT_CODE: i32 = (EXIT_VALUE as i32) << 1 | 1;

/// A firmware that counts down from fifty million and ends its machine.
fn firmware() -> Vec<u8> {
    let mut rom = vec![0xf4; 0x10000];
    let [low, high] = EXIT_PORT.to_le_bytes();
    let code = [
        0x66, 0xb9, 0x80, 0xf0, 0xfa, 0x02, // mov ecx, 50_000_000
        0x66, 0x49, // dec ecx
        0x75, 0xfc, // jnz back to it
        0xba, low, high, // mov dx, EXIT_PORT
        0xb0, EXIT_VALUE, // mov al, EXIT_VALUE
        0xee,       // out dx, al
        0xf4, 0xeb, 0xfd, // hlt, for ever
    ];
    rom[..code.len()].copy_from_slice(&code);
    // The CPU starts 16 bytes before the end: a jump to the start of this segment.
    rom[0xfff0..0xfff3].copy_from_slice(&[0xe9, 0x0d, 0x00]);
    rom
}

/// Runs a few bytes under KVM, against the clock.
async fn trial(probe: &Probe, config: &QemuConfig, exits: &Exits) -> Verdict {
    run_trial("kvm", "host", probe, config, exits).await
}

async fn run_trial(accel: &str, cpu: &str, probe: &Probe, config: &QemuConfig, exits: &Exits) -> Verdict {
    let no = |reason: String| Verdict { works: false, reason, hint: String::new() };
    let Some(machine) = probe.machines.get("microvm").or_else(|| probe.machines.get("q35")) else {
        return no("this QEMU has no machine to try it with".to_owned());
    };
    let rom = match file_with(&firmware()) {
        Ok(rom) => rom,
        Err(e) => return no(format!("it could not be tried: {e}")),
    };
    let exit_device = format!(r#"{{"driver":"isa-debug-exit","iobase":{EXIT_PORT},"iosize":4}}"#);
    let args = ["-machine", &machine.name, "-accel", accel, "-cpu", cpu, "-m", "8", "-bios", "/proc/self/fd/3"];
    let args = args.into_iter().chain(["-nodefaults", "-no-user-config", "-display", "none", "-device", &exit_device]);
    let args = args.map(OsString::from).collect();
    let mut trial = match Trial::start(&probe.binary.path, args, vec![(rom, 3)], exits) {
        Ok(trial) => trial,
        Err(e) => return no(format!("it could not be tried: {e}")),
    };
    match trial.end(config.limits.trial).await {
        Some(Some(ExitStatus::Exited(EXIT_CODE))) => {
            Verdict { works: true, reason: "it ran a trial guest at full speed".to_owned(), hint: String::new() }
        }
        Some(_) => no(format!("/dev/kvm is there, but QEMU fails with it: {}", trial.last_words())),
        None => no(format!("/dev/kvm is too slow to use: its trial took more than {:?}", config.limits.trial)),
    }
}

#[cfg(test)]
mod tests;
