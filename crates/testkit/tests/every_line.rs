//! The daemon dies at every line of what it does to a machine. The next one finds what the record
//! says: the request comes to its end, one guest runs or none, and nothing is left over.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::time::Duration;

use roost_client::{Client, v1};
use roost_host::fault::Point;
use roost_testkit::{TestDaemon, micro};

use v1::OperationStatus as O;
use v1::VmState as S;

/// What is asked of the daemon that is to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scene {
    /// A VM that does not exist, started.
    Create,
    /// One that cannot start.
    Fail,
    Pause,
    Resume,
    Reboot,
    /// The guest obeys its power button.
    PowerOff,
    /// By force.
    Stop,
    /// As it runs.
    Delete,
    /// Nothing: it takes up a machine that runs.
    Adopt,
    /// Nothing: it clears away a launch that its predecessor died in.
    ClearAfterDeath,
}

/// A new point does not compile until it is said here what leads to it.
fn scenes(point: Point) -> &'static [Scene] {
    use Point as P;
    match point {
        P::DefineAsked | P::DefineRecorded | P::DefineMade => &[Scene::Create],
        P::LaunchAsked
        | P::LaunchRecorded
        | P::LaunchDirMade
        | P::LaunchSocketBound
        | P::LaunchConsoleBound
        | P::LaunchKeeperBorn
        | P::LaunchVmmBorn
        | P::LaunchIdentified
        | P::GateOpened
        | P::LaunchKeeperReleased
        | P::LaunchReleased
        | P::LaunchUp => &[Scene::Create],
        P::UndoBegun | P::UndoKilled | P::UndoDirRemoved | P::UndoForgotten => &[Scene::Fail],
        P::PauseAsked | P::PauseDone => &[Scene::Pause],
        P::ResumeAsked | P::ResumeDone => &[Scene::Resume],
        P::ResetAsked | P::ResetDone => &[Scene::Reboot],
        P::ShutdownAsked => &[Scene::PowerOff, Scene::Stop, Scene::Delete],
        P::ShutdownEnded => &[Scene::PowerOff],
        P::QuitAsked | P::QuitSent | P::QuitDone => &[Scene::PowerOff, Scene::Stop, Scene::Delete],
        P::ClearBegun | P::ClearEnded | P::ClearDirRemoved | P::ClearForgotten => {
            &[Scene::PowerOff, Scene::Delete, Scene::ClearAfterDeath]
        }
        P::AdoptFound => &[Scene::Adopt],
        P::RemoveDirRemoved | P::RemoveForgotten => &[Scene::Delete],
    }
}

/// How often a scene comes by: a machine has two gates, its keeper's and its own.
fn times(point: Point) -> usize {
    if point == Point::GateOpened { 2 } else { 1 }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_machine_is_made_and_started() {
    walk(Scene::Create).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_failed_start_is_undone() {
    walk(Scene::Fail).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_cpus_are_stopped_continued_and_reset() {
    for scene in [Scene::Pause, Scene::Resume, Scene::Reboot] {
        walk(scene).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_guest_shuts_down() {
    walk(Scene::PowerOff).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_machine_is_ended() {
    walk(Scene::Stop).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_vm_is_deleted() {
    walk(Scene::Delete).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_machines_are_found_again() {
    walk(Scene::Adopt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_what_a_death_left_is_cleared_away() {
    walk(Scene::ClearAfterDeath).await;
}

/// Dies at each point that the scene leads to.
async fn walk(scene: Scene) {
    let mut daemon = TestDaemon::start(&[]);
    let points: Vec<_> = Point::ALL.iter().copied().filter(|point| scenes(*point).contains(&scene)).collect();
    assert!(!points.is_empty(), "{scene:?} leads nowhere");
    for point in points {
        for time in 1..=times(point) {
            println!("{scene:?}: {} {time}", point.name());
            one_death(&mut daemon, scene, point, time).await;
            assert_eq!(daemon.leftovers(), [], "{scene:?} at {} {time}", point.name());
        }
    }
    assert!(daemon.stop());
}

async fn one_death(daemon: &mut TestDaemon, scene: Scene, point: Point, time: usize) {
    let name = &format!("{}-{time}", point.name());
    let before = prepare(daemon, scene, name).await;
    let client = daemon.client();
    let acknowledged = match scene {
        Scene::Adopt => {
            daemon.kill();
            daemon.start_and_die(point).await;
            None
        }
        Scene::ClearAfterDeath => {
            daemon.arm(Point::LaunchReleased, 1);
            let acknowledged = ask(&client, scene, name).await.ok();
            daemon.died().await;
            // The machine that it started is ended meanwhile, so that there is something to clear.
            daemon.end_guests().await;
            daemon.start_and_die(point).await;
            acknowledged
        }
        _ => {
            daemon.arm(point, time);
            let acknowledged = ask(&client, scene, name).await.ok();
            daemon.died().await;
            acknowledged
        }
    };
    daemon.restart();
    let client = daemon.client();
    if scene != Scene::Adopt {
        // The same request again: it was not recorded, or this is what was recorded.
        let asked = ask(&client, scene, name).await.unwrap();
        if let Some(acknowledged) = acknowledged {
            assert_eq!(asked, acknowledged, "an acknowledged request is on record");
        }
        let operation = client.wait_operation(&asked, Duration::from_secs(60)).await.unwrap();
        if scene == Scene::Fail {
            assert_eq!(operation.error.reason, "NO_MEMORY", "{operation:?}");
        } else {
            assert_eq!(operation.status, O::OPERATION_STATUS_SUCCEEDED, "{operation:?}\n{}", daemon.log());
        }
    }
    let (state, guests) = match scene {
        Scene::Create | Scene::ClearAfterDeath | Scene::Resume | Scene::Reboot | Scene::Adopt => {
            (S::VM_STATE_RUNNING, 1)
        }
        Scene::Pause => (S::VM_STATE_PAUSED, 1),
        Scene::PowerOff | Scene::Stop => (S::VM_STATE_SHUTDOWN, 0),
        Scene::Fail => (S::VM_STATE_FAILED, 0),
        Scene::Delete => {
            assert!(client.get_vm_info(name).await.is_err(), "it is gone");
            return;
        }
    };
    let vm = daemon.until(&client, name, |vm| vm.state == state).await;
    // Children that waited at their gates go by themselves, once they see the end of file.
    daemon.until_guest_processes(guests * 2).await;
    assert_eq!(daemon.guest_processes().len(), guests * 2, "{:?}", daemon.guest_processes());
    let pids = guests_of(daemon);
    assert_eq!(pids.len(), guests, "{:?}", daemon.guest_processes());
    if let [pid] = pids[..] {
        assert_eq!(client.get_vm_info(name).await.unwrap().backend_info["pid"], pid.to_string());
        assert!(before.is_none_or(|before| before == pid), "the guest is the same process as before");
    }
    if guests == 1 && scene != Scene::Pause {
        ticks(&client, &vm.id).await;
    }
    let request = v1::DeleteVmRequest { vm_id: vm.id, force: true, ..Default::default() };
    client.delete_vm(request).await.unwrap();
}

/// What is there before the request; the machine's process if it runs.
async fn prepare(daemon: &TestDaemon, scene: Scene, name: &str) -> Option<u32> {
    let client = daemon.client();
    match scene {
        Scene::Create | Scene::Fail | Scene::ClearAfterDeath => return None,
        Scene::Pause | Scene::Resume | Scene::Reboot | Scene::PowerOff | Scene::Stop | Scene::Delete | Scene::Adopt => {
            let made = client.create_vm(v1::CreateVmRequest { start: true, ..micro(name) }).await.unwrap();
            // Its guest hears the power button from here on.
            ticks(&client, &made.vm_id).await;
        }
    }
    if scene == Scene::Resume {
        client.pause_vm(v1::PauseVmRequest { vm_id: name.to_owned(), ..Default::default() }).await.unwrap();
    }
    guests_of(daemon).first().copied()
}

/// Asks once, by a key: asked again, it is the same request. The operation, if it was acknowledged.
async fn ask(client: &Client, scene: Scene, name: &str) -> Result<String, roost_client::Error> {
    let (vm_id, idempotency_key) = (name.to_owned(), format!("{scene:?}-{name}"));
    let changed = match scene {
        Scene::Create | Scene::ClearAfterDeath | Scene::Fail => {
            let mut request = v1::CreateVmRequest { start: true, r#async: true, idempotency_key, ..micro(name) };
            if scene == Scene::Fail {
                request.config.get_or_insert_default().memory.get_or_insert_default().size_bytes = 8 << 40;
            }
            client.create_vm(request).await
        }
        Scene::Pause => {
            let request = v1::PauseVmRequest { vm_id, idempotency_key, r#async: true, ..Default::default() };
            client.pause_vm(request).await
        }
        Scene::Resume => {
            let request = v1::ResumeVmRequest { vm_id, idempotency_key, r#async: true, ..Default::default() };
            client.resume_vm(request).await
        }
        Scene::Reboot => {
            let request =
                v1::RebootVmRequest { vm_id, idempotency_key, force: true, r#async: true, ..Default::default() };
            client.reboot_vm(request).await
        }
        Scene::PowerOff | Scene::Stop => {
            let force = scene == Scene::Stop;
            let request = v1::ShutdownVmRequest { vm_id, idempotency_key, force, r#async: true, ..Default::default() };
            client.shutdown_vm(request).await
        }
        Scene::Delete => {
            let request =
                v1::DeleteVmRequest { vm_id, idempotency_key, force: true, r#async: true, ..Default::default() };
            client.delete_vm(request).await
        }
        Scene::Adopt => unreachable!("nothing is asked there"),
    };
    changed.map(|changed| changed.operation.id.clone())
}

/// Waits until the guest says something new on its serial line: it lives, and somebody keeps the line.
async fn ticks(client: &Client, vm: &str) {
    // One byte of the past is no word.
    let request = v1::GetConsoleLogRequest { vm_id: vm.to_owned(), tail_bytes: 1, follow: true, ..Default::default() };
    let mut log = client.console_log(request).await.unwrap();
    let mut text = Vec::new();
    let ticks = async {
        while !String::from_utf8_lossy(&text).contains("tick") {
            text.extend(log.next().await.unwrap().expect("the guest goes on"));
        }
    };
    let heard = tokio::time::timeout(Duration::from_secs(60), ticks).await;
    assert!(heard.is_ok(), "{vm} says {:?}", String::from_utf8_lossy(&text));
}

fn guests_of(daemon: &TestDaemon) -> Vec<u32> {
    let all = daemon.guest_processes().into_iter();
    all.filter(|(_, comm)| comm.starts_with("qemu")).map(|(pid, _)| pid).collect()
}
