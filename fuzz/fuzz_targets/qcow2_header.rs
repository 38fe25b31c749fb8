//! Any bytes as the head of a disk image: refused, or an image that names no other file.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The parser needs nothing else of its crate, which keeps it to itself.
#[path = "../../crates/backend-qemu/src/files/qcow2.rs"]
mod qcow2;

fuzz_target!(|bytes: &[u8]| {
    let Some((size, head)) = bytes.split_first_chunk() else { return };
    if qcow2::check(head, u64::from_le_bytes(*size)).is_ok() {
        assert_eq!(head[8..20], [0; 12], "a backing file");
    }
});
