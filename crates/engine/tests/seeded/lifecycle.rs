//! What a user asks for and gets, one thing at a time.

use std::time::Duration;

use roost_backend_sim::{Fault, Method, Point};
use roost_engine::{EngineError, UpdateVm};
use roost_model::operation::Goal;
use roost_model::spec::{RestartMode, RestartPolicy};
use roost_model::{Power, ProjectId, Refusal, Status, VmState};

use crate::world::{LONG, Lab, ask, create, finished, spec, until, vm, wish};

#[test]
fn a_vm_goes_through_its_life() {
    let lab = Lab::new(1);
    let engine = lab.start();
    let host = lab.host.clone();
    lab.world.run(async move {
        let made = engine.create_vm(create("web", true)).await.unwrap();
        let id = made.vm_id;
        assert_eq!(finished(&engine, &made).await.unwrap().status, Status::Succeeded);
        assert_eq!(vm(&engine, id).await.state(), VmState::Running);
        for (goal, state) in [
            (Goal::Pause, VmState::Paused),
            (Goal::Resume, VmState::Running),
            (Goal::Reboot { grace_ms: None }, VmState::Running),
            (Goal::Reboot { grace_ms: Some(1000) }, VmState::Running),
            (Goal::Shutdown { grace_ms: Some(1000) }, VmState::Shutdown),
            (Goal::Boot, VmState::Running),
            (Goal::Boot, VmState::Running),
            (Goal::Shutdown { grace_ms: None }, VmState::Shutdown),
        ] {
            let ended = ask(&engine, id, goal.clone()).await.unwrap();
            assert_eq!((ended.status, vm(&engine, id).await.state()), (Status::Succeeded, state), "{goal:?}");
        }
        let refused = ask(&engine, id, Goal::Pause).await.unwrap_err();
        assert!(matches!(refused, EngineError::Refused(Refusal::WrongState { .. })), "{refused}");
        assert_eq!(ask(&engine, id, Goal::Delete { grace_ms: None }).await.unwrap().status, Status::Succeeded);
        assert!(host.living().is_empty() && host.leftovers(id).is_empty());
        let again = engine.create_vm(create("web", false)).await.unwrap();
        assert_eq!(finished(&engine, &again).await.unwrap().status, Status::Succeeded, "the name is free again");
        engine.stop().await;
    });
}

#[test]
fn one_key_is_one_vm_and_another_request_under_it_is_refused() {
    let lab = Lab::new(2);
    let engine = lab.start();
    lab.world.run(async move {
        let keyed = |name: &str| {
            let mut request = create(name, false);
            request.idempotency_key = Some("k1".to_owned());
            request
        };
        let all = futures::future::join_all((0..100).map(|_| engine.create_vm(keyed("one")))).await;
        let ids: std::collections::BTreeSet<_> = all.into_iter().map(|a| a.unwrap().vm_id).collect();
        assert_eq!(ids.len(), 1);
        let refused = engine.create_vm(keyed("two")).await.unwrap_err();
        assert!(matches!(refused, EngineError::Refused(Refusal::KeyReused { .. })), "{refused}");
        let taken = engine.create_vm(create("one", false)).await.unwrap_err();
        assert!(matches!(taken, EngineError::Refused(Refusal::NameTaken { .. })), "{taken}");
        engine.stop().await;
    });
}

#[test]
fn a_delete_overtakes_a_create_that_hangs() {
    let lab = Lab::new(3);
    for method in [Method::Create, Method::Boot] {
        lab.faults.inject(Point::new(method), Fault::Hang);
        let engine = lab.start();
        let host = lab.host.clone();
        let stopped = engine.clone();
        lab.world.run(async move {
            let made = engine.create_vm(create("stuck", true)).await.unwrap();
            until(&engine, made.vm_id, |_| true).await;
            let removed = ask(&engine, made.vm_id, Goal::Delete { grace_ms: None }).await.unwrap();
            assert_eq!(removed.status, Status::Succeeded);
            let overtaken = finished(&engine, &made).await.unwrap();
            assert_eq!(overtaken.status, Status::Cancelled);
            assert_eq!(overtaken.error.unwrap().reason, "OVERTAKEN");
            assert!(host.living().is_empty() && host.leftovers(made.vm_id).is_empty());
            engine.stop().await;
        });
        lab.kill(stopped);
        lab.faults.heal();
    }
}

#[test]
fn a_transient_failure_is_tried_again_and_a_permanent_one_is_told() {
    let lab = Lab::new(4);
    lab.faults.inject(Point::new(Method::Boot).call(1), Fault::transient("BUSY"));
    let engine = lab.start();
    let faults = lab.faults.clone();
    lab.world.run(async move {
        let made = engine.create_vm(create("again", true)).await.unwrap();
        let ended = finished(&engine, &made).await.unwrap();
        assert_eq!((ended.status, ended.attempt), (Status::Succeeded, 2));

        faults.inject(Point::new(Method::Boot).always(), Fault::permanent("NO_MEMORY"));
        let made = engine.create_vm(create("never", true)).await.unwrap();
        let ended = finished(&engine, &made).await.unwrap();
        assert_eq!((ended.status, ended.attempt), (Status::Failed, 1));
        assert_eq!(ended.error.unwrap().reason, "NO_MEMORY");
        let failed = vm(&engine, made.vm_id).await;
        assert_eq!((failed.state(), failed.desired.power), (VmState::Failed, Power::Stopped));

        faults.heal();
        let update = UpdateVm {
            project: ProjectId::DEFAULT,
            vm: roost_engine::Address::Id(made.vm_id),
            spec: spec("quiet"),
            resource_version: None,
            idempotency_key: None,
        };
        let updated = engine.update_vm(update).await.unwrap();
        finished(&engine, &updated).await.unwrap();
        assert_eq!(vm(&engine, made.vm_id).await.state(), VmState::Created, "another spec is another chance");
        assert_eq!(ask(&engine, made.vm_id, Goal::Boot).await.unwrap().status, Status::Succeeded);
        engine.stop().await;
    });
}

#[test]
fn a_machine_that_ends_is_restarted_by_its_policy_and_not_for_ever() {
    let lab = Lab::new(5);
    let engine = lab.start();
    let host = lab.host.clone();
    lab.world.run(async move {
        let mut request = create("phoenix", true);
        request.spec.restart_policy =
            RestartPolicy { mode: RestartMode::OnFailure, max_retries: 3, ..RestartPolicy::default() };
        let made = engine.create_vm(request).await.unwrap();
        finished(&engine, &made).await.unwrap();
        for restarts in 1..=3 {
            host.kill(made.vm_id).unwrap();
            let up =
                until(&engine, made.vm_id, |vm| vm.restarts.total == restarts && vm.state() == VmState::Running).await;
            assert_eq!(up.restarts.in_row, u32::try_from(restarts).unwrap());
        }
        host.guest_panic(made.vm_id).unwrap();
        let failed = until(&engine, made.vm_id, |vm| vm.state() == VmState::Failed).await;
        assert_eq!(failed.failure.unwrap().reason, "RESTART_LIMIT");
        assert_eq!(ask(&engine, made.vm_id, Goal::Boot).await.unwrap().status, Status::Succeeded);
        // A power-off is no failure.
        host.guest_power_off(made.vm_id).unwrap();
        let off = until(&engine, made.vm_id, |vm| vm.desired.power == Power::Stopped).await;
        assert_eq!(off.state(), VmState::Shutdown);
        engine.stop().await;
    });
}

#[test]
fn a_time_to_live_ends_a_vm() {
    let lab = Lab::new(6);
    let engine = lab.start();
    let host = lab.host.clone();
    lab.world.run(async move {
        let mut request = create("mayfly", true);
        request.spec.time_to_live = Some(Duration::from_secs(60));
        let made = engine.create_vm(request).await.unwrap();
        finished(&engine, &made).await.unwrap();
        let mut watch = engine.watch(ProjectId::DEFAULT, None).await.unwrap();
        loop {
            let events = watch.next().await.unwrap().unwrap();
            if events.iter().any(|e| e.kind == "vm.deleted") {
                break;
            }
        }
        assert!(host.living().is_empty());
        engine.stop().await;
    });
}

#[test]
fn cancelling_a_create_removes_it_and_cancelling_a_boot_clears_it() {
    let lab = Lab::new(7);
    let engine = lab.start();
    let (host, faults) = (lab.host.clone(), lab.faults.clone());
    lab.world.run(async move {
        let hang = faults.inject(Point::new(Method::Boot).always(), Fault::Hang);
        let made = engine.create_vm(create("unwanted", true)).await.unwrap();
        hang.struck().await;
        engine.cancel(ProjectId::DEFAULT, made.operation.id).await.unwrap();
        assert_eq!(finished(&engine, &made).await.unwrap().status, Status::Cancelled);
        let mut watch = engine.watch(ProjectId::DEFAULT, Some(0)).await.unwrap();
        while !watch.next().await.unwrap().unwrap().iter().any(|e| e.kind == "vm.deleted") {}
        assert!(host.leftovers(made.vm_id).is_empty());

        let kept = engine.create_vm(create("kept", false)).await.unwrap();
        finished(&engine, &kept).await.unwrap();
        faults.heal();
        let hang = faults.inject(Point::new(Method::Boot), Fault::Hang);
        let boot = engine.request(wish(kept.vm_id, Goal::Boot)).await.unwrap();
        hang.struck().await;
        engine.cancel(ProjectId::DEFAULT, boot.operation.id).await.unwrap();
        assert_eq!(finished(&engine, &boot).await.unwrap().status, Status::Cancelled);
        let after = until(&engine, kept.vm_id, |vm| vm.desired.power == Power::Stopped).await;
        assert_eq!(after.state(), VmState::Created);
        assert!(host.living().is_empty());
        faults.heal();
        assert_eq!(ask(&engine, kept.vm_id, Goal::Boot).await.unwrap().status, Status::Succeeded);
        engine.stop().await;
    });
}

#[test]
fn events_have_dense_positions_and_resume_without_gap() {
    let lab = Lab::new(8);
    let engine = lab.start();
    lab.world.run(async move {
        let made = futures::future::join_all((0..20).map(|n| {
            let engine = engine.clone();
            async move {
                let made = engine.create_vm(create(&format!("vm{n}"), true)).await.unwrap();
                finished(&engine, &made).await.unwrap();
            }
        }))
        .await;
        assert_eq!(made.len(), 20);
        let mut watch = engine.watch(ProjectId::DEFAULT, Some(0)).await.unwrap();
        let mut positions = Vec::new();
        while positions.len() < 60 {
            positions.extend(watch.next().await.unwrap().unwrap().into_iter().map(|e| e.position));
        }
        let dense: Vec<u64> = (1..=positions.len() as u64).collect();
        assert_eq!(positions, dense);
        let mut resumed = engine.watch(ProjectId::DEFAULT, Some(30)).await.unwrap();
        assert_eq!(resumed.next().await.unwrap().unwrap()[0].position, 31);
        engine.stop().await;
    });
}

#[test]
fn a_wait_ends_at_its_deadline_with_the_operation_as_it_is() {
    let lab = Lab::new(9);
    lab.faults.inject(Point::new(Method::Boot).always(), Fault::Hang);
    let engine = lab.start();
    let world = lab.world.clone();
    lab.world.run(async move {
        let made = engine.create_vm(create("slow", true)).await.unwrap();
        let before = world.now_ms();
        let (operation, _) = engine.wait(ProjectId::DEFAULT, made.operation.id, Duration::from_secs(3)).await.unwrap();
        assert_eq!(operation.status, Status::Running);
        assert_eq!(world.now_ms() - before, 3000);
        // A hang does not last for ever either: the step has a deadline, and attempts have an end.
        let (operation, _) = engine.wait(ProjectId::DEFAULT, made.operation.id, LONG).await.unwrap();
        assert_eq!(operation.status, Status::Failed);
        assert_eq!(operation.error.unwrap().reason, "STEP_TIMEOUT");
        engine.stop().await;
    });
}

#[test]
fn a_machine_that_could_not_be_adopted_is_asked_for_again() {
    let lab = Lab::new(10);
    let engine = lab.start();
    let first = engine.clone();
    let id = lab.world.run(async move {
        let made = engine.create_vm(create("shy", true)).await.unwrap();
        finished(&engine, &made).await.unwrap();
        made.vm_id
    });
    lab.kill(first);
    lab.faults.inject(Point::new(Method::Adopt), Fault::transient("BUSY"));
    let engine = lab.start();
    let host = lab.host.clone();
    lab.world.run(async move {
        let unreachable = |vm: &roost_model::Vm| vm.conditions.iter().any(|c| c.kind == "Reachable" && !c.status);
        assert!(unreachable(&vm(&engine, id).await));
        assert_eq!(vm(&engine, id).await.state(), VmState::Running, "the last that was seen");
        until(&engine, id, |vm| !unreachable(vm)).await;
        host.kill(id).unwrap();
        until(&engine, id, |vm| vm.state() == VmState::Crashed).await;
        engine.stop().await;
    });
}

#[test]
fn a_request_outranks_what_the_engine_decided_before_it() {
    for seed in 20..60 {
        let lab = Lab::new(seed);
        let engine = lab.start();
        let host = lab.host.clone();
        lab.world.run(async move {
            let made = engine.create_vm(create("again", true)).await.unwrap();
            finished(&engine, &made).await.unwrap();
            host.guest_power_off(made.vm_id).unwrap();
            // At the moment of the end, while the engine is about to settle that it stays down.
            until(&engine, made.vm_id, |vm| vm.state() == VmState::Shutdown).await;
            let boot = ask(&engine, made.vm_id, Goal::Boot).await.unwrap();
            assert_eq!(boot.status, Status::Succeeded);
            assert_eq!(vm(&engine, made.vm_id).await.desired.power, Power::Running, "seed {seed}");
            ask(&engine, made.vm_id, Goal::Pause).await.unwrap();
            assert_eq!(vm(&engine, made.vm_id).await.state(), VmState::Paused, "seed {seed}");
            engine.stop().await;
        });
    }
}
