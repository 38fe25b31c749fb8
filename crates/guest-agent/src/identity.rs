//! Who this VM is, after a restore or a fork made it another one.
//!
//! ```text
//!   checked ──> entropy ──> clock ──> hostname ──> machine-id ──> interfaces ──> SSH host keys
//! ```
//!
//! All fields are checked before the first step, and entropy comes before anything that is made of it. A step that
//! fails stops none after it: the answer tells of each, and fails if one did. Each may be repeated.

mod machine_id;
mod seed;
mod ssh_host_keys;

use roost_guest_proto::{ErrorBody, ErrorCode, Hostname, Identity};
use serde_json::{Value, json};

use crate::platform::{self, InterfacePlan, System};
use machine_id::MachineId;
use seed::Seed;

/// The most interfaces in one identity.
const MAX_INTERFACES: usize = 64;

/// Takes on another identity.
pub fn apply(identity: &Identity) -> Result<Value, ErrorBody> {
    apply_to(&System::default(), identity)
}

/// The same, on a directory that may stand for a system.
pub fn apply_to(system: &System, identity: &Identity) -> Result<Value, ErrorBody> {
    let plan = Plan::parse(identity)?;
    let steps = [
        ("entropy", plan.seed.map(|seed| seed.apply(system))),
        (
            "time_ms",
            identity.time_ms.map(|time| platform::set_clock(system, time).map(|moved| json!({ "moved_ms": moved }))),
        ),
        (
            "hostname",
            plan.hostname.map(|name| platform::set_hostname(system, &name).map(|old| json!({ "previous": old }))),
        ),
        ("machine_id", plan.machine_id.map(|id| id.apply(system))),
        ("interfaces", (!plan.interfaces.is_empty()).then(|| interfaces(&plan.interfaces))),
        ("ssh_host_keys", identity.ssh_host_keys.then(|| ssh_host_keys::replace(system))),
    ];
    let mut told = serde_json::Map::new();
    let mut failed = Vec::new();
    for (name, result) in steps {
        match result {
            None => {}
            Some(Ok(data)) => drop(told.insert(name.to_owned(), data)),
            Some(Err(error)) => {
                let named = error.message.starts_with(name);
                failed.push(if named { error.message.clone() } else { format!("{name}: {error}") });
                told.insert(name.to_owned(), json!({ "error": error }));
            }
        }
    }
    if failed.is_empty() {
        return Ok(told.into());
    }
    let mut error = ErrorBody::new(ErrorCode::CommandFailed, failed.join("; "));
    error.details = Some(told.into());
    Err(error)
}

/// An identity whose fields are what they may be.
struct Plan {
    seed: Option<Seed>,
    hostname: Option<Hostname>,
    machine_id: Option<MachineId>,
    interfaces: Vec<InterfacePlan>,
}

impl Plan {
    fn parse(identity: &Identity) -> Result<Self, ErrorBody> {
        let hostname = identity
            .hostname
            .as_deref()
            .map(|name| name.parse().map_err(|error| ErrorBody::field("hostname", format!("hostname: {error}"))));
        if identity.interfaces.len() > MAX_INTERFACES {
            let message = format!("interfaces: {}; permitted: {MAX_INTERFACES}", identity.interfaces.len());
            return Err(ErrorBody::field("interfaces", message));
        }
        Ok(Self {
            seed: identity.entropy.as_ref().map(Seed::parse).transpose()?,
            hostname: hostname.transpose()?,
            machine_id: identity.machine_id.as_deref().map(MachineId::parse).transpose()?,
            interfaces: identity.interfaces.iter().map(InterfacePlan::parse).collect::<Result<_, _>>()?,
        })
    }
}

fn interfaces(plans: &[InterfacePlan]) -> Result<Value, ErrorBody> {
    plans.iter().try_for_each(InterfacePlan::apply)?;
    Ok(json!({ "set": plans.len() }))
}

#[cfg(test)]
mod tests;
