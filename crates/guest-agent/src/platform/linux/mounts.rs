//! What is mounted: `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::io;
use std::path::PathBuf;

use crate::platform::System;

/// The most mounts that are looked at.
const MAX_MOUNTS: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// `major:minor` of the file system; binds of one have the same.
    pub(crate) device: String,
    pub(crate) mount_point: PathBuf,
    pub(crate) filesystem: String,
    pub(crate) source: String,
    /// The mount is.
    pub(crate) read_only: bool,
    /// The file system is.
    pub(crate) read_only_filesystem: bool,
}

/// File systems that keep their data on a disk of the guest's own.
const ON_DISK: &[&str] = &[
    "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "msdos", "nilfs2", "ntfs3", "reiserfs",
    "vfat", "xfs",
];

impl Mount {
    /// Asking it is no question to another machine, which may never answer.
    pub(crate) fn is_on_disk(&self) -> bool {
        ON_DISK.contains(&self.filesystem.as_str())
    }
}

/// Every mount, in the order in which they were made.
pub(crate) fn mounts(system: &System) -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read(system.file("/proc/self/mountinfo"))?))
}

fn parse(text: &[u8]) -> Vec<Mount> {
    String::from_utf8_lossy(text).lines().filter_map(parse_line).take(MAX_MOUNTS).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ');
    let device = fields.nth(2)?.to_owned();
    let mount_point = unescape(fields.nth(1)?).into();
    let options = fields.next()?;
    // Any number of optional fields, then a dash.
    fields.find(|field| *field == "-")?;
    let filesystem = fields.next()?.to_owned();
    let source = unescape(fields.next()?);
    let super_options = fields.next().unwrap_or_default();
    let read_only = |options: &str| options.split(',').any(|option| option == "ro");
    Some(Mount {
        device,
        mount_point,
        filesystem,
        source,
        read_only: read_only(options),
        read_only_filesystem: read_only(super_options),
    })
}

/// Space, tab, newline and backslash stand as three octal digits behind a backslash.
fn unescape(field: &str) -> String {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let octal =
            after.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match octal.map(|digits| digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'))) {
            Some(value) if value < 256 => {
                text.push(value as u8);
                rest = &after[3..];
            }
            _ => {
                text.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_mountinfo() {
        let mounts = parse(
            b"22 27 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
              27 1 8:1 / / ro,relatime shared:1 master:2 - ext4 /dev/sda1 rw,errors=remount-ro\n\
              30 27 8:2 / /my\\040disk\\134 rw - xfs /dev/sdb ro\n\
              garbage\n\n31 27 8:3 / /x rw shared:1",
        );
        assert_eq!(mounts.len(), 3);
        let root = &mounts[1];
        assert_eq!(
            (root.device.as_str(), root.filesystem.as_str(), root.source.as_str()),
            ("8:1", "ext4", "/dev/sda1")
        );
        assert!(root.read_only && !root.read_only_filesystem && root.is_on_disk());
        assert_eq!(mounts[2].mount_point, PathBuf::from("/my disk\\"));
        assert!(mounts[2].read_only_filesystem);
    }

    #[test]
    fn this_machine() {
        let mounts = mounts(&System::default()).unwrap();
        assert!(mounts.iter().any(|mount| mount.mount_point.as_os_str() == "/proc" && mount.filesystem == "proc"));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in r"[0-9:/ a-z\\\n-]{0,200}") {
            parse(text.as_bytes());
        }
    }
}
