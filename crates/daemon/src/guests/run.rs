//! What is done in a guest, with its record: written before the guest is asked, and when its end is known.

use std::time::Duration;

use roost_api::from_proto::guest::{Command, Terminal};
use roost_engine::NewExecution;
use roost_guest_hub::proto::{
    CommandType, ErrorCode, Exec, Limits, Pty, Request, Response, SafeAction, SafeCommand, Secret,
};
use roost_guest_hub::{CallError, ExecHandle};
use roost_model::execution::{ExecutionKind, ExecutionStatus, Keep, Outcome, Output};
use roost_model::{Execution, JobId, Vm, VmId};
use serde_json::Value;

use super::{Failure, Guests, joined};

/// How long a command may take whose caller does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// What the agent may take beyond a command's time to end it and answer.
const TO_ANSWER: Duration = Duration::from_secs(15);

/// As shells have it.
const NO_SUCH_PROGRAM: i32 = 127;

/// A command with a live line to it. Whoever holds it feeds `keep` and ends it.
#[derive(Debug)]
pub(crate) struct Running {
    /// Its record.
    pub(crate) execution: Execution,
    /// Its line.
    pub(crate) handle: ExecHandle,
    /// What its record keeps of stdout and stderr.
    pub(crate) keep: [Keep; 2],
}

impl Guests {
    /// Runs a program to its end, whether or not anybody waits for it.
    pub(crate) async fn run(
        &self,
        vm: &Vm,
        job: Option<JobId>,
        command: Command,
        stdin: Vec<u8>,
    ) -> Result<(Execution, tokio::task::JoinHandle<Result<Execution, Failure>>), Failure> {
        let execution = self.begin_exec(vm, job, &command).await?;
        let timeout = command.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let mut exec = exec_of(command, None);
        exec.timeout_ms = Some(millis(timeout));
        exec.input = input(stdin)?;
        let (guests, begun, vm) = (self.clone(), execution.clone(), vm.id);
        let work = tokio::spawn(async move {
            let answer = guests.hub.run(vm, exec, timeout + TO_ANSWER).await;
            let ended = guests.engine().end_execution(begun, of_program(&answer)).await?;
            match answer {
                // What the guest never heard of is an error; the rest is told by the execution.
                Err(error) if !was_heard(&error) => Err(error.into()),
                _ => Ok(ended),
            }
        });
        Ok((execution, work))
    }

    /// Starts a program with live input and output.
    pub(crate) async fn start_exec(
        &self,
        vm: &Vm,
        command: Command,
        stdin: bool,
        terminal: Option<Terminal>,
    ) -> Result<Running, Failure> {
        let execution = self.begin_exec(vm, None, &command).await?;
        let timeout = command.timeout;
        let mut exec = exec_of(command, terminal);
        exec.timeout_ms = timeout.map(millis);
        exec.stdin = stdin;
        match self.hub.exec(vm.id, exec).await {
            Ok(handle) => Ok(Running { execution, handle, keep: Default::default() }),
            Err(error) => {
                self.end(execution, &Err(error.clone())).await?;
                Err(error.into())
            }
        }
    }

    /// Ends a program that was started with a live line.
    pub(crate) async fn end_exec(&self, running: &mut Running) -> Result<Execution, Failure> {
        let answer = running.handle.finish().await;
        let mut outcome = of_program(&answer);
        let [stdout, stderr] = &running.keep;
        (outcome.stdout, outcome.stderr) = (stdout.output(), stderr.output());
        Ok(self.engine().end_execution(running.execution.clone(), outcome).await?)
    }

    /// Carries out one of the agent's typed actions.
    pub(crate) async fn action(
        &self,
        vm: &Vm,
        action: Value,
        timeout: Duration,
    ) -> Result<(Execution, Response), Failure> {
        let parsed = SafeAction::parse(&action, None).map_err(CallError::Guest)?;
        let (name, fields) = audit(&parsed);
        self.recorded(vm, name, fields, safe(action, timeout), timeout + TO_ANSWER).await
    }

    /// Sends another request that changes something.
    pub(crate) async fn request(
        &self,
        vm: &Vm,
        name: &str,
        request: Request,
        timeout: Duration,
    ) -> Result<(Execution, Response), Failure> {
        self.recorded(vm, name.to_owned(), Vec::new(), request, timeout).await
    }

    async fn recorded(
        &self,
        vm: &Vm,
        command: String,
        args: Vec<String>,
        request: Request,
        timeout: Duration,
    ) -> Result<(Execution, Response), Failure> {
        let execution = self.begin(vm, ExecutionKind::Action, command, args).await?;
        let (guests, vm) = (self.clone(), vm.id);
        // Its end is heard even when nobody waits any more.
        let work = tokio::spawn(async move {
            let answer = guests.hub.call(vm, request, timeout).await;
            let ended = guests.end(execution, &answer).await?;
            Ok((ended, answer?))
        });
        joined(work).await
    }

    /// The same without a record, for what only looks.
    pub(crate) async fn ask_action(&self, vm: VmId, action: Value, timeout: Duration) -> Result<Response, CallError> {
        self.hub.call(vm, safe(action, timeout), timeout + TO_ANSWER).await
    }

    /// Writes down that a file is about to be read or written.
    pub(crate) async fn begin_file(&self, vm: &Vm, verb: &str, path: &str) -> Result<Execution, Failure> {
        self.begin(vm, ExecutionKind::File, verb.to_owned(), vec![path.to_owned()]).await
    }

    /// Writes down what came of it.
    pub(crate) async fn end(
        &self,
        execution: Execution,
        answer: &Result<Response, CallError>,
    ) -> Result<Execution, Failure> {
        Ok(self.engine().end_execution(execution, outcome(answer)).await?)
    }

    async fn begin(
        &self,
        vm: &Vm,
        kind: ExecutionKind,
        command: String,
        args: Vec<String>,
    ) -> Result<Execution, Failure> {
        let new = NewExecution { vm: vm.id, job: None, kind, command, args, env_names: Vec::new() };
        Ok(self.engine().begin_execution(vm.project, new).await?)
    }

    async fn begin_exec(&self, vm: &Vm, job: Option<JobId>, command: &Command) -> Result<Execution, Failure> {
        let new = NewExecution {
            vm: vm.id,
            job,
            kind: ExecutionKind::Exec,
            command: command.command.clone(),
            args: command.args.clone(),
            env_names: command.env_names(),
        };
        let execution = self.engine().begin_execution(vm.project, new).await?;
        tracing::info!(vm_id = %vm.id, execution_id = %execution.id, "a program is run in the guest");
        Ok(execution)
    }
}

/// A typed action as the agent takes it.
fn safe(action: Value, timeout: Duration) -> Request {
    let timeout = Some(timeout.as_secs().max(1));
    Request::SafeCommand(SafeCommand { id: String::new(), command_type: action, params: None, timeout })
}

/// A command as the agent takes it.
fn exec_of(command: Command, terminal: Option<Terminal>) -> Exec {
    let Command {
        command,
        args,
        shell,
        env,
        secrets,
        working_dir,
        user,
        timeout: _,
        memory_bytes,
        processes,
        output_bytes,
    } = command;
    let (argv, line) =
        if shell { (Vec::new(), Some(command)) } else { (std::iter::once(command).chain(args).collect(), None) };
    Exec {
        argv,
        command: line,
        user,
        cwd: working_dir,
        env,
        secrets: secrets.into_iter().map(|(name, value)| (name, Secret::new(value))).collect(),
        pty: terminal.map(|Terminal { rows, cols, term }| Pty { rows, cols, term }),
        limits: Limits { memory_bytes, processes, output_bytes },
        ..Exec::default()
    }
}

fn input(stdin: Vec<u8>) -> Result<Option<String>, Failure> {
    if stdin.is_empty() {
        return Ok(None);
    }
    let length = stdin.len();
    String::from_utf8(stdin).map(Some).map_err(|_| {
        let invalid = roost_model::Invalid::new("stdin", format!("{length} bytes"), "is no UTF-8");
        invalid.permit(["text; or Exec, which takes any bytes"]).into()
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An action's name, and its fields as text without what may be a secret.
fn audit(action: &SafeAction) -> (String, Vec<String>) {
    let told = |(key, value): (&String, &Value)| match value.as_str() {
        _ if key == "action" || value.is_null() => None,
        Some(text) => Some(format!("{key}={text}")),
        None => Some(format!("{key}={value}")),
    };
    let fields = action.to_audit();
    let fields = fields.as_object().map(|fields| fields.iter().filter_map(told).collect()).unwrap_or_default();
    (action.name().to_owned(), fields)
}

/// Whether the guest may have had a part in this.
fn was_heard(error: &CallError) -> bool {
    matches!(
        error,
        CallError::Guest(_)
            | CallError::OutcomeUnknown { .. }
            | CallError::Timeout { .. }
            | CallError::Violation { .. }
    )
}

/// What came of a program. One that there is none of has the exit code that shells give it.
fn of_program(answer: &Result<Response, CallError>) -> Outcome {
    let mut outcome = outcome(answer);
    if let Ok(Response { error: Some(body), .. }) | Err(CallError::Guest(body)) = answer
        && body.code == ErrorCode::NotFound
    {
        outcome.exit_code.get_or_insert(NO_SUCH_PROGRAM);
    }
    outcome
}

/// What came of it, for the record.
fn outcome(answer: &Result<Response, CallError>) -> Outcome {
    let response = match answer {
        Ok(response) => response,
        Err(error @ (CallError::OutcomeUnknown { .. } | CallError::Timeout { .. })) => {
            return Outcome::unknown(error.to_string());
        }
        Err(CallError::Guest(body)) => return Outcome::without_output(failed_as(&body.code), body.message.clone()),
        Err(error) => return Outcome::without_output(ExecutionStatus::Failed, error.to_string()),
    };
    let exited_well = response.command_type == CommandType::Safe || response.exit_code.is_none_or(|code| code == 0);
    let status = match &response.error {
        Some(body) => failed_as(&body.code),
        None if response.success && exited_well && response.signal.is_none() => ExecutionStatus::Succeeded,
        None => ExecutionStatus::Failed,
    };
    Outcome {
        status,
        exit_code: response.exit_code,
        signal: response.signal,
        stdout: Output::kept(&response.stdout, response.stdout_truncated > 0),
        stderr: Output::kept(&response.stderr, response.stderr_truncated > 0),
        error: response.error.as_ref().map(|body| body.message.clone()),
    }
}

fn failed_as(code: &ErrorCode) -> ExecutionStatus {
    if *code == ErrorCode::Cancelled { ExecutionStatus::Cancelled } else { ExecutionStatus::Failed }
}
