//! What descends from a command where no cgroup holds it: the processes of its session, and those that carry its mark
//! in their environment. One that scrubs its environment and leaves the session is missed; that is what cgroups are for.

use std::fs::{self, File};
use std::io::Read;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::plan::MARK;

/// How much of an environment is looked at.
const MAX_ENVIRONMENT: u64 = 256 * 1024;

/// How often it is looked again, because they may fork meanwhile.
const ROUNDS: usize = 20;

/// SIGKILL to everything that belongs to the session of `leader` or carries `mark`.
pub(crate) fn kill_all(leader: Pid, mark: &str) {
    for _ in 0..ROUNDS {
        if kill_round(leader, mark) == 0 {
            return;
        }
    }
}

fn kill_round(leader: Pid, mark: &str) -> usize {
    let mut killed = 0;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?)) else { continue };
        if pid.as_raw_nonzero().get() as u32 == std::process::id() || !belongs(pid, leader, mark) {
            continue;
        }
        // Once there is a descriptor, the number cannot become somebody else's; so look again behind it.
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if belongs(pid, leader, mark) && pidfd_send_signal(&pidfd, Signal::KILL).is_ok() {
            killed += 1;
        }
    }
    killed
}

/// A process that is dead and not yet waited for does not belong: there is nothing left to end.
fn belongs(pid: Pid, leader: Pid, mark: &str) -> bool {
    let directory = format!("/proc/{}", pid.as_raw_nonzero());
    let Ok(stat) = fs::read(format!("{directory}/stat")) else { return false };
    let Some((state, session)) = state_and_session(&stat) else { return false };
    if matches!(state, b'Z' | b'X') {
        return false;
    }
    if session == leader.as_raw_nonzero().get() {
        return true;
    }
    let mut environment = Vec::new();
    let read = File::open(format!("{directory}/environ"))
        .and_then(|file| file.take(MAX_ENVIRONMENT).read_to_end(&mut environment));
    read.is_ok() && carries(&environment, mark)
}

fn carries(environment: &[u8], mark: &str) -> bool {
    environment.split(|&byte| byte == 0).any(|pair| {
        pair.strip_prefix(MARK.as_bytes()).and_then(|rest| rest.strip_prefix(b"=")) == Some(mark.as_bytes())
    })
}

/// From `/proc/<pid>/stat`: the name may hold anything, so count from its last parenthesis.
fn state_and_session(stat: &[u8]) -> Option<(u8, i32)> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let text = std::str::from_utf8(stat.get(end + 2..)?).ok()?;
    let mut fields = text.split(' ');
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(2)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses() {
        assert_eq!(state_and_session(b"7 (a) S 1 (x) R 1 7 9 0 -1"), Some((b'R', 9)));
        assert_eq!(state_and_session(b"7 (a"), None);
        assert_eq!(state_and_session(b""), None);
    }

    #[test]
    fn a_mark_is_a_whole_variable() {
        assert!(carries(b"A=b\0ROOST_EXEC_MARK=xy\0", "xy"));
        assert!(!carries(b"A=ROOST_EXEC_MARK=xy\0ROOST_EXEC_MARK=xyz\0", "xy"));
    }
}
