//! Which part of a blend stands at each place of an epoch: an even merge in closed form.
//!
//! Part `i` has `n_i` turns in an epoch; its turn `k` is due at `(2k + 1) / (2 n_i)` of the epoch, and equal dues come in the
//! order of the parts. So any stretch of the epoch holds the parts in proportion, and no place depends on a draw.

/// The turns of every part in one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blend {
    turns: Vec<u64>,
    num_places: u64,
}

impl Blend {
    /// A blend in which part `i` has `turns[i]` turns.
    pub fn new(turns: Vec<u64>) -> Self {
        let num_places = turns.iter().sum();
        Self { turns, num_places }
    }

    /// Places of the epoch: the turns of all parts.
    pub fn num_places(&self) -> u64 {
        self.num_places
    }

    /// The turns of part `part`.
    pub(crate) fn turns(&self, part: usize) -> u64 {
        self.turns[part]
    }

    /// The part at `place` and which of its turns it is; `None` past the last.
    pub fn at(&self, place: u64) -> Option<(usize, u64)> {
        if place >= self.num_places {
            return None;
        }
        if let [_] = self.turns[..] {
            return Some((0, place));
        }
        let found = (0..self.turns.len()).find_map(|part| self.turn_at(part, place).map(|turn| (part, turn)));
        Some(found.expect("every place is one part's turn"))
    }

    /// The turn of `part` that stands at `place`, if one does.
    fn turn_at(&self, part: usize, place: u64) -> Option<u64> {
        let turns = self.turns[part];
        if turns == 0 {
            return None;
        }
        // A turn stands within one place per part of where its due falls.
        let near = (u128::from(place) * u128::from(turns) / u128::from(self.num_places)) as u64;
        let reach = self.turns.len() as u64 + 1;
        let (mut low, mut high) = (near.saturating_sub(reach), (near + reach).min(turns - 1));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.place_of(part, middle) < place {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        (self.place_of(part, low) == place).then_some(low)
    }

    /// The place of turn `turn` of `part`: how many turns of all parts are due before it.
    fn place_of(&self, part: usize, turn: u64) -> u64 {
        let due = 2 * u128::from(turn) + 1;
        let own = u128::from(self.turns[part]);
        let before = self.turns.iter().enumerate().map(|(other, &turns)| {
            if other == part {
                return turn;
            }
            // Turns j with (2j + 1) / (2 turns) before due / (2 own), at the same moment too if that part comes first.
            let bound = due * u128::from(turns);
            let last = if other < part { bound } else { bound - u128::from(bound > 0) };
            ((last / own).div_ceil(2)) as u64
        });
        before.sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same by sorting all dues.
    fn merged(turns: &[u64]) -> Vec<(usize, u64)> {
        let parts = turns.iter().enumerate().filter(|(_, turns)| **turns > 0);
        let mut all: Vec<(usize, u64)> =
            parts.flat_map(|(part, &turns)| (0..turns).map(move |turn| (part, turn))).collect();
        all.sort_by(|&(part, turn), &(other, other_turn)| {
            let due = u128::from(2 * turn + 1) * u128::from(turns[other]);
            let other_due = u128::from(2 * other_turn + 1) * u128::from(turns[part]);
            due.cmp(&other_due).then(part.cmp(&other))
        });
        all
    }

    proptest! {
        #[test]
        fn the_closed_form_is_the_merge(turns in prop::collection::vec(0u64..60, 1..7)) {
            let blend = Blend::new(turns.clone());
            let places: Vec<_> = (0..blend.num_places()).map(|place| blend.at(place).expect("below the end")).collect();
            prop_assert_eq!(blend.at(blend.num_places()), None);
            prop_assert_eq!(places, merged(&turns));
        }

        #[test]
        fn huge_blends_are_seekable(turns in prop::collection::vec(1u64..1 << 40, 2..6), place: u64) {
            let blend = Blend::new(turns);
            let place = place % blend.num_places();
            let (part, turn) = blend.at(place).expect("below the end");
            prop_assert_eq!(blend.place_of(part, turn), place);
        }
    }
}
