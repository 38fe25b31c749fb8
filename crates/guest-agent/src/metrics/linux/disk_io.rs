//! What the disks do: `/proc/diskstats`, and its difference to an earlier one.

use std::path::Path;

use roost_guest_proto::metrics::{DeviceIo, DiskIo};

use super::files::Files;
use super::text::{fields, lines, number, printable};
use crate::metrics::Failure;
use crate::metrics::rates::{Baseline, per_second};

const MAX_DISKSTATS: usize = 256 * 1024;
const MAX_DEVICES: usize = 64;
const MAX_NAME: usize = 64;

/// A sector of this file, whatever the disk's are: Documentation/admin-guide/iostats.rst.
const SECTOR: u64 = 512;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counters {
    reads: u64,
    read_sectors: u64,
    writes: u64,
    written_sectors: u64,
}

type Devices = Vec<(String, Counters)>;

#[derive(Debug, Default)]
pub(super) struct DiskIoRates {
    base: Baseline<Devices>,
    last: Option<(DiskIo, Vec<DeviceIo>)>,
}

impl DiskIoRates {
    pub(super) fn collect(&mut self, files: &mut Files) -> Result<(DiskIo, Vec<DeviceIo>), Failure> {
        match &self.last {
            Some(last) if !self.base.is_due() => Ok(last.clone()),
            // Too soon for a rate, and nothing to repeat: the disks, at rest.
            None if !self.base.is_due() => {
                let now = read(files)?;
                Ok(rates(&now, &now, 1.0))
            }
            _ => {
                let told = self.base.replace(read(files)?, rates).unwrap_or_default();
                Ok(self.last.insert(told).clone())
            }
        }
    }

    pub(super) fn begin(&mut self, files: &mut Files) {
        if let Ok(now) = read(files) {
            self.base.replace(now, |_, _, _| ());
        }
    }
}

fn read(files: &mut Files) -> Result<Devices, Failure> {
    let blocks = files.path("sys/block");
    match files.read_if_there("proc/diskstats", MAX_DISKSTATS)? {
        Some(text) => Ok(parse(text, |name| is_whole_disk(&blocks, name))),
        // A kernel without block devices.
        None => Ok(Vec::new()),
    }
}

/// Partitions, and devices that are made of other ones, would count the same bytes again.
fn is_whole_disk(blocks: &Path, name: &str) -> bool {
    let stacked = ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "drbd", "nbd", "bcache"];
    let is_stacked = stacked
        .iter()
        .any(|prefix| name.strip_prefix(prefix).is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit())));
    // The kernel writes `cciss/c0d0` so that it is no path.
    !is_stacked && blocks.join(name.replace('/', "!")).exists()
}

fn parse(text: &[u8], is_whole_disk: impl Fn(&str) -> bool) -> Devices {
    let mut devices = Devices::new();
    for line in lines(text) {
        let mut fields = fields(line).skip(2);
        let Some(name) = fields.next().filter(|name| name.len() <= MAX_NAME) else { continue };
        let mut numbers = fields.map(number);
        let mut next = |skipped: usize| numbers.nth(skipped).flatten();
        let (Some(reads), Some(read_sectors)) = (next(0), next(1)) else { continue };
        let (Some(writes), Some(written_sectors)) = (next(1), next(1)) else { continue };
        let name = printable(name, MAX_NAME);
        if devices.len() < MAX_DEVICES && !name.contains("..") && is_whole_disk(&name) {
            devices.push((name, Counters { reads, read_sectors, writes, written_sectors }));
        }
    }
    devices
}

fn rates(before: &Devices, now: &Devices, seconds: f64) -> (DiskIo, Vec<DeviceIo>) {
    let mut all = DiskIo::default();
    let mut devices = Vec::with_capacity(now.len());
    for (name, now) in now {
        // One that was not there before came with whatever it counts; that is not known to be of this interval.
        let before = before.iter().find(|(earlier, _)| earlier == name).map_or(now, |(_, counters)| counters);
        let rates = DiskIo {
            read_bytes_per_sec: per_second(before.read_sectors, now.read_sectors, seconds).saturating_mul(SECTOR),
            write_bytes_per_sec: per_second(before.written_sectors, now.written_sectors, seconds)
                .saturating_mul(SECTOR),
            read_ops_per_sec: per_second(before.reads, now.reads, seconds),
            write_ops_per_sec: per_second(before.writes, now.writes, seconds),
        };
        all.read_bytes_per_sec = all.read_bytes_per_sec.saturating_add(rates.read_bytes_per_sec);
        all.write_bytes_per_sec = all.write_bytes_per_sec.saturating_add(rates.write_bytes_per_sec);
        all.read_ops_per_sec = all.read_ops_per_sec.saturating_add(rates.read_ops_per_sec);
        all.write_ops_per_sec = all.write_ops_per_sec.saturating_add(rates.write_ops_per_sec);
        devices.push(DeviceIo { name: name.clone(), rates });
    }
    (all, devices)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISKSTATS: &[u8] = b"   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
 254       0 vda 392888 25665 42314514 487906 419648 247074 74003224 684906 0 171680 1235553 74221 124 14821928 31319 115191 31420
 254       1 vda1 1000 0 2000 0 3000 0 4000 0 0 0 0
 259       0 nvme0n1 1 2 3 4 5 6 7 8 9 10 11
";

    #[test]
    fn whole_disks_are_read_with_their_sectors() {
        let devices = parse(DISKSTATS, |name| name != "vda1" && name != "loop0");
        assert_eq!(
            devices[0],
            (
                "vda".into(),
                Counters { reads: 392888, read_sectors: 42314514, writes: 419648, written_sectors: 74003224 }
            )
        );
        assert_eq!(devices[1].1, Counters { reads: 1, read_sectors: 3, writes: 5, written_sectors: 7 });
        assert_eq!(devices.len(), 2);
    }

    #[test]
    fn rates_are_summed_and_a_new_disk_starts_at_nothing() {
        let counters = |n| Counters { reads: n, read_sectors: 2 * n, writes: 3 * n, written_sectors: 4 * n };
        let before = vec![("a".to_owned(), counters(100)), ("gone".to_owned(), counters(1))];
        let now = vec![("a".to_owned(), counters(300)), ("new".to_owned(), counters(1000))];
        let (all, devices) = rates(&before, &now, 2.0);
        assert_eq!((all.read_ops_per_sec, all.write_ops_per_sec), (100, 300));
        assert_eq!((all.read_bytes_per_sec, all.write_bytes_per_sec), (200 * 512, 400 * 512));
        assert_eq!(devices[1].rates, DiskIo::default());
    }

    #[test]
    fn what_lies_on_other_disks_is_not_counted_again() {
        let blocks = tempfile::tempdir().unwrap();
        for name in ["vda", "dm-0", "loop1", "md127", "mdraid", "cciss!c0d0"] {
            std::fs::create_dir(blocks.path().join(name)).unwrap();
        }
        let whole = |name| is_whole_disk(blocks.path(), name);
        assert!(whole("vda") && whole("mdraid") && whole("cciss/c0d0"));
        assert!(!whole("vda1") && !whole("dm-0") && !whole("loop1") && !whole("md127"));
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in "([0-9 ]{0,9}[a-z/.]{0,6} ?[0-9 ]{0,60}\n){0,6}", bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            parse(text.as_bytes(), |_| true);
            parse(&bytes, |_| true);
        }
    }
}
