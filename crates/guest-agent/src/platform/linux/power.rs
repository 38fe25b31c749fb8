//! Ending the guest, or starting it anew.

use roost_guest_proto::{ErrorBody, ErrorCode};
use rustix::io::Errno;
use rustix::system::{RebootCommand, reboot};
use serde_json::{Value, json};

use crate::platform::System;
use crate::run::Finished;
use crate::safe::{Context, Failure};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Power {
    Off,
    Reboot,
}

#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// The guest's first process stops its services, and then the guest.
    Ask(&'static [&'static str]),
    /// The kernel, after what is in memory was written.
    Kernel,
}

/// Ends the guest. With `force` nobody is asked.
pub(crate) fn power(context: &Context, power: Power, force: bool) -> Result<(Value, Option<Finished>), Failure> {
    match way(&context.system, power, force) {
        Way::Ask(argv) => {
            let finished = context.succeed(context.system.program(argv))?;
            Ok((json!({ "method": argv[0] }), Some(finished)))
        }
        Way::Kernel if !context.system.is_live() => {
            Err(Failure::new(ErrorCode::NotSupported, "a directory that stands for a system cannot be switched off"))
        }
        Way::Kernel => {
            rustix::fs::sync();
            let command = match power {
                Power::Off => RebootCommand::PowerOff,
                Power::Reboot => RebootCommand::Restart,
            };
            let error = reboot(command).err().unwrap_or(Errno::INVAL);
            let (code, why) = match error {
                Errno::PERM => (ErrorCode::PermissionDenied, "CAP_SYS_BOOT is needed".to_owned()),
                error => (ErrorCode::CommandFailed, error.to_string()),
            };
            Err(ErrorBody::new(code, format!("the kernel does not do it: {why}")).into())
        }
    }
}

fn way(system: &System, power: Power, force: bool) -> Way {
    // The first whose program is there; what it belongs to has to run.
    let ways: &[(&str, &'static [&'static str], &'static [&'static str])] = &[
        ("/run/systemd/system", &["systemctl", "--no-block", "poweroff"], &["systemctl", "--no-block", "reboot"]),
        ("/run/openrc", &["openrc-shutdown", "--poweroff", "now"], &["openrc-shutdown", "--reboot", "now"]),
        ("/", &["poweroff"], &["reboot"]),
    ];
    let asked = ways.iter().find(|(marker, argv, _)| system.file(marker).is_dir() && system.has(argv[0]));
    match asked {
        Some((_, off, restart)) if !force => Way::Ask(if power == Power::Off { off } else { restart }),
        _ => Way::Kernel,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn who_is_asked() {
        let root = tempfile::tempdir().unwrap();
        let system = System::new(root.path(), vec![root.path().join("bin")]);
        let program = |name: &str| {
            let file = root.path().join("bin").join(name);
            std::fs::write(&file, "").unwrap();
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        std::fs::create_dir_all(root.path().join("bin")).unwrap();
        assert_eq!(way(&system, Power::Off, false), Way::Kernel);
        program("poweroff");
        program("systemctl");
        assert_eq!(way(&system, Power::Off, false), Way::Ask(&["poweroff"]));
        std::fs::create_dir_all(root.path().join("run/systemd/system")).unwrap();
        assert_eq!(way(&system, Power::Reboot, false), Way::Ask(&["systemctl", "--no-block", "reboot"]));
        assert_eq!(way(&system, Power::Off, true), Way::Kernel);
    }
}
