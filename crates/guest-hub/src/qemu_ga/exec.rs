//! Commands by QEMU's guest agent, which starts them and then must be asked.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use roost_guest_proto::{CommandType, ErrorBody, ErrorCode, Exec, Response};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{Client, unsupported};
use crate::entry::{Answer, Reply};
use crate::error::CallError;

const POLL_MIN: Duration = Duration::from_millis(5);
const POLL_MAX: Duration = Duration::from_secs(1);
/// For a command that names no time of its own.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Of each of the two outputs in a response.
const MAX_OUTPUT: usize = 1 << 20;
/// An environment that is given replaces the one there was.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `guest-exec`'s arguments.
fn arguments(exec: &Exec) -> Result<Value, CallError> {
    if exec.stream.is_some() || exec.stdin {
        return unsupported("exec.stream");
    }
    if exec.pty.is_some() {
        return unsupported("exec.pty");
    }
    // It runs everything as the user that it runs as.
    if exec.user.as_deref().is_some_and(|user| !matches!(user, "root" | "0")) {
        return unsupported("exec.user");
    }
    if !exec.held_secrets.is_empty() {
        return unsupported("exec.secrets");
    }
    if exec.limits.memory_bytes.is_some() || exec.limits.processes.is_some() {
        return unsupported("exec.limits");
    }
    let mut argv = match &exec.command {
        Some(line) => vec![exec.shell.as_deref().unwrap_or("/bin/sh"), "-c", line],
        None => exec.argv.iter().map(String::as_str).collect(),
    };
    if argv.is_empty() {
        return Err(CallError::Invalid { field: "argv", message: "empty, and there is no command".to_owned() });
    }
    if let Some(cwd) = &exec.cwd {
        // The script is a constant; directory and command are its arguments.
        let mut wrapped = vec!["/bin/sh", "-c", r#"cd -- "$1" && shift && exec "$@""#, "sh", cwd];
        wrapped.append(&mut argv);
        argv = wrapped;
    }
    let mut arguments = json!({ "path": argv[0], "arg": argv[1..], "capture-output": true });
    if !exec.env.is_empty() || !exec.secrets.is_empty() {
        let mut env = vec![PATH.to_owned()];
        if exec.env.contains_key("PATH") || exec.secrets.contains_key("PATH") {
            env.clear();
        }
        env.extend(exec.env.iter().map(|(key, value)| format!("{key}={value}")));
        env.extend(exec.secrets.iter().map(|(key, value)| format!("{key}={}", value.expose())));
        arguments["env"] = json!(env);
    }
    if let Some(input) = &exec.input {
        arguments["input-data"] = json!(STANDARD.encode(input));
    }
    Ok(arguments)
}

impl Client {
    /// Runs a command to its end, its time or its caller's.
    pub(super) async fn exec(&self, exec: &Exec, reply: &mut Reply) -> Answer {
        let arguments = arguments(exec)?;
        let started = Instant::now();
        let patience = exec.timeout_ms.map_or(TIMEOUT, Duration::from_millis);
        let pid = self.start(arguments).await?;
        let mut wait = POLL_MIN;
        loop {
            let status = self.ask("guest-exec-status", json!({ "pid": pid })).await?;
            if status.get("exited").and_then(Value::as_bool) == Some(true) {
                let limit =
                    exec.limits.output_bytes.map_or(MAX_OUTPUT, |limit| usize::try_from(limit).unwrap_or(MAX_OUTPUT));
                return Ok(Response {
                    execution_time_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
                    ..ended(&status, limit.min(MAX_OUTPUT))
                });
            }
            let elapsed = started.elapsed();
            if elapsed >= patience || reply.is_closed() {
                self.kill(pid).await?;
                let message = format!("it did not end within {patience:?} and was killed");
                let error = ErrorBody::new(ErrorCode::CommandTimeout, message);
                return Ok(Response { error: Some(error), command_type: CommandType::Unsafe, ..Response::default() });
            }
            tokio::select! {
                () = sleep(wait.min(patience - elapsed)) => {}
                () = reply.closed() => {}
            }
            wait = (wait * 3 / 2).min(POLL_MAX);
        }
    }

    async fn start(&self, arguments: Value) -> Result<i64, CallError> {
        let started = self.ask("guest-exec", arguments).await?;
        started
            .get("pid")
            .and_then(Value::as_i64)
            .ok_or_else(|| CallError::Violation { what: "guest-exec", how: "it named no process".to_owned() })
    }

    /// It has no request for that.
    async fn kill(&self, pid: i64) -> Result<(), CallError> {
        if pid > 1 {
            let arguments = json!({ "path": "/bin/kill", "arg": ["-KILL", pid.to_string()] });
            self.start(arguments).await?;
        }
        Ok(())
    }

    /// A short command of the hub's own, which must succeed.
    pub(super) async fn helper(&self, argv: &[&str]) -> Result<(), CallError> {
        let pid = self.start(json!({ "path": argv[0], "arg": argv[1..], "capture-output": true })).await?;
        let mut wait = POLL_MIN;
        let started = Instant::now();
        loop {
            let status = self.ask("guest-exec-status", json!({ "pid": pid })).await?;
            if status.get("exited").and_then(Value::as_bool) == Some(true) {
                let response = ended(&status, 1024);
                if response.success {
                    return Ok(());
                }
                let message = format!("{}: {}", argv[0], response.stderr.trim());
                return Err(CallError::Guest(ErrorBody::new(ErrorCode::CommandFailed, message)));
            }
            if started.elapsed() > TIMEOUT {
                return Err(CallError::Timeout { what: "a helper command", after: TIMEOUT });
            }
            sleep(wait).await;
            wait = (wait * 3 / 2).min(POLL_MAX);
        }
    }
}

fn ended(status: &Value, limit: usize) -> Response {
    let number = |key: &str| status.get(key).and_then(Value::as_i64).and_then(|n| i32::try_from(n).ok());
    let (stdout, stdout_truncated, stdout_lossy) = output(status, "out-data", limit);
    let (stderr, stderr_truncated, stderr_lossy) = output(status, "err-data", limit);
    let exit_code = number("exitcode");
    Response {
        success: exit_code == Some(0),
        exit_code,
        signal: number("signal"),
        stdout,
        stderr,
        stdout_truncated,
        stderr_truncated,
        stdout_lossy,
        stderr_lossy,
        command_type: CommandType::Unsafe,
        ..Response::default()
    }
}

/// Its head and tail, where it is long.
fn output(status: &Value, key: &str, limit: usize) -> (String, u64, bool) {
    let Some(bytes) = status.get(key).and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok()) else {
        return (String::new(), 0, false);
    };
    let mut kept = bytes;
    let mut left_out = 0;
    if kept.len() > limit {
        left_out = (kept.len() - limit) as u64;
        let tail = kept.len() - limit / 2;
        let head = limit - limit / 2;
        kept.drain(head..tail);
    }
    match String::from_utf8(kept) {
        Ok(text) => (text, left_out, false),
        Err(error) => (String::from_utf8_lossy(error.as_bytes()).into_owned(), left_out, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_is_asked() {
        let exec = Exec {
            argv: vec!["ls".into(), "-l".into()],
            cwd: Some("/srv/a b".into()),
            env: [("A".to_owned(), "b c".to_owned())].into(),
            input: Some("x".into()),
            ..Exec::default()
        };
        let expected = json!({
            "path": "/bin/sh",
            "arg": ["-c", "cd -- \"$1\" && shift && exec \"$@\"", "sh", "/srv/a b", "ls", "-l"],
            "capture-output": true, "env": [PATH, "A=b c"], "input-data": "eA==",
        });
        assert_eq!(arguments(&exec).unwrap(), expected);
        assert!(arguments(&Exec { user: Some("app".into()), ..exec.clone() }).is_err());
        assert!(arguments(&Exec { stdin: true, ..exec }).is_err());
        assert!(matches!(arguments(&Exec::default()), Err(CallError::Invalid { .. })));
    }

    #[test]
    fn long_and_odd_output() {
        let status = json!({ "out-data": STANDARD.encode("0123456789"), "err-data": STANDARD.encode([b'a', 0xFF]), "exitcode": 3 });
        let response = ended(&status, 4);
        assert_eq!((response.stdout.as_str(), response.stdout_truncated), ("0189", 6));
        assert_eq!((response.stderr.as_str(), response.stderr_lossy), ("a\u{fffd}", true));
        assert_eq!((response.success, response.exit_code), (false, Some(3)));
        let hostile = ended(&json!({ "exitcode": 1e300, "out-data": "no base64!", "signal": "KILL" }), 4);
        assert_eq!((hostile.success, hostile.exit_code, hostile.stdout.as_str()), (false, None, ""));
    }
}
