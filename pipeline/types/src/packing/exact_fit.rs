//! Fills one row after the other as full as a bounded search can: the longest sample left, and of the others the
//! combination that leaves least room (the minimum bin slack of Gupta and Ho, 1999, with a limit on the search).

use super::{PackItem, PackLimits};

/// Combinations looked at per row. More of them take longer and bring little: the early rows get fuller, the late ones emptier.
const MAX_COMBINATIONS: usize = 25;

/// Entries of the table of lengths per item, at most.
const TABLE_PER_ITEM: usize = 16;

/// Rows of indices into `items`; each item must fit a row by itself.
pub(super) fn exact_fit(limits: PackLimits, items: &[PackItem]) -> Vec<Vec<u32>> {
    let mut stock = Stock::new(items);
    let mut search = Search::default();
    let mut rows = Vec::new();
    while let Some(longest) = stock.below(stock.lengths.len()) {
        let mut row = Vec::new();
        let room = PackItem { tokens: limits.tokens, images: limits.images }.without(stock.take(longest, &mut row));
        search.run(&mut stock, room, longest);
        search.best.iter().for_each(|&rank| _ = stock.take(rank, &mut row));
        rows.push(row);
    }
    rows
}

impl PackItem {
    /// What is left of this room; the item must fit.
    fn without(self, item: Self) -> Self {
        Self { tokens: self.tokens - item.tokens, images: self.images - item.images }
    }

    fn with(self, item: Self) -> Self {
        Self { tokens: self.tokens + item.tokens, images: self.images + item.images }
    }
}

/// The items not packed yet, by length.
struct Stock<'a> {
    items: &'a [PackItem],
    /// Indices of items: by length, then images, then from the last place to the first, so that a take is a pop.
    order: Vec<u32>,
    /// The different lengths, ascending; a rank is an index into them.
    lengths: Vec<u32>,
    /// For each length up to the longest, the ranks that are no longer; empty where lengths are few and far between.
    ranks_to: Vec<u32>,
    /// Where the items of a rank begin in `order`.
    starts: Vec<u32>,
    /// Items of a rank that are left.
    left: Vec<u32>,
    /// One bit per rank that has items left.
    present: Vec<u64>,
}

impl<'a> Stock<'a> {
    fn new(items: &'a [PackItem]) -> Self {
        let mut order: Vec<u32> = (0..items.len() as u32).collect();
        order.sort_unstable_by_key(|&at| {
            let PackItem { tokens, images } = items[at as usize];
            (tokens, images, std::cmp::Reverse(at))
        });
        let (mut lengths, mut starts, mut left) = (Vec::new(), Vec::new(), Vec::<u32>::new());
        for (at, &item) in order.iter().enumerate() {
            let tokens = items[item as usize].tokens;
            if lengths.last() != Some(&tokens) {
                lengths.push(tokens);
                starts.push(at as u32);
                left.push(0);
            }
            *left.last_mut().expect("pushed before") += 1;
        }
        let mut present = vec![u64::MAX; lengths.len().div_ceil(64)];
        if let Some(last) = present.last_mut().filter(|_| !lengths.len().is_multiple_of(64)) {
            *last = (1 << (lengths.len() % 64)) - 1;
        }
        let ranks_to = rank_table(&lengths, items.len());
        Self { items, order, lengths, ranks_to, starts, left, present }
    }

    /// How many ranks have at most `tokens`.
    fn num_ranks_to(&self, tokens: u32) -> usize {
        match self.ranks_to.is_empty() {
            true => self.lengths.partition_point(|&length| length <= tokens),
            false => self.ranks_to.get(tokens as usize).map_or(self.lengths.len(), |&ranks| ranks as usize),
        }
    }

    /// The highest rank below `end` that has items left.
    fn below(&self, end: usize) -> Option<usize> {
        let last = end.checked_sub(1)?;
        let mut word = last / 64;
        let mut bits = self.present[word] & (u64::MAX >> (63 - last % 64));
        while bits == 0 {
            word = word.checked_sub(1)?;
            bits = self.present[word];
        }
        Some(word * 64 + 63 - bits.leading_zeros() as usize)
    }

    /// The shortest length left.
    fn shortest(&self) -> Option<u32> {
        let word = self.present.iter().position(|&bits| bits != 0)?;
        Some(self.lengths[word * 64 + self.present[word].trailing_zeros() as usize])
    }

    /// The item that [`Stock::take`] would take.
    fn top(&self, rank: usize) -> u32 {
        self.order[(self.starts[rank] + self.left[rank] - 1) as usize]
    }

    fn take(&mut self, rank: usize, row: &mut Vec<u32>) -> PackItem {
        let at = self.top(rank);
        row.push(at);
        self.remove(rank);
        self.items[at as usize]
    }

    fn remove(&mut self, rank: usize) {
        self.left[rank] -= 1;
        if self.left[rank] == 0 {
            self.present[rank / 64] &= !(1 << (rank % 64));
        }
    }

    fn put_back(&mut self, rank: usize) -> PackItem {
        self.left[rank] += 1;
        self.present[rank / 64] |= 1 << (rank % 64);
        self.items[self.top(rank) as usize]
    }
}

/// How many of `lengths` reach to each length up to the longest: faster than a search, but only worth its memory where it is not much
/// more than that of the items.
fn rank_table(lengths: &[u32], num_items: usize) -> Vec<u32> {
    let table_len = lengths.last().map_or(0, |&longest| longest as usize + 1);
    if table_len > TABLE_PER_ITEM * num_items {
        return Vec::new();
    }
    let mut table = Vec::with_capacity(table_len);
    for (rank, &length) in lengths.iter().enumerate() {
        table.resize(length as usize, rank as u32);
        table.push(rank as u32 + 1);
    }
    table
}

/// The search for what fills a row best, depth first, longer samples before shorter ones.
#[derive(Default)]
struct Search {
    chosen: Vec<usize>,
    best: Vec<usize>,
}

impl Search {
    /// Leaves in `best` the ranks, `longest` the highest of them, that leave least of `room`. The stock is as before.
    fn run(&mut self, stock: &mut Stock<'_>, mut room: PackItem, longest: usize) {
        self.best.clear();
        let Some(shortest) = stock.shortest() else { return };
        let mut least = u32::MAX;
        let mut next = Self::candidate(stock, room, room.tokens, longest + 1);
        for _ in 0..MAX_COMBINATIONS {
            while let Some(rank) = next {
                room = room.without(stock.items[stock.top(rank) as usize]);
                stock.remove(rank);
                self.chosen.push(rank);
                next = Self::candidate(stock, room, room.tokens, rank + 1);
            }
            if room.tokens < least {
                least = room.tokens;
                self.best.clone_from(&self.chosen);
            }
            next = if least == 0 { None } else { self.turn_back(stock, &mut room, shortest) };
            if next.is_none() {
                break;
            }
        }
        self.chosen.drain(..).for_each(|rank| _ = stock.put_back(rank));
    }

    /// Gives samples back, the last first, until a shorter one in the place of one leaves room for a further one.
    fn turn_back(&mut self, stock: &mut Stock<'_>, room: &mut PackItem, shortest: u32) -> Option<usize> {
        while let Some(rank) = self.chosen.pop() {
            *room = room.with(stock.put_back(rank));
            let next = room.tokens.checked_sub(shortest).and_then(|most| Self::candidate(stock, *room, most, rank));
            if next.is_some() {
                return next;
            }
        }
        None
    }

    /// The highest rank below `end` of at most `most` tokens whose next sample fits the room for images.
    fn candidate(stock: &Stock<'_>, room: PackItem, most: u32, end: usize) -> Option<usize> {
        let mut rank = stock.below(end.min(stock.num_ranks_to(most)))?;
        while stock.items[stock.top(rank) as usize].images > room.images {
            rank = stock.below(rank)?;
        }
        Some(rank)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packing::tests::items;

    proptest! {
        #[test]
        fn the_stock_is_used_up_and_no_row_is_too_full(items in items()) {
            let limits = PackLimits { tokens: 60, images: 5, window: 1000 };
            let rows = exact_fit(limits, &items);
            let mut all: Vec<u32> = rows.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..items.len() as u32).collect::<Vec<_>>());
            for row in rows {
                let sum = |of: fn(&PackItem) -> u32| row.iter().map(|&at| of(&items[at as usize])).sum::<u32>();
                prop_assert!(sum(|item| item.tokens) <= 60 && sum(|item| item.images) <= 5);
            }
        }
    }

    #[test]
    fn rows_are_filled_to_the_last_token_where_first_fit_leaves_room() {
        let items: Vec<PackItem> = [5, 5, 4, 3, 3].map(|tokens| PackItem { tokens, images: 0 }).to_vec();
        let rows = exact_fit(PackLimits { tokens: 10, images: 1, window: 5 }, &items);
        assert_eq!(rows, [vec![0, 1], vec![2, 3, 4]]);
        let items: Vec<PackItem> = [6, 5, 3, 3, 2, 1].map(|tokens| PackItem { tokens, images: 0 }).to_vec();
        assert_eq!(exact_fit(PackLimits { tokens: 10, images: 1, window: 6 }, &items).len(), 2);
    }
}
