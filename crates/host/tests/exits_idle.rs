//! Ten thousand watched processes cost nothing while nothing happens. A binary of its own: it counts
//! the wake-ups of a thread that it finds by name, and uses most descriptors that a process may have.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use std::time::Instant;

use roost_host::exits::{Exit, ExitStatus, ExitWatcher};
use roost_host::process::{Process, ProcessIdent};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{DEADLINE, sh};

#[tokio::test]
async fn ten_thousand_idle() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let permitted = limit.maximum.unwrap_or(u64::MAX);
    let count = 10_000.min(permitted.saturating_sub(100));
    if count < 10_000 {
        eprintln!("only {count} watches: the hard limit of open files is {permitted}");
    }

    let (watcher, mut exits) = ExitWatcher::start().unwrap();
    let child = sh("exec sleep 1000").spawn_gated().unwrap().release().unwrap();
    watcher.watch(&child, u64::MAX).unwrap();
    let own = ProcessIdent::current().unwrap();
    for token in 0..count {
        // Handles of their own on a process that does not end: what the set holds for 10,000 VMs.
        let process = Process::open(&own).unwrap().expect("it is us");
        watcher.watch(&process, token).unwrap();
    }
    assert_eq!(watcher.len() as u64, count + 1);
    let wakeups = thread_wakeups();
    assert!(wakeups <= 3, "{wakeups} wake-ups while nothing happened");

    let killed = Instant::now();
    child.kill().unwrap();
    let exit = tokio::time::timeout(DEADLINE, exits.recv()).await.unwrap().unwrap();
    println!("exit seen after {:?} among {count}", killed.elapsed());
    assert_eq!(exit, Exit { token: u64::MAX, status: Some(ExitStatus::Signaled(9)) });
    assert!(thread_wakeups() <= wakeups + 3, "one exit, one wake-up");
}

/// How often the watcher's thread went to sleep.
fn thread_wakeups() -> u64 {
    let named = |task: &std::path::Path| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "roost-exits")
    };
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let task = tasks.map(|task| task.unwrap().path()).find(|task| named(task)).expect("the thread runs");
    let status = std::fs::read_to_string(task.join("status")).unwrap();
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    count.trim().parse().unwrap()
}
