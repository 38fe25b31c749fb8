//! Everything that needs a daemon and no real machine.

use roost_testkit::TestDaemon;
use rustix::process::Signal;

use crate::support::Roost;

fn simulated() -> (TestDaemon, Roost) {
    let daemon = TestDaemon::start(&["backend=sim", "sim.hosted=false"]);
    let roost = Roost::new(&daemon.state_dir());
    (daemon, roost)
}

#[test]
fn a_vm_lives_from_create_to_delete() {
    let (_daemon, roost) = simulated();
    let args = ["vm", "create", "web", "--kernel", "/k", "--memory", "128MiB", "--cpus", "2", "--metadata", "tier=a"];
    assert_eq!(roost.ok(&args), "web: created\n");
    assert!(roost.fails(5, &args).contains("another name"));
    assert_eq!(roost.ok(&["vm", "start", "web"]), "web: started\n");
    assert_eq!(roost.ok(&["vm", "wait", "web", "--timeout", "30s"]), "web is running\n");
    let list = roost.ok(&["vm", "list"]);
    let row: Vec<&str> = list.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..5], ["web", "running", "sim", "2", "128MiB"], "{list}");
    let shown = roost.ok(&["vm", "get", "web"]);
    for line in ["State:        running", "Accelerator:  simulated", "Metadata:     tier=a", "Kernel:       /k"] {
        assert!(shown.contains(line), "{shown}");
    }
    for (verb, done, state) in [("pause", "paused", "paused"), ("resume", "resumed", "running")] {
        assert_eq!(roost.ok(&["vm", verb, "web"]), format!("web: {done}\n"));
        assert_eq!(roost.ok(&["vm", "list", "-q", "--state", state]), "web\n");
    }
    assert_eq!(roost.ok(&["vm", "reboot", "web", "--force"]), "web: rebooted\n");
    let refused = roost.fails(5, &["vm", "delete", "web"]);
    assert!(refused.contains("roost vm stop web") && refused.contains("--force"), "{refused}");
    assert_eq!(roost.ok(&["vm", "stop", "web", "--timeout", "5s"]), "web: stopped\n");
    assert_eq!(roost.ok(&["vm", "update", "web", "--memory", "256MiB", "--cpus", "1"]), "web: updated\n");
    let vm = roost.json(&["vm", "get", "web"]);
    assert_eq!(
        (&vm["config"]["memory"]["sizeBytes"], &vm["state"]),
        (&"268435456".into(), &"VM_STATE_SHUTDOWN".into())
    );
    assert_eq!(vm["config"]["metadata"]["tier"], "a");
    assert!(roost.fails(5, &["vm", "update", "web", "--cpus", "2", "--resource-version", "1"]).contains("read the VM"));
    assert!(roost.fails(5, &["console", "web"]).contains("does not run"));
    assert_eq!(roost.ok(&["vm", "delete", "web"]), "web: deleted\n");
    for args in [&["vm", "get", "web"][..], &["vm", "start", "web"], &["vm", "logs", "web"], &["vm", "wait", "web"]] {
        assert!(roost.fails(4, args).contains("roost vm list"), "{args:?}");
    }
}

#[test]
fn documents_are_the_apis_own_json_and_parse() {
    let (_daemon, roost) = simulated();
    let created = roost.json(&["vm", "create", "web", "--kernel", "/k", "--start"]);
    assert_eq!((&created["state"], &created["operation"]["kind"]), (&"VM_STATE_RUNNING".into(), &"vm:create".into()));
    assert_eq!(roost.json(&["vm", "list"])["vms"][0]["name"], "web");
    assert_eq!(roost.json(&["vm", "get", "web"])["vm"]["name"], "web");
    let operation = created["operation"]["id"].as_str().unwrap();
    assert_eq!(roost.json(&["operation", "get", operation])["status"], "OPERATION_STATUS_SUCCEEDED");
    assert_eq!(roost.json(&["operation", "wait", operation])["id"], operation);
    assert_eq!(roost.json(&["operation", "list", "--vm", "web"])["operations"].as_array().unwrap().len(), 1);
    assert!(roost.json(&["backend", "list"])["backends"].as_array().unwrap().len() >= 2);
    assert!(!roost.json(&["doctor"])["findings"].as_array().unwrap().is_empty());
    assert!(roost.json(&["version"])["daemon"]["version"].is_string());
    let yaml: serde_json::Value = serde_norway::from_str(&roost.ok(&["vm", "get", "web", "-o", "yaml"])).unwrap();
    assert_eq!(yaml["vm"]["name"], "web");
    // What is read out can be sent back.
    let config = roost.json(&["vm", "get", "web"])["config"].clone();
    let document = serde_json::json!({"config": config}).to_string();
    assert_eq!(roost.ok(&["vm", "stop", "web"]), "web: stopped\n");
    let updated = roost.run_with(&["vm", "update", "web", "-f", "-", "--metadata", "again=1"], document.as_bytes());
    assert_eq!(updated.code, 0, "{updated:?}");
    let many = roost.json(&["vm", "start", "web"]);
    assert_eq!(many["state"], "VM_STATE_RUNNING");
}

#[test]
fn many_are_created_together_or_not_at_all() {
    let (daemon, roost) = simulated();
    assert_eq!(roost.ok(&["vm", "create", "n", "--kernel", "/k", "--count", "3"]).lines().count(), 3);
    let names = |args: &[&str]| {
        let mut names: Vec<String> = roost.ok(args).lines().map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(names(&["vm", "list", "-q"]), ["n-1", "n-2", "n-3"]);
    // n-3 is there: not even n-4 to n-5 of the next five are made.
    roost.fails(2, &["vm", "create", "n", "--kernel", "", "--count", "5"]);
    roost.fails(5, &["vm", "create", "n", "--kernel", "/k", "--count", "5"]);
    assert_eq!(names(&["vm", "list", "-q"]).len(), 3);
    let file = daemon.state_dir().join("many.yaml");
    let one = |name: &str| {
        format!(
            "name: {name}\nconfig: {{memory: {{size_bytes: 64MiB}}, boot: {{kernel_path: /k}}, metadata: {{set: s}}}}\n"
        )
    };
    std::fs::write(&file, format!("{}---\n{}", one("a"), one("b"))).unwrap();
    assert_eq!(roost.json(&["vm", "create", "-f", file.to_str().unwrap(), "--start"]).as_array().unwrap().len(), 2);
    assert_eq!(names(&["vm", "list", "-q", "--metadata", "set=s", "--state", "running"]), ["a", "b"]);
    // One that fails does not keep the others from it, and its exit code is the command's.
    let did = roost.run(&["vm", "delete", "a", "nobody", "b", "--force"]);
    assert_eq!((did.code, did.out.as_str()), (4, "a: deleted\nb: deleted\n"), "{did:?}");
    assert!(did.err.contains("nobody: error") && did.err.contains("1 of 3 failed"), "{did:?}");
    // One that runs is no reason to keep the others either.
    roost.ok(&["vm", "start", "n-2"]);
    let did = roost.run(&["vm", "delete", "n-1", "n-2", "n-3"]);
    assert_eq!((did.code, did.out.as_str()), (5, "n-1: deleted\nn-3: deleted\n"), "{did:?}");
    assert!(did.err.contains("n-2 is running") && did.err.contains("1 of 3 failed"), "{did:?}");
    assert_eq!(names(&["vm", "list", "-q"]), ["n-2"]);
}

#[test]
fn all_pages_are_listed() {
    let (_daemon, roost) = simulated();
    for batch in ["p", "q"] {
        let args = ["vm", "create", batch, "--kernel", "/k", "--memory", "16MiB", "--count", "600", "-q"];
        assert_eq!(roost.ok(&args), "");
    }
    assert_eq!(roost.ok(&["vm", "list", "-q"]).lines().count(), 1200);
    assert_eq!(roost.json(&["vm", "list"])["totalSize"], "1200");
    assert_eq!(roost.ok(&["operation", "list", "-q", "--limit", "0"]).lines().count(), 1200);
    assert_eq!(roost.ok(&["operation", "list", "-q", "--limit", "7"]).lines().count(), 7);
}

#[test]
fn a_repeated_request_has_the_same_answer() {
    let (_daemon, roost) = simulated();
    let args = ["vm", "create", "web", "--kernel", "/k", "--async", "--idempotency-key", "k1"];
    let operation = roost.ok(&args);
    assert!(operation.starts_with("op_"), "{operation}");
    assert_eq!(roost.ok(&args), operation);
    let other = ["vm", "create", "web", "--kernel", "/other", "--async", "--idempotency-key", "k1"];
    assert!(roost.fails(5, &other).contains("a new key"));
    assert!(roost.ok(&["operation", "wait", operation.trim()]).contains("succeeded"));
    assert!(roost.fails(5, &["operation", "cancel", operation.trim()]).contains("ended already"));
    assert!(roost.fails(2, &["operation", "get", "nonsense"]).contains("operation"));
    let nobody = "op_018bcfe5-6800-7000-8000-000000000000";
    assert!(roost.fails(4, &["operation", "get", nobody]).contains("roost operation list"));
}

#[test]
fn what_the_daemon_refuses_names_the_field_and_what_is_permitted() {
    let (_daemon, roost) = simulated();
    let said = roost.fails(2, &["vm", "create", "web", "--kernel", "/k", "--backend", "nope"]);
    assert!(said.contains("\"nope\"") && said.contains("sim") && said.contains("roost backend list"), "{said}");
    let said = roost.fails(2, &["vm", "create", "web", "--kernel", "/k", "--machine", "pc"]);
    assert!(said.contains("config.machine") && said.contains("q35"), "{said}");
    let said = roost.fails(2, &["vm", "create", "web"]);
    assert!(said.contains("config.boot") && said.contains("kernel"), "{said}");
    assert_eq!(roost.ok(&["vm", "list", "-q"]), "");
}

#[test]
fn events_are_printed_as_they_happen() {
    let (_daemon, roost) = simulated();
    roost.ok(&["vm", "create", "web", "--kernel", "/k"]);
    let mut watch = roost.spawn(&["vm", "watch", "web", "--snapshot", "-o", "json"]);
    // The snapshot says that it listens.
    watch.until("VM_STATE_CREATED");
    roost.ok(&["vm", "start", "web"]);
    let line = watch.until("VM_STATE_RUNNING") + &watch.until("\n");
    let last: serde_json::Value = serde_json::from_str(line.lines().last().unwrap()).unwrap();
    assert_eq!(last["vm"]["state"], "VM_STATE_RUNNING");
    watch.signal(Signal::INT);
    assert_eq!(watch.end().code, 130);

    let from = last["position"].as_str().unwrap().to_owned();
    let mut watch = roost.spawn(&["vm", "watch", "--from", &from]);
    roost.ok(&["vm", "stop", "web"]);
    let text = watch.until("shutdown");
    assert!(text.contains("web"), "{text}");
    watch.signal(Signal::TERM);
    assert_eq!(watch.end().code, 143);
}

#[test]
fn waiting_ends_with_the_state_the_time_or_the_vm() {
    let (_daemon, roost) = simulated();
    roost.ok(&["vm", "create", "web", "--kernel", "/k"]);
    let waiting = roost.spawn(&["vm", "wait", "web", "--state", "running"]);
    roost.ok(&["vm", "start", "web"]);
    assert_eq!(waiting.end().code, 0);
    let said = roost.fails(7, &["vm", "wait", "web", "--state", "paused", "--timeout", "200ms"]);
    assert!(said.contains("to be paused") && said.contains("roost vm get web"), "{said}");
    let waiting = roost.spawn(&["vm", "wait", "web", "--state", "paused"]);
    roost.ok(&["vm", "delete", "web", "--force"]);
    let did = waiting.end();
    assert_eq!(did.code, 4, "{did:?}");
}

#[test]
fn names_complete() {
    let (_daemon, roost) = simulated();
    roost.ok(&["vm", "create", "web", "--kernel", "/k", "--count", "2"]);
    roost.ok(&["vm", "create", "db", "--kernel", "/k"]);
    let complete = |words: &[&str]| {
        let mut command = roost.command(&[&["--"], words].concat());
        let index = (words.len() - 1).to_string();
        let output = command.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", index).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        words.sort();
        words
    };
    assert_eq!(complete(&["roost", "vm", "start", "w"]), ["web-1", "web-2"]);
    assert_eq!(complete(&["roost", "console", "d"]), ["db"]);
    assert_eq!(complete(&["roost", "vm", "wa"]), ["wait", "watch"]);
}
