//! Executions: what was done inside a guest on somebody's request, and what came of it. The record is the
//! audit: it is written before the guest hears of anything.
//!
//! ```text
//!   running --> succeeded | failed | cancelled
//!      \------> unknown: the guest, its agent or the daemon was gone before the end was heard
//! ```

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::error::Invalid;
use crate::id::{ExecutionId, JobId, ProjectId, VmId};
use crate::spec::words;
use crate::time::Timestamp;

/// What a record keeps of each of stdout and stderr, in bytes: the head and the tail.
pub const KEPT_OUTPUT: usize = 64 * 1024;

/// One thing done in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// Its ID.
    pub id: ExecutionId,
    /// The tenant.
    pub project: ProjectId,
    /// In which VM.
    pub vm: VmId,
    /// As part of which job.
    pub job: Option<JobId>,
    /// A program, or one of the agent's typed actions.
    pub kind: ExecutionKind,
    /// The program, the shell's line, or the action's name.
    pub command: String,
    /// The program's arguments, or the action's fields.
    pub args: Vec<String>,
    /// Names of the variables that were given; their values are withheld on purpose.
    pub env_names: Vec<String>,
    /// Where it is, and what came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The epoch of the daemon that ran it.
    pub daemon_epoch: u64,
    /// When the guest was asked.
    pub started_at: Timestamp,
    /// When its end was heard.
    pub finished_at: Option<Timestamp>,
}

/// What kind of thing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecutionKind {
    /// A program of the caller's choice.
    Exec,
    /// One of the agent's typed actions.
    Action,
    /// A file read or written.
    File,
}

/// Where an execution is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecutionStatus {
    /// The guest was asked.
    Running,
    /// It exited with 0, or the action succeeded.
    Succeeded,
    /// It ended otherwise.
    Failed,
    /// It was ended on request.
    Cancelled,
    /// Nobody heard its end. It is never tried again silently.
    Unknown,
}

words!(ExecutionKind, "kind", "exec" => Exec, "action" => Action, "file" => File);
words!(ExecutionStatus, "status", "running" => Running, "succeeded" => Succeeded, "failed" => Failed,
    "cancelled" => Cancelled, "unknown" => Unknown);

/// What a program wrote.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Output {
    /// The text; bytes that are no UTF-8 are replaced.
    pub text: String,
    /// Whether bytes in the middle are missing.
    pub truncated: bool,
}

/// Output as it comes, of which the head and the tail are kept.
#[derive(Debug, Clone, Default)]
pub struct Keep {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    left_out: u64,
}

/// Where an execution is, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Where it is now.
    pub status: ExecutionStatus,
    /// The program's own, when it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it wrote, as far as it is kept.
    pub stdout: Output,
    /// What it wrote to its standard error, as far as it is kept.
    pub stderr: Output,
    /// Why it failed, where that is not the exit code.
    pub error: Option<String>,
}

/// Several commands, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its ID.
    pub id: JobId,
    /// The tenant.
    pub project: ProjectId,
    /// In which VM.
    pub vm: VmId,
    /// What it is called; may be empty.
    pub name: String,
    /// In order. Values of variables are not kept: a job that is taken up after the daemon's death goes on no
    /// further.
    pub commands: Vec<JobCommand>,
    /// Whether the first command that fails ends it.
    pub stop_on_error: bool,
    /// Where it is.
    pub status: ExecutionStatus,
    /// The execution of each command that was begun.
    pub executions: Vec<ExecutionId>,
    /// The epoch of the daemon that runs it.
    pub daemon_epoch: u64,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// One command of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCommand {
    /// The program, or the shell's line where there are no arguments.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Names of its variables.
    pub env_names: Vec<String>,
}

impl Output {
    /// What is kept of a whole text, which may be truncated already.
    pub fn kept(text: &str, truncated: bool) -> Self {
        let mut keep = Keep::default();
        keep.push(text.as_bytes());
        let kept = keep.output();
        Self { truncated: truncated || kept.truncated, ..kept }
    }
}

impl Keep {
    /// Takes in what comes next.
    pub fn push(&mut self, mut bytes: &[u8]) {
        const HALF: usize = KEPT_OUTPUT / 2;
        let (head, rest) = bytes.split_at(bytes.len().min(HALF - self.head.len()));
        self.head.extend_from_slice(head);
        bytes = rest;
        let over = (self.tail.len() + bytes.len()).saturating_sub(HALF);
        self.left_out += over as u64;
        let of_tail = over.min(self.tail.len());
        self.tail.drain(..of_tail);
        self.tail.extend(&bytes[over - of_tail..]);
    }

    /// What is kept. Bytes that are no UTF-8, and characters that are cut through, are replaced.
    pub fn output(&self) -> Output {
        let mut bytes = self.head.clone();
        if self.left_out > 0 {
            bytes.extend_from_slice(format!("\n[{} bytes left out]\n", self.left_out).as_bytes());
        }
        bytes.extend(&self.tail);
        Output { text: String::from_utf8_lossy(&bytes).into_owned(), truncated: self.left_out > 0 }
    }
}

impl Execution {
    /// Ends it.
    pub fn finish(&mut self, outcome: Outcome, now: Timestamp) {
        self.outcome = outcome;
        self.finished_at = Some(now);
    }

    /// From the question to the end, in ms.
    pub fn duration_ms(&self) -> Option<u64> {
        let finished = self.finished_at?;
        u64::try_from(finished.unix_ms() - self.started_at.unix_ms()).ok()
    }
}

impl Outcome {
    /// Nobody knows how it ended.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self::without_output(ExecutionStatus::Unknown, why)
    }

    /// It ended without anything to show but why.
    pub fn without_output(status: ExecutionStatus, why: impl Into<String>) -> Self {
        Self { error: Some(why.into()), ..Self::bare(status) }
    }

    /// It has just begun.
    pub fn running() -> Self {
        Self::bare(ExecutionStatus::Running)
    }

    fn bare(status: ExecutionStatus) -> Self {
        let (stdout, stderr) = (Output::default(), Output::default());
        Self { status, exit_code: None, signal: None, stdout, stderr, error: None }
    }
}

/// Checks variables that a caller gives to a program. Names and sizes as the kernel and shells take them.
pub fn check_env(env: &BTreeMap<String, String>) -> Result<(), Invalid> {
    if env.len() > 256 {
        return Err(Invalid::new("env", env.len(), "has too many entries").permit(["at most 256"]));
    }
    for (name, value) in env {
        let first = |b: u8| b.is_ascii_alphabetic() || b == b'_';
        let bytes = name.as_bytes();
        let fits = (1..=128).contains(&bytes.len())
            && first(bytes[0])
            && bytes.iter().all(|b| first(*b) || b.is_ascii_digit());
        if !fits {
            return Err(Invalid::new("env", name, "is no variable's name")
                .permit(["1-128 letters, digits or '_', not starting with a digit"]));
        }
        if value.len() > 64 * 1024 || value.contains('\0') {
            // The value may be a secret.
            return Err(Invalid::new(format!("env.{name}"), value.len(), "is too long or has a NUL")
                .permit(["at most 65536 bytes without NUL"]));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_output_keeps_its_ends() {
        let text = "é".repeat(KEPT_OUTPUT);
        let kept = Output::kept(&text, false);
        assert!(kept.truncated && kept.text.len() < KEPT_OUTPUT + 64);
        assert!(kept.text.starts_with('é') && kept.text.ends_with('é') && kept.text.contains("65536 bytes left out"));
        assert_eq!(Output::kept("short", true), Output { text: "short".to_owned(), truncated: true });

        // In pieces of any size it is the same.
        let text: String = (0..KEPT_OUTPUT).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
        for (length, piece) in [(10, 3), (KEPT_OUTPUT, 7), (KEPT_OUTPUT + 1, 1000), (3 * KEPT_OUTPUT, 50_000)] {
            let whole = text.repeat(3)[..length].to_owned();
            let mut keep = Keep::default();
            whole.as_bytes().chunks(piece).for_each(|bytes| keep.push(bytes));
            let mut at_once = Keep::default();
            at_once.push(whole.as_bytes());
            assert_eq!(keep.output(), at_once.output(), "{length} by {piece}");
            assert_eq!(keep.output().truncated, length > KEPT_OUTPUT);
            assert!(keep.output().text.ends_with(&whole[length.saturating_sub(KEPT_OUTPUT / 2)..]));
        }
    }

    #[test]
    fn variables_are_checked_without_showing_their_values() {
        let env = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        assert!(check_env(&env("PATH", "/bin")).is_ok());
        for name in ["", "1A", "A=B", "A B", "É"] {
            assert!(check_env(&env(name, "x")).is_err(), "{name:?}");
        }
        let refused = check_env(&env("TOKEN", "secret\0")).expect_err("it has a NUL");
        assert!(!refused.to_string().contains("secret"), "{refused}");
    }
}
