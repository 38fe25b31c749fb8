//! The daemon is killed at random moments while VMs are made, moved and deleted. Afterwards every
//! acknowledged request has come to an end, no guest died, none is doubled, nothing is left over.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use roost_client::{Client, v1};
use roost_testkit::{TestDaemon, micro};

use v1::OperationStatus as O;
use v1::VmState as S;

const KILLS: u64 = 50;

/// xorshift64: the moments of the kills differ from run to run as little as the machine allows.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Sends one request without waiting for its end; the operation if it was acknowledged.
async fn disturb(client: &Client, dice: &mut Dice, n: u64, names: &mut Vec<String>) -> Option<(String, String)> {
    let pick =
        |dice: &mut Dice, names: &[String]| names[usize::try_from(dice.below(names.len() as u64)).unwrap()].clone();
    if names.len() < 3 || dice.below(4) == 0 {
        let name = format!("vm{n}");
        let request = v1::CreateVmRequest { start: true, r#async: true, ..micro(&name) };
        let changed = client.create_vm(request).await.ok()?;
        names.push(name);
        return Some((changed.vm_id, changed.operation.id));
    }
    let vm_id = pick(dice, names);
    let changed = match dice.below(5) {
        0 => client.pause_vm(v1::PauseVmRequest { vm_id, r#async: true, ..Default::default() }).await,
        1 => client.resume_vm(v1::ResumeVmRequest { vm_id, r#async: true, ..Default::default() }).await,
        2 => {
            client.shutdown_vm(v1::ShutdownVmRequest { vm_id, force: true, r#async: true, ..Default::default() }).await
        }
        3 => client.boot_vm(v1::BootVmRequest { vm_id, r#async: true, ..Default::default() }).await,
        _ => {
            names.retain(|n| *n != vm_id);
            client.delete_vm(v1::DeleteVmRequest { vm_id, force: true, r#async: true, ..Default::default() }).await
        }
    };
    changed.ok().map(|changed| (changed.vm_id, changed.operation.id))
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_deaths_of_the_daemon_lose_nothing() {
    let mut daemon = TestDaemon::start(&[]);
    let mut dice = Dice(0x5EED);
    let mut names = Vec::new();
    let mut acknowledged: Vec<(String, String)> = Vec::new();
    // A bystander: nobody asks anything of it, and it has to live through everything.
    let client = daemon.client();
    client.create_vm(v1::CreateVmRequest { start: true, ..micro("bystander") }).await.unwrap();
    let bystander = pid_of(&client, "bystander").await;
    drop(client);
    for n in 0..KILLS {
        let client = daemon.client();
        for i in 0..2 {
            acknowledged.extend(disturb(&client, &mut dice, n * 10 + i, &mut names).await);
        }
        // Somewhere in the work that this has set off, which takes some tens of milliseconds.
        tokio::time::sleep(Duration::from_micros(dice.below(120_000))).await;
        daemon.kill();
        daemon.restart();
    }
    let client = daemon.client();
    for (vm, id) in &acknowledged {
        let operation = client.wait_operation(id, Duration::from_secs(120)).await.unwrap();
        let ended = [O::OPERATION_STATUS_SUCCEEDED, O::OPERATION_STATUS_FAILED, O::OPERATION_STATUS_CANCELLED];
        assert!(ended.iter().any(|s| operation.status == *s), "{id} of {vm} is {:?}", operation.status);
        if operation.status == O::OPERATION_STATUS_FAILED {
            assert_eq!(operation.error.reason, "WRONG_STATE", "{id} of {vm}: {:?}\n{}", operation.error, daemon.log());
        }
    }
    assert_eq!(pid_of(&client, "bystander").await, bystander, "the bystander's machine is the same process");

    let vms = client.list_vms(v1::ListVmsRequest { page_size: 1000, ..Default::default() }).await.unwrap().vms;
    let up: BTreeSet<String> = vms
        .iter()
        .filter(|vm| vm.state == S::VM_STATE_RUNNING || vm.state == S::VM_STATE_PAUSED)
        .map(|vm| vm.id.clone())
        .collect();
    let mut machines: BTreeMap<String, u32> = BTreeMap::new();
    for (pid, comm) in daemon.guest_processes() {
        if comm.starts_with("qemu") {
            *machines.entry(uuid_of(pid)).or_default() += 1;
        }
    }
    assert!(machines.values().all(|n| *n == 1), "one machine a VM: {machines:?}");
    assert_eq!(machines.into_keys().collect::<BTreeSet<_>>(), up, "what runs is what is recorded");

    for vm in vms {
        client.delete_vm(v1::DeleteVmRequest { vm_id: vm.id, force: true, ..Default::default() }).await.unwrap();
    }
    assert_eq!(daemon.leftovers(), []);
    assert!(daemon.stop());
}

async fn pid_of(client: &Client, vm: &str) -> String {
    client.get_vm_info(vm).await.unwrap().backend_info["pid"].clone()
}

/// QEMU is told the VM's UUID.
fn uuid_of(pid: u32) -> String {
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let arguments: Vec<_> = arguments.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
    let at = arguments.iter().position(|a| a == "-uuid").expect("every machine has a UUID");
    arguments[at + 1].to_string()
}
