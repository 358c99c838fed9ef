//! What padding costs: at one fixed length, batch by batch, grouped by length, and packed.

use serde::Serialize;
use vela_types::{PackItem, PackLimits, PackPlan, RecordLengths};

use super::{StatsConfig, expanded_length};

/// Batches sorted together when samples are grouped by length, as in the Hugging Face trainer's length-grouped sampler.
const GROUPED_BATCHES: usize = 50;

/// Share of positions that hold padding, 0 to 1, over the samples that fit `length`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PaddingStats {
    /// The row length that `fixed` pads to.
    pub length: u32,
    /// Samples of a batch.
    pub batch: u32,
    /// Every sample padded to `length`.
    pub fixed: f64,
    /// Every sample padded to the longest of its batch, in a shuffled order.
    pub in_order: f64,
    /// The same with the samples of fifty batches sorted by length.
    pub by_length: f64,
}

/// How well rows are filled when samples share them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PackingStats {
    /// Tokens of a row.
    pub length: u32,
    /// Images of a row at most.
    pub images: u32,
    /// Samples packed together.
    pub window: u32,
    /// Share of the rows' positions that hold a token; 0 without a row.
    pub utilisation: f64,
    /// The rest.
    pub padding: f64,
    /// What no plan can exceed with these lengths: limits of images and windows left out.
    pub utilisation_bound: f64,
    /// Rows.
    pub packs: u64,
    /// Rows that any plan needs at least.
    pub packs_at_least: u64,
    /// Samples that no row can hold; they are left out of all other numbers.
    pub too_long: u64,
    /// Samples in the fullest row.
    pub most_samples: u64,
    /// Images in the row with most.
    pub most_images: u64,
}

impl PaddingStats {
    /// `order`: the samples as an epoch has them.
    pub(super) fn of(order: &[RecordLengths], config: &StatsConfig) -> Self {
        let length = config.packing.tokens;
        let expanded = order.iter().map(|row| expanded_length(row, config.tokens_per_image));
        let mut lengths: Vec<u64> = expanded.filter(|&tokens| tokens <= u64::from(length)).collect();
        let tokens: u64 = lengths.iter().sum();
        let share = |positions: u64| 1.0 - tokens as f64 / positions.max(1) as f64;
        let batch = config.batch as usize;
        let fixed = share(lengths.len() as u64 * u64::from(length));
        let in_order = share(batch_positions(&lengths, batch));
        lengths.chunks_mut(batch * GROUPED_BATCHES).for_each(<[u64]>::sort_unstable);
        let by_length = share(batch_positions(&lengths, batch));
        let of = |share: f64| if tokens == 0 { 0.0 } else { share };
        Self { length, batch: config.batch, fixed: of(fixed), in_order: of(in_order), by_length: of(by_length) }
    }
}

/// Positions of all batches, each as long as its longest sample.
fn batch_positions(lengths: &[u64], batch: usize) -> u64 {
    lengths.chunks(batch).map(|batch| batch.len() as u64 * batch.iter().max().copied().unwrap_or(0)).sum()
}

/// The samples that a row can hold, in their order, and how many it cannot.
pub(super) fn packable(order: &[RecordLengths], tokens_per_image: u32, limits: PackLimits) -> (Vec<PackItem>, u64) {
    let item = |row: &RecordLengths| {
        let tokens = u32::try_from(expanded_length(row, tokens_per_image)).unwrap_or(u32::MAX);
        PackItem { tokens, images: row.num_images }
    };
    let fits = |item: &PackItem| item.tokens <= limits.tokens && item.images <= limits.images;
    let items: Vec<PackItem> = order.iter().map(item).filter(fits).collect();
    let too_long = (order.len() - items.len()) as u64;
    (items, too_long)
}

impl PackingStats {
    /// `order`: the samples as an epoch has them.
    pub(super) fn of(order: &[RecordLengths], config: &StatsConfig) -> Self {
        let limits = config.packing;
        let (items, too_long) = packable(order, config.tokens_per_image, limits);
        let plan = limits
            .pack_all(items.len() as u64, |place| items[place as usize])
            .expect("limits are checked and what exceeds them is left out");
        let packs_at_least = limits.rows_at_least(items.iter().map(|item| (*item, 1)));
        let images_of = |row: &Vec<u64>| row.iter().map(|&place| u64::from(items[place as usize].images)).sum::<u64>();
        let PackPlan { rows, tokens, .. } = &plan;
        // Rows that are not there are neither full nor empty.
        let utilisation = if rows.is_empty() { 0.0 } else { plan.utilisation() };
        let utilisation_bound = match packs_at_least {
            0 => 0.0,
            rows => *tokens as f64 / (rows as f64 * f64::from(limits.tokens)),
        };
        Self {
            length: limits.tokens,
            images: limits.images,
            window: limits.window,
            utilisation,
            padding: if rows.is_empty() { 0.0 } else { 1.0 - utilisation },
            utilisation_bound,
            packs: rows.len() as u64,
            packs_at_least,
            too_long,
            most_samples: rows.iter().map(Vec::len).max().unwrap_or(0) as u64,
            most_images: rows.iter().map(images_of).max().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use vela_types::SeedStream;

    use super::*;

    /// Lengths as LLaVA-Instruct-150K has them (docs/benchmarks): one image, text of 100 to 250 tokens.
    fn instruct_like(num: usize) -> Vec<RecordLengths> {
        let mut draw = SeedStream::new(13);
        (0..num)
            .map(|_| {
                let num_tokens = (160.0 * (0.25 * draw.normal_f64()).exp()) as u32 + 1;
                RecordLengths { num_tokens, num_label_tokens: num_tokens / 2, num_images: 1 }
            })
            .collect()
    }

    #[test]
    fn defect_13_fixed_padding_is_reported_and_grouping_or_packing_brings_it_below_a_tenth() {
        let order = instruct_like(20_000);
        for (tokens_per_image, below_a_tenth) in [(64, true), (196, true), (256, true), (576, false)] {
            let config = StatsConfig { tokens_per_image, ..StatsConfig::new("") };
            let (padding, packing) = (PaddingStats::of(&order, &config), PackingStats::of(&order, &config));
            assert!(padding.fixed > 0.6, "{padding:?}");
            assert!(padding.by_length < 0.1 && padding.by_length < padding.in_order, "{padding:?}");
            assert!(padding.in_order < padding.fixed, "{padding:?}");
            assert_eq!(packing.padding < 0.1, below_a_tenth, "{packing:?}");
            // Two samples of 576 + 160 tokens leave room for nothing else: no plan does better.
            assert!(packing.utilisation > 0.97 * packing.utilisation_bound, "{packing:?}");
            assert_eq!(packing.utilisation + packing.padding, 1.0);
        }
    }

    #[test]
    fn padding_is_the_share_of_positions_without_a_token() {
        let row = |num_tokens| RecordLengths { num_tokens, num_label_tokens: 1, num_images: 0 };
        let config =
            StatsConfig { batch: 2, packing: PackLimits { tokens: 10, images: 1, window: 8 }, ..StatsConfig::new("") };
        let order = [10, 2, 11, 4, 8].map(row);
        let padding = PaddingStats::of(&order, &config);
        assert_eq!((padding.fixed, padding.in_order), (1.0 - 24.0 / 40.0, 1.0 - 24.0 / 36.0));
        assert_eq!(padding.by_length, 1.0 - 24.0 / 28.0);
        let packing = PackingStats::of(&order, &config);
        assert_eq!((packing.packs, packing.packs_at_least, packing.too_long), (3, 3, 1));
        assert_eq!((packing.most_samples, packing.most_images), (2, 0));
    }

    #[test]
    fn no_samples_are_no_division_by_zero() {
        let config = StatsConfig::new("");
        let (padding, packing) = (PaddingStats::of(&[], &config), PackingStats::of(&[], &config));
        assert_eq!((padding.fixed, padding.in_order, padding.by_length), (0.0, 0.0, 0.0));
        assert_eq!(
            (packing.utilisation, packing.padding, packing.utilisation_bound, packing.packs),
            (0.0, 0.0, 0.0, 0)
        );
    }
}
