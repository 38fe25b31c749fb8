//! Differences over monotonic time: what was counted before, when, and what that makes per second.

use std::time::{Duration, Instant};

/// Two readings that are closer together are not compared: a tick is 10 ms, so the figure would be noise. Somebody
/// who asks again within it gets the figures of the last time.
pub(super) const SHORTEST: Duration = Duration::from_millis(200);

/// The reading that the next one is compared with.
#[derive(Debug)]
pub(super) struct Baseline<T>(Option<(Instant, T)>);

impl<T> Default for Baseline<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Baseline<T> {
    /// Whether a new reading would tell anything.
    pub(super) fn is_due(&self) -> bool {
        self.0.as_ref().is_none_or(|(at, _)| at.elapsed() >= SHORTEST)
    }

    /// Puts a reading in the place of the one before, and compares them, with the seconds between them.
    pub(super) fn replace<R>(&mut self, now: T, compare: impl FnOnce(&T, &T, f64) -> R) -> Option<R> {
        let at = Instant::now();
        let compared = self.0.as_ref().map(|(before_at, before)| {
            compare(before, &now, at.duration_since(*before_at).as_secs_f64().max(f64::MIN_POSITIVE))
        });
        self.0 = Some((at, now));
        compared
    }

    pub(super) fn last(&self) -> Option<&T> {
        self.0.as_ref().map(|(_, reading)| reading)
    }
}

/// How much a counter grew in each second. One that is smaller than before began anew, so all of it is new.
pub(super) fn per_second(before: u64, now: u64, seconds: f64) -> u64 {
    round(grown(before, now) as f64 / seconds, 0) as u64
}

/// What a counter grew by.
pub(super) fn grown(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

/// To so many digits after the point: more would be bytes without meaning.
pub(super) fn round(value: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (value * factor).round() / factor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_growth_by_time_and_a_reset_counter_counts_from_zero() {
        assert_eq!(per_second(1000, 3000, 2.0), 1000);
        assert_eq!(per_second(3000, 1000, 2.0), 500);
        assert_eq!(per_second(0, u64::MAX, f64::MIN_POSITIVE), u64::MAX);
        assert_eq!(round(12.345, 1), 12.3);
    }

    #[test]
    fn a_second_reading_at_once_is_not_due() {
        let mut base = Baseline::default();
        assert!(base.is_due());
        assert_eq!(base.replace(1, |_, _, _| ()), None);
        assert!(!base.is_due());
        assert_eq!(base.replace(3, |before, now, seconds| (now - before, seconds > 0.0)), Some((2, true)));
        assert_eq!(base.last(), Some(&3));
    }
}
