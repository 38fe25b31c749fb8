//! What a Linux guest has for the agent.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use roost_guest_proto::results::{Finding, FindingLevel};
use roost_guest_proto::{KEY_FW_CFG, PORT_NAME};
use rustix::fs::{Access, access};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::facts::read_text;
use super::{mounts, package_manager, service_manager};
use crate::platform::System;

/// virtio's numbers of devices (virtio 1.2, section 5).
const VIRTIO_CONSOLE: &str = "0x0003";
const VIRTIO_SOCKET: &str = "0x0013";

/// The most processes that are looked through for the one that holds a port.
const MAX_PROCESSES: usize = 10_000;

/// Bits of linux/capability.h, and what each is for.
const CAPABILITIES: &[(u32, &str, &str)] = &[
    (0, "CAP_CHOWN", "owners of files that are copied"),
    (1, "CAP_DAC_OVERRIDE", "files of every user"),
    (5, "CAP_KILL", "ending processes of other users"),
    (6, "CAP_SETGID", "commands as another user"),
    (7, "CAP_SETUID", "commands as another user"),
    (12, "CAP_NET_ADMIN", "addresses after a restore"),
    (19, "CAP_SYS_PTRACE", "whose the open ports are"),
    (21, "CAP_SYS_ADMIN", "freezing, the hostname, entropy after a restore"),
    (22, "CAP_SYS_BOOT", "a forced shutdown"),
    (25, "CAP_SYS_TIME", "the clock"),
];

/// Everything that is worth a look, in the order in which it is needed.
pub(crate) fn findings(system: &System, devices: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![proc(system), pidfd()];
    match devices {
        Some(devices) => {
            let devices = devices.to_string_lossy();
            findings.extend(devices.split(',').map(str::trim).map(|device| given(system, device)));
        }
        None => findings.extend(channels(system)),
    }
    findings.push(key(system));
    findings.push(capabilities(&read_text(system, "/proc/self/status").unwrap_or_default()));
    findings.push(terminals(system));
    findings.push(cgroups(system));
    findings.push(freezing(system));
    let lacks = |name: &str, manager: Option<&str>, without: &str, fix: &str| match manager {
        Some(manager) => ok(name, manager),
        None => limited(name, without, fix),
    };
    findings.push(lacks(
        "services",
        service_manager(system),
        "neither systemd nor OpenRC runs",
        "services cannot be listed or started; exec still runs commands",
    ));
    findings.push(lacks(
        "packages",
        package_manager(system),
        "none of apt, dnf, apk, zypper, pacman",
        "packages cannot be installed; copy files or use an image that has one",
    ));
    for (program, what) in [("chpasswd", "passwords"), ("ssh-keygen", "SSH host keys after a restore")] {
        findings.push(match system.has(program) {
            true => ok(program, "is there"),
            false => limited(
                program,
                &format!("is not there: no {what}"),
                &format!("install the package that has {program}"),
            ),
        });
    }
    findings
}

fn finding(name: &str, level: FindingLevel, message: &str, fix: Option<&str>) -> Finding {
    Finding { name: name.to_owned(), level, message: message.to_owned(), fix: fix.map(str::to_owned) }
}

fn ok(name: &str, message: &str) -> Finding {
    finding(name, FindingLevel::Ok, message, None)
}

fn limited(name: &str, message: &str, fix: &str) -> Finding {
    finding(name, FindingLevel::Limited, message, Some(fix))
}

fn broken(name: &str, message: &str, fix: &str) -> Finding {
    finding(name, FindingLevel::Broken, message, Some(fix))
}

fn proc(system: &System) -> Finding {
    match read_text(system, "/proc/self/stat") {
        Ok(_) => ok("/proc", "is mounted"),
        Err(error) => broken("/proc", &error.to_string(), "mount -t proc proc /proc"),
    }
}

fn pidfd() -> Finding {
    match pidfd_open(getpid(), PidfdFlags::empty()) {
        Ok(_) => ok("kernel", &rustix::system::uname().release().to_string_lossy()),
        Err(error) => broken(
            "kernel",
            &format!("pidfd_open: {error}"),
            "use a kernel from 5.3 on, and a sandbox that permits pidfd_open",
        ),
    }
}

/// A device by the name that it has on the command line.
fn given(system: &System, device: &str) -> Finding {
    match device.split_once(':').unwrap_or((device, "")) {
        ("serial", "") => port(system),
        ("vsock", _) => vsock(system),
        ("fd", number) => match system.file("/proc/self/fd").join(number).exists() {
            true => ok("device", &format!("descriptor {number} is open")),
            false => broken(
                "device",
                &format!("descriptor {number:?} is not open"),
                "whoever starts the agent has to hand it over",
            ),
        },
        // It is made when the agent starts.
        ("unix-listen", path) => match Path::new(path).parent().is_some_and(Path::is_dir) {
            true => ok("device", &format!("a socket can be made at {path}")),
            false => broken("device", &format!("there is no directory for {path}"), "make it"),
        },
        ("unix", path) => given_device(Path::new(path)),
        _ => given_device(Path::new(device)),
    }
}

fn given_device(device: &Path) -> Finding {
    let shown = device.display();
    match fs::metadata(device) {
        Err(error) => {
            broken("device", &format!("{shown}: {error}"), "name one that there is, or none: the agent looks for it")
        }
        Ok(it) if !(it.file_type().is_char_device() || it.file_type().is_socket()) => broken(
            "device",
            &format!("{shown} is neither a character device nor a socket"),
            "name a port, like /dev/vport0p1",
        ),
        Ok(_) => match access(device, Access::READ_OK | Access::WRITE_OK) {
            Ok(()) => ok("device", &format!("{shown} can be read and written")),
            Err(error) => {
                broken("device", &format!("{shown}: {error}"), "run the agent as root, or permit its user the device")
            }
        },
    }
}

/// The virtio-serial port and the vsock device. One of them is needed.
fn channels(system: &System) -> Vec<Finding> {
    let (mut port, mut vsock) = (port(system), vsock(system));
    if port.level == FindingLevel::Ok && vsock.level == FindingLevel::Broken {
        vsock.level = FindingLevel::Limited;
    }
    if vsock.level == FindingLevel::Ok && port.level == FindingLevel::Broken {
        port.level = FindingLevel::Limited;
    }
    vec![port, vsock]
}

fn port(system: &System) -> Finding {
    const NAME: &str = "virtio-serial";
    let ports = ports(system);
    let Some((name, device)) = ports.iter().find(|(name, _)| name == PORT_NAME).or_else(|| ports.first()) else {
        return match virtio_device(system, VIRTIO_CONSOLE) {
            None => {
                broken(NAME, "the VM has no virtio console device", "the host has to give it one; see vsock as well")
            }
            Some(false) => broken(
                NAME,
                "no driver for the VM's virtio console device",
                "modprobe virtio_console, and have it in the initramfs",
            ),
            Some(true) => broken(
                NAME,
                "the VM's virtio console device has no named port",
                &format!("the host has to add the port {PORT_NAME}"),
            ),
        };
    };
    let shown = device.display();
    if fs::symlink_metadata(device).is_err() {
        return broken(
            NAME,
            &format!("the port {name} is there, but not {shown}"),
            "run udev, or mount -t devtmpfs devtmpfs /dev",
        );
    }
    if let Err(error) = access(device, Access::READ_OK | Access::WRITE_OK) {
        return broken(
            NAME,
            &format!("{shown} ({name}): {error}"),
            "run the agent as root, or permit its user the device",
        );
    }
    match holder(system, device) {
        Some((pid, holder)) if !holder.starts_with("roost-agent") => broken(
            NAME,
            &format!("{shown} ({name}) is held by {holder} (process {pid})"),
            "stop it: a port has one user at a time",
        ),
        Some((pid, _)) => ok(NAME, &format!("{shown} ({name}), which the agent (process {pid}) has open")),
        None if name != PORT_NAME => {
            limited(NAME, &format!("{shown} has the name {name}"), &format!("the host has to add the port {PORT_NAME}"))
        }
        None => ok(NAME, &format!("{shown} ({name})")),
    }
}

/// Every port that has a name, and its device.
fn ports(system: &System) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(system.file("/sys/class/virtio-ports")).into_iter().flatten().flatten();
    let mut ports: Vec<_> = entries
        .filter_map(|entry| {
            let name = fs::read_to_string(entry.path().join("name")).ok()?.trim().to_owned();
            (!name.is_empty()).then(|| (name, system.file("/dev").join(entry.file_name())))
        })
        .collect();
    ports.sort();
    ports
}

/// Whether there is such a device, and whether a driver has it.
fn virtio_device(system: &System, kind: &str) -> Option<bool> {
    let entries = fs::read_dir(system.file("/sys/bus/virtio/devices")).into_iter().flatten().flatten();
    let of_kind =
        entries.filter(|it| fs::read_to_string(it.path().join("device")).is_ok_and(|text| text.trim() == kind));
    of_kind.map(|entry| entry.path().join("driver").exists()).max()
}

fn holder(system: &System, device: &Path) -> Option<(u32, String)> {
    let device = device.canonicalize().ok()?;
    let processes = fs::read_dir(system.file("/proc")).ok()?.flatten();
    let pids = processes.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    pids.take(MAX_PROCESSES).find_map(|(pid, path): (u32, PathBuf)| {
        let mut fds = fs::read_dir(path.join("fd")).ok()?.flatten();
        fds.find(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == device))?;
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        Some((pid, name.trim().to_owned()))
    })
}

fn vsock(system: &System) -> Finding {
    match (virtio_device(system, VIRTIO_SOCKET), system.file("/dev/vsock").exists()) {
        (Some(true), true) => ok("vsock", "the VM has a vsock device, and the kernel its driver"),
        (Some(true), false) => {
            broken("vsock", "there is no /dev/vsock", "modprobe vsock; or mount -t devtmpfs devtmpfs /dev")
        }
        (Some(false), _) => {
            broken("vsock", "no driver for the VM's vsock device", "modprobe vmw_vsock_virtio_transport")
        }
        (None, _) => {
            broken("vsock", "the VM has no vsock device", "the host has to give it one; see virtio-serial as well")
        }
    }
}

fn key(system: &System) -> Finding {
    let path = format!("/sys/firmware/qemu_fw_cfg/by_name/{KEY_FW_CFG}/raw");
    match fs::metadata(system.file(&path)) {
        Ok(_) => ok("channel key", "the host has placed one: the channel can be sealed"),
        Err(_) if system.file("/sys/firmware/qemu_fw_cfg").exists() => limited(
            "channel key",
            "the host has placed none: the channel is not sealed",
            &format!("the host has to place {KEY_FW_CFG}"),
        ),
        Err(_) => limited(
            "channel key",
            "the kernel shows no fw_cfg: the channel is not sealed",
            "modprobe qemu_fw_cfg; a VM that QEMU does not run has none",
        ),
    }
}

fn capabilities(status: &str) -> Finding {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok()) else {
        return limited("capabilities", "/proc/self/status does not tell", "mount /proc");
    };
    let missing: Vec<_> = CAPABILITIES.iter().filter(|(bit, ..)| effective & (1 << bit) == 0).collect();
    if missing.is_empty() {
        return ok("capabilities", "all that the agent can use");
    }
    let told: Vec<_> = missing.iter().map(|(_, name, what)| format!("{name} ({what})")).collect();
    let names: Vec<_> = missing.iter().map(|(_, name, _)| *name).collect();
    let fix = format!("run the agent as root; in its unit, CapabilityBoundingSet has to have {}", names.join(" "));
    limited("capabilities", &format!("missing: {}", told.join(", ")), &fix)
}

fn terminals(system: &System) -> Finding {
    match (system.file("/dev/ptmx").exists(), system.file("/dev/pts/ptmx").exists()) {
        (true, true) => ok("terminals", "/dev/ptmx and /dev/pts are there"),
        _ => limited(
            "terminals",
            "no /dev/ptmx, or no /dev/pts: commands get no terminal",
            "mount -t devpts devpts /dev/pts",
        ),
    }
}

fn cgroups(system: &System) -> Finding {
    let writable = |path: &str| access(system.file(path), Access::WRITE_OK).is_ok();
    if writable("/sys/fs/cgroup/cgroup.subtree_control") {
        return ok("cgroups", "version 2, writable");
    }
    if writable("/sys/fs/cgroup/memory/cgroup.procs") && writable("/sys/fs/cgroup/pids/cgroup.procs") {
        return ok("cgroups", "version 1, writable");
    }
    limited(
        "cgroups",
        "none that can be written: a command's limits hold for each of its processes only",
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
    )
}

fn freezing(system: &System) -> Finding {
    let mounts = mounts(system).unwrap_or_default();
    let on_disk = mounts.iter().filter(|mount| mount.is_on_disk() && !mount.read_only_filesystem).count();
    match on_disk {
        0 => limited(
            "freezing",
            "no file system is on a disk and writable: there is nothing to freeze",
            "none is needed: a snapshot has the memory",
        ),
        _ => ok("freezing", &format!("{on_disk} file systems on disks")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Guest(tempfile::TempDir);

    impl Guest {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn system(&self) -> System {
            System::new(self.0.path(), Vec::new())
        }

        fn port(&self) -> Finding {
            port(&self.system())
        }
    }

    #[test]
    fn what_is_wrong_with_a_port() {
        let guest = Guest::new();
        assert!(guest.port().message.contains("no virtio console device"));
        guest.write("sys/bus/virtio/devices/virtio0/device", "0x0003\n");
        assert!(guest.port().fix.unwrap().contains("modprobe virtio_console"));
        guest.write("sys/bus/virtio/devices/virtio0/driver/x", "");
        assert!(guest.port().message.contains("no named port"));
        guest.write("sys/class/virtio-ports/vport0p1/name", "org.qemu.guest_agent.0\n");
        assert!(guest.port().fix.unwrap().contains("udev"));
        guest.write("dev/vport0p1", "");
        assert_eq!(guest.port().level, FindingLevel::Limited, "an old name");
        guest.write("sys/class/virtio-ports/vport0p2/name", "org.roost.agent.0\n");
        guest.write("dev/vport0p2", "");
        assert_eq!(guest.port().level, FindingLevel::Ok);
        guest.write("proc/77/comm", "qemu-ga\n");
        fs::create_dir_all(guest.0.path().join("proc/77/fd")).unwrap();
        symlink(guest.0.path().join("dev/vport0p2").canonicalize().unwrap(), guest.0.path().join("proc/77/fd/4"))
            .unwrap();
        assert!(guest.port().message.contains("held by qemu-ga (process 77)"));
        guest.write("proc/77/comm", "roost-agent\n");
        assert_eq!(guest.port().level, FindingLevel::Ok);
    }

    #[test]
    fn one_channel_is_enough() {
        let guest = Guest::new();
        let levels = || channels(&guest.system()).iter().map(|finding| finding.level).collect::<Vec<_>>();
        assert_eq!(levels(), [FindingLevel::Broken; 2]);
        guest.write("sys/bus/virtio/devices/virtio1/device", "0x0013\n");
        guest.write("sys/bus/virtio/devices/virtio1/driver/x", "");
        guest.write("dev/vsock", "");
        assert_eq!(levels(), [FindingLevel::Limited, FindingLevel::Ok]);
    }

    #[test]
    fn missing_capabilities_are_named_with_what_they_are_for() {
        assert_eq!(capabilities("CapEff:\t000001ffffffffff\n").level, FindingLevel::Ok);
        let finding = capabilities("CapEff:\t000001fffddfffff\n");
        assert!(
            finding.message.contains("CAP_SYS_ADMIN (freezing") && finding.message.contains("CAP_SYS_TIME"),
            "{finding:?}"
        );
        assert_eq!(capabilities("").level, FindingLevel::Limited);
    }

    #[test]
    fn the_unit_permits_what_the_agent_uses() {
        let unit = include_str!("../../../../../deploy/agent/roost-agent.service");
        let bounds = unit.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        let permitted: Vec<_> = bounds.flat_map(str::split_whitespace).collect();
        for (_, name, _) in CAPABILITIES {
            assert!(permitted.contains(name), "{name}");
        }
        assert!(!permitted.contains(&"CAP_SYS_MODULE") && !permitted.contains(&"CAP_SYS_RAWIO"));
        assert!(permitted.len() < 30 && !permitted.contains(&"CAP_BPF"));
        let openrc = include_str!("../../../../../deploy/agent/roost-agent.openrc");
        for (_, name, _) in CAPABILITIES {
            let name = name.trim_start_matches("CAP_").to_lowercase();
            assert!(!openrc.contains(&format!("-{name},")) && !openrc.contains(&format!("-{name}\"")), "{name}");
        }
    }

    #[test]
    fn a_device_that_is_named() {
        assert_eq!(given_device(Path::new("/dev/null")).level, FindingLevel::Ok);
        assert_eq!(given_device(Path::new("/etc/passwd")).level, FindingLevel::Broken);
        assert_eq!(given_device(Path::new("/dev/no-such")).level, FindingLevel::Broken);
        let system = System::default();
        let devices = "fd:0,fd:9999,unix-listen:/tmp/x,unix:/no/such,vsock:7,serial";
        let shown = findings(&system, Some(Path::new(devices)));
        let levels: Vec<_> = shown.iter().filter(|it| it.name == "device").map(|it| it.level).collect();
        use FindingLevel::{Broken, Ok};
        assert_eq!(levels, [Ok, Broken, Ok, Broken]);
        assert!(shown.iter().any(|it| it.name == "vsock") && shown.iter().any(|it| it.name == "virtio-serial"));
    }
}
