//! The gate, on real processes: what a child is, and what is left when its parent dies.
//!
//! The parent that dies is this very binary, started again with [`PARENT`] in its environment.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use roost_host::inherited;
use roost_host::launch::{Launch, LaunchError, Stage};
use roost_host::process::{ExitStatus, Process, ProcessIdent, Signal};
use rustix::io::FdFlags;
use support::{number_taken, output, pipe, program, read_line, read_to_end, reap, sh, wait_until};

const PARENT: &str = "ROOST_TEST_PARENT";

#[test]
fn the_child_waits_and_keeps_its_identity() {
    let (read, write) = pipe();
    let gated = sh("echo ran").stdout(write).spawn_gated().unwrap();
    let ident = gated.ident().clone();
    assert!(Process::open(&ident).unwrap().is_some());
    let exe = std::fs::read_link(format!("/proc/{}/exe", ident.pid)).unwrap();
    assert_eq!(exe, std::env::current_exe().unwrap(), "not the program yet");
    let child = gated.release().unwrap();
    assert_eq!(*child.ident(), ident);
    assert_eq!(read_to_end(read), "ran\n");
    reap(&child);
}

#[test]
fn a_dropped_gate_ends_the_child() {
    let (read, write) = pipe();
    let gated = sh("echo ran").stdout(write).spawn_gated().unwrap();
    let pid = gated.ident().pid;
    drop(gated);
    assert!(!number_taken(pid), "collected as well");
    assert_eq!(read_to_end(read), "");
}

#[test]
fn a_stopped_child_is_dropped_too() {
    let gated = sh("echo ran").spawn_gated().unwrap();
    let pid = gated.ident().pid;
    gated.process().signal(Signal::STOP).unwrap();
    drop(gated);
    assert!(!number_taken(pid));
}

#[test]
fn what_the_child_is_given_and_nothing_else() {
    // Left open across exec on purpose, as a careless library might.
    let (careless, _other) = pipe();
    rustix::io::fcntl_setfd(&careless, FdFlags::empty()).unwrap();

    // Targets in the way of each other's sources.
    let (five, nine) = pipe();
    let listed = output(Launch::new(program("ls")).arg("/proc/self/fd").fd(nine, 9).fd(five, 5));
    let listed: BTreeSet<i32> = listed.lines().map(|line| line.parse().unwrap()).collect();
    // 3 is the directory that `ls` reads.
    assert_eq!(listed, BTreeSet::from([0, 1, 2, 3, 5, 9]));

    let env = output(Launch::new(program("env")).env("B", "twice").env("A", "1 2").env("B", "x=y"));
    assert_eq!(env, "A=1 2\nB=x=y\n");
    assert_eq!(output(Launch::new(program("pwd")).cwd("/usr/lib").env("PWD", "/")), "/usr/lib\n");

    let args = ["", "two words", "-x,y=z", "*", "$HOME", "\u{e9}"];
    let echoed = output(Launch::new(program("printf")).arg("<%s>").args(args));
    assert_eq!(echoed, args.map(|arg| format!("<{arg}>")).concat());

    let input = output(Launch::new(program("readlink")).arg("/proc/self/fd/0"));
    assert_eq!(input, "/dev/null\n");
}

#[test]
fn the_child_starts_from_a_clean_state() {
    // The runtime ignores SIGPIPE in this process; hold one more back in this thread.
    roost_host::signals::hold_back(&[Signal::USR2]).unwrap();
    let status = output(Launch::new(program("cat")).arg("/proc/self/status"));
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_else(|| panic!("no {name} in {status}"))
    };
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Umask"), "0077");
    assert_eq!(u64::from_str_radix(field("SigBlk"), 16), Ok(0));
    assert_eq!(u64::from_str_radix(field("SigIgn"), 16), Ok(0));
    let stat = output(Launch::new(program("cat")).arg("/proc/self/stat"));
    let stat: Vec<&str> = stat.split(' ').collect();
    assert_eq!(stat[0], stat[5], "leads a session of its own");
    // The parent has what it had.
    let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let blocked = own.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
    assert_eq!(u64::from_str_radix(blocked, 16), Ok(1 << (Signal::USR2.as_raw() - 1)));
}

#[test]
fn a_failed_exec_says_why_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    std::fs::write(&text, "not a program").unwrap();
    let child_error = |launch: Launch| {
        let gated = launch.spawn_gated().expect("exec has not been tried yet");
        let pid = gated.ident().pid;
        let error = gated.release().expect_err("it is no program");
        assert!(!number_taken(pid), "no zombie");
        match error {
            LaunchError::Child { stage, source, .. } => (stage, source.raw_os_error().unwrap()),
            other => panic!("{other:?}"),
        }
    };
    let missing = dir.path().join("missing");
    assert_eq!(child_error(Launch::new(&missing)), (Stage::Exec, libc::ENOENT));
    assert_eq!(child_error(Launch::new(&text)), (Stage::Exec, libc::EACCES));
    assert_eq!(child_error(Launch::new(dir.path())), (Stage::Exec, libc::EACCES));
    assert_eq!(child_error(sh("true").cwd(&missing)), (Stage::WorkingDirectory, libc::ENOENT));
    rustix::fs::chmod(&text, rustix::fs::Mode::RWXU).unwrap();
    assert_eq!(child_error(Launch::new(&text)), (Stage::Exec, libc::ENOEXEC));
}

#[test]
fn a_child_killed_at_the_gate_is_told_apart() {
    let gated = sh("true").spawn_gated().unwrap();
    let process = gated.process().clone();
    process.kill().unwrap();
    wait_until("it is dead", || !process.is_alive().unwrap());
    assert!(matches!(gated.release(), Err(LaunchError::Died { .. })));
    assert!(!number_taken(process.ident().pid));
}

#[test]
fn launches_that_make_no_sense() {
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let error = |launch: Launch| launch.spawn_gated().expect_err("refused");
    assert!(matches!(error(Launch::new("sleep")), LaunchError::ProgramNotAbsolute { .. }));
    assert!(matches!(error(sh("true").fd(null(), 2)), LaunchError::TargetOutOfRange { target: 2 }));
    assert!(matches!(error(sh("true").fd(null(), 1024)), LaunchError::TargetOutOfRange { target: 1024 }));
    assert!(matches!(error(sh("true").fd(null(), 7).fd(null(), 7)), LaunchError::TargetTwice { target: 7 }));
    assert!(matches!(error(sh("a\0b")), LaunchError::ZeroByte { what: "the argument", .. }));
    assert!(matches!(error(sh("true").env("A=B", "")), LaunchError::BadEnvName { .. }));
    assert!(matches!(error(sh("true").env("", "")), LaunchError::BadEnvName { .. }));
}

#[test]
fn from_many_threads_that_allocate() {
    // A fork that allocated or locked in the child would hang here sooner or later.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::black_box(vec![vec![0u8; 300]; 30]);
                }
            });
        }
        let launchers: Vec<_> = (0..4)
            .map(|launcher| {
                scope.spawn(move || {
                    for turn in 0..25 {
                        let text = format!("{launcher}.{turn}");
                        assert_eq!(output(sh(&format!("echo {text}"))), format!("{text}\n"));
                    }
                })
            })
            .collect();
        for launcher in launchers {
            launcher.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_multi_threaded_runtime() {
    let tasks: Vec<_> = (0..20)
        .map(|code| {
            tokio::spawn(async move {
                let child = sh(&format!("exit {code}")).spawn_gated().unwrap().release().unwrap();
                assert!(child.wait_gone(support::DEADLINE).await.unwrap());
                assert_eq!(child.reap().unwrap(), Some(ExitStatus::Exited(code)));
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// Not a test of its own: the parent that dies, when started by one of the tests below.
#[test]
fn parent_that_dies() {
    let Some(role) = std::env::var_os(PARENT) else { return };
    let held = inherited::take(9).unwrap();
    // Its number goes to the descriptor that the test reads; it is open for as long as anybody has it.
    let launch = sh("echo $$ >&9; exec sleep 1000").fd(held, 9);
    println!("\nREADY");
    let gated = launch.spawn_gated().unwrap();
    println!("\nIDENT {}", serde_json::to_string(gated.ident()).unwrap());
    if role == "released" {
        let child = gated.release().unwrap();
        println!("\nRELEASED");
        std::mem::forget(child);
    } else {
        assert_eq!(role, "gated");
        std::mem::forget(gated);
    }
    // Until it is killed.
    loop {
        std::thread::park();
    }
}

struct Parent {
    process: Process,
    lines: std::io::Lines<BufReader<std::fs::File>>,
    /// End of file once neither the parent nor anything that it started is left.
    life: OwnedFd,
}

impl Parent {
    fn start(role: &str) -> Self {
        let (life, held) = pipe();
        let (lines, stdout) = pipe();
        let process = Launch::new(std::env::current_exe().unwrap())
            .args(["parent_that_dies", "--exact", "--nocapture"])
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env(PARENT, role)
            .fd(held, 9)
            .stdout(stdout)
            .spawn_gated()
            .unwrap()
            .release()
            .unwrap();
        let lines = BufReader::new(std::fs::File::from(lines)).lines();
        Self { process, lines, life }
    }

    fn line(&mut self, start: &str) -> String {
        loop {
            let line = self.lines.next().unwrap_or_else(|| panic!("the parent ended before {start}")).unwrap();
            if let Some(rest) = line.strip_prefix(start) {
                return rest.trim().to_owned();
            }
        }
    }

    fn die(self) -> OwnedFd {
        // SIGKILL, as a daemon dies.
        self.process.kill().unwrap();
        reap(&self.process);
        self.life
    }
}

#[test]
fn a_parent_that_dies_before_the_release_leaves_nothing() {
    let mut parent = Parent::start("gated");
    let ident: ProcessIdent = serde_json::from_str(&parent.line("IDENT ")).unwrap();
    let child = Process::open(&ident).unwrap().expect("it waits at the gate");
    let life = parent.die();
    assert_eq!(read_to_end(life), "", "gone, and it never ran");
    wait_until("the child is gone", || !child.is_alive().unwrap());
}

#[test]
fn a_parent_that_dies_after_the_release_leaves_the_program() {
    let mut parent = Parent::start("released");
    let ident: ProcessIdent = serde_json::from_str(&parent.line("IDENT ")).unwrap();
    parent.line("RELEASED");
    let life = parent.die();
    let child = Process::open(&ident).unwrap().expect("it runs on");
    assert_eq!(read_line(&life).trim(), ident.pid.to_string());
    assert!(child.is_alive().unwrap());
    assert_eq!(executable(&ident), std::fs::canonicalize(program("sleep")).ok());
    child.kill().unwrap();
    wait_until("it is gone", || !child.is_alive().unwrap());
}

/// After `exec sleep`, which the shell may not have reached yet.
fn executable(ident: &ProcessIdent) -> Option<PathBuf> {
    let link = format!("/proc/{}/exe", ident.pid);
    wait_until("it has become sleep", || std::fs::read_link(&link).is_ok_and(|exe| exe.ends_with("sleep")));
    std::fs::read_link(link).ok()
}

#[test]
fn a_parent_that_dies_at_any_moment_leaves_nothing_or_the_program() {
    let (mut nothing, mut program) = (0, 0);
    for turn in 0..40u32 {
        let mut parent = Parent::start("released");
        parent.line("READY");
        // The moment of death is what is tested: it moves across the whole launch.
        let until = Instant::now() + Duration::from_micros(u64::from(turn) * 50);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        let life = parent.die();
        // Either end of file (nothing is left), or the number of the program. A child stuck at the
        // gate would make this wait until the deadline.
        let line = read_line(&life);
        match line.trim().parse::<u32>() {
            Err(_) => {
                assert_eq!(line, "");
                nothing += 1;
            }
            Ok(pid) => {
                let child = Process::open(&support::ident_of(pid)).unwrap().expect("it runs on");
                child.kill().unwrap();
                program += 1;
            }
        }
    }
    println!("died before the release {nothing} times, after it {program} times");
    assert_eq!(nothing + program, 40);
}

#[test]
fn inherited_descriptors_are_taken_once() {
    assert!(matches!(inherited::take(1), Err(inherited::InheritedError::OutOfRange { number: 1 })));
    assert!(matches!(inherited::take(1_000_000), Err(inherited::InheritedError::NotOpen { .. })));
    let (read, write) = pipe();
    assert!(matches!(inherited::take(read.as_raw_fd()), Err(inherited::InheritedError::NotInherited { .. })));
    drop((read, write));
}
