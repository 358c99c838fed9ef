//! Seeded draws that depend on names, never on call order across samples or threads.

/// A counter-based random stream (SplitMix64): the same seed gives the same numbers on every machine, for ever.
///
/// Streams are named: [`SeedStream::named`] mixes a run seed with a purpose and a key (a sample id, say), so a draw
/// for one sample does not move when another is added, and threads need not agree on an order.
#[derive(Clone, Debug)]
pub struct SeedStream {
    state: u64,
}

const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

impl SeedStream {
    /// The stream of `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The stream of (`seed`, `purpose`, `key`). FNV-1a over both texts, a zero byte between, mixed with the seed.
    pub fn named(seed: u64, purpose: &str, key: &str) -> Self {
        let bytes = purpose.bytes().chain([0]).chain(key.bytes());
        let hash = bytes
            .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3));
        Self { state: mix(seed ^ mix(hash)) }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        mix(self.state)
    }

    /// A number in `0..bound`, without modulo bias (Lemire's multiply-and-reject). `bound` must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "a draw needs at least one choice");
        let reject_below = bound.wrapping_neg() % bound;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(bound);
            if wide as u64 >= reject_below {
                return (wide >> 64) as u64;
            }
        }
    }

    /// A number in `[0, 1)` with 53 random bits.
    pub fn unit_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A draw from the standard normal distribution (Box-Muller, one of the pair).
    pub fn normal_f64(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit_f64()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit_f64()).cos()
    }

    /// One item of a non-empty slice.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

/// SplitMix64's output function (Steele, Lea and Flood 2014).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_splitmix64_numbers_come_out() {
        // First outputs of the reference SplitMix64 for seed 1234567.
        let mut stream = SeedStream::new(1_234_567);
        let expected = [6_457_827_717_110_365_317_u64, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(std::array::from_fn(|_| stream.next_u64()), expected);
    }

    #[test]
    fn bounded_draws_reach_every_value_evenly() {
        let mut stream = SeedStream::named(1, "test", "even");
        let mut counts = [0u32; 6];
        (0..60_000).for_each(|_| counts[stream.below(6) as usize] += 1);
        assert!(counts.iter().all(|count| (9_600..10_400).contains(count)), "{counts:?}");
    }

    #[test]
    fn purpose_and_key_do_not_run_together() {
        let first = SeedStream::named(1, "ab", "c").next_u64();
        assert_ne!(first, SeedStream::named(1, "a", "bc").next_u64());
        assert_ne!(first, SeedStream::named(2, "ab", "c").next_u64());
    }

    #[test]
    fn normal_draws_have_mean_zero_and_variance_one() {
        let mut stream = SeedStream::new(5);
        let draws: Vec<f64> = (0..50_000).map(|_| stream.normal_f64()).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "mean {mean}, variance {variance}");
    }
}
