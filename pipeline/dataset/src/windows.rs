//! An order that mixes few shards at a time, so that a cache need not hold them all.

use vela_types::Fingerprint;

use crate::EpochOrder;

/// The order in which an epoch takes the groups (shards, or what was packed of them).
const GROUPS: u64 = u64::from_be_bytes(*b"VELAGRPS");

/// Units (samples or packed rows) that lie in groups of stated sizes: groups in a keyed order, so many of them to a window,
/// and a keyed order of all units of a window. Memory grows with the number of groups alone; every place is seekable.
#[derive(Clone, Debug)]
pub(crate) struct WindowOrder {
    windows: Vec<Window>,
    num_units: u64,
}

#[derive(Clone, Debug)]
struct Window {
    first_place: u64,
    /// For each group its units in the window before it, and its first unit.
    groups: Vec<(u64, u64)>,
    order: EpochOrder,
}

impl WindowOrder {
    /// The order of `epoch` over groups of `sizes`, `per_window` of them (at least 1) mixed with one another.
    pub(crate) fn new(sizes: &[u64], per_window: usize, fingerprint: &Fingerprint, seed: u64, epoch: u64) -> Self {
        let mut first_unit = 0;
        let mut groups = Vec::with_capacity(sizes.len());
        for &size in sizes {
            groups.push((first_unit, size));
            first_unit += size;
        }
        let group_order = EpochOrder::keyed(sizes.len() as u64, fingerprint, &[seed, epoch, GROUPS]);
        let taken = (0..).map_while(|place| group_order.index_at(place)).map(|group| groups[group as usize]);
        let taken: Vec<(u64, u64)> = taken.filter(|&(_, size)| size > 0).collect();
        let mut first_place = 0;
        let mut windows = Vec::with_capacity(taken.len().div_ceil(per_window));
        for (number, members) in taken.chunks(per_window).enumerate() {
            let mut before = 0;
            let mut groups = Vec::with_capacity(members.len());
            for &(first_unit, size) in members {
                groups.push((before, first_unit));
                before += size;
            }
            let order = EpochOrder::keyed(before, fingerprint, &[seed, epoch, number as u64]);
            windows.push(Window { first_place, groups, order });
            first_place += before;
        }
        Self { windows, num_units: first_unit }
    }

    /// The places of each window.
    pub(crate) fn windows(&self) -> Vec<std::ops::Range<u64>> {
        let ends = self.windows.iter().skip(1).map(|window| window.first_place).chain([self.num_units]);
        self.windows.iter().zip(ends).map(|(window, end)| window.first_place..end).collect()
    }

    /// The unit at `place`; `None` past the last.
    pub(crate) fn index_at(&self, place: u64) -> Option<u64> {
        if place >= self.num_units {
            return None;
        }
        let window = &self.windows[self.windows.partition_point(|window| window.first_place <= place) - 1];
        let local = window.order.index_at(place - window.first_place)?;
        let (before, first_unit) = window.groups[window.groups.partition_point(|&(before, _)| before <= local) - 1];
        Some(first_unit + (local - before))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_unit_stands_at_one_place_and_a_window_holds_whole_groups(
            sizes in prop::collection::vec(0u64..40, 1..30), per_window in 1usize..8, seed: u64, epoch: u64,
        ) {
            let order = WindowOrder::new(&sizes, per_window, &Fingerprint([5; 32]), seed, epoch);
            let num_units: u64 = sizes.iter().sum();
            let units: Vec<u64> = (0..num_units).map(|place| order.index_at(place).expect("below the end")).collect();
            prop_assert_eq!(order.index_at(num_units), None);
            let group_of = |unit: u64| {
                let mut end = 0;
                sizes.iter().position(|size| { end += size; unit < end }).expect("a unit of a group")
            };
            let mut at = 0;
            while at < units.len() {
                // A window ends where all units of the groups seen have come.
                let mut groups = std::collections::BTreeSet::new();
                let mut due = 0;
                let start = at;
                while at == start || (at - start) < due {
                    let group = group_of(units[at]);
                    if groups.insert(group) {
                        due += sizes[group] as usize;
                    }
                    at += 1;
                }
                prop_assert!(groups.len() <= per_window, "{groups:?}");
            }
            let mut sorted = units;
            sorted.sort_unstable();
            prop_assert!(sorted.into_iter().eq(0..num_units));
        }
    }

    #[test]
    fn orders_equal_the_committed_golden_ones() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/order/windows.json");
        let cases: Vec<serde_json::Value> =
            serde_json::from_str(&std::fs::read_to_string(path).expect("the file")).expect("JSON");
        assert!(!cases.is_empty());
        for case in cases {
            let number = |key: &str| case[key].as_u64().expect("a number");
            let list = |key: &str| -> Vec<u64> {
                case[key].as_array().expect("a list").iter().filter_map(serde_json::Value::as_u64).collect()
            };
            let fingerprint: Fingerprint = case["fingerprint"].as_str().expect("a text").parse().expect("a name");
            let per_window = number("per_window") as usize;
            let order = WindowOrder::new(&list("sizes"), per_window, &fingerprint, number("seed"), number("epoch"));
            let units: Vec<u64> = (0..).map_while(|place| order.index_at(place)).collect();
            assert_eq!(units, list("units"));
        }
    }

    #[test]
    fn epochs_differ_in_groups_and_in_units() {
        let sizes = [10; 12];
        let units = |epoch| {
            let order = WindowOrder::new(&sizes, 3, &Fingerprint::default(), 1, epoch);
            (0..120).filter_map(|place| order.index_at(place)).collect::<Vec<_>>()
        };
        assert_ne!(units(0), units(1));
        let groups_first =
            |epoch| units(epoch)[..30].iter().map(|unit| unit / 10).collect::<std::collections::BTreeSet<_>>();
        assert!((1..20).any(|epoch| groups_first(epoch) != groups_first(0)));
    }
}
