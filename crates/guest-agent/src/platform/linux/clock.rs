//! The guest's clock: set by the host's time, by the guest's time service or by the hardware clock.

use roost_guest_proto::results::TimeSynced;
use roost_guest_proto::{ErrorBody, ErrorCode};
use rustix::io::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use super::facts::read_text;
use crate::platform::System;
use crate::safe::{Context, Failure, not_supported};

/// 2000-01-01 and 2200-01-01: what is outside of it is a mistake.
const PERMITTED_MS: std::ops::Range<u64> = 946_684_800_000..7_258_118_400_000;

/// The hardware clock counts seconds: it knows no better than this.
const HARDWARE_CLOCK_MS: i64 = 1500;

pub(crate) fn now_ms() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000)
}

/// Sets the clock. By how much it moved.
pub(crate) fn set_clock(system: &System, time_ms: u64) -> Result<i64, ErrorBody> {
    if !PERMITTED_MS.contains(&time_ms) {
        let message = format!("time_ms: {time_ms}; permitted: {} to {}", PERMITTED_MS.start, PERMITTED_MS.end - 1);
        return Err(ErrorBody::field("time_ms", message));
    }
    let time_ms = time_ms.cast_signed();
    let moved = time_ms - now_ms();
    if system.is_live() {
        let time = Timespec { tv_sec: time_ms / 1000, tv_nsec: time_ms % 1000 * 1_000_000 };
        clock_settime(ClockId::Realtime, time).map_err(|error| {
            let (code, why) = match error {
                Errno::PERM => (ErrorCode::PermissionDenied, "CAP_SYS_TIME is needed".to_owned()),
                error => (ErrorCode::CommandFailed, error.to_string()),
            };
            ErrorBody::new(code, format!("time_ms: the clock cannot be set: {why}"))
        })?;
    }
    Ok(moved)
}

/// Sets the clock by what the guest has.
pub(crate) fn sync_clock(
    context: &Context,
    time_ms: Option<u64>,
) -> Result<(TimeSynced, Option<crate::run::Finished>), Failure> {
    let synced =
        |method: &str, moved_ms| TimeSynced { method: method.to_owned(), moved_ms, time_ms: now_ms().max(0) as u64 };
    if let Some(time_ms) = time_ms {
        let moved = set_clock(&context.system, time_ms)?;
        return Ok((synced("host", Some(moved)), None));
    }
    if context.system.file("/run/chrony").is_dir() && context.system.has("chronyc") {
        let finished = context.finish(context.system.program(["chronyc", "-n", "makestep"]))?;
        if finished.succeeded() {
            return Ok((synced("chrony", None), Some(finished)));
        }
    }
    let path = "/sys/class/rtc/rtc0/since_epoch";
    let seconds = read_text(&context.system, path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let Some(hardware_ms) = seconds.and_then(|seconds| seconds.checked_mul(1000)) else {
        return Err(not_supported(format!(
            "TimeSync: no time_ms, no chrony that runs, and no hardware clock ({path})"
        )));
    };
    let moved = hardware_ms.cast_signed().saturating_sub(now_ms());
    if moved.abs() <= HARDWARE_CLOCK_MS {
        return Ok((synced("hardware_clock", Some(0)), None));
    }
    let moved = set_clock(&context.system, hardware_ms)?;
    Ok((synced("hardware_clock", Some(moved)), None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Cancel;

    fn context(system: System) -> Context {
        Context::new(system, Cancel::new().unwrap(), Default::default())
    }

    #[test]
    fn by_the_host_or_the_hardware_clock() {
        let root = tempfile::tempdir().unwrap();
        let context = context(System::new(root.path(), Vec::new()));
        let error = sync_clock(&context, None).unwrap_err();
        assert_eq!(error.error().code, ErrorCode::NotSupported);
        std::fs::create_dir_all(root.path().join("sys/class/rtc/rtc0")).unwrap();
        let rtc = root.path().join("sys/class/rtc/rtc0/since_epoch");
        std::fs::write(&rtc, format!("{}\n", now_ms() / 1000)).unwrap();
        assert_eq!(sync_clock(&context, None).unwrap().0.moved_ms, Some(0), "that near it knows no better");
        std::fs::write(&rtc, format!("{}\n", now_ms() / 1000 - 3600)).unwrap();
        let moved = sync_clock(&context, None).unwrap().0.moved_ms.unwrap();
        assert!((-3_602_000..-3_599_000).contains(&moved), "{moved}");
        let (synced, _) = sync_clock(&context, Some(1_700_000_000_000)).unwrap();
        assert!(synced.method == "host" && synced.moved_ms.unwrap() < 0);
        for wrong in [0, u64::MAX] {
            assert!(sync_clock(&context, Some(wrong)).unwrap_err().error().message.contains("permitted"));
        }
    }
}
