//! Which file systems are frozen, and in which order.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use roost_guest_proto::{ErrorBody, ErrorCode};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use crate::platform::{self, Mount, System};

/// The most file systems in one freeze: their descriptors go to the guard in one message.
pub(super) const MAX_TARGETS: usize = 200;

/// A file system to freeze. Its directory is open before anything is frozen, so that thawing looks nothing up.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) mount_point: PathBuf,
    pub(super) directory: OwnedFd,
}

/// A file system that is left as it is.
#[derive(Debug)]
pub(super) struct Skipped {
    pub(super) mount_point: PathBuf,
    pub(super) reason: String,
}

impl Skipped {
    pub(super) fn to_json(&self) -> Value {
        json!({ "path": self.mount_point, "reason": self.reason })
    }
}

/// What `paths` name, or every file system that is on a disk.
pub(super) fn targets(system: &System, paths: &[String]) -> Result<(Vec<Target>, Vec<Skipped>), ErrorBody> {
    let mounts = platform::mounts(system)
        .map_err(|error| ErrorBody::new(ErrorCode::CommandFailed, format!("cannot read what is mounted: {error}")))?;
    let (mut targets, mut skipped) = (Vec::new(), Vec::new());
    for mount in choose(&mounts, paths)? {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&mount.mount_point, flags, Mode::empty()) {
            Ok(directory) => targets.push(Target { mount_point: mount.mount_point, directory }),
            Err(error) if paths.is_empty() => {
                skipped.push(Skipped { mount_point: mount.mount_point, reason: error.to_string() });
            }
            Err(error) => {
                let message = format!("paths: {}: {error}", mount.mount_point.display());
                return Err(ErrorBody::field("paths", message));
            }
        }
    }
    Ok((targets, skipped))
}

/// Each file system once, what was mounted last first: what lies on another one is frozen before it.
fn choose(mounts: &[Mount], paths: &[String]) -> Result<Vec<Mount>, ErrorBody> {
    let mut devices = HashSet::new();
    // A later mount hides an earlier one of the same place.
    let visible = |at: usize| mounts[at + 1..].iter().all(|later| later.mount_point != mounts[at].mount_point);
    let mut chosen: Vec<Mount> = if paths.is_empty() {
        let on_disk = |(at, mount): &(usize, &Mount)| mount.is_on_disk() && !mount.read_only_filesystem && visible(*at);
        let all = mounts.iter().enumerate().filter(on_disk).map(|(_, mount)| mount);
        all.filter(|mount| devices.insert(mount.device.clone())).cloned().collect()
    } else {
        let mut chosen = Vec::new();
        for path in paths {
            let at = mounts.iter().rposition(|mount| mount.mount_point == Path::new(path)).ok_or_else(|| {
                let shown: String = path.chars().take(256).collect();
                let mut error = ErrorBody::field("paths", format!("paths: {shown:?} is no mount point"));
                error.code = ErrorCode::NotFound;
                error
            })?;
            if devices.insert(mounts[at].device.clone()) {
                chosen.push((at, mounts[at].clone()));
            }
        }
        chosen.sort_by_key(|(at, _)| *at);
        chosen.into_iter().map(|(_, mount)| mount).collect()
    };
    if chosen.len() > MAX_TARGETS {
        let message = format!("paths: {} file systems; permitted: {MAX_TARGETS}", chosen.len());
        return Err(ErrorBody::new(ErrorCode::ResourceLimit, message));
    }
    chosen.reverse();
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(device: &str, mount_point: &str, filesystem: &str) -> Mount {
        Mount {
            device: device.into(),
            mount_point: mount_point.into(),
            filesystem: filesystem.into(),
            source: "/dev/x".into(),
            read_only: false,
            read_only_filesystem: false,
        }
    }

    fn points(mounts: &[Mount], paths: &[&str]) -> Vec<PathBuf> {
        let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
        choose(mounts, &paths).unwrap().into_iter().map(|mount| mount.mount_point).collect()
    }

    #[test]
    fn all_that_is_on_a_disk_the_last_first_and_each_once() {
        let mut mounts = vec![
            mount("8:1", "/", "ext4"),
            mount("0:5", "/proc", "proc"),
            mount("0:9", "/net", "nfs4"),
            mount("8:2", "/home", "xfs"),
            mount("8:1", "/srv/bind", "ext4"),
            mount("7:0", "/home/image", "ext4"),
            mount("8:3", "/ro", "ext4"),
        ];
        mounts[6].read_only_filesystem = true;
        assert_eq!(points(&mounts, &[]), ["/home/image", "/home", "/"].map(PathBuf::from));
    }

    #[test]
    fn what_is_named_in_the_same_order() {
        let mounts = [mount("8:1", "/", "ext4"), mount("8:2", "/a", "xfs"), mount("0:7", "/b", "tmpfs")];
        assert_eq!(points(&mounts, &["/", "/b", "/"]), ["/b", "/"].map(PathBuf::from));
        let error = choose(&mounts, &["/a/b".to_owned()]).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (ErrorCode::NotFound, r#"paths: "/a/b" is no mount point"#));
    }

    #[test]
    fn no_more_than_the_guard_takes() {
        let mounts: Vec<_> = (0..=MAX_TARGETS).map(|n| mount(&format!("8:{n}"), &format!("/{n}"), "ext4")).collect();
        assert_eq!(choose(&mounts, &[]).unwrap_err().code, ErrorCode::ResourceLimit);
    }
}
