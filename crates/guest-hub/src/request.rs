//! Requests as the hub sends them: with an ID of its own, and in a form that the peer knows.

use std::time::Duration;

use rand::RngCore;
use roost_guest_proto::{Exec, Request, UnsafeCommand};

use crate::error::CallError;
use crate::status::Flavour;

/// 128 random bits: never the same twice, and not to be guessed.
pub(crate) fn random_id() -> String {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    format!("{:032x}", u128::from_le_bytes(bytes))
}

/// What a request is called in errors.
pub(crate) fn name(request: &Request) -> &'static str {
    match request {
        Request::Hello(_) => "hello",
        Request::Noise(_) => "noise",
        Request::SafeCommand(_) => "SafeCommand",
        Request::UnsafeCommand(_) => "UnsafeCommand",
        Request::Metrics(_) => "Metrics",
        Request::Exec(_) => "Exec",
        Request::Signal(_) => "Signal",
        Request::Resize(_) => "Resize",
        Request::Cancel(_) => "Cancel",
        Request::FilePush(_) => "FilePush",
        Request::FilePull(_) => "FilePull",
        Request::FileStat(_) => "FileStat",
        Request::Freeze(_) => "Freeze",
        Request::Thaw(_) => "Thaw",
        Request::Identity(_) => "Identity",
        Request::Subscribe(_) => "Subscribe",
        Request::Ping(_) => "ping",
        Request::KeepAliveResponse(_) => "keep_alive_response",
        Request::Legacy(_) => "a legacy request",
        Request::Batch(_) => "Batch",
    }
}

/// Whether it is the user's work, by which a VM is not idle.
pub(crate) fn is_activity(request: &Request) -> bool {
    matches!(
        request,
        Request::SafeCommand(_)
            | Request::UnsafeCommand(_)
            | Request::Exec(_)
            | Request::Signal(_)
            | Request::Resize(_)
            | Request::FilePush(_)
            | Request::FilePull(_)
    )
}

/// Puts the hub's ID in place of whatever the caller had. What is the hub's own affair cannot be called.
pub(crate) fn set_id(request: &mut Request, id: &str) -> Result<(), CallError> {
    let slot = match request {
        Request::SafeCommand(it) => &mut it.id,
        Request::UnsafeCommand(it) => &mut it.id,
        Request::Exec(it) => &mut it.id,
        Request::Signal(it) => &mut it.id,
        Request::Resize(it) => &mut it.id,
        Request::Cancel(it) => &mut it.id,
        Request::FilePush(it) => &mut it.id,
        Request::FilePull(it) => &mut it.id,
        Request::FileStat(it) => &mut it.id,
        Request::Freeze(it) => &mut it.id,
        Request::Thaw(it) => &mut it.id,
        Request::Identity(it) => &mut it.id,
        Request::Subscribe(it) => &mut it.id,
        Request::Metrics(it) => it.id.get_or_insert_default(),
        Request::Ping(_) => return Ok(()),
        Request::Hello(_)
        | Request::Noise(_)
        | Request::KeepAliveResponse(_)
        | Request::Legacy(_)
        | Request::Batch(_) => {
            let message = format!("{} is not for callers", name(request));
            return Err(CallError::Invalid { field: "request", message });
        }
    };
    id.clone_into(slot);
    Ok(())
}

/// Lets the guest end by itself what the caller will not wait for, so that the answer still says how far it got.
pub(crate) fn set_timeout(request: &mut Request, timeout: Duration) {
    let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let seconds = timeout.as_secs().max(1);
    match request {
        Request::Exec(it) => drop(it.timeout_ms.get_or_insert(ms)),
        Request::UnsafeCommand(it) => drop(it.timeout.get_or_insert(seconds)),
        Request::SafeCommand(it) => drop(it.timeout.get_or_insert(seconds)),
        _ => {}
    }
}

/// What the first agent makes of a request. It knows three, and a command only as a line for a shell.
pub(crate) fn for_seed(request: Request, platform: &str) -> Result<Request, CallError> {
    let unsupported = |capability| CallError::Unsupported { capability, flavour: Flavour::Seed };
    match request {
        Request::SafeCommand(_) | Request::UnsafeCommand(_) => Ok(request),
        Request::Metrics(mut metrics) => {
            // It answers by an ordinary frame.
            metrics.id = None;
            metrics.groups.clear();
            Ok(Request::Metrics(metrics))
        }
        Request::Exec(exec) => shell_line(*exec, platform).map(Request::UnsafeCommand),
        Request::Signal(_) => Err(unsupported("signal")),
        Request::Resize(_) => Err(unsupported("exec.pty")),
        Request::Cancel(_) => Err(unsupported("cancel")),
        Request::FilePush(_) => Err(unsupported("file.push")),
        Request::FilePull(_) => Err(unsupported("file.pull")),
        Request::FileStat(_) => Err(unsupported("file.stat")),
        Request::Freeze(_) | Request::Thaw(_) => Err(unsupported("freeze")),
        Request::Identity(_) => Err(unsupported("identity")),
        Request::Subscribe(_) => Err(unsupported("subscribe")),
        Request::Ping(_) => Err(unsupported("ping")),
        Request::Hello(_)
        | Request::Noise(_)
        | Request::KeepAliveResponse(_)
        | Request::Legacy(_)
        | Request::Batch(_) => Err(unsupported("request")),
    }
}

fn shell_line(exec: Exec, platform: &str) -> Result<UnsafeCommand, CallError> {
    let unsupported = |capability| Err(CallError::Unsupported { capability, flavour: Flavour::Seed });
    if exec.stdin || exec.input.is_some() {
        return unsupported("exec.stdin");
    }
    if exec.pty.is_some() {
        return unsupported("exec.pty");
    }
    if exec.stream.is_some() {
        return unsupported("exec.stream");
    }
    if exec.user.is_some() {
        return unsupported("exec.user");
    }
    // Its log shows what it is sent.
    if !exec.secrets.is_empty() || !exec.held_secrets.is_empty() {
        return unsupported("exec.secrets");
    }
    if exec.limits != Default::default() {
        return unsupported("exec.limits");
    }
    let raw_command = match exec.command {
        Some(command) => command,
        None if platform.to_ascii_lowercase().contains("windows") => return unsupported("exec.argv"),
        None => exec.argv.iter().map(|argument| quoted(argument)).collect::<Vec<_>>().join(" "),
    };
    Ok(UnsafeCommand {
        id: exec.id,
        raw_command,
        shell: exec.shell,
        timeout: exec.timeout_ms.map(|ms| ms.div_ceil(1000)),
        working_dir: exec.cwd,
        env_vars: (!exec.env.is_empty()).then_some(exec.env),
    })
}

/// One word of a POSIX shell. Within single quotes nothing but the quote itself means anything.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_command_for_the_first_agent() {
        let exec =
            Exec { id: "1".into(), argv: vec!["echo".into(), "it's".into()], timeout_ms: Some(1), ..Exec::default() };
        let Ok(Request::UnsafeCommand(command)) = for_seed(Request::Exec(Box::new(exec.clone())), "linux") else {
            panic!()
        };
        assert_eq!((command.raw_command.as_str(), command.timeout), (r"'echo' 'it'\''s'", Some(1)));
        let error = for_seed(Request::Exec(Box::new(exec.clone())), "Windows").unwrap_err();
        assert_eq!(error, CallError::Unsupported { capability: "exec.argv", flavour: Flavour::Seed });
        let error = for_seed(Request::Exec(Box::new(Exec { stdin: true, ..exec })), "linux").unwrap_err();
        assert_eq!(error, CallError::Unsupported { capability: "exec.stdin", flavour: Flavour::Seed });
    }

    proptest! {
        /// A real shell takes any words apart again as they were.
        #[test]
        fn quoting_is_what_a_shell_undoes(words in proptest::collection::vec("[^\0]{0,12}", 1..4)) {
            let line = words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
            let output = std::process::Command::new("/bin/sh").arg("-c").arg(format!("printf '%s\\0' {line}")).output().unwrap();
            let expected: String = words.iter().map(|word| format!("{word}\0")).collect();
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
        }
    }
}
