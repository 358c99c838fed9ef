//! A checked description of a model. It comes from a Hugging Face `config.json` (`hf.rs`) or from a TOML preset for
//! fresh weights (`preset.rs`); whichever way, nothing unchecked reaches the model.

mod hf;
mod hf_language;
mod lora;
mod preset;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use crate::init::InitConfig;
use crate::{ModelError, WeightDtype};
pub use lora::LoraConfig;
pub use preset::{LanguagePreset, ModelPreset, ProjectorPreset, VisionPreset};

/// A vision-language model: tower, projector, language model, and how image features enter the text.
#[derive(Clone, Debug, PartialEq)]
pub struct VlmConfig {
    /// The vision tower.
    pub vision: VisionConfig,
    /// Which of the tower's states become image features.
    pub features: FeatureConfig,
    /// From tower width to language width.
    pub projector: ProjectorConfig,
    /// The language model.
    pub language: LanguageConfig,
    /// The token that stands for image features in `ids`.
    pub image_token_id: u32,
    /// How fresh weights are drawn.
    pub init: InitConfig,
}

/// Family of a vision tower, as `vision_config.model_type` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VisionFamily {
    /// `clip_vision_model`.
    Clip,
    /// `chinese_clip_vision_model`: the same computation as CLIP's.
    ChineseClip,
    /// `siglip_vision_model`: no class token, no norm before the blocks, a bias in the patch embedding.
    Siglip,
}

/// Activation of a tower's or projector's feed-forward part, by its Hugging Face name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// GELU by the error function.
    #[serde(rename = "gelu")]
    Gelu,
    /// GELU by the tanh approximation.
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_new")]
    GeluTanh,
    /// None: `x` itself.
    #[serde(rename = "linear")]
    Identity,
}

/// Sizes of a vision tower.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
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
    /// Channels of an image.
    pub num_channels: usize,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f32,
    /// SigLIP's attention-pooling head is among the weights. It is kept and saved, never computed.
    pub pooling_head: bool,
}

/// Which hidden states of the tower become image features. State 0 enters the first block, state k leaves block k.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureConfig {
    /// States, by the index counted from 0; several are concatenated along the width.
    pub states: Vec<usize>,
    /// One index was written bare and not as a list (kept so that a saved config reads as the loaded one).
    pub single: bool,
    /// The class token stays among the features (strategy `full` on a tower that has one).
    pub keep_class_token: bool,
    /// The last state goes through the norm after the blocks, as SigLIP's `last_hidden_state` does.
    /// `LlavaForConditionalGeneration` cannot express it.
    pub post_norm: bool,
}

/// Form of a projector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectorKind {
    /// One linear layer, `linear_1`. `LlavaForConditionalGeneration` cannot express it.
    Linear,
    /// `linear_1`, activation, `linear_2`: LLaVA-1.5's and Hugging Face's projector.
    #[serde(rename = "mlp2x_gelu")]
    Mlp2xGelu,
    /// Layer norm `norm` before the two layers of `mlp2x_gelu`. `LlavaForConditionalGeneration` cannot express it.
    LnMlp,
}

/// Sizes of a projector; its widths follow from the tower and the language model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectorConfig {
    /// Form.
    pub kind: ProjectorKind,
    /// Activation between the two layers.
    pub activation: Activation,
    /// Linear layers have biases.
    pub bias: bool,
}

/// Family of a language model, as `text_config.model_type` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LanguageFamily {
    /// `qwen2`: biases on the query, key and value projections.
    Qwen2,
    /// `llama`: no biases. Also the first `minimind` models.
    Llama,
    /// `qwen3`: no biases, each query and key head normed. Also the later `minimind` models.
    Qwen3,
    /// `qwen`, the first one: query, key and value in one linear with a bias, names of its own.
    Qwen,
}

/// Llama 3's stretching of rotary frequencies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeScaling {
    /// Low frequencies are divided by this.
    pub factor: f64,
    /// Wavelengths above `original_max_positions / low_freq_factor` are divided in full.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
    pub high_freq_factor: f64,
    /// Context length the frequencies were trained for.
    pub original_max_positions: usize,
}

/// Sizes of a language model.
#[derive(Clone, Debug, PartialEq)]
pub struct LanguageConfig {
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
    /// Key and value heads; divides `num_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Longest row.
    pub max_positions: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Llama 3's stretching, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// The output head is the embedding table.
    pub tie_embeddings: bool,
    /// Adapters on its linears, if any.
    pub lora: Option<LoraConfig>,
    /// `bos_token_id`, `eos_token_id` and `pad_token_id` of the source config, passed through.
    pub token_ids: serde_json::Map<String, serde_json::Value>,
}

impl VisionFamily {
    /// The tower puts a class token before the patches.
    pub fn has_class_token(self) -> bool {
        !matches!(self, Self::Siglip)
    }
}

impl LanguageFamily {
    /// The query, key and value projections have biases.
    pub fn has_query_bias(self) -> bool {
        matches!(self, Self::Qwen2 | Self::Qwen)
    }

    /// Each query and key head goes through an RMS norm before it is rotated.
    pub fn norms_heads(self) -> bool {
        matches!(self, Self::Qwen3)
    }

    /// A class of `transformers` computes it.
    pub fn is_in_transformers(self) -> bool {
        !matches!(self, Self::Qwen)
    }
}

impl VisionConfig {
    /// Patches of an image.
    pub fn num_patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Positions inside the tower: patches and the class token.
    pub fn num_positions(&self) -> usize {
        self.num_patches() + usize::from(self.family.has_class_token())
    }
}

impl VlmConfig {
    /// Reads and checks `config.json` of a model folder.
    ///
    /// Errors name the key: unknown families and activations, sizes that do not divide, an `image_seq_length` that is
    /// not what the tower gives, strategy `default` on a tower without a class token, kinds of rotary scaling and
    /// attention that are not built.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        hf::load(dir)
    }

    /// The config of a model joined from a tower's folder and a language model's folder. A tower's folder may hold a
    /// whole CLIP, Chinese-CLIP or SigLIP model. Features are the second-last hidden state, without the class token.
    ///
    /// Errors: those of [`VlmConfig::load`]; an image token beyond the language model's vocabulary.
    pub fn join(
        vision_dir: &Path,
        language_dir: &Path,
        projector: &ProjectorPreset,
        image_token_id: u32,
    ) -> Result<Self, ModelError> {
        Self::join_unchecked(vision_dir, language_dir, projector, image_token_id)?.check()
    }

    /// [`VlmConfig::join`] of a vocabulary that may lack the image token yet.
    pub(crate) fn join_unchecked(
        vision_dir: &Path,
        language_dir: &Path,
        projector: &ProjectorPreset,
        image_token_id: u32,
    ) -> Result<Self, ModelError> {
        hf::join(vision_dir, language_dir, projector, image_token_id)
    }

    /// Takes the features from state `layer`, counted as Python does, through the tower's last norm if `norm`.
    pub(crate) fn set_features(&mut self, layer: i64, norm: bool) -> Result<(), ModelError> {
        self.features.states = vec![hf::resolve_state(layer, self.vision.num_layers)?];
        self.features.post_norm = norm;
        Ok(())
    }

    /// The same model with adapters on its language model's linears.
    ///
    /// Errors: numbers that make no adapter, a target that is no linear of the family.
    pub fn with_lora(mut self, lora: LoraConfig) -> Result<Self, ModelError> {
        self.language.lora = Some(lora);
        self.check()
    }

    /// Writes `config.json` as `LlavaForConditionalGeneration` has it. Keys of ours say what that class does not know
    /// and are absent where it does: `projector_type`, `vision_feature_norm`, `lora`.
    pub fn save(&self, dir: &Path) -> Result<(), ModelError> {
        self.save_as(dir, WeightDtype::F32)
    }

    /// [`VlmConfig::save`] beside weights of another element type.
    pub(crate) fn save_as(&self, dir: &Path, dtype: WeightDtype) -> Result<(), ModelError> {
        hf::save(self, dir, dtype)
    }

    /// Features (and so tokens) per image.
    pub fn image_tokens(&self) -> usize {
        let class_token = self.vision.family.has_class_token() && self.features.keep_class_token;
        self.vision.num_patches() + usize::from(class_token)
    }

    /// Width of an image feature before projection.
    pub fn feature_size(&self) -> usize {
        self.vision.hidden_size * self.features.states.len()
    }

    /// `transformers` can open what [`VlmConfig::save`] writes.
    pub fn opens_in_transformers(&self) -> bool {
        let language = &self.language;
        self.projector.kind == ProjectorKind::Mlp2xGelu
            && !self.features.post_norm
            && language.family.is_in_transformers()
            && language.lora.is_none()
    }

    /// Name and shape of every parameter, in name order: what a folder of such a model holds.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        crate::vlm::specs(self).into_iter().map(|(name, spec)| (name, spec.shape)).collect()
    }

    /// Checks what the types cannot.
    pub(crate) fn check(self) -> Result<Self, ModelError> {
        self.check_vision()?;
        self.check_language()?;
        let states = &self.features.states;
        if states.is_empty() || states.iter().any(|&state| state > self.vision.num_layers) {
            let expected = format!("states 0 to {}", self.vision.num_layers);
            return Err(ModelError::config("vision_feature_layer", expected, format!("{states:?}")));
        }
        if self.features.post_norm && states.as_slice() != [self.vision.num_layers] {
            let expected = format!("{}, the last: its norm is asked for", self.vision.num_layers);
            return Err(ModelError::config("vision_feature_layer", expected, format!("{states:?}")));
        }
        let vocab = self.language.vocab_size;
        if self.image_token_id as usize >= vocab {
            let expected = format!("an id below `text_config.vocab_size` {vocab}");
            return Err(ModelError::config("image_token_index", expected, self.image_token_id));
        }
        Ok(self)
    }

    fn check_vision(&self) -> Result<(), ModelError> {
        let vision = &self.vision;
        let sizes = [
            ("hidden_size", vision.hidden_size),
            ("intermediate_size", vision.intermediate_size),
            ("num_hidden_layers", vision.num_layers),
            ("num_attention_heads", vision.num_heads),
            ("image_size", vision.image_size),
            ("patch_size", vision.patch_size),
            ("num_channels", vision.num_channels),
        ];
        check_positive("vision_config", &sizes)?;
        check_divides("vision_config.hidden_size", vision.hidden_size, "num_attention_heads", vision.num_heads)?;
        if vision.patch_size > vision.image_size {
            let expected = format!("at most `image_size` {}", vision.image_size);
            return Err(ModelError::config("vision_config.patch_size", expected, vision.patch_size));
        }
        Ok(())
    }

    fn check_language(&self) -> Result<(), ModelError> {
        let language = &self.language;
        let sizes = [
            ("hidden_size", language.hidden_size),
            ("intermediate_size", language.intermediate_size),
            ("num_hidden_layers", language.num_layers),
            ("num_attention_heads", language.num_heads),
            ("num_key_value_heads", language.num_key_value_heads),
            ("head_dim", language.head_dim),
            ("vocab_size", language.vocab_size),
            ("max_position_embeddings", language.max_positions),
        ];
        check_positive("text_config", &sizes)?;
        let heads = language.num_heads;
        check_divides("text_config.num_attention_heads", heads, "num_key_value_heads", language.num_key_value_heads)?;
        check_divides("text_config.head_dim", language.head_dim, "the rotary pair", 2)?;
        self.check_qwen()?;
        language.lora.as_ref().map_or(Ok(()), |lora| lora.check(crate::language::linear_names(language.family)))
    }

    /// One linear gives query, key and value of the model's width each.
    fn check_qwen(&self) -> Result<(), ModelError> {
        let language = &self.language;
        if language.family != LanguageFamily::Qwen {
            return Ok(());
        }
        let (heads, width) = (language.num_heads, language.hidden_size);
        if language.num_key_value_heads != heads {
            let expected = format!("{heads}, as many as `num_attention_heads`: `qwen` shares none");
            return Err(ModelError::config("text_config.num_key_value_heads", expected, language.num_key_value_heads));
        }
        if heads * language.head_dim != width {
            let expected = format!("{width}, the width, as `num_attention_heads` times `kv_channels`");
            return Err(ModelError::config("text_config.kv_channels", expected, heads * language.head_dim));
        }
        match language.rope_scaling {
            Some(_) => Err(ModelError::config("text_config.rope_scaling", "none for `qwen`", "one")),
            None => Ok(()),
        }
    }
}

fn check_positive(section: &str, sizes: &[(&str, usize)]) -> Result<(), ModelError> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((key, _)) => Err(ModelError::config(&format!("{section}.{key}"), "at least 1", 0)),
        None => Ok(()),
    }
}

fn check_divides(key: &str, value: usize, by_name: &str, by: usize) -> Result<(), ModelError> {
    if value.is_multiple_of(by) {
        return Ok(());
    }
    Err(ModelError::config(key, format!("a multiple of {by_name} ({by})"), value))
}
