//! IDs in the order in which they were made, also of one millisecond.
//!
//! A UUIDv7 is a time in milliseconds, 12 bits and 62 bits. The 12 bits count here within a
//! millisecond, as RFC 9562 (6.2, method 1) has it; the others are random. A clock that goes back, or
//! more IDs than the count has room for, use up the milliseconds to come.

use std::sync::{Mutex, PoisonError};

/// The largest count.
const MOST: u16 = 0xfff;

/// What the next ID has to come after.
#[derive(Debug, Default)]
pub struct Ids {
    last: Mutex<(u64, u16)>,
}

impl Ids {
    /// The time and the 10 bytes of the next ID, from the time and random bytes.
    pub(crate) fn next(&self, unix_ms: u64, random: [u8; 10]) -> (u64, [u8; 10]) {
        let [high, low, rest @ ..] = random;
        let drawn = u16::from_be_bytes([high, low]);
        // Nothing can be half-done to two numbers that are written at once.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = match *last {
            // The upper half of the count is left to those that follow.
            (ms, _) if ms < unix_ms => (unix_ms, drawn & (MOST >> 1)),
            (ms, count) if count < MOST => (ms, count + 1),
            (ms, _) => (ms + 1, drawn & (MOST >> 1)),
        };
        let (ms, count) = *last;
        let [high, low] = count.to_be_bytes();
        let [a, b, c, d, e, f, g, h] = rest;
        (ms, [high, low, a, b, c, d, e, f, g, h])
    }
}

#[cfg(test)]
mod tests {
    use roost_model::VmId;

    use super::*;

    #[test]
    fn they_increase_whatever_the_clock_and_chance_do() {
        let ids = Ids::default();
        let mut last = None;
        let mut chance = 1u64;
        // Many in one millisecond, then a clock that goes back, then one that goes on.
        for ms in std::iter::repeat_n(1_000, 10_000).chain([5, 999, 1_000, 2_000, 2_000, 1_999, 3_000]) {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut random = [0; 10];
            random[..8].copy_from_slice(&chance.to_le_bytes());
            let (ms, bytes) = ids.next(ms, random);
            let id = Some(VmId::from_parts(ms, bytes));
            assert!(id > last, "{id:?} after {last:?}");
            last = id;
        }
        // They are not far ahead of the clock.
        assert!(ids.next(3_000, [0; 10]).0 <= 3_001);
    }

    #[test]
    fn what_is_random_stays_random() {
        let ids = Ids::default();
        let (_, bytes) = ids.next(7, [0xff; 10]);
        assert_eq!(bytes, [0x07, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    }
}
