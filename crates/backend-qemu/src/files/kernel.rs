//! Whether a file is a kernel that QEMU's `-kernel` can start on x86_64.

/// Offsets of the Linux boot protocol (`Documentation/arch/x86/boot.rst`).
const BOOT_FLAG: std::ops::Range<usize> = 0x1fe..0x200;
const HEADER_MAGIC: std::ops::Range<usize> = 0x202..0x206;

/// `PT_NOTE`, and Xen's note that holds the 32-bit entry of a PVH kernel (`xen/elfnote.h`).
const PT_NOTE: u32 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// The end of the sentence "kernel_path X ..." when it is none.
pub(super) fn check(head: &[u8]) -> Result<(), &'static str> {
    if head.get(BOOT_FLAG) == Some(&[0x55, 0xaa]) && head.get(HEADER_MAGIC) == Some(b"HdrS") {
        return Ok(());
    }
    if !head.starts_with(b"\x7fELF") {
        return Err("is not a kernel: neither a bzImage nor an ELF image");
    }
    match pvh_entry(head) {
        // A note beyond what was read: QEMU will say.
        Some(true) | None => Ok(()),
        Some(false) => Err("is an ELF image without a PVH entry"),
    }
}

/// Whether the notes hold a PVH entry; `None` when they are not within `head`.
fn pvh_entry(head: &[u8]) -> Option<bool> {
    let wide = *head.get(4)? == 2;
    // Positions in the ELF header and in a program header, 64-bit and 32-bit (`elf(5)`).
    let (table, size_at, count_at) =
        if wide { (number(head, 0x20, 8)?, 0x36, 0x38) } else { (number(head, 0x1c, 4)?, 0x2a, 0x2c) };
    let (entry_size, entries) = (number(head, size_at, 2)?, number(head, count_at, 2)?);
    for i in 0..entries {
        let entry = table.checked_add(i * entry_size)?;
        if number(head, entry, 4)? != u64::from(PT_NOTE) {
            continue;
        }
        let (offset, length) = if wide {
            (number(head, entry.checked_add(8)?, 8)?, number(head, entry.checked_add(32)?, 8)?)
        } else {
            (number(head, entry.checked_add(4)?, 4)?, number(head, entry.checked_add(16)?, 4)?)
        };
        if has_entry_note(head, offset, length)? {
            return Some(true);
        }
    }
    Some(false)
}

fn has_entry_note(head: &[u8], offset: u64, length: u64) -> Option<bool> {
    let end = offset.checked_add(length)?;
    let mut at = offset;
    while at.checked_add(12)? <= end {
        let (name, description, kind) = (number(head, at, 4)?, number(head, at + 4, 4)?, number(head, at + 8, 4)?);
        let text = usize::try_from(at + 12).ok()?;
        if kind == u64::from(XEN_ELFNOTE_PHYS32_ENTRY) && head.get(text..text + 4)? == b"Xen\0" {
            return Some(true);
        }
        at = at.checked_add(12 + name.next_multiple_of(4) + description.next_multiple_of(4))?;
    }
    Some(false)
}

/// A little-endian number of `bytes` bytes.
fn number(head: &[u8], at: u64, bytes: usize) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let slice = head.get(at..at.checked_add(bytes)?)?;
    Some(slice.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kernels_are_known_by_their_headers() {
        let mut bz = vec![0; 0x300];
        bz[BOOT_FLAG].copy_from_slice(&[0x55, 0xaa]);
        bz[HEADER_MAGIC].copy_from_slice(b"HdrS");
        assert_eq!(check(&bz), Ok(()));
        let micro = std::fs::read(xtask::micro_guest().unwrap()).unwrap();
        assert_eq!(check(&micro), Ok(()));
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(check(&own[..65536]), Err("is an ELF image without a PVH entry"));
        for other in [b"".as_slice(), b"#!/bin/sh\n", b"QFI\xfb", &[0; 4096]] {
            assert!(check(other).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(rest in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = check(&[b"\x7fELF".as_slice(), &rest].concat());
        }
    }
}
