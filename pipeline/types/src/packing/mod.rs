//! Which samples share a row: a plan of each window of the shuffled order, from lengths alone.
//!
//! A window is packed by itself, so the plan of any place of an epoch costs one window, whatever came before. `exact_fit`
//! fills row after row as full as a bounded search can, which wins where several samples share a row; where it leaves
//! more than 3 % of the tokens empty, `first_fit` is tried as well, which may win where two or three share one, and
//! the plan with fewer rows is taken. The rows come in the order of
//! their first places and hold their samples in the order of places. Nothing is cut and nothing dropped.

mod bound;
mod exact_fit;
mod first_fit;

use std::fmt;

use exact_fit::exact_fit;
use first_fit::first_fit;

/// A plan that fills its rows to this share is not compared with another.
const WELL_FILLED: f64 = 0.97;

/// What a row may hold, and how many samples are packed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackLimits {
    /// Tokens of a row, images expanded.
    pub tokens: u32,
    /// Images of a row: what bounds the tower's work.
    pub images: u32,
    /// Samples of a window; more fill rows better and mix the order more.
    pub window: u32,
}

/// What one sample takes of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackItem {
    /// Tokens, images expanded.
    pub tokens: u32,
    /// Images.
    pub images: u32,
}

/// The rows of one window, or of several after one another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackPlan {
    /// For each row the places of its samples, ascending.
    pub rows: Vec<Vec<u64>>,
    /// Tokens in all rows.
    pub tokens: u64,
    /// Tokens that the rows could hold.
    pub capacity: u64,
}

impl PackPlan {
    /// Share of the rows' tokens that are of samples, 0 to 1; 1 where there is no row.
    pub fn utilisation(&self) -> f64 {
        if self.capacity == 0 { 1.0 } else { self.tokens as f64 / self.capacity as f64 }
    }
}

/// Why nothing can be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackFault {
    /// A limit of zero.
    Limit {
        /// The limit.
        field: &'static str,
    },
    /// A sample that no row can hold.
    Unpackable {
        /// Its place in the epoch.
        place: u64,
        /// What it takes.
        item: PackItem,
        /// The limits.
        limits: PackLimits,
    },
}

impl fmt::Display for PackFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit { field } => write!(out, "packing: `{field}`: expected at least 1, found 0"),
            Self::Unpackable { place, item, limits } => write!(
                out,
                "packing: the sample at place {place} has {} tokens and {} images, a row holds at most {} tokens and {} \
                 images; raise the limits or build with a smaller `--max-length`",
                item.tokens, item.images, limits.tokens, limits.images
            ),
        }
    }
}

impl std::error::Error for PackFault {}

impl PackLimits {
    /// Refuses limits that no sample fits.
    pub fn check(&self) -> Result<(), PackFault> {
        let fields = [("tokens", self.tokens), ("images", self.images), ("window", self.window)];
        match fields.into_iter().find(|(_, value)| *value == 0) {
            Some((field, _)) => Err(PackFault::Limit { field }),
            None => Ok(()),
        }
    }

    /// Packs the places from `first` on, whose samples `items` are: one window, or less at the end of an epoch.
    ///
    /// # Errors
    /// If a limit is 0, or a sample alone exceeds one; the error tells its place.
    pub fn pack(&self, first: u64, items: &[PackItem]) -> Result<PackPlan, PackFault> {
        self.check()?;
        let exceeds = |item: &PackItem| item.tokens > self.tokens || item.images > self.images;
        if let Some(at) = items.iter().position(exceeds) {
            return Err(PackFault::Unpackable { place: first + at as u64, item: items[at], limits: *self });
        }
        let mut rows = self.fewest_rows(items);
        rows.iter_mut().for_each(|row| row.sort_unstable());
        rows.sort_unstable_by_key(|row| row[0]);
        let place = |row: Vec<u32>| row.into_iter().map(|at| first + u64::from(at)).collect();
        let rows: Vec<Vec<u64>> = rows.into_iter().map(place).collect();
        let tokens = items.iter().map(|item| u64::from(item.tokens)).sum();
        Ok(PackPlan { capacity: rows.len() as u64 * u64::from(self.tokens), tokens, rows })
    }

    /// The better of the two plans; the second is made only where the first leaves room to be better by more than it costs.
    fn fewest_rows(&self, items: &[PackItem]) -> Vec<Vec<u32>> {
        let exact = exact_fit(*self, items);
        let tokens: u64 = items.iter().map(|item| u64::from(item.tokens)).sum();
        if tokens as f64 >= WELL_FILLED * exact.len() as f64 * f64::from(self.tokens) {
            return exact;
        }
        let first = first_fit(*self, items);
        if exact.len() <= first.len() { exact } else { first }
    }

    /// Packs a whole epoch, window after window; `item_at` gives the sample at a place.
    ///
    /// # Errors
    /// As [`PackLimits::pack`].
    pub fn pack_all(&self, num_places: u64, item_at: impl Fn(u64) -> PackItem) -> Result<PackPlan, PackFault> {
        self.check()?;
        let mut whole = PackPlan::default();
        let mut items = Vec::with_capacity(self.window as usize);
        for first in (0..num_places).step_by(self.window as usize) {
            let last = num_places.min(first + u64::from(self.window));
            items.clear();
            items.extend((first..last).map(&item_at));
            let PackPlan { rows, tokens, capacity } = self.pack(first, &items)?;
            whole.rows.extend(rows);
            whole.tokens += tokens;
            whole.capacity += capacity;
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(super) fn items() -> impl Strategy<Value = Vec<PackItem>> {
        proptest::collection::vec((0u32..=60, 0u32..=4).prop_map(|(tokens, images)| PackItem { tokens, images }), 0..80)
    }

    proptest! {
        #[test]
        fn every_sample_stands_in_one_row_within_both_limits(items in items(), window in 1u32..90) {
            let limits = PackLimits { tokens: 60, images: 5, window };
            let plan = limits.pack_all(items.len() as u64, |place| items[place as usize]).expect("all fit");
            let mut places: Vec<u64> = plan.rows.concat();
            places.sort_unstable();
            prop_assert_eq!(places, (0..items.len() as u64).collect::<Vec<_>>());
            for row in &plan.rows {
                let sum = |of: fn(&PackItem) -> u32| row.iter().map(|&place| of(&items[place as usize])).sum::<u32>();
                prop_assert!(sum(|item| item.tokens) <= limits.tokens && sum(|item| item.images) <= limits.images);
                prop_assert!(row.iter().all(|place| place / u64::from(window) == row[0] / u64::from(window)));
            }
            prop_assert!(plan.rows.windows(2).all(|pair| pair[0][0] < pair[1][0]));
        }
    }

    #[test]
    fn a_window_depends_on_itself_alone() {
        let item = |place: u64| PackItem { tokens: (place * 37 % 50 + 1) as u32, images: (place % 3) as u32 };
        let limits = PackLimits { tokens: 64, images: 4, window: 100 };
        let whole = limits.pack_all(1000, item).expect("all fit");
        let items: Vec<PackItem> = (700..800).map(item).collect();
        let alone = limits.pack(700, &items).expect("all fit").rows;
        let inside: Vec<_> = whole.rows.iter().filter(|row| (700..800).contains(&row[0])).cloned().collect();
        assert_eq!(alone, inside);
    }

    #[test]
    fn what_fits_no_row_is_refused_by_its_place() {
        let limits = PackLimits { tokens: 64, images: 2, window: 8 };
        for item in [PackItem { tokens: 65, images: 0 }, PackItem { tokens: 1, images: 3 }] {
            let told = limits.pack(40, &[PackItem::default(), item]).expect_err("too large").to_string();
            assert!(told.contains("place 41") && told.contains("64 tokens and 2 images"), "{told}");
        }
        let told = PackLimits { window: 0, ..limits }.check().expect_err("no window").to_string();
        assert!(told.contains("`window`"), "{told}");
    }
}
