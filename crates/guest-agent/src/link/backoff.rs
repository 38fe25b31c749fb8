//! When to try again what failed. Pure: the clock and the chance are arguments.
//!
//! ```text
//!             failure: wait 1 s, 2 s, 4 s ... 300 s, each with jitter
//!   Closed ─────────────────────────────────────────────> Closed
//!     │ ^                                                   │
//!     │ └── success ── HalfOpen (one attempt) <── 60 s ── Open <── the 15th failure, or one in HalfOpen
//! ```

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_secs(300);
const FAILURES: u32 = 15;
const OPEN: Duration = Duration::from_secs(60);

/// How it went so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// It failed. How long to wait; `chance` is any number.
    pub(crate) fn failed(&mut self, chance: u64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        if self.is_open() {
            return OPEN;
        }
        let doubled = FIRST.saturating_mul(1 << (self.failures - 1).min(16)).min(LAST);
        // Three quarters to all of it, so that the agents of many VMs do not come back at once.
        doubled * 3 / 4 + doubled.mul_f64((chance % 1000) as f64 / 4000.0)
    }

    /// It worked.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// No attempt is made until the wait is over, and then one.
    pub(crate) fn is_open(&self) -> bool {
        self.failures >= FAILURES
    }

    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_doubles_up_to_the_limit_and_opens(chances in proptest::collection::vec(any::<u64>(), 40)) {
            let mut backoff = Backoff::default();
            for (at, chance) in chances.into_iter().enumerate() {
                let wait = backoff.failed(chance);
                if at + 1 >= FAILURES as usize {
                    prop_assert!(backoff.is_open());
                    prop_assert_eq!(wait, OPEN);
                } else {
                    let full = Duration::from_secs(1 << at).min(LAST);
                    prop_assert!(wait >= full * 3 / 4 && wait <= full, "{wait:?} after {at}");
                }
            }
            backoff.succeeded();
            prop_assert!(backoff.failed(0) < Duration::from_secs(1));
        }
    }
}
