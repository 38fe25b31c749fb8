//! Without a daemon: usage, spec files, and what is said when nobody answers.

use std::io::Write;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Roost, until};

fn alone() -> (tempfile::TempDir, Roost) {
    let dir = tempfile::tempdir().unwrap();
    let roost = Roost::new(dir.path());
    (dir, roost)
}

#[test]
fn every_command_that_needs_the_daemon_says_that_there_is_none() {
    let (dir, roost) = alone();
    let socket = dir.path().join("run/api.sock");
    for args in [
        &["vm", "list"][..],
        &["vm", "get", "web"],
        &["vm", "create", "web", "--kernel", "/k"],
        &["vm", "start", "web"],
        &["vm", "stop", "web"],
        &["vm", "delete", "web"],
        &["vm", "logs", "web"],
        &["vm", "watch"],
        &["vm", "wait", "web"],
        &["console", "web"],
        &["operation", "list"],
        &["operation", "wait", "op_1"],
        &["backend", "list"],
        &["doctor"],
    ] {
        let said = roost.fails(3, args);
        assert!(said.contains(socket.to_str().unwrap()), "{args:?}: {said}");
        assert!(said.contains("hint: start it with roost daemon start"), "{args:?}: {said}");
        assert_eq!(roost.run(args).out, "", "{args:?}");
    }
    let version = roost.ok(&["version"]);
    assert!(version.contains("client 0") && version.contains("no daemon answers"), "{version}");
    assert_eq!(roost.json(&["version"])["daemon"], serde_json::Value::Null);
}

#[test]
fn the_socket_is_taken_from_the_flag_before_the_environment_before_the_file() {
    let (dir, roost) = alone();
    let file = dir.path().join("config.toml");
    std::fs::write(&file, "socket = \"/nonexistent/c.sock\"\n").unwrap();
    let output = roost.command(&["vm", "list"]).env("ROOST_CONFIG", &file).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/c.sock"), "{output:?}");
    std::fs::write(&file, "socket = [\n").unwrap();
    let output = roost.command(&["vm", "list"]).env("ROOST_CONFIG", &file).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains(file.to_str().unwrap()), "{output:?}");

    assert!(roost.fails(3, &["vm", "list", "--socket", "/nonexistent/a.sock"]).contains("/nonexistent/a.sock"));
    let mut command = roost.command(&["vm", "list"]);
    let output = command.env("ROOST_SOCKET", "/nonexistent/b.sock").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/b.sock"));
}

#[test]
fn bad_usage_is_exit_code_2_and_names_what_is_permitted() {
    let (_dir, roost) = alone();
    let cases: [(&[&str], &str); 14] = [
        (&["vm", "lst"], "list"),
        (&["vm", "create", "--memory", "lots"], "MiB"),
        (&["vm", "create", "vm1,process=EVIL", "--kernel", "/k"], "name"),
        (&["vm", "create", "a b", "--kernel", "/k"], "name"),
        (&["vm", "create", "web", "--disk", "/x.raw,cache=none"], "readonly"),
        (&["vm", "create", "web", "--disk", "/x.vmdk"], "format="),
        (&["vm", "create", "web", "--publish", "22"], "HOSTPORT"),
        (&["vm", "create", "web", "--net", "none", "--publish", "1:1"], "--net user"),
        (&["vm", "create", "--count", "3"], "NAME"),
        (&["vm", "create", "web", "--count", "1001"], "1..=1000"),
        (&["vm", "list", "--state", "up"], "running"),
        (&["vm", "stop", "web", "--timeout", "0"], "one second"),
        (&["vm", "stop", "a", "b", "--idempotency-key", "k"], "one VM"),
        (&["vm", "update", "web"], "nothing to change"),
    ];
    for (args, needle) in cases {
        let said = roost.fails(2, args);
        assert!(said.contains(needle), "{args:?}: {said}");
    }
}

#[test]
fn a_spec_is_judged_before_anything_is_sent() {
    let (dir, roost) = alone();
    let file = dir.path().join("vm.yaml");
    let path = file.to_str().unwrap();
    let cases = [
        ("name: web\nconfig: {memory: {sizebytes: 1GiB}}\n", "config.memory.sizebytes", "size_bytes"),
        ("name: web\nconfig: {storage: [{pth: /a}]}\n", "config.storage[0].pth", "\"path\""),
        ("name: web\nstrat: true\n", "strat", "\"start\""),
        ("name: web\nconfig: {cpu: {vcpu_count: many}}\n", "config.cpu.vcpu_count", "many"),
        ("name: web\nname: db\n", "duplicate", "name"),
        ("name: we\u{1b}[31mb\nconfig: {}\n", "vm.yaml", "control"),
    ];
    for (text, place, needle) in cases {
        std::fs::write(&file, text).unwrap();
        let said = roost.fails(2, &["vm", "create", "-f", path]);
        assert!(said.contains(place) && said.contains(needle), "{text}: {said}");
        assert!(!said.contains('\u{1b}'), "{said:?}");
    }
    // What is fine gets as far as the daemon, from a file and from a pipe.
    let fine = "name: web\nconfig:\n  memory: {size_bytes: 256MiB}\n  boot: {kernelPath: /k}\n";
    std::fs::write(&file, fine).unwrap();
    roost.fails(3, &["vm", "create", "-f", path]);
    assert_eq!(roost.run_with(&["vm", "create", "-f", "-"], fine.as_bytes()).code, 3);
    std::fs::write(&file, format!("{fine}---\n{}", fine.replace("web", "db"))).unwrap();
    roost.fails(3, &["vm", "create", "-f", path]);
    assert!(roost.fails(2, &["vm", "create", "one", "-f", path]).contains("several documents"));
    assert!(roost.fails(2, &["vm", "create", "-f", "/nonexistent.yaml"]).contains("/nonexistent.yaml"));
}

#[test]
fn an_interruption_is_heard_while_a_spec_is_typed() {
    let (_dir, roost) = alone();
    let mut command = roost.command(&["vm", "create", "-f", "-"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It reads: the pipe is empty again.
    child.stdin.as_mut().unwrap().write_all(b"name: web\n").unwrap();
    until("the spec is being read", || {
        (rustix::io::ioctl_fionread(child.stdin.as_ref().unwrap()).unwrap() == 0).then_some(())
    });
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(until("it ends", || child.try_wait().unwrap()).code(), Some(130));
}

#[test]
fn help_tells_the_exit_codes_and_every_command_has_one() {
    let (_dir, roost) = alone();
    let help = roost.ok(&["--help"]);
    for line in ["Exit codes:", "  3    no daemon answers", "  130  interrupted"] {
        assert!(help.contains(line), "{help}");
    }
    for command in ["create", "list", "get", "start", "stop", "pause", "resume", "reboot"] {
        roost.ok(&["vm", command, "--help"]);
    }
    for command in ["update", "delete", "logs", "console", "watch", "wait"] {
        roost.ok(&["vm", command, "--help"]);
    }
}

#[test]
fn shells_get_a_script_and_without_a_daemon_no_candidates_and_no_noise() {
    let (_dir, roost) = alone();
    for (shell, needle) in [("bash", "complete"), ("zsh", "#compdef roost"), ("fish", "complete")] {
        let script = roost.ok(&["completion", shell]);
        assert!(script.contains(needle) && script.contains("COMPLETE"), "{script}");
    }
    let mut command = roost.command(&["--", "roost", "vm", "start", ""]);
    let output = command.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "3").output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let (_dir, roost) = alone();
    let mut child = roost.command(&["completion", "bash"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
