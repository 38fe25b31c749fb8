//! What one QEMU binary can do: asked of it, never concluded from its version.
//!
//! Owns: the questions, the answers that are kept, their cache on disk (by path, size and time of
//! change), and what capabilities follow from them. Not here: whether `/dev/kvm` works
//! ([`crate::accel`]).

mod ask;

pub(crate) use ask::SANDBOX;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use roost_backend::BackendError;
use roost_host::launch::find_program;
use roost_model::spec::MachineType;
use roost_model::{Capabilities, Capability};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::QemuConfig;
use crate::exits::Exits;

/// More CPUs than this need an interrupt remapper in the guest, which no machine here has.
const MOST_VCPUS: u32 = 255;

/// One binary at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Binary {
    pub(crate) path: PathBuf,
    size: u64,
    changed_ns: u64,
}

/// What a binary answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Probe {
    pub(crate) binary: Binary,
    /// For people.
    pub(crate) version: String,
    /// `tcg`, `kvm`, as compiled in.
    pub(crate) accelerators: BTreeSet<String>,
    /// The newest versioned name of each machine type.
    pub(crate) machines: BTreeMap<String, ProbedMachine>,
    /// Names of device, object, block and network types, each with its kind in front.
    pub(crate) types: BTreeSet<String>,
    /// CPU models by name.
    pub(crate) cpu_models: BTreeSet<String>,
    /// It runs under its own system call filter here.
    pub(crate) sandbox: bool,
    /// The firmware that starts a microvm from a disk. QEMU's own choice may be one that cannot.
    pub(crate) microvm_firmware: Option<String>,
}

/// One machine type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProbedMachine {
    /// The name to pass, without version only where there are no versions.
    pub(crate) name: String,
    pub(crate) max_cpus: u32,
    /// Options that it takes.
    pub(crate) properties: BTreeSet<String>,
}

impl Binary {
    /// Finds the configured program.
    pub(crate) fn find(name: &Path) -> Result<Self, BackendError> {
        let install = "install it (Debian, Ubuntu: apt-get install qemu-system-x86; Fedora: dnf install \
                       qemu-system-x86-core), or point the setting qemu.binary at it";
        let Some(path) = find_program(name) else {
            if name.is_absolute() && name.exists() {
                let message = format!("{} is not a program that this user may run", name.display());
                return Err(BackendError::permanent("QEMU_NOT_EXECUTABLE", message).hint(install));
            }
            let message = format!("there is no {} on this host", name.display());
            return Err(BackendError::permanent("QEMU_NOT_FOUND", message).hint(install));
        };
        let failed = |e: std::io::Error| {
            let message = format!("{} cannot be looked at: {e}", path.display());
            BackendError::permanent("QEMU_NOT_FOUND", message).hint(install)
        };
        let metadata = std::fs::metadata(&path).map_err(failed)?;
        let changed = metadata.modified().map_err(failed)?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed_ns = u64::try_from(changed.as_nanos()).unwrap_or(u64::MAX);
        Ok(Self { path, size: metadata.len(), changed_ns })
    }

    fn cache_file(&self, cache_dir: &Path) -> PathBuf {
        let digest = Sha256::digest(self.path.as_os_str().as_encoded_bytes());
        let name: String = digest[..8].iter().map(|b| format!("{b:02x}")).collect();
        cache_dir.join(format!("qemu-{name}.json"))
    }
}

impl Probe {
    /// From the cache if the binary is the same as then, or else from the binary.
    pub(crate) async fn of(binary: Binary, config: &QemuConfig, exits: &Exits) -> Result<Self, BackendError> {
        let file = binary.cache_file(&config.cache_dir);
        if let Some(cached) = read_cache(&file)
            && cached.binary == binary
        {
            return Ok(cached);
        }
        let probe = ask::ask(binary, config.limits.launch, exits).await?;
        if let Err(error) = write_cache(&config.cache_dir, &file, &probe) {
            tracing::warn!(backend = %config.name, file = %file.display(), %error, "what QEMU answered is not cached");
        }
        Ok(probe)
    }

    /// Whether a type of this kind exists, e.g. `device:virtio-blk-pci`.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.types.contains(name)
    }

    /// The machine type that a spec's choice amounts to.
    pub(crate) fn machine(&self, wanted: MachineType) -> Result<&ProbedMachine, BackendError> {
        self.machines.get(wanted.as_str()).ok_or_else(|| {
            let known: Vec<&str> = self.machines.keys().map(String::as_str).collect();
            let message =
                format!("{} has no machine {wanted}; it has {}", self.binary.path.display(), known.join(", "));
            BackendError::permanent("MACHINE_UNKNOWN", message)
        })
    }

    /// What the backend can do with it. `accelerators`: what really works here, the best first.
    pub(crate) fn capabilities(&self, config: &QemuConfig, accelerators: Vec<String>) -> Capabilities {
        use Capability as C;
        let all = |names: &[&str]| names.iter().all(|name| self.has(name));
        let mut have = BTreeSet::from([
            C::Pause,
            C::GracefulShutdown,
            C::Reboot,
            C::Adopt,
            C::DirectKernelBoot,
            C::DiskBoot,
            C::CpuHotplug,
            C::MemoryHotplug,
            C::CpuTopology,
            C::CpuModel,
            C::CpuFeatures,
        ]);
        let probed = [
            (C::PanicEvents, all(&["device:pvpanic"])),
            (C::SerialConsole, all(&["device:isa-serial"])),
            (C::AgentChannel, all(&["device:virtio-serial-pci", "device:virtserialport"])),
            (C::RawDisk, all(&["block:raw", "block:file"])),
            (C::Qcow2Disk, all(&["block:qcow2", "block:file"])),
            (C::ScsiBus, all(&["device:virtio-scsi-pci", "device:scsi-hd"])),
            (C::SataBus, all(&["device:ich9-ahci", "device:ide-hd"])),
            (C::Cdrom, all(&["device:scsi-cd", "device:ide-cd"])),
            (C::UserNetwork, all(&["net:user"])),
            (C::TapNetwork, all(&["net:tap"]) && Path::new("/dev/net/tun").exists()),
            (C::SharedMemory, all(&["object:memory-backend-memfd"])),
            (C::Hugepages, all(&["object:memory-backend-memfd"]) && Path::new("/sys/kernel/mm/hugepages").exists()),
            (C::MemoryMerge, Path::new("/sys/kernel/mm/ksm").exists()),
        ];
        have.extend(probed.into_iter().filter(|(_, there)| *there).map(|(capability, _)| capability));
        let mut machines: Vec<String> = self.machines.keys().cloned().collect();
        // The default comes first.
        machines.sort_by_key(|machine| machine != config.machine.as_str());
        let max_vcpus = self.machines.values().map(|m| m.max_cpus).max().unwrap_or(0).min(MOST_VCPUS);
        let mut details = BTreeMap::from([
            ("binary".to_owned(), self.binary.path.display().to_string()),
            ("version".to_owned(), self.version.clone()),
            ("sandbox".to_owned(), if self.sandbox { "on" } else { "off" }.to_owned()),
        ]);
        details.extend(self.machines.iter().map(|(kind, machine)| (format!("machine-{kind}"), machine.name.clone())));
        Capabilities { have, machines, accelerators, max_vcpus, details }
    }
}

/// What the cache holds; a form that is not this one is no cache.
#[derive(Serialize, Deserialize)]
struct Cached {
    form: u32,
    probe: Probe,
}

/// Counts up when the questions change.
const FORM: u32 = 1;

fn read_cache(file: &Path) -> Option<Probe> {
    let cached: Cached = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    (cached.form == FORM).then_some(cached.probe)
}

fn write_cache(dir: &Path, file: &Path, probe: &Probe) -> Result<(), Box<dyn std::error::Error>> {
    roost_host::dirs::ensure_private_dir(dir)?;
    let text = serde_json::to_vec(&Cached { form: FORM, probe: probe.clone() })?;
    roost_host::dirs::atomic_write(file, &text, 0o600)?;
    Ok(())
}
