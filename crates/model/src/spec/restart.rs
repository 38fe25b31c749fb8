//! What happens when a machine ends by itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::words;
use crate::error::Invalid;
use crate::state::ExitCause;

/// What happens when a machine ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestartPolicy {
    /// Which ends lead to a restart.
    pub mode: RestartMode,
    /// Restarts in a row before the VM is FAILED; 0 is no limit.
    pub max_retries: u32,
    /// Delay before the first restart; it doubles with each one in a row.
    pub backoff: Duration,
    /// The longest delay.
    pub backoff_max: Duration,
}

/// Which ends lead to a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartMode {
    /// None.
    #[default]
    Never,
    /// A panic, a crash or a kill; not a power-off.
    OnFailure,
    /// Any end that nobody asked Roost for.
    Always,
}

words!(RestartMode, "mode", "never" => Never, "on-failure" => OnFailure, "always" => Always);

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            mode: RestartMode::Never,
            max_retries: 5,
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(300),
        }
    }
}

impl RestartPolicy {
    /// Whether an end of this cause leads to a restart.
    pub fn restarts(&self, cause: ExitCause) -> bool {
        match self.mode {
            RestartMode::Never => false,
            RestartMode::OnFailure => cause.is_failure(),
            RestartMode::Always => true,
        }
    }

    /// The delay before restart number `n` (from 0) in a row; `jitter` in 0..=1 adds up to a tenth.
    pub fn delay(&self, n: u32, jitter: f64) -> Duration {
        let doubled = self.backoff.saturating_mul(1u32.checked_shl(n.min(31)).unwrap_or(u32::MAX));
        doubled.min(self.backoff_max).mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 10.0)
    }

    /// How long a machine must run for its restarts to be forgotten.
    pub fn forgiven_after(&self) -> Duration {
        self.backoff_max.max(Duration::from_secs(60))
    }

    pub(crate) fn check(&self) -> Result<(), Invalid> {
        if self.backoff > self.backoff_max {
            return Err(Invalid::new("backoff_seconds", self.backoff.as_secs(), "is larger than backoff_max_seconds"));
        }
        if self.backoff_max > Duration::from_secs(86_400) {
            return Err(Invalid::new("backoff_max_seconds", self.backoff_max.as_secs(), "is out of range")
                .permit(["at most 86400"]));
        }
        Ok(())
    }
}
