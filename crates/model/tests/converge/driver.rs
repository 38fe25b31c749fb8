//! The smallest driver: it does what an orchestrator does with the model, one step at a time, on a host
//! without anything on it, and checks on the way what must never happen.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use roost_model::admit::{Verdict, admit};
use roost_model::observe::{Reaction, Report, found, observe, react};
use roost_model::operation::{AfterFailure, Goal, OperationError};
use roost_model::plan::{Step, Stop, Target, plan};
use roost_model::spec::{Boot, Memory, RestartPolicy};
use roost_model::state::{Desired, Machine, Observed, Power};
use roost_model::vm::{Failure, Restarts};
use roost_model::{
    Bytes, Capabilities, Capability, LaunchId, Operation, OperationId, Priority, ProjectId, Status, Timestamp, Vm,
    VmId, VmSpec,
};

use crate::host::{Act, Effect, Extent, Host, Outside};

/// How the step of a turn comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Luck {
    Fine,
    /// It fails after so much was done.
    Fails {
        after: Extent,
        retryable: bool,
    },
    /// The daemon dies after so much was done; meanwhile something may happen to the machine.
    Dies {
        after: Extent,
        meanwhile: Option<Outside>,
    },
}

/// What a turn leaves to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Again,
    Rest(Timestamp),
    Idle,
}

/// One VM, its operations, and the daemon that drives it.
pub(crate) struct Driver {
    pub(crate) now: Timestamp,
    /// `None`: it is deleted.
    pub(crate) vm: Option<Vm>,
    pub(crate) host: Host,
    pub(crate) open: VecDeque<Operation>,
    /// How each accepted operation ended.
    pub(crate) ended: BTreeMap<OperationId, Operation>,
    pub(crate) accepted: usize,
    capabilities: Capabilities,
    /// The operation whose attempt this daemon has begun, and whether its reboot is done.
    begun: Option<(OperationId, bool)>,
    inbox: Vec<(LaunchId, Machine)>,
    ids: u64,
    /// Restarts by policy without a long run or a request between them, counted apart from the model.
    restarts_in_row: u32,
}

impl Driver {
    /// A VM whose creation has been accepted.
    pub(crate) fn new(policy: RestartPolicy, capabilities: Capabilities, deaf: bool, power: Power) -> Self {
        let now = Timestamp::from_unix_ms(1_000_000);
        let boot = Boot { kernel_path: Some("/vmlinuz".parse().unwrap()), ..Boot::default() };
        let spec = VmSpec { restart_policy: policy, ..VmSpec::minimal(Memory::fixed(Bytes::from_mib(64)), boot) };
        let vm = Vm {
            id: VmId::from_parts(0, [0; 10]),
            project: ProjectId::DEFAULT,
            name: "vm".parse().unwrap(),
            backend: "sim".parse().unwrap(),
            spec,
            generation: 1,
            desired: Desired { power, deleted: false },
            observed: Observed::absent(now),
            failure: None,
            restarts: Restarts::default(),
            accelerator: None,
            conditions: Vec::new(),
            resource_version: 1,
            created_at: now,
            updated_at: now,
            started_at: None,
        };
        let mut driver = Self {
            now,
            vm: Some(vm),
            host: Host::new(deaf),
            open: VecDeque::new(),
            ended: BTreeMap::new(),
            accepted: 0,
            capabilities,
            begun: None,
            inbox: Vec::new(),
            ids: 0,
            restarts_in_row: 0,
        };
        driver.insert(Goal::Create { power });
        driver
    }

    /// Somebody asks for something; refusals are the caller's business.
    pub(crate) fn request(&mut self, goal: Goal) {
        let deleting = self.open.iter().find(|o| matches!(o.goal, Goal::Delete { .. })).map(|o| o.id);
        let Some(vm) = self.vm.as_mut() else { return };
        match admit(&goal, vm, deleting) {
            Err(_) => {}
            Ok(Verdict::AlreadySo) if deleting.is_some() => {}
            Ok(Verdict::AlreadySo) => {
                self.insert(goal);
                if self.open.len() == 1 {
                    self.finish_first(Status::Succeeded);
                }
            }
            Ok(Verdict::Accept(desired)) => {
                vm.desired = desired;
                if goal == Goal::Boot {
                    vm.failure = None;
                    vm.restarts = Restarts { in_row: 0, due: None, ..vm.restarts };
                    self.restarts_in_row = 0;
                }
                self.end_overtaken(&goal);
                self.insert(goal);
            }
        }
    }

    /// Something happens to the machine, and the daemon hears of it at its next turn.
    pub(crate) fn outside(&mut self, outside: Outside) {
        self.inbox.extend(self.host.happen(outside));
    }

    /// The daemon dies and starts again.
    pub(crate) fn die(&mut self, meanwhile: Option<Outside>) {
        self.begun = None;
        self.inbox.clear();
        if let Some(outside) = meanwhile {
            self.host.happen(outside);
        }
        self.found(self.host.adopt());
    }

    /// Takes in what was told, then does the first thing that is to be done.
    pub(crate) fn turn(&mut self, luck: Luck) -> Next {
        for (launch, machine) in std::mem::take(&mut self.inbox) {
            let Some(vm) = self.vm.as_mut() else { continue };
            vm.observed = observe(vm.observed, Report { machine, launch: Some(launch) }, self.now);
        }
        let Some(vm) = &self.vm else { return Next::Idle };
        // A delete goes first; for the others the order of requests is kept.
        if let Some(i) = self.open.iter().position(|o| matches!(o.goal, Goal::Delete { .. }))
            && let Some(delete) = self.open.remove(i)
        {
            self.open.push_front(delete);
        }
        let Some(operation) = self.open.front() else { return self.settle(luck) };
        if operation.run_after > self.now {
            return Next::Rest(operation.run_after);
        }
        let reboots = matches!(operation.goal, Goal::Reboot { .. });
        let (id, rebooted) = match self.begun {
            Some((id, rebooted)) if id == operation.id => (id, rebooted),
            _ => {
                if reboots && !vm.observed.machine.is_up() {
                    return self.fail();
                }
                let operation = self.open.front_mut().expect("it was there just now");
                operation.attempt += 1;
                operation.status = Status::Running;
                (operation.id, false)
            }
        };
        self.begun = Some((id, rebooted));
        let operation = self.open.front().expect("it was there just now");
        let target = Target::of(&operation.goal, vm.desired);
        let act = match plan(target, vm.observed, self.host.leftovers(), &self.capabilities).first() {
            _ if reboots && !rebooted && vm.observed.machine == Machine::Running => Act::Reboot,
            Some(step) => Act::Step(*step, self.launch()),
            None => return self.succeed(),
        };
        match self.perform(act, luck) {
            Some(Ok(effect)) => {
                if effect == Effect::Rebooted {
                    self.begun = Some((id, true));
                }
                Next::Again
            }
            Some(Err(retryable)) => self.failed(retryable),
            None => Next::Again,
        }
    }

    /// What is to be done when nobody asks for anything.
    fn settle(&mut self, luck: Luck) -> Next {
        let (now, leftovers) = (self.now, self.host.leftovers());
        let vm = self.vm.as_mut().expect("a turn ends where there is no VM");
        let lingers = matches!(vm.observed.machine, Machine::Ended { lingering: true, .. });
        if !vm.observed.machine.is_up() && (leftovers.of_launches || lingers) {
            return self.unasked(Step::Clear, luck);
        }
        if vm.desired.deleted {
            self.insert(Goal::Delete { grace_ms: None });
            return Next::Again;
        }
        match react(vm, now, 0.5) {
            Reaction::None => {}
            Reaction::Settle(power) => {
                vm.desired.power = power;
                return Next::Again;
            }
            Reaction::RestartAt(restarts) => {
                self.check_restart(restarts);
                return Next::Again;
            }
            Reaction::RestartNow => {
                vm.restarts.due = None;
                self.insert(Goal::Boot);
                return Next::Again;
            }
            Reaction::GiveUp(failure) => {
                let limit = vm.spec.restart_policy.max_retries;
                assert!(
                    limit != 0 && self.restarts_in_row >= limit,
                    "given up after {} of {limit}",
                    self.restarts_in_row
                );
                vm.failure = Some(failure);
                vm.desired.power = Power::Stopped;
                return Next::Again;
            }
        }
        if let (Some(due), Machine::Ended { .. }, true) =
            (vm.restarts.due, vm.observed.machine, vm.desired.power != Power::Stopped)
        {
            return Next::Rest(due);
        }
        if vm.failure.is_some() {
            return Next::Idle;
        }
        let target = Target::reconciled(vm.desired);
        match plan(target, vm.observed, leftovers, &self.capabilities).first() {
            None => Next::Idle,
            Some(Step::Launch | Step::Define) if vm.desired.power != Power::Stopped => {
                self.insert(Goal::Boot);
                Next::Again
            }
            Some(step) => self.unasked(*step, luck),
        }
    }

    /// The model has scheduled a restart: it may, and it waits as long as the policy says.
    fn check_restart(&mut self, restarts: Restarts) {
        let vm = self.vm.as_mut().expect("only a VM is restarted");
        let policy = vm.spec.restart_policy;
        let ran = vm.started_at.map(|at| vm.observed.since.since(at)).unwrap_or_default();
        if ran >= policy.forgiven_after() {
            self.restarts_in_row = 0;
        }
        let waits = restarts.due.expect("a restart is due some time").since(self.now);
        assert!(waits >= policy.delay(self.restarts_in_row, 0.0), "restarted after {waits:?} only");
        self.restarts_in_row += 1;
        let limit = policy.max_retries;
        assert!(
            limit == 0 || self.restarts_in_row <= limit,
            "restarted {} times, {limit} allowed",
            self.restarts_in_row
        );
        assert_eq!(restarts.in_row, self.restarts_in_row);
        assert_eq!(restarts.total, vm.restarts.total + 1);
        vm.restarts = restarts;
    }

    fn unasked(&mut self, step: Step, luck: Luck) -> Next {
        let act = Act::Step(step, self.launch());
        match self.perform(act, luck) {
            Some(Err(_)) => Next::Rest(self.now.after(Duration::from_secs(5))),
            _ => Next::Again,
        }
    }

    /// Acts, and takes in what came of it. `Err`: whether trying again can help. `None`: the daemon died.
    fn perform(&mut self, act: Act, luck: Luck) -> Option<Result<Effect, bool>> {
        let vm = self.vm.as_ref().expect("acts are of a VM");
        if let Act::Step(step, _) = act {
            let launches = step == Step::Launch;
            assert!(!(launches && vm.desired.deleted), "a VM was launched whose deletion was accepted");
            let alive = self.host.machine().is_some_and(Machine::is_up);
            assert!(!(launches && alive), "a second machine was launched");
            if let Step::Shutdown(Stop::Graceful(_)) = step {
                assert_eq!(vm.observed.machine, Machine::Running, "a guest was asked that hears nobody");
                assert!(self.capabilities.has(Capability::GracefulShutdown), "a guest was asked in vain");
            }
        }
        let extent = match luck {
            Luck::Fine => Extent::All,
            Luck::Fails { after, .. } | Luck::Dies { after, .. } => after,
        };
        let done = self.host.act(act, extent);
        match luck {
            Luck::Fine => {
                if let Ok(effect) = done {
                    self.apply(effect);
                    return Some(Ok(effect));
                }
                self.found(self.host.info());
                Some(Err(true))
            }
            Luck::Fails { retryable, .. } => {
                self.found(self.host.info());
                Some(Err(retryable))
            }
            Luck::Dies { meanwhile, .. } => {
                self.die(meanwhile);
                None
            }
        }
    }

    fn apply(&mut self, effect: Effect) {
        let now = self.now;
        let vm = self.vm.as_mut().expect("effects are on a VM");
        let machine = match effect {
            Effect::Defined => Machine::Defined,
            Effect::Launched(launch) => {
                vm.observed.launch = Some(launch);
                vm.started_at = Some(now);
                vm.restarts.due = None;
                Machine::Running
            }
            Effect::Paused => Machine::Paused,
            Effect::Resumed | Effect::Rebooted => Machine::Running,
            Effect::Ended(cause) => Machine::Ended { cause, lingering: true },
            Effect::Cleared => match vm.observed.machine {
                Machine::Ended { cause, .. } => Machine::Ended { cause, lingering: false },
                other => other,
            },
            Effect::Removed => Machine::Absent,
        };
        if machine != vm.observed.machine {
            vm.observed = Observed { machine, since: now, ..vm.observed };
        }
    }

    fn found(&mut self, report: Report) {
        if let Some(vm) = self.vm.as_mut() {
            vm.observed = found(vm.observed, report, self.now);
        }
    }

    fn succeed(&mut self) -> Next {
        let operation = self.open.front().expect("an operation is under way");
        let machine = self.vm.as_ref().expect("only a delete leaves no VM").observed.machine;
        let reached = match operation.goal {
            Goal::Create { power: Power::Stopped } | Goal::Shutdown { .. } => {
                !machine.is_up() && machine != Machine::Absent
            }
            Goal::Create { .. } | Goal::Boot | Goal::Resume | Goal::Reboot { .. } => machine == Machine::Running,
            Goal::Pause => machine == Machine::Paused,
            Goal::Delete { .. } => machine == Machine::Absent,
            Goal::Update => true,
        };
        assert!(reached, "{:?} succeeded with a machine that is {machine}", operation.goal);
        if matches!(operation.goal, Goal::Delete { .. }) {
            assert!(self.host.is_empty(), "a deleted VM has left {:?}", self.host);
            self.vm = None;
        }
        self.finish_first(Status::Succeeded);
        Next::Again
    }

    fn failed(&mut self, retryable: bool) -> Next {
        self.begun = None;
        let operation = self.open.front_mut().expect("an operation is under way");
        match operation.after_failure(retryable, self.now, 0.5) {
            AfterFailure::GiveUp => self.fail(),
            AfterFailure::Retry(at) => {
                operation.status = Status::Pending;
                operation.run_after = at;
                Next::Again
            }
        }
    }

    fn fail(&mut self) -> Next {
        let goal = self.finish_first(Status::Failed).goal;
        let vm = self.vm.as_mut().expect("a failed operation leaves its VM");
        vm.restarts.due = None;
        if self.open.is_empty() {
            vm.desired.power = vm.settled_power();
            if matches!(goal, Goal::Create { .. } | Goal::Boot) && !vm.observed.machine.is_up() {
                vm.failure = Some(Failure { reason: "X".to_owned(), message: String::new(), at: self.now });
            }
        }
        Next::Again
    }

    fn end_overtaken(&mut self, goal: &Goal) {
        let (ended, open) = std::mem::take(&mut self.open).into_iter().partition(|o| goal.overtakes(&o.goal));
        self.open = open;
        let ended: VecDeque<Operation> = ended;
        for mut operation in ended {
            operation.finish(Status::Cancelled, None, self.now);
            self.end(operation);
        }
        // What the daemon was at is dropped where it is; what is there is looked up.
        self.begun = None;
        self.found(self.host.info());
    }

    fn insert(&mut self, goal: Goal) {
        self.ids += 1;
        let id = OperationId::from_parts(self.ids, [0; 10]);
        let vm = VmId::from_parts(0, [0; 10]);
        let operation = Operation::new(id, ProjectId::DEFAULT, vm, goal, Priority::Default, self.now);
        self.accepted += 1;
        self.open.push_back(operation);
    }

    fn finish_first(&mut self, status: Status) -> Operation {
        self.begun = None;
        let mut operation = self.open.pop_front().expect("an operation is under way");
        let error = (status == Status::Failed).then(|| OperationError {
            reason: "X".to_owned(),
            message: String::new(),
            hint: String::new(),
            field: String::new(),
        });
        operation.finish(status, error, self.now);
        self.end(operation.clone());
        operation
    }

    fn end(&mut self, operation: Operation) {
        assert!(operation.status.is_final() && operation.finished_at.is_some() && operation.claim.is_none());
        let twice = self.ended.insert(operation.id, operation);
        assert!(twice.is_none(), "an operation ended twice: {twice:?}");
    }

    fn launch(&mut self) -> LaunchId {
        self.ids += 1;
        LaunchId::from_parts(self.ids, [0; 10])
    }
}

/// How a graceful stop is asked for.
pub(crate) fn graceful() -> Stop {
    Stop::Graceful(Duration::from_secs(30))
}
