//! What the backend costs beside QEMU itself. Prints, and asserts nothing: machines differ.
//!
//! `cargo test -p roost-backend-qemu --test real -- --ignored --nocapture measure`

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use roost_backend::Backend;
use roost_host::launch::Launch;
use roost_host::process::Process;
use roost_model::plan::Stop;

use crate::support::{Host, micro, new_launch};

const RUNS: usize = 15;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// CPU time of this process, all its threads.
fn own_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/task").map(drop);
    drop(text);
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks.map(|task| cpu_of(&task.path().join("schedstat"))).sum()
}

/// Its first number is the time on a CPU, in ns.
fn cpu_of(schedstat: &std::path::Path) -> Duration {
    let text = std::fs::read_to_string(schedstat).unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

/// The same program with the same arguments, without the backend: until QMP says that it runs.
fn by_hand(args: &[String], dir: &std::path::Path) -> (Duration, Process) {
    let begun = Instant::now();
    let socket = dir.join("hand.sock");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    let (serial, _kept) = UnixStream::pair().unwrap();
    let mut control = BufReader::new(UnixStream::connect(&socket).unwrap());
    let process = Launch::new(&args[0])
        .args(&args[1..])
        .fd(OwnedFd::from(listener), 3)
        .fd(OwnedFd::from(serial), 4)
        .spawn_gated()
        .unwrap()
        .release()
        .unwrap();
    control.get_mut().write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"query-status\"}").unwrap();
    let mut line = String::new();
    while !line.contains("\"running\"") {
        line.clear();
        assert!(control.read_line(&mut line).unwrap() > 0, "QEMU ended");
    }
    (begun.elapsed(), process)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints times; run it by itself"]
async fn measure_launch_and_adoption() {
    let mut host = Host::new();
    let vm = host.create(micro()).await;
    host.backend.boot(&vm, new_launch(), host.journal(&vm)).await.unwrap();
    let pid = host.pid(&vm).await.as_raw_nonzero();
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let args: Vec<String> = command.split(|b| *b == 0).map(|arg| String::from_utf8(arg.to_vec()).unwrap()).collect();
    let args = &args[..args.len() - 1];
    host.backend.shutdown(vm.id, Stop::Forced).await.unwrap();
    host.clear(&vm).await;

    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    let (mut bare_cpu, mut ours_cpu, mut keeper_cpu) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let before = own_cpu();
        let (took, process) = by_hand(args, host.dir.path());
        bare_cpu.push(own_cpu() - before);
        bare.push(took);
        process.kill().unwrap();
        assert!(process.wait_gone(Duration::from_secs(10)).await.unwrap());
        process.reap().unwrap();

        let before = own_cpu();
        let begun = Instant::now();
        host.backend.boot(&vm, new_launch(), host.journal(&vm)).await.unwrap();
        ours.push(begun.elapsed());
        ours_cpu.push(own_cpu() - before);
        let record = &host.journal(&vm).resources()[1].detail;
        keeper_cpu.push(cpu_of(format!("/proc/{}/schedstat", record["console"]["pid"]).as_ref()));
        host.backend.shutdown(vm.id, Stop::Forced).await.unwrap();
        host.clear(&vm).await;
    }
    let ratios: Vec<f64> = bare.iter().zip(&ours).map(|(bare, ours)| ours.as_secs_f64() / bare.as_secs_f64()).collect();
    let mut sorted = ratios.clone();
    sorted.sort_by(f64::total_cmp);
    println!("exec -> QMP running, {RUNS} pairs: by hand {:?}, backend {:?}", median(bare), median(ours));
    println!("ratio: median {:.3}, of all {:.3?}", sorted[RUNS / 2], sorted);
    println!(
        "CPU of the daemon: by hand {:?}, backend {:?}; of the keeper {:?}",
        median(bare_cpu),
        median(ours_cpu),
        median(keeper_cpu)
    );

    let mut machines = vec![];
    for _ in 0..10 {
        let vm = host.create(micro()).await;
        let (launch, _serial) = host.boot(&vm).await;
        host.backend.pause(vm.id).await.unwrap();
        machines.push((vm, launch));
    }
    for _ in 0..5 {
        host.restart();
        let adoptees = machines.iter().map(|(vm, launch)| host.adoptee(vm, Some(*launch))).collect();
        let begun = Instant::now();
        for report in host.backend.adopt(adoptees).await {
            report.unwrap();
        }
        println!("10 machines adopted in {:?}", begun.elapsed());
    }

    let (vm, _) = machines.remove(0);
    let pid = host.pid(&vm).await;
    let begun = Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    host.event().await;
    println!("killed -> event in {:?}", begun.elapsed());
}
