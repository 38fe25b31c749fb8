//! What is to be done in guests.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use buffa::EnumValue;
use roost_model::execution::{ExecutionKind, ExecutionStatus, JobCommand, check_env};
use roost_model::spec::GuestUser;
use roost_model::{ExecutionId, Invalid, JobId};

use super::{address, after, each, given, no_unknown, not_a_word, page_size};
use crate::vmm::v1;

/// The longest that a command may be given.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(7 * 86_400);
/// What a command line may have, as Linux has it for one argument, and for all.
const LONGEST_ARGUMENT: usize = 128 << 10;
const LONGEST_LINE: usize = 512 << 10;

/// A program to run in a guest. Its secrets are never shown.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Command {
    /// The program, or a line for a shell; never empty.
    pub command: String,
    /// Its arguments; none for a shell's line.
    pub args: Vec<String>,
    /// Whether `command` is for a shell.
    pub shell: bool,
    /// Variables; their names are valid.
    pub env: BTreeMap<String, String>,
    /// Variables that are wiped after use; their names are valid, and no others than those in `env`.
    pub secrets: BTreeMap<String, String>,
    /// Where it runs.
    pub working_dir: Option<String>,
    /// As whom: a name or a number.
    pub user: Option<String>,
    /// How long it may take; `None`: as the kind of call has it.
    pub timeout: Option<Duration>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
    /// How many at once.
    pub processes: Option<u64>,
    /// Of each of its outputs, for a call without a stream.
    pub output_bytes: Option<u64>,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command").field("command", &self.command).field("args", &self.args).finish_non_exhaustive()
    }
}

impl Command {
    /// Names of all variables, sorted.
    pub fn env_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.env.keys().chain(self.secrets.keys()).cloned().collect();
        names.sort();
        names
    }

    /// What a job's record keeps of it.
    pub fn of_job(&self) -> JobCommand {
        JobCommand { command: self.command.clone(), args: self.args.clone(), env_names: self.env_names() }
    }
}

/// A program to run to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The VM's ID or name, as the caller wrote it; never empty.
    pub vm: String,
    /// What.
    pub command: Command,
    /// Its input.
    pub stdin: Vec<u8>,
    /// Answer as soon as it is recorded.
    pub asynchronous: bool,
}

/// A program to run with live input and output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The VM's ID or name, as the caller wrote it; never empty.
    pub vm: String,
    /// What.
    pub command: Command,
    /// Whether input follows.
    pub stdin: bool,
    /// Its terminal, if it is to have one.
    pub terminal: Option<Terminal>,
}

/// A terminal's size, and kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminal {
    /// 1 to 65535.
    pub rows: u16,
    /// 1 to 65535.
    pub cols: u16,
    /// E.g. `xterm`.
    pub term: Option<String>,
}

/// Commands to run one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// The VM's ID or name, as the caller wrote it; never empty.
    pub vm: String,
    /// What it is called; may be empty.
    pub name: String,
    /// In order; 1 to 100.
    pub commands: Vec<Command>,
    /// Whether the first that fails ends it.
    pub stop_on_error: bool,
}

/// Which executions, and which page of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecutionQuery {
    /// Of this VM only: its ID or name, as the caller wrote it.
    pub vm: Option<String>,
    /// Of this job only.
    pub job: Option<JobId>,
    /// Any of these; empty: all.
    pub statuses: Vec<ExecutionStatus>,
    /// Any of these; empty: all.
    pub kinds: Vec<ExecutionKind>,
    /// What follows this one.
    pub after: Option<ExecutionId>,
    /// 1 to 1000.
    pub page_size: usize,
}

/// Which jobs, and which page of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobQuery {
    /// The VM's ID or name, as the caller wrote it; never empty.
    pub vm: String,
    /// What follows this one.
    pub after: Option<JobId>,
    /// 1 to 1000.
    pub page_size: usize,
}

/// Reads a `Run` request.
pub fn run(request: v1::RunRequest) -> Result<Run, Invalid> {
    let v1::RunRequest { vm_id, command, stdin, r#async, __buffa_unknown_fields: unknown } = request;
    no_unknown(&unknown)?;
    Ok(Run {
        vm: address(vm_id)?,
        command: self::command(command.into_option()).map_err(|e| e.under("command"))?,
        stdin,
        asynchronous: r#async,
    })
}

/// Reads the message that starts an `Exec`.
pub fn start(request: v1::ExecStart) -> Result<Start, Invalid> {
    let v1::ExecStart { vm_id, command, stdin, terminal, __buffa_unknown_fields: unknown } = request;
    no_unknown(&unknown)?;
    let terminal = terminal.into_option().map(self::terminal).transpose().map_err(|e| e.under("terminal"))?;
    let command = self::command(command.into_option()).map_err(|e| e.under("command"))?;
    Ok(Start { vm: address(vm_id)?, command, stdin, terminal })
}

/// Reads a terminal's size.
pub fn terminal(terminal: v1::Terminal) -> Result<Terminal, Invalid> {
    let v1::Terminal { rows, cols, term, __buffa_unknown_fields: unknown } = terminal;
    no_unknown(&unknown)?;
    let size = |name: &str, size: u32| match u16::try_from(size) {
        Ok(size) if size > 0 => Ok(size),
        _ => Err(Invalid::new(name, size, "is out of range").permit(["1 to 65535"])),
    };
    if term.len() > 64 || !term.bytes().all(|b| b.is_ascii_alphanumeric() || b"-+._".contains(&b)) {
        return Err(Invalid::new("term", term, "is no terminal's name").permit(["letters, digits, -+._"]));
    }
    Ok(Terminal { rows: size("rows", rows)?, cols: size("cols", cols)?, term: given(term) })
}

/// Reads a `CreateJob` request.
pub fn new_job(request: v1::CreateJobRequest) -> Result<NewJob, Invalid> {
    let v1::CreateJobRequest { vm_id, name, commands, continue_on_error, __buffa_unknown_fields: unknown } = request;
    no_unknown(&unknown)?;
    if name.len() > 128 || name.chars().any(char::is_control) {
        return Err(Invalid::new("name", name, "is too long or has control characters").permit(["at most 128 bytes"]));
    }
    let read = |(i, one)| command(Some(one)).map_err(|e: Invalid| e.under(&format!("commands[{i}]")));
    let commands = commands.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
    Ok(NewJob { vm: address(vm_id)?, name, commands, stop_on_error: !continue_on_error })
}

/// Reads a `ListExecutions` request.
pub fn list_executions(request: v1::ListExecutionsRequest) -> Result<ExecutionQuery, Invalid> {
    let v1::ListExecutionsRequest {
        vm_id,
        job_id,
        statuses,
        kinds,
        page_size: size,
        page_token,
        __buffa_unknown_fields: unknown,
    } = request;
    no_unknown(&unknown)?;
    let kind = |(i, kind): (usize, String)| kind.parse().map_err(|e: Invalid| e.at(&format!("kinds[{i}]")));
    Ok(ExecutionQuery {
        vm: given(vm_id),
        job: given(job_id).map(|id| self::job_id(&id)).transpose()?,
        statuses: each(&statuses, "statuses", execution_status)?,
        kinds: kinds.into_iter().enumerate().map(kind).collect::<Result<_, _>>()?,
        after: after(page_token)?,
        page_size: page_size(size)?,
    })
}

/// Reads a `ListJobs` request.
pub fn list_jobs(request: v1::ListJobsRequest) -> Result<JobQuery, Invalid> {
    let v1::ListJobsRequest { vm_id, page_size: size, page_token, __buffa_unknown_fields: unknown } = request;
    no_unknown(&unknown)?;
    Ok(JobQuery { vm: address(vm_id)?, after: after(page_token)?, page_size: page_size(size)? })
}

/// Reads an execution's ID.
pub fn execution_id(text: &str) -> Result<ExecutionId, Invalid> {
    text.parse().map_err(|e: Invalid| e.at("execution_id").permit(["exec_<uuid>"]))
}

/// Reads a job's ID.
pub fn job_id(text: &str) -> Result<JobId, Invalid> {
    text.parse().map_err(|e: Invalid| e.at("job_id").permit(["job_<uuid>"]))
}

/// How long something may take; 0: `default`.
pub fn timeout(seconds: u32, default: Duration) -> Result<Duration, Invalid> {
    Ok(limited(seconds)?.unwrap_or(default))
}

fn limited(seconds: u32) -> Result<Option<Duration>, Invalid> {
    let timeout = Duration::from_secs(seconds.into());
    if timeout > LONGEST_TIMEOUT {
        return Err(Invalid::new("timeout_seconds", seconds, "is too long").permit(["at most a week (604800)"]));
    }
    Ok((!timeout.is_zero()).then_some(timeout))
}

fn command(command: Option<v1::Command>) -> Result<Command, Invalid> {
    let command = command.ok_or_else(|| Invalid::new("", "", "is missing"))?;
    let v1::Command {
        command,
        args,
        shell,
        env,
        secrets,
        working_dir,
        user,
        timeout_seconds,
        limits,
        __buffa_unknown_fields: unknown,
    } = command;
    no_unknown(&unknown)?;
    if command.is_empty() {
        return Err(Invalid::new("command", "", "is missing").permit(["a program, or a line for a shell"]));
    }
    if shell && !args.is_empty() {
        return Err(Invalid::new("args", args.len(), "says nothing when shell is set: write it into the line"));
    }
    argument("command", &command)?;
    for (i, arg) in args.iter().enumerate() {
        argument(&format!("args[{i}]"), arg)?;
    }
    if command.len() + args.iter().map(|arg| arg.len() + 1).sum::<usize>() > LONGEST_LINE {
        return Err(Invalid::new("args", args.len(), "are too long together").permit([format!("{LONGEST_LINE} bytes")]));
    }
    check_env(&env)?;
    check_env(&secrets).map_err(|e| Invalid { field: e.field.replacen("env", "secrets", 1), ..e })?;
    if let Some(twice) = secrets.keys().find(|name| env.contains_key(*name)) {
        return Err(Invalid::new("secrets", twice, "is given in env too"));
    }
    if !working_dir.is_empty()
        && (!working_dir.starts_with('/') || working_dir.contains('\0') || working_dir.len() > 4095)
    {
        return Err(
            Invalid::new("working_dir", working_dir, "is no absolute path").permit(["/..., at most 4095 bytes"])
        );
    }
    if !user.is_empty() && user.parse::<u32>().is_err() {
        user.parse::<GuestUser>().map_err(|e| e.at("user"))?;
    }
    let v1::CommandLimits { memory_bytes, processes, output_bytes, __buffa_unknown_fields: unknown } =
        limits.into_option().unwrap_or_default();
    no_unknown(&unknown).map_err(|e| e.under("limits"))?;
    let limit = |limit: u64| (limit != 0).then_some(limit);
    Ok(Command {
        command,
        args,
        shell,
        env,
        secrets,
        working_dir: given(working_dir),
        user: given(user),
        timeout: limited(timeout_seconds)?,
        memory_bytes: limit(memory_bytes),
        processes: limit(processes),
        output_bytes: limit(output_bytes),
    })
}

fn argument(field: &str, text: &str) -> Result<(), Invalid> {
    if text.contains('\0') {
        return Err(Invalid::new(field, text, "has a NUL"));
    }
    if text.len() > LONGEST_ARGUMENT {
        return Err(Invalid::new(field, text, "is too long").permit([format!("at most {LONGEST_ARGUMENT} bytes")]));
    }
    Ok(())
}

fn execution_status(status: EnumValue<v1::ExecutionStatus>) -> Result<ExecutionStatus, Invalid> {
    use v1::ExecutionStatus as W;
    match status.as_known() {
        Some(W::EXECUTION_STATUS_RUNNING) => Ok(ExecutionStatus::Running),
        Some(W::EXECUTION_STATUS_SUCCEEDED) => Ok(ExecutionStatus::Succeeded),
        Some(W::EXECUTION_STATUS_FAILED) => Ok(ExecutionStatus::Failed),
        Some(W::EXECUTION_STATUS_CANCELLED) => Ok(ExecutionStatus::Cancelled),
        Some(W::EXECUTION_STATUS_UNKNOWN) => Ok(ExecutionStatus::Unknown),
        Some(W::EXECUTION_STATUS_UNSPECIFIED) | None => Err(not_a_word(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(command: &str, args: &[&str]) -> v1::Command {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        v1::Command { command: command.to_owned(), args, ..Default::default() }
    }

    #[test]
    fn what_a_command_may_be() {
        let read = command(Some(wire("git", &["--version"]))).expect("it is one");
        assert_eq!((read.command.as_str(), read.args.len(), read.timeout), ("git", 1, None));
        let mut secret = wire("env", &[]);
        secret.env = BTreeMap::from([("LANG".to_owned(), "C".to_owned())]);
        secret.secrets = BTreeMap::from([("TOKEN".to_owned(), "hunter2".to_owned())]);
        let read = command(Some(secret.clone())).expect("it is one");
        assert_eq!(read.env_names(), ["LANG", "TOKEN"]);
        assert!(!format!("{read:?} {:?}", read.of_job()).contains("hunter2"));

        let refused = |wire: v1::Command| command(Some(wire)).expect_err("it is none").field;
        secret.env.insert("TOKEN".to_owned(), String::new());
        assert_eq!(refused(secret), "secrets");
        assert_eq!(refused(wire("", &["x"])), "command");
        assert_eq!(refused(wire("a\0b", &[])), "command");
        assert_eq!(refused(wire("a", &["x", "\0"])), "args[1]");
        assert_eq!(refused(v1::Command { shell: true, ..wire("a", &["x"]) }), "args");
        assert_eq!(refused(v1::Command { working_dir: "tmp".to_owned(), ..wire("a", &[]) }), "working_dir");
        assert_eq!(refused(v1::Command { user: "Bad User".to_owned(), ..wire("a", &[]) }), "user");
        assert_eq!(refused(v1::Command { timeout_seconds: u32::MAX, ..wire("a", &[]) }), "timeout_seconds");
        let many: Vec<String> = (0..6).map(|_| "x".repeat(100_000)).collect();
        assert_eq!(refused(v1::Command { args: many, ..wire("a", &[]) }), "args");
        let named = BTreeMap::from([("A B".to_owned(), String::new())]);
        assert_eq!(refused(v1::Command { secrets: named, ..wire("a", &[]) }), "secrets");
    }

    #[test]
    fn a_terminal_has_a_size() {
        let size = |rows, cols| v1::Terminal { rows, cols, ..Default::default() };
        assert_eq!(terminal(size(24, 80)).expect("it has one").cols, 80);
        assert_eq!(terminal(size(0, 80)).expect_err("none").field, "rows");
        assert_eq!(terminal(size(24, 70_000)).expect_err("none").field, "cols");
        let odd = v1::Terminal { term: "a b".to_owned(), ..size(1, 1) };
        assert_eq!(terminal(odd).expect_err("none").field, "term");
    }
}
