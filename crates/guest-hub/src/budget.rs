//! How much a guest may make the host read in a second.
//!
//! Bytes of streams are paid for by credit, which the host gives out. Everything else (messages, junk) is paid for
//! from here: a guest that is in debt is not read from until time has paid it. So a flood costs its VM's own
//! channel, and not the core that other VMs' channels run on.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes of messages a second. An agent's metrics take a hundredth of it, and its longest answers two a second.
const RATE: i64 = 2 << 20;
/// What may come at once.
const BURST: i64 = 4 << 20;
/// What a message costs, however short.
const MESSAGE: i64 = 256;
/// What is refused costs so many times its size.
const PENALTY: i64 = 8;
/// What a line costs that was only looked through,
const LINE: i64 = 64;
/// and a read of a few bytes.
const READ: i64 = 128;
/// A read of so many is worth its while.
const FEW: usize = 1024;
/// Bytes a second that are looked through, and at once: a gigabyte of junk goes by as fast as it comes, but once.
const LOOKED_THROUGH: i64 = 16 << 20;
const LOOKED_THROUGH_BURST: i64 = (1 << 30) + (64 << 20);
/// The part of a second that a guest in debt is held back for at least: not for one message at a time.
const HELD_BACK: i64 = 50;

#[derive(Debug)]
pub(crate) struct Budget {
    /// For messages.
    left: i64,
    /// For bytes that are looked through.
    looks: i64,
    since: Instant,
    blocked: bool,
}

impl Budget {
    pub(crate) fn new(now: Instant) -> Self {
        Self { left: BURST, looks: LOOKED_THROUGH_BURST, since: now, blocked: false }
    }

    fn take(&mut self, bytes: usize, times: i64) {
        let bytes = i64::try_from(bytes).unwrap_or(BURST).min(BURST);
        self.left -= times * (bytes + MESSAGE);
    }

    pub(crate) fn message(&mut self, bytes: usize) {
        self.take(bytes, 1);
    }

    pub(crate) fn junk(&mut self, bytes: usize) {
        self.take(bytes, PENALTY);
    }

    /// Bytes came, whatever they are.
    pub(crate) fn read(&mut self, bytes: usize, lines: usize) {
        self.looks -= i64::try_from(bytes).unwrap_or(LOOKED_THROUGH);
        self.left -= LINE * i64::try_from(lines).unwrap_or(BURST / LINE);
        if bytes < FEW {
            self.left -= READ;
        }
    }

    /// They were bytes of a stream, which credit pays for.
    pub(crate) fn refund(&mut self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(0);
        self.looks = self.looks.saturating_add(bytes).min(LOOKED_THROUGH_BURST);
    }

    /// Nothing more is to be done for the guest now.
    pub(crate) fn is_spent(&self) -> bool {
        self.left < 0
    }

    /// When to read again, if not now.
    pub(crate) fn blocked_until(&mut self, now: Instant) -> Option<Instant> {
        let micros = now.saturating_duration_since(self.since).as_micros();
        // Not so often that what is earned in between is rounded away.
        if micros >= 100 {
            self.since = now;
            let micros = i64::try_from(micros).unwrap_or(i64::MAX);
            self.left = earn(self.left, micros, RATE, BURST);
            self.looks = earn(self.looks, micros, LOOKED_THROUGH, LOOKED_THROUGH_BURST);
        }
        let least = |rate: i64| if self.blocked { rate / HELD_BACK } else { 0 };
        self.blocked = self.left < least(RATE) || self.looks < least(LOOKED_THROUGH);
        if !self.blocked {
            return None;
        }
        let micros = wait(self.left, RATE).max(wait(self.looks, LOOKED_THROUGH));
        Some(now + Duration::from_micros(micros.unsigned_abs() + 100))
    }
}

/// A second's debt at most, so that one long line cannot silence a guest for minutes.
fn earn(left: i64, micros: i64, rate: i64, burst: i64) -> i64 {
    left.max(-rate).saturating_add(micros.saturating_mul(rate / 1_000_000)).min(burst)
}

/// Microseconds until there is enough to go on with.
fn wait(left: i64, rate: i64) -> i64 {
    (rate / HELD_BACK - left.max(-rate)).max(0) / (rate / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_waits_and_an_honest_agent_does_not() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        for second in 0..100 {
            budget.message(10_000);
            assert_eq!(budget.blocked_until(start + Duration::from_secs(second)), None);
        }
        let mut now = start + Duration::from_secs(100);
        let flood = now;
        let mut read = 0;
        while now < flood + Duration::from_secs(10) {
            match budget.blocked_until(now) {
                Some(until) => {
                    assert!(until > now && until <= now + Duration::from_secs(2));
                    now = until;
                }
                None => {
                    budget.junk(32 * 1024);
                    read += 32 * 1024;
                }
            }
        }
        // A burst and ten seconds' worth, at the price of junk.
        assert!((2_000_000..=4_000_000).contains(&read), "{read}");
    }
}
