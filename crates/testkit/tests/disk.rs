//! A full disk and a read-only one: what cannot be kept is refused, what was acknowledged is kept.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::time::Duration;

use roost_client::{Client, Error, ErrorCode, v1};
use roost_testkit::{TestDaemon, micro};

use v1::VmState as S;

/// Room for the database and a few machines.
const MIB: u32 = 16;

async fn pid(client: &Client, vm: &str) -> String {
    client.get_vm_info(vm).await.unwrap().backend_info["pid"].clone()
}

/// Creates VMs until one is refused, and starts them.
async fn create_until_refused(client: &Client, made: &mut Vec<v1::Operation>) -> Error {
    for n in 0..1000 {
        let request = v1::CreateVmRequest { start: true, r#async: true, ..micro(&format!("vm{n}")) };
        match client.create_vm(request).await {
            Ok(changed) => made.push(changed.operation),
            Err(error) => return error,
        }
    }
    panic!("{MIB} MiB hold all of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_nothing_is_acknowledged_that_is_not_kept() {
    let Some(mut daemon) = TestDaemon::start_on_disk(MIB, &[]) else { return };
    let client = daemon.client();
    client.create_vm(v1::CreateVmRequest { start: true, ..micro("before") }).await.unwrap();
    let before = pid(&client, "before").await;
    daemon.disk().fill();
    let mut made = Vec::new();
    let error = create_until_refused(&client, &mut made).await;
    assert_eq!((error.code(), error.reason()), (ErrorCode::ResourceExhausted, Some("DISK_FULL")), "{error}");
    assert!(!error.detail().unwrap().hint.is_empty());
    // The guest goes on, and what is asked without a change is answered.
    assert_eq!(daemon.vm(&client, "before").await.state, S::VM_STATE_RUNNING);
    assert_eq!(pid(&client, "before").await, before);
    let listed = client.list_vms(v1::ListVmsRequest::default()).await.unwrap().total_size;
    assert_eq!(listed, 1 + made.len() as u64);

    // A death on a full disk: the next daemon serves, or says why it does not.
    drop(client);
    daemon.kill();
    if let Err(said) = daemon.try_start() {
        assert!(said.contains("the disk of the database is full"), "{said}");
    } else {
        daemon.kill();
    }
    daemon.disk().free();
    daemon.restart();
    let client = daemon.client();
    assert_eq!(pid(&client, "before").await, before, "the guest outlived all of it");
    for operation in &made {
        let ended = client.wait_operation(&operation.id, Duration::from_secs(60)).await.unwrap();
        assert_eq!(ended.status, v1::OperationStatus::OPERATION_STATUS_SUCCEEDED, "{ended:?}\n{}", daemon.log());
    }
    let vms = made.into_iter().map(|operation| operation.vm_id).chain(["before".to_owned()]);
    for vm_id in vms {
        client.delete_vm(v1::DeleteVmRequest { vm_id, force: true, ..Default::default() }).await.unwrap();
    }
    assert_eq!(daemon.leftovers(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_state_directory_stops_the_start_and_is_named() {
    let Some(mut daemon) = TestDaemon::start_on_disk(MIB, &[]) else { return };
    daemon.client().create_vm(micro("kept")).await.unwrap();
    assert!(daemon.stop());
    daemon.disk().set_read_only(true);
    let said = daemon.try_start().unwrap_err();
    assert!(said.contains("/s") && said.contains("Read-only file system"), "{said}");
    daemon.disk().set_read_only(false);
    daemon.restart();
    assert_eq!(daemon.vm(&daemon.client(), "kept").await.state, S::VM_STATE_CREATED);
}
