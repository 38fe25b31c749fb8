//! Values as they are written on the command line, and as they are shown.

use std::time::Duration;

use buffa_types::google::protobuf::Timestamp as WireTime;
use roost_client::EnumValue;
use roost_client::v1::{OperationStatus, VmState};
use roost_model::{Bytes, Timestamp};

/// `500ms`, `30s`, `1h30m`, `2d`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no duration; write 500ms, 30s, 5m, 1h30m or 2d");
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(bad()),
        };
        let part = number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(bad)?;
        total = total.checked_add(part).ok_or_else(bad)?;
        rest = tail;
    }
    if text.is_empty() { Err(bad()) } else { Ok(total) }
}

/// A duration that the API counts in whole seconds, of which zero means something else.
pub(crate) fn whole_seconds(text: &str) -> Result<u32, String> {
    let given = duration(text)?;
    let seconds = given.as_secs() + u64::from(given.subsec_nanos() > 0);
    match u32::try_from(seconds) {
        Ok(0) => Err("at least one second".to_owned()),
        Ok(seconds) => Ok(seconds),
        Err(_) => Err("too long".to_owned()),
    }
}

/// `256MiB`.
pub(crate) fn size(text: &str) -> Result<i64, String> {
    let bytes: Bytes = text.parse().map_err(|e: roost_model::Invalid| e.to_string())?;
    i64::try_from(bytes.get()).map_err(|_| "too large".to_owned())
}

/// `key=value`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// A state's word on the command line and in tables.
pub(crate) fn state_word(state: EnumValue<VmState>) -> String {
    match state.as_known() {
        Some(state) => word_of(state).to_owned(),
        None => format!("state {}", state.to_i32()),
    }
}

/// Every state with its word.
pub(crate) const STATES: [VmState; 6] = [
    VmState::VM_STATE_CREATED,
    VmState::VM_STATE_RUNNING,
    VmState::VM_STATE_PAUSED,
    VmState::VM_STATE_SHUTDOWN,
    VmState::VM_STATE_CRASHED,
    VmState::VM_STATE_FAILED,
];

/// A state's word.
pub(crate) fn word_of(state: VmState) -> &'static str {
    match state {
        VmState::VM_STATE_UNSPECIFIED => "-",
        VmState::VM_STATE_CREATED => "created",
        VmState::VM_STATE_RUNNING => "running",
        VmState::VM_STATE_PAUSED => "paused",
        VmState::VM_STATE_SHUTDOWN => "shutdown",
        VmState::VM_STATE_CRASHED => "crashed",
        VmState::VM_STATE_FAILED => "failed",
    }
}

/// A state by its word.
pub(crate) fn state(text: &str) -> Result<VmState, String> {
    STATES.into_iter().find(|s| word_of(*s).eq_ignore_ascii_case(text)).ok_or_else(|| {
        let words: Vec<_> = STATES.into_iter().map(word_of).collect();
        format!("permitted: {}", words.join(", "))
    })
}

const STATUSES: [(OperationStatus, &str); 5] = [
    (OperationStatus::OPERATION_STATUS_PENDING, "pending"),
    (OperationStatus::OPERATION_STATUS_RUNNING, "running"),
    (OperationStatus::OPERATION_STATUS_SUCCEEDED, "succeeded"),
    (OperationStatus::OPERATION_STATUS_FAILED, "failed"),
    (OperationStatus::OPERATION_STATUS_CANCELLED, "cancelled"),
];

/// An operation's status by its word.
pub(crate) fn status(text: &str) -> Result<OperationStatus, String> {
    STATUSES.into_iter().find(|(_, word)| word.eq_ignore_ascii_case(text)).map(|(status, _)| status).ok_or_else(|| {
        let words: Vec<_> = STATUSES.into_iter().map(|(_, word)| word).collect();
        format!("permitted: {}", words.join(", "))
    })
}

/// A status' word.
pub(crate) fn status_word(status: EnumValue<OperationStatus>) -> String {
    let known = status.as_known().and_then(|known| STATUSES.into_iter().find(|(s, _)| *s == known));
    known.map_or_else(|| format!("status {}", status.to_i32()), |(_, word)| word.to_owned())
}

/// A time of the wire.
pub(crate) fn time(time: &WireTime) -> Timestamp {
    Timestamp::from_unix_ms(time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanos / 1_000_000)))
}

/// Now.
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// How long ago, in the largest two units: `5s`, `3m12s`, `4h5m`, `12d3h`.
pub(crate) fn age(duration: Duration) -> String {
    let s = duration.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => two(s / 60, "m", s % 60, "s"),
        3600..86_400 => two(s / 3600, "h", s % 3600 / 60, "m"),
        _ => two(s / 86_400, "d", s % 86_400 / 3600, "h"),
    }
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit}{small}{small_unit}") }
}

/// A number of bytes to look at: exact where that is short, else rounded.
pub(crate) fn bytes(bytes: u64) -> String {
    let exact = Bytes::new(bytes).to_string();
    if exact.len() <= 7 {
        return exact;
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, ms) in [("5", 5000), ("500ms", 500), ("30s", 30_000), ("1h30m", 5_400_000), ("2d", 172_800_000)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        for bad in ["", "s", "-1s", "1.5h", "1w", "10 s", "99999999999999999999", "18446744073709551615d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(whole_seconds("1500ms").unwrap(), 2);
        assert!(whole_seconds("0").is_err());
    }

    #[test]
    fn what_is_shown_is_short() {
        assert_eq!(age(Duration::from_secs(192)), "3m12s");
        assert_eq!(age(Duration::from_secs(7200)), "2h");
        assert_eq!(bytes(256 << 20), "256MiB");
        assert_eq!(bytes(123_456_789), "117.7MiB");
        assert_eq!(state("Running").unwrap(), VmState::VM_STATE_RUNNING);
        assert!(state("up").unwrap_err().contains("running"));
    }
}
