//! Directories and files that nobody else can tamper with.
//!
//! Owns: private directories, the lock of a state directory, atomic replacement of a file, removal
//! of a tree. Every step goes through a directory descriptor and follows no symbolic link, so that
//! a link put in place between a check and its use is refused and not followed.
//! Not here: which directories Roost has.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Why a directory or file was refused.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// A symbolic link stands where a directory or file is wanted.
    #[error("{path:?} is a symbolic link")]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// Something else stands where a directory is wanted.
    #[error("{path:?} is not a directory")]
    NotADirectory {
        /// What stands there.
        path: PathBuf,
    },
    /// Somebody else owns it, or a directory above it, and could exchange what is in it.
    #[error("{path:?} belongs to uid {owner}, not to uid {expected}")]
    WrongOwner {
        /// The directory at fault.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who should: the user of this process (root is permitted for directories above).
        expected: u32,
    },
    /// Others may write to it, or to a directory above it.
    #[error("{path:?} has mode {mode:04o}: others may write to it")]
    WritableByOthers {
        /// The directory at fault.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Relative paths mean something else after a change of directory.
    #[error("{path:?} is not an absolute path without `..`")]
    NotAbsolute {
        /// The path at fault.
        path: PathBuf,
    },
    /// A name with a slash, an empty one, `.` or `..`.
    #[error("{name:?} is not the name of a directory entry")]
    BadName {
        /// The name at fault.
        name: OsString,
    },
    /// Another process owns the state directory.
    #[error("{path:?} is locked by {}", holder(*.pid))]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// What the lock file says about its holder; only for a message.
        pid: Option<u32>,
    },
    /// A system call failed.
    #[error("{call} of {path:?} failed")]
    Call {
        /// The system call.
        call: &'static str,
        /// Its object.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// Makes sure that `path` is a directory of ours which nobody else can write to, creating it and
/// what is missing above it with mode 0700. Returns it open.
///
/// Directories above must belong to us or to root, and be writable by others only with the sticky
/// bit (`/tmp`) or through our own group. An existing directory keeps its mode.
///
/// # Errors
/// Names what is wrong and where; nothing is repaired.
pub fn ensure_private_dir(path: &Path) -> Result<OwnedFd, DirError> {
    let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    let (Some(parent), Some(name), true) = (path.parent(), path.file_name(), plain && path.is_absolute()) else {
        return Err(DirError::NotAbsolute { path: path.to_owned() });
    };
    // Links above are followed (`/var/run` is one): the place that they lead to is what is checked.
    let parent = match std::fs::canonicalize(parent) {
        Ok(parent) => {
            check_above(&parent)?;
            parent
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            ensure_private_dir(parent)?;
            std::fs::canonicalize(parent).map_err(|source| DirError::Call {
                call: "realpath",
                path: parent.to_owned(),
                source,
            })?
        }
        Err(source) => {
            return Err(DirError::Call { call: "realpath", path: parent.to_owned(), source });
        }
    };
    let parent_fd = open_dir(CWD, parent.as_os_str(), &parent)?;
    match rustix::fs::mkdirat(&parent_fd, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(call("mkdir", path, errno)),
    }
    let fd = open_dir(&parent_fd, name, path)?;
    check_private(&fd, path)?;
    Ok(fd)
}

/// Sole ownership of a state directory for as long as this lives, whatever way the process ends.
#[derive(Debug)]
pub struct DirLock {
    path: PathBuf,
    _file: File,
}

impl DirLock {
    /// Locks `<state_dir>/lock`, creating it with mode 0600.
    ///
    /// # Errors
    /// [`DirError::Locked`] when another process holds it.
    pub fn acquire(state_dir: &Path) -> Result<Self, DirError> {
        let path = state_dir.join("lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => fd,
            Err(Errno::LOOP) => return Err(DirError::Symlink { path }),
            Err(errno) => return Err(call("open", &path, errno)),
        };
        let mut file = File::from(fd);
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let pid = read_pid(&mut file);
                return Err(DirError::Locked { path, pid });
            }
            Err(errno) => return Err(call("flock", &path, errno)),
        }
        let text = format!("{}\n", std::process::id());
        file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).map_err(|source| DirError::Call {
            call: "write",
            path: path.clone(),
            source,
        })?;
        Ok(Self { path, _file: file })
    }

    /// The lock file. It stays when the lock is dropped: removing it would race with the next holder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Replaces a file so that after any crash either the old or the new content is there, whole.
///
/// # Errors
/// The old file is untouched.
pub fn atomic_write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DirError> {
    static SEQUENCE: AtomicU64 = AtomicU64::new(0);
    let (Some(dir_path), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(DirError::BadName { name: path.as_os_str().to_owned() });
    };
    let dir_path = if dir_path.as_os_str().is_empty() { Path::new(".") } else { dir_path };
    let dir = open_dir(CWD, dir_path.as_os_str(), dir_path)?;
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.{}.tmp", std::process::id(), SEQUENCE.fetch_add(1, Ordering::Relaxed)));
    // A leftover of a dead process with our number is in the way and is of no use.
    match rustix::fs::unlinkat(&dir, &temporary, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(call("unlink", &dir_path.join(&temporary), errno)),
    }
    let written = write_new(&dir, &temporary, bytes, mode)
        .and_then(|()| rustix::fs::renameat(&dir, &temporary, &dir, name).map_err(|errno| ("rename", errno.into())));
    if let Err((call, source)) = written {
        // The error at hand says more than a failure to tidy up after it.
        let _ = rustix::fs::unlinkat(&dir, &temporary, AtFlags::empty());
        return Err(DirError::Call { call, path: path.to_owned(), source });
    }
    rustix::fs::fsync(&dir).map_err(|errno| call("fsync", dir_path, errno))
}

/// Removes `name` in `dir` and everything beneath it. Never follows a symbolic link, never leaves
/// the mount, and leaves no trace of itself when interrupted but less to remove. `false`: there was
/// nothing of that name.
///
/// # Errors
/// What could not be removed, and why.
pub fn remove_tree_beneath(dir: &Path, name: &OsStr) -> Result<bool, DirError> {
    if name.is_empty() || name == "." || name == ".." || name.as_bytes().contains(&b'/') {
        return Err(DirError::BadName { name: name.to_owned() });
    }
    let path = dir.join(name);
    let dir_fd = open_dir(CWD, dir.as_os_str(), dir)?;
    match unlink_entry(&dir_fd, name, &path)? {
        Unlinked::Done => return Ok(true),
        Unlinked::Missing => return Ok(false),
        Unlinked::Directory => {}
    }
    let top = open_beneath(&dir_fd, name, &path)?;
    empty(&top, &path)?;
    remove_dir(&dir_fd, name, &path)?;
    Ok(true)
}

/// Directories open at once while a tree is removed. What is deeper is moved up to the top first, so
/// that depth costs neither stack nor descriptors.
const MAX_DEPTH: usize = 32;

fn empty(top: &OwnedFd, path: &Path) -> Result<(), DirError> {
    let mut moved = 0u64;
    loop {
        let before = moved;
        empty_level(top, top, path, 0, &mut moved)?;
        if moved == before {
            return Ok(());
        }
    }
}

fn empty_level(top: &OwnedFd, dir: &OwnedFd, path: &Path, depth: usize, moved: &mut u64) -> Result<(), DirError> {
    for name in entries(dir, path)? {
        let entry = path.join(&name);
        match unlink_entry(dir, &name, &entry)? {
            Unlinked::Done | Unlinked::Missing => {}
            Unlinked::Directory if depth >= MAX_DEPTH => loop {
                let shelf = format!(".removing-{moved}");
                *moved += 1;
                match rustix::fs::renameat_with(dir, &name, top, &shelf, rustix::fs::RenameFlags::NOREPLACE) {
                    Ok(()) => break,
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(call("rename", &entry, errno)),
                }
            },
            Unlinked::Directory => {
                let child = open_beneath(dir, &name, &entry)?;
                empty_level(top, &child, &entry, depth + 1, moved)?;
                remove_dir(dir, &name, &entry)?;
            }
        }
    }
    Ok(())
}

enum Unlinked {
    Done,
    Missing,
    Directory,
}

fn unlink_entry(dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<Unlinked, DirError> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => Ok(Unlinked::Done),
        Err(Errno::NOENT) => Ok(Unlinked::Missing),
        // Linux says EISDIR; POSIX and some file systems EPERM.
        Err(Errno::ISDIR | Errno::PERM) if is_directory(dir, name) => Ok(Unlinked::Directory),
        Err(errno) => Err(call("unlink", path, errno)),
    }
}

fn is_directory(dir: &OwnedFd, name: &OsStr) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn remove_dir(dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), DirError> {
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(call("rmdir", path, errno)),
    }
}

fn entries(dir: &OwnedFd, path: &Path) -> Result<Vec<OsString>, DirError> {
    let mut names = Vec::new();
    let listing = Dir::read_from(dir).map_err(|errno| call("open", path, errno))?;
    for entry in listing {
        let entry = entry.map_err(|errno| call("getdents", path, errno))?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

/// Opens a child directory; refuses links and mount points.
fn open_beneath(dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<OwnedFd, DirError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve).map_err(|errno| call("openat2", path, errno))
}

/// Opens a directory, not a link to one.
fn open_dir(base: impl AsFd, name: &OsStr, path: &Path) -> Result<OwnedFd, DirError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&base, name, flags, Mode::empty()).map_err(|errno| {
        // O_DIRECTORY with O_NOFOLLOW says ENOTDIR for links too.
        let is_link = rustix::fs::statat(&base, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
        match errno {
            Errno::LOOP | Errno::NOTDIR if is_link => DirError::Symlink { path: path.to_owned() },
            Errno::NOTDIR => DirError::NotADirectory { path: path.to_owned() },
            errno => call("open", path, errno),
        }
    })
}

fn check_private(fd: &OwnedFd, path: &Path) -> Result<(), DirError> {
    let stat = rustix::fs::fstat(fd).map_err(|errno| call("fstat", path, errno))?;
    let uid = rustix::process::geteuid().as_raw();
    if stat.st_uid != uid {
        return Err(DirError::WrongOwner { path: path.to_owned(), owner: stat.st_uid, expected: uid });
    }
    let mode = stat.st_mode & 0o7777;
    if mode & 0o022 != 0 {
        return Err(DirError::WritableByOthers { path: path.to_owned(), mode });
    }
    Ok(())
}

/// `path` is canonical: no links in it.
fn check_above(path: &Path) -> Result<(), DirError> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    for dir in path.ancestors() {
        let stat = rustix::fs::lstat(dir).map_err(|errno| call("lstat", dir, errno))?;
        if stat.st_uid != uid && stat.st_uid != 0 {
            return Err(DirError::WrongOwner { path: dir.to_owned(), owner: stat.st_uid, expected: uid });
        }
        let mode = stat.st_mode & 0o7777;
        let sticky = mode & 0o1000 != 0;
        // A group of one's own is how some distributions set up every user (umask 002).
        let own_group = stat.st_gid == gid;
        if !sticky && (mode & 0o002 != 0 || (mode & 0o020 != 0 && !own_group)) {
            return Err(DirError::WritableByOthers { path: dir.to_owned(), mode });
        }
    }
    Ok(())
}

fn write_new(dir: &OwnedFd, name: &OsStr, bytes: &[u8], mode: u32) -> Result<(), (&'static str, io::Error)> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| ("open", errno.into()))?;
    let mut file = File::from(fd);
    file.write_all(bytes).map_err(|error| ("write", error))?;
    // The mode asked for, whatever the umask is.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(|errno| ("fchmod", errno.into()))?;
    file.sync_all().map_err(|error| ("fsync", error))
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn call(call: &'static str, path: &Path, errno: Errno) -> DirError {
    DirError::Call { call, path: path.to_owned(), source: errno.into() }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_private_dir_is_made_with_what_is_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        ensure_private_dir(&path).unwrap();
        ensure_private_dir(&path).unwrap();
        for made in ["a", "a/b", "a/b/c"] {
            assert_eq!(mode(&dir.path().join(made)), 0o700, "{made}");
        }
        chmod(&path, 0o755);
        ensure_private_dir(&path).unwrap();
        assert_eq!(mode(&path), 0o755, "an existing directory keeps its mode");
    }

    #[test]
    fn a_dir_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("private");
        ensure_private_dir(&path).unwrap();
        for bad in [0o720, 0o702, 0o777, 0o1777] {
            chmod(&path, bad);
            match ensure_private_dir(&path) {
                Err(DirError::WritableByOthers { path: at_fault, mode }) => {
                    assert_eq!((at_fault, mode), (path.clone(), bad));
                }
                other => panic!("{bad:o}: {other:?}"),
            }
        }
        // Above it: sticky is what protects /tmp.
        chmod(&path, 0o777);
        let below = path.join("below");
        assert!(matches!(ensure_private_dir(&below), Err(DirError::WritableByOthers { .. })));
        assert!(!below.exists(), "nothing is made where it would not be safe");
        chmod(&path, 0o1777);
        ensure_private_dir(&below).unwrap();
        chmod(&path, 0o770);
        ensure_private_dir(&below).unwrap();
    }

    #[test]
    fn links_and_files_in_the_place_of_a_dir_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        ensure_private_dir(&target).unwrap();
        let link = dir.path().join("link");
        symlink(&target, &link).unwrap();
        assert!(matches!(ensure_private_dir(&link), Err(DirError::Symlink { path }) if path == link));
        let dangling = dir.path().join("dangling");
        symlink("/nonexistent/elsewhere", &dangling).unwrap();
        assert!(matches!(ensure_private_dir(&dangling), Err(DirError::Symlink { .. })));
        assert!(matches!(ensure_private_dir(&dangling.join("x")), Err(DirError::Symlink { .. })));
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(ensure_private_dir(&file), Err(DirError::NotADirectory { path }) if path == file));
        // A link above is followed to where it leads, and that place is checked.
        let through = link.join("below");
        ensure_private_dir(&through).unwrap();
        chmod(&target, 0o777);
        assert!(matches!(
            ensure_private_dir(&through),
            Err(DirError::WritableByOthers { path, .. }) if path == fs::canonicalize(&target).unwrap()
        ));
    }

    #[test]
    fn paths_that_mean_different_things_are_refused() {
        for bad in ["relative/dir", "/", "", "/tmp/../etc/x"] {
            assert!(matches!(ensure_private_dir(Path::new(bad)), Err(DirError::NotAbsolute { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_dir_of_somebody_else_is_refused() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not tried: only root can give a directory away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("theirs");
        ensure_private_dir(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        let refused = |result: Result<OwnedFd, DirError>| matches!(result, Err(DirError::WrongOwner { path: at_fault, owner: 12345, expected: 0 }) if at_fault == path);
        assert!(refused(ensure_private_dir(&path)));
        assert!(refused(ensure_private_dir(&path.join("below"))), "above it as well");
    }

    #[test]
    fn the_second_owner_of_a_state_dir_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::acquire(dir.path()).unwrap();
        assert_eq!(mode(first.path()), 0o600);
        match DirLock::acquire(dir.path()) {
            Err(error @ DirError::Locked { .. }) => {
                let lock = dir.path().join("lock");
                assert_eq!(error.to_string(), format!("{lock:?} is locked by process {}", std::process::id()));
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        let again = DirLock::acquire(dir.path()).unwrap();
        drop(again);
        fs::remove_file(dir.path().join("lock")).unwrap();
        symlink("/etc/passwd", dir.path().join("lock")).unwrap();
        assert!(matches!(DirLock::acquire(dir.path()), Err(DirError::Symlink { .. })));
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let outside = dir.path().join("outside");
        fs::write(&outside, "untouched").unwrap();
        symlink(&outside, &path).unwrap();
        atomic_write(&path, b"first", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(mode(&path), 0o640);
        assert_eq!(fs::read(&outside).unwrap(), b"untouched", "the link was replaced, not followed");

        let contents: Vec<Vec<u8>> = (b'a'..=b'd').map(|byte| vec![byte; 100_000]).collect();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let seen = fs::read(&path).unwrap();
                    assert!(seen == b"first" || contents.contains(&seen), "a mixture of {} bytes", seen.len());
                }
            });
            let writers: Vec<_> = contents
                .iter()
                .map(|bytes| scope.spawn(|| (0..5).for_each(|_| atomic_write(&path, bytes, 0o600).unwrap())))
                .collect();
            for writer in writers {
                writer.join().unwrap();
            }
            done.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "no temporary file is left: {names:?}");

        fs::create_dir(dir.path().join("taken")).unwrap();
        assert!(matches!(
            atomic_write(&dir.path().join("taken"), b"x", 0o600),
            Err(DirError::Call { call: "rename", .. })
        ));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nor after a failure");
    }

    #[test]
    fn a_tree_is_removed_and_nothing_that_its_links_name() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "").unwrap();
        let vms = dir.path().join("vms");
        fs::create_dir_all(vms.join("vm/a/b")).unwrap();
        fs::write(vms.join("vm/a/file"), "").unwrap();
        symlink(&outside, vms.join("vm/a/b/link")).unwrap();
        symlink("../../outside", vms.join("vm/relative")).unwrap();
        symlink(&outside, vms.join("itself")).unwrap();
        fs::write(vms.join("other"), "").unwrap();

        assert!(remove_tree_beneath(&vms, "vm".as_ref()).unwrap());
        assert!(!remove_tree_beneath(&vms, "vm".as_ref()).unwrap(), "nothing is left to remove");
        assert!(remove_tree_beneath(&vms, "itself".as_ref()).unwrap());
        assert!(outside.join("precious").exists());
        assert!(vms.join("other").exists());
        for bad in ["", ".", "..", "a/b", "/etc"] {
            assert!(matches!(remove_tree_beneath(&vms, bad.as_ref()), Err(DirError::BadName { .. })), "{bad:?}");
        }
        let link = dir.path().join("link-to-vms");
        symlink(&vms, &link).unwrap();
        assert!(matches!(remove_tree_beneath(&link, "other".as_ref()), Err(DirError::Symlink { .. })));
    }

    #[test]
    fn a_tree_of_any_depth_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        // Far deeper than a path can be long, and two branches at each level.
        let mut at = open_dir(CWD, dir.path().as_os_str(), dir.path()).unwrap();
        for _ in 0..1000 {
            rustix::fs::mkdirat(&at, "deep", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&at, "side", Mode::RWXU).unwrap();
            at = open_dir(&at, "deep".as_ref(), dir.path()).unwrap();
        }
        drop(at);
        assert!(remove_tree_beneath(dir.path(), "deep".as_ref()).unwrap());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["side"]);
    }

    #[test]
    fn a_link_that_comes_and_goes_is_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("precious"), "").unwrap();
        let done = AtomicBool::new(false);
        let tree = dir.path().join("tree");
        let (bait, link) = (tree.join("bait"), dir.path().join("swap"));
        symlink(&outside, &link).unwrap();
        fs::create_dir_all(&bait).unwrap();
        std::thread::scope(|scope| {
            let attacker = scope.spawn(|| {
                let swap = |from: &Path, to: &Path| {
                    rustix::fs::renameat_with(CWD, from, CWD, to, rustix::fs::RenameFlags::EXCHANGE)
                };
                while !done.load(Ordering::Relaxed) {
                    // Either may be gone for a moment.
                    let _ = swap(&bait, &link);
                }
            });
            for _ in 0..300 {
                // It may fail for what the attacker does; it must not go outside.
                let _ = remove_tree_beneath(dir.path(), "tree".as_ref());
                let _ = fs::create_dir_all(&bait);
                let _ = fs::remove_dir_all(&link);
                let _ = symlink(&outside, &link);
                assert!(outside.join("precious").exists());
            }
            done.store(true, Ordering::Relaxed);
            attacker.join().unwrap();
        });
    }
}
