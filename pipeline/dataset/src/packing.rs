//! Which samples share a row: first-fit decreasing inside a window of the shuffled order, from lengths alone.
//!
//! A window is packed by itself, so the plan of any place of an epoch costs one window, whatever came before. Samples
//! are taken from the longest to the shortest, equal ones in the order of their places, and each goes into the first row
//! with room for its tokens and its images (Johnson, "Near-optimal bin packing algorithms", 1973). The rows come
//! in the order of their first places and hold their samples in the order of places. Nothing is cut and nothing dropped.

use crate::DatasetError;

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

impl PackLimits {
    /// Refuses limits that no sample fits.
    pub fn check(&self) -> Result<(), DatasetError> {
        let fields = [("tokens", self.tokens), ("images", self.images), ("window", self.window)];
        match fields.into_iter().find(|(_, value)| *value == 0) {
            Some((field, _)) => Err(DatasetError::PackLimit { field }),
            None => Ok(()),
        }
    }

    /// Packs the places from `first` on, whose samples `items` are: one window, or less at the end of an epoch.
    ///
    /// # Errors
    /// If a limit is 0, or a sample alone exceeds one; the error tells its place.
    pub fn pack(&self, first: u64, items: &[PackItem]) -> Result<PackPlan, DatasetError> {
        self.check()?;
        let exceeds = |item: &PackItem| item.tokens > self.tokens || item.images > self.images;
        if let Some(at) = items.iter().position(exceeds) {
            let PackItem { tokens, images } = items[at];
            return Err(DatasetError::Unpackable { place: first + at as u64, tokens, images, limits: *self });
        }
        let mut rows: Vec<Vec<u64>> = Vec::new();
        let mut room = Room::new(items.len(), PackItem { tokens: self.tokens, images: self.images });
        for at in longest_first(items) {
            let row = room.first_fit(items[at]).expect("there are as many empty rows as samples");
            room.take(row, items[at]);
            if row == rows.len() {
                rows.push(Vec::new());
            }
            rows[row].push(first + at as u64);
        }
        rows.iter_mut().for_each(|row| row.sort_unstable());
        rows.sort_unstable_by_key(|row| row[0]);
        let tokens = items.iter().map(|item| u64::from(item.tokens)).sum();
        Ok(PackPlan { capacity: rows.len() as u64 * u64::from(self.tokens), tokens, rows })
    }

    /// Packs a whole epoch, window after window; `item_at` gives the sample at a place.
    ///
    /// # Errors
    /// As [`PackLimits::pack`].
    pub fn pack_all(&self, num_places: u64, item_at: impl Fn(u64) -> PackItem) -> Result<PackPlan, DatasetError> {
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

fn longest_first(items: &[PackItem]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(items[at].tokens));
    order
}

/// The room of every row as a tree of maxima, so that the first row with enough of both is found from the top.
struct Room {
    /// Node `n` has the children `2 n` and `2 n + 1`; the rows begin at `leaves`.
    most: Vec<PackItem>,
    leaves: usize,
}

impl Room {
    /// Room for `num_rows` rows of `empty` each.
    fn new(num_rows: usize, empty: PackItem) -> Self {
        let leaves = num_rows.max(1).next_power_of_two();
        Self { most: vec![empty; 2 * leaves], leaves }
    }

    fn first_fit(&self, item: PackItem) -> Option<usize> {
        let fits = |node: usize| self.most[node].tokens >= item.tokens && self.most[node].images >= item.images;
        // Maxima of two kinds may come from different rows: a subtree that seems to fit may hold no row that does.
        let mut pending = vec![1];
        while let Some(node) = pending.pop() {
            match fits(node) {
                true if node >= self.leaves => return Some(node - self.leaves),
                true => pending.extend([2 * node + 1, 2 * node]),
                false => {}
            }
        }
        None
    }

    /// Takes an item's share of `row`.
    fn take(&mut self, row: usize, item: PackItem) {
        let mut node = self.leaves + row;
        let PackItem { tokens, images } = self.most[node];
        self.most[node] = PackItem { tokens: tokens - item.tokens, images: images - item.images };
        while node > 1 {
            node /= 2;
            let [left, right] = [self.most[2 * node], self.most[2 * node + 1]];
            self.most[node] = PackItem { tokens: left.tokens.max(right.tokens), images: left.images.max(right.images) };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items() -> impl Strategy<Value = Vec<PackItem>> {
        proptest::collection::vec((0u32..=60, 0u32..=4).prop_map(|(tokens, images)| PackItem { tokens, images }), 0..80)
    }

    /// First-fit decreasing as it is told in words.
    fn plain(limits: PackLimits, items: &[PackItem]) -> Vec<Vec<u64>> {
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by(|&a, &b| items[b].tokens.cmp(&items[a].tokens).then(a.cmp(&b)));
        let mut rows: Vec<(u32, u32, Vec<u64>)> = Vec::new();
        for at in order {
            let PackItem { tokens, images } = items[at];
            let fits =
                |row: &&mut (u32, u32, Vec<u64>)| row.0 + tokens <= limits.tokens && row.1 + images <= limits.images;
            match rows.iter_mut().find(fits) {
                Some(row) => {
                    (row.0, row.1) = (row.0 + tokens, row.1 + images);
                    row.2.push(at as u64);
                }
                None => rows.push((tokens, images, vec![at as u64])),
            }
        }
        let mut rows: Vec<Vec<u64>> = rows.into_iter().map(|row| row.2).collect();
        rows.iter_mut().for_each(|row| row.sort_unstable());
        rows.sort();
        rows
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

        #[test]
        fn the_tree_finds_what_a_walk_over_all_rows_finds(items in items()) {
            let limits = PackLimits { tokens: 60, images: 5, window: 1000 };
            let plan = limits.pack(0, &items).expect("all fit");
            prop_assert_eq!(plan.rows, plain(limits, &items));
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
