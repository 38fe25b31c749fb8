//! What can go wrong in a command, what the user is told about it, and the exit code.

use std::fmt::Write;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use roost_api::strict_json::JsonError;
use roost_client::v1::{Operation, OperationStatus};
use roost_client::{Error as ClientError, ErrorCode};
use roost_model::Invalid;
use thiserror::Error;

use crate::escape;

/// The table of exit codes, as `roost --help` shows it.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    it failed
  2    bad usage, or a value that cannot be accepted
  3    no daemon answers
  4    there is no such VM or operation
  5    it conflicts with what is there, or the VM's state does not allow it
  6    the operation failed or was cancelled
  7    the time was over
  130  interrupted; what was asked goes on (143: ended by SIGTERM)";

/// Why a command did not do what it was asked for.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The command line asks for something that makes no sense.
    #[error("{message}")]
    Usage { message: String, hint: String },
    /// A value on the command line or in a file.
    #[error("{}{invalid}", at(.file))]
    Invalid { file: Option<String>, invalid: Invalid },
    /// A file that is not what it is to be.
    #[error("{}{error}", at(.file))]
    Document { file: Option<String>, error: JsonError },
    /// A file that cannot be read or parsed.
    #[error("{}: {problem}", .path.display())]
    File { path: PathBuf, problem: String },
    /// The daemon refused, or could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The operation came to nothing.
    #[error("operation {} {}", .0.id, outcome(.0))]
    Operation(Box<Operation>),
    /// One or more of several operations came to nothing; each was told already.
    #[error("{failed} of {all} failed")]
    Several { failed: usize, all: usize, exit: u8 },
    /// It takes longer than the user wanted to wait.
    #[error("{message}")]
    Timeout { message: String, hint: String },
    /// Ctrl-C; what was asked of the daemon goes on.
    #[error("interrupted")]
    Interrupted { going_on: Vec<String>, unanswered: bool },
    /// Another signal that ends us.
    #[error("ended by signal {0}")]
    Signal(u8),
    /// The daemon is not there, or went away.
    #[error("{message}")]
    NotRunning { message: String, hint: String },
    /// There is no such thing any more.
    #[error("{message}")]
    NotFound { message: String, hint: String },
    /// What is there does not allow it.
    #[error("{message}")]
    Precondition { message: String, hint: String },
    /// Anything else.
    #[error("{message}")]
    Other { message: String, hint: String },
    /// Our output cannot be written.
    #[error("the output cannot be written: {0}")]
    Output(#[source] io::Error),
    /// The answer was bad news and has been printed; this is only its exit code.
    #[error("exit code {0}")]
    Told(u8),
}

impl Failure {
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure::Usage { message: message.into(), hint: hint.into() }
    }

    pub(crate) fn other(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure::Other { message: message.into(), hint: hint.into() }
    }

    /// The one place where failures become exit codes.
    pub(crate) fn exit(&self) -> u8 {
        match self {
            // Whoever reads our output has seen enough: `roost vm list | head`.
            Failure::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => 0,
            Failure::Output(_) | Failure::Other { .. } => 1,
            Failure::Usage { .. } | Failure::Invalid { .. } | Failure::Document { .. } | Failure::File { .. } => 2,
            Failure::NotRunning { .. } => 3,
            Failure::NotFound { .. } => 4,
            Failure::Precondition { .. } => 5,
            Failure::Operation(_) => 6,
            Failure::Timeout { .. } => 7,
            Failure::Interrupted { .. } => 130,
            Failure::Signal(number) => 128 + number,
            Failure::Client(error) => client_exit(error),
            Failure::Several { exit, .. } | Failure::Told(exit) => *exit,
        }
    }

    /// What is printed on standard error: the message, what is at fault, what to try next.
    pub(crate) fn text(&self) -> String {
        if self.exit() == 0 || matches!(self, Failure::Told(_)) {
            return String::new();
        }
        let mut out = format!("error: {}\n", escape::line(&self.to_string()));
        for (label, text) in self.facts() {
            // What the message says already is not said again.
            if !text.is_empty() && !out.contains(&*escape::line(&text)) {
                writeln!(out, "  {label}: {}", escape::line(&text)).expect("a String takes everything");
            }
        }
        let hint = self.hint();
        if !hint.is_empty() && !out.contains(&*escape::line(&hint)) {
            writeln!(out, "  hint: {}", escape::line(&hint)).expect("a String takes everything");
        }
        out
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        match self {
            Failure::Client(error) => error.detail().map_or_else(Vec::new, |d| {
                // Elsewhere the field says only which argument named what is missing or in the way.
                let field = if error.code() == ErrorCode::InvalidArgument { d.field.clone() } else { String::new() };
                vec![("field", field), ("value", d.value.clone()), ("permitted", d.permitted.join(", "))]
            }),
            Failure::Operation(operation) => operation.error.as_option().map_or_else(Vec::new, |e| {
                let permitted = e.permitted.join(", ");
                let reason = ("reason", e.reason.clone());
                vec![reason, ("field", e.field.clone()), ("value", e.value.clone()), ("permitted", permitted)]
            }),
            Failure::Document { error: JsonError::Unknown(unknown), .. } => {
                vec![("permitted", unknown.known.join(", "))]
            }
            _ => Vec::new(),
        }
    }

    fn hint(&self) -> String {
        match self {
            Failure::Usage { hint, .. }
            | Failure::Timeout { hint, .. }
            | Failure::NotRunning { hint, .. }
            | Failure::NotFound { hint, .. }
            | Failure::Precondition { hint, .. }
            | Failure::Other { hint, .. } => hint.clone(),
            Failure::Client(error) => match error.detail().map(|d| d.hint.as_str()) {
                Some(hint) if !hint.is_empty() => hint.to_owned(),
                _ => client_hint(error).to_owned(),
            },
            Failure::Operation(operation) => match operation.error.as_option().map(|e| e.hint.as_str()) {
                Some(hint) if !hint.is_empty() => hint.to_owned(),
                _ => "roost doctor tells what is wrong with the host; the daemon's log says more".to_owned(),
            },
            Failure::Interrupted { going_on, unanswered: true } if going_on.is_empty() => {
                "the daemon had not answered: roost operation list shows whether it goes on".to_owned()
            }
            Failure::Interrupted { going_on, .. } if !going_on.is_empty() => {
                let ids = going_on.join(" ");
                format!(
                    "what was asked goes on; come back with roost operation wait {ids}, or end it with roost operation \
                     cancel {ids}"
                )
            }
            _ => String::new(),
        }
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Failure::Invalid { file: None, invalid }
    }
}

/// Prints a failure and gives its exit code.
pub(crate) fn report(failure: &Failure) -> ExitCode {
    eprint(&failure.text());
    ExitCode::from(failure.exit())
}

/// Writes to standard error; if that is gone there is nobody to tell.
pub(crate) fn eprint(text: &str) {
    let _gone = io::Write::write_all(&mut io::stderr(), text.as_bytes());
}

fn client_exit(error: &ClientError) -> u8 {
    if error.operation().is_some() {
        return 6;
    }
    match error.code() {
        ErrorCode::InvalidArgument | ErrorCode::OutOfRange => 2,
        ErrorCode::PermissionDenied => 5,
        ErrorCode::NotFound => 4,
        ErrorCode::AlreadyExists | ErrorCode::FailedPrecondition | ErrorCode::Aborted => 5,
        ErrorCode::DeadlineExceeded => 7,
        // With words of its own it is the daemon that answers; without, nobody does.
        ErrorCode::Unavailable if error.detail().is_none() || error.reason() == Some("STOPPING") => 3,
        _ => 1,
    }
}

fn client_hint(error: &ClientError) -> &'static str {
    if let ClientError::Unreachable { kind, .. } = error {
        return match kind {
            io::ErrorKind::PermissionDenied => {
                "the socket belongs to another user: run roost as that user, or start a daemon of your own with roost \
                 daemon start"
            }
            _ => "start it with roost daemon start, or name another one's socket with --socket or ROOST_SOCKET",
        };
    }
    match error.reason() {
        Some("VM_NOT_FOUND") => "roost vm list shows those that there are",
        Some("EXECUTION_NOT_FOUND") => "roost execution list shows those that there are",
        Some("JOB_NOT_FOUND") => "roost job list shows those that there are",
        Some("OPERATION_NOT_FOUND") => "roost operation list shows those that there are",
        Some("NAME_TAKEN") => "choose another name, or delete the VM that has it with roost vm delete",
        Some("UNKNOWN_BACKEND" | "UNSUPPORTED_CAPABILITY" | "BACKEND_UNAVAILABLE") => {
            "roost backend list shows what there is and what each can do"
        }
        Some("BEING_DELETED") => "wait until it is gone: roost vm list",
        Some("OPERATION_ENDED") => "roost operation get shows how it ended",
        Some(_) => "",
        None => match error.code() {
            ErrorCode::Unavailable => "the daemon went away: roost daemon status",
            ErrorCode::Unimplemented => "the daemon is older than this program: roost version",
            _ => "",
        },
    }
}

fn at(file: &Option<String>) -> String {
    file.as_ref().map(|f| format!("{f}: ")).unwrap_or_default()
}

fn outcome(operation: &Operation) -> String {
    let how = match operation.status.as_known() {
        Some(OperationStatus::OPERATION_STATUS_CANCELLED) => "was cancelled",
        _ => "failed",
    };
    match operation.error.as_option().map(|e| e.message.as_str()) {
        Some(message) if !message.is_empty() => format!("({}) {how}: {message}", operation.kind),
        _ => format!("({}) {how}", operation.kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(code: ErrorCode) -> Failure {
        Failure::Client(ClientError::Call { code, message: "m\x1b[2J".to_owned(), detail: None, operation: None })
    }

    #[test]
    fn every_kind_of_failure_has_its_exit_code() {
        let exits = [
            (ErrorCode::InvalidArgument, 2),
            (ErrorCode::NotFound, 4),
            (ErrorCode::AlreadyExists, 5),
            (ErrorCode::FailedPrecondition, 5),
            (ErrorCode::Aborted, 5),
            (ErrorCode::DeadlineExceeded, 7),
            (ErrorCode::Unavailable, 3),
            (ErrorCode::Internal, 1),
        ];
        for (code, exit) in exits {
            assert_eq!(call(code).exit(), exit, "{code:?}");
        }
        let operation = Some(Box::new(Operation::default()));
        let code = ErrorCode::FailedPrecondition;
        let failed = ClientError::Call { code, message: String::new(), detail: None, operation };
        assert_eq!(Failure::Client(failed).exit(), 6);
        assert_eq!(Failure::Interrupted { going_on: vec![], unanswered: false }.exit(), 130);
        assert_eq!(Failure::Signal(15).exit(), 143);
    }

    #[test]
    fn the_manual_has_the_same_table_as_the_help() {
        let manual = include_str!("../../../docs/cli.md");
        for line in EXIT_CODES.lines().skip(1) {
            let (code, meaning) = line.trim().split_once(' ').unwrap();
            assert!(manual.contains(&format!("| {code} | {} |", meaning.trim())), "{line}");
        }
    }

    #[test]
    fn what_a_server_sends_cannot_act_on_the_terminal() {
        assert!(!call(ErrorCode::Internal).text().contains('\x1b'));
    }

    #[test]
    fn an_interruption_says_how_to_come_back() {
        let going_on = vec!["op_1".to_owned()];
        let text = Failure::Interrupted { going_on, unanswered: false }.text();
        assert!(text.contains("roost operation wait op_1"), "{text}");
    }
}
