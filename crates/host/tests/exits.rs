//! Exits of real processes, none lost.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod support;

use std::collections::BTreeMap;

use roost_host::exits::{Exit, ExitStatus, ExitWatcher, WatchError};
use roost_host::process::Process;
use support::{DEADLINE, ident_of, number_taken, output, sh, wait_until};
use tokio::sync::mpsc::UnboundedReceiver;

async fn next(exits: &mut UnboundedReceiver<Exit>) -> Exit {
    tokio::time::timeout(DEADLINE, exits.recv()).await.expect("an exit within the deadline").expect("it runs")
}

#[tokio::test]
async fn two_hundred_quick_children() {
    let (watcher, mut exits) = ExitWatcher::start().unwrap();
    let mut expected = BTreeMap::new();
    let mut numbers = Vec::new();
    for token in 0..200u64 {
        let code = i32::try_from(token % 7).unwrap();
        let (script, status) = match token % 3 {
            0 => (format!("exit {code}"), ExitStatus::Exited(code)),
            1 => ("kill -TERM $$".to_owned(), ExitStatus::Signaled(15)),
            _ => ("kill -KILL $$".to_owned(), ExitStatus::Signaled(9)),
        };
        let child = sh(&script).spawn_gated().unwrap().release().unwrap();
        if token % 4 == 0 {
            // Watched only after its end.
            wait_until("it ends", || !child.is_alive().unwrap());
        }
        watcher.watch(&child, token).unwrap();
        numbers.push(child.ident().pid);
        expected.insert(token, Some(status));
    }
    let mut seen = BTreeMap::new();
    for _ in 0..200 {
        let Exit { token, status } = next(&mut exits).await;
        assert!(seen.insert(token, status).is_none(), "token {token} twice");
    }
    assert_eq!(seen, expected);
    assert!(watcher.is_empty());
    assert!(exits.try_recv().is_err());
    assert!(numbers.into_iter().all(|pid| !number_taken(pid)), "every child is collected");
}

#[tokio::test]
async fn a_process_that_is_not_our_child() {
    let (watcher, mut exits) = ExitWatcher::start().unwrap();
    // The shell ends, and its child is somebody else's from then on.
    let pid = output(sh("sleep 1000 >/dev/null & echo $!")).trim().parse().unwrap();
    let orphan = Process::open(&ident_of(pid)).unwrap().expect("it runs");
    watcher.watch(&orphan, 1).unwrap();
    orphan.kill().unwrap();
    assert_eq!(next(&mut exits).await, Exit { token: 1, status: None });
}

#[tokio::test]
async fn a_gated_child_is_watched_across_its_release() {
    let (watcher, mut exits) = ExitWatcher::start().unwrap();
    let gated = sh("exit 3").spawn_gated().unwrap();
    watcher.watch(gated.process(), 8).unwrap();
    assert!(exits.try_recv().is_err());
    gated.release().unwrap();
    assert_eq!(next(&mut exits).await, Exit { token: 8, status: Some(ExitStatus::Exited(3)) });
}

#[tokio::test]
async fn unwatched_processes_are_not_reported() {
    let (watcher, mut exits) = ExitWatcher::start().unwrap();
    let first = sh("exec sleep 1000").spawn_gated().unwrap().release().unwrap();
    let second = sh("exec sleep 1000").spawn_gated().unwrap().release().unwrap();
    watcher.watch(&first, 1).unwrap();
    watcher.watch(&second, 2).unwrap();
    assert!(matches!(watcher.watch(&second, 1), Err(WatchError::TokenInUse { token: 1 })));
    assert!(matches!(watcher.watch(&second, 3), Err(WatchError::Call { call: "epoll_ctl", .. })), "same handle");
    watcher.unwatch(1);
    watcher.unwatch(1);
    first.kill().unwrap();
    wait_until("it ends", || !first.is_alive().unwrap());
    second.kill().unwrap();
    assert_eq!(next(&mut exits).await.token, 2);
    assert!(exits.try_recv().is_err());
    // What is not watched is left to its owner; and the token is free again.
    assert_eq!(first.reap().unwrap(), Some(ExitStatus::Signaled(9)));
    watcher.watch(&first, 1).unwrap();
    assert_eq!(next(&mut exits).await, Exit { token: 1, status: None });
}

#[tokio::test]
async fn dropping_the_watcher_ends_the_stream_and_nothing_else() {
    let (watcher, mut exits) = ExitWatcher::start().unwrap();
    let child = sh("exec sleep 1000").spawn_gated().unwrap().release().unwrap();
    watcher.watch(&child, 1).unwrap();
    drop(watcher);
    assert_eq!(tokio::time::timeout(DEADLINE, exits.recv()).await.unwrap(), None);
    assert!(child.is_alive().unwrap());
    child.kill().unwrap();
    support::reap(&child);
}
