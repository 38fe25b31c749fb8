//! The in-process backend under an executor of its own, by a clock that the test moves.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]
#![allow(clippy::disallowed_methods, reason = "tests measure real time and have a runtime")]

mod support;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use roost_backend::{Adoptee, Backend, Definition, Happened, MemoryJournal, events};
use roost_backend_sim::{
    Control, ControlError, Fault, Faults, ManualClock, Method, Point, SimBackend, SimClock, SimConfig,
};
use roost_model::plan::Stop;
use roost_model::spec::{Boot, Memory};
use roost_model::state::Machine;
use roost_model::{Bytes, ExitCause, VmId, VmSpec};
use support::launch;

struct World {
    clock: ManualClock,
    faults: Faults,
    journal: MemoryJournal,
}

impl World {
    fn new() -> Self {
        Self { clock: ManualClock::default(), faults: Faults::default(), journal: MemoryJournal::default() }
    }

    fn config(&self) -> SimConfig {
        SimConfig { clock: Arc::new(self.clock.clone()), faults: self.faults.clone(), ..SimConfig::default() }
    }

    /// Polls until done, moving time on whenever somebody sleeps. Panics when nothing can go on.
    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..10_000 {
            for _ in 0..100 {
                if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                    return value;
                }
            }
            match self.clock.next_due() {
                Some(due) => self.clock.advance(due),
                None => break,
            }
        }
        panic!("the future waits for something that never comes");
    }
}

/// Polls a few times and says whether it is still pending.
fn hangs(future: impl Future) -> bool {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    (0..100).all(|_| future.as_mut().poll(&mut context).is_pending())
}

fn vm(n: u32, kernel_args: &str) -> Definition {
    let boot = Boot {
        kernel_path: Some("/boot/vmlinuz".parse().unwrap()),
        kernel_args: kernel_args.parse().unwrap(),
        ..Boot::default()
    };
    let mut random = [0; 10];
    random[..4].copy_from_slice(&n.to_be_bytes());
    Definition {
        id: VmId::from_parts(1, random),
        name: format!("vm-{n}").parse().unwrap(),
        spec: VmSpec::minimal(Memory::fixed(Bytes::from_mib(64)), boot),
    }
}

#[test]
fn a_deaf_guest_is_forced_at_the_deadline_of_the_injected_clock() {
    let world = World::new();
    let (tx, _events) = events();
    let sim = SimBackend::in_process(world.config(), tx);
    let deaf = vm(1, "quiet sim.deaf sim.boot_ms=1500");
    world.run(async {
        sim.create(&deaf, &world.journal).await.unwrap();
        sim.boot(&deaf, launch(1), &world.journal).await.unwrap();
        assert_eq!(sim.shutdown(deaf.id, Stop::Graceful(Duration::from_secs(30))).await, Ok(ExitCause::Forced));
    });
    assert_eq!(world.clock.elapsed(), Duration::from_millis(31_500));
}

#[test]
fn a_death_at_any_step_of_a_boot_leaves_what_the_record_finds() {
    for step in 0..=4 {
        let world = World::new();
        let (tx, _events) = events();
        let sim = SimBackend::in_process(world.config(), tx);
        let host = Arc::clone(sim.host().unwrap());
        let vm = vm(1, "");
        world.run(sim.create(&vm, &world.journal)).unwrap();
        let deaths = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&deaths);
        world.faults.on_death(move |death| {
            assert_eq!((death.method, death.step), (Method::Boot, step));
            counted.fetch_add(1, Ordering::Relaxed);
        });
        world.faults.inject(Point::new(Method::Boot).vm(vm.id).step(step), Fault::Die);
        assert!(hangs(sim.boot(&vm, launch(1), &world.journal)));
        assert_eq!(deaths.load(Ordering::Relaxed), 1);
        assert!(sim.is_dead() && hangs(sim.info(vm.id)), "the dead do nothing");
        drop(sim);

        let (tx, mut events) = events();
        let sim = SimBackend::on(Arc::clone(&host), world.config(), tx);
        let resources = world.journal.resources();
        let adoptee = Adoptee { definition: vm.clone(), launch: Some(launch(1)), resources: resources.clone() };
        let report = world.run(sim.adopt(vec![adoptee])).remove(0).unwrap();
        let expected = match step {
            0..=2 => Machine::Defined,
            3 => Machine::Ended { cause: ExitCause::Killed, lingering: false },
            _ => Machine::Running,
        };
        assert_eq!(report.machine, expected, "after a death at step {step}");
        if report.machine == Machine::Running {
            host.guest_panic(vm.id).unwrap();
            assert_eq!(events.try_recv().unwrap().happened, Happened::Ended(ExitCause::Panic));
        }
        world.run(sim.delete(vm.id, &resources, &world.journal)).unwrap();
        assert_eq!(host.leftovers(vm.id), Vec::<String>::new());
        assert_eq!(world.journal.resources(), []);
    }
}

#[test]
fn faults_hang_lie_fail_and_dawdle_where_they_are_told_to() {
    let world = World::new();
    let (tx, _events) = events();
    let sim = SimBackend::in_process(world.config(), tx);
    let vm = vm(1, "");
    world.run(sim.create(&vm, &world.journal)).unwrap();

    let hang = world.faults.inject(Point::new(Method::Boot).step(2), Fault::Hang);
    assert!(hangs(sim.boot(&vm, launch(1), &world.journal)));
    assert_eq!(hang.hits(), 1);
    assert_eq!(sim.host().unwrap().machine(vm.id).0, Machine::Defined, "the dropped boot left no machine");

    world.faults.inject(Point::new(Method::Boot), Fault::transient("BUSY"));
    let refused = world.run(sim.boot(&vm, launch(2), &world.journal)).unwrap_err();
    assert!(refused.is_transient() && refused.reason == "BUSY");
    world.run(sim.boot(&vm, launch(2), &world.journal)).unwrap();

    world.faults.inject(Point::new(Method::Info).vm(vm.id), Fault::Lie(Machine::Paused));
    assert_eq!(world.run(sim.info(vm.id)).unwrap().report.machine, Machine::Paused);
    assert_eq!(world.run(sim.info(vm.id)).unwrap().report.machine, Machine::Running);

    let before = world.clock.elapsed();
    world.faults.inject(Point::new(Method::Pause), Fault::Slow(Duration::from_secs(7)));
    world.run(sim.pause(vm.id)).unwrap();
    assert_eq!(world.clock.elapsed() - before, Duration::from_secs(7));
}

#[test]
#[should_panic(expected = "Pause of")]
fn overlapping_calls_for_one_vm_are_the_callers_bug() {
    let world = World::new();
    let (tx, _events) = events();
    let sim = SimBackend::in_process(world.config(), tx);
    let vm = vm(1, "");
    world.faults.inject(Point::new(Method::Create), Fault::Hang);
    let mut create = pin!(sim.create(&vm, &world.journal));
    assert!(create.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let _ = world.run(sim.pause(vm.id));
}

#[test]
#[should_panic(expected = "not on record")]
fn clearing_by_records_that_miss_the_machine_is_the_callers_bug() {
    let world = World::new();
    let (tx, _events) = events();
    let sim = SimBackend::in_process(world.config(), tx);
    let vm = vm(1, "");
    world.run(sim.create(&vm, &world.journal)).unwrap();
    let stale = world.journal.resources();
    world.run(sim.boot(&vm, launch(1), &world.journal)).unwrap();
    let _ = world.run(sim.clear(vm.id, &stale, &world.journal));
}

#[test]
fn resets_are_told_once_a_second_and_stalls_both_ways() {
    let world = World::new();
    let (tx, mut told) = events();
    let sim = SimBackend::in_process(world.config(), tx);
    let vm = vm(1, "");
    world.run(sim.create(&vm, &world.journal)).unwrap();
    world.run(sim.boot(&vm, launch(1), &world.journal)).unwrap();
    let host = sim.host().unwrap();
    for _ in 0..3 {
        (0..5).for_each(|_| host.guest_reset(vm.id).unwrap());
        assert_eq!(told.try_recv().unwrap().happened, Happened::Reset);
        assert!(told.try_recv().is_err(), "five resets within a second are told once");
        world.clock.advance(Duration::from_secs(1));
    }
    host.control(vm.id, Control::Stall).unwrap();
    assert_eq!(told.try_recv().unwrap().happened, Happened::Paused);
    assert_eq!(world.run(sim.info(vm.id)).unwrap().report.machine, Machine::Paused);
    assert_eq!(host.guest_panic(vm.id), Err(ControlError::Stopped(vm.id)));
    host.control(vm.id, Control::Recover).unwrap();
    assert_eq!(told.try_recv().unwrap().happened, Happened::Resumed);
    let info = world.run(sim.info(vm.id)).unwrap();
    assert_eq!((info.report.machine, info.details["resets"].as_str()), (Machine::Running, "15"));
    assert_eq!(info.metrics.unwrap().uptime_ms, 3000);
}

#[test]
fn a_guest_takes_its_time_to_shut_down_and_may_take_too_long() {
    for (takes_ms, cause, after_ms) in [(2_000, ExitCause::PowerOff, 2_000), (9_000, ExitCause::Forced, 5_000)] {
        let world = World::new();
        let (tx, _told) = events();
        let sim = SimBackend::in_process(world.config(), tx);
        let vm = vm(1, &format!("sim.shutdown_ms={takes_ms}"));
        world.run(sim.create(&vm, &world.journal)).unwrap();
        world.run(sim.boot(&vm, launch(1), &world.journal)).unwrap();
        let ended = world.run(sim.shutdown(vm.id, Stop::Graceful(Duration::from_secs(5))));
        assert_eq!(ended, Ok(cause));
        assert_eq!(world.clock.elapsed(), Duration::from_millis(after_ms));
    }
}

#[test]
fn what_it_cannot_do_it_refuses() {
    let world = World::new();
    let mut config = world.config();
    config.capabilities.have.clear();
    let (tx, _told) = events();
    let sim = SimBackend::in_process(config, tx);
    let vm = vm(1, "");
    let refusals = [
        world.run(sim.create(&vm, &world.journal)).err(),
        world.run(sim.pause(vm.id)).err(),
        world.run(sim.reboot(vm.id, Stop::Forced)).err(),
        world.run(sim.shutdown(vm.id, Stop::Graceful(Duration::ZERO))).err(),
        world.run(sim.console(vm.id)).err(),
    ];
    for refusal in refusals {
        assert_eq!(refusal.unwrap().reason, "UNSUPPORTED_CAPABILITY");
    }
    assert_eq!(world.journal.resources(), [], "and records nothing");
}

#[test]
fn ten_thousand_machines_are_adopted_at_once() {
    let world = World::new();
    let (tx, _events) = events();
    let sim = SimBackend::in_process(world.config(), tx);
    let mut adoptees = Vec::new();
    for n in 0..10_000 {
        let (vm, journal) = (vm(n, ""), MemoryJournal::default());
        world.run(sim.create(&vm, &journal)).unwrap();
        world.run(sim.boot(&vm, launch(1), &journal)).unwrap();
        adoptees.push(Adoptee { definition: vm, launch: Some(launch(1)), resources: journal.resources() });
    }
    let host = Arc::clone(sim.host().unwrap());
    drop(sim);
    let last = adoptees[9_999].definition.id;
    let (tx, mut events) = events();
    let sim = SimBackend::on(Arc::clone(&host), world.config(), tx);
    let begun = Instant::now();
    let reports = world.run(sim.adopt(adoptees));
    eprintln!("10,000 machines adopted in {:?}", begun.elapsed());
    assert!(reports.iter().all(|r| r.as_ref().unwrap().machine == Machine::Running));
    assert_eq!(reports.len(), 10_000);
    host.kill(last).unwrap();
    assert_eq!(events.try_recv().unwrap().vm, last);
}
