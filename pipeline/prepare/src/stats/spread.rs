//! How values are spread: mean, percentiles, histogram.

use serde::Serialize;

/// Values in a bin: from `from` to below `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LengthBin {
    /// The smallest value of the bin.
    pub from: u64,
    /// The smallest value above it.
    pub to: u64,
    /// Values in it.
    pub count: u64,
}

/// Mean, percentiles by nearest rank, and a histogram of equal bins. All zero for no values.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest value.
    pub min: u64,
    /// The mean.
    pub mean: f64,
    /// A twentieth of the values are at most this.
    pub p5: u64,
    /// The median.
    pub p50: u64,
    /// Nine tenths of the values are at most this.
    pub p90: u64,
    /// 95 of 100 values are at most this.
    pub p95: u64,
    /// 99 of 100 values are at most this.
    pub p99: u64,
    /// The largest value.
    pub max: u64,
    /// At most `MAX_BINS` bins from `min` to `max`.
    pub histogram: Vec<LengthBin>,
}

/// Bins of a histogram at most.
const MAX_BINS: u64 = 56;

impl Spread {
    pub(super) fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else { return Self::default() };
        let rank = |percent: usize| values[(values.len() * percent).div_ceil(100).max(1) - 1];
        Self {
            min,
            mean: values.iter().sum::<u64>() as f64 / values.len() as f64,
            p5: rank(5),
            p50: rank(50),
            p90: rank(90),
            p95: rank(95),
            p99: rank(99),
            max,
            histogram: histogram(&values),
        }
    }
}

fn histogram(sorted: &[u64]) -> Vec<LengthBin> {
    let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
    let width = (max - min + 1).div_ceil(MAX_BINS);
    let start = min / width * width;
    let num_bins = (max - start) / width + 1;
    let mut bins: Vec<LengthBin> = (0..num_bins)
        .map(|bin| LengthBin { from: start + bin * width, to: start + (bin + 1) * width, count: 0 })
        .collect();
    sorted.iter().for_each(|value| bins[((value - start) / width) as usize].count += 1);
    bins
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_are_values_by_nearest_rank() {
        let spread = Spread::of((1..=200).rev().collect());
        assert_eq!((spread.min, spread.p5, spread.p50, spread.p90), (1, 10, 100, 180));
        assert_eq!((spread.p95, spread.p99, spread.max, spread.mean), (190, 198, 200, 100.5));
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }

    proptest! {
        #[test]
        fn every_value_stands_in_the_bin_that_holds_it(values in proptest::collection::vec(0u64..5000, 1..200)) {
            let spread = Spread::of(values.clone());
            prop_assert!(spread.histogram.len() as u64 <= MAX_BINS + 1);
            for bin in &spread.histogram {
                let inside = values.iter().filter(|value| (bin.from..bin.to).contains(value)).count() as u64;
                prop_assert_eq!(bin.count, inside);
            }
            prop_assert_eq!(spread.histogram.iter().map(|bin| bin.count).sum::<u64>(), values.len() as u64);
        }
    }
}
