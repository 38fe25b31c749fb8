//! With real machines: consoles, logs, and what takes long enough to be interrupted.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::Instant;

use roost_testkit::TestDaemon;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::support::{DEADLINE, Roost, until};

/// A daemon with a VM `m` that says `tick` four times a second, and whose serial line knows `q` (power
/// off), `p` (panic) and `d` (deaf to the power button).
fn real() -> (TestDaemon, Roost) {
    let daemon = TestDaemon::start(&[]);
    let roost = Roost::new(&daemon.state_dir());
    let kernel = xtask::micro_guest().expect("gcc builds the guest");
    let kernel = kernel.to_str().unwrap();
    let args = ["vm", "create", "m", "--kernel", kernel, "--memory", "32MiB", "--net", "none", "--start"];
    assert_eq!(roost.ok(&args), "m: created and started\n");
    roost.ok(&["vm", "wait", "m", "--console", "tick", "--timeout", "60s"]);
    (daemon, roost)
}

/// A command on a terminal of its own.
struct OnTerminal {
    child: Child,
    master: OwnedFd,
    slave: OwnedFd,
    seen: Vec<u8>,
}

impl OnTerminal {
    fn new(roost: &Roost, args: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        tcsetwinsize(&slave, Winsize { ws_row: 24, ws_col: 60, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let end = || Stdio::from(slave.try_clone().unwrap());
        let mut command = roost.command(args);
        let child = command.process_group(0).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Self { child, master, slave, seen: Vec::new() }
    }

    fn type_in(&self, keys: &[u8]) {
        rustix::io::write(&self.master, keys).unwrap();
    }

    fn until(&mut self, text: &str) {
        let begun = Instant::now();
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            let left = DEADLINE.checked_sub(begun.elapsed());
            let left = left.unwrap_or_else(|| panic!("no {text:?} in {:?}", String::from_utf8_lossy(&self.seen)));
            let wait = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            if poll(&mut [PollFd::new(&self.master, PollFlags::IN)], Some(&wait)).unwrap() > 0 {
                let mut bytes = [0; 4096];
                let got = rustix::io::read(&self.master, &mut bytes).unwrap();
                self.seen.extend_from_slice(&bytes[..got]);
            }
        }
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(self.slave.as_fd()).unwrap().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// Its exit code.
    fn end(&mut self) -> i32 {
        until("the command ends", || self.child.try_wait().unwrap()).code().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[test]
fn the_console_is_a_terminal_and_gives_it_back() {
    let (_daemon, roost) = real();

    let mut console = OnTerminal::new(&roost, &["console", "m"]);
    console.until("Ctrl-] detaches");
    console.until("tick");
    assert!(console.is_raw());
    // Ctrl-C is the guest's, not ours.
    console.type_in(b"\x03");
    console.seen.clear();
    console.until("tick");
    console.type_in(b"\x1d");
    console.until("Detached");
    assert_eq!(console.end(), 0);
    assert!(!console.is_raw(), "detached");

    let mut console = OnTerminal::new(&roost, &["vm", "console", "m"]);
    console.until("tick");
    console.signal(Signal::TERM);
    assert_eq!(console.end(), 143);
    assert!(!console.is_raw(), "told to end");

    let mut console = OnTerminal::new(&roost, &["console", "m"]);
    console.until("tick");
    console.type_in(b"q");
    console.until("The console is closed");
    assert_eq!(console.end(), 0);
    assert!(!console.is_raw(), "the guest powered off");
    roost.ok(&["vm", "wait", "m", "--state", "shutdown"]);
    let shown = roost.ok(&["vm", "get", "m"]);
    assert!(shown.contains("Exit:         power-off"), "{shown}");
}

#[test]
fn a_console_in_a_pipe_sends_what_comes_in_and_prints_what_comes_out() {
    let (_daemon, roost) = real();
    // The guest never falls silent: the detach key ends it.
    let did = roost.run_with(&["console", "m"], b"\x1d");
    assert_eq!((did.code, did.err.as_str()), (0, ""), "{did:?}");
    let did = roost.run_with(&["console", "m"], b"p");
    assert_eq!(did.code, 0, "{did:?}");
    roost.ok(&["vm", "wait", "m", "--state", "crashed"]);
    assert!(roost.fails(1, &["vm", "wait", "m", "--console", "never written", "--timeout", "30s"]).contains("panic"));
}

#[test]
fn words_of_an_earlier_start_are_not_waited_for_and_stay_in_the_log() {
    let (_daemon, roost) = real();
    roost.run_with(&["console", "m"], b"d\x1d");
    roost.ok(&["vm", "wait", "m", "--console", "deaf", "--timeout", "30s"]);
    roost.ok(&["vm", "stop", "m", "--force"]);
    roost.ok(&["vm", "start", "m"]);
    roost.ok(&["vm", "wait", "m", "--console", "tick", "--timeout", "30s"]);
    roost.fails(7, &["vm", "wait", "m", "--console", "deaf", "--timeout", "300ms"]);
    assert!(roost.ok(&["vm", "logs", "m"]).contains("deaf"));
}

#[test]
fn logs_are_shown_from_the_end_and_followed() {
    let (_daemon, roost) = real();
    let all = roost.ok(&["vm", "logs", "m"]);
    assert!(all.contains("boot") && all.contains("tick"), "{all}");
    assert!(!all.chars().any(|c| c.is_control() && c != '\n' && c != '\t'), "{all:?}");
    assert_eq!(roost.ok(&["vm", "logs", "m", "--tail", "2"]).lines().count(), 2);
    assert!(roost.ok(&["vm", "logs", "m", "--raw"]).contains("tick"));
    let mut follow = roost.spawn(&["vm", "logs", "m", "--tail", "1", "--follow"]);
    for _ in 0..3 {
        follow.until("tick");
    }
    follow.signal(Signal::INT);
    assert_eq!(follow.end().code, 130);
}

#[test]
fn an_interruption_leaves_the_operation_running_and_says_how_to_come_back() {
    let (_daemon, roost) = real();
    // Deaf to the power button: a graceful stop takes all the time that it is given.
    roost.run_with(&["console", "m"], b"d\x1d");
    roost.ok(&["vm", "wait", "m", "--console", "deaf", "--timeout", "30s"]);
    let stop = roost.spawn(&["vm", "stop", "m", "--timeout", "600s"]);
    let open = ["operation", "list", "-q", "--status", "running", "--status", "pending"];
    let operation = until("the stop is under way", || {
        let ids = roost.ok(&open);
        (!ids.is_empty()).then(|| ids.trim().to_owned())
    });
    stop.signal(Signal::INT);
    let did = stop.end();
    assert_eq!((did.code, did.out.as_str()), (130, ""), "{did:?}");
    assert!(did.err.contains(&format!("roost operation wait {operation}")), "{did:?}");
    assert_eq!(roost.ok(&open).trim(), operation, "it goes on");

    let said = roost.fails(7, &["operation", "wait", &operation, "--timeout", "300ms"]);
    assert!(said.contains("it goes on") && said.contains(&operation), "{said}");

    // On a terminal somebody sees that it is being worked on.
    let mut waiting = OnTerminal::new(&roost, &["operation", "wait", &operation]);
    waiting.until(&format!("waiting for {}", &operation[..12]));
    roost.ok(&["operation", "cancel", &operation]);
    let code = waiting.end();
    let ended = roost.json(&["operation", "get", &operation]);
    let status = ended["status"].as_str().unwrap();
    assert_eq!((code, status), (6, "OPERATION_STATUS_CANCELLED"), "{ended}");
    assert!(roost.fails(6, &["operation", "wait", &operation]).contains("was cancelled"));
    roost.ok(&["vm", "delete", "m", "--force"]);
}

#[test]
fn a_daemon_that_stops_meanwhile_says_how_to_come_back() {
    let (mut daemon, roost) = real();
    roost.run_with(&["console", "m"], b"d\x1d");
    roost.ok(&["vm", "wait", "m", "--console", "deaf", "--timeout", "30s"]);
    let stop = roost.spawn(&["vm", "stop", "m", "--timeout", "20s"]);
    let open = ["operation", "list", "-q", "--status", "running"];
    let operation = until("the stop is under way", || {
        let ids = roost.ok(&open);
        (!ids.is_empty()).then(|| ids.trim().to_owned())
    });
    assert!(daemon.stop());
    let did = stop.end();
    assert_eq!(did.code, 3, "{did:?}");
    assert!(did.err.contains(&format!("roost operation wait {operation}")), "{did:?}");
    daemon.restart();
    assert!(roost.ok(&["operation", "wait", &operation, "--timeout", "60s"]).contains("succeeded"));
    assert!(roost.ok(&["vm", "get", "m"]).contains("Exit:         forced"));
}

#[test]
fn an_operation_that_fails_is_exit_code_6_with_its_reason() {
    let daemon = TestDaemon::start(&[]);
    let roost = Roost::new(&daemon.state_dir());
    let did = roost.run(&["vm", "create", "m", "--kernel", "/nonexistent/vmlinuz", "--start"]);
    assert_eq!(did.code, 6, "{did:?}");
    assert!(did.err.contains("/nonexistent/vmlinuz") && did.err.contains("hint: "), "{did:?}");
    let shown = roost.ok(&["vm", "get", "m"]);
    assert!(shown.contains("failed") && shown.contains("Failure:"), "{shown}");
    roost.fails(1, &["vm", "wait", "m", "--timeout", "5s"]);
}
