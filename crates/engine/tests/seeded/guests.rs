//! What operations do inside guests: the tools of a creation.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use roost_backend::BackendError;
use roost_engine::{Clock, EngineError, NewExecution, UpdateVm};
use roost_model::execution::{ExecutionKind, Outcome};
use roost_model::operation::{Goal, Progress};
use roost_model::spec::Tool;
use roost_model::{ExecutionStatus, Power, ProjectId, Refusal, Status, Vm, VmState};
use tokio::sync::watch;

use crate::executor::World;
use crate::world::{LONG, Lab, ask, create, finished, until, vm};

/// Guests that do as they are told, a second after they are asked.
#[derive(Debug)]
pub struct Guests {
    world: World,
    answers: Mutex<VecDeque<Result<(), BackendError>>>,
    /// The names of what was to be installed, each time that somebody asked.
    pub asked: Mutex<Vec<Vec<String>>>,
}

impl Guests {
    pub fn new(world: World) -> Self {
        Self { world, answers: Mutex::default(), asked: Mutex::default() }
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

#[async_trait]
impl roost_engine::Guests for Guests {
    async fn install(&self, vm: &Vm, told: &watch::Sender<Progress>) -> Result<(), BackendError> {
        self.asked.lock().unwrap().push(vm.spec.tools.iter().map(|t| t.name.to_string()).collect());
        told.send_replace(Progress { percent: 60, message: "installing".to_owned() });
        self.world.sleep(Duration::from_secs(1)).await;
        self.answers.lock().unwrap().pop_front().unwrap_or(Ok(()))
    }
}

fn tools(names: &[&str]) -> Vec<Tool> {
    names.iter().map(|name| Tool { name: name.parse().unwrap(), version: None, script: None }).collect()
}

fn with_tools(name: &str) -> roost_engine::CreateVm {
    let mut request = create(name, true);
    request.spec.tools = tools(&["git"]);
    request
}

#[test]
fn tools_are_part_of_the_creation_and_of_no_later_boot() {
    let lab = Lab::new(31);
    let engine = lab.start();
    let guests = std::sync::Arc::clone(&lab.guests);
    lab.world.run(async move {
        let made = engine.create_vm(with_tools("web")).await.unwrap();
        let seen = until(&engine, made.vm_id, |vm| vm.state() == VmState::Running).await;
        assert!(!seen.has_tools(), "it is seen to run while they are installed");
        let (open, _) = engine.wait(ProjectId::DEFAULT, made.operation.id, Duration::from_millis(500)).await.unwrap();
        assert_eq!((open.status, open.progress.message.as_str()), (Status::Running, "installing"));
        assert_eq!(finished(&engine, &made).await.unwrap().status, Status::Succeeded);
        assert!(vm(&engine, made.vm_id).await.has_tools());
        for goal in [Goal::Shutdown { grace_ms: None }, Goal::Boot] {
            assert_eq!(ask(&engine, made.vm_id, goal).await.unwrap().status, Status::Succeeded);
        }
        assert_eq!(guests.asked(), 1);

        let mut spec = vm(&engine, made.vm_id).await.spec;
        spec.tools = tools(&["git", "jq"]);
        let update = UpdateVm {
            project: ProjectId::DEFAULT,
            vm: roost_engine::Address::Id(made.vm_id),
            spec,
            resource_version: None,
            idempotency_key: None,
        };
        finished(&engine, &engine.update_vm(update).await.unwrap()).await.unwrap();
        assert!(!vm(&engine, made.vm_id).await.has_tools());
        for goal in [Goal::Shutdown { grace_ms: None }, Goal::Boot] {
            assert_eq!(ask(&engine, made.vm_id, goal).await.unwrap().status, Status::Succeeded);
        }
        assert_eq!(guests.asked.lock().unwrap().last().unwrap(), &["git", "jq"]);
        engine.stop().await;
    });
}

#[test]
fn a_tool_that_fails_fails_the_operation_and_leaves_the_vm_up() {
    let lab = Lab::new(32);
    let engine = lab.start();
    lab.guests.answers.lock().unwrap().push_back(Err(BackendError::permanent("TOOL_FAILED", "git: exit code 1")));
    lab.world.run(async move {
        let made = engine.create_vm(with_tools("web")).await.unwrap();
        let ended = finished(&engine, &made).await.unwrap();
        assert_eq!(ended.status, Status::Failed);
        assert_eq!(ended.error.unwrap().message, "git: exit code 1");
        let left = vm(&engine, made.vm_id).await;
        assert_eq!((left.state(), left.desired.power, left.has_tools()), (VmState::Running, Power::Running, false));
        engine.stop().await;
    });
}

#[test]
fn tools_are_taken_up_again_after_a_death_and_given_up_for_a_delete() {
    let lab = Lab::new(33);
    let engine = lab.start();
    let made = lab.world.run({
        let engine = engine.clone();
        async move {
            let made = engine.create_vm(with_tools("web")).await.unwrap();
            until(&engine, made.vm_id, |vm| vm.state() == VmState::Running).await;
            made
        }
    });
    assert_eq!(lab.guests.asked(), 1);
    lab.kill(engine);
    let engine = lab.start();
    let guests = std::sync::Arc::clone(&lab.guests);
    lab.world.run(async move {
        let (ended, _) = engine.wait(ProjectId::DEFAULT, made.operation.id, LONG).await.unwrap();
        assert_eq!((ended.status, guests.asked()), (Status::Succeeded, 2));

        let other = engine.create_vm(with_tools("other")).await.unwrap();
        until(&engine, other.vm_id, |vm| vm.state() == VmState::Running).await;
        let deleted = ask(&engine, other.vm_id, Goal::Delete { grace_ms: None }).await.unwrap();
        assert_eq!(deleted.status, Status::Succeeded);
        let (ended, _) = engine.wait(ProjectId::DEFAULT, other.operation.id, LONG).await.unwrap();
        assert_eq!(ended.status, Status::Cancelled);
        engine.stop().await;
    });
}

fn of(vm: roost_model::VmId) -> NewExecution {
    let (kind, command) = (ExecutionKind::Exec, "true".to_owned());
    NewExecution { vm, job: None, kind, command, args: Vec::new(), env_names: Vec::new() }
}

#[test]
fn what_the_last_daemon_did_not_hear_the_end_of_is_unknown() {
    let lab = Lab::new(34);
    let engine = lab.start();
    let (heard, unheard) = lab.world.run({
        let engine = engine.clone();
        async move {
            let made = engine.create_vm(create("web", true)).await.unwrap();
            let heard = engine.begin_execution(ProjectId::DEFAULT, of(made.vm_id)).await.unwrap();
            let done = Outcome { status: ExecutionStatus::Succeeded, exit_code: Some(0), ..Outcome::running() };
            let heard = engine.end_execution(heard, done).await.unwrap();
            (heard, engine.begin_execution(ProjectId::DEFAULT, of(made.vm_id)).await.unwrap())
        }
    });
    lab.kill(engine);
    let engine = lab.start();
    lab.world.run(async move {
        assert_eq!(engine.execution(ProjectId::DEFAULT, heard.id).await.unwrap(), heard);
        let unheard = engine.execution(ProjectId::DEFAULT, unheard.id).await.unwrap();
        assert_eq!(unheard.outcome.status, ExecutionStatus::Unknown);
        assert!(unheard.finished_at.is_some());
        engine.stop().await;
    });
}

#[test]
fn executions_are_forgotten_by_their_own_age() {
    let mut lab = Lab::new(35);
    lab.settings.history_kept = Duration::from_secs(60);
    let engine = lab.start();
    let world = lab.world.clone();
    lab.world.run(async move {
        let made = engine.create_vm(create("web", true)).await.unwrap();
        finished(&engine, &made).await.unwrap();
        // No operation is left whose age would have them looked at.
        world.sleep(Duration::from_secs(120)).await;
        let execution = engine.begin_execution(ProjectId::DEFAULT, of(made.vm_id)).await.unwrap();
        let execution = engine.end_execution(execution, Outcome::unknown("gone")).await.unwrap();
        world.sleep(Duration::from_secs(30)).await;
        engine.execution(ProjectId::DEFAULT, execution.id).await.unwrap();
        world.sleep(Duration::from_secs(60)).await;
        let gone = engine.execution(ProjectId::DEFAULT, execution.id).await.unwrap_err();
        assert!(matches!(gone, EngineError::Refused(Refusal::ExecutionNotFound(_))), "{gone}");
        engine.stop().await;
    });
}
