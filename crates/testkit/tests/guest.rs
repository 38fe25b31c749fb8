//! What is done in a real guest, through the daemon and its agent.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use roost_client::v1::exec_request::Message as Asked;
use roost_client::v1::exec_response::Message as Told;
use roost_client::{Client, ErrorCode, v1};
use roost_testkit::{TestDaemon, tiny};
use sha2::{Digest, Sha256};
use v1::ExecutionStatus as E;

const MIB: usize = 1 << 20;

/// A guest with a connected agent, which may do everything in /tmp.
async fn up(daemon: &TestDaemon, client: &Client, name: &str) -> String {
    let mut request = tiny(name);
    request.start = true;
    let config = request.config.get_or_insert_default();
    config.memory.get_or_insert_default().size_bytes = 512 << 20;
    let agent = config.agent.get_or_insert_default();
    agent.allow_exec = true;
    agent.file_roots = vec!["/tmp".to_owned()];
    agent.metrics_interval_seconds = 1;
    let id = client.create_vm(request).await.unwrap().vm_id;
    connected(daemon, client, &id).await;
    id
}

fn is_connected(vm: &v1::Vm) -> bool {
    vm.conditions.iter().any(|c| c.r#type == "AgentConnected" && c.status)
}

async fn connected(daemon: &TestDaemon, client: &Client, id: &str) {
    daemon.until(client, id, is_connected).await;
}

fn command(command: &str, args: &[&str]) -> v1::Command {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    v1::Command { command: command.to_owned(), args, ..Default::default() }
}

fn line(line: &str) -> v1::Command {
    v1::Command { shell: true, ..command(line, &[]) }
}

async fn run(client: &Client, vm: &str, command: v1::Command) -> v1::Execution {
    let request = v1::RunRequest { vm_id: vm.to_owned(), command: command.into(), ..Default::default() };
    client.run(request).await.unwrap().execution.into_option().unwrap()
}

async fn action(client: &Client, vm: &str, name: &str) -> serde_json::Value {
    let request = v1::RunActionRequest { vm_id: vm.to_owned(), action: name.to_owned(), ..Default::default() };
    let answer = client.run_action(request).await.unwrap();
    assert_eq!(answer.execution.status, E::EXECUTION_STATUS_SUCCEEDED, "{answer:?}");
    serde_json::to_value(answer.data.into_option().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_run_and_leave_a_record_without_secrets() {
    let daemon = TestDaemon::start(&[]);
    let client = daemon.client();
    let vm = up(&daemon, &client, "web").await;

    let ran = run(&client, &vm, command("/bin/echo", &["a b", "$HOME", ";"])).await;
    assert_eq!(
        (ran.status, ran.exit_code, ran.stdout.as_str()),
        (E::EXECUTION_STATUS_SUCCEEDED.into(), Some(0), "a b $HOME ;\n")
    );
    let ran = run(&client, &vm, line("echo out; echo err >&2; exit 3")).await;
    assert_eq!((ran.status, ran.exit_code), (E::EXECUTION_STATUS_FAILED.into(), Some(3)));
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(run(&client, &vm, line("kill -9 $$")).await.signal, Some(9));
    let ran = run(&client, &vm, command("no-such-program", &[])).await;
    assert_eq!((ran.exit_code, ran.error.contains("no-such-program")), (Some(127), true), "{ran:?}");

    let secret = v1::Command {
        env: BTreeMap::from([("PLAIN".to_owned(), "p1".to_owned())]),
        secrets: BTreeMap::from([("TOKEN".to_owned(), "hunter2".to_owned())]),
        working_dir: "/tmp".to_owned(),
        ..line("pwd; echo $PLAIN; echo -n $TOKEN | wc -c")
    };
    let ran = run(&client, &vm, secret).await;
    assert_eq!(ran.stdout.split_whitespace().collect::<Vec<_>>(), ["/tmp", "p1", "7"]);
    assert_eq!(ran.env_names, ["PLAIN", "TOKEN"]);
    let request = v1::RunRequest {
        vm_id: vm.clone(),
        command: command("tr", &["a-z", "A-Z"]).into(),
        stdin: b"input".to_vec(),
        ..Default::default()
    };
    assert_eq!(client.run(request).await.unwrap().execution.stdout, "INPUT");

    // Ended with all that it started, and what it wrote is there.
    let slow = v1::Command { timeout_seconds: 1, ..line("echo begun; sleep 1000 & sleep 1000") };
    let ran = run(&client, &vm, slow).await;
    assert_eq!((ran.status, ran.stdout.as_str()), (E::EXECUTION_STATUS_FAILED.into(), "begun\n"), "{ran:?}");
    assert_eq!(run(&client, &vm, line("ps | grep -c '[s]leep 1000'")).await.stdout, "0\n");

    let long = run(&client, &vm, line("yes | head -c 3000000; echo end")).await;
    assert!(long.stdout_truncated && long.stdout.len() < 70_000 && long.stdout.ends_with("end\n"));

    let request = v1::ListExecutionsRequest { vm_id: vm.clone(), page_size: 3, ..Default::default() };
    let page = client.list_executions(request.clone()).await.unwrap();
    assert_eq!(page.executions.len(), 3);
    let rest = client.list_executions(v1::ListExecutionsRequest {
        page_token: page.next_page_token,
        page_size: 100,
        ..request
    });
    let rest = rest.await.unwrap();
    assert!(rest.executions.iter().any(|e| e.exit_code == Some(3) && e.stdout == "out\n"));
    let database = std::fs::read(daemon.state_dir().join("state.db")).unwrap();
    let log = std::fs::read(daemon.state_dir().join("state.db-wal")).unwrap_or_default();
    let holds = |bytes: &[u8]| bytes.windows(7).any(|w| w == b"hunter2");
    assert!(!holds(&database) && !holds(&log) && !daemon.log().contains("hunter2"));

    let job = v1::CreateJobRequest {
        vm_id: vm.clone(),
        commands: vec![line("echo 1"), line("false"), line("echo 3")],
        ..Default::default()
    };
    let stops = client.create_job(job.clone()).await.unwrap().job.id.clone();
    let goes_on =
        client.create_job(v1::CreateJobRequest { continue_on_error: true, ..job }).await.unwrap().job.id.clone();
    for (id, begun) in [(stops, 2), (goes_on, 3)] {
        let job = ended(&client, &id).await;
        assert_eq!((job.status, job.execution_ids.len()), (E::EXECUTION_STATUS_FAILED.into(), begun));
        let request = v1::ListExecutionsRequest { job_id: id, ..Default::default() };
        assert_eq!(client.list_executions(request).await.unwrap().executions.len(), begun);
    }
}

/// A job tells nobody that it has ended: it is short, and asked for.
async fn ended(client: &Client, id: &str) -> v1::Job {
    for _ in 0..600 {
        let request = v1::GetJobRequest { job_id: id.to_owned(), ..Default::default() };
        let job = client.get_job(request).await.unwrap().job.into_option().unwrap();
        if job.status != E::EXECUTION_STATUS_RUNNING {
            return job;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the job goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_live_in_both_directions() {
    let daemon = TestDaemon::start(&[]);
    let client = daemon.client();
    let vm = up(&daemon, &client, "web").await;

    let start = v1::ExecStart {
        vm_id: vm.clone(),
        command: command("sh", &[]).into(),
        stdin: true,
        terminal: v1::Terminal { rows: 30, cols: 90, ..Default::default() }.into(),
        ..Default::default()
    };
    let (mut input, mut output) = client.exec(start).await.unwrap().into_split();
    let typed = |text: &str| Asked::Stdin(text.as_bytes().to_vec());
    // A shell throws away what was typed before it was ready.
    until_output(&mut output, "# ").await;
    input.send(typed("stty size; tty\n")).await.unwrap();
    until_output(&mut output, "30 90").await;
    input.send(Asked::Resize(Box::new(v1::Terminal { rows: 50, cols: 120, ..Default::default() }))).await.unwrap();
    // The shell may read the line before the size has changed.
    input.send(typed("until stty size | grep '50 120'; do :; done; sleep 1000\n")).await.unwrap();
    until_output(&mut output, "50 120\r").await;
    input.send(typed("\x03")).await.unwrap();
    input.send(typed("exit 7\n")).await.unwrap();
    assert_eq!(finished(&mut output).await.exit_code, Some(7));

    // Without a terminal input ends, signals arrive, and both outputs are told apart.
    let start = v1::ExecStart {
        vm_id: vm.clone(),
        command: line("cat; echo err >&2").into(),
        stdin: true,
        ..Default::default()
    };
    let (mut input, mut output) = client.exec(start).await.unwrap().into_split();
    input.send(typed("through")).await.unwrap();
    until_output(&mut output, "through").await;
    input.send(Asked::StdinEnd(true)).await.unwrap();
    let execution = finished(&mut output).await;
    assert_eq!((execution.stdout.as_str(), execution.stderr.as_str()), ("through", "err\n"));

    let waits =
        v1::ExecStart { vm_id: vm.clone(), command: line("echo begun; exec sleep 1000").into(), ..Default::default() };
    let (mut input, mut output) = client.exec(waits.clone()).await.unwrap().into_split();
    until_output(&mut output, "begun").await;
    input.send(Asked::Signal("TERM".to_owned())).await.unwrap();
    assert_eq!(finished(&mut output).await.signal, Some(15));

    // Whoever goes away takes the program with it.
    let (input, mut output) = client.exec(waits).await.unwrap().into_split();
    let Some(Told::Started(started)) = output.next().await.unwrap() else { panic!("it is told first") };
    until_output(&mut output, "begun").await;
    drop((input, output));
    let gone = until_final(&client, &started.id).await;
    assert_ne!(gone.status, E::EXECUTION_STATUS_SUCCEEDED);
    assert_eq!(run(&client, &vm, line("ps | grep -c '[s]leep 1000'")).await.stdout, "0\n");

    // One that floods its line starves nobody.
    let flood = v1::ExecStart { vm_id: vm.clone(), command: line("yes").into(), ..Default::default() };
    let (_input, _unread) = client.exec(flood).await.unwrap().into_split();
    assert_eq!(run(&client, &vm, line("echo fine")).await.stdout, "fine\n");
}

async fn until_output(output: &mut roost_client::ExecOutput, wanted: &str) {
    let mut seen = String::new();
    while !seen.contains(wanted) {
        match output.next().await.unwrap() {
            Some(Told::Stdout(bytes) | Told::Stderr(bytes)) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            Some(Told::Started(_)) => {}
            other => panic!("{wanted:?} did not come in {seen:?}, but {other:?}"),
        }
    }
}

async fn finished(output: &mut roost_client::ExecOutput) -> v1::Execution {
    loop {
        match output.next().await.unwrap() {
            Some(Told::Finished(execution)) => return *execution,
            Some(_) => {}
            None => panic!("the end was not told"),
        }
    }
}

async fn until_final(client: &Client, id: &str) -> v1::Execution {
    for _ in 0..600 {
        let request = v1::GetExecutionRequest { execution_id: id.to_owned(), ..Default::default() };
        let execution = client.get_execution(request).await.unwrap().execution.into_option().unwrap();
        if execution.status != E::EXECUTION_STATUS_RUNNING {
            return execution;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{id} goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_arrive_as_they_left() {
    let daemon = TestDaemon::start(&[]);
    let client = daemon.client();
    let vm = up(&daemon, &client, "web").await;
    // Nothing that compresses, and the same each time.
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let content: Vec<u8> = (0..100 * MIB).map(|_| next()).collect();
    let sum: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let start = v1::PushFileStart {
        vm_id: vm.clone(),
        path: "/tmp/big".to_owned(),
        size: Some(content.len() as u64),
        mode: Some(0o640),
        sha256: sum.clone(),
        ..Default::default()
    };
    let pushed = client.push_file(messages(start, &content)).await.unwrap();
    assert_eq!((pushed.size, &pushed.sha256), (content.len() as u64, &sum));
    let stat = v1::StatFileRequest { vm_id: vm.clone(), path: "/tmp/big".to_owned(), ..Default::default() };
    let stat = client.stat_file(stat).await.unwrap();
    assert_eq!((stat.kind.as_str(), stat.mode, stat.size), ("file", 0o640, content.len() as u64));
    let (back, end) = pull(&client, &vm, "/tmp/big").await.unwrap();
    assert!(back == content);
    assert_eq!(end.sha256, sum);

    // What breaks off, or comes out different, is not put in place.
    let short =
        v1::PushFileStart { vm_id: vm.clone(), path: "/tmp/short".to_owned(), size: Some(10), ..Default::default() };
    client.push_file(messages(short, b"12345")).await.unwrap_err();
    let refused = pull(&client, &vm, "/tmp/short").await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::NotFound, "{refused}");
    // The policy ends at the roots, whatever leads out of them.
    run(&client, &vm, line("ln -s /etc /tmp/way-out; mkdir /tmp/dir")).await;
    for path in ["/etc/passwd", "/tmp/../etc/passwd", "/tmp/way-out/passwd"] {
        let refused = pull(&client, &vm, path).await.unwrap_err();
        let codes = [ErrorCode::PermissionDenied, ErrorCode::InvalidArgument];
        assert!(codes.contains(&refused.code()), "{path}: {refused:?}");
    }
}

fn messages(
    start: v1::PushFileStart,
    content: &[u8],
) -> impl futures::Stream<Item = v1::PushFileRequest> + Send + 'static {
    let first = v1::PushFileRequest { start: start.into(), ..Default::default() };
    let pieces: Vec<_> = content.chunks(256 << 10).map(<[u8]>::to_vec).collect();
    let rest = pieces.into_iter().map(|data| v1::PushFileRequest { data, ..Default::default() });
    futures::stream::iter([first]).chain(futures::stream::iter(rest))
}

async fn pull(client: &Client, vm: &str, path: &str) -> Result<(Vec<u8>, v1::PullFileEnd), roost_client::Error> {
    let request =
        v1::PullFileRequest { vm_id: vm.to_owned(), path: path.to_owned(), sha256: true, ..Default::default() };
    let mut file = client.pull_file(request).await?;
    let mut content = Vec::new();
    loop {
        let message = file.next().await?.expect("its end is told");
        content.extend_from_slice(&message.data);
        if let Some(end) = message.end.into_option() {
            return Ok((content, end));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_is_seen_and_asked() {
    let daemon = TestDaemon::start(&[]);
    let client = daemon.client();
    let vm = up(&daemon, &client, "web").await;

    let info =
        client.get_guest_info(v1::GetGuestInfoRequest { vm_id: vm.clone(), ..Default::default() }).await.unwrap();
    assert!(info.agent.connected && info.agent.kind == v1::AgentKind::AGENT_KIND_ROOST, "{info:?}");
    let system = action(&client, &vm, "SystemInfo").await;
    assert_eq!(system["hostname"], "tiny");
    assert!(action(&client, &vm, "RunAllHealthChecks").await.is_object());
    assert!(action(&client, &vm, "NetworkInfo").await["interfaces"].is_array());

    // The metrics are what the kernel says.
    let request = v1::WatchMetricsRequest { vm_id: vm.clone(), interval_seconds: 1, ..Default::default() };
    let mut watch = client.watch_metrics(request).await.unwrap();
    watch.next().await.unwrap().unwrap();
    let sample = watch.next().await.unwrap().unwrap();
    let metrics = serde_json::to_value(sample.system.into_option().unwrap()).unwrap();
    let meminfo = run(&client, &vm, line("grep MemTotal /proc/meminfo; cat /proc/sys/kernel/osrelease")).await.stdout;
    let words: Vec<_> = meminfo.split_whitespace().collect();
    assert_eq!(metrics["memory"]["total_kb"].as_f64(), words[1].parse().ok());
    assert_eq!(metrics["system"]["kernel_version"].as_str(), Some(words[3]));
    let cpu = metrics["cpu"]["usage_percent"].as_f64().unwrap();
    assert!((0.0..=100.0).contains(&cpu), "{metrics}");

    let request = v1::ListProcessesRequest { vm_id: vm.clone(), ..Default::default() };
    let processes = client.list_processes(request).await.unwrap().processes;
    assert!(processes.iter().any(|p| p.name == "roost-agent"), "{processes:?}");
    let sleeping = run(&client, &vm, line("sleep 1000 >/dev/null 2>&1 & echo $!")).await;
    let pid: u32 = sleeping.stdout.trim().parse().unwrap_or_default();
    let killed = client.kill_process(v1::KillProcessRequest { vm_id: vm.clone(), pid, ..Default::default() }).await;
    // It went with the command that started it, or goes now.
    assert!(killed.is_ok() || killed.unwrap_err().code() == ErrorCode::NotFound);
    let init = v1::KillProcessRequest { vm_id: vm.clone(), pid: 1, ..Default::default() };
    assert_eq!(client.kill_process(init).await.unwrap_err().code(), ErrorCode::PermissionDenied);

    // No service manager and no packages here: that is said, and nothing breaks.
    let services = client.list_services(v1::ListServicesRequest { vm_id: vm.clone(), ..Default::default() }).await;
    assert_eq!(services.unwrap_err().reason(), Some("GUEST_NOT_SUPPORTED"));
    let wrong = v1::RunActionRequest { vm_id: vm.clone(), action: "SystemInf".to_owned(), ..Default::default() };
    assert_eq!(client.run_action(wrong).await.unwrap_err().code(), ErrorCode::InvalidArgument);

    // The guest thaws by itself; nothing on a disk is there to be frozen.
    let freeze = v1::FreezeRequest { vm_id: vm.clone(), timeout_seconds: 601, ..Default::default() };
    assert_eq!(client.freeze(freeze).await.unwrap_err().code(), ErrorCode::InvalidArgument);

    // The agent opens no inet socket.
    let sockets = run(&client, &vm, line("netstat -lntup 2>/dev/null | grep -c roost-agent")).await;
    assert_eq!(sockets.stdout.trim(), "0");

    // What the policy does not permit is refused before the guest hears of it, and is on record.
    let mut config = client.get_vm_info(&vm).await.unwrap().config.into_option().unwrap();
    config.agent.get_or_insert_default().allow_exec = false;
    let update = v1::UpdateVmRequest { vm_id: vm.clone(), config: config.into(), ..Default::default() };
    client.update_vm(update).await.unwrap();
    let request = v1::RunRequest { vm_id: vm.clone(), command: command("true", &[]).into(), ..Default::default() };
    let refused = run_until_refused(&client, request).await;
    assert_eq!((refused.code(), refused.reason()), (ErrorCode::PermissionDenied, Some("NOT_PERMITTED")));
}

/// The hub follows the record a moment later.
async fn run_until_refused(client: &Client, request: v1::RunRequest) -> roost_client::Error {
    for _ in 0..100 {
        match client.run(request.clone()).await {
            Err(refused) => return refused,
            Ok(ran) => assert_ne!(ran.execution.status, E::EXECUTION_STATUS_RUNNING),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it is still permitted");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_in_the_middle_nothing_is_made_up() {
    let mut daemon = TestDaemon::start(&[]);
    let mut client = daemon.client();
    let vm = up(&daemon, &client, "web").await;
    let begin = |client: Client| {
        let command = line("echo $$ >>/tmp/began; exec sleep 1000");
        let request =
            v1::RunRequest { vm_id: vm.clone(), command: command.into(), r#async: true, ..Default::default() };
        async move { client.run(request).await.unwrap().execution.id.clone() }
    };
    let counted = line("wc -l </tmp/began");

    // The agent: it is started again, and its command is not.
    let id = begin(client.clone()).await;
    until_began(&client, &vm, 1).await;
    run_lost(&client, &vm, "pkill -9 roost-agent || killall -9 roost-agent").await;
    assert_eq!(until_final(&client, &id).await.status, E::EXECUTION_STATUS_UNKNOWN);
    daemon.until(&client, &vm, is_connected).await;
    assert_eq!(until_runs(&client, &vm, counted.clone()).await.trim(), "1", "it was not begun again");

    // The daemon: what it did not hear the end of is unknown.
    let id = begin(client.clone()).await;
    until_began(&client, &vm, 2).await;
    daemon.kill();
    daemon.restart();
    client = daemon.client();
    assert_eq!(until_final(&client, &id).await.status, E::EXECUTION_STATUS_UNKNOWN);
    assert_eq!(until_runs(&client, &vm, counted).await.trim(), "2");

    // QEMU.
    let id = begin(client.clone()).await;
    until_began(&client, &vm, 3).await;
    for (pid, comm) in daemon.guest_processes() {
        if comm.starts_with("qemu") {
            let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
            rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL).unwrap();
        }
    }
    assert_eq!(until_final(&client, &id).await.status, E::EXECUTION_STATUS_UNKNOWN);
    let crashed = daemon.until(&client, &vm, |vm| vm.state == v1::VmState::VM_STATE_CRASHED && !is_connected(vm)).await;
    assert_eq!(crashed.exit.cause, "killed");
}

async fn until_began(client: &Client, vm: &str, times: usize) {
    for _ in 0..600 {
        let seen = run(client, vm, line("cat /tmp/began 2>/dev/null | wc -l")).await;
        if seen.stdout.trim() == times.to_string() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it did not begin");
}

/// A command whose end nobody hears.
async fn run_lost(client: &Client, vm: &str, text: &str) {
    let request = v1::RunRequest { vm_id: vm.to_owned(), command: line(text).into(), ..Default::default() };
    let execution = client.run(request).await.unwrap().execution.into_option().unwrap();
    assert_eq!(execution.status, E::EXECUTION_STATUS_UNKNOWN, "{execution:?}");
}

/// What a command writes, as soon as an agent is there to run it.
async fn until_runs(client: &Client, vm: &str, command: v1::Command) -> String {
    for _ in 0..600 {
        let request = v1::RunRequest { vm_id: vm.to_owned(), command: command.clone().into(), ..Default::default() };
        match client.run(request).await {
            Ok(ran) if ran.execution.status == E::EXECUTION_STATUS_SUCCEEDED => return ran.execution.stdout.clone(),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("no agent came back");
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_installed_as_part_of_the_creation() {
    let daemon = TestDaemon::start(&[]);
    let client = daemon.client();
    let tool =
        |name: &str, script: &str| v1::Tool { name: name.to_owned(), script: script.to_owned(), ..Default::default() };
    let with = |name: &str, tools: Vec<v1::Tool>, allow_exec: bool| {
        let mut request = tiny(name);
        request.start = true;
        let config = request.config.get_or_insert_default();
        config.tools = tools;
        config.agent.get_or_insert_default().allow_exec = allow_exec;
        request
    };
    let greet = tool(
        "greet",
        "mkdir -p /usr/local/bin\nprintf '#!/bin/sh\\necho hello\\n' >/usr/local/bin/greet\nchmod 755 /usr/local/bin/greet",
    );
    let refused = client.create_vm(with("no", vec![greet.clone()], false)).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::InvalidArgument, "{refused}");
    let made = client.create_vm(with("yes", vec![greet.clone()], true)).await.unwrap();
    assert_eq!(run(&client, &made.vm_id, command("/usr/local/bin/greet", &[])).await.stdout, "hello\n");

    let broken = tool("broken", "echo so it goes >&2; exit 4");
    let failed = client.create_vm(with("half", vec![greet, broken], true)).await.unwrap_err();
    let operation = failed.operation().expect("the operation failed").clone();
    let error = operation.error.into_option().unwrap();
    assert_eq!(error.reason, "TOOL_FAILED");
    assert!(error.message.contains("broken") && error.message.contains("so it goes"), "{error:?}");
    let left = client.get_vm_info("half").await.unwrap();
    assert_eq!(left.state, v1::VmState::VM_STATE_RUNNING, "the VM is up");
    assert_eq!(run(&client, "half", command("/usr/local/bin/greet", &[])).await.stdout, "hello\n");

    // Idle for as long as it may be, it is stopped.
    let mut config = left.config.into_option().unwrap();
    config.tools.clear();
    config.idle_timeout_seconds = 10;
    let update = v1::UpdateVmRequest { vm_id: "half".to_owned(), config: config.into(), ..Default::default() };
    client.update_vm(update).await.unwrap();
    daemon.until(&client, "half", |vm| vm.state == v1::VmState::VM_STATE_SHUTDOWN).await;
}
