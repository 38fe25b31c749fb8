//! Freezing a real file system: ext4 on a loop device, in a mount namespace that goes away with the test.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use roost_guest_agent::freeze::Freezer;
use roost_guest_agent::platform::System;
use roost_guest_agent::run::{Cancel, Program, RunError};
use roost_guest_proto::{ErrorCode, Freeze};

/// Names the mount point to the tests that run inside.
const MOUNT: &str = "ROOST_TEST_MOUNT";

/// Runs an ignored test of this file with a file system of its own.
fn with_file_system(test: &str) {
    let directory = tempfile::tempdir().unwrap();
    let (image, mount) = (directory.path().join("image"), directory.path().join("mnt"));
    std::fs::create_dir(&mount).unwrap();
    std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).output().expect("mkfs.ext4 (e2fsprogs)");
    assert!(made.status.success(), "{made:?}");
    let script =
        r#"mount -o loop "$1" "$2" || exit 99; shift 2; "$@"; code=$?; umount -l "$ROOST_TEST_MOUNT"; exit $code"#;
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"])
        .args([&image, &mount])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(MOUNT, &mount)
        .status()
        .expect("unshare (util-linux)");
    match status.code() {
        Some(0) => {}
        Some(1 | 99) if !rustix::process::geteuid().is_root() || status.code() == Some(99) => {
            eprintln!(
                "skipped: no loop device can be mounted here (root, CAP_SYS_ADMIN and /dev/loop-control are needed)"
            );
        }
        code => panic!("{test}: {code:?}"),
    }
}

fn mount() -> PathBuf {
    std::env::var_os(MOUNT).expect("run by another test").into()
}

fn freezer() -> Freezer {
    Freezer::new(System::default(), env!("CARGO_BIN_EXE_roost-agent").into())
}

fn request(timeout_ms: u64) -> Freeze {
    Freeze { id: "1".to_owned(), timeout_ms, paths: vec![mount().to_str().unwrap().to_owned()] }
}

/// A process that wants to write there.
struct Writer(Child);

impl Writer {
    fn start(mount: &Path) -> Self {
        let file = mount.join("file");
        let child = Command::new("sh").args(["-c", r#"echo written >> "$1""#, "sh"]).arg(file).spawn().unwrap();
        Self(child)
    }

    /// Waits until it stands still in the kernel.
    fn is_held(&mut self) {
        let stat = format!("/proc/{}/stat", self.0.id());
        until("the writer is held", || {
            assert!(self.0.try_wait().unwrap().is_none(), "the writer has written");
            std::fs::read_to_string(&stat).unwrap().rsplit(") ").next().unwrap().starts_with('D')
        });
    }

    fn has_written(mut self) {
        until("the writer has written", || self.0.try_wait().unwrap().is_some_and(|status| status.success()));
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn what_is_frozen_takes_no_writes_until_it_is_thawed() {
    with_file_system("inside_freeze_and_thaw");
}

#[test]
#[ignore = "needs a file system: what_is_frozen_takes_no_writes_until_it_is_thawed"]
fn inside_freeze_and_thaw() {
    let freezer = freezer();
    let frozen = freezer.frozen();
    let data = freezer.freeze(&request(60_000)).unwrap();
    assert_eq!((&data["frozen"][0], &data["timeout_ms"]), (&mount().to_str().unwrap().into(), &60_000.into()));
    assert!(frozen.load(Ordering::Acquire));
    let mut writer = Writer::start(&mount());
    writer.is_held();
    let second = freezer.freeze(&request(60_000)).unwrap_err();
    assert_eq!(second.code, ErrorCode::CommandFailed);
    writer.is_held();
    let data = freezer.thaw().unwrap();
    assert_eq!(data["thawed"].as_array().unwrap().len(), 1);
    assert!(!frozen.load(Ordering::Acquire));
    writer.has_written();
    assert_eq!(freezer.thaw().unwrap()["thawed"].as_array().unwrap().len(), 0, "once more does nothing");
    freezer.freeze(&request(60_000)).expect("and again");
    freezer.thaw().unwrap();
}

#[test]
fn a_program_that_the_kernel_holds_is_given_up() {
    with_file_system("inside_held_program");
}

#[test]
#[ignore = "needs a file system: a_program_that_the_kernel_holds_is_given_up"]
fn inside_held_program() {
    let freezer = freezer();
    freezer.freeze(&request(120_000)).unwrap();
    let file = mount().join("held");
    let write = Program::new(
        ["sh", "-c", r#"echo x > "$1""#, "sh"]
            .map(std::ffi::OsString::from)
            .into_iter()
            .chain([file.clone().into_os_string()]),
    );
    let write = write.time(Duration::from_millis(200)).grace(Duration::from_millis(200));
    let error = write.run(&["/bin".into()], &Cancel::new().unwrap()).unwrap_err();
    assert!(matches!(error, RunError::Unkillable(_)), "{error}");
    freezer.thaw().unwrap();
    assert!(!file.exists() || std::fs::read(&file).unwrap().is_empty(), "it was killed before it wrote");
}

#[test]
fn the_agent_keeps_the_deadline() {
    with_file_system("inside_deadline");
}

#[test]
#[ignore = "needs a file system: the_agent_keeps_the_deadline"]
fn inside_deadline() {
    let freezer = freezer();
    freezer.freeze(&request(500)).unwrap();
    let writer = Writer::start(&mount());
    writer.has_written();
    let frozen = freezer.frozen();
    until("the flag is down", || !frozen.load(Ordering::Acquire));
    let error = freezer.thaw().unwrap_err();
    assert_eq!(error.code, ErrorCode::CommandTimeout, "the host must learn of it");
    freezer.thaw().expect("once");
    // A watcher of the one before leaves this one alone.
    freezer.freeze(&request(60_000)).unwrap();
    let mut writer = Writer::start(&mount());
    writer.is_held();
    freezer.thaw().unwrap();
    writer.has_written();
}

#[test]
fn an_agent_that_stops_thaws() {
    with_file_system("inside_drop");
}

#[test]
#[ignore = "needs a file system: an_agent_that_stops_thaws"]
fn inside_drop() {
    let freezer = freezer();
    freezer.freeze(&request(60_000)).unwrap();
    let mut writer = Writer::start(&mount());
    writer.is_held();
    drop(freezer);
    writer.has_written();
}

#[test]
fn a_thaw_overtakes_a_freeze() {
    with_file_system("inside_overtaken");
}

#[test]
#[ignore = "needs a file system: a_thaw_overtakes_a_freeze"]
fn inside_overtaken() {
    let freezer = Arc::new(freezer());
    for _ in 0..50 {
        let other = Arc::clone(&freezer);
        let thread = std::thread::spawn(move || other.freeze(&request(60_000)));
        // At whatever point this comes, nothing is frozen after both but what the freeze says is.
        let _ = freezer.thaw();
        let frozen = thread.join().unwrap();
        if let Err(error) = &frozen {
            assert_eq!(error.code, ErrorCode::Cancelled, "{error}");
        }
        assert_eq!(freezer.thaw().unwrap()["thawed"].as_array().unwrap().len(), usize::from(frozen.is_ok()));
        Writer::start(&mount()).has_written();
    }
}

#[test]
fn the_guest_thaws_when_the_agent_is_killed() {
    with_file_system("inside_kill");
}

#[test]
#[ignore = "needs a file system: the_guest_thaws_when_the_agent_is_killed"]
fn inside_kill() {
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(agent.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("frozen")), "the holder has not frozen");
    let mut writer = Writer::start(&mount());
    writer.is_held();
    // Whoever ends all that belongs to the agent (systemd does) sends this to its guard too, which lets it pass.
    let guards = children(agent.id());
    assert_eq!(guards.len(), 1, "{guards:?}");
    let guard = rustix::process::Pid::from_raw(guards[0]).unwrap();
    rustix::process::kill_process(guard, rustix::process::Signal::TERM).unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    writer.has_written();
}

/// What any thread of a process has started.
fn children(pid: u32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect()
}

#[test]
#[ignore = "is killed: the_guest_thaws_when_the_agent_is_killed"]
fn holder() {
    let freezer = freezer();
    freezer.freeze(&request(300_000)).unwrap();
    println!("\nfrozen");
    loop {
        std::thread::park();
    }
}

#[test]
fn without_a_guard_nothing_is_frozen() {
    with_file_system("inside_no_guard");
}

#[test]
#[ignore = "needs a file system: without_a_guard_nothing_is_frozen"]
fn inside_no_guard() {
    for guard in ["/nonexistent", "/bin/true"] {
        let freezer = Freezer::new(System::default(), guard.into());
        assert_eq!(freezer.freeze(&request(60_000)).unwrap_err().code, ErrorCode::CommandFailed);
        Writer::start(&mount()).has_written();
    }
}

#[test]
fn what_cannot_be_frozen_says_why() {
    let freezer = freezer();
    let freeze = |timeout_ms, path: &str| {
        freezer.freeze(&Freeze { id: "1".to_owned(), timeout_ms, paths: vec![path.to_owned()] }).unwrap_err()
    };
    assert!(freeze(0, "/").message.starts_with("timeout_ms: 0; permitted: 1 to 300000"));
    assert_eq!(freeze(1000, "/no/such/mount").code, ErrorCode::NotFound);
    let error = freeze(1000, "/proc");
    assert!(error.message.contains("/proc: "), "{error}");
    assert!(!freezer.frozen().load(Ordering::Acquire));
}
