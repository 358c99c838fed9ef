//! The arithmetic that a step requires: what model FLOP utilisation is counted in.
//!
//! Matrix products alone, a multiplication and an addition each one operation. Recomputation, padding and work for frozen
//! weights do not count as required, whatever the code does.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use vela_kernels::linear;
use vela_models::{Vlm, VlmConfig};

use crate::error::TrainError;
use crate::groups::Component;

/// Products of the test for a machine's peak: large enough to be bound by arithmetic, small enough to be over soon.
const PEAK_EXTENT: usize = 768;
/// How long the machine is tested.
const PEAK_PERIOD: Duration = Duration::from_millis(150);

/// What a step is made of, padding left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StepSize {
    /// Tokens, image tokens included.
    pub(crate) tokens: u64,
    /// Predicted tokens.
    pub(crate) label_tokens: u64,
    /// Images.
    pub(crate) images: u64,
    /// Pairs of tokens of which one attends to the other.
    pub(crate) pairs: u64,
}

/// Operations by what they are needed for, forward and backward together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct FlopCount {
    per_token: f64,
    per_label_token: f64,
    per_image: f64,
    per_pair: f64,
}

/// What a matrix is multiplied with.
enum Rows {
    Tokens,
    LabelTokens,
    /// So many rows per image.
    Images(f64),
    /// It is not computed with, or only looked up.
    None,
}

impl FlopCount {
    /// The count of `model`, given which of its parameters train and whether its tower has done its work before.
    pub(crate) fn new(model: &Vlm, from_features: bool) -> Self {
        let (config, mut count) = (model.config(), Self::default());
        let trains = |component| model.params().trainable().any(|(name, _)| Component::of(name) == Some(component));
        let trains_tower = trains(Component::VisionTower);
        for (name, tensor, trainable) in model.params().iter() {
            // The last two axes of a patch embedding are columns of its matrix.
            let values = if tensor.rank() < 2 { 0.0 } else { tensor.elem_count() as f64 };
            // Forward; the gradient of the inputs, where something before learns; the gradient of the weights.
            let passes_on = match name.starts_with("vision_tower.") {
                // Nothing learns before the patches.
                true => trains_tower && !name.contains(".patch_embedding."),
                false => true,
            };
            let products = 1.0 + f64::from(u8::from(passes_on)) + f64::from(u8::from(trainable));
            if !(from_features && name.starts_with("vision_tower.")) {
                count.add(rows_of(name, config), 2.0 * values * products);
            }
        }
        count.add_attention(
            config,
            if from_features {
                0.0
            } else if trains_tower {
                3.0
            } else {
                1.0
            },
        );
        count
    }

    fn add(&mut self, rows: Rows, operations: f64) {
        match rows {
            Rows::Tokens => self.per_token += operations,
            Rows::LabelTokens => self.per_label_token += operations,
            Rows::Images(rows) => self.per_image += rows * operations,
            Rows::None => {}
        }
    }

    /// Scores and weighted sums, two products forward and four backward; so many times that of the tower.
    fn add_attention(&mut self, config: &VlmConfig, tower_passes: f64) {
        let language = &config.language;
        let width = (language.num_heads * language.head_dim * language.num_layers) as f64;
        self.per_pair += 3.0 * 4.0 * width;
        let (vision, positions) = (&config.vision, config.vision.num_positions() as f64);
        let blocks = config.features.states.iter().copied().max().unwrap_or(0);
        self.per_image += tower_passes * 4.0 * (blocks * vision.hidden_size) as f64 * positions * positions;
    }

    /// Operations of a step.
    pub(crate) fn of(&self, size: &StepSize) -> f64 {
        self.per_token * size.tokens as f64
            + self.per_label_token * size.label_tokens as f64
            + self.per_image * size.images as f64
            + self.per_pair * size.pairs as f64
    }
}

fn rows_of(name: &str, config: &VlmConfig) -> Rows {
    let vision = &config.vision;
    let blocks = config.features.states.iter().copied().max().unwrap_or(0);
    match name.split('.').next() {
        Some("language_model") if name.contains(".embed_tokens.") || name.contains(".wte.") => {
            match config.language.tie_embeddings {
                true => Rows::LabelTokens,
                false => Rows::None,
            }
        }
        Some("language_model") if name.contains("lm_head.") => Rows::LabelTokens,
        Some("language_model") => Rows::Tokens,
        Some("multi_modal_projector") => Rows::Images(config.image_tokens() as f64),
        Some("vision_tower") if name.contains(".patch_embedding.") => Rows::Images(vision.num_patches() as f64),
        Some("vision_tower") => match block_of(name) {
            Some(block) if block < blocks => Rows::Images(vision.num_positions() as f64),
            _ => Rows::None,
        },
        _ => Rows::None,
    }
}

/// `3` of `vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight`.
fn block_of(name: &str) -> Option<usize> {
    name.split_once(".layers.")?.1.split('.').next()?.parse().ok()
}

/// Pairs of tokens that attend to one another in rows of `columns` whose documents are numbered from 1.
pub(crate) fn causal_pairs(documents: &[i32], columns: usize) -> u64 {
    let runs = documents.chunks(columns.max(1)).flat_map(|row| row.chunk_by(|a, b| a == b));
    let pairs = |run: &[i32]| if run[0] == 0 { 0 } else { (run.len() * (run.len() + 1) / 2) as u64 };
    runs.map(pairs).sum()
}

/// Operations per second of square f32 products, the best of several: what this machine can do with this build.
pub(crate) fn measure_peak(device: &Device) -> Result<f64, TrainError> {
    let matrix = Tensor::ones((PEAK_EXTENT, PEAK_EXTENT), DType::F32, device)?;
    let (started, mut best) = (Instant::now(), f64::INFINITY);
    while started.elapsed() < PEAK_PERIOD {
        let before = Instant::now();
        linear(&matrix, &matrix, None)?;
        best = best.min(before.elapsed().as_secs_f64());
    }
    Ok(2.0 * (PEAK_EXTENT as f64).powi(3) / best)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vela_models::ModelPreset;

    use super::*;

    fn model(trainable: &dyn Fn(&str) -> bool) -> Vlm {
        let preset = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/model/mllm_en_tiny.toml");
        let config = ModelPreset::load(&preset).and_then(|preset| preset.config(1000, 3)).expect("a right preset");
        Vlm::init(config, 1, trainable, &Device::Cpu).expect("a model")
    }

    /// By hand, from the preset: width 64, 2 blocks, 4 heads and 2 groups of 16, inner 192, tied vocabulary of 1,000; a
    /// tower of width 64, inner 256, 3 blocks of which the first two are computed, 144 patches of 32 x 32 x 3.
    #[test]
    fn operations_are_those_of_the_formulas() {
        let block = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 192;
        let patches = 2 * 144 * 3 * 32 * 32 * 64;
        let tower = 2 * 144 * 2 * (4 * 64 * 64 + 2 * 64 * 256);
        let scores = 4 * 2 * 64 * 144 * 144;
        let projector = 144 * 2 * 64 * 64;
        let frozen = FlopCount::new(&model(&|name| name.starts_with("multi_modal_projector.")), false);
        let expected = FlopCount {
            per_token: f64::from(2 * 2 * 2 * block),
            per_label_token: f64::from(2 * 2 * 64_000),
            per_image: f64::from(patches + tower + scores) + f64::from(3 * 2 * projector),
            per_pair: f64::from(3 * 4 * 2 * 64),
        };
        assert_eq!(frozen, expected);
        let encoded = FlopCount::new(&model(&|name| name.starts_with("multi_modal_projector.")), true);
        assert_eq!(encoded, FlopCount { per_image: f64::from(3 * 2 * projector), ..expected });
        let full = FlopCount::new(&model(&|_| true), false);
        let expected = FlopCount {
            per_token: expected.per_token * 1.5,
            per_label_token: expected.per_label_token * 1.5,
            per_image: f64::from(2 * patches + 3 * (tower + scores)) + f64::from(3 * 2 * projector),
            ..expected
        };
        assert_eq!(full, expected);
        let size = StepSize { tokens: 10, label_tokens: 2, images: 1, pairs: 55 };
        let sum = 10.0 * full.per_token + 2.0 * full.per_label_token + full.per_image + 55.0 * full.per_pair;
        assert_eq!(full.of(&size), sum);
    }

    #[test]
    fn pairs_stay_within_documents() {
        assert_eq!(causal_pairs(&[1, 1, 1, 2, 0, 0, 1, 1, 2, 2, 2, 2], 6), 6 + 1 + 3 + 10);
        assert_eq!(causal_pairs(&[1, 1, 1, 1], 2), 3 + 3);
    }

    #[test]
    fn a_machine_does_something() {
        assert!(measure_peak(&Device::Cpu).expect("measured") > 1e8);
    }
}
