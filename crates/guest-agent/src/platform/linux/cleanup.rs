//! Cleaning away what nobody misses: named targets only, beneath directories that are written down here.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::time::SystemTime;

use roost_guest_proto::results::CleanedTarget;
use roost_guest_proto::{CleanupTarget, ErrorBody, ErrorCode};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, open, openat, statat, unlinkat};
use rustix::io::Errno;

use crate::platform::System;
use crate::run::Finished;
use crate::safe::{Context, Failure};

/// How deep a directory is followed.
const MAX_DEPTH: usize = 32;
/// How many entries are looked at.
const MAX_ENTRIES: usize = 1_000_000;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// In /tmp and the like, these are in use however old they look.
const KEPT: &[&[u8]] = &[b".X11-unix", b".ICE-unix", b".XIM-unix", b".font-unix", b".Test-unix", b"lost+found"];

/// Where a target's files are, and which of them.
struct Place {
    path: &'static str,
    /// Only files whose names end so, and none beneath.
    suffixes: &'static [&'static [u8]],
}

const PACKAGE_CACHES: &[Place] = &[
    Place { path: "/var/cache/apt/archives", suffixes: &[b".deb"] },
    Place { path: "/var/cache/apt/archives/partial", suffixes: &[b".deb", b".FAILED"] },
    Place { path: "/var/cache/apk", suffixes: &[b".apk"] },
    Place { path: "/var/cache/pacman/pkg", suffixes: &[b".pkg.tar.zst", b".pkg.tar.xz", b".sig"] },
    Place { path: "/var/cache/dnf", suffixes: &[b".rpm"] },
    Place { path: "/var/cache/libdnf5", suffixes: &[b".rpm"] },
    Place { path: "/var/cache/yum", suffixes: &[b".rpm"] },
    Place { path: "/var/cache/zypp/packages", suffixes: &[b".rpm"] },
];

const TEMPORARY: &[&str] = &["/tmp", "/var/tmp"];

/// The file system that cleaning is confined to: its device.
pub(crate) fn drive_device(system: &System, drive: &str) -> Result<u64, ErrorBody> {
    let shown: String = drive.chars().take(256).collect();
    if !drive.starts_with('/') {
        return Err(ErrorBody::field("drive", format!("drive: {shown:?}; permitted: a mount point, like /")));
    }
    match rustix::fs::stat(system.file(drive)) {
        Ok(stat) => Ok(stat.st_dev),
        Err(error) => Err(ErrorBody::new(ErrorCode::NotFound, format!("drive: {shown:?}: {error}"))),
    }
}

/// Cleans one target, on one device or wherever it is.
pub(crate) fn clean(
    context: &Context,
    target: CleanupTarget,
    device: Option<u64>,
    days: u32,
) -> Result<(CleanedTarget, Option<Finished>), Failure> {
    let mut cleaner = Cleaner { context, device, before: None, cleaned: CleanedTarget::default(), entries: 0 };
    let mut finished = None;
    match target {
        CleanupTarget::PackageCache => {
            PACKAGE_CACHES.iter().for_each(|place| cleaner.place(place.path, place.suffixes))
        }
        CleanupTarget::Tmp => {
            let age = std::time::Duration::from_secs(u64::from(days) * 24 * 3600);
            cleaner.before = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .ok()
                .map(|now| now.saturating_sub(age).as_secs());
            TEMPORARY.iter().for_each(|path| cleaner.place(path, &[]));
        }
        CleanupTarget::Journal => finished = cleaner.journal(days)?,
    }
    context.check()?;
    Ok((CleanedTarget { target: target.as_str().to_owned(), ..cleaner.cleaned }, finished))
}

struct Cleaner<'a> {
    context: &'a Context,
    device: Option<u64>,
    /// Seconds since 1970: what was touched since stays.
    before: Option<u64>,
    cleaned: CleanedTarget,
    entries: usize,
}

impl Cleaner<'_> {
    /// journald writes it, and so journald shortens it.
    fn journal(&mut self, days: u32) -> Result<Option<Finished>, Failure> {
        let system = &self.context.system;
        let directory = system.file("/var/log/journal");
        let elsewhere = |stat: Stat| self.device.is_some_and(|device| device != stat.st_dev);
        match rustix::fs::stat(&directory) {
            Err(_) => self.skip("there is no journal on a disk"),
            Ok(stat) if elsewhere(stat) => self.skip("it is on another drive"),
            Ok(_) if !system.has("journalctl") => self.skip("there is no journalctl"),
            Ok(_) => {
                let vacuum = format!("--vacuum-time={days}d");
                let finished = self.context.succeed(system.program(["journalctl", "--no-pager", &vacuum]))?;
                self.cleaned.freed_bytes = parse_freed(&finished.stderr);
                return Ok(Some(finished));
            }
        }
        Ok(None)
    }

    fn skip(&mut self, reason: &str) {
        self.cleaned.skipped = Some(reason.to_owned());
    }

    /// Goes through a directory and what is beneath it, from descriptor to descriptor: no link is followed, and no
    /// other file system is entered.
    fn place(&mut self, path: &str, suffixes: &[&[u8]]) {
        let Ok(root) = open(self.context.system.file(path), DIRECTORY, Mode::empty()) else { return };
        let Ok(device) = fstat(&root).map(|stat| stat.st_dev) else { return };
        if self.device.is_some_and(|wanted| wanted != device) {
            if self.cleaned.removed_files == 0 {
                self.skip("it is on another drive");
            }
            return;
        }
        self.beneath(&root, device, 0, suffixes);
    }

    fn beneath(&mut self, directory: &OwnedFd, device: u64, depth: usize, suffixes: &[&[u8]]) {
        let Ok(entries) = Dir::read_from(directory) else { return };
        for entry in entries.flatten() {
            self.entries += 1;
            if self.entries > MAX_ENTRIES || self.context.check().is_err() {
                return self.skip("there is more than could be looked at in one go");
            }
            let name = entry.file_name();
            if name.to_bytes() == b"." || name.to_bytes() == b".." || (depth == 0 && is_kept(name)) {
                continue;
            }
            let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if stat.st_dev == device && depth < MAX_DEPTH => {
                    if let Ok(inner) = openat(directory, name, DIRECTORY, Mode::empty()) {
                        self.beneath(&inner, device, depth + 1, suffixes);
                    }
                }
                FileType::RegularFile | FileType::Symlink if self.may_go(name, &stat, suffixes) => {
                    self.remove(directory, name, &stat);
                }
                _ => {}
            }
        }
    }

    fn may_go(&self, name: &CStr, stat: &Stat, suffixes: &[&[u8]]) -> bool {
        let old = |before: u64| {
            [stat.st_atime, stat.st_mtime, stat.st_ctime].iter().all(|time| (*time).max(0) as u64 <= before)
        };
        let named = suffixes.is_empty() || suffixes.iter().any(|suffix| name.to_bytes().ends_with(suffix));
        named && self.before.is_none_or(old)
    }

    fn remove(&mut self, directory: &OwnedFd, name: &CStr, stat: &Stat) {
        match unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) => {
                self.cleaned.removed_files += 1;
                // Another name may hold its blocks.
                if stat.st_nlink == 1 {
                    self.cleaned.freed_bytes += (stat.st_blocks.max(0) as u64).saturating_mul(512);
                }
            }
            Err(Errno::NOENT) => {}
            Err(error) => self.skip(&format!("not all of it: {error}")),
        }
    }
}

fn is_kept(name: &CStr) -> bool {
    let name = name.to_bytes();
    KEPT.contains(&name) || name.starts_with(b"systemd-private-")
}

/// `Vacuuming done, freed 16.0M of archived journals from /var/log/journal/...`
fn parse_freed(output: &[u8]) -> u64 {
    let output = String::from_utf8_lossy(output);
    let amounts = output.lines().filter_map(|line| line.split_once("freed ")?.1.split_whitespace().next());
    let bytes = amounts.filter_map(|amount| {
        let end = amount.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(amount.len());
        let unit = match &amount[end..] {
            "B" | "" => 1.0,
            "K" => 1024.0,
            "M" => 1024.0 * 1024.0,
            "G" => 1024.0 * 1024.0 * 1024.0,
            _ => return None,
        };
        Some(amount[..end].parse::<f64>().ok()?.mul_add(unit, 0.0) as u64)
    });
    bytes.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::fs::{File, FileTimes};
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::run::Cancel;

    fn context(root: &Path) -> Context {
        Context::new(System::new(root, Vec::new()), Cancel::new().unwrap(), Default::default())
    }

    /// The time of the last change cannot be set: a file is old by what is asked of it.
    fn file(path: &Path, age: Duration) {
        std::fs::write(path, "some content").unwrap();
        let time = SystemTime::now() - age;
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_times(FileTimes::new().set_accessed(time).set_modified(time))
            .unwrap();
    }

    #[test]
    fn only_package_files() {
        let root = tempfile::tempdir().unwrap();
        let archives = root.path().join("var/cache/apt/archives");
        std::fs::create_dir_all(archives.join("partial")).unwrap();
        for name in ["git_1_amd64.deb", "lock", "partial/x.deb"] {
            file(&archives.join(name), Duration::ZERO);
        }
        let (cleaned, _) = clean(&context(root.path()), CleanupTarget::PackageCache, None, 10).unwrap();
        assert_eq!((cleaned.removed_files, cleaned.skipped.as_deref()), (2, None));
        assert!(cleaned.freed_bytes > 0 && archives.join("lock").exists());
    }

    #[test]
    fn only_what_is_old_and_no_link_is_followed() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let tmp = root.path().join("tmp");
        std::fs::create_dir_all(tmp.join("a/b")).unwrap();
        std::fs::create_dir_all(tmp.join(".X11-unix")).unwrap();
        let day = Duration::from_secs(24 * 3600);
        file(&outside.path().join("precious"), 100 * day);
        symlink(outside.path(), tmp.join("a/link")).unwrap();
        for name in ["new", "a/b/old", ".X11-unix/X0"] {
            file(&tmp.join(name), if name == "new" { Duration::ZERO } else { 100 * day });
        }
        // Its inode was changed just now, so it stays.
        let (cleaned, _) = clean(&context(root.path()), CleanupTarget::Tmp, None, 10).unwrap();
        assert_eq!(cleaned.removed_files, 0);
        // With no age asked for, what is there goes, and nothing else.
        let (cleaned, _) = clean(&context(root.path()), CleanupTarget::Tmp, None, 0).unwrap();
        assert_eq!(cleaned.removed_files, 3, "two files and a link");
        assert!(outside.path().join("precious").exists() && tmp.join(".X11-unix/X0").exists());
        assert!(tmp.join("a/b").is_dir());
    }

    #[test]
    fn another_drive_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("tmp")).unwrap();
        file(&root.path().join("tmp/x"), Duration::ZERO);
        let (cleaned, _) = clean(&context(root.path()), CleanupTarget::Tmp, Some(u64::MAX), 0).unwrap();
        assert_eq!((cleaned.removed_files, cleaned.skipped.as_deref()), (0, Some("it is on another drive")));
        assert!(drive_device(&System::default(), "/").is_ok());
        assert_eq!(drive_device(&System::default(), "C:").unwrap_err().code, ErrorCode::InvalidMessage);
        assert_eq!(drive_device(&System::default(), "/no/such").unwrap_err().code, ErrorCode::NotFound);
    }

    #[test]
    fn what_journalctl_says() {
        let said = b"Deleted archived journal /var/log/journal/x (8.0M).\n\
            Vacuuming done, freed 16.0M of archived journals from /var/log/journal/x.\n\
            Vacuuming done, freed 0B of archived journals from /run/log/journal.\n";
        assert_eq!(parse_freed(said), 16 << 20);
        assert_eq!(parse_freed(b"freed 1e400G of"), 0);
    }
}
