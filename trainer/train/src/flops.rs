//! The arithmetic that a step requires: what model FLOP utilisation is counted in.
//!
//! Matrix products alone, a multiplication and an addition each one operation. Recomputation, padding and work for frozen
//! weights do not count as required, whatever the code does.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use vela_kernels::linear;
use vela_models::{Vlm, VlmConfig};

use crate::error::TrainError;
use crate::groups::block_of;

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
        let first_learner = model.params().trainable().map(|(name, _)| Place::of(name)).min();
        // Whether the inputs of what stands there need a gradient.
        let passes_on = |place: Place| first_learner.is_some_and(|first| first < place);
        for (name, tensor, trainable) in model.params().iter() {
            // The last two axes of a patch embedding are columns of its matrix.
            let values = if tensor.rank() < 2 { 0.0 } else { tensor.elem_count() as f64 };
            let rows = rows_of(name, config);
            // A tied table is multiplied with as the head.
            let place = if matches!(rows, Rows::LabelTokens) { Place::HEAD } else { Place::of(name) };
            // Forward; the gradient of the inputs, where something before learns; the gradient of the weights.
            let products = 1.0 + f64::from(u8::from(passes_on(place))) + f64::from(u8::from(trainable));
            if !(from_features && name.starts_with("vision_tower.")) {
                count.add(rows, 2.0 * values * products);
            }
        }
        count.add_attention(config, from_features, &passes_on);
        count
    }

    /// So many operations per token: for tests of what counts with them.
    #[cfg(test)]
    pub(crate) fn for_test(per_token: f64) -> Self {
        Self { per_token, ..Self::default() }
    }

    fn add(&mut self, rows: Rows, operations: f64) {
        match rows {
            Rows::Tokens => self.per_token += operations,
            Rows::LabelTokens => self.per_label_token += operations,
            Rows::Images(rows) => self.per_image += rows * operations,
            Rows::None => {}
        }
    }

    /// Scores and weighted sums: two products forward and, where something before learns, four backward.
    fn add_attention(&mut self, config: &VlmConfig, from_features: bool, passes_on: &dyn Fn(Place) -> bool) {
        let passes = |part, blocks| -> f64 {
            let of_block = |block| if passes_on(Place::attention(part, block)) { 3.0 } else { 1.0 };
            (0..blocks).map(of_block).sum()
        };
        let (language, vision) = (&config.language, &config.vision);
        let width = (language.num_heads * language.head_dim) as f64;
        self.per_pair += 4.0 * width * passes(Part::LanguageModel, language.num_layers);
        let positions = vision.num_positions() as f64;
        let blocks = if from_features { 0 } else { computed_blocks(config) };
        self.per_image += 4.0 * vision.hidden_size as f64 * positions * positions * passes(Part::Tower, blocks);
    }

    /// Operations of a step.
    pub(crate) fn of(&self, size: &StepSize) -> f64 {
        self.per_token * size.tokens as f64
            + self.per_label_token * size.label_tokens as f64
            + self.per_image * size.images as f64
            + self.per_pair * size.pairs as f64
    }
}

/// Blocks of the tower whose results are taken, or needed for one that is.
fn computed_blocks(config: &VlmConfig) -> usize {
    config.features.states.iter().copied().max().unwrap_or(0)
}

/// In the order of computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Tower,
    Projector,
    LanguageModel,
}

/// Where a parameter stands in the order of computation: part, block (counted from 1, after what comes before the blocks), and
/// place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place(Part, usize, usize);

/// Modules in the order of computation, of a block or of a projector; those of an entry stand side by side.
const MODULES: [&[&str]; 8] = [
    &[".input_layernorm.", ".ln_1.", ".layer_norm1.", "projector.norm."],
    &[".q_proj.", ".k_proj.", ".v_proj.", ".c_attn.", ".linear_1."],
    &[".q_norm.", ".k_norm.", ".linear_2."],
    // Scores and weighted sums: no parameter.
    &[],
    &[".o_proj.", ".attn.c_proj.", ".out_proj."],
    &[".post_attention_layernorm.", ".ln_2.", ".layer_norm2."],
    &[".gate_proj.", ".up_proj.", ".mlp.w1.", ".mlp.w2.", ".fc1."],
    &[".down_proj.", ".mlp.c_proj.", ".fc2."],
];
const ATTENTION: usize = 3;

impl Place {
    const HEAD: Self = Self(Part::LanguageModel, usize::MAX, 1);

    fn of(name: &str) -> Self {
        let part = match name.split('.').next() {
            Some("vision_tower") => Part::Tower,
            Some("multi_modal_projector") => Part::Projector,
            _ => Part::LanguageModel,
        };
        let has = |modules: &&[&str]| modules.iter().any(|module| name.contains(module));
        let module = MODULES.iter().position(has).unwrap_or(0);
        // An adapter's second matrix comes after its first.
        let within = 2 * module + usize::from(name.contains(".lora_B."));
        match block_of(name) {
            Some(block) => Self(part, block + 1, within),
            None if part == Part::Projector => Self(part, 0, within),
            None if name.contains("lm_head.") => Self::HEAD,
            None if name.contains("embed") || name.contains(".wte.") || name.contains(".pre_layrnorm.") => {
                Self(part, 0, 0)
            }
            None => Self(part, usize::MAX, 0),
        }
    }

    fn attention(part: Part, block: usize) -> Self {
        Self(part, block + 1, 2 * ATTENTION)
    }
}

fn rows_of(name: &str, config: &VlmConfig) -> Rows {
    let vision = &config.vision;
    let blocks = computed_blocks(config);
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
            // Nothing learns before the projector's first layer, whose inputs need no gradient.
            per_image: f64::from(patches + tower + scores) + f64::from((2 + 3) * projector),
            per_pair: f64::from(3 * 4 * 2 * 64),
        };
        assert_eq!(frozen, expected);
        let encoded = FlopCount::new(&model(&|name| name.starts_with("multi_modal_projector.")), true);
        assert_eq!(encoded, FlopCount { per_image: f64::from((2 + 3) * projector), ..expected });
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

    /// With a frozen projector nothing before the second block learns: the first is computed forward alone.
    #[test]
    fn blocks_before_the_first_that_learns_need_no_gradient() {
        let (queries, outputs) = (64 * 64 + 2 * 64 * 32, 64 * 64);
        let (inner, block) = (3 * 64 * 192, 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 192);
        let last = FlopCount::new(&model(&|name| name.contains("language_model.model.layers.1.")), true);
        assert_eq!(last.per_token, f64::from(2 * block + 2 * 3 * block));
        assert_eq!(last.per_pair, f64::from((1 + 3) * 4 * 64));
        // Its norms learn, so that even its first linears pass a gradient on; without the first norm they do not.
        let late = |name: &str| name.contains("model.layers.1.") && !name.contains("input_layernorm");
        let late = FlopCount::new(&model(&late), true);
        assert_eq!(late.per_token, f64::from(2 * block + 2 * 2 * queries + 2 * 3 * (outputs + inner)));
        let down = FlopCount::new(&model(&|name| name.contains("model.layers.1.mlp.down_proj")), true);
        assert_eq!((down.per_token, down.per_pair), (f64::from(2 * 2 * block + 2 * 64 * 192), f64::from(2 * 4 * 64)));
        // The image's way to the loss is not asked for: the projector is computed forward.
        assert_eq!(down.per_image, f64::from(2 * 144 * 2 * 64 * 64));
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
