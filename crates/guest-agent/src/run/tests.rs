use proptest::prelude::*;

use super::*;

fn path() -> Vec<PathBuf> {
    ["/usr/bin", "/bin"].map(PathBuf::from).into()
}

fn run(program: Program) -> Finished {
    program.run(&path(), &Cancel::new().unwrap()).unwrap()
}

fn sh(script: &str) -> Program {
    Program::new(["sh", "-c", script])
}

#[test]
fn the_exit_and_both_outputs() {
    let finished = run(sh("echo out; echo err >&2; exit 3"));
    assert_eq!((finished.exit_code(), finished.signal(), finished.ending), (Some(3), None, Ending::ByItself));
    assert_eq!((finished.stdout.as_slice(), finished.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(run(sh("kill -9 $$")).signal(), Some(9));
}

#[test]
fn the_environment_is_small() {
    let finished = run(Program::new(["env"]).env("A", "b"));
    let text = String::from_utf8(finished.stdout).unwrap();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=b", "HOME=/root", "LC_ALL=C.UTF-8", "PATH=/usr/bin:/bin"]);
}

#[test]
fn input_larger_than_a_pipe_and_a_program_that_reads_none() {
    let input = vec![b'x'; 300_000];
    let finished = run(Program::new(["cat"]).input(Zeroizing::new(input.clone())).output_limit(1 << 20));
    assert_eq!(finished.stdout, input);
    assert!(run(Program::new(["true"]).input(Zeroizing::new(input))).succeeded());
    assert!(run(Program::new(["cat"])).stdout.is_empty(), "no input is the end at once");
}

#[test]
fn endless_output_is_cut_and_the_time_is_kept() {
    let finished = run(Program::new(["yes"]).time(Duration::from_millis(200)).output_limit(1000));
    assert_eq!((finished.ending, finished.signal()), (Ending::TimeUp, Some(15)));
    assert_eq!(finished.stdout.len(), 1000);
    assert!(finished.stdout_dropped > 100_000, "{}", finished.stdout_dropped);
}

#[test]
fn the_group_of_one_that_ignores_sigterm_is_killed() {
    let script = "trap '' TERM; sh -c 'trap \"\" TERM; echo $$; exec sleep 1000' & wait; wait; sleep 1000";
    let finished = run(sh(script).time(Duration::from_millis(300)).grace(Duration::from_millis(300)));
    assert_eq!((finished.ending, finished.signal()), (Ending::TimeUp, Some(9)));
    let inner: i32 = String::from_utf8(finished.stdout).unwrap().trim().parse().unwrap();
    assert!(wait_gone(inner), "{inner} is alive");
}

/// It is nobody's child here: whoever adopts it may leave it a zombie.
fn wait_gone(pid: i32) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Err(_) => return true,
            Ok(stat) if stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')) => return true,
            Ok(_) => std::thread::yield_now(),
        }
    }
    false
}

#[test]
fn a_daemon_that_keeps_the_pipes_is_not_waited_for() {
    let started = Instant::now();
    let finished = run(sh("sleep 1000 & echo $!"));
    assert!(finished.succeeded() && started.elapsed() < Duration::from_secs(20));
    let daemon: i32 = String::from_utf8(finished.stdout).unwrap().trim().parse().unwrap();
    let daemon = Pid::from_raw(daemon).unwrap();
    rustix::process::kill_process(daemon, Signal::KILL).expect("it goes on when its parent has ended by itself");
}

#[test]
fn cancelling_ends_it_at_once() {
    let cancel = Cancel::new().unwrap();
    let other = cancel.clone();
    let thread = std::thread::spawn(move || Program::new(["sleep", "1000"]).run(&path(), &other));
    cancel.cancel();
    let finished = thread.join().unwrap().unwrap();
    assert_eq!(finished.ending, Ending::Cancelled);
    assert!(cancel.wait(Duration::from_secs(1000)), "a wait ends as well");
}

#[test]
fn what_cannot_run_says_why() {
    let error = Program::new(["no-such-program"]).run(&path(), &Cancel::new().unwrap()).unwrap_err();
    assert_eq!(error.to_string(), r#"no program "no-such-program" in ["/usr/bin", "/bin"]"#);
    let error = Program::new(["/etc/passwd"]).run(&path(), &Cancel::new().unwrap()).unwrap_err();
    assert!(matches!(error, RunError::Spawn(..)));
    assert!(find("".as_ref(), &path()).is_none());
}

proptest! {
    #[test]
    fn a_capture_keeps_head_and_tail(
        limit in 0usize..40,
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..12),
    ) {
        let all = pieces.concat();
        let mut capture = Capture::new(limit);
        pieces.iter().for_each(|piece| capture.push(piece));
        let (kept, dropped) = capture.finish();
        prop_assert_eq!(kept.len() as u64 + dropped, all.len() as u64);
        prop_assert_eq!(kept.len(), all.len().min(limit));
        let head = limit.div_ceil(2).min(kept.len());
        prop_assert_eq!(&kept[..head], &all[..head]);
        prop_assert!(all.ends_with(&kept[head..]));
    }
}
