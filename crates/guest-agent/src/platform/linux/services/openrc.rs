//! OpenRC, through rc-status, rc-update and rc-service.

use std::collections::BTreeMap;

use roost_guest_proto::results::Service;
use roost_guest_proto::{ErrorCode, ServiceName, ServiceOperation};

use super::{MAX_OUTPUT, value_in};
use crate::platform::System;
use crate::run::Finished;
use crate::safe::{Context, Failure};

pub(super) fn list(context: &Context) -> Result<(Vec<Service>, Finished), Failure> {
    let program = |argv: &[&str]| context.succeed(context.system.program(argv).output_limit(MAX_OUTPUT));
    let states = program(&["rc-status", "--all", "--format", "ini"])?;
    let levels = program(&["rc-update", "show", "--verbose"])?;
    let mut services = join(&parse_status(&states.stdout), parse_update(&levels.stdout));
    for service in &mut services {
        service.description = description(&context.system, &service.name);
    }
    Ok((services, states))
}

pub(super) fn control(
    context: &Context,
    service: &ServiceName,
    operation: ServiceOperation,
) -> Result<(Service, Finished), Failure> {
    let name = service.as_str();
    let exists = context.finish(context.system.program(["rc-service", "--exists", name]))?;
    if !exists.succeeded() {
        return Err(Failure::new(ErrorCode::NotFound, format!("service: there is no {name:?}")).ran(exists));
    }
    let finished = match operation {
        ServiceOperation::Enable => context.succeed(context.system.program(["rc-update", "add", name, "default"]))?,
        ServiceOperation::Disable => disable(context, name)?,
        // Anything but 0 says how the service is, and that is in the data.
        ServiceOperation::Status => context.finish(context.system.program(["rc-service", name, "status"]))?,
        _ => context.succeed(context.system.program(["rc-service", name, operation.as_str()]))?,
    };
    let (services, _) = list(context)?;
    let found = services.into_iter().find(|found| found.name == name);
    let found =
        found.ok_or_else(|| Failure::new(ErrorCode::CommandFailed, format!("rc-update does not list {name:?}")))?;
    Ok((found, finished))
}

/// From each runlevel that has it: of the others rc-update says that it is an error.
fn disable(context: &Context, name: &str) -> Result<Finished, Failure> {
    let shown = context.succeed(context.system.program(["rc-update", "show", "--verbose"]).output_limit(MAX_OUTPUT))?;
    let levels = parse_update(&shown.stdout).remove(name).unwrap_or_default();
    levels
        .iter()
        .try_fold(shown, |_, level| context.succeed(context.system.program(["rc-update", "delete", name, level])))
}

/// `[runlevel]`, then `name = state` for each.
fn parse_status(text: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let pairs = lines.map(|(name, state)| (name.trim().to_owned(), state.trim().to_owned()));
    pairs.filter(|(name, _)| !name.is_empty() && !name.contains(char::is_whitespace)).collect()
}

/// `  name |  default boot`: the runlevels that have it.
fn parse_update(text: &[u8]) -> BTreeMap<String, Vec<String>> {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().filter_map(|line| line.split_once('|'));
    let pairs =
        lines.map(|(name, levels)| (name.trim().to_owned(), levels.split_whitespace().map(str::to_owned).collect()));
    pairs.filter(|(name, _)| !name.is_empty() && !name.contains(char::is_whitespace)).collect()
}

fn join(states: &BTreeMap<String, String>, levels: BTreeMap<String, Vec<String>>) -> Vec<Service> {
    let mut services = levels;
    for name in states.keys() {
        services.entry(name.clone()).or_default();
    }
    let service = |(name, levels): (String, Vec<String>)| {
        // `started 1 day(s) 02:33:11 (0)` where a supervisor tells more.
        let told = states.get(&name).and_then(|state| state.split_whitespace().next()).unwrap_or("stopped");
        let state = match told {
            "started" => "active",
            "stopped" => "inactive",
            "crashed" | "failed" => "failed",
            "starting" => "activating",
            "stopping" => "deactivating",
            other => other,
        };
        let (state, sub_state) = (state.to_owned(), Some(told.to_owned()));
        Service { name, state, sub_state, enabled: Some(!levels.is_empty()), ..Service::default() }
    };
    services.into_iter().map(service).collect()
}

/// The script is not run for it: its `description="..."` is read.
fn description(system: &System, name: &str) -> String {
    let value = value_in(&system.file("/etc/init.d").join(name), "description=").unwrap_or_default();
    value.trim_matches(['"', '\'']).to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn states_and_runlevels() {
        let states = parse_status(
            b"[boot]\nbootmisc =  started \nhostname = started\n[default]\nsshd = crashed\nlate = started 00:10:11 (0)\n\
              [manual]\nbyhand = starting\n",
        );
        let levels = parse_update(
            b"             bootmisc |      boot                              \n   sshd |   default\n  rsyncd |      \n late | default\n",
        );
        let services = join(&states, levels);
        let found: Vec<_> = services.iter().map(|it| (it.name.as_str(), it.state.as_str(), it.enabled)).collect();
        let wanted = [
            ("bootmisc", "active", Some(true)),
            ("byhand", "activating", Some(false)),
            ("hostname", "active", Some(false)),
            ("late", "active", Some(true)),
            ("rsyncd", "inactive", Some(false)),
            ("sshd", "failed", Some(true)),
        ];
        assert_eq!(found, wanted);
    }

    proptest! {
        #[test]
        fn any_output_is_read(text in r"[a-z\[\]=| \n\xe9-]{0,200}") {
            parse_status(text.as_bytes());
            parse_update(text.as_bytes());
        }
    }
}
