//! From a definition and a plan to QEMU's arguments. Pure.
//!
//! Everything that carries a user's text is JSON (`-blockdev`, `-device`, `-object`, `-netdev`),
//! a whole argument of its own (`-kernel`, `-initrd`, `-append`), or has its commas doubled
//! (`-name`). No other argument holds anything but words and numbers made here.
//!
//! Files of this module: the board and what is on every board ([`board`]), disks ([`disks`]),
//! network interfaces ([`nics`]), channels into the guest ([`agent`]), places on PCI and virtio-mmio ([`places`]).

mod agent;
mod board;
mod disks;
mod nics;
mod places;

use std::ffi::OsString;
use std::os::fd::RawFd;

use roost_backend::{BackendError, Definition};
use roost_model::spec::MachineType;
use serde_json::Value;

pub(crate) use disks::node_name;

use crate::accel::Choice;
use crate::probe::Probe;

/// Where QEMU finds its listening control socket.
pub(crate) const QMP_FD: RawFd = 3;
/// Where it finds its end of the serial line.
pub(crate) const SERIAL_FD: RawFd = 4;
/// Where it finds the listening socket of Roost's agent.
pub(crate) const AGENT_FD: RawFd = 5;
/// Where it finds the listening socket of its own guest agent.
pub(crate) const QEMU_GUEST_AGENT_FD: RawFd = 6;
/// Where it finds its first TAP; the others follow.
pub(crate) const FIRST_TAP_FD: RawFd = 10;

/// What is decided before a launch and is not in the definition.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// The board.
    pub(crate) machine: MachineType,
    /// What this QEMU can do.
    pub(crate) probe: &'a Probe,
    /// How guest instructions run.
    pub(crate) accelerator: &'a Choice,
    /// Per disk: whether its file is a block device of the host.
    pub(crate) block_devices: &'a [bool],
}

/// What QEMU is started with.
#[derive(Debug)]
pub(crate) struct Built {
    /// The arguments, without the program's name.
    pub(crate) args: Vec<OsString>,
    /// Whether it expects the agents' sockets.
    pub(crate) agent: bool,
}

/// What QEMU is started with.
///
/// # Errors
/// The board cannot have what the spec asks for. Says which field and what is permitted.
pub(crate) fn build(vm: &Definition, plan: &Plan<'_>) -> Result<Built, BackendError> {
    let mut args = Args::default();
    let mut places = places::Places::new(plan.machine, board::has_second_ioapic(plan), &vm.spec);
    board::identity(vm, &mut args);
    board::machine(vm, plan, &mut args)?;
    board::processors(vm, plan, &mut args)?;
    board::memory(vm, plan, &mut args)?;
    board::boot(vm, plan, &mut args)?;
    board::control(plan, &mut args);
    board::serial(vm, &mut args);
    disks::add(vm, plan, &mut places, &mut args)?;
    nics::add(vm, &mut places, &mut args)?;
    board::standard_devices(plan, &mut places, &mut args)?;
    let agent = agent::add(vm, plan, &mut places, &mut args)?;
    Ok(Built { args: args.0, agent })
}

/// Arguments under way.
#[derive(Debug, Default)]
struct Args(Vec<OsString>);

impl Args {
    /// An option without a value.
    fn flag(&mut self, option: &str) {
        self.0.push(option.into());
    }

    /// An option and its value, which is one argument whatever is in it.
    fn value(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }

    /// An option and its JSON value.
    fn json(&mut self, option: &str, value: &Value) {
        self.value(option, value.to_string());
    }
}

/// The board cannot have it.
fn unsupported(
    field: impl std::fmt::Display,
    value: impl std::fmt::Display,
    problem: &str,
    permitted: &str,
) -> BackendError {
    BackendError::permanent("UNSUPPORTED_BY_MACHINE", format!("{field} {value}: {problem} (permitted: {permitted})"))
}

#[cfg(test)]
pub(crate) mod tests;
