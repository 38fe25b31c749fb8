//! A user's authorized_keys (sshd(8), AUTHORIZED_KEYS FILE FORMAT).
//!
//! The user owns the directory, and may have put anything into it. So nothing in it is followed: every step is from a
//! descriptor, a symbolic or hard link is refused, and the file is replaced whole.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use roost_guest_proto::results::{SshKeyInfo, SshKeys};
use roost_guest_proto::{ErrorBody, ErrorCode, SshKey, UserName};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, fstat, mkdirat, open, openat, renameat, unlinkat,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::accounts::{Account, accounts};
use crate::platform::System;

/// The largest file that is read, or made.
const MAX_FILE: u64 = 256 * 1024;

const NAME: &str = "authorized_keys";
const TEMPORARY: &str = "authorized_keys.roost-new";

/// What is to become of the keys.
#[derive(Debug, Clone, Copy)]
pub(crate) enum KeyChange<'a> {
    List,
    Add(&'a [SshKey]),
    Remove(&'a [SshKey]),
}

/// Changes a user's keys, and lists them.
pub(crate) fn ssh_keys(system: &System, user: &UserName, change: KeyChange<'_>) -> Result<SshKeys, ErrorBody> {
    let account = accounts(system).unwrap_or_default().into_iter().find(|account| account.name == user.as_str());
    let account = account.ok_or_else(|| {
        ErrorBody::new(ErrorCode::NotFound, format!("user: {user:?} is not in the guest's /etc/passwd"))
    })?;
    let path = format!("{}/.ssh/{NAME}", account.home.trim_end_matches('/'));
    let failure = |error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::PermissionDenied => ErrorCode::PermissionDenied,
            io::ErrorKind::NotFound => ErrorCode::NotFound,
            _ => ErrorCode::CommandFailed,
        };
        ErrorBody::new(code, format!("{path}: {error}"))
    };
    let directory = directory(system, &account, matches!(change, KeyChange::Add(_))).map_err(failure)?;
    let old = directory.as_ref().map(|directory| read(directory, &account)).transpose().map_err(failure)?.flatten();
    let old = old.unwrap_or_default();
    let (new, changed) = match change {
        KeyChange::List => (old.clone(), 0),
        KeyChange::Add(keys) => add(&old, keys),
        KeyChange::Remove(keys) => remove(&old, keys),
    };
    if new.len() as u64 > MAX_FILE {
        return Err(ErrorBody::new(ErrorCode::ResourceLimit, format!("{path}: permitted: {MAX_FILE} bytes of keys")));
    }
    if let Some(directory) = directory.filter(|_| changed > 0) {
        write(&directory, &account, new.as_bytes()).map_err(failure)?;
    }
    let keys = new.lines().filter_map(parse_line).collect();
    Ok(SshKeys { user: user.to_string(), path: path.clone(), keys, changed })
}

/// The user's .ssh; where it is absent it is made, or there is none.
fn directory(system: &System, account: &Account, make: bool) -> io::Result<Option<OwnedFd>> {
    if !account.home.starts_with('/') || account.home == "/" {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("the user has no home ({:?})", account.home)));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Where the home is, is the administrator's choice, link or not; what is in it is the user's.
    let home = open(system.file(&account.home), flags, Mode::empty())?;
    check_owner(&home, account)?;
    let made = match openat(&home, ".ssh", flags | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(directory) => return check_owner(&directory, account).map(|()| Some(directory)),
        Err(Errno::NOENT) if make => mkdirat(&home, ".ssh", Mode::RWXU),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(explain(error)),
    };
    made?;
    let directory = openat(&home, ".ssh", flags | OFlags::NOFOLLOW, Mode::empty()).map_err(explain)?;
    give(&directory, account)?;
    Ok(Some(directory))
}

/// Nobody else's: it is root's or the user's.
fn check_owner(fd: impl AsFd, account: &Account) -> io::Result<()> {
    let owner = fstat(fd)?.st_uid;
    if owner == 0 || owner == account.uid {
        return Ok(());
    }
    Err(io::Error::other(format!("it, or a directory above it, belongs to user {owner}")))
}

fn explain(error: Errno) -> io::Error {
    match error {
        Errno::LOOP | Errno::NOTDIR => io::Error::other("a symbolic link is in its place, which is not followed"),
        error => error.into(),
    }
}

fn read(directory: &OwnedFd, account: &Account) -> io::Result<Option<String>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(directory, NAME, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(explain(error)),
    };
    let stat = fstat(&file)?;
    // A second name of a file of somebody else's would have it read out.
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink != 1 {
        return Err(io::Error::other("it is no file with one name"));
    }
    check_owner(&file, account)?;
    let mut text = Vec::new();
    File::from(file).take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("it is longer than {MAX_FILE} bytes")));
    }
    // What is no UTF-8 can be in a comment only, but it is the user's: it stays, or the file does.
    String::from_utf8(text).map(Some).map_err(|_| io::Error::other("it is no UTF-8"))
}

fn write(directory: &OwnedFd, account: &Account, bytes: &[u8]) -> io::Result<()> {
    let _ = unlinkat(directory, TEMPORARY, AtFlags::empty());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(directory, TEMPORARY, flags, Mode::RUSR | Mode::WUSR)?;
    let put = || {
        let mut file = File::from(file);
        file.write_all(bytes)?;
        give(&file, account)?;
        file.sync_all()?;
        renameat(directory, TEMPORARY, directory, NAME)?;
        rustix::fs::fsync(directory)?;
        Ok(())
    };
    put().inspect_err(|_: &io::Error| {
        let _ = unlinkat(directory, TEMPORARY, AtFlags::empty());
    })
}

fn give(fd: impl AsFd, account: &Account) -> io::Result<()> {
    fchown(&fd, Some(Uid::from_raw(account.uid)), Some(Gid::from_raw(account.gid)))?;
    let mode = if FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::Directory { 0o700 } else { 0o600 };
    fchmod(&fd, Mode::from_raw_mode(mode))?;
    Ok(())
}

/// The key in a line, options before it or not.
fn key_of(line: &str) -> Option<(&str, &str, &str)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    // An option's value may hold spaces and even a key's type, but not outside of quotes.
    let (mut quoted, mut start) = (false, 0);
    for (at, byte) in line.bytes().chain([b' ']).enumerate() {
        match byte {
            b'"' if at == 0 || line.as_bytes()[at - 1] != b'\\' => quoted = !quoted,
            b' ' | b'\t' if !quoted => {
                let word = &line[start..at.min(line.len())];
                if word.starts_with("ssh-") || word.starts_with("ecdsa-") || word.starts_with("sk-") {
                    let rest = line.get(at..)?.trim_start();
                    let (key, comment) = rest.split_once([' ', '\t']).unwrap_or((rest, ""));
                    return (!key.is_empty()).then_some((word, key, comment.trim()));
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    None
}

fn parse_line(line: &str) -> Option<SshKeyInfo> {
    let (kind, key, comment) = key_of(line)?;
    let blob = base64::engine::general_purpose::STANDARD.decode(key).or_else(|_| STANDARD_NO_PAD.decode(key)).ok()?;
    let fingerprint = format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(blob)));
    Some(SshKeyInfo { kind: kind.to_owned(), fingerprint, comment: comment.chars().take(256).collect() })
}

fn is(line: &str, key: &SshKey) -> bool {
    key_of(line).is_some_and(|(_, text, _)| text.trim_end_matches('=') == key.key().trim_end_matches('='))
}

fn add(old: &str, keys: &[SshKey]) -> (String, usize) {
    let (mut new, mut added) = (old.to_owned(), 0);
    for key in keys {
        if new.lines().any(|line| is(line, key)) {
            continue;
        }
        if !new.is_empty() && !new.ends_with('\n') {
            new.push('\n');
        }
        new.push_str(key.as_str().trim_end());
        new.push('\n');
        added += 1;
    }
    (new, added)
}

fn remove(old: &str, keys: &[SshKey]) -> (String, usize) {
    let (gone, kept): (Vec<_>, Vec<_>) =
        old.split_inclusive('\n').partition(|line| keys.iter().any(|key| is(line, key)));
    (kept.concat(), gone.len())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::PathBuf;

    use super::*;

    const ONE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJH0bUk3lTAlOEoQh7fPZEsOd3rsSkbgqDYmnl5VQIFu one@example";
    const TWO: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICRmX6tdqD3rOWmF0YJZp1l7b0mVYgYh3nO2e2r1Rk3q two";

    struct Guest {
        root: tempfile::TempDir,
        system: System,
        user: UserName,
    }

    impl Guest {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let system = System::new(root.path(), Vec::new());
            let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
            std::fs::create_dir_all(root.path().join("etc")).unwrap();
            std::fs::create_dir_all(root.path().join("home/web")).unwrap();
            let passwd = format!("web:x:{uid}:{gid}::/home/web:/bin/sh\nnohome:x:{uid}:{gid}::/:/bin/sh\n");
            std::fs::write(root.path().join("etc/passwd"), passwd).unwrap();
            Self { root, system, user: "web".parse().unwrap() }
        }

        fn home(&self) -> PathBuf {
            self.root.path().join("home/web")
        }

        fn keys(&self, change: KeyChange<'_>) -> Result<SshKeys, ErrorBody> {
            ssh_keys(&self.system, &self.user, change)
        }
    }

    fn keys(texts: &[&str]) -> Vec<SshKey> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn added_once_listed_and_removed() {
        let guest = Guest::new();
        assert!(guest.keys(KeyChange::List).unwrap().keys.is_empty());
        assert!(!guest.home().join(".ssh").exists(), "a list makes nothing");
        let after = guest.keys(KeyChange::Add(&keys(&[ONE, TWO, ONE]))).unwrap();
        assert_eq!((after.changed, after.keys.len()), (2, 2));
        assert_eq!(guest.keys(KeyChange::Add(&keys(&[TWO]))).unwrap().changed, 0);
        let file = guest.home().join(".ssh/authorized_keys");
        let (directory, stat) =
            (std::fs::metadata(guest.home().join(".ssh")).unwrap(), std::fs::metadata(&file).unwrap());
        assert_eq!((directory.mode() & 0o7777, stat.mode() & 0o7777), (0o700, 0o600));
        let after = guest.keys(KeyChange::Remove(&keys(&[ONE]))).unwrap();
        assert_eq!((after.changed, after.keys[0].comment.as_str()), (1, "two"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{TWO}\n"));
    }

    #[test]
    fn what_is_there_stays() {
        let old = format!("# mine\ncommand=\"echo ssh-rsa \\\" x\",no-pty {ONE}\n\nnonsense");
        let (new, added) = add(&old, &keys(&[ONE, TWO]));
        assert_eq!((new.as_str(), added), (format!("{old}\n{TWO}\n").as_str(), 1));
        assert_eq!(remove(&new, &keys(&[ONE])), (format!("# mine\n\nnonsense\n{TWO}\n"), 1));
    }

    #[test]
    fn the_fingerprint_is_ssh_keygens() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key");
        std::fs::write(&file, format!("{ONE}\n")).unwrap();
        let shown = std::process::Command::new("ssh-keygen").arg("-lf").arg(&file).output().expect("ssh-keygen");
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains(&parse_line(ONE).unwrap().fingerprint), "{shown}");
    }

    #[test]
    fn traps_are_refused() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        std::fs::write(&secret, "untouched").unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o640)).unwrap();
        let traps: [fn(&Guest, &std::path::Path); 4] = [
            |guest, secret| symlink(secret.parent().unwrap(), guest.home().join(".ssh")).unwrap(),
            |guest, secret| {
                std::fs::create_dir(guest.home().join(".ssh")).unwrap();
                symlink(secret, guest.home().join(".ssh/authorized_keys")).unwrap();
            },
            |guest, _| {
                std::fs::create_dir(guest.home().join(".ssh")).unwrap();
                let fifo = guest.home().join(".ssh/authorized_keys");
                rustix::fs::mknodat(rustix::fs::CWD, fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
            },
            |guest, _| {
                std::fs::create_dir(guest.home().join(".ssh")).unwrap();
                std::fs::write(guest.home().join("x"), "").unwrap();
                std::fs::hard_link(guest.home().join("x"), guest.home().join(".ssh/authorized_keys")).unwrap();
            },
        ];
        for trap in traps {
            let guest = Guest::new();
            trap(&guest, &secret);
            let error = guest.keys(KeyChange::Add(&keys(&[ONE]))).unwrap_err();
            assert_eq!(error.code, ErrorCode::CommandFailed, "{error}");
        }
        // A temporary name that leads elsewhere is removed, not written to.
        let guest = Guest::new();
        std::fs::create_dir(guest.home().join(".ssh")).unwrap();
        symlink(&secret, guest.home().join(".ssh").join(TEMPORARY)).unwrap();
        guest.keys(KeyChange::Add(&keys(&[ONE]))).unwrap();
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "untouched");
        assert_eq!(std::fs::metadata(&secret).unwrap().mode() & 0o7777, 0o640);
    }

    #[test]
    fn users_without_a_place_for_keys() {
        let guest = Guest::new();
        let list = |user: &str| ssh_keys(&guest.system, &user.parse().unwrap(), KeyChange::List).unwrap_err();
        assert_eq!(list("nobody-here").code, ErrorCode::NotFound);
        assert!(list("nohome").message.contains("no home"));
    }
}
