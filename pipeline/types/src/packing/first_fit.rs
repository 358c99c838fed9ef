//! First-fit decreasing: from the longest to the shortest, each into the first row with room for it.
//! (Johnson, "Near-optimal bin packing algorithms", 1973.)

use super::{PackItem, PackLimits};

/// Rows of indices into `items`; each item must fit a row by itself.
pub(super) fn first_fit(limits: PackLimits, items: &[PackItem]) -> Vec<Vec<u32>> {
    let mut rows: Vec<Vec<u32>> = Vec::new();
    let mut room = Room::new(items.len(), PackItem { tokens: limits.tokens, images: limits.images });
    for at in longest_first(items) {
        let row = room.first_fit(items[at]).expect("there are as many empty rows as samples");
        room.take(row, items[at]);
        if row == rows.len() {
            rows.push(Vec::new());
        }
        rows[row].push(at as u32);
    }
    rows
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
    use crate::packing::tests::items;

    /// First-fit decreasing as it is told in words.
    fn plain(limits: PackLimits, items: &[PackItem]) -> Vec<Vec<u32>> {
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by(|&a, &b| items[b].tokens.cmp(&items[a].tokens).then(a.cmp(&b)));
        let mut rows: Vec<(u32, u32, Vec<u32>)> = Vec::new();
        for at in order {
            let PackItem { tokens, images } = items[at];
            let fits =
                |row: &&mut (u32, u32, Vec<u32>)| row.0 + tokens <= limits.tokens && row.1 + images <= limits.images;
            match rows.iter_mut().find(fits) {
                Some(row) => {
                    (row.0, row.1) = (row.0 + tokens, row.1 + images);
                    row.2.push(at as u32);
                }
                None => rows.push((tokens, images, vec![at as u32])),
            }
        }
        rows.into_iter().map(|row| row.2).collect()
    }

    proptest! {
        #[test]
        fn the_tree_finds_what_a_walk_over_all_rows_finds(items in items()) {
            let limits = PackLimits { tokens: 60, images: 5, window: 1000 };
            prop_assert_eq!(first_fit(limits, &items), plain(limits, &items));
        }
    }
}
