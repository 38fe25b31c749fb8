//! What a VM's attachment permits, checked before anything is sent.
//!
//! The agent checks again, with what the host cannot know: where a symbolic link leads.

use roost_guest_proto::{Exec, Request};

use crate::attachment::Attachment;
use crate::error::CallError;

/// Refuses what is not permitted, and fills in the user that commands run as.
pub(crate) fn apply(attachment: &Attachment, request: &mut Request) -> Result<(), CallError> {
    match request {
        Request::Exec(exec) => {
            exec_permitted(attachment, "Exec")?;
            set_user(attachment, exec)
        }
        Request::UnsafeCommand(command) => {
            exec_permitted(attachment, "UnsafeCommand")?;
            if attachment.exec_user.is_some() {
                // This form cannot say who runs it.
                let command = std::mem::replace(
                    command,
                    roost_guest_proto::UnsafeCommand {
                        id: String::new(),
                        raw_command: String::new(),
                        shell: None,
                        timeout: None,
                        working_dir: None,
                        env_vars: None,
                    },
                );
                let mut exec = Exec {
                    id: command.id,
                    command: Some(command.raw_command),
                    shell: command.shell,
                    timeout_ms: command.timeout.map(|seconds| seconds.saturating_mul(1000)),
                    cwd: command.working_dir,
                    env: command.env_vars.unwrap_or_default(),
                    ..Exec::default()
                };
                set_user(attachment, &mut exec)?;
                *request = Request::Exec(Box::new(exec));
            }
            Ok(())
        }
        Request::Signal(_) => exec_permitted(attachment, "Signal"),
        Request::Resize(_) => exec_permitted(attachment, "Resize"),
        Request::FilePush(it) => path_permitted(attachment, "FilePush", &it.path),
        Request::FilePull(it) => path_permitted(attachment, "FilePull", &it.path),
        Request::FileStat(it) => path_permitted(attachment, "FileStat", &it.path),
        _ => Ok(()),
    }
}

fn exec_permitted(attachment: &Attachment, what: &str) -> Result<(), CallError> {
    if attachment.allow_exec && attachment.policy.unsafe_commands != Some(false) {
        return Ok(());
    }
    Err(CallError::Denied {
        what: what.to_owned(),
        permitted: "safe commands only, as exec is off in its spec".to_owned(),
    })
}

fn set_user(attachment: &Attachment, exec: &mut Exec) -> Result<(), CallError> {
    let Some(user) = &attachment.exec_user else { return Ok(()) };
    match &exec.user {
        Some(other) if other != user => {
            Err(CallError::Denied { what: format!("Exec as the user {other:?}"), permitted: format!("{user:?}") })
        }
        _ => {
            exec.user = Some(user.clone());
            Ok(())
        }
    }
}

fn path_permitted(attachment: &Attachment, what: &str, path: &str) -> Result<(), CallError> {
    let roots = attachment.policy.file_roots.as_ref().unwrap_or(&attachment.file_roots);
    if roots.iter().any(|root| is_beneath(path, root)) {
        return Ok(());
    }
    let permitted = if roots.is_empty() {
        "no path, as its spec names no file roots".to_owned()
    } else {
        format!("absolute paths without `.` or `..` beneath {}", roots.join(", "))
    };
    Err(CallError::Denied { what: format!("{what} of {path:?}"), permitted })
}

/// Both absolute, neither with a way back up, and each part of the root the same.
fn is_beneath(path: &str, root: &str) -> bool {
    let (Some(path), Some(root)) = (Parts::of(path), Parts::of(root)) else { return false };
    path.drive == root.drive
        && path.parts.len() >= root.parts.len()
        && path.parts.iter().zip(&root.parts).all(|(a, b)| {
            // Windows takes both for the same, Linux does not.
            if path.drive.is_some() { a.eq_ignore_ascii_case(b) } else { a == b }
        })
}

struct Parts<'a> {
    drive: Option<u8>,
    parts: Vec<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(path: &'a str) -> Option<Self> {
        if path.contains('\0') || path.len() > 4096 {
            return None;
        }
        let (drive, parts): (_, Vec<&str>) = match path.as_bytes() {
            [b'/', ..] => (None, path.split('/').filter(|part| !part.is_empty()).collect()),
            [letter, b':', b'\\' | b'/', ..] if letter.is_ascii_alphabetic() => {
                let parts = path[2..].split(['\\', '/']).filter(|part| !part.is_empty()).collect();
                (Some(letter.to_ascii_uppercase()), parts)
            }
            _ => return None,
        };
        if parts.iter().any(|part| matches!(*part, "." | "..")) {
            return None;
        }
        Some(Self { drive, parts })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use roost_guest_proto::{FileStat, Policy, UnsafeCommand};
    use roost_model::VmId;

    use super::*;
    use crate::attachment::Endpoint;

    pub(crate) fn attachment() -> Attachment {
        Attachment {
            vm: VmId::from_parts(1_700_000_000_000, [7; 10]),
            endpoint: Endpoint::Unix(PathBuf::from("/nonexistent")),
            qemu_guest_agent: None,
            policy: Policy::default(),
            allow_exec: true,
            file_roots: vec!["/srv".into(), "C:\\Data".into()],
            exec_user: None,
            metrics_interval: Duration::ZERO,
            epoch: 1,
            key: None,
        }
    }

    #[test]
    fn roots() {
        for path in ["/srv", "/srv/", "/srv/a", "//srv//a", "c:\\data\\x", "C:/Data/x"] {
            let mut request =
                Request::FileStat(FileStat { id: String::new(), path: path.into(), sha256: false, list: false });
            apply(&attachment(), &mut request).unwrap();
        }
        for path in [
            "",
            "srv",
            "/",
            "/srvx",
            "/srv/../etc",
            "/srv/./a",
            "/srv/a\0",
            "/etc/srv",
            "C:\\",
            "D:\\Data",
            "C:Data",
            "/c:/data",
        ] {
            let mut request =
                Request::FileStat(FileStat { id: String::new(), path: path.into(), sha256: false, list: false });
            let error = apply(&attachment(), &mut request).unwrap_err();
            assert!(
                matches!(&error, CallError::Denied { permitted, .. } if permitted.contains("/srv, C:\\Data")),
                "{path:?}: {error}"
            );
        }
        assert!(is_beneath("/any/thing", "/"));
    }

    #[test]
    fn who_runs_what() {
        let attachment = Attachment { exec_user: Some("app".into()), ..attachment() };
        let mut request = Request::Exec(Box::new(Exec { user: Some("root".into()), ..Exec::default() }));
        assert!(matches!(apply(&attachment, &mut request), Err(CallError::Denied { .. })));
        let mut request = Request::UnsafeCommand(UnsafeCommand {
            id: "1".into(),
            raw_command: "id".into(),
            shell: None,
            timeout: Some(2),
            working_dir: None,
            env_vars: None,
        });
        apply(&attachment, &mut request).unwrap();
        let Request::Exec(exec) = request else { panic!() };
        assert_eq!(
            (exec.user.as_deref(), exec.command.as_deref(), exec.timeout_ms),
            (Some("app"), Some("id"), Some(2000))
        );
        let off = Attachment { allow_exec: false, ..attachment };
        assert!(apply(&off, &mut Request::Exec(exec)).is_err());
    }
}
