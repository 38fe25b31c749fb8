//! Services, as the guest's service manager has them.

mod openrc;
mod systemd;

use std::io::Read;
use std::path::Path;

use roost_guest_proto::results::{Service, Services};
use roost_guest_proto::{ServiceName, ServiceOperation};

use crate::platform::System;
use crate::run::Finished;
use crate::safe::{Context, Failure, not_supported};

/// The most that a manager's list is read of.
const MAX_OUTPUT: usize = 2 << 20;

/// How much of a unit or an init script is searched for its description.
const MAX_FILE: u64 = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manager {
    Systemd,
    Openrc,
}

/// Only one that runs: its programs alone start nothing.
fn detect(system: &System) -> Option<Manager> {
    if system.file("/run/systemd/system").is_dir() && system.has("systemctl") {
        Some(Manager::Systemd)
    } else if system.file("/run/openrc").is_dir() && system.has("rc-service") {
        Some(Manager::Openrc)
    } else {
        None
    }
}

fn manager(system: &System) -> Result<Manager, Failure> {
    detect(system).ok_or_else(|| {
        not_supported("services: neither systemd (/run/systemd/system) nor OpenRC (/run/openrc) runs in this guest")
    })
}

/// `systemd`, `openrc`, or none that runs.
pub(crate) fn service_manager(system: &System) -> Option<&'static str> {
    detect(system).map(|manager| match manager {
        Manager::Systemd => "systemd",
        Manager::Openrc => "openrc",
    })
}

/// Every service, by name; `total` and `truncated` are the caller's.
pub(crate) fn services(context: &Context) -> Result<(Services, Finished), Failure> {
    let (manager, (mut services, finished)) = match manager(&context.system)? {
        Manager::Systemd => ("systemd", systemd::list(context)?),
        Manager::Openrc => ("openrc", openrc::list(context)?),
    };
    services.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((Services { manager: manager.to_owned(), services, ..Services::default() }, finished))
}

/// The names of those that have failed, and how many were looked at.
pub(crate) fn failed_services(context: &Context) -> Result<(Vec<String>, usize), Failure> {
    let (services, _) = match manager(&context.system)? {
        Manager::Systemd => systemd::loaded(context)?,
        Manager::Openrc => openrc::list(context)?,
    };
    let total = services.len();
    let failed = services.into_iter().filter(|service| service.state == "failed");
    Ok((failed.map(|service| service.name).collect(), total))
}

/// Does it, and looks at the service then.
pub(crate) fn control_service(
    context: &Context,
    service: &ServiceName,
    operation: ServiceOperation,
) -> Result<(Service, Finished), Failure> {
    match manager(&context.system)? {
        Manager::Systemd => systemd::control(context, service, operation),
        Manager::Openrc => openrc::control(context, service, operation),
    }
}

/// What stands behind the first `prefix` that begins a line, in the first part of a file.
fn value_in(path: &Path, prefix: &str) -> Option<String> {
    let mut text = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_FILE).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let value = text.lines().find_map(|line| line.strip_prefix(prefix))?;
    Some(value.trim().chars().take(256).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_in_files() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x");
        let value = |text: &[u8], prefix: &str| {
            std::fs::write(&file, text).unwrap();
            value_in(&file, prefix)
        };
        assert_eq!(value(b"[Unit]\nDescription= a = b \nDescription=c\n", "Description=").as_deref(), Some("a = b"));
        assert_eq!(value(b"#!/sbin/openrc-run\ndescription=\"x\"\n", "description=").as_deref(), Some("\"x\""));
        assert_eq!(value(b"\xff\n", "description="), None);
        assert_eq!(value_in(directory.path(), "x"), None);
    }
}
