//! The order of an epoch: a keyed permutation in constant memory.
//!
//! A Feistel network over the smallest even number of bits that holds every index (at least eight), walked until it
//! lands below the number of samples (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). The round
//! function and the keys come from SplitMix64 alone, so any language reproduces it: `docs/determinism.md`.

use vela_types::{Fingerprint, SeedStream};

const ROUNDS: usize = 8;

/// Fewest bits of the network: with fewer, small sets would see only a few of their possible orders.
const MIN_BITS: u32 = 8;

/// First state of the key schedule: the bytes `VELAORD1`.
const KEY_DOMAIN: u64 = u64::from_be_bytes(*b"VELAORD1");

/// Which sample stands at which place of one epoch. Random access, no memory that grows with the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochOrder {
    num_samples: u64,
    half_bits: u32,
    /// `None`: the manifest's order.
    keys: Option<[u64; ROUNDS]>,
}

impl EpochOrder {
    /// The seeded order of `epoch` over the samples `0..num_samples` of the data set `fingerprint`.
    pub fn shuffled(num_samples: u64, fingerprint: &Fingerprint, seed: u64, epoch: u64) -> Self {
        Self::keyed(num_samples, fingerprint, &[seed, epoch])
    }

    /// The order of `0..num_samples` that `fingerprint` and `words` name.
    pub(crate) fn keyed(num_samples: u64, fingerprint: &Fingerprint, words: &[u64]) -> Self {
        let data = fingerprint.0.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let absorb = |state: u64, word: u64| SeedStream::new(state ^ word).next_u64();
        let state = data.chain(words.iter().copied()).fold(KEY_DOMAIN, absorb);
        let mut stream = SeedStream::new(state);
        let keys = std::array::from_fn(|_| stream.next_u64());
        Self { keys: Some(keys), ..Self::sequential(num_samples) }
    }

    /// The manifest's order, in every epoch.
    pub fn sequential(num_samples: u64) -> Self {
        let bits = u64::BITS - num_samples.saturating_sub(1).leading_zeros();
        Self { num_samples, half_bits: bits.max(MIN_BITS).div_ceil(2), keys: None }
    }

    /// Samples of the epoch.
    pub fn num_samples(&self) -> u64 {
        self.num_samples
    }

    /// The index (in the manifest's order) of the sample at `place`; `None` from `num_samples` on.
    pub fn index_at(&self, place: u64) -> Option<u64> {
        if place >= self.num_samples {
            return None;
        }
        let Some(keys) = &self.keys else { return Some(place) };
        // The network permutes a larger domain; following it from a small number returns to one, each to its own.
        let mut value = self.permute(keys, place);
        while value >= self.num_samples {
            value = self.permute(keys, value);
        }
        Some(value)
    }

    fn permute(&self, keys: &[u64; ROUNDS], value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in keys {
            let mixed = SeedStream::new(key ^ right).next_u64() >> (u64::BITS - self.half_bits);
            (left, right) = (right, left ^ mixed);
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn indices(order: &EpochOrder) -> Vec<u64> {
        (0..order.num_samples()).map(|place| order.index_at(place).expect("a place below the end")).collect()
    }

    proptest! {
        #[test]
        fn every_sample_stands_at_exactly_one_place(n in 1u64..3000, seed: u64, epoch: u64, data: [u8; 32]) {
            let order = EpochOrder::shuffled(n, &Fingerprint(data), seed, epoch);
            let mut seen = indices(&order);
            prop_assert_eq!(order.index_at(n), None);
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..n));
        }

        #[test]
        fn huge_sets_are_seekable(n in 1u64 << 40..1u64 << 62, seed: u64, place: u64) {
            let order = EpochOrder::shuffled(n, &Fingerprint::default(), seed, 0);
            prop_assert!(order.index_at(place % n).is_some_and(|index| index < n));
        }
    }

    #[test]
    fn seed_epoch_and_data_each_change_the_order() {
        let base = indices(&EpochOrder::shuffled(100, &Fingerprint::default(), 1, 0));
        assert_ne!(base, indices(&EpochOrder::shuffled(100, &Fingerprint::default(), 2, 0)));
        assert_ne!(base, indices(&EpochOrder::shuffled(100, &Fingerprint::default(), 1, 1)));
        assert_ne!(base, indices(&EpochOrder::shuffled(100, &Fingerprint([1; 32]), 1, 0)));
        assert!(indices(&EpochOrder::sequential(100)).into_iter().eq(0..100));
    }

    #[test]
    fn places_are_spread_evenly_over_epochs() {
        // Chi-square over where sample 0 lands in 6,000 epochs of 10 samples; 9 degrees of freedom, p = 0.001 at 27.9.
        let mut counts = [0f64; 10];
        for epoch in 0..6_000 {
            let order = EpochOrder::shuffled(10, &Fingerprint::default(), 7, epoch);
            counts[indices(&order).iter().position(|&index| index == 0).expect("a permutation")] += 1.0;
        }
        let chi_square: f64 = counts.iter().map(|count| (count - 600.0).powi(2) / 600.0).sum();
        assert!(chi_square < 27.9, "{chi_square} {counts:?}");
    }
}
