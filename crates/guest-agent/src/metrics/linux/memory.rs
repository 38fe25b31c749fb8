//! Memory and swap: `/proc/meminfo`.

use roost_guest_proto::metrics::MemoryMetrics;

use super::files::Files;
use super::text::{fields, lines, number};
use crate::metrics::Failure;

const MAX_MEMINFO: usize = 16 * 1024;

pub(super) fn collect(files: &mut Files) -> Result<MemoryMetrics, Failure> {
    let text = files.read("proc/meminfo", MAX_MEMINFO)?;
    parse(text).ok_or(Failure::Content { path: "proc/meminfo", what: "no MemTotal, or nothing of what is free" })
}

fn parse(text: &[u8]) -> Option<MemoryMetrics> {
    let [mut total, mut free, mut available, mut buffers, mut cached, mut reclaimable] = [None; 6];
    let [mut swap_total, mut swap_free] = [None; 2];
    for line in lines(text) {
        let mut fields = fields(line);
        let (Some(name), Some(value)) = (fields.next(), fields.next()) else { continue };
        let slot = match name {
            b"MemTotal:" => &mut total,
            b"MemFree:" => &mut free,
            b"MemAvailable:" => &mut available,
            b"Buffers:" => &mut buffers,
            b"Cached:" => &mut cached,
            b"SReclaimable:" => &mut reclaimable,
            b"SwapTotal:" => &mut swap_total,
            b"SwapFree:" => &mut swap_free,
            _ => continue,
        };
        *slot = number(value);
    }
    let total = total?;
    let cached_kb = [buffers, cached, reclaimable].into_iter().flatten().reduce(u64::saturating_add);
    // Kernels before 3.14 leave the sum to the reader.
    let available = available.or_else(|| Some(free?.saturating_add(cached_kb.unwrap_or(0))))?.min(total);
    Some(MemoryMetrics {
        total_kb: total,
        used_kb: total - available,
        available_kb: available,
        swap_total_kb: swap_total,
        swap_used_kb: swap_total.zip(swap_free).map(|(total, free)| total.saturating_sub(free)),
        cached_kb,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn used_is_what_is_not_available() {
        let text = b"MemTotal:       24683656 kB\nMemFree:         9000000 kB\nMemAvailable:   20000000 kB\n\
            Buffers:          100000 kB\nCached:          2000000 kB\nSReclaimable:     300000 kB\n\
            SwapCached:            0 kB\nSwapTotal:       1048576 kB\nSwapFree:        1048000 kB\n";
        let expected = MemoryMetrics {
            total_kb: 24_683_656,
            used_kb: 4_683_656,
            available_kb: 20_000_000,
            swap_total_kb: Some(1_048_576),
            swap_used_kb: Some(576),
            cached_kb: Some(2_400_000),
        };
        assert_eq!(parse(text), Some(expected));
    }

    #[test]
    fn an_old_kernel_and_one_without_swap() {
        let memory = parse(b"MemTotal: 100 kB\nMemFree: 10 kB\nBuffers: 5 kB\nCached: 25 kB\n").unwrap();
        assert_eq!((memory.available_kb, memory.used_kb), (40, 60));
        assert_eq!((memory.swap_total_kb, memory.swap_used_kb), (None, None));
    }

    #[test]
    fn what_cannot_be_is_bounded_or_refused() {
        let memory = parse(b"MemTotal: 100 kB\nMemAvailable: 500 kB\nSwapTotal: 1 kB\nSwapFree: 9 kB\n").unwrap();
        assert_eq!((memory.available_kb, memory.used_kb, memory.swap_used_kb), (100, 0, Some(0)));
        for wrong in [&b""[..], b"MemTotal: many kB\nMemFree: 1 kB\n", b"MemTotal: 100 kB\n", b"MemFree: 1 kB\n"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn used_and_available_make_the_total(total in any::<u64>(), free in any::<u64>(), cached in any::<u64>()) {
            let text = format!("MemTotal: {total} kB\nMemFree: {free} kB\nCached: {cached} kB\nBuffers: {cached} kB\n");
            let memory = parse(text.as_bytes()).unwrap();
            prop_assert_eq!(memory.used_kb + memory.available_kb, total);
        }
    }
}
