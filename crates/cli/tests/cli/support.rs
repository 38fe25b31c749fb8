//! Running the program, and reading what it says.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Nothing here takes so long unless it is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// `roost` in an environment of its own: the daemon of this state directory, or none.
pub(crate) struct Roost {
    state: PathBuf,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Did {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Roost {
    pub(crate) fn new(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
        command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", &self.state).env("TERM", "xterm").env("ROOST_STATE_DIR", &self.state);
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Did {
        Did::of(self.command(args).output().unwrap())
    }

    /// Runs it with this on standard input.
    pub(crate) fn run_with(&self, args: &[&str], input: &[u8]) -> Did {
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        Did::of(child.wait_with_output().unwrap())
    }

    /// Its standard output, of a command that must succeed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let did = self.run(args);
        assert_eq!(did.code, 0, "{args:?}: {did:?}");
        did.out
    }

    /// Its document, of a command that must succeed.
    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[args, &["-o", "json"]].concat())).unwrap()
    }

    /// Its standard error, of a command that must fail so.
    pub(crate) fn fails(&self, code: i32, args: &[&str]) -> String {
        let did = self.run(args);
        assert_eq!(did.code, code, "{args:?}: {did:?}");
        did.err
    }

    /// Starts it with both outputs piped.
    pub(crate) fn spawn(&self, args: &[&str]) -> Running {
        let mut command = self.command(args);
        Running(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }
}

impl Did {
    fn of(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let code = output.status.code().unwrap_or_else(|| -output.status.signal().unwrap());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("what is printed is Unicode");
        Self { code, out: text(output.stdout), err: text(output.stderr) }
    }
}

/// A command that runs; it is ended if the test fails meanwhile.
pub(crate) struct Running(Option<Child>);

impl Running {
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.0.as_ref().unwrap();
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Reads its standard output until it holds this.
    pub(crate) fn until(&mut self, text: &str) -> String {
        let out = self.0.as_mut().unwrap().stdout.as_mut().unwrap();
        let mut seen = Vec::new();
        let mut byte = [0];
        loop {
            assert_eq!(out.read(&mut byte).unwrap(), 1, "it ended after {:?}", String::from_utf8_lossy(&seen));
            seen.push(byte[0]);
            if seen.ends_with(text.as_bytes()) {
                return String::from_utf8_lossy(&seen).into_owned();
            }
        }
    }

    pub(crate) fn end(mut self) -> Did {
        Did::of(self.0.take().unwrap().wait_with_output().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _dead = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// Asks until the answer is yes.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < DEADLINE, "not in time: {what}");
    }
}
