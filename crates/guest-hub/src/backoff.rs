//! When to try again.
//!
//! ```text
//!   failed()  ──>  Closed: min, 2 min, 4 min, ... max, each less up to half of it at random
//!                  │ so many in a row
//!                  v
//!                  Open: a rest, then one attempt; failed() ──> Open again, succeeded() ──> Closed
//! ```

use std::time::Duration;

use crate::attachment::HubConfig;

#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    limit: u32,
    rest: Duration,
    failures: u32,
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delay {
    pub(crate) wait: Duration,
    /// The circuit is open.
    pub(crate) resting: bool,
}

impl Backoff {
    pub(crate) fn new(config: &HubConfig, min: Duration, max: Duration) -> Self {
        Self { min, max, limit: config.circuit_failures, rest: config.circuit_open, failures: 0 }
    }

    /// `random` is from 0 to 1.
    pub(crate) fn failed(&mut self, random: f64) -> Delay {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.limit {
            return Delay { wait: self.rest, resting: true };
        }
        let doubled = self.min.saturating_mul(1 << (self.failures - 1).min(20)).min(self.max);
        Delay { wait: doubled.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0), resting: false }
    }

    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backoff() -> Backoff {
        let config = HubConfig::default();
        Backoff::new(&config, config.backoff_min, config.backoff_max)
    }

    #[test]
    fn doubles_then_rests_then_begins_again() {
        let mut backoff = backoff();
        let waits: Vec<u64> = (0..14).map(|_| backoff.failed(0.0).wait.as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300, 300]);
        assert_eq!(backoff.failed(0.5), Delay { wait: Duration::from_secs(60), resting: true });
        assert!(backoff.failed(0.5).resting, "the one attempt after a rest failed too");
        backoff.succeeded();
        assert_eq!(backoff.failed(1.0), Delay { wait: Duration::from_millis(500), resting: false });
    }

    proptest! {
        #[test]
        fn never_at_once_and_never_beyond_the_maximum(failures in 1u32..100, random in 0.0f64..=1.0) {
            let mut backoff = backoff();
            let delay = (0..failures).map(|_| backoff.failed(random)).last().unwrap();
            prop_assert!(delay.wait >= Duration::from_millis(500) && delay.wait <= Duration::from_secs(300));
        }
    }
}
