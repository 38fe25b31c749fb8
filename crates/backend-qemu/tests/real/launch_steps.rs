//! The launch sequence, interrupted at every line: what is left is found by the record, and goes.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use roost_backend::{Backend, Journal, JournalError, MemoryJournal};
use roost_model::{Machine, Resource, ResourceKind};

use crate::support::{DEADLINE, Host, micro, new_launch, wait_until};

/// What the journal does at its `at`th record.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mishap {
    /// It cannot be written.
    Fails,
    /// It is written, and the answer never comes.
    Written,
    /// It is not written, and no answer comes.
    Lost,
}

struct Flaky<'a> {
    inner: &'a MemoryJournal,
    mishap: Mishap,
    at: usize,
    records: Mutex<usize>,
}

impl<'a> Flaky<'a> {
    fn new(inner: &'a MemoryJournal, at: usize, mishap: Mishap) -> Self {
        Self { inner, mishap, at, records: Mutex::new(0) }
    }

    fn records(&self) -> usize {
        *self.records.lock().unwrap()
    }
}

#[async_trait]
impl Journal for Flaky<'_> {
    async fn record(&self, resource: Resource) -> Result<(), JournalError> {
        let number = {
            let mut records = self.records.lock().unwrap();
            *records += 1;
            *records
        };
        if number == self.at {
            match self.mishap {
                Mishap::Fails => return Err(JournalError("the disk is full".to_owned())),
                Mishap::Written => {
                    self.inner.record(resource).await?;
                    return std::future::pending().await;
                }
                Mishap::Lost => return std::future::pending().await,
            }
        }
        self.inner.record(resource).await
    }

    async fn forget(&self, kind: ResourceKind, key: &str) -> Result<(), JournalError> {
        if self.mishap == Mishap::Fails && self.records() >= self.at {
            return Err(JournalError("the disk is full".to_owned()));
        }
        self.inner.forget(kind, key).await
    }
}

/// How many durable writes a launch is.
#[tokio::test(flavor = "multi_thread")]
async fn a_launch_is_two_records() {
    let mut host = Host::new();
    let vm = host.create(micro()).await;
    let journal = Flaky::new(host.journal(&vm), usize::MAX, Mishap::Lost);
    host.backend.boot(&vm, new_launch(), &journal).await.unwrap();
    assert_eq!(journal.records(), 2);
    host.delete(&vm).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_fails_or_hangs_leaves_nothing_that_runs() {
    for at in [1, 2] {
        for mishap in [Mishap::Fails, Mishap::Written, Mishap::Lost] {
            for forget in ["clear", "delete", "adopt and clear"] {
                let mut host = Host::new();
                let vm = host.create(micro()).await;
                let launch = new_launch();
                let journal = Flaky::new(host.journal(&vm), at, mishap);
                let boot = host.backend.boot(&vm, launch, &journal);
                match mishap {
                    Mishap::Fails => {
                        let error = boot.await.unwrap_err();
                        assert_eq!((error.reason, error.is_transient()), ("STORE_UNAVAILABLE", true));
                    }
                    Mishap::Written | Mishap::Lost => {
                        tokio::select! {
                            _ = boot => panic!("it hangs at record {at}"),
                            () = wait_until("the record is reached", || journal.records() == at) => {}
                        }
                    }
                }
                match forget {
                    "clear" => host.clear(&vm).await,
                    "delete" => host.delete(&vm).await,
                    _ => {
                        host.restart();
                        let report = host.backend.adopt(vec![host.adoptee(&vm, None)]).await.remove(0).unwrap();
                        assert!(!report.machine.is_up(), "{report:?}");
                        host.clear(&vm).await;
                    }
                }
                host.assert_nothing_runs();
                host.no_more_events();
                // And it can be started afterwards.
                if forget != "delete" {
                    let (_launch, _serial) = host.boot(&vm).await;
                    host.delete(&vm).await;
                }
                host.assert_nothing_left();
            }
        }
    }
}

/// Dropped at moments that move across the whole launch.
#[tokio::test(flavor = "multi_thread")]
async fn a_launch_dropped_at_any_moment_is_cleared() {
    let mut host = Host::new();
    let vm = host.create(micro()).await;
    let mut dropped = 0;
    for turn in 0..30 {
        let boot = host.backend.boot(&vm, new_launch(), host.journal(&vm));
        match tokio::time::timeout(moment(turn), boot).await {
            Ok(booted) => drop(booted.unwrap()),
            Err(_dropped) => dropped += 1,
        }
        host.clear(&vm).await;
        host.assert_nothing_runs();
    }
    println!("dropped {dropped} times of 30");
    assert!(dropped > 5);
    host.delete(&vm).await;
    host.assert_nothing_left();
}

/// The daemon is a runtime of its own here, and its death the end of that: whatever was under way
/// in it is dropped, and the next one has the records only.
#[test]
fn a_daemon_that_dies_at_any_moment_of_a_launch_leaves_what_its_records_say() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let next = runtime();
    let mut host = next.block_on(async { Host::new() });
    let vm = next.block_on(host.create(micro()));
    let mut found = 0;
    for turn in 0..30 {
        let dying = runtime();
        let (launch, outcome) = dying.block_on(async {
            let (backend, _events) = host.another_daemon();
            let launch = new_launch();
            let boot = backend.boot(&vm, launch, host.journal(&vm));
            (launch, tokio::time::timeout(moment(turn), boot).await)
        });
        drop(dying);
        next.block_on(async {
            host.restart();
            // The engine records the launch when it is up.
            let up = outcome.is_ok().then_some(launch);
            let report = host.backend.adopt(vec![host.adoptee(&vm, up)]).await.remove(0).unwrap();
            if report.machine == Machine::Running {
                assert_eq!(report.launch, Some(launch));
                found += 1;
            }
            assert!(up.is_none() || report.machine == Machine::Running, "{report:?}");
            host.clear(&vm).await;
            host.assert_nothing_runs();
        });
    }
    println!("found running {found} times of 30");
    assert!(found > 0);
    next.block_on(host.delete(&vm));
    host.assert_nothing_left();
}

/// Moments that move across a launch, which takes a tenth of a second.
fn moment(turn: u64) -> Duration {
    Duration::from_micros(turn * turn * 180)
}

/// Between the drop and the clearing, nobody says that there is nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_launch_that_runs_is_seen() {
    let mut host = Host::with(|config| config.limits.launch = DEADLINE);
    let vm = host.create(micro()).await;
    let mut seen = 0;
    for turn in 0..30u64 {
        let boot = host.backend.boot(&vm, new_launch(), host.journal(&vm));
        let _ = tokio::time::timeout(Duration::from_millis(turn), boot).await;
        let runs = crate::support::processes_in(host.dir.path()).iter().any(|p| p.contains("-uuid"));
        let info = host.backend.info(vm.id).await.unwrap();
        if runs {
            seen += 1;
            assert!(info.report.machine == Machine::Running, "{info:?}");
            let again = host.backend.boot(&vm, new_launch(), host.journal(&vm)).await.unwrap_err();
            assert_eq!(again.reason, "WRONG_STATE");
        }
        host.clear(&vm).await;
        host.assert_nothing_runs();
    }
    assert!(seen > 0, "some launches got as far as QEMU");
    host.delete(&vm).await;
}
