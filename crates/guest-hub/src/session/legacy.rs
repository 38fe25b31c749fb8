//! An older vsock peer: one command after the other, and answers without an ID.
//!
//! An answer belongs to the command before it and to nothing else, so a command whose caller left keeps its place
//! until its answer comes. If that takes too long, only a new connection puts the two ends in step again.

use std::collections::VecDeque;
use std::time::Duration;

use roost_guest_proto::{ErrorBody, ErrorCode, LegacyOutput, LegacyReply, Outbox, Request, Response};
use serde_json::json;
use tokio::time::Instant;

use super::{Phase, Session};
use crate::entry::{Op, Reply};
use crate::error::CallError;
use crate::status::Flavour;

/// How long a command that nobody waits for may keep the others waiting.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Running {
    id: String,
    what: &'static str,
    /// `None`: the caller left, then.
    reply: Result<Reply, Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Legacy {
    running: Option<Running>,
    waiting: VecDeque<(Op, Vec<u8>)>,
}

impl Legacy {
    pub(super) fn op(&mut self, op: Op, _now: Instant, outbox: &mut Outbox) {
        match translate(&op.request) {
            Ok(json) => {
                self.waiting.push_back((op, json));
                self.next(outbox);
            }
            Err(error) => drop(op.reply.send(Err(error))),
        }
    }

    fn next(&mut self, outbox: &mut Outbox) {
        while self.running.is_none() {
            let Some((op, json)) = self.waiting.pop_front() else { return };
            if op.reply.is_closed() {
                continue;
            }
            match outbox.message(json) {
                Ok(()) => self.running = Some(Running { id: op.id, what: op.what, reply: Ok(op.reply) }),
                Err(full) => {
                    let error = CallError::QueueFull { waiting: full.waiting, permitted: full.permitted };
                    let _ = op.reply.send(Err(error));
                }
            }
        }
    }

    pub(super) fn abandon(&mut self, id: &str) {
        self.waiting.retain(|(op, _)| op.id != id);
        if let Some(running) = self.running.as_mut().filter(|running| running.id == id && running.reply.is_ok()) {
            running.reply = Err(Instant::now());
        }
    }

    pub(super) fn lose(&mut self, why: &str) {
        if let Some(Running { what, reply: Ok(reply), .. }) = self.running.take() {
            let _ = reply.send(Err(CallError::OutcomeUnknown { what, why: why.to_owned() }));
        }
        for (op, _) in self.waiting.drain(..) {
            let _ = op.reply.send(Err(CallError::OutcomeUnknown { what: op.what, why: why.to_owned() }));
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.running.as_ref()?.reply {
            Err(since) => Some(since + PATIENCE),
            Ok(_) => None,
        }
    }

    pub(super) fn tick(&self, now: Instant) -> Result<(), String> {
        match self.deadline() {
            Some(deadline) if now >= deadline => Err("it does not end a command that nobody waits for".to_owned()),
            _ => Ok(()),
        }
    }
}

impl Session {
    pub(super) fn legacy_line(&mut self, line: &[u8], now: Instant) {
        if let Ok(roost_guest_proto::GuestMessage::Handshake(handshake)) = roost_guest_proto::GuestMessage::parse(line)
        {
            return self.handshake_again(&handshake, now);
        }
        let Some(answer) = read(line) else { return self.refuse_message(line.len()) };
        let Phase::Legacy(legacy) = &mut self.phase else { return };
        let Some(running) = legacy.running.take() else { return self.refuse_message(line.len()) };
        if let Ok(reply) = running.reply {
            Self::deliver(reply, Ok(Response { id: running.id, ..answer }));
        }
        legacy.next(&mut self.outbox);
        self.heard = now;
    }
}

fn translate(request: &Request) -> Result<Vec<u8>, CallError> {
    let unsupported = |capability| Err(CallError::Unsupported { capability, flavour: Flavour::Legacy });
    let (argv, env) = match request {
        Request::Exec(exec) => {
            if exec.stream.is_some() || exec.stdin || exec.input.is_some() {
                return unsupported("exec.stdin");
            }
            if exec.pty.is_some() {
                return unsupported("exec.pty");
            }
            if exec.user.is_some() {
                return unsupported("exec.user");
            }
            if exec.cwd.is_some() {
                return unsupported("exec.cwd");
            }
            if !exec.secrets.is_empty() || !exec.held_secrets.is_empty() {
                return unsupported("exec.secrets");
            }
            let argv = match &exec.command {
                Some(line) => shell(exec.shell.as_deref(), line),
                None => exec.argv.clone(),
            };
            (argv, exec.env.clone())
        }
        Request::UnsafeCommand(command) => {
            if command.working_dir.is_some() {
                return unsupported("exec.cwd");
            }
            (shell(command.shell.as_deref(), &command.raw_command), command.env_vars.clone().unwrap_or_default())
        }
        _ => return unsupported(crate::request::name(request)),
    };
    let Some((cmd, args)) = argv.split_first() else {
        return Err(CallError::Invalid { field: "argv", message: "empty, and there is no command".to_owned() });
    };
    let env: Vec<String> = env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let message = json!({ "type": "execute", "payload": { "cmd": cmd, "args": args, "env": env } });
    let json = message.to_string().into_bytes();
    let permitted = roost_guest_proto::MAX_LINE;
    if json.len() > permitted {
        return Err(CallError::TooLarge { what: "Exec", size: json.len(), permitted });
    }
    Ok(json)
}

fn shell(shell: Option<&str>, line: &str) -> Vec<String> {
    vec![shell.unwrap_or("/bin/sh").to_owned(), "-c".to_owned(), line.to_owned()]
}

/// An answer in either form.
fn read(line: &[u8]) -> Option<Response> {
    let value = roost_guest_proto::parse_strict(line).ok()?;
    let output = |output: LegacyOutput| Response {
        success: output.exit_code == 0 && output.error.is_none(),
        exit_code: Some(output.exit_code),
        stdout: output.stdout,
        stderr: output.stderr,
        error: output.error.map(|error| ErrorBody::new(ErrorCode::CommandFailed, error)),
        ..Response::default()
    };
    if value.get("exit_code").is_some() {
        return serde_json::from_value(value).ok().map(output);
    }
    match serde_json::from_value(value).ok()? {
        LegacyReply::Success { payload } => serde_json::from_value(payload?).ok().map(output),
        LegacyReply::Error { error, .. } => {
            Some(Response { error: Some(ErrorBody::new(ErrorCode::CommandFailed, error)), ..Response::default() })
        }
    }
}
