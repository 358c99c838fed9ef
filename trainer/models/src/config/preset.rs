//! TOML presets: models that start from fresh weights. The vocabulary is the processor's, unless the preset has more
//! rows.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::hf::resolve_state;
use super::{
    Activation, FeatureConfig, InitConfig, LanguageConfig, LanguageFamily, ProjectorConfig, ProjectorKind, RopeScaling,
    VisionConfig, VisionFamily, VlmConfig,
};
use crate::ModelError;

/// A model to be made with fresh weights; see `trainer/configs/model`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPreset {
    /// The vision tower.
    pub vision: VisionPreset,
    /// The projector.
    #[serde(default)]
    pub projector: ProjectorPreset,
    /// The language model.
    pub language: LanguagePreset,
    /// How fresh weights are drawn.
    #[serde(default)]
    pub init: InitConfig,
}

/// Sizes of a tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionPreset {
    /// Family.
    pub family: VisionFamily,
    /// Width.
    pub hidden_size: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Image height and width in pixels.
    pub image_size: usize,
    /// Patch height and width in pixels.
    pub patch_size: usize,
    /// Activation; the family's own by default.
    pub activation: Option<Activation>,
    /// Hidden state that becomes the image features, counted as Python does; -2 by default.
    #[serde(default = "second_last")]
    pub feature_layer: i64,
    /// The features are the last state after the tower's last norm; false by default.
    #[serde(default)]
    pub feature_norm: bool,
}

/// Form of a projector; `mlp2x_gelu` with biases by default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProjectorPreset {
    /// Form.
    pub kind: ProjectorKind,
    /// Linear layers have biases.
    pub bias: bool,
}

/// Sizes of a language model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguagePreset {
    /// Family.
    pub family: LanguageFamily,
    /// Width.
    pub hidden_size: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; `num_heads` by default.
    pub num_key_value_heads: Option<usize>,
    /// Width of a head; `hidden_size / num_heads` by default.
    pub head_dim: Option<usize>,
    /// Rows of the embedding table, where they are more than the processor has ids, as published models have.
    pub vocab_size: Option<usize>,
    /// Longest row; 2048 by default.
    #[serde(default = "default_max_positions")]
    pub max_positions: usize,
    /// Base of the rotary frequencies; 10000 by default.
    #[serde(default = "default_theta")]
    pub rope_theta: f64,
    /// Llama 3's stretching of rotary frequencies.
    pub rope_scaling: Option<RopeScaling>,
    /// Epsilon of the RMS norms; 1e-6 by default.
    #[serde(default = "default_eps")]
    pub rms_norm_eps: f32,
    /// The output head is the embedding table; true by default.
    #[serde(default = "yes")]
    pub tie_embeddings: bool,
}

impl Default for ProjectorPreset {
    fn default() -> Self {
        Self { kind: ProjectorKind::Mlp2xGelu, bias: true }
    }
}

fn second_last() -> i64 {
    -2
}

fn default_max_positions() -> usize {
    2048
}

fn default_theta() -> f64 {
    10_000.0
}

fn default_eps() -> f32 {
    1e-6
}

fn yes() -> bool {
    true
}

impl ModelPreset {
    /// Reads a preset file; unknown keys are refused.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        let text = fs::read_to_string(path).map_err(|source| ModelError::Read { path: path.to_owned(), source })?;
        let preset = toml::from_str(&text);
        preset.map_err(|source| ModelError::Preset { path: path.to_owned(), source: Box::new(source) })
    }

    /// The checked config for a processor with `vocab_size` ids, of which `image_token_id` stands for an image.
    pub fn config(&self, vocab_size: u32, image_token_id: u32) -> Result<VlmConfig, ModelError> {
        let vision = self.vision.config();
        let state = resolve_state(self.vision.feature_layer, vision.num_layers)?;
        // A tower without a class token can only be asked for all its states.
        let keep_class_token = !vision.family.has_class_token();
        let config = VlmConfig {
            features: FeatureConfig {
                states: vec![state],
                single: true,
                keep_class_token,
                post_norm: self.vision.feature_norm,
            },
            projector: ProjectorConfig {
                kind: self.projector.kind,
                activation: Activation::Gelu,
                bias: self.projector.bias,
            },
            language: self.language.config(vocab_size as usize)?,
            image_token_id,
            init: self.init.clone(),
            vision,
        };
        config.check()
    }
}

impl VisionPreset {
    fn config(&self) -> VisionConfig {
        let siglip = self.family == VisionFamily::Siglip;
        let own = if siglip { Activation::GeluTanh } else { Activation::QuickGelu };
        VisionConfig {
            family: self.family,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_layers: self.num_layers,
            num_heads: self.num_heads,
            image_size: self.image_size,
            patch_size: self.patch_size,
            num_channels: 3,
            activation: self.activation.unwrap_or(own),
            layer_norm_eps: if siglip { 1e-6 } else { 1e-5 },
            pooling_head: false,
        }
    }
}

impl LanguagePreset {
    fn config(&self, num_ids: usize) -> Result<LanguageConfig, ModelError> {
        let vocab_size = self.vocab_size.unwrap_or(num_ids);
        if vocab_size < num_ids {
            let expected = format!("at least the {num_ids} ids of the processor");
            return Err(ModelError::config("language.vocab_size", expected, vocab_size));
        }
        if self.num_heads == 0 {
            return Err(ModelError::config("language.num_heads", "at least 1", 0));
        }
        if self.head_dim.is_none() && !self.hidden_size.is_multiple_of(self.num_heads) {
            let expected = format!("a multiple of `num_heads` ({})", self.num_heads);
            return Err(ModelError::config("language.hidden_size", expected, self.hidden_size));
        }
        Ok(LanguageConfig {
            family: self.family,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_layers: self.num_layers,
            num_heads: self.num_heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(self.num_heads),
            head_dim: self.head_dim.unwrap_or(self.hidden_size / self.num_heads),
            vocab_size,
            max_positions: self.max_positions,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta: self.rope_theta,
            rope_scaling: self.rope_scaling.clone(),
            tie_embeddings: self.tie_embeddings,
            lora: None,
            token_ids: serde_json::Map::new(),
        })
    }
}
