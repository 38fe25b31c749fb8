//! From a request to what does it, and back to its answer.

use std::path::PathBuf;

use roost_guest_proto::{
    CommandType, Envelope, ErrorBody, ErrorCode, ErrorReport, Exec, GuestMessage, LegacyCommand, LegacyReply,
    LegacyRequest, ParseError, Request, Response, Secret,
};

use super::Agent;
use super::facts::now as timestamp;
use super::job::{Reply, Verdict, Work};
use super::peer::Link;
use super::programs::{Answer, UNSAFE, to_json};
use crate::exec::process;
use crate::{debug, files, info};

/// What may be held of secrets.
const MAX_SECRETS: usize = 100;
const MAX_SECRET_BYTES: usize = 256 * 1024;

impl Agent {
    pub(super) fn request(&mut self, id: u64, parsed: Result<Envelope, ParseError>) {
        let envelope = match parsed {
            Ok(envelope) => envelope,
            Err(error) => return self.refuse(id, error),
        };
        if let Some(trace) = &envelope.traceparent {
            debug!("{:?}: trace {trace}", envelope.request.id());
        }
        if let Some(asked) = envelope.epoch
            && !matches!(envelope.request, Request::Identity(_) | Request::Batch(_))
            && asked != self.epoch.unwrap_or(0)
        {
            let error = self.epoch_error(asked);
            return self.fail(id, &envelope.request, error);
        }
        if let Some(request) = envelope.request.id()
            && self.jobs.values().any(|job| job.link == Some(id) && job.id == request)
        {
            let error = ErrorBody::field("id", "id: a request of this ID is under way");
            return self.fail(id, &envelope.request, error);
        }
        self.carry_out(id, envelope);
    }

    fn carry_out(&mut self, id: u64, envelope: Envelope) {
        let request = envelope.request;
        match &request {
            Request::Batch(_) => {
                if let Request::Batch(batch) = request {
                    for command in batch.commands {
                        self.request(id, command);
                    }
                }
            }
            Request::Hello(_) | Request::Noise(_) | Request::KeepAliveResponse(_) => {}
            Request::Ping(ping) => self.say(id, &GuestMessage::Pong(ping.clone())),
            Request::Exec(exec) => {
                let result = self.admit().and_then(|()| self.exec(id, exec, UNSAFE));
                self.failed(id, &request, result);
            }
            Request::UnsafeCommand(command) => {
                let exec = Exec::from(command);
                let result = self.admit().and_then(|()| self.exec(id, &exec, UNSAFE));
                self.failed(id, &request, result);
            }
            Request::Signal(it) => {
                let result = self.signal(id, &it.target, &it.signal);
                self.settle_request(id, &request, result);
            }
            Request::Resize(it) => {
                let result = self.resize(id, &it.target, it.rows, it.cols);
                self.settle_request(id, &request, result);
            }
            Request::Cancel(it) => {
                let result = self.find_job(id, &it.target);
                if let Ok(job) = result {
                    self.end_job(job, Verdict::Cancelled);
                }
                self.settle_request(id, &request, result.map(drop));
            }
            Request::Legacy(_) => {
                if let Request::Legacy(legacy) = request
                    && let Some(link) = self.links.get_mut(&id)
                {
                    link.legacy_peer = true;
                    link.legacy.push_back(legacy);
                    self.next_legacy(id);
                }
            }
            Request::FilePush(push) => {
                let result = self.admit().and_then(|()| self.file_push(id, push));
                self.failed(id, &request, result);
            }
            Request::FilePull(pull) => {
                let result = self.admit().and_then(|()| self.file_pull(id, pull));
                self.failed(id, &request, result);
            }
            Request::FileStat(stat) => {
                let result = self.admit().and_then(|()| self.file_stat(id, stat));
                self.failed(id, &request, result);
            }
            _ => self.serve(id, envelope.epoch, &request),
        }
    }

    /// There is room for one more request that takes time.
    pub(super) fn admit(&self) -> Result<(), ErrorBody> {
        if self.jobs.len() < self.config.max_commands {
            return Ok(());
        }
        let message = format!("{} requests are under way; permitted: {}", self.jobs.len(), self.config.max_commands);
        Err(ErrorBody::new(ErrorCode::ResourceLimit, message))
    }

    fn epoch_error(&self, asked: u64) -> ErrorBody {
        let own = self.epoch.unwrap_or(0);
        ErrorBody {
            details: Some(serde_json::json!({ "epoch": own })),
            ..ErrorBody::new(ErrorCode::EpochMismatch, format!("the request is for epoch {asked}, and this is {own}"))
        }
    }

    pub(super) fn say(&mut self, id: u64, message: &GuestMessage) {
        if let Some(link) = self.links.get_mut(&id) {
            link.say(message);
            self.dirty.insert(id);
        }
    }

    /// Answers a request that is over at once.
    pub(super) fn answer(&mut self, id: u64, reply: Reply, response: Response) {
        self.answer_as(id, reply, Answer::new(response));
    }

    pub(super) fn fail(&mut self, id: u64, request: &Request, error: ErrorBody) {
        debug!("{:?}: {error}", request.id());
        let command_type = match request {
            Request::Exec(_) | Request::UnsafeCommand(_) => CommandType::Unsafe,
            _ => CommandType::Safe,
        };
        match request.id() {
            Some(request) => self.answer(id, Reply::Response(command_type), Response::failure(request, error)),
            None => self.refuse(id, ParseError { id: None, error }),
        }
    }

    /// Answers a request that failed before it began; one that began is answered when it is over.
    fn failed(&mut self, id: u64, request: &Request, result: Result<(), ErrorBody>) {
        if let Err(error) = result {
            self.fail(id, request, error);
        }
    }

    fn settle_request(&mut self, id: u64, request: &Request, result: Result<(), ErrorBody>) {
        match (result, request.id()) {
            (Err(error), _) => self.fail(id, request, error),
            (Ok(()), Some(request)) => {
                self.answer(id, Reply::Response(CommandType::Safe), Response::success(request));
            }
            (Ok(()), None) => {}
        }
    }

    /// A text that is no request.
    fn refuse(&mut self, id: u64, error: ParseError) {
        let Some(link) = self.links.get_mut(&id) else { return };
        debug!("{}: {}", link.name, error.error);
        match error.id {
            Some(request) => {
                return self.answer(id, Reply::Response(CommandType::Safe), Response::failure(request, error.error));
            }
            // An older vsock peer waits for one answer to each line.
            None if !link.port && link.session.is_none() => {
                if !link.is_clogged() {
                    link.say_json(to_json(&LegacyReply::Error { error: error.error.message, payload: None }));
                }
            }
            None => link.mention(&GuestMessage::Error(ErrorReport { timestamp: timestamp(), error: error.error })),
        }
        self.dirty.insert(id);
    }

    /// The policy of a link's session, and the agent's settings, which may only narrow it.
    pub(super) fn may_run(&self, link: &Link) -> bool {
        let policy = link.session.as_ref().and_then(|session| session.policy.unsafe_commands);
        self.config.unsafe_commands && policy.unwrap_or(true)
    }

    /// Where files may be read and written.
    pub(super) fn roots(&self, id: u64) -> Vec<PathBuf> {
        let session = self.links.get(&id).and_then(|link| link.session.as_ref());
        let policy = session.and_then(|session| session.policy.file_roots.as_deref());
        files::roots::permitted(self.config.file_roots.as_deref(), policy)
    }

    pub(super) fn find_job(&self, id: u64, target: &str) -> Result<u64, ErrorBody> {
        let found = self.jobs.iter().find(|(_, job)| job.link == Some(id) && job.id == target && !target.is_empty());
        found.map(|(&job, _)| job).ok_or_else(|| {
            let shown: String = target.chars().take(64).collect();
            ErrorBody {
                details: Some(serde_json::json!({ "field": "target" })),
                ..ErrorBody::new(ErrorCode::NotFound, format!("target: no request {shown:?} is under way"))
            }
        })
    }

    fn signal(&mut self, id: u64, target: &str, signal: &str) -> Result<(), ErrorBody> {
        let signal = process::signal_by_name(signal)?;
        let job = self.find_job(id, target)?;
        if let Some(Work::Program(program)) = self.jobs.get(&job).map(|job| &job.work)
            && let Some(process) = &program.process
            && program.status.is_none()
        {
            return process.signal(signal).map_err(|error| ErrorBody::new(ErrorCode::CommandFailed, error.to_string()));
        }
        Err(ErrorBody::field("target", "target: no program that runs"))
    }

    fn resize(&mut self, id: u64, target: &str, rows: u16, cols: u16) -> Result<(), ErrorBody> {
        let job = self.find_job(id, target)?;
        if let Some(Work::Program(program)) = self.jobs.get(&job).map(|job| &job.work)
            && let Some(terminal) = &program.terminal
        {
            return process::resize(terminal, rows, cols)
                .map_err(|error| ErrorBody::new(ErrorCode::CommandFailed, error.to_string()));
        }
        Err(ErrorBody::field("target", "target: a command that has no terminal"))
    }

    /// Requests without an ID, one after the other.
    pub(super) fn next_legacy(&mut self, id: u64) {
        while let Some(link) = self.links.get_mut(&id) {
            if link.legacy_busy {
                return;
            }
            let Some(legacy) = link.legacy.pop_front() else { return };
            link.legacy_busy = true;
            self.legacy(id, legacy);
        }
    }

    fn legacy(&mut self, id: u64, legacy: LegacyRequest) {
        let reply = if matches!(legacy, LegacyRequest::Run(_)) { Reply::Run } else { Reply::Execute };
        let result = match legacy {
            LegacyRequest::Run(command) | LegacyRequest::Execute(command) => {
                self.admit().and_then(|()| exec_of_legacy(command)).and_then(|exec| self.exec(id, &exec, reply))
            }
            LegacyRequest::GetSecrets(secrets) => {
                let result = self.hold_secrets(secrets);
                let names: Vec<&String> = self.secrets.keys().collect();
                let payload = serde_json::json!({ "names": names });
                result.map(|()| self.legacy_success(id, payload))
            }
            LegacyRequest::Shutdown => self.power_off(id),
        };
        if let Err(error) = result {
            self.answer(id, reply, Response::failure("", error));
        }
    }

    pub(super) fn legacy_success(&mut self, id: u64, payload: serde_json::Value) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.say_json(to_json(&LegacyReply::Success { payload: Some(payload) }));
        link.legacy_busy = false;
        self.dirty.insert(id);
    }

    fn hold_secrets(&mut self, secrets: std::collections::BTreeMap<String, Secret>) -> Result<(), ErrorBody> {
        let bytes = |held: &std::collections::BTreeMap<String, Secret>| -> usize {
            held.iter().map(|(name, value)| name.len() + value.expose().len()).sum()
        };
        if self.secrets.len() + secrets.len() > MAX_SECRETS || bytes(&self.secrets) + bytes(&secrets) > MAX_SECRET_BYTES
        {
            let message = format!("secrets: permitted: {MAX_SECRETS}, and {MAX_SECRET_BYTES} bytes together");
            return Err(ErrorBody::new(ErrorCode::ResourceLimit, message));
        }
        for (name, value) in secrets {
            // An empty one is how it is taken back.
            if value.expose().is_empty() {
                self.secrets.remove(&name);
            } else {
                self.secrets.insert(name, value);
            }
        }
        info!("{} secrets are held", self.secrets.len());
        Ok(())
    }
}

fn exec_of_legacy(command: LegacyCommand) -> Result<Exec, ErrorBody> {
    let mut exec = Exec { argv: vec![command.cmd], ..Exec::default() };
    exec.argv.extend(command.args);
    for pair in command.env.unwrap_or_default() {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(ErrorBody::field("env", "env: each is NAME=VALUE"));
        };
        exec.env.insert(name.to_owned(), value.to_owned());
    }
    // What these peers wait for; nothing in their form says another.
    exec.timeout_ms = None;
    Ok(exec)
}
