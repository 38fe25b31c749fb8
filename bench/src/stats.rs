//! Medians, and how sure they are.

/// A median with an interval that holds the true one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

/// The median; the mean of the middle two of an even number. NaN of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// The median, and the narrowest pair of order statistics that holds the true median in at least 95
/// of 100 runs, whatever the distribution is; of fewer than six values, all that there is.
pub(crate) fn estimate(values: &[f64]) -> Estimate {
    let sorted = sorted(values);
    let n = sorted.len();
    // The chance that fewer than k of n values lie below the true median, on both sides.
    let (mut outside, mut ways, mut k) = (0.0, 0.5_f64.powi(n as i32), 0);
    while k < n / 2 {
        outside += 2.0 * ways;
        if outside > 0.05 {
            break;
        }
        ways *= (n - k) as f64 / (k + 1) as f64;
        k += 1;
    }
    let k = k.max(1).min(n.max(1));
    match sorted.get(k - 1).zip(sorted.get(n.wrapping_sub(k))) {
        Some((low, high)) => Estimate { low: *low, median: median(&sorted), high: *high },
        None => Estimate { low: f64::NAN, median: f64::NAN, high: f64::NAN },
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_interval_is_that_of_the_sign_test() {
        let of = |n: u32| {
            let e = estimate(&(1..=n).map(f64::from).collect::<Vec<_>>());
            (e.low, e.high)
        };
        // From tables of the sign test at 5 %.
        assert_eq!(of(5), (1.0, 5.0));
        assert_eq!(of(6), (1.0, 6.0));
        assert_eq!(of(9), (2.0, 8.0));
        assert_eq!(of(15), (4.0, 12.0));
        assert_eq!(of(25), (8.0, 18.0));
    }
}
