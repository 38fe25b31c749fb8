//! The program itself, between a socket pair that plays the hypervisor and clients on a real socket.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use roost_console_keeper::{GUEST_FD, LISTENER_FD, LOG_DIR_FD, read_tail};
use roost_host::launch::{Launch, find_program};
use roost_host::process::{ExitStatus, Process, Signal};
use roost_host::sockets::{bind_unix, connect_unix, socketpair};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(20);
const KEEPER: &str = env!("CARGO_BIN_EXE_roost-console");

struct Keeper {
    process: Process,
    /// The hypervisor's end.
    guest: UnixStream,
    socket: PathBuf,
    log_dir: PathBuf,
    _dir: TempDir,
}

impl Keeper {
    fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log_dir = dir.path().join("log");
        fs::create_dir(&log_dir).unwrap();
        Self::start_on(dir, log_dir, args)
    }

    fn start_on(dir: TempDir, log_dir: PathBuf, args: &[&str]) -> Self {
        let socket = dir.path().join("console.sock");
        let (guest, ours) = socketpair().unwrap();
        let listener = OwnedFd::from(bind_unix(&socket).unwrap());
        let process = Launch::new(KEEPER)
            .args(args.iter().map(Into::<std::ffi::OsString>::into))
            .fd(ours, GUEST_FD)
            .fd(listener, LISTENER_FD)
            .fd(fs::File::open(&log_dir).unwrap().into(), LOG_DIR_FD)
            .stderr(std::io::stderr().try_clone_fd())
            .spawn_gated()
            .unwrap()
            .release()
            .unwrap();
        let guest = UnixStream::from(guest);
        guest.set_write_timeout(Some(DEADLINE)).unwrap();
        guest.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { process, guest, socket, log_dir, _dir: dir }
    }

    fn attach(&self) -> UnixStream {
        let client = connect_unix(&self.socket).unwrap();
        client.set_nonblocking(false).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.set_write_timeout(Some(DEADLINE)).unwrap();
        client
    }

    /// The guest writes; returns once all of it is in the log.
    fn say(&mut self, bytes: &[u8]) {
        self.guest.write_all(bytes).unwrap();
        let log_dir = self.log_dir.clone();
        wait_until("it is in the log", || read_tail(&log_dir, bytes.len()).unwrap() == bytes);
    }

    fn size(&self, name: &str) -> u64 {
        fs::metadata(self.log_dir.join(name)).map_or(0, |data| data.len())
    }

    fn end(self) -> ExitStatus {
        self.guest.shutdown(std::net::Shutdown::Both).unwrap();
        ended(&self.process)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // A failed test leaves nothing behind; after a good one it is gone.
        let _ = self.process.kill();
    }
}

trait CloneFd {
    fn try_clone_fd(&self) -> OwnedFd;
}

impl<F: std::os::fd::AsFd> CloneFd for F {
    fn try_clone_fd(&self) -> OwnedFd {
        self.as_fd().try_clone_to_owned().unwrap()
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < until, "{what}: not after {DEADLINE:?}");
        std::thread::yield_now();
    }
}

fn ended(process: &Process) -> ExitStatus {
    wait_until("the keeper ends", || !process.is_alive().unwrap());
    process.reap().unwrap().expect("our child, collected here only")
}

fn expect(stream: &mut UnixStream, bytes: &[u8]) {
    let mut heard = vec![0; bytes.len()];
    stream.read_exact(&mut heard).unwrap();
    assert!(heard == bytes, "heard {:?}", String::from_utf8_lossy(&heard));
}

/// Every byte value, and different at every offset: what is lost, doubled or out of order shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

#[test]
fn both_ways_and_the_log() {
    let mut keeper = Keeper::start(&[]);
    let mut one = keeper.attach();
    let mut other = keeper.attach();
    one.write_all(b"ls\n").unwrap();
    let mut guest = keeper.guest.try_clone().unwrap();
    expect(&mut guest, b"ls\n");
    // Attached for certain: the keeper has read from it. The other may still wait to be accepted and
    // gets the same by replay.
    keeper.say(b"\x1b[1mboot\x00\xff\r\n");
    expect(&mut one, b"\x1b[1mboot\x00\xff\r\n");
    expect(&mut other, b"\x1b[1mboot\x00\xff\r\n");
    assert_eq!(fs::metadata(keeper.log_dir.join("console.log")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(keeper.end(), ExitStatus::Exited(0));
}

#[test]
fn a_client_gets_the_last_bytes_first() {
    let mut keeper = Keeper::start(&["--replay", "100"]);
    let past = pattern(1000);
    keeper.say(&past);
    let mut client = keeper.attach();
    expect(&mut client, &past[900..]);
    keeper.say(b"live");
    expect(&mut client, b"live");
    drop(client);
    let mut second = keeper.attach();
    expect(&mut second, &[&past[904..], b"live"].concat());
    // A keeper of the next boot goes on where this one ended.
    let (dir, log_dir) = (tempfile::tempdir().unwrap(), keeper.log_dir.clone());
    let next = Keeper::start_on(dir, log_dir, &["--replay", "10"]);
    expect(&mut next.attach(), &[&past[994..], b"live"].concat());
    assert_eq!(next.end(), ExitStatus::Exited(0));
    assert_eq!(keeper.end(), ExitStatus::Exited(0));
}

#[test]
fn no_replay_is_possible_too() {
    let mut keeper = Keeper::start(&["--replay", "0"]);
    keeper.say(b"past");
    let mut client = keeper.attach();
    client.write_all(b"?").unwrap();
    expect(&mut keeper.guest.try_clone().unwrap(), b"?");
    keeper.say(b"live");
    expect(&mut client, b"live");
}

#[test]
fn the_cap_is_kept_and_the_end_is_there() {
    for cap in [8192u64, 1024 * 1024] {
        let mut keeper = Keeper::start(&["--cap", &cap.to_string()]);
        let output = pattern(10 * 1024 * 1024);
        let log_dir = keeper.log_dir.clone();
        let mut guest = keeper.guest.try_clone().unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| guest.write_all(&output).unwrap());
            while !writer.is_finished() {
                // By descriptors opened in this order no rotation can make the two look smaller.
                assert!(keeper.size("console.log") <= cap / 2);
                assert!(keeper.size("console.log.1") <= cap / 2);
                // Reading while it rotates: always a piece of the output, gapless.
                let tail = read_tail(&log_dir, 2000).unwrap();
                assert!(is_piece(&output, &tail), "{} bytes that were not written so", tail.len());
            }
        });
        keeper.say(b"the end");
        let all = [&output[..], b"the end"].concat();
        let tail = read_tail(&log_dir, usize::MAX).unwrap();
        assert!(tail.len() as u64 <= cap && tail.len() as u64 > cap / 2, "{}", tail.len());
        assert!(all.ends_with(&tail));
        assert_eq!(tail.len() as u64, keeper.size("console.log") + keeper.size("console.log.1"));
        assert_eq!(fs::read_dir(&log_dir).unwrap().count(), 2);
        assert_eq!(keeper.end(), ExitStatus::Exited(0));
    }
}

fn is_piece(whole: &[u8], piece: &[u8]) -> bool {
    // The pattern does not repeat within a few bytes, so the first eight find the place.
    let Some(start) = piece.get(..8) else { return true };
    let mut from = 0;
    while let Some(at) = whole[from..].windows(8).position(|window| window == start) {
        if whole[from + at..].starts_with(piece) {
            return true;
        }
        from += at + 1;
    }
    false
}

#[test]
fn a_client_that_never_reads_holds_nobody_up() {
    let mut keeper = Keeper::start(&[]);
    let mut slow = keeper.attach();
    let mut quick = keeper.attach();
    for client in [&mut slow, &mut quick] {
        client.write_all(b"!").unwrap();
        expect(&mut keeper.guest.try_clone().unwrap(), b"!");
    }
    let output = pattern(4 * 1024 * 1024);
    let heard = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut heard = vec![0; output.len()];
            quick.read_exact(&mut heard).map(|()| heard)
        });
        for piece in output.chunks(4096) {
            keeper.guest.write_all(piece).unwrap();
        }
        reader.join().unwrap()
    });
    // It read all the while; should the machine have starved it, it was cut off like the other.
    match heard {
        Ok(heard) => assert!(heard == output),
        Err(error) => assert_eq!(error.kind(), ErrorKind::UnexpectedEof),
    }
    // The slow one: what was queued for it, and then its connection is closed.
    let mut rest = Vec::new();
    match slow.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    assert!(rest.len() < output.len() && output.starts_with(&rest), "{} bytes", rest.len());
    keeper.say(b"still here");
    expect(&mut keeper.attach(), &[&output[output.len() - 4086..], b"still here"].concat());
    assert_eq!(keeper.end(), ExitStatus::Exited(0));
}

#[test]
fn input_that_the_guest_does_not_take_is_bounded() {
    let mut keeper = Keeper::start(&[]);
    let mut client = keeper.attach();
    client.set_nonblocking(true).unwrap();
    let input = pattern(16 * 1024 * 1024);
    let mut sent = 0;
    // Until nothing goes any more for a while.
    let mut stuck_since = Instant::now();
    while sent < input.len() && stuck_since.elapsed() < Duration::from_millis(300) {
        match client.write(&input[sent..]) {
            Ok(wrote) => {
                sent += wrote;
                stuck_since = Instant::now();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(sent < 4 * 1024 * 1024, "{sent} bytes are held for a guest that reads nothing");
    keeper.say(b"output goes on");
    client.set_nonblocking(false).unwrap();
    expect(&mut client, b"output goes on");
    // And nothing of it is lost once the guest reads; not even if the client is gone by then.
    drop(client);
    assert_idle(&keeper.process);
    let mut guest = keeper.guest.try_clone().unwrap();
    let mut heard = vec![0; sent];
    guest.read_exact(&mut heard).unwrap();
    assert!(heard == input[..sent]);
    assert_eq!(keeper.end(), ExitStatus::Exited(0));
}

/// Whoever spins for a fifth of a second uses most of it, whatever else the machine does.
fn assert_idle(process: &Process) {
    let ticks = || {
        let stats = roost_host::stats::process_stats(process).unwrap().unwrap();
        (stats.cpu_user_ns + stats.cpu_system_ns) / 10_000_000
    };
    let before = ticks();
    std::thread::park_timeout(Duration::from_millis(200));
    let used = ticks() - before;
    assert!(used <= 5, "{used} ticks of CPU time while nothing happens");
}

#[test]
fn clients_that_hang_up_in_every_way() {
    let mut keeper = Keeper::start(&[]);
    let mut guest = keeper.guest.try_clone().unwrap();
    // Says something and is gone at once.
    keeper.attach().write_all(b"quick").unwrap();
    expect(&mut guest, b"quick");
    // Closes the half that it writes on, and goes on listening.
    let mut listener = keeper.attach();
    listener.write_all(b"half").unwrap();
    listener.shutdown(std::net::Shutdown::Write).unwrap();
    expect(&mut guest, b"half");
    // Closes the half that it listens on, and goes on writing.
    let mut writer = keeper.attach();
    writer.shutdown(std::net::Shutdown::Read).unwrap();
    writer.write_all(b"one").unwrap();
    expect(&mut guest, b"one");
    keeper.say(b"to whoever listens");
    expect(&mut listener, b"to whoever listens");
    writer.write_all(b"two").unwrap();
    expect(&mut guest, b"two");
    // Hangs up with the keeper's words unread.
    drop(listener);
    drop(writer);
    keeper.say(b"to nobody");
    // None of them is left, and none makes the keeper spin.
    let open = format!("/proc/{}/fd", keeper.process.ident().pid);
    wait_until("their descriptors are closed", || fs::read_dir(&open).unwrap().count() <= 8);
    assert_idle(&keeper.process);
    assert_eq!(keeper.end(), ExitStatus::Exited(0));
}

#[test]
fn one_client_too_many_is_hung_up_on() {
    let mut keeper = Keeper::start(&["--replay", "1"]);
    keeper.say(b"x");
    let mut clients: Vec<UnixStream> = (0..16).map(|_| keeper.attach()).collect();
    for client in &mut clients {
        expect(client, b"x");
    }
    let mut refused = Vec::new();
    keeper.attach().read_to_end(&mut refused).unwrap();
    assert_eq!(refused, b"");
    clients.pop();
    wait_until("a place is free", || {
        let mut byte = [0];
        keeper.attach().read(&mut byte).is_ok_and(|got| got == 1)
    });
}

#[test]
fn the_end_of_the_guest_reaches_everybody() {
    let mut keeper = Keeper::start(&[]);
    let mut client = keeper.attach();
    client.write_all(b"!").unwrap();
    expect(&mut keeper.guest.try_clone().unwrap(), b"!");
    // More than a socket holds, so that it is still queued when the guest is gone.
    let last = pattern(400_000);
    keeper.guest.write_all(&last).unwrap();
    let process = keeper.process.clone();
    let (log_dir, late) = (keeper.log_dir.clone(), keeper.attach());
    keeper.guest.shutdown(std::net::Shutdown::Both).unwrap();
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).unwrap();
    assert!(heard == last, "{} of {} bytes", heard.len(), last.len());
    let mut replay = Vec::new();
    (&late).read_to_end(&mut replay).unwrap();
    assert!(!replay.is_empty() && last.ends_with(&replay));
    assert_eq!(ended(&process), ExitStatus::Exited(0));
    assert!(read_tail(&log_dir, last.len()).unwrap() == last);
}

#[test]
fn a_client_that_does_not_read_delays_the_end_by_seconds_only() {
    let mut keeper = Keeper::start(&[]);
    let mut client = keeper.attach();
    client.write_all(b"!").unwrap();
    expect(&mut keeper.guest.try_clone().unwrap(), b"!");
    keeper.say(&pattern(400_000));
    assert_eq!(keeper.end(), ExitStatus::Exited(0));
    drop(client);
}

#[test]
fn signals() {
    let mut keeper = Keeper::start(&[]);
    keeper.say(b"up");
    for signal in [Signal::HUP, Signal::INT] {
        keeper.process.signal(signal).unwrap();
    }
    keeper.say(b"still up");
    keeper.guest.write_all(b", and this is the last").unwrap();
    keeper.process.signal(Signal::TERM).unwrap();
    assert_eq!(ended(&keeper.process), ExitStatus::Exited(0));
    let log = read_tail(&keeper.log_dir, 100).unwrap();
    assert_eq!(log, b"upstill up, and this is the last");
}

#[test]
fn links_in_the_place_of_a_log_are_refused() {
    for (name, target) in [("console.log", "/etc/passwd"), ("console.log", "/dev/null"), ("console.log.1", "precious")]
    {
        let dir = tempfile::tempdir().unwrap();
        let log_dir = dir.path().join("log");
        fs::create_dir(&log_dir).unwrap();
        fs::write(log_dir.join("precious"), "precious").unwrap();
        symlink(target, log_dir.join(name)).unwrap();
        let keeper = Keeper::start_on(dir, log_dir, &[]);
        assert_eq!(ended(&keeper.process), ExitStatus::Exited(1), "{name} -> {target}");
        assert_eq!(fs::read(keeper.log_dir.join("precious")).unwrap(), b"precious");
        assert!(read_tail(&keeper.log_dir, 10).is_err(), "nor are they read");
    }
}

#[test]
fn a_smaller_cap_keeps_the_end_of_a_larger_log() {
    let dir = tempfile::tempdir().unwrap();
    let log_dir = dir.path().join("log");
    fs::create_dir(&log_dir).unwrap();
    let past = pattern(100_000);
    fs::write(log_dir.join("console.log.1"), &past[..60_000]).unwrap();
    fs::write(log_dir.join("console.log"), &past[60_000..]).unwrap();
    let mut keeper = Keeper::start_on(dir, log_dir.clone(), &["--cap", "20000"]);
    keeper.say(b"new");
    assert_eq!(keeper.size("console.log.1"), 10_000);
    assert_eq!(read_tail(&log_dir, 20_000).unwrap(), [&past[90_000..], b"new"].concat());
}

#[test]
fn a_killed_keeper_leaves_a_log_that_the_next_one_continues() {
    let dir = tempfile::tempdir().unwrap();
    let log_dir = dir.path().join("log");
    fs::create_dir(&log_dir).unwrap();
    let output = pattern(2_000_000);
    // Small, so that most of what it does is rotate.
    for turn in 0..20 {
        let mut keeper = Keeper::start_on(tempfile::tempdir().unwrap(), log_dir.clone(), &["--cap", "8192"]);
        let sent = std::thread::scope(|scope| {
            let guest = &mut keeper.guest;
            let writer = scope.spawn(|| guest.write_all(&output));
            wait_until("it has rotated", || log_dir.join("console.log.1").exists());
            let until = Instant::now() + Duration::from_micros(turn * 400);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            keeper.process.kill().unwrap();
            writer.join().unwrap()
        });
        // All was said before the kill, or the line broke.
        drop(sent);
        assert_eq!(ended(&keeper.process), ExitStatus::Signaled(9));
        let (old, current) = (keeper.size("console.log.1"), keeper.size("console.log"));
        assert!(old <= 4096 && current <= 4096, "{old} + {current}");
        assert!(old == 0 || old == 4096, "an old log is a full one: {old}");
    }
}

#[test]
fn a_full_disk_costs_log_bytes_only() {
    let Some(unshare) = find_program("unshare".as_ref()) else {
        eprintln!("not tried: no unshare");
        return;
    };
    // A small file system in a mount namespace of its own: it goes with the last process in there.
    let mut namespaces = vec!["--mount"];
    if !rustix::process::geteuid().is_root() {
        namespaces.extend(["--user", "--map-root-user"]);
    }
    let mount = "mount -t tmpfs -o size=64k,mode=700 none";
    let dir = tempfile::tempdir().unwrap();
    let inside = |script: String| {
        let mut command = Command::new(&unshare);
        command.args(&namespaces).args(["sh", "-c", &script]).arg(dir.path()).arg(std::env::current_exe().unwrap());
        command.env(SMALL_DISK, dir.path()).output().unwrap()
    };
    if !inside(format!(r#"{mount} "$0""#)).status.success() {
        eprintln!("not tried: this user may not mount a small file system");
        return;
    }
    let output = inside(format!(r#"{mount} "$0" && exec "$1" on_a_small_disk --exact --nocapture"#));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("SMALL DISK DONE"), "{text}");
}

const SMALL_DISK: &str = "ROOST_TEST_SMALL_DISK";

/// Not a test of its own: the part of the one above that runs where the disk is small.
#[test]
fn on_a_small_disk() {
    let Some(log_dir) = std::env::var_os(SMALL_DISK).map(PathBuf::from) else { return };
    // Full before it starts: not even the file can be made longer than nothing.
    fs::write(log_dir.join("ballast"), vec![0; 64 * 1024]).unwrap();
    let mut keeper = Keeper::start_on(tempfile::tempdir().unwrap(), log_dir.clone(), &[]);
    let mut client = keeper.attach();
    client.write_all(b"!").unwrap();
    expect(&mut keeper.guest.try_clone().unwrap(), b"!");
    keeper.guest.write_all(b"unlogged").unwrap();
    expect(&mut client, b"unlogged");
    expect(&mut keeper.attach(), b"unlogged");
    assert_eq!(read_tail(&log_dir, 100).unwrap(), b"");

    fs::remove_file(log_dir.join("ballast")).unwrap();
    keeper.guest.write_all(b"logged").unwrap();
    expect(&mut client, b"logged");
    let notice = b"\r\n[roost: 8 bytes of output were not logged]\r\n";
    assert_eq!(read_tail(&log_dir, 100).unwrap(), [&notice[..], b"logged"].concat());

    // Fills up while it runs.
    let output = pattern(200_000);
    let mut quick = client.try_clone().unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| expect(&mut quick, &output));
        keeper.guest.write_all(&output).unwrap();
        reader.join().unwrap();
    });
    let logged = read_tail(&log_dir, usize::MAX).unwrap();
    assert!(logged.len() <= 64 * 1024 && is_piece(&output, &logged[logged.len() - 1000..]));
    assert_eq!(keeper.end(), ExitStatus::Exited(0));
    println!("SMALL DISK DONE");
}

#[test]
fn what_it_is_not_given_is_told() {
    let run = |args: &[&str]| {
        let output = Command::new(KEEPER).args(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = run(&[]);
    assert!(code == Some(1) && text.contains("descriptor 3 is not open"), "{text}");
    let (code, text) = run(&["--cap"]);
    assert!(code == Some(1) && text.contains("--cap needs a value"), "{text}");
    let (code, text) = run(&["--cap", "many"]);
    assert!(code == Some(1) && text.contains("\"many\": a number of bytes"), "{text}");
    let (code, text) = run(&["--colour"]);
    assert!(code == Some(1) && text.contains("unknown option \"--colour\""), "{text}");
    let (code, text) = run(&["--help"]);
    assert!(code == Some(0) && text.contains("usage: roost-console"), "{text}");
    for (args, needle) in [(["--cap", "100"], "at least 8192"), (["--replay", "1000000"], "at most 262144")] {
        let keeper = Keeper::start(&args);
        assert_eq!(ended(&keeper.process), ExitStatus::Exited(1), "{needle}");
    }
    // The listening socket in the place of the guest's and the other way round.
    let dir = tempfile::tempdir().unwrap();
    let (_guest, ours) = socketpair().unwrap();
    let (_other, not_listening) = socketpair().unwrap();
    let process = Launch::new(KEEPER)
        .fd(ours, GUEST_FD)
        .fd(not_listening, LISTENER_FD)
        .fd(fs::File::open(dir.path()).unwrap().into(), LOG_DIR_FD)
        .spawn_gated()
        .unwrap()
        .release()
        .unwrap();
    assert_eq!(ended(&process), ExitStatus::Exited(1));
}
