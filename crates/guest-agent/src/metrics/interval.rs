//! How long to wait for the next frame when memory is short: the agent must not add to the trouble.
//!
//! ```text
//!     1 ──> 2 ──> 4 ──> 8      up at once, as far as the shortage says
//!     1 <── 2 <── 4 <── 8      down by one step after three readings that ask for less
//! ```

use std::time::Duration;

/// No interval is stretched beyond this. One that was asked to be longer stays as asked.
const LONGEST: Duration = Duration::from_secs(300);

/// Readings that have to ask for less before it goes down a step.
const CALM: u32 = 3;

/// What tells how short memory is, as far as this kernel knows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Shortage {
    /// Of all memory.
    pub available_percent: Option<f64>,
    /// Percent of the last 10 seconds in which some task waited for memory.
    pub some_stalled: Option<f64>,
    /// And in which all did.
    pub all_stalled: Option<f64>,
}

#[derive(Debug)]
pub(super) struct Slowdown {
    factor: u32,
    calm: u32,
}

impl Default for Slowdown {
    fn default() -> Self {
        Self { factor: 1, calm: 0 }
    }
}

impl Slowdown {
    /// The interval is so many times what was asked for.
    pub(super) fn factor(&self) -> u32 {
        self.factor
    }

    pub(super) fn observe(&mut self, shortage: &Shortage) {
        let wanted = wanted(shortage);
        if wanted >= self.factor {
            self.factor = wanted;
            self.calm = 0;
            return;
        }
        self.calm += 1;
        if self.calm >= CALM {
            self.factor /= 2;
            self.calm = 0;
        }
    }

    pub(super) fn stretch(&self, asked: Duration) -> Duration {
        asked.saturating_mul(self.factor).min(LONGEST.max(asked))
    }
}

fn wanted(shortage: &Shortage) -> u32 {
    let stalled = |value: Option<f64>, percent: f64| value.is_some_and(|value| value >= percent);
    let below = |percent: f64| shortage.available_percent.is_some_and(|value| value < percent);
    if stalled(shortage.all_stalled, 20.0) || below(2.0) {
        8
    } else if stalled(shortage.all_stalled, 5.0) || stalled(shortage.some_stalled, 30.0) || below(5.0) {
        4
    } else if stalled(shortage.some_stalled, 10.0) || below(10.0) {
        2
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn available(percent: f64) -> Shortage {
        Shortage { available_percent: Some(percent), ..Shortage::default() }
    }

    #[test]
    fn it_goes_up_at_once_and_down_by_steps() {
        let mut slowdown = Slowdown::default();
        let mut factors = Vec::new();
        for percent in [50.0, 9.0, 1.0, 50.0, 50.0, 50.0, 50.0, 50.0, 4.0, 50.0, 50.0, 50.0] {
            slowdown.observe(&available(percent));
            factors.push(slowdown.factor());
        }
        assert_eq!(factors, [1, 2, 8, 8, 8, 4, 4, 4, 4, 4, 4, 2]);
    }

    #[test]
    fn stalls_count_and_a_kernel_that_tells_nothing_does_not() {
        let stalls = |some, all| Shortage { some_stalled: Some(some), all_stalled: Some(all), ..Shortage::default() };
        assert_eq!(wanted(&Shortage::default()), 1);
        assert_eq!(wanted(&stalls(9.9, 0.0)), 1);
        assert_eq!(wanted(&stalls(10.0, 0.0)), 2);
        assert_eq!(wanted(&stalls(35.0, 0.0)), 4);
        assert_eq!(wanted(&stalls(35.0, 25.0)), 8);
    }

    #[test]
    fn an_interval_is_stretched_up_to_five_minutes() {
        let slowdown = Slowdown { factor: 8, calm: 0 };
        assert_eq!(slowdown.stretch(Duration::from_secs(1)), Duration::from_secs(8));
        assert_eq!(slowdown.stretch(Duration::from_secs(60)), Duration::from_secs(300));
        assert_eq!(slowdown.stretch(Duration::from_secs(900)), Duration::from_secs(900));
        assert_eq!(slowdown.stretch(Duration::ZERO), Duration::ZERO);
    }
}
