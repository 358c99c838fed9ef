//! How few rows any plan could need.

use super::{PackItem, PackLimits};

/// Splits that are tried; with more the bound is no higher on any lengths looked at.
const MAX_PARTS: u64 = 20;
/// Thresholds between long and short that are tried, in hundredths of half a row.
const THRESHOLDS: u64 = 100;

impl PackLimits {
    /// A number of rows that no plan of these items can go below, whatever its order or window: the highest of what
    /// dual feasible functions of the tokens give (Fekete and Schepers, "New classes of fast lower bounds for bin
    /// packing problems", 2001), the plain sum among them. Three samples of 700 tokens, say, need two rows of 2048.
    /// `items` pairs an item with how often it comes; limits of images are left out.
    pub fn rows_at_least(&self, items: impl IntoIterator<Item = (PackItem, u64)>) -> u64 {
        let mut counts: Vec<(u64, u64)> =
            items.into_iter().map(|(item, count)| (u64::from(item.tokens), count)).collect();
        counts.sort_unstable();
        counts.dedup_by(|next, first| {
            next.0 == first.0 && {
                first.1 += next.1;
                true
            }
        });
        let capacity = u64::from(self.tokens).max(1);
        let sum: u64 = counts.iter().map(|(tokens, count)| tokens * count).sum();
        let mut best = sum as f64 / capacity as f64;
        for threshold in 0..=THRESHOLDS {
            let short = threshold * capacity / (2 * THRESHOLDS);
            for parts in 0..=MAX_PARTS {
                let share = |tokens: u64| share(tokens, capacity, short, parts);
                best = best.max(counts.iter().map(|&(tokens, count)| share(tokens) * count as f64).sum());
            }
        }
        (best - 1e-6).ceil() as u64
    }
}

/// What `tokens` weigh, a full row weighing 1: those shorter than `short` nothing, those that leave less than `short` a
/// whole row, the others their share, rounded down to `parts`-ths of a row where that makes it heavier (0: never).
fn share(tokens: u64, capacity: u64, short: u64, parts: u64) -> f64 {
    let tokens = match tokens {
        _ if tokens > capacity - short => capacity,
        _ if tokens < short => 0,
        _ => tokens,
    };
    let scaled = (parts + 1) * tokens;
    match parts {
        0 => tokens as f64 / capacity as f64,
        _ if scaled.is_multiple_of(capacity) => tokens as f64 / capacity as f64,
        _ => (scaled / capacity) as f64 / parts as f64,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packing::tests::items;

    proptest! {
        #[test]
        fn no_plan_has_fewer_rows_than_the_bound(items in items()) {
            let limits = PackLimits { tokens: 60, images: 400, window: 1000 };
            let plan = limits.pack(0, &items).expect("all fit");
            prop_assert!(plan.rows.len() as u64 >= limits.rows_at_least(items.iter().map(|item| (*item, 1))));
        }
    }

    #[test]
    fn samples_above_a_third_are_known_to_go_two_and_two() {
        let limits = PackLimits { tokens: 2048, images: 16, window: 100 };
        let item = PackItem { tokens: 740, images: 1 };
        assert_eq!(limits.rows_at_least([(item, 100)]), 50);
        assert_eq!(limits.rows_at_least([(PackItem { tokens: 512, images: 1 }, 100)]), 25);
        assert_eq!(limits.rows_at_least([]), 0);
    }
}
