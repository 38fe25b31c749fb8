//! The flags that describe a VM, and how they change a configuration.

use clap::Args;
use roost_client::v1::restart_policy::Mode;
use roost_client::v1::{NetworkInterface, PortForward, RestartPolicy, StorageDevice, Tool, VmConfig};

use super::disk::{absolute, cdrom, disk};
use super::network::{Net, interfaces, net, publish};
use crate::error::Failure;
use crate::values::{key_value, size, whole_seconds};

/// What a VM is to be. A flag that is given replaces what a file or the VM says; lists are replaced
/// as a whole, metadata is added to.
#[derive(Debug, Args)]
#[command(next_help_heading = "What the VM is to be")]
pub(crate) struct ConfigFlags {
    /// Kernel image to boot
    #[arg(long, value_name = "PATH", value_parser = absolute, value_hint = clap::ValueHint::FilePath)]
    kernel: Option<String>,
    /// Initial RAM disk
    #[arg(long, value_name = "PATH", value_parser = absolute, value_hint = clap::ValueHint::FilePath)]
    initrd: Option<String>,
    /// The kernel's command line, as one argument
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    kernel_args: Option<String>,
    /// Memory, e.g. 256MiB or 2GiB [default when created: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<i64>,
    /// Virtual CPUs [default when created: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cpus: Option<u32>,
    /// A disk: PATH or path=PATH, then ,format=raw|qcow2 ,bus=virtio|scsi|sata ,id=ID ,readonly ,root; a comma in
    /// a value is doubled (repeatable)
    #[arg(long = "disk", value_name = "DISK", value_parser = disk)]
    disks: Vec<StorageDevice>,
    /// A CD-ROM image (repeatable)
    #[arg(long = "cdrom", value_name = "PATH", value_parser = cdrom, value_hint = clap::ValueHint::FilePath)]
    cdroms: Vec<StorageDevice>,
    /// A network interface: user, tap:NAME or none [default when created from flags: user] (repeatable)
    #[arg(long = "net", value_name = "NET", value_parser = net)]
    nets: Vec<Net>,
    /// A port of the host handed to the guest: [ADDRESS:]HOSTPORT:GUESTPORT[/tcp|udp] (repeatable)
    #[arg(long, value_name = "PORTS", value_parser = publish)]
    publish: Vec<PortForward>,
    /// Machine type: q35 or microvm
    #[arg(long, value_name = "TYPE")]
    machine: Option<String>,
    /// How guest instructions run: auto, kvm or tcg
    #[arg(long, value_name = "NAME")]
    accelerator: Option<String>,
    /// The owner's own words (repeatable)
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    metadata: Vec<(String, String)>,
    /// What happens when the machine ends by itself: never, on-failure or always, and how often in a row
    #[arg(long, value_name = "POLICY[:MAX]", value_parser = restart)]
    restart: Option<RestartPolicy>,
    /// The VM is deleted this long after its creation, e.g. 1h
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds)]
    ttl: Option<u32>,
    /// The channel to the guest agent: auto, on or off
    #[arg(long, value_name = "CHANNEL")]
    agent: Option<String>,
    /// Permit to run programs in the guest (roost exec)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_exec: Option<bool>,
    /// A directory of the guest within which files may be read and written (roost cp) (repeatable)
    #[arg(long = "file-root", value_name = "DIR", value_parser = absolute)]
    file_roots: Vec<String>,
    /// The guest's user that programs run as
    #[arg(long, value_name = "USER")]
    exec_user: Option<String>,
    /// How often the agent reports metrics, e.g. 5s [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds)]
    metrics_interval: Option<u32>,
    /// A package to install as part of the creation: NAME or NAME=VERSION (repeatable)
    #[arg(long = "tool", value_name = "TOOL", value_parser = tool)]
    tools: Vec<Tool>,
    /// Stop or delete the VM when nothing was done in it for so long, e.g. 30m or 30m:delete
    #[arg(long, value_name = "DURATION[:ACTION]", value_parser = idle)]
    idle_timeout: Option<(u32, String)>,
}

/// Of a VM that is made from flags and does not say.
const USUAL_MEMORY: i64 = 256 << 20;

impl ConfigFlags {
    /// Whether any was given.
    pub(crate) fn any(&self) -> bool {
        let Self {
            kernel,
            initrd,
            kernel_args,
            memory,
            cpus,
            disks,
            cdroms,
            nets,
            publish,
            machine,
            accelerator,
            metadata,
            restart,
            ttl,
            agent,
            allow_exec,
            file_roots,
            exec_user,
            metrics_interval,
            tools,
            idle_timeout,
        } = self;
        [kernel, initrd, kernel_args, machine, accelerator, agent, exec_user].iter().any(|o| o.is_some())
            || memory.is_some()
            || cpus.is_some()
            || restart.is_some()
            || ttl.is_some()
            || allow_exec.is_some()
            || metrics_interval.is_some()
            || idle_timeout.is_some()
            || !tools.is_empty()
            || !file_roots.is_empty()
            || [disks, cdroms].iter().any(|l| !l.is_empty())
            || !nets.is_empty()
            || !publish.is_empty()
            || !metadata.is_empty()
    }

    /// A new configuration.
    pub(crate) fn create(&self) -> Result<VmConfig, Failure> {
        let mut config = VmConfig::default();
        config.cpu.get_or_insert_default().vcpu_count = 1;
        config.memory.get_or_insert_default().size_bytes = USUAL_MEMORY;
        config.network = vec![NetworkInterface { kind: "user".to_owned(), ..Default::default() }];
        self.apply(&mut config)?;
        Ok(config)
    }

    /// Changes a configuration by what was given.
    pub(crate) fn apply(&self, config: &mut VmConfig) -> Result<(), Failure> {
        if self.kernel.is_some() || self.initrd.is_some() || self.kernel_args.is_some() {
            let boot = config.boot.get_or_insert_default();
            replace(&mut boot.kernel_path, &self.kernel);
            replace(&mut boot.initrd_path, &self.initrd);
            replace(&mut boot.kernel_args, &self.kernel_args);
        }
        if let Some(size) = self.memory {
            let memory = config.memory.get_or_insert_default();
            // Room for more that was only ever the size itself goes with it.
            if memory.max_size_bytes == memory.size_bytes {
                memory.max_size_bytes = 0;
            }
            memory.size_bytes = size;
        }
        if let Some(count) = self.cpus {
            let cpu = config.cpu.get_or_insert_default();
            if cpu.max_vcpu_count == cpu.vcpu_count {
                cpu.max_vcpu_count = 0;
            }
            cpu.vcpu_count = count;
        }
        if !self.disks.is_empty() || !self.cdroms.is_empty() {
            config.storage = self.disks.iter().chain(&self.cdroms).cloned().collect();
        }
        if !self.nets.is_empty() {
            config.network = interfaces(&self.nets).map_err(|e| Failure::usage(format!("--net: {e}"), ""))?;
        }
        if !self.publish.is_empty() {
            publish_on(config, &self.publish)?;
        }
        replace(&mut config.machine, &self.machine);
        replace(&mut config.accelerator, &self.accelerator);
        config.metadata.extend(self.metadata.iter().cloned());
        if let Some(policy) = &self.restart {
            config.restart_policy = policy.clone().into();
        }
        if let Some(seconds) = self.ttl {
            config.time_to_live_seconds = seconds.into();
        }
        if let Some((seconds, action)) = &self.idle_timeout {
            config.idle_timeout_seconds = (*seconds).into();
            config.idle_action.clone_from(action);
        }
        if !self.tools.is_empty() {
            config.tools.clone_from(&self.tools);
        }
        self.apply_agent(config);
        Ok(())
    }

    fn apply_agent(&self, config: &mut VmConfig) {
        let Self { agent: channel, allow_exec, file_roots, exec_user, metrics_interval, .. } = self;
        let given = channel.is_some() || exec_user.is_some() || allow_exec.is_some() || metrics_interval.is_some();
        if !given && file_roots.is_empty() {
            return;
        }
        let agent = config.agent.get_or_insert_default();
        replace(&mut agent.channel, channel);
        replace(&mut agent.exec_user, exec_user);
        if let Some(allow) = allow_exec {
            agent.allow_exec = *allow;
        }
        if !file_roots.is_empty() {
            agent.file_roots.clone_from(file_roots);
        }
        if let Some(seconds) = metrics_interval {
            agent.metrics_interval_seconds = *seconds;
        }
    }
}

fn replace(field: &mut String, given: &Option<String>) {
    if let Some(given) = given {
        field.clone_from(given);
    }
}

/// Ports are handed on by the first interface in user mode.
fn publish_on(config: &mut VmConfig, ports: &[PortForward]) -> Result<(), Failure> {
    let in_user_mode = |n: &&mut NetworkInterface| n.kind == "user" || (n.kind.is_empty() && n.tap_device.is_empty());
    match config.network.iter_mut().find(in_user_mode) {
        Some(interface) => {
            interface.port_forwards = ports.to_vec();
            Ok(())
        }
        None => Err(Failure::usage(
            "--publish needs an interface in user mode",
            "add --net user; on a TAP the guest is reached by its own address",
        )),
    }
}

fn tool(text: &str) -> Result<Tool, String> {
    let (name, version) = text.split_once('=').unwrap_or((text, ""));
    if name.is_empty() {
        return Err("NAME or NAME=VERSION is permitted".to_owned());
    }
    Ok(Tool { name: name.to_owned(), version: version.to_owned(), ..Default::default() })
}

fn idle(text: &str) -> Result<(u32, String), String> {
    let (duration, action) = text.split_once(':').unwrap_or((text, ""));
    if !["", "stop", "delete"].contains(&action) {
        return Err(format!("{action:?} is not an action; permitted: stop, delete"));
    }
    Ok((whole_seconds(duration)?, action.to_owned()))
}

fn restart(text: &str) -> Result<RestartPolicy, String> {
    let (word, most) = match text.split_once(':') {
        Some((word, most)) => (word, Some(most.parse::<u32>().map_err(|_| format!("{most:?} is not a number"))?)),
        None => (text, None),
    };
    let mode = match word {
        "never" if most.is_none() => Mode::MODE_NEVER,
        "on-failure" => Mode::MODE_ON_FAILURE,
        "always" => Mode::MODE_ALWAYS,
        _ => return Err("permitted: never, on-failure[:MAX], always[:MAX]; MAX 0 is no limit".to_owned()),
    };
    Ok(RestartPolicy { mode: mode.into(), max_retries: most, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: ConfigFlags,
    }

    fn flags(args: &[&str]) -> ConfigFlags {
        Line::try_parse_from([&["x"], args].concat()).unwrap().flags
    }

    #[test]
    fn a_vm_of_flags_has_one_cpu_and_a_network() {
        let given = ["--kernel", "/k", "--kernel-args", "-a \"b c\"", "--restart", "always:3"];
        let config = flags(&given).create().unwrap();
        assert_eq!((config.cpu.vcpu_count, config.memory.size_bytes), (1, 256 << 20));
        assert_eq!(config.network[0].kind, "user");
        assert_eq!(config.boot.kernel_args, "-a \"b c\"");
        assert_eq!(config.restart_policy.max_retries, Some(3));
        assert!(flags(&["--net", "none"]).create().unwrap().network.is_empty());
    }

    #[test]
    fn flags_change_only_what_they_name() {
        let given = ["--metadata", "a=1", "--disk", "/d.raw", "--cdrom", "/c.iso", "--publish", "2222:22"];
        let before = flags(&given).create().unwrap();
        assert_eq!(before.storage.len(), 2);
        let mut after = before.clone();
        flags(&["--memory", "1GiB", "--metadata", "b=2"]).apply(&mut after).unwrap();
        assert_eq!(after.memory.size_bytes, 1 << 30);
        assert_eq!(after.metadata.len(), 2);
        assert_eq!((&after.storage, &after.network), (&before.storage, &before.network));
        assert!(!flags(&[]).any() && flags(&["--ttl", "1h"]).any());
        assert!(flags(&["--net", "tap:t0", "--publish", "1:1"]).create().is_err());
    }

    #[test]
    fn a_bad_value_is_refused_by_its_flag() {
        for bad in [
            ["--restart", "sometimes"],
            ["--restart", "never:3"],
            ["--memory", "lots"],
            ["--cpus", "0"],
            ["--ttl", "0"],
            ["--metadata", "novalue"],
        ] {
            assert!(Line::try_parse_from([&["x"], &bad[..]].concat()).is_err(), "{bad:?}");
        }
    }
}
