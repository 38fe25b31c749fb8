//! Which file systems are worth a line: `/proc/self/mountinfo` without those that hold nothing.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use super::files::Files;
use super::text::{fields, lines, number, printable};
use crate::metrics::Failure;

/// A host of containers has thousands of lines.
const MAX_MOUNTINFO: usize = 1024 * 1024;
/// File systems in a frame.
pub(super) const MAX_MOUNTS: usize = 64;
const MAX_TYPE: usize = 32;

/// Types that hold no files of anybody's, or are asked for at the price of mounting something (autofs).
const PSEUDO: &[&[u8]] = &[
    b"autofs",
    b"binfmt_misc",
    b"bpf",
    b"cgroup",
    b"cgroup2",
    b"configfs",
    b"debugfs",
    b"devpts",
    b"devtmpfs",
    b"efivarfs",
    b"fusectl",
    b"hugetlbfs",
    b"mqueue",
    b"nsfs",
    b"proc",
    b"pstore",
    b"ramfs",
    b"rootfs",
    b"rpc_pipefs",
    b"securityfs",
    b"selinuxfs",
    b"sysfs",
    b"tracefs",
    b"nfsd",
    b"squashfs",
    b"iso9660",
    b"fuse.lxcfs",
    b"fuse.portal",
];

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub point: PathBuf,
    pub filesystem: String,
    /// Two mounts of one file system share it.
    device: (u64, u64),
}

/// The mounts, and whether there were more.
pub(super) fn read(files: &mut Files) -> Result<(Vec<Mount>, bool), Failure> {
    Ok(parse(files.read("proc/self/mountinfo", MAX_MOUNTINFO)?))
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`: proc_pid_mountinfo(5).
fn parse(text: &[u8]) -> (Vec<Mount>, bool) {
    let mut mounts: Vec<Mount> = Vec::new();
    let mut more = false;
    for line in lines(text) {
        let Some(mount) = parse_line(line) else { continue };
        // A mount on top of another one hides it, whatever it is itself.
        mounts.retain(|earlier| earlier.point != mount.point);
        // Memory, and layers of containers over a file system that has a line of its own; but the root may be either.
        let is_root_only = matches!(mount.filesystem.as_str(), "tmpfs" | "overlay") && mount.point.as_os_str() != "/";
        if PSEUDO.contains(&mount.filesystem.as_bytes()) || is_root_only {
            continue;
        }
        // Of a file system that is bound to several places, the one that was mounted first.
        if mounts.iter().any(|earlier| earlier.device == mount.device) {
            continue;
        }
        if mounts.len() == MAX_MOUNTS {
            more = true;
            continue;
        }
        mounts.push(mount);
    }
    (mounts, more)
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = fields(line);
    let device = fields.nth(2)?;
    let colon = memchr::memchr(b':', device)?;
    let device = (number(&device[..colon])?, number(&device[colon + 1..])?);
    let point = unescaped(fields.nth(1)?);
    // Optional fields follow, and end with a dash.
    let filesystem = fields.skip_while(|field| *field != b"-").nth(1)?;
    // The limit of the system: a longer one could not be asked for.
    if point.len() >= 4096 || point.first() != Some(&b'/') {
        return None;
    }
    Some(Mount { point: PathBuf::from(OsString::from_vec(point)), filesystem: printable(filesystem, MAX_TYPE), device })
}

/// Blanks, newlines and backslashes are `\` and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let escape = after.first_chunk::<3>().filter(|_| byte == b'\\').and_then(octal);
        plain.push(escape.unwrap_or(byte));
        rest = if escape.is_some() { &after[3..] } else { after };
    }
    plain
}

fn octal(digits: &[u8; 3]) -> Option<u8> {
    digits.iter().try_fold(0u8, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn points(text: &[u8]) -> Vec<String> {
        parse(text).0.iter().map(|mount| mount.point.display().to_string()).collect()
    }

    #[test]
    fn file_systems_with_files_are_kept_once_each() {
        let text = b"22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw
28 27 0:25 / /run rw - tmpfs tmpfs rw
31 27 0:40 / /srv/nfs rw - nfs4 server:/x rw
32 27 254:0 /srv /srv/bind rw - ext4 /dev/vda rw
33 27 8:1 / /with\\040blank\\134 rw - xfs /dev/sda1 rw
34 27 0:50 / /home rw - autofs systemd-1 rw
35 34 8:2 / /home rw - ext4 /dev/sda2 rw
36 27 8:3 / /hidden rw - ext4 /dev/sda3 rw
37 36 0:60 / /hidden rw - tmpfs none rw
";
        assert_eq!(points(text), ["/", "/srv/nfs", "/with blank\\", "/home"]);
        assert_eq!(parse(text).0[1].filesystem, "nfs4");
        assert_eq!(points(b"1 1 0:1 / / rw - rootfs rootfs rw\n2 1 0:2 / / rw - tmpfs none rw\n"), ["/"]);
    }

    #[test]
    fn there_is_a_limit_and_it_is_told() {
        let line = |n: usize| format!("{n} 1 8:{n} / /m{n} rw - ext4 /dev/x rw\n");
        let (mounts, more) = parse((0..100).map(line).collect::<String>().as_bytes());
        assert_eq!((mounts.len(), more), (MAX_MOUNTS, true));
        assert!(!parse((0..64).map(line).collect::<String>().as_bytes()).1);
    }

    #[test]
    fn hostile_lines_are_left_out() {
        for wrong in [
            &b""[..],
            b"1 2 3 / / rw - ext4",
            b"1 2 8:x / / rw - ext4 d rw",
            b"1 2 8:1 / / rw ext4 d rw",
            b"1 2 8:1 / relative rw - ext4 d rw",
            b"1 2 8:1 / / rw -",
        ] {
            assert_eq!(parse(wrong).0, [], "{wrong:?}");
        }
        assert_eq!(unescaped(b"a\\400\\04\\089\\"), b"a\\400\\04\\089\\");
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut line = b"1 1 8:1 / /".to_vec();
            line.extend(&text);
            parse(&line);
        }

        #[test]
        fn what_the_kernel_escapes_comes_back(name in proptest::collection::vec(1u8..=255, 0..50)) {
            let escaped: Vec<u8> = name.iter().flat_map(|&byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                _ => vec![byte],
            }).collect();
            prop_assert_eq!(unescaped(&escaped), name);
        }
    }
}
