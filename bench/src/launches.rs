//! Launches of real machines, against the same QEMU by hand.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use roost_client::{Client, v1};
use roost_testkit::{micro, tiny};

use crate::by_hand::{CommandLine, contains};
use crate::daemon::{Daemon, delete_vm, pid_of, start_vm};
use crate::host;
use crate::report::{Bar, Row};
use crate::stamp::{Stamp, now_ms};
use crate::stats::median;

/// Emulation, whatever the machine has: both sides run alike.
const TCG: &str = "qemu.accelerator=tcg";

/// From the request to the guest's word that it is up.
pub(crate) async fn cold_create(pairs: usize) -> Result<Vec<Row>> {
    let daemon = Daemon::start(&[TCG])?;
    let client = daemon.client();
    let first = start_vm(&client, tiny("first")).await?;
    until_up(&client, &first).await?;
    let command = CommandLine::of(pid_of(&client, &first).await?, None)?;
    delete_vm(&client, first).await?;
    let mut found = Vec::new();
    for n in 0..pairs {
        let hand_first = n % 2 == 1;
        let mut hand = if hand_first { up_by_hand(&command, &daemon)? } else { 0.0 };
        let request = tiny(&format!("cold-{n}"));
        let begun = Instant::now();
        let id = start_vm(&client, request).await?;
        until_up(&client, &id).await?;
        let ours = ms(begun);
        delete_vm(&client, id).await?;
        if !hand_first {
            hand = up_by_hand(&command, &daemon)?;
        }
        found.push((ours, hand));
    }
    Ok(vec![Row::pairs("cold create -> guest up (tiny, q35, TCG)", "ms", &found, Bar::AtMost(1.02))])
}

/// What the daemon and the console's keeper use for one create.
pub(crate) async fn cpu_of_create(groups: usize, creates: u32) -> Result<Vec<Row>> {
    let daemon = Daemon::start(&[TCG])?;
    let client = daemon.client();
    // The first asks QEMU what it can do.
    let first = start_vm(&client, micro("first")).await?;
    delete_vm(&client, first).await?;
    let mut found = Vec::new();
    for group in 0..groups {
        let before = host::cpu_ms(daemon.pid()?)?;
        let mut ids = Vec::new();
        for n in 0..creates {
            ids.push(start_vm(&client, micro(&format!("cpu-{group}-{n}"))).await?);
        }
        let mut used = host::cpu_ms(daemon.pid()?)? - before;
        for (pid, comm) in host::processes_of(daemon.dir()) {
            if comm == "roost-console" {
                used += host::cpu_of_threads_ms(pid)?;
            }
        }
        for id in ids {
            delete_vm(&client, id).await?;
        }
        found.push(used / f64::from(creates));
    }
    Ok(vec![Row::figure("CPU of roostd and roost-console for a create", "CPU-ms", &found, Bar::AtMost(10.0))])
}

/// From the request to the answer that it runs.
pub(crate) async fn request_to_running(pairs: usize) -> Result<Vec<Row>> {
    let daemon = Daemon::start(&[TCG])?;
    let client = daemon.client();
    let first = start_vm(&client, micro("first")).await?;
    let command = CommandLine::of(pid_of(&client, &first).await?, None)?;
    delete_vm(&client, first).await?;
    let (mut found, mut syncs) = (Vec::new(), Vec::new());
    for n in 0..pairs {
        let hand_first = n % 2 == 1;
        let mut hand = if hand_first { running_by_hand(&command, &daemon)? } else { 0.0 };
        let request = micro(&format!("running-{n}"));
        let begun = Instant::now();
        let id = start_vm(&client, request).await?;
        let ours = ms(begun);
        delete_vm(&client, id).await?;
        if !hand_first {
            hand = running_by_hand(&command, &daemon)?;
        }
        found.push((ours, hand));
        syncs.push(host::fdatasync_p50_ms(daemon.dir(), 20)?);
    }
    let hand = median(&found.iter().map(|p| p.1).collect::<Vec<_>>());
    let bar = Bar::AtMost(hand + 3.0 * median(&syncs) + 10.0);
    Ok(vec![Row::pairs_within("request -> running (micro; bar: by hand + 3 fdatasync + 10 ms)", "ms", &found, bar)])
}

/// From the moment that QEMU is executed to QMP's word that it runs.
pub(crate) async fn exec_to_running(pairs: usize) -> Result<Vec<Row>> {
    let dir = tempfile::Builder::new().prefix("rb").tempdir()?;
    let stamp = Stamp::make(dir.path())?;
    let path = stamp.path().to_str().context("temporary paths are Unicode")?;
    let daemon = Daemon::start(&[TCG, &format!("qemu.binary={path}")])?;
    let client = daemon.client();
    let first = start_vm(&client, micro("first")).await?;
    let command = CommandLine::of(pid_of(&client, &first).await?, Some(stamp.path()))?;
    delete_vm(&client, first).await?;
    let mut found = Vec::new();
    for n in 0..pairs {
        let hand_first = n % 2 == 1;
        let mut hand = if hand_first { executed_by_hand(&command, &daemon, &stamp)? } else { 0.0 };
        let id = start_vm(&client, micro(&format!("exec-{n}"))).await?;
        let executed = stamp.executed_ms()?;
        let vm = client.get_vm_info(&id).await?.vm.into_option().context("an answer has a record")?;
        let Some(at) = vm.started_at.into_option() else { bail!("a VM that runs says since when") };
        // The record's times are cut to whole milliseconds: half of one is what that takes away.
        let started = at.seconds as f64 * 1e3 + f64::from(at.nanos) / 1e6 + 0.5;
        delete_vm(&client, id).await?;
        if !hand_first {
            hand = executed_by_hand(&command, &daemon, &stamp)?;
        }
        found.push((started - executed, hand));
    }
    Ok(vec![Row::pairs("exec -> QMP running (micro)", "ms", &found, Bar::AtMost(1.1))])
}

async fn until_up(client: &Client, id: &str) -> Result<()> {
    let request = v1::GetConsoleLogRequest { vm_id: id.to_owned(), follow: true, ..Default::default() };
    let mut log = client.console_log(request).await?;
    let mut seen = Vec::new();
    while !contains(&seen, xtask::GUEST_UP) {
        seen.extend(log.next().await?.context("the console ended before the guest was up")?);
    }
    Ok(())
}

fn up_by_hand(command: &CommandLine, daemon: &Daemon) -> Result<f64> {
    let begun = Instant::now();
    // It is ended after the time was taken.
    let mut qemu = command.start(daemon.dir())?;
    qemu.until_written(xtask::GUEST_UP)?;
    Ok(ms(begun))
}

fn running_by_hand(command: &CommandLine, daemon: &Daemon) -> Result<f64> {
    let begun = Instant::now();
    let mut qemu = command.start(daemon.dir())?;
    qemu.until_running()?;
    Ok(ms(begun))
}

fn executed_by_hand(command: &CommandLine, daemon: &Daemon, stamp: &Stamp) -> Result<f64> {
    let mut qemu = command.start(daemon.dir())?;
    qemu.until_running()?;
    Ok(now_ms() - stamp.executed_ms()?)
}

fn ms(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}
