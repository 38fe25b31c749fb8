//! Many seeds: random requests, faults, ends of machines and deaths of the daemon; then peace, and
//! everything that was acknowledged has to have come to an end that is true.

use roost_backend_sim::{Fault, Method, Point};
use roost_engine::{Engine, EngineError, OperationFilter, VmFilter};
use roost_model::operation::Goal;
use roost_model::{Machine, OperationId, Power, ProjectId, Status, VmId};

use crate::executor::World;
use crate::world::{LONG, Lab, create, wish};

const SEEDS: u64 = 60;
const DEATHS: usize = 4;
const REQUESTS: usize = 12;

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_left_over() {
    for seed in 0..SEEDS {
        let lab = Lab::new(seed);
        let mut acknowledged = Vec::new();
        for death in 0..DEATHS {
            let engine = lab.start();
            acknowledged.extend(disturb(&lab, &engine, death));
            lab.kill(engine);
        }
        lab.faults.heal();
        let engine = lab.start();
        check_peace(&lab, engine, acknowledged, seed);
    }
}

#[test]
fn one_seed_is_one_course() {
    let course = |seed| {
        let lab = Lab::new(seed);
        let engine = lab.start();
        disturb(&lab, &engine, 0);
        (lab.world.polls(), lab.world.now_ms(), lab.world.below(1 << 30))
    };
    for seed in 100..110 {
        assert_eq!(course(seed), course(seed), "seed {seed}");
    }
    assert_ne!(course(100), course(101));
}

/// Sends requests and lets things go wrong, and stops in the middle of it.
fn disturb(lab: &Lab, engine: &Engine, death: usize) -> Vec<(VmId, OperationId)> {
    let (engine, lab) = (engine.clone(), lab.clone());
    lab.world.clone().run(async move {
        let world = lab.world.clone();
        let mut accepted = Vec::new();
        for n in 0..REQUESTS {
            maybe_fault(&lab);
            let vms = engine.vms(VmFilter::default(), None, 100).await.unwrap().vms;
            let request = if vms.is_empty() || world.below(4) == 0 {
                engine.create_vm(create(&format!("vm-{death}-{n}"), world.below(3) > 0)).await
            } else {
                let vm = vms[world.below(vms.len())].id;
                maybe_end(&lab, vm);
                engine.request(wish(vm, any_goal(&world))).await
            };
            match request {
                Ok(request) => accepted.push((request.vm_id, request.operation.id)),
                Err(EngineError::Refused(_)) => {}
                Err(other) => panic!("{other}"),
            }
            if world.below(2) == 0 {
                let pause = std::time::Duration::from_millis(world.below(800) as u64);
                roost_engine::Clock::sleep(&world, pause).await;
            }
        }
        accepted
    })
}

fn any_goal(world: &World) -> Goal {
    let grace_ms = (world.below(2) == 0).then_some(500);
    match world.below(8) {
        0 | 1 => Goal::Boot,
        2 => Goal::Shutdown { grace_ms },
        3 => Goal::Pause,
        4 => Goal::Resume,
        5 => Goal::Reboot { grace_ms },
        6 => Goal::Delete { grace_ms },
        _ => Goal::Boot,
    }
}

fn maybe_fault(lab: &Lab) {
    let methods =
        [Method::Create, Method::Boot, Method::Shutdown, Method::Pause, Method::Resume, Method::Clear, Method::Delete];
    let point = Point::new(methods[lab.world.below(methods.len())]);
    match lab.world.below(6) {
        0 => drop(lab.faults.inject(point, Fault::transient("BUSY"))),
        1 => drop(lab.faults.inject(point, Fault::permanent("BROKEN"))),
        2 => drop(lab.faults.inject(point, Fault::Hang)),
        _ => {}
    }
}

/// Ends of machines that nobody asked for. One that does not run cannot end.
fn maybe_end(lab: &Lab, vm: VmId) {
    let _does_not_run = match lab.world.below(8) {
        0 => lab.host.guest_power_off(vm),
        1 => lab.host.guest_panic(vm),
        2 => lab.host.kill(vm),
        3 => lab.host.guest_reset(vm),
        _ => return,
    };
}

fn check_peace(lab: &Lab, engine: Engine, acknowledged: Vec<(VmId, OperationId)>, seed: u64) {
    let host = lab.host.clone();
    lab.world.run(async move {
        for (vm, id) in &acknowledged {
            let (operation, _) = engine.wait(ProjectId::DEFAULT, *id, LONG).await.unwrap();
            assert!(operation.status.is_final(), "seed {seed}: {id} of {vm} is {:?}", operation.status);
            if matches!(operation.goal, Goal::Delete { .. }) && operation.status == Status::Succeeded {
                let left = host.leftovers(*vm);
                if !left.is_empty() {
                    let all = OperationFilter { vm: Some(*vm), ..OperationFilter::default() };
                    let all = engine.operations(all, None, 100).await.unwrap().operations;
                    panic!("seed {seed}: {vm} was deleted and has leftovers: {left:?} after {all:#?}");
                }
            }
        }
        let mut watch = engine.watch(ProjectId::DEFAULT, None).await.unwrap();
        // Unasked work (restarts, clearing away) may go on for a while; then it has to end.
        let settled = loop {
            let vms = engine.vms(VmFilter::default(), None, 1000).await.unwrap().vms;
            let open =
                OperationFilter { statuses: vec![Status::Pending, Status::Running], ..OperationFilter::default() };
            let open = engine.operations(open, None, 1000).await.unwrap().operations;
            let quiet = open.is_empty()
                && vms.iter().all(|vm| {
                    let machine = match vm.observed.machine {
                        Machine::Running => Power::Running,
                        Machine::Paused => Power::Paused,
                        Machine::Ended { lingering: true, .. } => return false,
                        Machine::Absent | Machine::Defined | Machine::Ended { .. } => Power::Stopped,
                    };
                    vm.desired.power == machine
                });
            if quiet {
                break vms;
            }
            watch.next().await.unwrap().expect("the engine goes on");
        };
        let mut running: Vec<VmId> = settled.iter().filter(|vm| vm.observed.machine.is_up()).map(|vm| vm.id).collect();
        running.sort_unstable();
        let mut living = host.living();
        living.sort_unstable();
        assert_eq!(running, living, "seed {seed}: what is recorded is what lives");
        for vm in &settled {
            let (machine, launch) = host.machine(vm.id);
            assert_eq!(machine.is_up(), vm.observed.machine.is_up(), "seed {seed}: {}", vm.id);
            if machine.is_up() {
                assert_eq!(launch, vm.observed.launch, "seed {seed}: {}", vm.id);
            }
        }
        engine.stop().await;
    });
}
