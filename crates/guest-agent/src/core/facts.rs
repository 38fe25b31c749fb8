//! What the agent tells of itself and of its guest in a handshake.

use std::collections::BTreeMap;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use roost_guest_proto::{Handshake, PROTOCOL_VERSION, Upgrade};

use crate::config::Config;

/// What does not change while the agent runs.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    vm_id: String,
    boot_id: Option<String>,
    agent_id: Option<String>,
}

impl Facts {
    pub(crate) fn read() -> Self {
        let read = |path: &str| {
            let text = fs::read_to_string(path).ok()?;
            let text = text.trim();
            (!text.is_empty() && text.len() <= 64).then(|| text.to_owned())
        };
        Self {
            vm_id: read("/sys/class/dmi/id/product_uuid")
                .or_else(|| read("/etc/machine-id"))
                .or_else(|| read("/proc/sys/kernel/hostname"))
                .unwrap_or_default(),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            agent_id: read("/proc/sys/kernel/random/uuid"),
        }
    }

    /// A handshake; `session` is that of the hello which it answers.
    pub(crate) fn handshake(
        &self,
        config: &Config,
        session: Option<&str>,
        upgrades: Vec<Upgrade>,
        epoch: Option<u64>,
        unsafe_commands: bool,
    ) -> Handshake {
        let mut capabilities = vec!["metrics", "safe_commands", "batch", "secrets", "freeze", "identity"];
        if unsafe_commands {
            capabilities.extend(["unsafe_commands", "exec", "streams", "pty"]);
        }
        capabilities.push("files");
        Handshake {
            timestamp: now(),
            vm_id: config.vm_id.clone().unwrap_or_else(|| self.vm_id.clone()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            platform: std::env::consts::OS.to_owned(),
            capabilities: capabilities.into_iter().map(str::to_owned).collect(),
            session: session.map(str::to_owned),
            protocol: Some(PROTOCOL_VERSION.to_owned()),
            boot_id: self.boot_id.clone(),
            agent_id: self.agent_id.clone(),
            upgrades,
            epoch,
            other: BTreeMap::from([("arch".to_owned(), std::env::consts::ARCH.into())]),
        }
    }
}

/// The guest's time, RFC 3339 with milliseconds.
pub(crate) fn now() -> String {
    rfc3339(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64))
}

fn rfc3339(millis: u64) -> String {
    let (days, of_day) = (millis / 86_400_000, millis % 86_400_000);
    // Howard Hinnant's civil_from_days, for days from 1970 on.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hours, minutes) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (seconds, millis) = (of_day / 1000 % 60, of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_123), "2000-02-29T00:00:00.123Z");
        assert_eq!(rfc3339(1_767_225_599_999), "2025-12-31T23:59:59.999Z");
        assert_eq!(rfc3339(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }
}
