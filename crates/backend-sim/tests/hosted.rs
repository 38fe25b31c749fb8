//! The host process: it outlives backends, and backends outlive it.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time and have a runtime")]

mod support;

use std::process::Command;
use std::time::Instant;

use roost_backend::conformance::GuestKind;
use roost_backend::{Adoptee, Backend, Definition, EventReceiver, Happened, MemoryJournal, events};
use roost_backend_sim::{Control, Fault, Faults, HostControl, MAX_FRAME_BYTES, Method, Point, SimBackend, SimConfig};
use roost_model::state::Machine;
use roost_model::{ExitCause, LaunchId};
use rustix::process::{Pid, Signal, kill_process};
use support::{DEADLINE, HostProcess, binary, definition, launch};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

async fn running(sim: &SimBackend, journal: &MemoryJournal, launch: LaunchId) -> Definition {
    let vm = definition(GuestKind::Plain);
    sim.create(&vm, journal).await.unwrap();
    sim.boot(&vm, launch, journal).await.unwrap();
    vm
}

async fn next_end(events: &mut EventReceiver) -> (roost_model::VmId, LaunchId, Happened) {
    let event = timeout(DEADLINE, events.recv()).await.unwrap().unwrap();
    (event.vm, event.launch, event.happened)
}

#[tokio::test]
async fn machines_die_with_their_host_and_that_is_told_once() {
    let mut host = HostProcess::start(&[]);
    let (tx, mut told) = events();
    let sim = SimBackend::hosted(host.socket(), SimConfig::default(), tx);
    let (journal, other) = (MemoryJournal::default(), MemoryJournal::default());
    let vm = running(&sim, &journal, launch(1)).await;
    let ended = running(&sim, &other, launch(2)).await;
    HostControl::connect(&host.socket()).await.unwrap().control(ended.id, Control::PowerOff).await.unwrap();
    assert_eq!(next_end(&mut told).await, (ended.id, launch(2), Happened::Ended(ExitCause::PowerOff)));

    host.kill();
    assert_eq!(next_end(&mut told).await, (vm.id, launch(1), Happened::Ended(ExitCause::Killed)));
    let refused = timeout(DEADLINE, sim.ping()).await.unwrap().unwrap_err();
    assert!(refused.is_transient() && refused.reason == "SIMHOST_UNREACHABLE", "{refused:?}");

    host.restart();
    // The new host has what was defined, and knows that the machine was killed.
    let info = timeout(DEADLINE, sim.info(vm.id)).await.unwrap().unwrap();
    assert_eq!(info.report.machine, Machine::Ended { cause: ExitCause::Killed, lingering: false });
    assert_eq!(info.report.launch, Some(launch(1)));
    sim.clear(vm.id, &journal.resources(), &journal).await.unwrap();
    sim.boot(&vm, launch(3), &journal).await.unwrap();
    assert_eq!(sim.info(vm.id).await.unwrap().report.machine, Machine::Running);
    drop(sim);
    assert_eq!(timeout(DEADLINE, told.recv()).await.unwrap(), None, "nothing else was told");
}

#[tokio::test]
async fn a_machine_at_its_gate_vanishes_with_the_backend_that_dies() {
    let host = HostProcess::start(&[]);
    let mut control = HostControl::connect(&host.socket()).await.unwrap();
    let faults = Faults::default();
    let (journal, vm) = (MemoryJournal::default(), definition(GuestKind::Plain));
    let (tx, _told) = events();
    let config = SimConfig { faults: faults.clone(), ..SimConfig::default() };
    let sim = SimBackend::hosted(host.socket(), config, tx);
    sim.create(&vm, &journal).await.unwrap();
    let hang = faults.inject(Point::new(Method::Boot).step(2), Fault::Hang);
    let boot = sim.boot(&vm, launch(1), &journal);
    tokio::select! {
        booted = boot => panic!("it hangs, and came to {booted:?}"),
        () = hang.struck() => {}
    }
    // Dropped while it hung: the gate has closed, in order with what comes after it.
    assert_eq!(sim.info(vm.id).await.unwrap().report.machine, Machine::Defined);
    assert_eq!(control.leftovers(vm.id).await.unwrap().len(), 1);

    let (died, mut dead) = tokio::sync::mpsc::unbounded_channel();
    faults.on_death(move |death| died.send(death).unwrap());
    faults.inject(Point::new(Method::Boot).step(3), Fault::Die);
    let boot = sim.boot(&vm, launch(2), &journal);
    tokio::select! {
        booted = boot => panic!("the dead answer {booted:?}"),
        death = dead.recv() => assert_eq!(death.unwrap().step, 3),
    }
    drop(sim);

    let (tx, _told) = events();
    let sim = SimBackend::hosted(host.socket(), SimConfig::default(), tx);
    let adoptee = Adoptee { definition: vm.clone(), launch: Some(launch(2)), resources: journal.resources() };
    let machine = sim.adopt(vec![adoptee]).await.remove(0).unwrap().machine;
    assert_eq!(machine, Machine::Ended { cause: ExitCause::Killed, lingering: false });
    sim.delete(vm.id, &journal.resources(), &journal).await.unwrap();
    assert_eq!(control.leftovers(vm.id).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_host_is_started_where_there_is_none_and_outlives_its_starter() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("host.sock");
    let config = SimConfig { host_binary: Some(binary().to_owned()), ..SimConfig::default() };
    let journal = MemoryJournal::default();
    let (tx, _told) = events();
    let sim = SimBackend::hosted(&socket, config.clone(), tx);
    let vm = running(&sim, &journal, launch(1)).await;
    let pid = UnixStream::connect(&socket).await.unwrap().peer_cred().unwrap().pid().unwrap();
    let pid = Pid::from_raw(pid).unwrap();
    assert_eq!(rustix::process::getsid(Some(pid)).unwrap(), pid, "it leads a session of its own");
    drop(sim);

    let (tx, mut told) = events();
    let sim = SimBackend::hosted(&socket, config, tx);
    let adoptee = Adoptee { definition: vm.clone(), launch: Some(launch(1)), resources: journal.resources() };
    let report = sim.adopt(vec![adoptee]).await.remove(0).unwrap();
    assert_eq!(report.machine, Machine::Running);

    // Its successor is started by itself.
    kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(next_end(&mut told).await, (vm.id, launch(1), Happened::Ended(ExitCause::Killed)));
    timeout(DEADLINE, sim.ping()).await.unwrap().unwrap();
    let successor = UnixStream::connect(&socket).await.unwrap().peer_cred().unwrap().pid().unwrap();
    assert_ne!(Some(pid), Pid::from_raw(successor));
    sim.delete(vm.id, &journal.resources(), &journal).await.unwrap();
    drop(sim);
    kill_process(Pid::from_raw(successor).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test]
async fn ten_thousand_machines_are_adopted_at_once() {
    const MACHINES: usize = 10_000;
    let host = HostProcess::start(&[]);
    let (tx, _told) = events();
    let sim = SimBackend::hosted(host.socket(), SimConfig::default(), tx);
    let started = (0..MACHINES).map(async |_| {
        let journal = MemoryJournal::default();
        let vm = running(&sim, &journal, launch(1)).await;
        Adoptee { definition: vm, launch: Some(launch(1)), resources: journal.resources() }
    });
    let begun = Instant::now();
    let adoptees: Vec<Adoptee> = futures::future::join_all(started).await;
    eprintln!("{MACHINES} machines booted in {:?}", begun.elapsed());
    let last = adoptees[MACHINES - 1].definition.id;
    drop(sim);

    let (tx, mut told) = events();
    let sim = SimBackend::hosted(host.socket(), SimConfig::default(), tx);
    let begun = Instant::now();
    let reports = timeout(DEADLINE, sim.adopt(adoptees)).await.unwrap();
    eprintln!("{MACHINES} machines adopted in {:?}", begun.elapsed());
    assert_eq!(reports.len(), MACHINES);
    assert!(reports.iter().all(|r| r.as_ref().unwrap().machine == Machine::Running));
    let begun = Instant::now();
    HostControl::connect(&host.socket()).await.unwrap().control(last, Control::Kill).await.unwrap();
    assert_eq!(next_end(&mut told).await.0, last);
    eprintln!("an exit among {MACHINES} was told after {:?}", begun.elapsed());
}

#[tokio::test]
async fn an_idle_host_ends_and_takes_its_socket_along() {
    let mut host = HostProcess::start(&["--exit-when-idle", "1"]);
    let (tx, _told) = events();
    let sim = SimBackend::hosted(host.socket(), SimConfig::default(), tx);
    let journal = MemoryJournal::default();
    let vm = running(&sim, &journal, launch(1)).await;
    sim.delete(vm.id, &journal.resources(), &journal).await.unwrap();
    drop(sim);
    let socket = host.socket();
    let ended = tokio::task::spawn_blocking(move || (host.wait(), host));
    let (status, _host) = timeout(DEADLINE, ended).await.unwrap().unwrap();
    assert!(status.success() && !socket.exists());
}

#[tokio::test]
async fn one_socket_has_one_host_and_ctl_acts_on_its_machines() {
    let host = HostProcess::start(&[]);
    let socket = host.socket();
    let second = Command::new(binary()).arg("--socket").arg(&socket).output().unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("is served by another"), "{second:?}");

    let (tx, mut told) = events();
    let sim = SimBackend::hosted(&socket, SimConfig::default(), tx);
    let ctl = |action: &str, vm: &str| {
        Command::new(binary()).args(["ctl", "--socket"]).arg(&socket).args([action, vm]).output().unwrap()
    };
    for (n, action, cause) in
        [(1, "power-off", ExitCause::PowerOff), (2, "panic", ExitCause::Panic), (3, "kill", ExitCause::Killed)]
    {
        let vm = running(&sim, &MemoryJournal::default(), launch(n)).await;
        assert!(ctl("reset", &vm.id.to_string()).status.success());
        assert_eq!(next_end(&mut told).await, (vm.id, launch(n), Happened::Reset));
        assert!(ctl(action, &vm.id.to_string()).status.success());
        assert_eq!(next_end(&mut told).await, (vm.id, launch(n), Happened::Ended(cause)));
        let again = ctl(action, &vm.id.uuid().to_string());
        assert!(String::from_utf8_lossy(&again.stderr).contains("has no machine"), "{again:?}");
    }
    let wrong = ctl("explode", "x");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("power-off"), "{wrong:?}");
}

#[tokio::test]
async fn a_client_that_sends_rubbish_is_hung_up_on_and_nobody_else() {
    let host = HostProcess::start(&[]);
    let (tx, _told) = events();
    let sim = SimBackend::hosted(host.socket(), SimConfig::default(), tx);
    sim.ping().await.unwrap();
    let hello = b"{\"hello\":{\"version\":1,\"report_asked_ends\":false}}\n".to_vec();
    let long = [hello.clone(), vec![b'x'; MAX_FRAME_BYTES + 2]].concat();
    let other_version = b"{\"hello\":{\"version\":2,\"report_asked_ends\":false}}\n".to_vec();
    let unknown = [hello.clone(), b"{\"ask\":{\"id\":1,\"request\":{\"do\":\"explode\"}}}\n".to_vec()].concat();
    for rubbish in [b"\n".to_vec(), other_version, long, unknown, [&hello[..], &hello[..]].concat()] {
        let mut stream = UnixStream::connect(host.socket()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let mut answer = Vec::new();
        // Written and read at once: the host may hang up before it has read all of it.
        let (_, ended) =
            timeout(DEADLINE, async { tokio::join!(write.write_all(&rubbish), read.read_to_end(&mut answer)) })
                .await
                .unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(ended.is_err() || answer.lines().count() <= 1, "{answer}");
    }
    sim.ping().await.unwrap();
}
