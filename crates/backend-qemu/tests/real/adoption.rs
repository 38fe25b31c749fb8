//! The daemon dies, and comes back.

use std::time::{Duration, Instant};

use roost_backend::{Backend, Event, Happened};
use roost_model::plan::Stop;
use roost_model::{ExitCause, Machine};
use rustix::process::Signal;

use crate::support::{Host, Serial, micro, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_running_machine_is_taken_up_as_if_nothing_had_been() {
    let mut host = Host::new();
    let (vm, launch, _serial) = host.running().await;
    let pid = host.pid(&vm).await;
    host.restart();
    let report = host.backend.adopt(vec![host.adoptee(&vm, Some(launch))]).await.remove(0).unwrap();
    assert_eq!((report.machine, report.launch), (Machine::Running, Some(launch)));
    assert_eq!(host.pid(&vm).await, pid);
    let info = host.backend.info(vm.id).await.unwrap();
    assert_eq!(info.details["accelerator"], "tcg: demanded by the configuration");
    assert!(info.metrics.unwrap().uptime_ms > 0);

    // Everything works, its own doings are events, and its serial line was kept.
    let mut serial = host.serial(&vm).await;
    serial.until("tick ");
    host.backend.pause(vm.id).await.unwrap();
    host.restart();
    let report = host.backend.adopt(vec![host.adoptee(&vm, Some(launch))]).await.remove(0).unwrap();
    assert_eq!(report.machine, Machine::Paused);
    let again = host.backend.adopt(vec![host.adoptee(&vm, Some(launch))]).await.remove(0).unwrap();
    assert_eq!(again, report, "twice is as good as once");
    host.backend.resume(vm.id).await.unwrap();
    serial.until("tick ");
    serial.send(b"r");
    assert_eq!(host.event().await, Event { vm: vm.id, launch, happened: Happened::Reset });
    serial.until("boot");
    serial.until("tick ");
    let cause = host.backend.shutdown(vm.id, Stop::Graceful(Duration::from_secs(30))).await.unwrap();
    assert_eq!(cause, ExitCause::PowerOff);
    host.ended(&vm, launch, cause).await;
    host.delete(&vm).await;
    host.assert_nothing_left();
}

/// No daemon runs while it happens.
#[tokio::test(flavor = "multi_thread")]
async fn ends_that_nobody_saw_are_told_apart() {
    enum End {
        Key(u8),
        Kill(Signal),
    }
    for (end, cause) in [
        (End::Key(b'q'), ExitCause::PowerOff),
        (End::Key(b'p'), ExitCause::Panic),
        (End::Kill(Signal::KILL), ExitCause::Killed),
    ] {
        let mut host = Host::new();
        let (vm, launch, mut serial) = host.running().await;
        let pid = host.pid(&vm).await;
        let process = host.dir.path().to_owned();
        // The old backend goes first. It is replaced by one that has adopted nothing.
        host.restart();
        match end {
            End::Key(key) => {
                serial.send(&[key]);
                // Its CPUs stand still: the timer that ticks four times a second is silent.
                let begun = Instant::now();
                while serial.during(Duration::from_secs(1)).contains("tick") {
                    assert!(begun.elapsed() < crate::support::DEADLINE);
                }
            }
            End::Kill(signal) => {
                rustix::process::kill_process(pid, signal).unwrap();
                wait_until("its processes are gone", || crate::support::processes_in(&process).is_empty()).await;
            }
        }
        let report = host.backend.adopt(vec![host.adoptee(&vm, Some(launch))]).await.remove(0).unwrap();
        assert_eq!(report.machine, Machine::Ended { cause, lingering: true });
        assert_eq!(report.launch, Some(launch));
        host.no_more_events();
        host.clear(&vm).await;
        host.assert_nothing_runs();
        let report = host.backend.adopt(vec![host.adoptee(&vm, Some(launch))]).await.remove(0).unwrap();
        assert!(matches!(report.machine, Machine::Ended { lingering: false, .. }), "{report:?}");
        host.delete(&vm).await;
        host.assert_nothing_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_ran_and_what_is_gone() {
    let mut host = Host::new();
    let made = host.create(micro()).await;
    let unmade = host.define(micro());
    host.restart();
    let reports = host.backend.adopt(vec![host.adoptee(&made, None), host.adoptee(&unmade, None)]).await;
    let machines: Vec<Machine> = reports.into_iter().map(|report| report.unwrap().machine).collect();
    assert_eq!(machines, [Machine::Defined, Machine::Absent]);
    host.delete(&made).await;
    host.assert_nothing_left();
}

/// A machine that is cleared or deleted by a daemon that never adopted it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_adopted_is_cleared_by_its_record() {
    let mut host = Host::new();
    let (vm, _launch, _serial) = host.running().await;
    host.restart();
    host.clear(&vm).await;
    host.assert_nothing_runs();
    host.delete(&vm).await;
    host.assert_nothing_left();
    host.no_more_events();
}

/// The record names a process that is another one now.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_was_given_to_another_process_is_left_alone() {
    let mut host = Host::new();
    let (vm, launch, _serial) = host.running().await;
    let mut resources = host.journal(&vm).resources();
    host.delete(&vm).await;
    let bystander = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let record = resources.iter_mut().find(|r| r.key == "vmm").unwrap();
    record.detail["vmm"]["pid"] = bystander.id().into();
    record.detail["console"]["pid"] = bystander.id().into();
    host.restart();
    let adoptee = roost_backend::Adoptee { definition: vm.clone(), launch: Some(launch), resources: resources.clone() };
    let report = host.backend.adopt(vec![adoptee]).await.remove(0).unwrap();
    assert_eq!(report.machine, Machine::Ended { cause: ExitCause::Killed, lingering: true });
    host.backend.delete(vm.id, &resources, host.journal(&vm)).await.unwrap();
    let mut bystander = bystander;
    assert!(bystander.try_wait().unwrap().is_none(), "it was not ours to end");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_stands_still_is_an_error_and_then_found_again() {
    let mut host = Host::with(|config| config.limits.adopt = Duration::from_millis(500));
    let (vm, launch, _serial) = host.running().await;
    let pid = host.pid(&vm).await;
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    host.restart();
    let error = host.backend.adopt(vec![host.adoptee(&vm, Some(launch))]).await.remove(0).unwrap_err();
    assert_eq!(error.reason, "QMP_TIMEOUT");
    assert!(error.is_transient() && error.message.contains(&pid.as_raw_nonzero().to_string()), "{error}");
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
    let by = Instant::now() + crate::support::DEADLINE;
    while let Err(error) = host.backend.pause(vm.id).await {
        assert!(Instant::now() < by && error.is_transient(), "{error}");
        tokio::task::yield_now().await;
    }
    let report = host.backend.adopt(vec![host.adoptee(&vm, Some(launch))]).await.remove(0).unwrap();
    assert_eq!(report.machine, Machine::Paused);
    host.delete(&vm).await;
    host.assert_nothing_left();
}

/// Ten at once, well within a second.
#[tokio::test(flavor = "multi_thread")]
async fn ten_are_found_again_at_once() {
    let mut host = Host::new();
    let mut vms = Vec::new();
    for _ in 0..10 {
        let (vm, launch, _serial) = host.running().await;
        host.backend.pause(vm.id).await.unwrap();
        vms.push((vm, launch));
    }
    host.restart();
    let adoptees = vms.iter().map(|(vm, launch)| host.adoptee(vm, Some(*launch))).collect();
    let begun = Instant::now();
    let reports = host.backend.adopt(adoptees).await;
    let took = begun.elapsed();
    println!("10 machines found again in {took:?}");
    for (report, (_, launch)) in reports.into_iter().zip(&vms) {
        let report = report.unwrap();
        assert_eq!((report.machine, report.launch), (Machine::Paused, Some(*launch)));
    }
    for (vm, _) in &vms {
        host.delete(vm).await;
    }
    host.assert_nothing_left();
}

/// A keeper outlives the daemon as well, with the client that was attached.
#[tokio::test(flavor = "multi_thread")]
async fn the_serial_line_goes_on_without_a_daemon() {
    let mut host = Host::new();
    let (vm, launch, mut serial) = host.running().await;
    let socket = host.backend.console(vm.id).await.unwrap().socket.unwrap();
    host.restart();
    serial.until("tick ");
    Serial::connect(&socket).until("tick ");
    host.backend.adopt(vec![host.adoptee(&vm, Some(launch))]).await.remove(0).unwrap();
    assert_eq!(host.backend.console(vm.id).await.unwrap().socket, Some(socket));
    host.delete(&vm).await;
    host.assert_nothing_left();
}
