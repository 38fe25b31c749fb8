//! A QEMU under software emulation with its serial line and QMP, for the tests of the guests alone: no part of Roost is under it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Long enough for a Linux boot under emulation on a machine that is busy with other tests.
const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) struct Qemu {
    process: Child,
    serial: UnixStream,
    qmp: UnixStream,
    news: Receiver<News>,
    /// Everything that the guest has printed.
    console: String,
    /// The part of `console` that a test has dealt with.
    seen: usize,
    /// QMP events that no test has dealt with yet.
    events: Vec<Value>,
    _dir: TempDir,
}

enum News {
    Serial(Vec<u8>),
    Qmp(Value),
    Closed,
}

impl Qemu {
    /// Starts QEMU with `args`. It stops, instead of ending, when the guest powers off or panics.
    pub(crate) fn start(machine: &str, memory: &str, kernel: &Path, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = |name: &str| UnixListener::bind(dir.path().join(name)).unwrap();
        let (serial, qmp) = (listen("serial"), listen("qmp"));
        let socket = |name: &str| format!("socket,id={name},path={}", dir.path().join(name).display());
        let process = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-accel", "tcg", "-cpu", "max", "-machine", machine, "-m", memory])
            .args(["-action", "shutdown=pause", "-action", "panic=pause"])
            .args(["-chardev", &socket("serial"), "-serial", "chardev:serial"])
            .args(["-chardev", &socket("qmp"), "-mon", "chardev=qmp,mode=control"])
            .arg("-kernel")
            .arg(kernel)
            .args(args)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 starts (scripts/setup.sh installs it)");

        // QEMU connects to both before it runs the guest, so nothing that the guest prints is lost.
        let (sender, news) = channel();
        let serial = serial.accept().unwrap().0;
        let qmp = qmp.accept().unwrap().0;
        read_serial(serial.try_clone().unwrap(), sender.clone());
        read_qmp(qmp.try_clone().unwrap(), sender);
        let (console, events) = (String::new(), Vec::new());
        let mut qemu = Self { process, serial, qmp, news, console, seen: 0, events, _dir: dir };
        qemu.command("qmp_capabilities");
        qemu
    }

    /// Sends a QMP command without arguments.
    pub(crate) fn command(&mut self, name: &str) {
        let line = json!({"execute": name}).to_string() + "\n";
        self.qmp.write_all(line.as_bytes()).unwrap();
    }

    /// Types on the serial line.
    pub(crate) fn type_text(&mut self, text: &str) {
        self.serial.write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the guest has printed `text` after what was expected before, and returns what came up to it.
    pub(crate) fn expect_text(&mut self, text: &str) -> String {
        self.wait(&format!("the text {text:?}"), |qemu| {
            let end = qemu.seen + qemu.console[qemu.seen..].find(text)?;
            let before = qemu.console[qemu.seen..end].to_owned();
            qemu.seen = end + text.len();
            Some(before)
        })
    }

    /// Waits for a QMP event and returns its data.
    pub(crate) fn expect_event(&mut self, name: &str) -> Value {
        self.wait(&format!("the event {name}"), |qemu| {
            let at = qemu.events.iter().position(|event| event["event"] == name)?;
            Some(qemu.events.remove(at)["data"].take())
        })
    }

    /// Runs a command in the shell of a Linux guest, which must succeed, and returns what it printed.
    pub(crate) fn shell(&mut self, command: &str) -> String {
        // The quotes keep the echo of what is typed from looking like the answer.
        self.type_text(&format!("{command}; echo \"<end\" $?'>'\n"));
        self.expect_text("$?'>'");
        let output = self.expect_text("<end ");
        let status = self.expect_text(">");
        assert_eq!(status, "0", "{command} printed {output}");
        output
    }

    /// Takes in news until `found` finds something.
    fn wait<T>(&mut self, what: &str, mut found: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.news.recv_timeout(left) {
                Ok(News::Serial(bytes)) => self.console.push_str(&String::from_utf8_lossy(&bytes)),
                Ok(News::Qmp(message)) if message.get("event").is_some() => self.events.push(message),
                Ok(News::Qmp(message)) => assert!(message.get("error").is_none(), "{message}"),
                Ok(News::Closed) | Err(RecvTimeoutError::Disconnected) => self.give_up(what, "QEMU ended"),
                Err(RecvTimeoutError::Timeout) => self.give_up(what, "time is up"),
            }
        }
    }

    fn give_up(&self, what: &str, why: &str) -> ! {
        panic!("{why} while waiting for {what}\nevents: {:?}\nconsole:\n{}", self.events, self.console)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Ends by itself when QEMU closes its end of the socket, as it does when it is killed.
fn read_serial(mut serial: UnixStream, news: Sender<News>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = serial.read(&mut buffer) {
            if news.send(News::Serial(buffer[..length].to_vec())).is_err() {
                return;
            }
        }
        let _ = news.send(News::Closed);
    });
}

fn read_qmp(qmp: UnixStream, news: Sender<News>) {
    std::thread::spawn(move || {
        for line in BufReader::new(qmp).lines().map_while(Result::ok) {
            let message = serde_json::from_str(&line).expect("QMP speaks JSON");
            if news.send(News::Qmp(message)).is_err() {
                return;
            }
        }
    });
}
