//! What channels cost the host, and what hostile ones cost the others.
//!
//! `cargo run --release -p roost-guest-hub --example channels` prints: the hub's CPU time and memory with 200 agents
//! that send metrics every second; and the time of a call on 64 honest channels, alone and beside 64 hostile ones.
//! Peers have threads of their own, and only the hub's are counted.

use std::path::Path;
use std::time::{Duration, Instant};

use roost_guest_hub::proto::{
    Decoder, Encoder, Envelope, Event, Exec, GuestMessage, Handshake, Policy, Request, Response, Upgrade,
};
use roost_guest_hub::{Attachment, Endpoint, Hub, HubConfig};
use roost_model::VmId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};

fn vm(number: u16) -> VmId {
    let [high, low] = number.to_be_bytes();
    VmId::from_parts(1_700_000_000_000, [0, 0, 0, 0, 0, 0, 0, 0, high, low])
}

fn attachment(vm: VmId, socket: &Path) -> Attachment {
    Attachment {
        vm,
        endpoint: Endpoint::Unix(socket.to_owned()),
        qemu_guest_agent: None,
        policy: Policy::default(),
        allow_exec: true,
        file_roots: Vec::new(),
        exec_user: None,
        metrics_interval: Duration::from_secs(1),
        epoch: 1,
        key: None,
    }
}

fn threads(name: &str) -> Runtime {
    Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build().expect("threads can be had")
}

/// The CPU time of this process's threads of that name.
fn cpu(name: &str) -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name))
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok())
        .map(Duration::from_nanos)
        .sum()
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// Metrics as large as a small guest's: about 4 KiB.
fn metrics() -> Vec<u8> {
    let process = r#"{"pid":1234,"name":"some-process","cpu_percent":0.5,"memory_kb":12345},"#.repeat(50);
    format!(
        r#"{{"type":"metrics","timestamp":"2026-01-01T00:00:00Z","data":{{"system":{{"cpu":{{"usage_percent":12.5,"cores_usage":[1.0,2.0]}},"memory":{{"total_kb":1048576,"used_kb":524288}},"network":{{"interfaces":[{{"name":"eth0","bytes_received":1,"bytes_sent":2}}]}},"processes":[{}]}}}}}}"#,
        process.trim_end_matches(',')
    )
    .into_bytes()
}

/// An agent that answers commands, and sends metrics at an interval where it has one.
async fn agent(mut stream: UnixStream, interval: Option<Duration>) -> std::io::Result<()> {
    let (mut decoder, mut encoder) = (Decoder::default(), Encoder::default());
    let metrics = metrics();
    let mut next = tokio::time::interval(interval.unwrap_or(Duration::from_secs(3600)));
    let mut buffer = vec![0; 16 * 1024];
    let mut out = Vec::new();
    loop {
        tokio::select! {
            read = stream.read(&mut buffer) => {
                let len = read?;
                if len == 0 {
                    return Ok(());
                }
                let mut rest = &buffer[..len];
                while let Some(event) = decoder.next(&mut rest) {
                    let (Event::Line(text) | Event::Message(text)) = event else { continue };
                    match Envelope::parse(&text).map(|envelope| envelope.request) {
                        Ok(Request::Hello(hello)) => {
                            let handshake = Handshake {
                                timestamp: String::new(),
                                vm_id: String::new(),
                                version: "1".to_owned(),
                                platform: "linux".to_owned(),
                                capabilities: Vec::new(),
                                session: Some(hello.session),
                                protocol: Some("1.0".to_owned()),
                                boot_id: None,
                                agent_id: None,
                                upgrades: vec![Upgrade::Frames],
                                epoch: Some(1),
                                other: Default::default(),
                            };
                            encoder.line(&GuestMessage::Handshake(handshake).to_json(), &mut out);
                            decoder.use_frames(false, None);
                            encoder.use_frames(false, None);
                        }
                        Ok(Request::Exec(exec)) => {
                            let response = Response { exit_code: Some(0), ..Response::success(exec.id) };
                            encoder.message(&GuestMessage::from(response).to_json(), &mut out);
                        }
                        _ => {}
                    }
                }
            }
            _ = next.tick(), if interval.is_some() && encoder.is_framed() => encoder.message(&metrics, &mut out),
        }
        stream.write_all(&out).await?;
        out.clear();
    }
}

/// What hostile guests do: each another thing, without end.
async fn hostile(mut stream: UnixStream, way: u16) {
    let mut framed = Encoder::default();
    framed.use_frames(false, None);
    let mut bytes = Vec::new();
    for _ in 0..500 {
        match way % 5 {
            0 => bytes.extend_from_slice(&[b'x'; 128]),
            1 => bytes.extend_from_slice(&[b'\n'; 128]),
            2 => bytes.extend_from_slice(b"{\"type\":\"handshake\"}\n"),
            3 => bytes.extend_from_slice(b"{\"id\":\"1\",\"success\":true}\n"),
            _ => framed.message(br#"{"type":"metrics","timestamp":"","data":{}}"#, &mut bytes),
        }
    }
    let mut ignored = [0; 4096];
    loop {
        let (mut reader, mut writer) = stream.split();
        tokio::select! {
            wrote = writer.write_all(&bytes) => if wrote.is_err() { return },
            read = reader.read(&mut ignored) => if matches!(read, Ok(0) | Err(_)) { return },
        }
    }
}

fn main() -> std::io::Result<()> {
    let (hub_threads, peer_threads, hostile_threads) = (threads("hub"), threads("peers"), threads("hostile"));
    let dir = std::env::temp_dir().join(format!("roost-channels-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let attach = |hub: &Hub, number: u16| {
        let socket = dir.join(number.to_string());
        let _peers = peer_threads.enter();
        let listener = UnixListener::bind(&socket)?;
        let _hub = hub_threads.enter();
        hub.attach(attachment(vm(number), &socket));
        peer_threads.block_on(listener.accept()).map(|(stream, _)| stream)
    };

    let before = resident_kib();
    let (hub, _events) = Hub::new(HubConfig::default());
    for number in 0..200 {
        let stream = attach(&hub, number)?;
        peer_threads.spawn(agent(stream, Some(Duration::from_secs(1))));
    }
    std::thread::sleep(Duration::from_secs(3));
    let connected = (0..200).filter(|&number| hub.status(vm(number)).is_some_and(|status| status.connected)).count();
    let (start, used) = (Instant::now(), cpu("hub"));
    std::thread::sleep(Duration::from_secs(10));
    let share = (cpu("hub") - used).as_secs_f64() / start.elapsed().as_secs_f64();
    let each = resident_kib().saturating_sub(before) / 200;
    println!("{connected} agents, metrics of {} bytes each second: {:.2}% of a core", metrics().len(), 100.0 * share);
    println!("memory for each, both ends of it in this process: {each} KiB");
    drop(hub);

    let (hub, _events) = Hub::new(HubConfig::default());
    for number in 1000..1064 {
        let stream = attach(&hub, number)?;
        peer_threads.spawn(agent(stream, None));
    }
    let calls = |hub: &Hub| {
        hub_threads.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for number in 1000..1064 {
                let hub = hub.clone();
                tasks.spawn(async move {
                    let mut times = Vec::new();
                    hub.wait_connected(vm(number), Duration::from_secs(20)).await.ok();
                    for _ in 0..100 {
                        let started = Instant::now();
                        let exec = Exec { argv: vec!["true".to_owned()], ..Exec::default() };
                        if hub.run(vm(number), exec, Duration::from_secs(20)).await.is_ok() {
                            times.push(started.elapsed());
                        }
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    times
                });
            }
            let mut times: Vec<Duration> = tasks.join_all().await.concat();
            times.sort_unstable();
            times
        })
    };
    let print = |what: &str, times: &[Duration]| {
        if let (Some(median), Some(p99)) = (times.get(times.len() / 2), times.get(times.len() * 99 / 100)) {
            println!("{what}: {} calls, median {median:.1?}, p99 {p99:.1?}", times.len());
        }
    };
    print("64 honest channels", &calls(&hub));
    for number in 2000..2064 {
        let stream = attach(&hub, number)?;
        let stream = stream.into_std()?;
        hostile_threads.spawn(async move {
            if let Ok(stream) = UnixStream::from_std(stream) {
                hostile(stream, number).await;
            }
        });
    }
    let (used, theirs) = (cpu("hub"), cpu("hostile"));
    let start = Instant::now();
    print("beside 64 hostile ones", &calls(&hub));
    let share = (cpu("hub") - used).as_secs_f64() / start.elapsed().as_secs_f64();
    let theirs = (cpu("hostile") - theirs).as_secs_f64() / start.elapsed().as_secs_f64();
    println!("of a core meanwhile: the hub {:.0}%, the hostile ones {:.0}%", 100.0 * share, 100.0 * theirs);
    drop(hub);
    std::fs::remove_dir_all(&dir)
}
