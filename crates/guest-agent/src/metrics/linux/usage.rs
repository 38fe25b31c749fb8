//! How full file systems are, each asked with a time limit: statvfs of one whose server is gone may never return.
//!
//! ```text
//!              answered in time
//!     asked ─────────────────────> next one, by the same thread
//!       │ time is up
//!       v           the call returns, at some time
//!     hanging ───────────────────────────────────────> asked again
//! ```
//!
//! The thread of one that hangs is left to it, and another goes on with the rest. Nobody asks a file system again
//! while an earlier call is under way, so that as many threads hang as file systems do; there is a limit to that too.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use roost_guest_proto::metrics::{DiskUsage, Group};

use super::mounts::Mount;
use super::text::printable;
use crate::metrics::rates::round;
use crate::metrics::{Failure, Notes};

/// Threads that may hang at once.
const MAX_HANGING: usize = 8;
/// One collection waits for so many file systems in vain; the others come next time.
const PATIENCE: u32 = 3;
/// statvfs needs little.
const STACK: usize = 64 * 1024;
const MAX_POINT: usize = 256;

/// In bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Space {
    total: u64,
    used: u64,
    available: u64,
}

type Ask = dyn Fn(&Path) -> io::Result<Space> + Send + Sync;

pub(super) struct Usages {
    timeout: Duration,
    ask: Arc<Ask>,
    hanging: Vec<(PathBuf, JoinHandle<()>)>,
}

impl std::fmt::Debug for Usages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Usages").field("timeout", &self.timeout).field("hanging", &self.hanging).finish_non_exhaustive()
    }
}

impl Usages {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, ask: Arc::new(statvfs), hanging: Vec::new() }
    }

    /// The usage of those that answer. The others are noted.
    pub(super) fn collect(&mut self, (mounts, more): (Vec<Mount>, bool), notes: &mut Notes) -> Vec<DiskUsage> {
        self.hanging.retain(|(_, thread)| !thread.is_finished());
        let deadline = Instant::now() + self.timeout * PATIENCE;
        let (hanging, mut rest): (Vec<_>, Vec<_>) =
            mounts.into_iter().partition(|mount| self.hanging.iter().any(|(point, _)| *point == mount.point));
        for mount in &hanging {
            note(notes, mount, "still does not answer");
        }
        if more {
            let what = format!("more than {} file systems: the others are left out", super::mounts::MAX_MOUNTS);
            notes.say(Group::Disk, None, &what);
        }
        let mut usages = Vec::with_capacity(rest.len());
        while !rest.is_empty() {
            if self.hanging.len() >= MAX_HANGING || Instant::now() >= deadline {
                for mount in &rest {
                    note(notes, mount, "not asked, as too many others do not answer");
                }
                break;
            }
            rest = match self.ask_in_turn(rest, &mut usages, notes) {
                Ok(rest) => rest,
                Err(source) => {
                    notes.add(Group::Disk, None, &Failure::System { what: "cannot start a thread", source });
                    break;
                }
            };
        }
        usages
    }

    /// Asks one after the other until one hangs. Returns those behind it.
    fn ask_in_turn(
        &mut self,
        mounts: Vec<Mount>,
        usages: &mut Vec<DiskUsage>,
        notes: &mut Notes,
    ) -> io::Result<Vec<Mount>> {
        let (sender, answers) = channel();
        let points: Vec<PathBuf> = mounts.iter().map(|mount| mount.point.clone()).collect();
        let ask = Arc::clone(&self.ask);
        let thread = std::thread::Builder::new().name("statvfs".into()).stack_size(STACK).spawn(move || {
            for point in points {
                // Nobody listens any more: another thread has the rest.
                if sender.send(ask(&point)).is_err() {
                    return;
                }
            }
        })?;
        let mut mounts = mounts.into_iter();
        while let Some(mount) = mounts.next() {
            match answers.recv_timeout(self.timeout) {
                // None of the kinds that were sorted out by name, and yet nothing that could be full.
                Ok(Ok(space)) if space.total == 0 => {}
                Ok(Ok(space)) => usages.push(usage(&mount, space)),
                Ok(Err(error)) => note(notes, &mount, &error.to_string()),
                Err(RecvTimeoutError::Timeout) => {
                    note(notes, &mount, &format!("no answer in {} ms", self.timeout.as_millis()));
                    self.hanging.push((mount.point, thread));
                    return Ok(mounts.collect());
                }
                Err(RecvTimeoutError::Disconnected) => note(notes, &mount, "its thread ended"),
            }
        }
        // It has sent its last answer, and ends.
        let _ = thread.join();
        Ok(Vec::new())
    }
}

fn note(notes: &mut Notes, mount: &Mount, message: &str) {
    notes.say(Group::Disk, Some(&mount.point.to_string_lossy()), message);
}

fn statvfs(point: &Path) -> io::Result<Space> {
    let told = rustix::fs::statvfs(point)?;
    let bytes = |blocks: u64| blocks.saturating_mul(told.f_frsize);
    Ok(Space {
        total: bytes(told.f_blocks),
        used: bytes(told.f_blocks.saturating_sub(told.f_bfree)),
        available: bytes(told.f_bavail),
    })
}

fn usage(mount: &Mount, space: Space) -> DiskUsage {
    let gb = |bytes: u64| round(bytes as f64 / (1u64 << 30) as f64, 3);
    DiskUsage {
        mount_point: printable(mount.point.as_os_str().as_encoded_bytes(), MAX_POINT),
        total_gb: gb(space.total),
        used_gb: gb(space.used),
        available_gb: gb(space.available),
        filesystem: mount.filesystem.clone(),
        total_bytes: Some(space.total),
        used_bytes: Some(space.used),
        available_bytes: Some(space.available),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::metrics::linux::mounts;

    fn mounts_of(points: &[&str]) -> (Vec<Mount>, bool) {
        let line = |(n, point): (usize, &&str)| format!("{n} 1 8:{n} / {point} rw - ext4 /dev/x rw\n");
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let text: String = points.iter().enumerate().map(line).collect();
        std::fs::write(root.path().join("proc/self/mountinfo"), text).unwrap();
        mounts::read(&mut super::super::files::Files::new(root.path().to_owned())).unwrap()
    }

    fn points(usages: &[DiskUsage]) -> Vec<&str> {
        usages.iter().map(|usage| usage.mount_point.as_str()).collect()
    }

    #[test]
    fn one_that_hangs_costs_its_own_line_once_and_is_asked_again_when_it_returned() {
        let (release, gate) = channel::<()>();
        let gate = Mutex::new(gate);
        let mut usages = Usages::new(Duration::from_millis(50));
        usages.ask = Arc::new(move |point| {
            if point == Path::new("/hung") {
                // Until the test lets it go.
                let _ = gate.lock().unwrap().recv();
            }
            Ok(Space { total: 4 << 30, used: 1 << 30, available: 3 << 30 })
        });

        let mut notes = Notes::default();
        let told = usages.collect(mounts_of(&["/a", "/hung", "/b"]), &mut notes);
        assert_eq!(points(&told), ["/a", "/b"]);
        assert_eq!((told[0].total_gb, told[0].used_bytes), (4.0, Some(1 << 30)));
        assert_eq!(notes.errors[0].source.as_deref(), Some("/hung"));
        assert_eq!(notes.errors[0].message, "no answer in 50 ms");

        // Known now: nobody waits for it.
        usages.timeout = Duration::from_secs(3600);
        let mut notes = Notes::default();
        assert_eq!(points(&usages.collect(mounts_of(&["/a", "/hung", "/b"]), &mut notes)), ["/a", "/b"]);
        assert_eq!(notes.errors[0].message, "still does not answer");

        // Once for the call that hangs, and once for the one that asks again.
        release.send(()).unwrap();
        release.send(()).unwrap();
        while usages.hanging.iter().any(|(_, thread)| !thread.is_finished()) {
            std::thread::yield_now();
        }
        let mut notes = Notes::default();
        assert_eq!(points(&usages.collect(mounts_of(&["/a", "/hung", "/b"]), &mut notes)), ["/a", "/hung", "/b"]);
        assert_eq!(notes.errors, []);
    }

    #[test]
    fn so_many_threads_hang_and_no_more() {
        let (release, gate) = channel::<()>();
        let gate = Mutex::new(gate);
        let mut usages = Usages::new(Duration::from_millis(10));
        usages.ask = Arc::new(move |_| {
            let _ = gate.lock().unwrap().recv();
            Err(io::ErrorKind::NotFound.into())
        });
        let names: Vec<String> = (0..20).map(|n| format!("/m{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for _ in 0..10 {
            let mut notes = Notes::default();
            assert_eq!(usages.collect(mounts_of(&names), &mut notes), []);
            assert_eq!(notes.errors.len(), 20);
            assert!(usages.hanging.len() <= MAX_HANGING);
        }
        assert_eq!(usages.hanging.len(), MAX_HANGING);
        drop(release);
    }

    #[test]
    fn the_root_tells_what_statvfs_says() {
        let mut notes = Notes::default();
        let told = Usages::new(Duration::from_secs(10)).collect(mounts_of(&["/", "/no/such/place"]), &mut notes);
        assert_eq!(told[0].total_bytes, Some(statvfs(Path::new("/")).unwrap().total));
        assert_eq!(notes.errors[0].source.as_deref(), Some("/no/such/place"));
    }
}
