//! Real guests under a real daemon: what they do by themselves, and what a daemon's death costs: nothing.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use roost_client::{Client, v1};
use roost_testkit::{TestDaemon, micro, micro_on, tiny};

use v1::VmState as S;

fn named(vm: &str) -> v1::BootVmRequest {
    v1::BootVmRequest { vm_id: vm.to_owned(), ..Default::default() }
}

async fn started(client: &Client, mut request: v1::CreateVmRequest) -> String {
    request.start = true;
    let made = client.create_vm(request).await.unwrap();
    assert_eq!(made.state, S::VM_STATE_RUNNING);
    made.vm_id
}

/// Types a byte on the serial line once the guest has booted so often and ticks. The daemon need not
/// run.
fn press(daemon: &TestDaemon, vm_id: &str, boots: usize, byte: u8) {
    use std::io::{Read, Write};
    let socket = daemon.state_dir().join("run/vms").join(vm_id).join("console.sock");
    let mut line = connect(&socket);
    let mut seen = String::new();
    let mut chunk = [0; 256];
    // The line begins with what it said before, of earlier launches too.
    while seen.matches("boot\r\n").count() < boots
        || !seen.rsplit("boot\r\n").next().is_some_and(|s| s.contains("tick"))
    {
        let got = line.read(&mut chunk).unwrap();
        assert_ne!(got, 0, "the guest is there");
        seen.push_str(&String::from_utf8_lossy(&chunk[..got]));
    }
    line.write_all(&[byte]).unwrap();
}

fn connect(socket: &std::path::Path) -> std::os::unix::net::UnixStream {
    let line = std::os::unix::net::UnixStream::connect(socket).unwrap();
    line.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guest_does_by_itself_is_told_apart() {
    let daemon = TestDaemon::start(&[]);
    let client = daemon.client();
    for machine in ["q35", "microvm"] {
        let id = started(&client, micro_on(&format!("own-{machine}"), machine)).await;
        press(&daemon, &id, 1, b'r');
        press(&daemon, &id, 2, b'q');
        let off = daemon.until(&client, &id, |vm| vm.state == S::VM_STATE_SHUTDOWN).await;
        assert_eq!(off.exit.cause, "power-off");
        client.boot_vm(named(&id)).await.unwrap();
        press(&daemon, &id, 3, b'p');
        let panicked = daemon.until(&client, &id, |vm| vm.state == S::VM_STATE_CRASHED).await;
        assert_eq!(panicked.exit.cause, "panic");
        client.boot_vm(named(&id)).await.unwrap();
        for (pid, comm) in daemon.guest_processes() {
            if comm.starts_with("qemu") {
                kill_by_pidfd(pid);
            }
        }
        let killed = daemon.until(&client, &id, |vm| vm.state == S::VM_STATE_CRASHED).await;
        assert_eq!(killed.exit.cause, "killed");
        client.delete_vm(v1::DeleteVmRequest { vm_id: id, force: true, ..Default::default() }).await.unwrap();
        assert_eq!(daemon.leftovers(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_no_daemon_ran_is_recorded_as_what_it_was() {
    let mut daemon = TestDaemon::start(&[]);
    let client = daemon.client();
    let mut ids = Vec::new();
    for name in ["off", "panic", "killed", "left"] {
        ids.push(started(&client, micro(name)).await);
    }
    let pid_of_killed = client.get_vm_info("killed").await.unwrap().backend_info["pid"].parse().unwrap();
    daemon.kill();
    press(&daemon, &ids[0], 1, b'q');
    press(&daemon, &ids[1], 1, b'p');
    kill_by_pidfd(pid_of_killed);
    daemon.restart();
    let client = daemon.client();
    for (id, state, cause) in [
        (&ids[0], S::VM_STATE_SHUTDOWN, "power-off"),
        (&ids[1], S::VM_STATE_CRASHED, "panic"),
        (&ids[2], S::VM_STATE_CRASHED, "killed"),
    ] {
        let vm = daemon.until(&client, id, |vm| vm.state == state).await;
        assert_eq!(vm.exit.cause, cause);
    }
    assert_eq!(daemon.vm(&client, &ids[3]).await.state, S::VM_STATE_RUNNING);
    for vm_id in ids {
        client.delete_vm(v1::DeleteVmRequest { vm_id, force: true, ..Default::default() }).await.unwrap();
    }
    assert_eq!(daemon.leftovers(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linux_guest_boots_says_so_and_obeys() {
    let daemon = TestDaemon::start(&[]);
    let client = daemon.client();
    let id = started(&client, tiny("linux")).await;
    let request = v1::GetConsoleLogRequest { vm_id: id.clone(), follow: true, ..Default::default() };
    let mut log = client.console_log(request).await.unwrap();
    let mut text = Vec::new();
    let up = async {
        while !String::from_utf8_lossy(&text).contains(xtask::GUEST_UP) {
            text.extend(log.next().await.unwrap().expect("the guest goes on"));
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(120), up).await.expect("the guest comes up");
    client.pause_vm(v1::PauseVmRequest { vm_id: id.clone(), ..Default::default() }).await.unwrap();
    client.resume_vm(v1::ResumeVmRequest { vm_id: id.clone(), ..Default::default() }).await.unwrap();
    let stopped = client.shutdown_vm(v1::ShutdownVmRequest { vm_id: id.clone(), ..Default::default() }).await.unwrap();
    assert_eq!(stopped.state, S::VM_STATE_SHUTDOWN);
    assert_eq!(daemon.vm(&client, &id).await.exit.cause, "power-off", "it obeyed, nobody forced it");
    client.delete_vm(v1::DeleteVmRequest { vm_id: id, ..Default::default() }).await.unwrap();
    assert_eq!(daemon.leftovers(), []);
}

/// A test's own machine, by a descriptor that cannot mean another process.
fn kill_by_pidfd(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
}
