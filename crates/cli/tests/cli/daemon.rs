//! `roost daemon`.

use std::path::Path;

use roost_testkit::TestDaemon;

use crate::support::Roost;

/// Stops the daemon also when the test fails.
struct Stopped<'a>(&'a Roost);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.run(&["daemon", "stop"]);
    }
}

fn has_roostd() -> bool {
    let beside = Path::new(env!("CARGO_BIN_EXE_roost")).with_file_name("roostd");
    assert!(beside.exists(), "{} is missing: cargo build --workspace --bins", beside.display());
    true
}

#[test]
fn the_daemon_is_started_looked_at_and_stopped() {
    assert!(has_roostd());
    let dir = tempfile::Builder::new().prefix("rt").tempdir().unwrap();
    let roost = Roost::new(dir.path());
    let stopped = Stopped(&roost);

    let status = roost.run(&["daemon", "status"]);
    assert_eq!((status.code, status.out.contains("not running")), (3, true), "{status:?}");
    assert_eq!(roost.run(&["daemon", "status", "-o", "json"]).code, 3);
    assert!(roost.ok(&["daemon", "stop"]).contains("no daemon runs"));

    let started = roost.ok(&["daemon", "start", "--", "--backend", "sim", "--set", "sim.hosted=false"]);
    assert!(started.contains("the daemon runs (pid "), "{started}");
    let status = roost.json(&["daemon", "status"]);
    assert_eq!((status["running"].as_bool(), status["vms"]["running"].as_u64()), (Some(true), Some(0)));
    let pid = status["pid"].as_i64().unwrap();
    assert!(started.contains(&pid.to_string()), "{started}");
    assert_eq!(status["version"]["defaultBackend"], "sim");
    let shown = roost.ok(&["daemon", "status"]);
    assert!(shown.contains(&format!("running, pid {pid}")) && shown.contains("sim (default)"), "{shown}");

    let again = roost.ok(&["daemon", "start"]);
    assert!(again.contains("runs already") && again.contains(&pid.to_string()), "{again}");

    let told = roost.ok(&["daemon", "stop"]);
    assert!(told.contains("guests go on"), "{told}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists() || zombie(pid), "{pid} still runs");
    roost.fails(3, &["vm", "list"]);
    drop(stopped);
}

#[test]
fn a_daemon_that_does_not_start_is_quoted() {
    assert!(has_roostd());
    let dir = tempfile::Builder::new().prefix("rt").tempdir().unwrap();
    let roost = Roost::new(dir.path());
    let said = roost.fails(1, &["daemon", "start", "--", "--set", "bakend=sim"]);
    assert!(said.contains("unknown key \"bakend\"; did you mean \"backend\"?"), "{said}");
    assert!(said.contains("did not start (exit status: 2)") && said.contains("daemon.log"), "{said}");
}

/// The lock's file outlives its daemon, and its number may belong to somebody else by then.
#[test]
fn a_number_in_an_old_lock_is_not_signalled() {
    let dir = tempfile::tempdir().unwrap();
    let roost = Roost::new(dir.path());
    std::fs::write(dir.path().join("lock"), format!("{}\n", std::process::id())).unwrap();
    assert!(roost.ok(&["daemon", "stop"]).contains("no daemon runs"));
    for text in ["", "0\n", "-1\n", "1\n", "no number\n", "99999999999\n"] {
        std::fs::write(dir.path().join("lock"), text).unwrap();
        assert!(roost.ok(&["daemon", "stop"]).contains("no daemon runs"), "{text:?}");
    }
}

#[test]
fn another_daemon_is_not_signalled_because_of_an_old_lock() {
    let other = TestDaemon::start(&["backend=sim", "sim.hosted=false"]);
    let pid = Roost::new(&other.state_dir()).json(&["daemon", "status"])["pid"].as_i64().unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("lock"), format!("{pid}\n")).unwrap();
    assert!(Roost::new(dir.path()).ok(&["daemon", "stop"]).contains("no daemon runs"));
    Roost::new(&other.state_dir()).ok(&["daemon", "status"]);
}

/// Nobody but us reaps it where the machine's first process does not.
fn zombie(pid: i64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}
