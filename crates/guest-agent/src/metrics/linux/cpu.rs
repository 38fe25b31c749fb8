//! How busy the processors are: `/proc/stat`, and its difference to an earlier one.

use roost_guest_proto::metrics::CpuMetrics;

use super::files::Files;
use super::text::{fields, lines, number};
use crate::metrics::Failure;
use crate::metrics::rates::{Baseline, round};

/// The processor lines come first. What follows them, of a guest with many interrupts, need not be read.
const MAX_STAT: usize = 256 * 1024;

/// Processors that are shown one by one.
const MAX_CORES: usize = 1024;

/// Ticks since the boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Times {
    total: u64,
    idle: u64,
    iowait: u64,
    steal: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stat {
    all: Times,
    /// By number: one that is offline has no line.
    cores: Vec<(u32, Times)>,
}

/// What earlier collections leave.
#[derive(Debug, Default)]
pub(super) struct Cpu {
    base: Baseline<Stat>,
    last: Option<CpuMetrics>,
}

impl Cpu {
    pub(super) fn collect(&mut self, files: &mut Files) -> Result<CpuMetrics, Failure> {
        let usage = match &self.last {
            Some(last) if !self.base.is_due() => last.clone(),
            // Too soon for a difference, and nothing to repeat: since the boot, as top(1) begins.
            None if !self.base.is_due() => usage(&Stat::default(), &read(files)?),
            _ => {
                let told = self.base.replace(read(files)?, |before, now, _| usage(before, now)).unwrap_or_default();
                self.last.insert(told).clone()
            }
        };
        Ok(CpuMetrics { temperature: super::sensors::temperature(files), ..usage })
    }

    /// Where the first collection counts from.
    pub(super) fn begin(&mut self, files: &mut Files) {
        if let Ok(stat) = read(files) {
            self.base.replace(stat, |_, _, _| ());
        }
    }
}

fn read(files: &mut Files) -> Result<Stat, Failure> {
    let text = files.read("proc/stat", MAX_STAT)?;
    parse(text).ok_or(Failure::Content { path: "proc/stat", what: "no line of processors" })
}

/// `None` where there is no line of all processors together.
fn parse(text: &[u8]) -> Option<Stat> {
    let mut all = None;
    let mut cores = Vec::new();
    for line in lines(text).take_while(|line| line.starts_with(b"cpu")) {
        let mut fields = fields(line);
        let name = fields.next()?;
        let Some(times) = times(fields) else { continue };
        match &name[b"cpu".len()..] {
            b"" => all = Some(times),
            index if cores.len() < MAX_CORES => {
                cores.extend(number(index).and_then(|index| u32::try_from(index).ok()).map(|index| (index, times)));
            }
            _ => {}
        }
    }
    // In order already, if it is the kernel that speaks; the search below relies on it.
    cores.sort_unstable_by_key(|(index, _)| *index);
    Some(Stat { all: all?, cores })
}

/// `user nice system idle iowait irq softirq steal guest guest_nice`: the last two are within the first two.
fn times<'a>(fields: impl Iterator<Item = &'a [u8]>) -> Option<Times> {
    let mut times = Times::default();
    let mut count = 0;
    for (position, field) in fields.take(8).enumerate() {
        let ticks = number(field)?;
        times.total = times.total.saturating_add(ticks);
        match position {
            3 => times.idle = ticks,
            4 => times.iowait = ticks,
            7 => times.steal = ticks,
            _ => {}
        }
        count += 1;
    }
    (count >= 4).then_some(times)
}

/// A counter may go back (`iowait` does, and all do when a processor is taken away): that is no time passed.
fn usage(before: &Stat, now: &Stat) -> CpuMetrics {
    let share = |part: u64, total: u64| if total == 0 { 0.0 } else { round(100.0 * part as f64 / total as f64, 1) };
    let used = |before: &Times, now: &Times| {
        let total = now.total.saturating_sub(before.total);
        let free = now.idle.saturating_sub(before.idle).saturating_add(now.iowait.saturating_sub(before.iowait));
        share(total.saturating_sub(free), total)
    };
    let none = Times::default();
    let cores_usage = now.cores.iter().map(|(index, times)| {
        let earlier = before.cores.binary_search_by_key(index, |(index, _)| *index);
        used(earlier.map_or(&none, |position| &before.cores[position].1), times)
    });
    let total = now.all.total.saturating_sub(before.all.total);
    let part = |before: u64, now: u64| share(now.saturating_sub(before).min(total), total);
    CpuMetrics {
        usage_percent: used(&before.all, &now.all),
        cores_usage: cores_usage.collect(),
        temperature: None,
        iowait_percent: Some(part(before.all.iowait, now.all.iowait)),
        steal_percent: Some(part(before.all.steal, now.all.steal)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STAT: &[u8] = b"cpu  574501 151814 97329 1959922 9954 0 1412 4092 7 0
cpu0 280640 76379 45426 991780 2847 0 324 2068 0 0
cpu1 293860 75435 51902 968142 7106 0 1088 2023 7 0
intr 5949026 0 0 0
ctxt 12685112
btime 1764079000
";

    #[test]
    fn a_stat_is_read() {
        let stat = parse(STAT).unwrap();
        let total = 574501 + 151814 + 97329 + 1959922 + 9954 + 1412 + 4092;
        assert_eq!(stat.all, Times { total, idle: 1959922, iowait: 9954, steal: 4092 });
        assert_eq!(stat.cores.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn usage_is_what_was_not_idle_in_between() {
        let before = parse(b"cpu 100 0 0 100 0 0 0 0\ncpu0 100 0 0 100 0 0 0 0\ncpu2 0 0 0 0 0 0 0 0\n").unwrap();
        let now = parse(b"cpu 130 0 0 150 10 0 0 10\ncpu0 130 0 0 150 10 0 0 10\ncpu1 1 0 0 1 0 0 0 0\n").unwrap();
        let usage = usage(&before, &now);
        assert_eq!(usage.usage_percent, 40.0);
        assert_eq!(usage.cores_usage, [40.0, 50.0]);
        assert_eq!((usage.iowait_percent, usage.steal_percent), (Some(10.0), Some(10.0)));
    }

    #[test]
    fn no_time_passed_is_no_usage() {
        let stat = parse(STAT).unwrap();
        assert_eq!(usage(&stat, &stat).cores_usage, [0.0, 0.0]);
    }

    #[test]
    fn an_old_kernels_four_fields_do_and_hostile_text_is_left_out() {
        assert_eq!(parse(b"cpu 1 2 3 4\n").unwrap().all, Times { total: 10, idle: 4, iowait: 0, steal: 0 });
        for wrong in [&b""[..], b"cpu\n", b"cpu 1 2 3\n", b"cpu a b c d\n", b"cpu0 1 2 3 4\n", b"intr 1\ncpu 1 2 3 4\n"]
        {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
        let odd = parse(b"cpu 18446744073709551615 18446744073709551615 0 0\ncpux 1 1 1 1\ncpu9 -1 0 0 0\n").unwrap();
        assert_eq!((odd.all.total, odd.cores.len()), (u64::MAX, 0));
    }

    proptest! {
        #[test]
        fn percentages_are_percentages_whatever_the_counters_do(
            before in proptest::collection::vec(any::<u64>(), 8), now in proptest::collection::vec(any::<u64>(), 8),
        ) {
            let line = |values: &[u64]| {
                let values: Vec<_> = values.iter().map(u64::to_string).collect();
                parse(format!("cpu {0}\ncpu0 {0}\n", values.join(" ")).as_bytes()).unwrap()
            };
            let usage = usage(&line(&before), &line(&now));
            for percent in [usage.usage_percent, usage.cores_usage[0], usage.iowait_percent.unwrap(), usage.steal_percent.unwrap()] {
                prop_assert!((0.0..=100.0).contains(&percent), "{}", percent);
            }
        }

        #[test]
        fn no_text_breaks_the_parser(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut line = b"cpu ".to_vec();
            line.extend(&text);
            if let Some(stat) = parse(&line) {
                usage(&stat, &stat);
            }
        }
    }
}
