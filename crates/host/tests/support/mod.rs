//! What the tests of this crate share: programs that are surely there, and output with a deadline.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use roost_host::launch::{Launch, find_program};
use roost_host::process::{Process, ProcessIdent};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Long enough for a loaded machine; a test that waits this long has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub fn program(name: &str) -> PathBuf {
    find_program(name.as_ref()).unwrap_or_else(|| panic!("{name} is not on the PATH"))
}

pub fn sh(script: &str) -> Launch {
    Launch::new(program("sh")).arg("-c").arg(script).env("PATH", std::env::var_os("PATH").unwrap())
}

pub fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

/// Everything up to the end of file, which must come within the deadline.
pub fn read_to_end(fd: OwnedFd) -> String {
    read_while(&fd, |_text| true)
}

/// One line, or less at the end of file.
pub fn read_line(fd: &OwnedFd) -> String {
    read_while(fd, |text| !text.ends_with(b"\n"))
}

fn read_while(fd: &OwnedFd, mut more: impl FnMut(&[u8]) -> bool) -> String {
    let mut text = Vec::new();
    let until = Instant::now() + DEADLINE;
    while more(&text) {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).unwrap();
        let ready = rustix::event::poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&left)).unwrap();
        assert!(ready > 0, "nothing more after {DEADLINE:?}; so far {:?}", String::from_utf8_lossy(&text));
        let mut chunk = [0; 4096];
        match rustix::io::read(fd, &mut chunk).unwrap() {
            0 => break,
            got => text.extend_from_slice(&chunk[..got]),
        }
    }
    String::from_utf8(text).unwrap()
}

/// Runs to its end and returns what it wrote.
pub fn output(launch: Launch) -> String {
    let (read, write) = pipe();
    let child = launch.stdout(write).spawn_gated().unwrap().release().unwrap();
    let text = read_to_end(read);
    reap(&child);
    text
}

/// Collects a child that is ending.
pub fn reap(child: &Process) {
    wait_until("the child ends", || !child.is_alive().unwrap());
    child.reap().unwrap().expect("it is our child and nobody else collects it");
}

/// Waits on the condition itself; there is no event for the ones that this is used for.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < until, "{what}: not after {DEADLINE:?}");
        std::thread::yield_now();
    }
}

/// The identity of any process, read apart from the code under test.
pub fn ident_of(pid: u32) -> ProcessIdent {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = &stat[stat.rfind(") ").unwrap() + 2..];
    ProcessIdent {
        pid,
        start_time_ticks: after_name.split(' ').nth(19).unwrap().parse().unwrap(),
        boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned(),
    }
}

/// Whether the number is taken, be it by a zombie.
pub fn number_taken(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}
