//! What the daemon learns about machines that go on without it: their ends, and that they are there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use roost_client::{Client, Watch, v1};
use roost_testkit::{micro, sim};

use crate::daemon::{Daemon, pid_of, start_vm};
use crate::host;
use crate::report::{Bar, Row};

use v1::VmState as S;

/// The most VMs that one bulk create takes.
const BULK: usize = 1000;
/// Past this something is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// From the kill of a QEMU to the recorded exit, as a watcher sees it.
pub(crate) async fn killed_to_recorded(runs: usize) -> Result<Vec<Row>> {
    let daemon = Daemon::start(&["qemu.accelerator=tcg"])?;
    let client = daemon.client();
    let id = start_vm(&client, micro("killed")).await?;
    let mut found = Vec::new();
    for _ in 0..runs {
        let pid = pid_of(&client, &id).await?;
        let request = v1::WatchVmsRequest { vm_ids: vec![id.clone()], snapshot: true, ..Default::default() };
        let mut watch = client.watch_vms(request).await?;
        // The VM as it is comes first: from there on nothing is missed.
        until(&mut watch, |event| event.kind == "snapshot").await?;
        let begun = Instant::now();
        host::end(pid, None);
        let ended = until(&mut watch, |event| event.vm.as_option().is_some_and(|vm| vm.exit.is_set())).await?;
        found.push(begun.elapsed().as_secs_f64() * 1e3);
        let cause = ended.vm.into_option().map(|vm| vm.exit.cause.clone()).unwrap_or_default();
        ensure!(cause == "killed", "a QEMU that was killed is recorded as \"{cause}\"");
        client.boot_vm(v1::BootVmRequest { vm_id: id.clone(), ..Default::default() }).await?;
    }
    Ok(vec![Row::figure("killed QEMU -> exit seen by a watcher", "ms", &found, Bar::AtMost(50.0))])
}

/// From the start of a daemon after `kill -9` to its line that it serves, with so many VMs of the
/// simulator running.
pub(crate) async fn readopt_sim(runs: usize, vms: usize) -> Result<Vec<Row>> {
    let mut daemon = Daemon::start(&["backend=sim", "sim.hosted=true"])?;
    let client = daemon.client();
    for first in (0..vms).step_by(BULK) {
        let requests =
            (first..vms.min(first + BULK)).map(|n| v1::CreateVmRequest { start: true, ..sim(&format!("vm-{n}")) });
        let request = v1::BulkCreateVmsRequest { vms: requests.collect(), wait_seconds: 60, ..Default::default() };
        client.bulk_create_vms(request).await?;
    }
    until_running(&client, vms).await?;
    let found = restarts(&mut daemon, runs, vms).await?;
    Ok(vec![Row::figure(format!("re-adoption of {vms} sim VMs"), "s", &found, Bar::AtMost(2.0))])
}

/// The same with real machines.
pub(crate) async fn readopt_real(runs: usize, vms: usize) -> Result<Vec<Row>> {
    let mut daemon = Daemon::start(&["qemu.accelerator=tcg"])?;
    let client = daemon.client();
    for n in 0..vms {
        start_vm(&client, micro(&format!("vm-{n}"))).await?;
    }
    let found = restarts(&mut daemon, runs, vms).await?;
    Ok(vec![Row::figure(format!("re-adoption of {vms} QEMUs (micro)"), "s", &found, Bar::AtMost(1.0))])
}

async fn restarts(daemon: &mut Daemon, runs: usize, vms: usize) -> Result<Vec<f64>> {
    let mut found = Vec::new();
    for _ in 0..runs {
        daemon.kill()?;
        found.push(daemon.start_again()?.as_secs_f64());
        // The line means that all are there, or it means nothing.
        let (running, unreachable) = count(&daemon.client()).await?;
        ensure!((running, unreachable) == (vms, 0), "{running} of {vms} run, {unreachable} are not reachable");
    }
    Ok(found)
}

async fn until(watch: &mut Watch, so: impl Fn(&v1::Event) -> bool) -> Result<v1::Event> {
    let wait = async {
        loop {
            let event = watch.next().await?.context("the daemon ended the stream")?;
            if so(&event) {
                return Ok(event);
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.context("the event that was waited for does not come")?
}

async fn until_running(client: &Client, vms: usize) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(120);
    while running(client).await? < vms {
        if Instant::now() > end {
            bail!("{} of {vms} VMs run", running(client).await?);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn running(client: &Client) -> Result<usize> {
    let request = v1::ListVmsRequest { states: vec![S::VM_STATE_RUNNING.into()], page_size: 1, ..Default::default() };
    Ok(client.list_vms(request).await?.total_size as usize)
}

async fn count(client: &Client) -> Result<(usize, usize)> {
    let request = v1::ListVmsRequest { page_size: 1000, ..Default::default() };
    let vms = client.list_all_vms(request).await?;
    let unreachable = vms.iter().filter(|vm| vm.conditions.iter().any(|c| c.r#type == "Reachable" && !c.status));
    Ok((vms.iter().filter(|vm| vm.state == S::VM_STATE_RUNNING).count(), unreachable.count()))
}
