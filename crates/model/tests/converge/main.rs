//! Whatever is asked, whatever goes wrong, whenever the daemon dies: the plan converges, runs nothing
//! that is deleted, makes no machine twice, and every accepted operation ends.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod driver;
mod host;

use std::time::Duration;

use driver::{Driver, Luck, Next, graceful};
use host::{Act, Effect, Extent, Host, Outside};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use roost_model::operation::Goal;
use roost_model::plan::{Leftovers, Step, Stop, Target, plan};
use roost_model::spec::{RestartMode, RestartPolicy};
use roost_model::state::{Desired, Machine, Observed, Power};
use roost_model::{Capabilities, Capability, ExitCause, LaunchId, Status, Timestamp, VmState};

/// One thing that happens.
#[derive(Debug, Clone)]
enum Event {
    Request(Goal),
    Turn(Luck),
    Outside(Outside),
    Death(Option<Outside>),
    Wait(Duration),
}

fn goals() -> impl Strategy<Value = Goal> {
    let grace_ms = || option::of(Just(30_000));
    prop_oneof![
        3 => Just(Goal::Boot),
        2 => grace_ms().prop_map(|grace_ms| Goal::Shutdown { grace_ms }),
        2 => Just(Goal::Pause),
        2 => Just(Goal::Resume),
        2 => grace_ms().prop_map(|grace_ms| Goal::Reboot { grace_ms }),
        1 => Just(Goal::Update),
        1 => grace_ms().prop_map(|grace_ms| Goal::Delete { grace_ms }),
    ]
}

fn outsides() -> impl Strategy<Value = Outside> {
    prop_oneof![Just(Outside::PowerOff), Just(Outside::Panic), Just(Outside::Kill), Just(Outside::Stall)]
}

fn lucks() -> impl Strategy<Value = Luck> {
    let extents = || prop_oneof![Just(Extent::Nothing), Just(Extent::Half), Just(Extent::All)];
    prop_oneof![
        6 => Just(Luck::Fine),
        2 => (extents(), prop::bool::weighted(0.8)).prop_map(|(after, retryable)| Luck::Fails { after, retryable }),
        1 => (extents(), option::of(outsides())).prop_map(|(after, meanwhile)| Luck::Dies { after, meanwhile }),
    ]
}

fn happenings() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => goals().prop_map(Event::Request),
        10 => lucks().prop_map(Event::Turn),
        2 => outsides().prop_map(Event::Outside),
        1 => option::of(outsides()).prop_map(Event::Death),
        3 => prop_oneof![Just(10), Just(1_000), Just(400_000)].prop_map(|ms| Event::Wait(Duration::from_millis(ms))),
    ]
}

fn policies() -> impl Strategy<Value = RestartPolicy> {
    let modes = prop_oneof![Just(RestartMode::Never), Just(RestartMode::OnFailure), Just(RestartMode::Always)];
    (modes, 0..4u32).prop_map(|(mode, max_retries)| RestartPolicy { mode, max_retries, ..RestartPolicy::default() })
}

fn drivers() -> impl Strategy<Value = (RestartPolicy, bool, bool, bool)> {
    (policies(), any::<bool>(), any::<bool>(), any::<bool>())
}

fn capabilities(graceful: bool) -> Capabilities {
    let mut capabilities = Capabilities::default();
    capabilities.have.insert(Capability::Pause);
    if graceful {
        capabilities.have.insert(Capability::GracefulShutdown);
    }
    capabilities
}

/// Lets nothing go wrong any more until there is nothing to do.
fn run_out(driver: &mut Driver) {
    // Each open operation takes at most all steps and a last turn, each restart a few more.
    let bound = 12 * (driver.open.len() + 3);
    for _ in 0..bound {
        match driver.turn(Luck::Fine) {
            Next::Again => {}
            Next::Rest(until) => driver.now = driver.now.max(until),
            Next::Idle => return,
        }
    }
    panic!("no end after {bound} turns: {:?}, open {:?}", driver.vm, driver.open);
}

/// What must be true once there is nothing to do.
fn check_settled(driver: &Driver) {
    assert!(driver.open.is_empty());
    assert_eq!(driver.ended.len(), driver.accepted, "every accepted operation ended, once");
    let Some(vm) = &driver.vm else {
        assert!(driver.host.is_empty(), "a deleted VM has left {:?}", driver.host);
        return;
    };
    assert!(!vm.desired.deleted, "what is to be deleted is not idle");
    let machine = driver.host.machine();
    let state = vm.state();
    match vm.desired.power {
        Power::Running => assert_eq!(machine, Some(Machine::Running)),
        Power::Paused => assert_eq!(machine, Some(Machine::Paused)),
        Power::Stopped => {
            assert_eq!(machine, None, "what is left of a launch is cleared away");
            assert!(!driver.host.leftovers().of_launches);
        }
    }
    let agrees = match state {
        VmState::Failed => vm.failure.is_some(),
        VmState::Running => machine == Some(Machine::Running),
        VmState::Paused => machine == Some(Machine::Paused),
        VmState::Created | VmState::Shutdown | VmState::Crashed => machine.is_none(),
    };
    assert!(agrees, "{state} of {machine:?}");
    if let (Machine::Ended { cause, .. }, Some(launch)) = (vm.observed.machine, vm.observed.launch) {
        let known = driver.host.cause_of(launch);
        assert!(known.is_none_or(|known| known == cause), "ended by {cause}, and was {known:?}");
    }
    // Who ran once is not "created" again.
    assert!(state != VmState::Created || vm.observed.launch.is_none(), "{state} after {:?}", vm.observed.launch);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_converges(
        (policy, deaf, graceful, start) in drivers(),
        events in vec(happenings(), 0..80),
    ) {
        let power = if start { Power::Running } else { Power::Stopped };
        let mut driver = Driver::new(policy, capabilities(graceful), deaf, power);
        for event in events {
            match event {
                Event::Request(goal) => driver.request(goal),
                Event::Turn(luck) => { driver.turn(luck); }
                Event::Outside(outside) => driver.outside(outside),
                Event::Death(meanwhile) => driver.die(meanwhile),
                Event::Wait(by) => driver.now = driver.now.after(by),
            }
        }
        run_out(&mut driver);
        check_settled(&driver);
        // There it stays, whoever starts the daemon again.
        let settled = driver.vm.clone();
        driver.die(None);
        run_out(&mut driver);
        prop_assert_eq!(driver.vm, settled);
    }

    #[test]
    fn an_accepted_delete_always_gets_there(
        (policy, deaf, graceful, start) in drivers(),
        before in vec(happenings(), 0..40),
        grace_ms in option::of(Just(30_000)),
        after in vec(happenings(), 0..40),
    ) {
        let power = if start { Power::Running } else { Power::Stopped };
        let mut driver = Driver::new(policy, capabilities(graceful), deaf, power);
        let play = |driver: &mut Driver, events: Vec<Event>| {
            for event in events {
                match event {
                    Event::Request(goal) => driver.request(goal),
                    Event::Turn(luck) => { driver.turn(luck); }
                    Event::Outside(outside) => driver.outside(outside),
                    Event::Death(meanwhile) => driver.die(meanwhile),
                    Event::Wait(by) => driver.now = driver.now.after(by),
                }
            }
        };
        play(&mut driver, before);
        driver.request(Goal::Delete { grace_ms });
        prop_assert!(driver.vm.as_ref().is_none_or(|vm| vm.desired.deleted));
        play(&mut driver, after);
        run_out(&mut driver);
        check_settled(&driver);
        prop_assert_eq!(driver.vm, None);
        let deleted = driver.ended.values().any(|o| matches!(o.goal, Goal::Delete { .. }) && o.status == Status::Succeeded);
        prop_assert!(deleted);
    }

    #[test]
    fn what_always_fails_ends_as_failed(
        (policy, deaf, graceful, start) in drivers(),
        goals in vec(goals(), 0..6),
        after in prop_oneof![Just(Extent::Nothing), Just(Extent::Half)],
    ) {
        let power = if start { Power::Running } else { Power::Stopped };
        let mut driver = Driver::new(policy, capabilities(graceful), deaf, power);
        goals.into_iter().for_each(|goal| driver.request(goal));
        // What nobody asked for may be tried for ever.
        for _ in 0..400 {
            if driver.open.is_empty() {
                break;
            }
            if let Next::Rest(until) = driver.turn(Luck::Fails { after, retryable: true }) {
                driver.now = driver.now.max(until);
            }
        }
        prop_assert!(driver.open.is_empty(), "{:?}", driver.open);
        for operation in driver.ended.values() {
            prop_assert!(operation.attempt <= operation.max_attempts);
            let tried = operation.attempt == operation.max_attempts;
            assert!(operation.status != Status::Failed || tried || matches!(operation.goal, Goal::Reboot { .. }));
        }
        run_out(&mut driver);
        check_settled(&driver);
    }

    #[test]
    fn a_machine_that_always_ends_is_restarted_as_often_as_its_policy_allows(
        policy in policies(),
        outside in prop_oneof![Just(Outside::PowerOff), Just(Outside::Panic), Just(Outside::Kill)],
        runs_ms in vec(prop_oneof![Just(0u64), Just(1_000), Just(10_000_000)], 1..20),
    ) {
        let mut driver = Driver::new(policy, capabilities(true), false, Power::Running);
        run_out(&mut driver);
        let (mut in_row, mut given_up) = (0, false);
        for ran_ms in runs_ms {
            driver.now = driver.now.after(Duration::from_millis(ran_ms));
            driver.outside(outside);
            run_out(&mut driver);
            let cause = match outside {
                Outside::PowerOff => ExitCause::PowerOff,
                Outside::Panic => ExitCause::Panic,
                _ => ExitCause::Killed,
            };
            if Duration::from_millis(ran_ms) >= policy.forgiven_after() {
                in_row = 0;
            }
            in_row += 1;
            let restarts = policy.restarts(cause) && (policy.max_retries == 0 || in_row <= policy.max_retries);
            let vm = driver.vm.as_ref().unwrap();
            let state = vm.state();
            if !restarts {
                given_up = policy.restarts(cause);
                let crashed = if cause.is_failure() { VmState::Crashed } else { VmState::Shutdown };
                prop_assert_eq!(state, if given_up { VmState::Failed } else { crashed });
                break;
            }
            prop_assert_eq!(state, VmState::Running);
        }
        // Somebody asks: that is another chance.
        driver.request(Goal::Boot);
        run_out(&mut driver);
        let vm = driver.vm.as_ref().unwrap();
        prop_assert_eq!(vm.state(), VmState::Running);
        prop_assert!(!given_up || vm.restarts.in_row == 0);
    }
}

/// Every machine, and what may be left over beside it.
fn situations() -> impl Iterator<Item = (Machine, Leftovers)> {
    let ended = |lingering| Machine::Ended { cause: ExitCause::Panic, lingering };
    let machines = [Machine::Absent, Machine::Defined, Machine::Running, Machine::Paused, ended(true), ended(false)];
    let leftovers = [(false, false), (false, true), (true, true)];
    machines.into_iter().flat_map(move |m| leftovers.map(|(of_launches, of_vm)| (m, Leftovers { of_launches, of_vm })))
}

fn targets() -> impl Iterator<Item = Target> {
    let stops = [Stop::Forced, graceful()];
    let powers = [Power::Stopped, Power::Running, Power::Paused];
    let power = powers.into_iter().flat_map(move |p| stops.map(|s| Target::Power(p, s)));
    power.chain(stops.map(Target::Gone))
}

fn observed(machine: Machine) -> Observed {
    Observed { machine, launch: Some(LaunchId::from_parts(1, [0; 10])), since: Timestamp::default() }
}

/// What a step brings about when nothing goes wrong.
fn after(step: Step, machine: Machine, left: Leftovers) -> (Machine, Leftovers) {
    match step {
        Step::Define => (Machine::Defined, Leftovers { of_vm: true, ..left }),
        Step::Launch => (Machine::Running, Leftovers { of_launches: true, of_vm: true }),
        Step::Pause => (Machine::Paused, left),
        Step::Resume => (Machine::Running, left),
        Step::Shutdown(_) => (Machine::Ended { cause: ExitCause::Panic, lingering: true }, left),
        Step::Clear => {
            let machine = match machine {
                Machine::Ended { cause, .. } => Machine::Ended { cause, lingering: false },
                other => other,
            };
            (machine, Leftovers { of_launches: false, ..left })
        }
        Step::Remove => (Machine::Absent, Leftovers::default()),
    }
}

#[test]
fn targets_follow_from_goals_and_wishes() {
    let wish = |power, deleted| Desired { power, deleted };
    let forced = |power| Target::Power(power, Stop::Forced);
    for power in [Power::Stopped, Power::Running, Power::Paused] {
        assert_eq!(Target::reconciled(wish(power, false)), forced(power));
        assert_eq!(Target::reconciled(wish(power, true)), Target::Gone(Stop::Forced));
        assert_eq!(Target::of(&Goal::Update, wish(power, false)), forced(power));
        assert_eq!(Target::of(&Goal::Update, wish(power, true)), Target::Gone(Stop::Forced));
        assert_eq!(Target::of(&Goal::Create { power }, wish(Power::Stopped, false)), forced(power));
    }
    let of = |goal: Goal| Target::of(&goal, wish(Power::Stopped, false));
    let (soft, grace_ms) = (Stop::Graceful(Duration::from_millis(7)), Some(7));
    assert_eq!(of(Goal::Boot), forced(Power::Running));
    assert_eq!(of(Goal::Resume), forced(Power::Running));
    assert_eq!(of(Goal::Reboot { grace_ms }), forced(Power::Running));
    assert_eq!(of(Goal::Pause), forced(Power::Paused));
    assert_eq!(of(Goal::Shutdown { grace_ms }), Target::Power(Power::Stopped, soft));
    assert_eq!(of(Goal::Shutdown { grace_ms: None }), forced(Power::Stopped));
    assert_eq!(of(Goal::Delete { grace_ms }), Target::Gone(soft));
    assert_eq!(of(Goal::Delete { grace_ms: None }), Target::Gone(Stop::Forced));
}

#[test]
fn a_plan_that_is_made_again_after_a_step_is_the_rest_of_the_plan() {
    for graceful in [false, true] {
        let capabilities = capabilities(graceful);
        for target in targets() {
            for (machine, left) in situations() {
                let steps = plan(target, observed(machine), left, &capabilities);
                assert!(steps.len() <= 4, "{target:?} from {machine:?}, {left:?}: {steps:?}");
                let Some((first, rest)) = steps.split_first() else { continue };
                let (then, then_left) = after(*first, machine, left);
                let again = plan(target, observed(then), then_left, &capabilities);
                assert_eq!(again, rest, "{target:?} from {machine:?}, {left:?} after {first:?}");
            }
        }
    }
}

#[test]
fn a_plan_that_is_carried_out_reaches_its_target() {
    let capabilities = capabilities(true);
    for target in targets() {
        for (machine, left) in situations() {
            let steps = plan(target, observed(machine), left, &capabilities);
            let (end, end_left) = steps.iter().fold((machine, left), |(m, l), step| after(*step, m, l));
            match target {
                Target::Power(Power::Running, _) => assert_eq!(end, Machine::Running),
                Target::Power(Power::Paused, _) => assert_eq!(end, Machine::Paused),
                Target::Power(Power::Stopped, _) => {
                    assert!(!end.is_up() && end != Machine::Absent, "{target:?} from {machine:?} ends as {end:?}");
                    assert!(!end_left.of_launches, "{target:?} from {machine:?}, {left:?}: {steps:?}");
                }
                Target::Gone(_) => {
                    assert_eq!(end, Machine::Absent);
                    assert_eq!(end_left, Leftovers::default(), "{target:?} from {machine:?}, {left:?}: {steps:?}");
                }
            }
        }
    }
}

#[test]
fn a_step_done_twice_is_done_once() {
    let launch = LaunchId::from_parts(1, [0; 10]);
    let step = |s| Act::Step(s, launch);
    let mut hosts = vec![Host::default()];
    for s in [Step::Define, Step::Launch, Step::Pause, Step::Resume, Step::Shutdown(Stop::Forced), Step::Clear] {
        let mut next = hosts[hosts.len() - 1].clone();
        next.act(step(s), Extent::All).unwrap();
        hosts.push(next);
    }
    for before in hosts {
        for s in [Step::Define, Step::Pause, Step::Resume, Step::Shutdown(graceful()), Step::Clear, Step::Remove] {
            for extent in [Extent::Nothing, Extent::Half, Extent::All] {
                let (mut once, mut twice) = (before.clone(), before.clone());
                if once.act(step(s), Extent::All).is_err() {
                    continue;
                }
                let first: Result<Effect, _> = twice.act(step(s), extent);
                assert!(first.is_ok());
                twice.act(step(s), Extent::All).unwrap();
                assert_eq!(once, twice, "{s:?} after {extent:?} of it");
            }
        }
    }
}
