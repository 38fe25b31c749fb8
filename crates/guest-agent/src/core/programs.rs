//! Programs that hosts run: started, read, ended, answered.

use std::mem;
use std::time::{Duration, Instant};

use roost_guest_proto::{
    Channel, CommandType, ErrorBody, ErrorCode, Exec, GuestMessage, LegacyOutput, LegacyReply, Progress, ResetCode,
    Response,
};
use rustix::event::epoll::EventFlags;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, WaitStatus};
use zeroize::Zeroizing;

use super::job::{Job, Phase, Program, Read, Reply, Sink, Source, Status, Verdict, Work};
use super::{Agent, Target, chance};
use crate::config::MAX_OUTPUT;
use crate::exec::capture::{Capture, Text};
use crate::exec::plan::{Surroundings, prepare};
use crate::{debug, info, warning};

/// `__WNOTHREAD`: children of this very thread. Those that threads of the agent start, they wait for themselves.
const THIS_THREAD: u32 = 0x2000_0000;
/// A program that SIGKILL does not end by then is given up: the kernel holds it.
const GIVE_UP: Duration = Duration::from_secs(10);
/// The longest time limit.
const LONGEST: u64 = 30 * 86_400 * 1000;
/// Reads of one output before others have their turn.
const TURNS: usize = 16;

impl Agent {
    /// Runs a program. What is wrong with the request is the error.
    pub(super) fn exec(&mut self, link_id: u64, exec: &Exec, reply: Reply) -> Result<(), ErrorBody> {
        self.check_exec(link_id, exec)?;
        let timeout = match (exec.timeout_ms, exec.stream) {
            (Some(0), _) => {
                return Err(ErrorBody::field("timeout_ms", "timeout_ms: 0; permitted: 1 and more, or none"));
            }
            (Some(limit), _) => Some(Duration::from_millis(limit.min(LONGEST))),
            (None, None) => Some(self.config.timeout),
            (None, Some(_)) => None,
        };
        let started = Instant::now();
        let mark = format!("{:016x}{:016x}", chance(), chance());
        let around = Surroundings {
            own: &self.own,
            default_user: self.config.user.as_deref(),
            held: &self.secrets,
            mark: &mark,
        };
        let plan = prepare(exec, &around)?;
        let (process, ends) = self.starter.start(exec, &plan, mark)?;
        let pid = process.pid;
        debug!("{:?} runs {:?} as {}", exec.id, plan.shown, plan.user.as_ref().map_or("itself", |user| &user.name));
        let job_id = self.next;
        self.next += 1;
        let limit = exec
            .limits
            .output_bytes
            .map_or(self.config.output_bytes, |limit| usize::try_from(limit).unwrap_or(usize::MAX).min(MAX_OUTPUT));
        let capture = |budget| exec.stream.is_none().then(|| Capture::new(limit, budget));
        let (mut input, mut output, mut error) = (None, None, None);
        let mut terminal = None;
        let watched = (|| -> std::io::Result<()> {
            if let Some(fd) = ends.stdin {
                input = Some(Sink::new(fd, false));
            }
            if let Some(fd) = ends.terminal {
                input = Some(Sink::new(fd.try_clone()?, true));
                terminal = Some(fd.try_clone()?);
                let token = self.watch(&fd, Target::Output(job_id), EventFlags::IN)?;
                output = Some(Source::new(fd, token, capture(self.budget.clone())));
            }
            if let Some(fd) = ends.stdout {
                let token = self.watch(&fd, Target::Output(job_id), EventFlags::IN)?;
                output = Some(Source::new(fd, token, capture(self.budget.clone())));
            }
            if let Some(fd) = ends.stderr {
                let token = self.watch(&fd, Target::Error(job_id), EventFlags::IN)?;
                error = Some(Source::new(fd, token, capture(self.budget.clone())));
            }
            Ok(())
        })();
        if let Err(failed) = watched {
            process.kill();
            return Err(ErrorBody::new(ErrorCode::ResourceLimit, format!("the program cannot be watched: {failed}")));
        }
        if let Some(text) = &exec.input
            && let Some(sink) = &mut input
        {
            sink.push(Zeroizing::new(text.as_bytes().to_vec()));
            sink.end();
        }
        let program = Program { process: Some(process), phase: Phase::Running, status: None, timeout, terminal };
        let job = Job {
            id: exec.id.clone(),
            link: Some(link_id),
            stream: exec.stream,
            reply,
            started,
            work: Work::Program(Box::new(program)),
            input,
            output,
            error,
            verdict: None,
        };
        self.jobs.insert(job_id, job);
        if let Some(stream) = exec.stream
            && let Some(link) = self.links.get_mut(&link_id)
        {
            link.streams.insert(stream, job_id);
            link.outbox.open(stream, Channel::Output);
            if exec.pty.is_none() {
                link.outbox.open(stream, Channel::Error);
            }
            let pid = u32::try_from(pid.as_raw_nonzero().get()).ok();
            link.say(&GuestMessage::Progress(Progress { id: exec.id.clone(), pid, ..Progress::default() }));
        }
        self.write_input(job_id);
        Ok(())
    }

    fn check_exec(&self, link_id: u64, exec: &Exec) -> Result<(), ErrorBody> {
        let Some(link) = self.links.get(&link_id) else { return Ok(()) };
        if let Some(stream) = exec.stream {
            self.check_stream(link_id, stream)?;
            if exec.input.is_some() {
                return Err(ErrorBody::field("input", "input: of a command without a stream only; use stdin with one"));
            }
        } else if exec.stdin {
            return Err(ErrorBody::field("stdin", "stdin: comes on a stream, and there is none"));
        }
        if !self.may_run(link) {
            let message =
                "commands of the host's choice are off, by the VM's policy or the agent's settings (commands.unsafe)";
            return Err(ErrorBody::new(ErrorCode::PermissionDenied, message));
        }
        Ok(())
    }

    /// A stream for a new request on a link.
    pub(super) fn check_stream(&self, link_id: u64, stream: u32) -> Result<(), ErrorBody> {
        let Some(link) = self.links.get(&link_id) else { return Ok(()) };
        if !link.encoder.is_framed() {
            return Err(ErrorBody::field("stream", "stream: there are none in lines; agree on frames first"));
        }
        if stream == 0 || link.streams.contains_key(&stream) {
            return Err(ErrorBody::field(
                "stream",
                format!("stream: {stream} is in use; permitted: from 1, not in use"),
            ));
        }
        Ok(())
    }

    /// Something came for a stream's input; `None`: its end.
    pub(super) fn input(&mut self, job_id: u64, bytes: Option<Zeroizing<Vec<u8>>>) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let Some(sink) = &mut job.input else {
            // A program without input: what comes is dropped, and not granted again.
            return;
        };
        match bytes {
            None => sink.end(),
            Some(bytes) => {
                if sink.window.received(bytes.len()).is_err() {
                    let (link, stream) = (job.link, job.stream);
                    if let Some((link, stream)) = link.and_then(|id| self.links.get_mut(&id)).zip(stream) {
                        link.outbox.reset(stream, ResetCode::Overrun);
                        link.streams.remove(&stream);
                    }
                    for source in [&mut job.output, &mut job.error].into_iter().flatten() {
                        source.closed = true;
                    }
                    self.end_job(job_id, Verdict::Overrun);
                    return;
                }
                sink.push(bytes);
            }
        }
        self.write_input(job_id);
    }

    pub(super) fn write_input(&mut self, job_id: u64) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let (link, stream) = (job.link, job.stream);
        let Some(sink) = &mut job.input else { return };
        let (done, waits) = sink.write();
        let grant = sink.window.used(done);
        let unwatched = (waits && sink.token == 0).then(|| sink.fd().and_then(|fd| fd.try_clone().ok())).flatten();
        if let Some(grant) = grant
            && let Some((link_id, stream)) = link.zip(stream)
            && let Some(link) = self.links.get_mut(&link_id)
        {
            link.outbox.credit(stream, Channel::Input, grant);
            self.dirty.insert(link_id);
        }
        // Only a program that is slow to read is worth watching. (The clone is the same file, which is what counts.)
        if let Some(fd) = unwatched {
            match self.watch_input(job_id, &fd) {
                Ok(token) => {
                    if let Some(sink) = self.jobs.get_mut(&job_id).and_then(|job| job.input.as_mut()) {
                        sink.token = token;
                    }
                }
                Err(error) => {
                    warning!("a program's input cannot be watched: {error}");
                    if let Some(sink) = self.jobs.get_mut(&job_id).and_then(|job| job.input.as_mut()) {
                        sink.close();
                    }
                }
            }
        }
    }

    fn watch_input(&mut self, job_id: u64, fd: &std::os::fd::OwnedFd) -> std::io::Result<u64> {
        self.watch(fd, Target::Input(job_id), EventFlags::OUT)
    }

    /// There is something to read of a program.
    pub(super) fn output_ready(&mut self, job_id: u64, is_error: bool) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        if let Some(stream) = job.stream {
            let channel = match (&job.work, is_error) {
                (_, true) => Channel::Error,
                (Work::Program(_), false) => Channel::Output,
                (Work::Thread { .. }, false) => Channel::Input,
            };
            if let Some(link_id) = job.link
                && let Some(link) = self.links.get_mut(&link_id)
            {
                link.outbox.ready(stream, channel);
                self.dirty.insert(link_id);
            }
            return;
        }
        let over = job.is_over();
        let source = if is_error { &mut job.error } else { &mut job.output };
        let Some(source) = source else { return };
        let mut buffer = [0; 16 * 1024];
        let mut more = true;
        for _ in 0..TURNS {
            match source.read(&mut buffer, over) {
                Read::Bytes(len) => {
                    if let Some(capture) = &mut source.capture {
                        capture.push(&buffer[..len]);
                    }
                }
                Read::Empty => {
                    more = false;
                    break;
                }
                Read::End => {
                    source.closed = true;
                    more = false;
                    break;
                }
            }
        }
        if more {
            self.heat(if is_error { Target::Error(job_id) } else { Target::Output(job_id) });
        }
        self.finish_if_done(job_id);
    }

    /// Waits for all that is over, without waiting.
    pub(super) fn reap(&mut self) {
        loop {
            // A leader that is being ended is not waited for until all that it started is, so that its number, which is
            // its group's, stays its own.
            let held = self.jobs.values().any(|job| match &job.work {
                Work::Program(program) => matches!(program.phase, Phase::Terminating(_)),
                Work::Thread { .. } => false,
            });
            if held {
                self.reap_each();
                return;
            }
            let options = WaitOptions::NOHANG | WaitOptions::from_bits_retain(THIS_THREAD);
            match rustix::process::wait(options) {
                Ok(Some((pid, status))) => self.leader_over(pid, from_wait(status)),
                _ => return,
            }
        }
    }

    fn reap_each(&mut self) {
        let running: Vec<(Pid, Phase)> = self
            .jobs
            .values()
            .filter_map(|job| match &job.work {
                Work::Program(program) if program.status.is_none() => {
                    Some((program.process.as_ref()?.pid, program.phase))
                }
                _ => None,
            })
            .collect();
        for (pid, phase) in running {
            if matches!(phase, Phase::Terminating(_)) {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
                if let Ok(Some(status)) = rustix::process::waitid(WaitId::Pid(pid), options) {
                    let status = Status { code: status.exit_status(), signal: status.terminating_signal() };
                    self.leader_over(pid, status);
                }
            } else if let Ok(Some((_, status))) = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) {
                self.leader_over(pid, from_wait(status));
            }
        }
    }

    fn leader_over(&mut self, pid: Pid, status: Status) {
        let found = self.jobs.iter_mut().find_map(|(&id, job)| match &mut job.work {
            Work::Program(program) if program.process.as_ref().is_some_and(|process| process.pid == pid) => {
                Some((id, program))
            }
            _ => None,
        });
        // Somebody's grandchild, that came to the agent when its parent ended.
        let Some((job_id, program)) = found else { return };
        program.status = Some(status);
        for is_error in [false, true] {
            self.output_ready(job_id, is_error);
        }
        self.finish_if_done(job_id);
    }

    /// A deadline of a job has come.
    pub(super) fn job_due(&mut self, job_id: u64, now: Instant) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let Work::Program(program) = &mut job.work else { return };
        match program.phase {
            Phase::Running => {
                let limit = program.timeout.unwrap_or_default();
                self.end_job(job_id, Verdict::Timeout(limit));
            }
            Phase::Terminating(_) => self.kill(job_id, now),
            Phase::Killed(_) => {
                warning!("{:?}: SIGKILL did not end it, so it is given up", job.id);
                program.status.get_or_insert(Status { code: None, signal: Some(libc::SIGKILL) });
                for source in [&mut job.output, &mut job.error].into_iter().flatten() {
                    source.closed = true;
                }
                self.finish_if_done(job_id);
            }
        }
    }

    /// Ends a request before it is over; its answer says why.
    pub(super) fn end_job(&mut self, job_id: u64, verdict: Verdict) {
        let grace = self.config.grace;
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        if job.verdict.is_none() {
            job.verdict = Some(verdict);
        }
        match &mut job.work {
            Work::Program(program) => {
                if program.phase == Phase::Running {
                    if let Some(process) = &program.process
                        && program.status.is_none()
                    {
                        process.terminate();
                        program.phase = Phase::Terminating(Instant::now() + grace);
                    }
                    job.input = None;
                }
            }
            Work::Thread { .. } => job.cancel_thread(),
        }
        self.finish_if_done(job_id);
    }

    fn kill(&mut self, job_id: u64, now: Instant) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        let Work::Program(program) = &mut job.work else { return };
        if let Some(process) = &program.process {
            process.kill();
        }
        program.phase = Phase::Killed(now + GIVE_UP);
        // If its leader was over before, it can be waited for only now.
        self.reap();
        for is_error in [false, true] {
            self.output_ready(job_id, is_error);
        }
        self.finish_if_done(job_id);
    }

    /// Answers a request whose work is over and whose output was read.
    pub(super) fn finish_if_done(&mut self, job_id: u64) {
        let Some(job) = self.jobs.get(&job_id) else { return };
        if let Work::Program(program) = &job.work
            && let Phase::Terminating(_) = program.phase
            && program.status.is_some()
            && [&job.output, &job.error].into_iter().all(|source| source.as_ref().is_none_or(|it| it.closed))
        {
            // Nobody who could say more is left: no need to wait for the grace to pass.
            self.kill(job_id, Instant::now());
            return;
        }
        if !job.is_done() {
            return;
        }
        let Some(mut job) = self.jobs.remove(&job_id) else { return };
        for source in [&job.output, &job.error].into_iter().flatten() {
            self.targets.remove(&source.token);
        }
        if let Some(sink) = &job.input {
            self.targets.remove(&sink.token);
        }
        let text = |source: &mut Option<Source>| {
            source.as_mut().and_then(|source| source.capture.take()).map(Capture::finish).unwrap_or_default()
        };
        let (stdout, stderr) = (text(&mut job.output), text(&mut job.error));
        let response = match &mut job.work {
            Work::Program(program) => {
                if let Some(process) = program.process.take() {
                    self.starter.ended(process);
                }
                let status = program.status.unwrap_or(Status { code: None, signal: None });
                Response {
                    exit_code: status.code,
                    signal: status.signal,
                    success: status.code == Some(0),
                    ..Response::default()
                }
            }
            Work::Thread { result, .. } => result.take().map(|result| *result).unwrap_or_default(),
        };
        let link = job.link;
        let stream = job.stream;
        let answer = complete(&job, response, stdout, stderr);
        if let Some(link) = link.and_then(|id| self.links.get_mut(&id))
            && let Some(stream) = stream
        {
            link.streams.remove(&stream);
            // What was given up, or not read to its end, must not look whole.
            if [Channel::Input, Channel::Output, Channel::Error].iter().any(|&it| link.outbox.is_open(stream, it)) {
                link.outbox.reset(stream, ResetCode::Cancelled);
            } else {
                link.outbox.close(stream);
            }
        }
        match link {
            Some(link) => self.answer_as(link, job.reply, answer),
            None => debug!("{:?} is over, and nobody waits for it", answer.response.id),
        }
    }

    /// Sends an answer in the form that the request had.
    pub(super) fn answer_as(&mut self, link_id: u64, reply: Reply, mut answer: Answer) {
        let epoch = self.epoch;
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let json = match reply {
            Reply::Response(command_type) => {
                answer.response.command_type = command_type;
                answer.response.epoch = epoch;
                answer.fit(|response| GuestMessage::from(response.clone()).to_json())
            }
            Reply::Run => answer.fit(|response| to_json(&legacy_output(response))),
            Reply::Execute => answer.fit(|response| {
                let reply = match (&response.error, response.exit_code) {
                    (Some(error), None) => LegacyReply::Error { error: error.message.clone(), payload: None },
                    _ => LegacyReply::Success { payload: serde_json::to_value(legacy_output(response)).ok() },
                };
                to_json(&reply)
            }),
        };
        link.say_json(json);
        self.dirty.insert(link_id);
        if matches!(reply, Reply::Run | Reply::Execute) {
            link.legacy_busy = false;
            self.next_legacy(link_id);
        }
    }

    /// A thread came back.
    pub(super) fn thread_done(&mut self, job_id: u64, response: Box<Response>) {
        let Some(job) = self.jobs.get_mut(&job_id) else { return };
        if let Some((id, epoch)) = self.next_epoch.take_if(|(id, _)| *id == job.id)
            && response.success
        {
            info!("{id:?}: this is epoch {epoch}");
            self.epoch = Some(epoch);
        }
        if let Work::Thread { result, .. } = &mut job.work {
            *result = Some(response);
        }
        // What it read from, nobody reads any more.
        job.input = None;
        self.output_ready(job_id, false);
        self.finish_if_done(job_id);
    }
}

/// An answer, and what may be left out of it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    stdout: Text,
    stderr: Text,
}

impl Answer {
    pub(super) fn new(response: Response) -> Self {
        Self { response, stdout: Text::default(), stderr: Text::default() }
    }

    /// The JSON of it, with as much of the output as fits.
    fn fit(mut self, encode: impl Fn(&Response) -> Vec<u8>) -> Vec<u8> {
        loop {
            let response = &mut self.response;
            if !self.stdout.text.is_empty() || !self.stderr.text.is_empty() {
                (response.stdout, response.stderr) = (self.stdout.text.clone(), self.stderr.text.clone());
                response.stdout_truncated = self.stdout.truncated;
                response.stderr_truncated = self.stderr.truncated;
                (response.stdout_lossy, response.stderr_lossy) = (self.stdout.lossy, self.stderr.lossy);
            }
            let json = encode(response);
            if json.len() <= roost_guest_proto::MAX_LINE {
                return json;
            }
            if self.stdout.text.is_empty() && self.stderr.text.is_empty() {
                // Of a thread: what it says is bounded, but not by this.
                self.stdout = Text { text: mem::take(&mut response.stdout), ..Text::default() };
                self.stderr = Text { text: mem::take(&mut response.stderr), ..Text::default() };
                if self.stdout.text.is_empty() && self.stderr.text.is_empty() {
                    response.data = None;
                    response.success = false;
                    let message = "the answer is longer than a message may be";
                    response.error = Some(ErrorBody::new(ErrorCode::ResourceLimit, message));
                    continue;
                }
            }
            let longer =
                if self.stdout.text.len() >= self.stderr.text.len() { &mut self.stdout } else { &mut self.stderr };
            longer.halve();
        }
    }
}

fn complete(job: &Job, mut response: Response, stdout: Text, stderr: Text) -> Answer {
    response.id.clone_from(&job.id);
    response.execution_time_ms = u64::try_from(job.started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let error = match &job.verdict {
        None => None,
        Some(Verdict::Timeout(limit)) => {
            let message = format!("it ran for longer than {} ms and was ended", limit.as_millis());
            Some(ErrorBody::new(ErrorCode::CommandTimeout, message))
        }
        Some(Verdict::Cancelled) => Some(ErrorBody::new(ErrorCode::Cancelled, "it was cancelled")),
        Some(Verdict::Overrun) => {
            let message = format!("stream: more input came than the window of {} bytes", roost_guest_proto::WINDOW);
            Some(ErrorBody::new(ErrorCode::InvalidMessage, message))
        }
    };
    if let Some(error) = error {
        info!("{:?}: {error}", job.id);
        response.success = false;
        let details = response.error.take().and_then(|error| error.details);
        response.error = Some(ErrorBody { details: details.or(error.details.clone()), ..error });
    }
    Answer { response, stdout, stderr }
}

fn legacy_output(response: &Response) -> LegacyOutput {
    LegacyOutput {
        // As a shell tells a signal.
        exit_code: response.exit_code.or(response.signal.map(|signal| 128 + signal)).unwrap_or(-1),
        stdout: response.stdout.clone(),
        stderr: response.stderr.clone(),
        error: response.error.as_ref().map(|error| error.message.clone()),
    }
}

pub(super) fn to_json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("keys are texts, and nothing in it fails")
}

fn from_wait(status: WaitStatus) -> Status {
    Status { code: status.exit_status(), signal: status.terminating_signal() }
}

/// The kind of an answer to a command of the host's choice.
pub(super) const UNSAFE: Reply = Reply::Response(CommandType::Unsafe);
