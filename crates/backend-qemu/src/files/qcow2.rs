//! The header of a qcow2 image, read before any other program opens it.
//!
//! An image that names another file (a backing file, an external data file) would have QEMU open
//! whatever its author wrote there, and one with absurd sizes costs memory and time before the
//! guest has run. The layout is that of QEMU's `docs/interop/qcow2.txt`.

/// Images are at most this large for the guest: 1 PiB.
const MOST_VIRTUAL_BYTES: u64 = 1 << 50;
/// QEMU's own limits (`block/qcow2.h`): `QCOW_MAX_L1_SIZE`, `QCOW_MAX_REFTABLE_SIZE`.
const MOST_L1_BYTES: u64 = 32 << 20;
const MOST_REFTABLE_BYTES: u64 = 8 << 20;
/// `QCOW_MAX_SNAPSHOTS`.
const MOST_SNAPSHOTS: u64 = 65_536;

/// Incompatible features that an image may have: dirty, compression type, extended L2 entries.
const PERMITTED_FEATURES: u64 = 1 | 1 << 3 | 1 << 4;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;

/// Header extensions that matter here.
const EXTENSION_END: u64 = 0;
const EXTENSION_BACKING_FORMAT: u64 = 0xe279_2aca;
const EXTENSION_EXTERNAL_DATA: u64 = 0x4441_5441;
const EXTENSION_ENCRYPTION: u64 = 0x0537_be77;

/// The end of the sentence "X ..." when the image is refused. `size`: the file's.
pub(super) fn check(head: &[u8], size: u64) -> Result<(), String> {
    if !head.starts_with(b"QFI\xfb") {
        return Err("is not a qcow2 image".to_owned());
    }
    let header = Header::read(head).ok_or("ends within its qcow2 header")?;
    header.check_references()?;
    header.check_sizes(size)?;
    check_extensions(head, header.length)
}

struct Header {
    backing_offset: u64,
    backing_length: u64,
    cluster_bits: u64,
    virtual_bytes: u64,
    encryption: u64,
    l1_entries: u64,
    l1_offset: u64,
    reftable_offset: u64,
    reftable_clusters: u64,
    snapshots: u64,
    snapshots_offset: u64,
    features: u64,
    refcount_order: u64,
    length: u64,
    version: u64,
}

impl Header {
    fn read(head: &[u8]) -> Option<Self> {
        let version = number(head, 4, 4)?;
        let newer = version >= 3;
        Some(Self {
            version,
            backing_offset: number(head, 8, 8)?,
            backing_length: number(head, 16, 4)?,
            cluster_bits: number(head, 20, 4)?,
            virtual_bytes: number(head, 24, 8)?,
            encryption: number(head, 32, 4)?,
            l1_entries: number(head, 36, 4)?,
            l1_offset: number(head, 40, 8)?,
            reftable_offset: number(head, 48, 8)?,
            reftable_clusters: number(head, 56, 4)?,
            snapshots: number(head, 60, 4)?,
            snapshots_offset: number(head, 64, 8)?,
            features: if newer { number(head, 72, 8)? } else { 0 },
            refcount_order: if newer { number(head, 96, 4)? } else { 4 },
            length: if newer { number(head, 100, 4)? } else { 72 },
        })
    }

    fn check_references(&self) -> Result<(), String> {
        if ![2, 3].contains(&self.version) {
            return Err(format!("is of qcow2 version {}, which nothing here knows", self.version));
        }
        if self.backing_offset != 0 || self.backing_length != 0 {
            return Err("names a backing file".to_owned());
        }
        if self.features & EXTERNAL_DATA != 0 {
            return Err("names an external data file".to_owned());
        }
        if self.encryption != 0 {
            return Err("is encrypted".to_owned());
        }
        if self.features & CORRUPT != 0 {
            return Err("is marked as corrupt".to_owned());
        }
        let unknown = self.features & !PERMITTED_FEATURES;
        if unknown != 0 {
            return Err(format!("has unknown incompatible features ({unknown:#x})"));
        }
        Ok(())
    }

    fn check_sizes(&self, size: u64) -> Result<(), String> {
        if !(9..=21).contains(&self.cluster_bits) {
            return Err(format!("has clusters of 2^{} bytes", self.cluster_bits));
        }
        if self.refcount_order > 6 {
            return Err(format!("has reference counts of 2^{} bits", self.refcount_order));
        }
        if self.virtual_bytes > MOST_VIRTUAL_BYTES {
            return Err(format!("claims to hold {} bytes", self.virtual_bytes));
        }
        if self.version == 3 && !(104..=4096).contains(&self.length) {
            return Err(format!("has a header of {} bytes", self.length));
        }
        if self.snapshots > MOST_SNAPSHOTS {
            return Err(format!("claims to have {} snapshots", self.snapshots));
        }
        let cluster = 1 << self.cluster_bits;
        // An entry of L1 covers one cluster of 8-byte entries (16-byte ones when extended).
        let extended = self.features & 1 << 4 != 0;
        let covered = cluster / if extended { 16 } else { 8 } * cluster;
        let l1_bytes = self.l1_entries * 8;
        if l1_bytes > MOST_L1_BYTES || self.l1_entries < self.virtual_bytes.div_ceil(covered) {
            return Err(format!("has an L1 table of {} entries", self.l1_entries));
        }
        let reftable_bytes = self.reftable_clusters * cluster;
        if reftable_bytes > MOST_REFTABLE_BYTES || reftable_bytes == 0 {
            return Err(format!("has a reference count table of {reftable_bytes} bytes"));
        }
        let tables =
            [("L1 table", self.l1_offset, l1_bytes), ("reference count table", self.reftable_offset, reftable_bytes)];
        for (what, offset, bytes) in tables {
            if bytes > 0
                && (offset < cluster
                    || offset % cluster != 0
                    || offset
                        .checked_add(bytes)
                        .is_none_or(|end| end > size.checked_next_multiple_of(cluster).unwrap_or(u64::MAX)))
            {
                return Err(format!("has its {what} outside of itself"));
            }
        }
        let (l1, reftable) =
            (self.l1_offset..self.l1_offset + l1_bytes, self.reftable_offset..self.reftable_offset + reftable_bytes);
        if l1.start < reftable.end && reftable.start < l1.end {
            return Err("has tables that overlap".to_owned());
        }
        if self.snapshots > 0 && (self.snapshots_offset < cluster || self.snapshots_offset >= size) {
            return Err("has its snapshots outside of itself".to_owned());
        }
        Ok(())
    }
}

fn check_extensions(head: &[u8], start: u64) -> Result<(), String> {
    let mut at = start;
    // Each takes 8 bytes at least; QEMU stops at the first cluster's end.
    loop {
        let (Some(kind), Some(length)) = (number(head, at, 4), number(head, at + 4, 4)) else {
            return Ok(());
        };
        match kind {
            EXTENSION_END => return Ok(()),
            EXTENSION_EXTERNAL_DATA => return Err("names an external data file".to_owned()),
            EXTENSION_ENCRYPTION => return Err("is encrypted".to_owned()),
            // Without a backing file it says nothing.
            EXTENSION_BACKING_FORMAT => {}
            _ => {}
        }
        at += 8 + length.next_multiple_of(8);
    }
}

/// A big-endian number of `bytes` bytes.
fn number(head: &[u8], at: u64, bytes: usize) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let slice = head.get(at..at.checked_add(bytes)?)?;
    Some(slice.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    /// An image that `qemu-img` made, and its size.
    fn image(options: &[&str]) -> (Vec<u8>, u64) {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("data.raw");
        std::fs::write(&raw, vec![0; 1 << 20]).unwrap();
        let mut command = Command::new("qemu-img");
        command.current_dir(dir.path()).args(["create", "-q", "-f", "qcow2"]).args(options).args(["disk.qcow2", "64M"]);
        assert!(command.status().expect("qemu-img is installed").success());
        let bytes = std::fs::read(dir.path().join("disk.qcow2")).unwrap();
        let size = bytes.len() as u64;
        (bytes, size)
    }

    fn with(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
        let mut changed = bytes.to_vec();
        changed[at..at + value.len()].copy_from_slice(value);
        changed
    }

    #[test]
    fn ordinary_images_pass() {
        for options in [
            &[][..],
            &["-o", "compat=0.10"],
            &["-o", "cluster_size=512"],
            &["-o", "extended_l2=on"],
            &["-o", "preallocation=metadata"],
        ] {
            let (bytes, size) = image(options);
            assert_eq!(check(&bytes, size), Ok(()), "{options:?}");
        }
    }

    #[test]
    fn images_that_name_other_files_are_refused() {
        let (backed, size) = image(&["-b", "data.raw", "-F", "raw"]);
        assert_eq!(check(&backed, size).unwrap_err(), "names a backing file");
        let (external, size) = image(&["-o", "data_file=data.raw"]);
        assert_eq!(check(&external, size).unwrap_err(), "names an external data file");
        // The bit cleared, the name left in its extension.
        let hidden = with(&external, 72, &[0; 8]);
        assert_eq!(check(&hidden, size).unwrap_err(), "names an external data file");
    }

    #[test]
    fn absurd_headers_are_refused() {
        let (good, size) = image(&[]);
        for (at, value, problem) in [
            (4, &[0, 0, 0, 9][..], "version 9"),
            (20, &[0, 0, 0, 63], "clusters of 2^63"),
            (24, &[0x80, 0, 0, 0, 0, 0, 0, 0], "claims to hold"),
            (24, &[0, 2, 0, 0, 0, 0, 0, 0], "L1 table"),
            (32, &[0, 0, 0, 2], "encrypted"),
            (36, &[0xff; 4], "L1 table"),
            (40, &[0xff; 8], "outside"),
            (40, &[0, 0, 0, 0, 0, 0, 0, 0], "outside"),
            (48, &good[40..48], "overlap"),
            (56, &[0xff; 4], "reference count table"),
            (60, &[0xff; 4], "snapshots"),
            (72, &[0, 0, 0, 0, 0, 0, 0, 2], "corrupt"),
            (72, &[0x80, 0, 0, 0, 0, 0, 0, 0], "unknown incompatible"),
            (100, &[0xff; 4], "header of"),
        ] {
            let refused = check(&with(&good, at, value), size).expect_err(problem);
            assert!(refused.contains(problem), "{refused} / {problem}");
        }
        assert_eq!(check(b"QFI\xfb", 4).unwrap_err(), "ends within its qcow2 header");
        assert_eq!(check(b"KDMV", 4).unwrap_err(), "is not a qcow2 image");
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in any::<u64>(), version in 2u8..4) {
            let head = [b"QFI\xfb\0\0\0".as_slice(), &[version], &bytes].concat();
            let _ = check(&head, size);
        }
    }
}
