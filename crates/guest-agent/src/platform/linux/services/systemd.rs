//! systemd, through systemctl: its output with `--plain --no-legend` is stable, and it needs no D-Bus of ours.

use std::collections::BTreeMap;

use roost_guest_proto::results::Service;
use roost_guest_proto::{ErrorCode, ServiceName, ServiceOperation};

use super::{MAX_OUTPUT, value_in};
use crate::run::Finished;
use crate::safe::{Context, Failure};

/// What systemd manages beside services. A name without one of these is a service's.
const SUFFIXES: &[&str] =
    &[".service", ".socket", ".timer", ".target", ".mount", ".automount", ".path", ".swap", ".slice"];

/// Where a unit's file may be, the one that counts first (systemd.unit(5)).
const UNIT_PATH: &[&str] = &[
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
];

/// Those that are loaded, and those that are only installed.
pub(super) fn list(context: &Context) -> Result<(Vec<Service>, Finished), Failure> {
    let (units, finished) = loaded(context)?;
    let files = systemctl(context, "list-unit-files", &[])?;
    let mut services = join(units, parse_unit_files(&files.stdout));
    for service in services.iter_mut().filter(|service| service.description.is_empty()) {
        // systemctl would load each, which takes a hundred times as long.
        let file = format!("{}.service", service.name);
        let mut places = UNIT_PATH.iter().map(|directory| context.system.file(directory).join(&file));
        service.description = places.find_map(|path| value_in(&path, "Description=")).unwrap_or_default();
    }
    Ok((services, finished))
}

/// Those that are loaded: a failed one is.
pub(super) fn loaded(context: &Context) -> Result<(Vec<Service>, Finished), Failure> {
    let units = systemctl(context, "list-units", &["--all"])?;
    Ok((parse_units(&units.stdout), units))
}

fn systemctl(context: &Context, verb: &str, more: &[&str]) -> Result<Finished, Failure> {
    let argv = ["systemctl", verb, "--type=service", "--plain", "--no-legend", "--no-pager", "--full"];
    context.succeed(context.system.program(argv.iter().chain(more)).output_limit(MAX_OUTPUT))
}

pub(super) fn control(
    context: &Context,
    service: &ServiceName,
    operation: ServiceOperation,
) -> Result<(Service, Finished), Failure> {
    let unit = unit_name(service);
    show(context, &unit)?;
    let argv = match operation {
        ServiceOperation::Status => vec!["systemctl", "status", "--no-pager", "--full", "--lines=20", "--", &unit],
        _ => vec!["systemctl", operation.as_str(), "--no-pager", "--no-ask-password", "--", &unit],
    };
    let finished = context.finish(context.system.program(argv))?;
    // To a status, anything but 0 says how the service is, and that is in the data.
    let finished = match operation {
        ServiceOperation::Status => finished,
        _ => crate::safe::check_success(finished)?,
    };
    Ok((show(context, &unit)?, finished))
}

fn unit_name(service: &ServiceName) -> String {
    let name = service.as_str();
    match SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) {
        true => name.to_owned(),
        false => format!("{name}.service"),
    }
}

fn show(context: &Context, unit: &str) -> Result<Service, Failure> {
    let properties = "--property=Id,LoadState,ActiveState,SubState,UnitFileState,Description,MainPID";
    let shown = context.succeed(context.system.program(["systemctl", "show", "--no-pager", properties, "--", unit]))?;
    parse_show(&shown.stdout)
        .ok_or_else(|| Failure::new(ErrorCode::NotFound, format!("service: there is no {unit:?}")).ran(shown))
}

fn parse_show(text: &[u8]) -> Option<Service> {
    let text = String::from_utf8_lossy(text);
    let values: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let value = |key: &str| values.get(key).copied().unwrap_or_default();
    if matches!(value("LoadState"), "" | "not-found") {
        return None;
    }
    Some(Service {
        name: short(value("Id")).to_owned(),
        state: value("ActiveState").to_owned(),
        sub_state: Some(value("SubState").to_owned()),
        enabled: enabled(value("UnitFileState")),
        description: value("Description").to_owned(),
        pid: value("MainPID").parse().ok().filter(|pid| *pid != 0),
    })
}

fn parse_units(text: &[u8]) -> Vec<Service> {
    String::from_utf8_lossy(text).lines().filter_map(parse_unit).collect()
}

/// `ssh.service loaded active running OpenBSD Secure Shell server`
fn parse_unit(line: &str) -> Option<Service> {
    // Some versions mark a failed unit, plain or not.
    let line = line.trim_start_matches(|c: char| c.is_whitespace() || c == '●' || c == '*');
    let (name, rest) = word(line)?;
    let (load, rest) = word(rest)?;
    let (state, rest) = word(rest)?;
    let (sub_state, description) = word(rest)?;
    (load != "not-found" && name.ends_with(".service")).then(|| Service {
        name: short(name).to_owned(),
        state: state.to_owned(),
        sub_state: Some(sub_state.to_owned()),
        description: description.trim().to_owned(),
        ..Service::default()
    })
}

/// `ssh.service enabled enabled`; a template is no service.
fn parse_unit_files(text: &[u8]) -> BTreeMap<String, Option<bool>> {
    let text = String::from_utf8_lossy(text);
    let lines = text.lines().filter_map(|line| {
        let (name, rest) = word(line)?;
        let (state, _) = word(rest)?;
        let name = name.strip_suffix(".service")?;
        (!name.ends_with('@') && state != "alias").then(|| (name.to_owned(), enabled(state)))
    });
    lines.collect()
}

/// Those that are loaded, and those that are only installed.
fn join(mut units: Vec<Service>, mut files: BTreeMap<String, Option<bool>>) -> Vec<Service> {
    for unit in &mut units {
        unit.enabled = files.remove(&unit.name).flatten();
    }
    units.extend(files.into_iter().map(|(name, enabled)| Service {
        name,
        state: "inactive".to_owned(),
        sub_state: Some("dead".to_owned()),
        enabled,
        ..Service::default()
    }));
    units
}

fn word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn short(name: &str) -> &str {
    name.strip_suffix(".service").unwrap_or(name)
}

/// `static`, `indirect`, `generated` and others have no install section of their own.
fn enabled(state: &str) -> Option<bool> {
    match state {
        "enabled" | "enabled-runtime" => Some(true),
        "disabled" | "masked" | "masked-runtime" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_of_units_and_of_files() {
        let units = parse_units(
            "  apparmor.service loaded    inactive dead    Load AppArmor profiles\n\
             ● broken.service   loaded    failed   failed  A thing\n\
             gone.service     not-found inactive dead    gone.service\n\
             getty@tty1.service loaded active running Getty on tty1\n\
             x.timer loaded active running no service\n\
             short\n"
                .as_bytes(),
        );
        let names: Vec<_> = units.iter().map(|unit| (unit.name.as_str(), unit.state.as_str())).collect();
        assert_eq!(names, [("apparmor", "inactive"), ("broken", "failed"), ("getty@tty1", "active")]);
        assert_eq!(units[0].description, "Load AppArmor profiles");
        let files = parse_unit_files(
            b"apparmor.service   enabled  enabled\nbroken.service static -\ngetty@.service enabled enabled\n\
              rsync.service disabled enabled\nsshd.service alias -\nhwclock.service masked enabled\n",
        );
        let all = join(units, files);
        let enabled: BTreeMap<_, _> = all.iter().map(|service| (service.name.as_str(), service.enabled)).collect();
        let wanted = [
            ("apparmor", Some(true)),
            ("broken", None),
            ("getty@tty1", None),
            ("hwclock", Some(false)),
            ("rsync", Some(false)),
        ];
        assert_eq!(enabled, wanted.into());
    }

    #[test]
    fn one_unit() {
        let ssh = parse_show(
            b"MainPID=411\nId=ssh.service\nDescription=OpenBSD = Secure\nLoadState=loaded\nActiveState=active\n\
              SubState=running\nUnitFileState=enabled\n",
        )
        .unwrap();
        assert_eq!((ssh.name.as_str(), ssh.pid, ssh.enabled), ("ssh", Some(411), Some(true)));
        assert_eq!(ssh.description, "OpenBSD = Secure");
        assert_eq!(parse_show(b"Id=x.service\nLoadState=not-found\n"), None);
        assert_eq!(parse_show(b""), None);
    }

    #[test]
    fn names() {
        for (name, unit) in [("ssh", "ssh.service"), ("a.timer", "a.timer"), ("org.x", "org.x.service")] {
            assert_eq!(unit_name(&name.parse().unwrap()), unit);
        }
    }

    proptest! {
        #[test]
        fn any_output_is_read(text in r"[a-z@. \t\n=●é-]{0,200}") {
            parse_units(text.as_bytes());
            parse_unit_files(text.as_bytes());
            parse_show(text.as_bytes());
        }
    }
}
