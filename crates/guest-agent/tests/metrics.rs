//! The collectors on the machine that runs the test, against what its kernel says at the same moment.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use roost_guest_agent::metrics::{Collectors, Config, Group, MetricsData};
use rustix::time::{ClockId, clock_gettime};

const DEADLINE: Duration = Duration::from_secs(60);

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn assert_no_errors(data: &MetricsData) {
    assert!(data.errors.is_empty(), "{:?}", data.errors);
}

/// A figure of `/proc/meminfo`.
fn meminfo(name: &str) -> u64 {
    let text = read("/proc/meminfo");
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn the_first_frame_has_its_lists_however_soon_it_is() {
    let data = Collectors::new(&Config::default()).collect(&[]);
    let system = data.system;
    let cpu = system.cpu.unwrap();
    assert!(!cpu.cores_usage.is_empty() && (0.0..=100.0).contains(&cpu.usage_percent));
    assert!(system.network.unwrap().interfaces.iter().any(|interface| interface.name == "lo"));
    assert!(!system.disk.unwrap().usage_stats.is_empty());
    assert!(system.processes.unwrap().iter().any(|process| process.cpu_usage_percent > 0.0));
    assert!(system.host.is_some() && system.services.is_some() && system.ports.is_some());
}

#[test]
fn memory_is_what_meminfo_says() {
    let mut collectors = Collectors::new(&Config::default());
    let started = Instant::now();
    // Others use this machine too: until a moment in which little moved.
    loop {
        let before = meminfo("MemAvailable:");
        let data = collectors.collect(&[Group::Memory]);
        let after = meminfo("MemAvailable:");
        assert_no_errors(&data);
        let memory = data.system.memory.unwrap();
        assert_eq!(memory.total_kb, meminfo("MemTotal:"));
        assert_eq!(memory.used_kb + memory.available_kb, memory.total_kb);
        assert_eq!(memory.swap_total_kb, Some(meminfo("SwapTotal:")));
        let (low, high) = (before.min(after), before.max(after));
        if high - low < 1024 && (low.saturating_sub(1024)..=high + 1024).contains(&memory.available_kb) {
            break;
        }
        assert!(started.elapsed() < DEADLINE, "{} kB is never between {before} and {after}", memory.available_kb);
    }
}

#[test]
fn names_and_uptime_are_what_proc_says() {
    let uptime = || read("/proc/uptime").split('.').next().unwrap().parse::<u64>().unwrap();
    let before = uptime();
    let data = Collectors::new(&Config::default()).collect(&[Group::System, Group::Host]);
    let after = uptime();
    assert_no_errors(&data);
    let system = data.system.system.unwrap();
    assert!((before..=after).contains(&system.uptime_seconds));
    assert_eq!(system.hostname, read("/proc/sys/kernel/hostname").trim());
    assert_eq!(system.kernel_version, read("/proc/sys/kernel/osrelease").trim());
    assert!(system.load_average.is_some());
    let host = data.system.host.unwrap();
    assert_eq!(host.boot_id.as_deref(), Some(read("/proc/sys/kernel/random/boot_id").trim()));
    assert_eq!(host.architecture, std::env::consts::ARCH);
}

/// Ticks of all processors: all of them, and those without work.
fn ticks() -> (u64, u64) {
    let text = read("/proc/stat");
    let values: Vec<u64> =
        text.lines().next().unwrap().split_whitespace().skip(1).map(|it| it.parse().unwrap()).collect();
    (values[..8].iter().sum(), values[3] + values[4])
}

fn own_cpu() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

#[test]
fn usage_is_what_was_used() {
    let mut collectors = Collectors::new(&Config { processes: 100, ..Config::default() });
    let groups = [Group::Cpu, Group::Processes];
    let own = |data: &MetricsData| {
        let processes = data.system.processes.as_ref().unwrap();
        processes.iter().find(|process| process.id == std::process::id()).cloned()
    };
    let warm = Instant::now();
    while warm.elapsed() < Duration::from_millis(300) {
        std::hint::spin_loop();
    }
    assert_no_errors(&collectors.collect(&groups));
    let (started, used, (total, idle)) = (Instant::now(), own_cpu(), ticks());
    while own_cpu() - used < Duration::from_secs(1) {
        std::hint::spin_loop();
    }
    let (elapsed, (total_after, idle_after)) = (started.elapsed(), ticks());
    let data = collectors.collect(&groups);
    assert_no_errors(&data);
    let cpu = data.system.cpu.clone().unwrap();
    let expected = 100.0 * (1.0 - (idle_after - idle) as f64 / (total_after - total) as f64);
    assert!((cpu.usage_percent - expected).abs() < 5.0, "{} and {expected}", cpu.usage_percent);
    let processors = read("/proc/stat").lines().filter(|line| line.starts_with("cpu")).count() - 1;
    assert_eq!(cpu.cores_usage.len(), processors);

    let own = own(&data).expect("nothing here uses more than a process that spins");
    let expected = 100.0 / elapsed.as_secs_f64();
    assert!((own.cpu_usage_percent - expected).abs() < 10.0, "{} and {expected}", own.cpu_usage_percent);
    let resident: u64 = read("/proc/self/statm").split(' ').nth(1).unwrap().parse().unwrap();
    assert!(own.memory_usage_kb.abs_diff(resident * rustix::param::page_size() as u64 / 1024) < 4096, "{own:?}");
}

/// Received bytes and packets of the loopback interface.
fn loopback() -> (u64, u64) {
    let text = read("/proc/net/dev");
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).unwrap();
    let mut values = line.split_whitespace().map(|value| value.parse().unwrap());
    (values.next().unwrap(), values.next().unwrap())
}

#[test]
fn an_interfaces_counters_and_rates_are_the_kernels() {
    let (start, before_first) = (Instant::now(), loopback());
    let mut collectors = Collectors::new(&Config::default());
    let (after_first, first) = (loopback(), Instant::now());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    while first.elapsed() < Duration::from_millis(300) {
        socket.send_to(&[0; 1000], socket.local_addr().unwrap()).unwrap();
        socket.recv(&mut [0; 1000]).unwrap();
    }
    let (before_second, second) = (loopback(), Instant::now());
    let data = collectors.collect(&[Group::Network]);
    let (after_second, last) = (loopback(), Instant::now());
    assert_no_errors(&data);
    let interfaces = data.system.network.unwrap().interfaces;
    let lo = interfaces.iter().find(|interface| interface.name == "lo").unwrap();
    assert!((before_second.0..=after_second.0).contains(&lo.bytes_received));
    assert!((before_second.1..=after_second.1).contains(&lo.packets_received));
    let least = (before_second.0 - after_first.0) as f64 / (last - start).as_secs_f64();
    let most = (after_second.0 - before_first.0) as f64 / (second - first).as_secs_f64();
    let rate = lo.bytes_received_per_sec.unwrap() as f64;
    assert!((least - 1.0..=most + 1.0).contains(&rate), "{least} {rate} {most}");
    assert!(lo.is_up && lo.ip_addresses.iter().any(|address| address == "127.0.0.1"), "{lo:?}");
}

/// Sectors that whole disks wrote: what a partition wrote is its disk's already.
fn written() -> u64 {
    let text = read("/proc/diskstats");
    let fields = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let counts = |name: &str| {
        Path::new("/sys/block").join(name).exists()
            && !["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"].iter().any(|prefix| name.starts_with(prefix))
    };
    fields.filter(|fields| counts(fields[2])).map(|fields| fields[9].parse::<u64>().unwrap()).sum()
}

#[test]
fn the_disks_rates_are_the_kernels() {
    let (start, before_first) = (Instant::now(), written());
    let mut collectors = Collectors::new(&Config::default());
    let (after_first, first) = (written(), Instant::now());
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    while first.elapsed() < Duration::from_millis(300) {
        std::os::unix::fs::FileExt::write_all_at(&file, &[1; 65536], 0).unwrap();
        file.sync_all().unwrap();
    }
    let (before_second, second) = (written(), Instant::now());
    let data = collectors.collect(&[Group::Disk]);
    let (after_second, last) = (written(), Instant::now());
    let disk = data.system.disk.unwrap();
    let least = 512.0 * (before_second - after_first) as f64 / (last - start).as_secs_f64();
    let most = 512.0 * (after_second - before_first) as f64 / (second - first).as_secs_f64();
    let rate = disk.io_stats.write_bytes_per_sec as f64;
    // Each disk's rate is rounded to whole sectors.
    let rounding = 512.0 * (disk.devices.len() + 1) as f64;
    assert!((least - rounding..=most + rounding).contains(&rate), "{least} {rate} {most}");

    let root = disk.usage_stats.iter().find(|usage| usage.mount_point == "/").unwrap();
    let told = rustix::fs::statvfs("/").unwrap();
    assert_eq!(root.total_bytes, Some(told.f_blocks * told.f_frsize));
    let used = (told.f_blocks - told.f_bfree) * told.f_frsize;
    assert!(root.used_bytes.unwrap().abs_diff(used) < 1 << 30, "{root:?}");
}

/// A file system whose server never answers, in a mount namespace of its own so that nobody else waits for it.
#[test]
fn a_file_system_that_hangs_does_not_hang_the_frame() {
    const POINT: &str = "ROOST_TEST_HUNG";
    if let Ok(point) = std::env::var(POINT) {
        return with_hung_file_system(&point);
    }
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("not tried: mounting a file system of one's own needs root and /dev/fuse");
        return;
    }
    let point = tempfile::tempdir().unwrap();
    // The descriptor stays open in the test, which is its server, and never reads from it.
    let script = "exec 3<>/dev/fuse && mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 hung \"$1\" && \
        export ROOST_TEST_HUNG=\"$1\" && shift && exec \"$@\"";
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(point.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_file_system_that_hangs_does_not_hang_the_frame", "--nocapture"])
        .status()
        .unwrap();
    assert!(status.success());
}

fn with_hung_file_system(point: &str) {
    let mut collectors = Collectors::new(&Config { mount_timeout_ms: 200, ..Config::default() });
    let mut collect = || {
        let data = collectors.collect(&[Group::Disk, Group::Memory]);
        assert!(data.system.memory.is_some());
        assert!(data.system.disk.unwrap().usage_stats.iter().any(|usage| usage.mount_point == "/"));
        let error = data.errors.into_iter().find(|error| error.source.as_deref() == Some(point));
        error.expect("the frame names the one that hangs").message
    };
    assert_eq!(collect(), "no answer in 200 ms");
    for _ in 0..100 {
        assert_eq!(collect(), "still does not answer");
    }
    let threads = fs::read_dir("/proc/self/task").unwrap().count();
    // The harness's, the test's, and the one that hangs.
    assert!(threads <= 3, "{threads} threads");
}
