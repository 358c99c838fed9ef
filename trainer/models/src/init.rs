//! Fresh weights: each parameter's values depend on (seed, name) alone, never on the order in which they are made.
//!
//! Distribution: normal(0, `std`) for weights and embeddings, zeros for biases, ones for norm scales. With `fan_in`, a
//! linear weight's deviation is `1 / sqrt(inputs)` instead; with `residual_scaled`, the linears that write to the
//! residual stream are divided by `sqrt(2 * layers)` (GPT-2's rule).

use serde::{Deserialize, Serialize};

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Init {
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform between minus and plus this.
    Uniform(f64),
    /// All zero.
    Zeros,
    /// All one.
    Ones,
}

/// The deviations of fresh weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InitConfig {
    /// Standard deviation of linear weights, of token embeddings, and of a tower's class and position embeddings.
    pub std: f64,
    /// Standard deviation of token embeddings, where it differs.
    pub embedding_std: Option<f64>,
    /// Linear weights get `1 / sqrt(inputs)` instead of `std`.
    pub fan_in: bool,
    /// Linears that write to the residual stream are divided by `sqrt(2 * layers)`.
    pub residual_scaled: bool,
}

impl Default for InitConfig {
    fn default() -> Self {
        Self { std: 0.02, embedding_std: None, fan_in: false, residual_scaled: false }
    }
}

impl InitConfig {
    /// The start of a linear weight with `inputs` columns.
    pub(crate) fn linear(&self, inputs: usize) -> Init {
        Init::Normal(if self.fan_in { 1.0 / (inputs as f64).sqrt() } else { self.std })
    }

    /// The start of a linear weight that writes to the residual stream of a stack of `layers` blocks.
    pub(crate) fn residual(&self, inputs: usize, layers: usize) -> Init {
        match self.linear(inputs) {
            Init::Normal(std) if self.residual_scaled => Init::Normal(std / (2.0 * layers as f64).sqrt()),
            other => other,
        }
    }

    /// The start of a tower's class, position and probe vectors.
    pub(crate) fn position(&self) -> Init {
        Init::Normal(self.std)
    }

    /// The start of a table of token embeddings.
    pub(crate) fn embedding(&self) -> Init {
        Init::Normal(self.embedding_std.unwrap_or(self.std))
    }
}

impl Init {
    /// `count` values for the parameter `name`.
    pub(crate) fn draw(self, seed: u64, name: &str, count: usize) -> Vec<f32> {
        match self {
            Self::Zeros => vec![0.0; count],
            Self::Ones => vec![1.0; count],
            Self::Normal(std) => {
                let mut stream = NormalStream::new(seed, name);
                (0..count).map(|_| (std * stream.next()) as f32).collect()
            }
            Self::Uniform(bound) => {
                let mut stream = NormalStream::new(seed, name);
                (0..count).map(|_| (bound * (2.0 * stream.unit() - 1.0)) as f32).collect()
            }
        }
    }
}

/// Standard normal draws: SplitMix64 (Steele, Lea and Flood 2014), keyed by FNV-1a of the name, through Box-Muller.
struct NormalStream {
    state: u64,
    spare: Option<f64>,
}

impl NormalStream {
    fn new(seed: u64, name: &str) -> Self {
        Self { state: mix(seed ^ mix(name_hash(name))), spare: None }
    }

    fn unit(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        (mix(self.state) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    fn next(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let (sine, cosine) = (std::f64::consts::TAU * self.unit()).sin_cos();
        self.spare = Some(radius * sine);
        radius * cosine
    }
}

/// FNV-1a of a name.
pub(crate) fn name_hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3))
}

/// The output function of SplitMix64.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_alone() {
        let draw = |seed, name| Init::Normal(0.02).draw(seed, name, 8);
        assert_eq!(draw(1, "a.weight"), draw(1, "a.weight"));
        assert_eq!(draw(1, "a.weight")[..3], Init::Normal(0.02).draw(1, "a.weight", 3));
        assert_ne!(draw(1, "a.weight"), draw(2, "a.weight"));
        assert_ne!(draw(1, "a.weight"), draw(1, "b.weight"));
    }

    #[test]
    fn draws_have_the_stated_moments() {
        let values = Init::Normal(0.5).draw(7, "x", 100_000);
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.01 && (variance - 0.25).abs() < 0.005, "mean {mean}, variance {variance}");
    }

    #[test]
    fn uniform_draws_stay_within_their_bound_and_reach_for_it() {
        let values = Init::Uniform(0.25).draw(7, "x", 10_000);
        let (low, high) = values.iter().fold((0f32, 0f32), |(low, high), &value| (low.min(value), high.max(value)));
        assert!((-0.25..-0.24).contains(&low) && (0.24..0.25).contains(&high), "{low} to {high}");
    }

    #[test]
    fn scaled_rules_divide_as_documented() {
        let config = InitConfig { fan_in: true, residual_scaled: true, ..InitConfig::default() };
        assert_eq!(config.linear(16), Init::Normal(0.25));
        assert_eq!(config.residual(16, 2), Init::Normal(0.125));
        assert_eq!(config.embedding(), Init::Normal(0.02));
    }
}
