//! Finding processes again: real ones, and forged identities.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use std::time::Duration;

use roost_host::process::{ExitStatus, Process, ProcessError, ProcessIdent, Signal};
use support::{DEADLINE, ident_of, number_taken, sh, wait_until};

fn sleeper() -> Process {
    sh("exec sleep 1000").spawn_gated().unwrap().release().unwrap()
}

#[test]
fn a_recorded_process_is_found_again() {
    let child = sleeper();
    assert_eq!(*child.ident(), ident_of(child.ident().pid));
    let record = serde_json::to_string(child.ident()).unwrap();
    let ident: ProcessIdent = serde_json::from_str(&record).unwrap();
    let found = Process::open(&ident).unwrap().expect("it runs");
    assert!(found.is_alive().unwrap());
    assert!(found.kill().unwrap());
    assert_eq!(child.reap_when_dead(), Some(ExitStatus::Signaled(9)));
}

#[test]
fn a_reused_number_is_another_process() {
    let child = sleeper();
    let mut ident = child.ident().clone();
    ident.start_time_ticks -= 1;
    assert!(Process::open(&ident).unwrap().is_none(), "another start time");
    let mut ident = child.ident().clone();
    ident.boot_id = "00000000-0000-0000-0000-000000000000".to_owned();
    assert!(Process::open(&ident).unwrap().is_none(), "another boot");
    child.kill().unwrap();
    child.reap_when_dead();
}

#[test]
fn a_zombie_and_a_gone_process_are_none() {
    let child = sleeper();
    let ident = child.ident().clone();
    child.kill().unwrap();
    wait_until("it is a zombie", || !child.is_alive().unwrap());
    assert!(number_taken(ident.pid), "nobody has collected it yet");
    assert!(Process::open(&ident).unwrap().is_none(), "zombie");
    assert_eq!(child.reap().unwrap(), Some(ExitStatus::Signaled(9)));
    assert!(Process::open(&ident).unwrap().is_none(), "gone");
    assert_eq!(child.reap().unwrap(), None, "collected once");
    assert!(!child.kill().unwrap(), "a signal to what is gone says so");
    assert!(!child.is_alive().unwrap());
}

#[test]
fn a_thread_is_not_a_process() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        sender.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
        stopped.recv().unwrap_err();
    });
    let tid = u32::try_from(receiver.recv().unwrap()).unwrap();
    assert!(Process::open(&ident_of(tid)).unwrap().is_none());
    drop(stop);
    thread.join().unwrap();
}

#[test]
fn numbers_that_no_process_has() {
    let at = |pid| Process::open(&ProcessIdent { pid, ..ProcessIdent::current().unwrap() });
    assert!(matches!(at(0), Err(ProcessError::BadPid { pid: 0 })));
    assert!(matches!(at(u32::MAX), Err(ProcessError::BadPid { pid: u32::MAX })));
    assert!(at(i32::MAX.unsigned_abs()).unwrap().is_none());
    assert!(at(std::process::id()).unwrap().is_some());
}

#[test]
fn stopped_is_alive() {
    let child = sleeper();
    assert!(child.signal(Signal::STOP).unwrap());
    let stat = format!("/proc/{}/stat", child.ident().pid);
    wait_until("it is stopped", || std::fs::read_to_string(&stat).unwrap().contains(") T "));
    assert!(child.is_alive().unwrap());
    assert!(Process::open(child.ident()).unwrap().is_some());
    child.kill().unwrap();
    child.reap_when_dead();
}

#[test]
fn names_cannot_forge_fields() {
    // The name of the program is part of the line that is parsed.
    let dir = tempfile::tempdir().unwrap();
    let evil = dir.path().join("x) R 1 1 1 1");
    std::fs::copy(support::program("sleep"), &evil).unwrap();
    let child = roost_host::launch::Launch::new(&evil).arg("1000").spawn_gated().unwrap().release().unwrap();
    assert!(Process::open(child.ident()).unwrap().is_some());
    assert_eq!(*child.ident(), ident_of(child.ident().pid));
    child.kill().unwrap();
    child.reap_when_dead();
}

#[tokio::test]
async fn waiting_for_the_end() {
    let child = sleeper();
    assert!(!child.wait_gone(Duration::from_millis(20)).await.unwrap(), "it still runs");
    let (one, other) = (child.clone(), child.clone());
    let waits = tokio::spawn(async move { tokio::join!(one.wait_gone(DEADLINE), other.wait_gone(DEADLINE)) });
    child.kill().unwrap();
    let (one, other) = waits.await.unwrap();
    assert!(one.unwrap() && other.unwrap());
    assert!(child.wait_gone(Duration::ZERO).await.unwrap(), "no wait for what is gone");
    assert_eq!(child.reap().unwrap(), Some(ExitStatus::Signaled(9)));
}

trait ReapWhenDead {
    fn reap_when_dead(&self) -> Option<ExitStatus>;
}

impl ReapWhenDead for Process {
    fn reap_when_dead(&self) -> Option<ExitStatus> {
        wait_until("it ends", || !self.is_alive().unwrap());
        self.reap().unwrap()
    }
}
