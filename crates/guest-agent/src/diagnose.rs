//! What the agent has and lacks in this guest: each device, permission and driver, how it is, and what to do about it.
//!
//! Nothing is opened that somebody might notice: a port that is opened tells the host that an agent is there.

use std::io::{self, Write};
use std::path::PathBuf;

use roost_guest_proto::results::{Diagnosis, Finding, FindingLevel};

use crate::platform::{self, System};

/// What to look at.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The devices that the agent was told to use, as `--device` takes them, with commas between.
    pub device: Option<PathBuf>,
}

/// Looks at everything.
pub fn diagnose(system: &System, options: &Options) -> Diagnosis {
    let findings = platform::findings(system, options.device.as_deref());
    Diagnosis { ok: findings.iter().all(|finding| finding.level != FindingLevel::Broken), findings }
}

/// Looks at everything and tells `out`. 0: nothing stands in the agent's way; 1: something does.
pub fn run(options: &Options, out: &mut dyn Write) -> io::Result<u8> {
    let diagnosis = diagnose(&System::default(), options);
    write(&diagnosis, out)?;
    Ok(u8::from(!diagnosis.ok))
}

fn write(diagnosis: &Diagnosis, out: &mut dyn Write) -> io::Result<()> {
    for Finding { name, level, message, fix } in &diagnosis.findings {
        let level = match level {
            FindingLevel::Ok => "ok",
            FindingLevel::Limited => "limited",
            FindingLevel::Broken => "BROKEN",
        };
        writeln!(out, "{level:8} {name}: {}", printable(message))?;
        if let Some(fix) = fix {
            writeln!(out, "{:8} -> {}", "", printable(fix))?;
        }
    }
    let count = |level| diagnosis.findings.iter().filter(|finding| finding.level == level).count();
    let (limited, broken) = (count(FindingLevel::Limited), count(FindingLevel::Broken));
    match (broken, limited) {
        (0, 0) => writeln!(out, "Nothing stands in the agent's way."),
        (0, _) => writeln!(out, "The agent can work; {limited} of these limit what it can do."),
        _ => writeln!(out, "The agent cannot work: {broken} of these have to be put right."),
    }?;
    out.flush()
}

/// Names of ports and processes are somebody else's texts.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told() {
        let finding = |name: &str, level, fix: Option<&str>| Finding {
            name: name.into(),
            level,
            message: "a\x1b[2Jb".into(),
            fix: fix.map(str::to_owned),
        };
        let findings = vec![finding("x", FindingLevel::Ok, None), finding("y", FindingLevel::Broken, Some("do it"))];
        let mut out = Vec::new();
        write(&Diagnosis { ok: false, findings }, &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert_eq!(
            out,
            "ok       x: a?[2Jb\nBROKEN   y: a?[2Jb\n         -> do it\n\
             The agent cannot work: 1 of these have to be put right.\n"
        );
    }

    #[test]
    fn this_machine_is_looked_at() {
        let diagnosis = diagnose(&System::default(), &Options { device: Some("/dev/null".into()) });
        let named = |name: &str| diagnosis.findings.iter().find(|finding| finding.name == name);
        assert_eq!(named("device").map(|it| it.level), Some(FindingLevel::Ok));
        assert_eq!(named("/proc").map(|it| it.level), Some(FindingLevel::Ok));
        assert!(
            diagnosis.findings.iter().all(|it| (it.level == FindingLevel::Ok) == it.fix.is_none()),
            "{diagnosis:?}"
        );
    }
}
