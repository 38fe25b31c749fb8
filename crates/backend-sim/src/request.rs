//! What a backend asks of the host that holds the machines, in process or over its socket.

use std::str::FromStr;

use roost_model::state::Machine;
use roost_model::{ExitCause, Invalid, LaunchId, VmId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::guest::Guest;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// The host works.
    Ping,
    /// The VM is defined from now on.
    Define { vm: VmId, guest: Guest },
    /// Makes a machine that waits at a gate: it goes when its session ends, or on `Abandon`.
    Prepare { vm: VmId, launch: LaunchId },
    /// Opens the gate; answers when the CPUs run.
    Release { vm: VmId, launch: LaunchId },
    /// Nobody will open the gate.
    Abandon { vm: VmId, launch: LaunchId },
    /// Ends the guest; `None` at once, by force.
    Shutdown { vm: VmId, grace_ms: Option<u64> },
    /// Stops the CPUs.
    Pause { vm: VmId },
    /// Lets them go on.
    Resume { vm: VmId },
    /// Starts the guest anew; `None` at once, by a reset.
    Reboot { vm: VmId, grace_ms: Option<u64> },
    /// What is there?
    Info { vm: VmId },
    /// Finds machines by their records, and reports their ends to this session from now on.
    Adopt { vms: Vec<Sought> },
    /// Clears the machine away. `recorded`: whether the caller's records know one.
    Clear { vm: VmId, recorded: bool },
    /// Forgets the VM.
    Remove { vm: VmId },
    /// Acts on the machine from outside, as a guest or an operator of the host would.
    Control { vm: VmId, control: Control },
    /// What does the host hold of the VM?
    Leftovers { vm: VmId },
}

/// A machine to be found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sought {
    pub(crate) vm: VmId,
    pub(crate) guest: Guest,
    /// Its definition is on record.
    pub(crate) defined: bool,
    /// The launch whose machine is on record as made.
    pub(crate) launch: Option<LaunchId>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Reply {
    Done,
    Ended { cause: ExitCause },
    There { there: There },
    Found { found: Vec<Found> },
    Left { left: Vec<String> },
}

/// What is there of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct There {
    pub(crate) found: Found,
    /// The machine is held back before its CPUs run.
    pub(crate) gated: bool,
    pub(crate) uptime_ms: u64,
    pub(crate) resets: u64,
    pub(crate) guest: Guest,
}

/// A machine and its launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Found {
    pub(crate) machine: Machine,
    pub(crate) launch: Option<LaunchId>,
}

/// Something done to a machine from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// The guest powers itself off.
    PowerOff,
    /// The guest's kernel panics.
    Panic,
    /// The guest resets itself.
    Reset,
    /// Somebody kills the machine's process.
    Kill,
    /// The CPUs stop by something other than `pause`: an I/O error on a full disk.
    Stall,
    /// They go on after a stall.
    Recover,
}

impl Control {
    /// Every one of them.
    pub const ALL: [Control; 6] =
        [Control::PowerOff, Control::Panic, Control::Reset, Control::Kill, Control::Stall, Control::Recover];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Control::PowerOff => "power-off",
            Control::Panic => "panic",
            Control::Reset => "reset",
            Control::Kill => "kill",
            Control::Stall => "stall",
            Control::Recover => "recover",
        }
    }
}

impl FromStr for Control {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Control::ALL.into_iter().find(|c| c.as_str() == text).ok_or_else(|| {
            Invalid::new("action", text, "is not one of the permitted words").permit(Control::ALL.map(Control::as_str))
        })
    }
}

/// A machine could not be acted on from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ControlError {
    /// There is no machine that lives.
    #[error("{0} has no living machine")]
    NoMachine(VmId),
    /// A guest whose CPUs stand still does nothing.
    #[error("the CPUs of {0} stand still")]
    Stopped(VmId),
}

/// The host could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum HostError {
    #[error("{vm} has no machine")]
    NoMachine { vm: VmId },
    #[error("{vm} is not defined on this host")]
    NotDefined { vm: VmId },
    #[error("the machine of {vm} is {is}: {wanted}")]
    WrongState { vm: VmId, is: String, wanted: String },
    #[error("the machine of {vm} was launched as {launch}, which is not on record")]
    Unrecorded { vm: VmId, launch: LaunchId },
    #[error("the machine of {vm} was not adopted by this session")]
    NotAdopted { vm: VmId },
    #[error("the host is gone: {why}")]
    Gone { why: String },
}

impl From<ControlError> for HostError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::NoMachine(vm) => HostError::NoMachine { vm },
            ControlError::Stopped(vm) => {
                HostError::WrongState { vm, is: Machine::Paused.to_string(), wanted: "its CPUs must run".to_owned() }
            }
        }
    }
}
