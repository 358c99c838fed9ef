//! `config.json` of `LlavaForConditionalGeneration`, as transformers 4 and 5 write it, to and from [`VlmConfig`].
//!
//! Such a file carries many keys that do not bear on the computation, so unknown keys are passed over; known keys whose
//! value would change the computation into one that is not built are refused by name.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{
    Activation, FeatureConfig, InitConfig, LanguageConfig, LanguageFamily, ProjectorConfig, ProjectorKind,
    ProjectorPreset, RopeScaling, VisionConfig, VisionFamily, VlmConfig,
};
use crate::ModelError;

const CONFIG_FILE: &str = "config.json";

#[derive(Deserialize)]
struct HfConfig {
    model_type: String,
    vision_config: HfVision,
    text_config: HfText,
    #[serde(alias = "image_token_id")]
    image_token_index: u32,
    image_seq_length: Option<usize>,
    projector_hidden_act: Option<Activation>,
    #[serde(default = "yes")]
    multimodal_projector_bias: bool,
    /// Ours: absent in files of `transformers`.
    projector_type: Option<ProjectorKind>,
    #[serde(default)]
    vision_feature_layer: FeatureLayers,
    #[serde(default)]
    vision_feature_select_strategy: Strategy,
    tie_word_embeddings: Option<bool>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum FeatureLayers {
    One(i64),
    Many(Vec<i64>),
}

impl Default for FeatureLayers {
    fn default() -> Self {
        Self::One(-2)
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Strategy {
    #[default]
    Default,
    Full,
}

#[derive(Deserialize)]
struct HfVision {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    image_size: usize,
    patch_size: usize,
    #[serde(default = "three")]
    num_channels: usize,
    hidden_act: Option<Activation>,
    layer_norm_eps: Option<f32>,
    vision_use_head: Option<bool>,
}

/// The config of a tower alone, or of a two-tower model whose other half is text.
#[derive(Deserialize)]
#[serde(untagged)]
enum HfTower {
    Whole { vision_config: HfVision },
    Alone(HfVision),
}

impl HfTower {
    fn vision(self) -> HfVision {
        match self {
            Self::Whole { vision_config } => vision_config,
            Self::Alone(vision) => vision,
        }
    }
}

#[derive(Deserialize)]
struct HfText {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    #[serde(default = "default_max_positions")]
    max_position_embeddings: usize,
    #[serde(default = "default_rms_eps")]
    rms_norm_eps: f32,
    hidden_act: Option<String>,
    rope_theta: Option<f64>,
    rope_scaling: Option<HfRope>,
    rope_parameters: Option<HfRope>,
    tie_word_embeddings: Option<bool>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Clone, Deserialize)]
struct HfRope {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

fn yes() -> bool {
    true
}

fn three() -> usize {
    3
}

/// The class default of both `Qwen2Config` (32768) and `LlamaConfig` (2048) is safe at the larger: it sizes a table.
fn default_max_positions() -> usize {
    32_768
}

fn default_rms_eps() -> f32 {
    1e-6
}

pub(super) fn load(dir: &Path) -> Result<VlmConfig, ModelError> {
    checked(read(dir)?)
}

pub(super) fn join(
    vision_dir: &Path,
    language_dir: &Path,
    projector: &ProjectorPreset,
    image_token_id: u32,
) -> Result<VlmConfig, ModelError> {
    let vision = vision(read::<HfTower>(vision_dir)?.vision())?;
    let strategy = if vision.family.has_class_token() { Strategy::Default } else { Strategy::Full };
    let config = VlmConfig {
        features: features(&FeatureLayers::default(), strategy, &vision)?,
        projector: ProjectorConfig { kind: projector.kind, activation: Activation::Gelu, bias: projector.bias },
        language: language(read(language_dir)?, None)?,
        image_token_id,
        init: InitConfig::default(),
        vision,
    };
    config.check()
}

fn read<T: DeserializeOwned>(dir: &Path) -> Result<T, ModelError> {
    let path = dir.join(CONFIG_FILE);
    let text = fs::read_to_string(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
    serde_json::from_str(&text).map_err(|source| ModelError::Json { path, source })
}

pub(super) fn save(config: &VlmConfig, dir: &Path) -> Result<(), ModelError> {
    let path = dir.join(CONFIG_FILE);
    let text = format!("{:#}\n", to_json(config));
    fs::write(&path, text).map_err(|source| ModelError::Write { path, source })
}

fn checked(raw: HfConfig) -> Result<VlmConfig, ModelError> {
    if raw.model_type != "llava" {
        return Err(ModelError::config("model_type", "`llava`", format!("`{}`", raw.model_type)));
    }
    let vision = vision(raw.vision_config)?;
    let features = features(&raw.vision_feature_layer, raw.vision_feature_select_strategy, &vision)?;
    let activation = raw.projector_hidden_act.unwrap_or(Activation::Gelu);
    let kind = raw.projector_type.unwrap_or(ProjectorKind::Mlp2xGelu);
    let config = VlmConfig {
        language: language(raw.text_config, raw.tie_word_embeddings)?,
        projector: ProjectorConfig { kind, activation, bias: raw.multimodal_projector_bias },
        image_token_id: raw.image_token_index,
        init: InitConfig::default(),
        vision,
        features,
    };
    let config = config.check()?;
    match raw.image_seq_length {
        Some(found) if found != config.image_tokens() => {
            let expected = format!("{}, what the vision tower gives per image", config.image_tokens());
            Err(ModelError::config("image_seq_length", expected, found))
        }
        _ => Ok(config),
    }
}

/// Resolves feature layers as Python indexes `hidden_states`, and what becomes of the class token.
///
/// `default` drops state 0 of each image. A tower without a class token would lose its first patch, so the pair is
/// refused.
fn features(layers: &FeatureLayers, strategy: Strategy, vision: &VisionConfig) -> Result<FeatureConfig, ModelError> {
    let (layers, single) = match layers {
        FeatureLayers::One(layer) => (vec![*layer], true),
        FeatureLayers::Many(layers) => (layers.clone(), false),
    };
    let states: Result<Vec<usize>, _> = layers.iter().map(|&layer| resolve_state(layer, vision.num_layers)).collect();
    if strategy == Strategy::Default && !vision.family.has_class_token() {
        return Err(ModelError::config(
            "vision_feature_select_strategy",
            "`full`: a siglip tower has no class token, `default` would drop the first patch",
            "`default`",
        ));
    }
    Ok(FeatureConfig { states: states?, single, keep_class_token: strategy == Strategy::Full })
}

/// The index from 0 of state `layer` of a tower of `num_layers` blocks; negative ones count from the last.
pub(super) fn resolve_state(layer: i64, num_layers: usize) -> Result<usize, ModelError> {
    let num_states = num_layers as i64 + 1;
    let state = if layer < 0 { layer + num_states } else { layer };
    match usize::try_from(state) {
        Ok(state) if state <= num_layers => Ok(state),
        _ => Err(ModelError::config("vision_feature_layer", format!("{} to {num_layers}", -num_states), layer)),
    }
}

fn vision(raw: HfVision) -> Result<VisionConfig, ModelError> {
    let family = match raw.model_type.as_str() {
        "clip_vision_model" => VisionFamily::Clip,
        "chinese_clip_vision_model" => VisionFamily::ChineseClip,
        "siglip_vision_model" => VisionFamily::Siglip,
        other => {
            let expected = "`clip_vision_model`, `chinese_clip_vision_model` or `siglip_vision_model`";
            return Err(ModelError::config("vision_config.model_type", expected, format!("`{other}`")));
        }
    };
    let siglip = family == VisionFamily::Siglip;
    Ok(VisionConfig {
        family,
        hidden_size: raw.hidden_size,
        intermediate_size: raw.intermediate_size,
        num_layers: raw.num_hidden_layers,
        num_heads: raw.num_attention_heads,
        image_size: raw.image_size,
        patch_size: raw.patch_size,
        num_channels: raw.num_channels,
        activation: raw.hidden_act.unwrap_or(if siglip { Activation::GeluTanh } else { Activation::QuickGelu }),
        layer_norm_eps: raw.layer_norm_eps.unwrap_or(if siglip { 1e-6 } else { 1e-5 }),
        pooling_head: siglip && raw.vision_use_head.unwrap_or(true),
    })
}

fn language(raw: HfText, outer_tie: Option<bool>) -> Result<LanguageConfig, ModelError> {
    let family = match raw.model_type.as_str() {
        "qwen2" => LanguageFamily::Qwen2,
        "llama" => LanguageFamily::Llama,
        other => return Err(ModelError::config("text_config.model_type", "`qwen2` or `llama`", format!("`{other}`"))),
    };
    refuse_unbuilt(&raw)?;
    if raw.head_dim.is_none() && !raw.hidden_size.is_multiple_of(raw.num_attention_heads.max(1)) {
        let expected = format!("a multiple of num_attention_heads ({})", raw.num_attention_heads);
        return Err(ModelError::config("text_config.hidden_size", expected, raw.hidden_size));
    }
    let (rope_theta, rope_scaling) = rope(&raw)?;
    let token_keys = ["bos_token_id", "eos_token_id", "pad_token_id"];
    let token_ids = raw.rest.into_iter().filter(|(key, _)| token_keys.contains(&key.as_str())).collect();
    Ok(LanguageConfig {
        family,
        hidden_size: raw.hidden_size,
        intermediate_size: raw.intermediate_size,
        num_layers: raw.num_hidden_layers,
        num_heads: raw.num_attention_heads,
        num_key_value_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
        head_dim: raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads.max(1)),
        vocab_size: raw.vocab_size,
        max_positions: raw.max_position_embeddings,
        rms_norm_eps: raw.rms_norm_eps,
        rope_theta,
        rope_scaling,
        // As `LlavaConfig`: either level may say so.
        tie_embeddings: outer_tie.unwrap_or(false) || raw.tie_word_embeddings.unwrap_or(false),
        token_ids,
    })
}

fn refuse_unbuilt(raw: &HfText) -> Result<(), ModelError> {
    if let Some(act) = raw.hidden_act.as_deref().filter(|act| *act != "silu") {
        return Err(ModelError::config("text_config.hidden_act", "`silu`", format!("`{act}`")));
    }
    let flags = [
        ("text_config.attention_bias", raw.attention_bias),
        ("text_config.mlp_bias", raw.mlp_bias),
        ("text_config.use_sliding_window", raw.use_sliding_window),
    ];
    match flags.iter().find(|(_, set)| *set) {
        Some((key, _)) => Err(ModelError::config(key, "false", true)),
        None => Ok(()),
    }
}

/// Rotary base and scaling from either generation of keys: `rope_parameters` (transformers 5) wins over
/// `rope_theta` and `rope_scaling`.
fn rope(raw: &HfText) -> Result<(f64, Option<RopeScaling>), ModelError> {
    let rope = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref());
    let theta = raw.rope_parameters.as_ref().and_then(|rope| rope.rope_theta).or(raw.rope_theta).unwrap_or(10_000.0);
    let Some(rope) = rope else { return Ok((theta, None)) };
    let need = |key: &str| ModelError::config(&format!("text_config.rope_parameters.{key}"), "a number", "none");
    match rope.rope_type.as_deref() {
        None | Some("default") => Ok((theta, None)),
        Some("llama3") => Ok((
            theta,
            Some(RopeScaling {
                factor: rope.factor.ok_or_else(|| need("factor"))?,
                low_freq_factor: rope.low_freq_factor.ok_or_else(|| need("low_freq_factor"))?,
                high_freq_factor: rope.high_freq_factor.ok_or_else(|| need("high_freq_factor"))?,
                original_max_positions: rope
                    .original_max_position_embeddings
                    .ok_or_else(|| need("original_max_position_embeddings"))?,
            }),
        )),
        Some(other) => Err(ModelError::config(
            "text_config.rope_parameters.rope_type",
            "`default` or `llama3`",
            format!("`{other}`"),
        )),
    }
}

fn to_json(config: &VlmConfig) -> Value {
    let states: Vec<i64> = config.features.states.iter().map(|&state| signed_state(state, &config.vision)).collect();
    let mut json = json!({
        "architectures": ["LlavaForConditionalGeneration"],
        "dtype": "float32",
        "image_seq_length": config.image_tokens(),
        "image_token_index": config.image_token_id,
        "model_type": "llava",
        "multimodal_projector_bias": config.projector.bias,
        "projector_hidden_act": config.projector.activation,
        "text_config": language_json(config),
        "tie_word_embeddings": config.language.tie_embeddings,
        "vision_config": vision_json(config),
        "vision_feature_layer": if config.features.single { json!(states[0]) } else { json!(states) },
        "vision_feature_select_strategy": if config.features.keep_class_token { "full" } else { "default" },
    });
    if config.projector.kind != ProjectorKind::Mlp2xGelu {
        json["projector_type"] = json!(config.projector.kind);
    }
    json
}

/// States are written counted from the last, as published configs do.
fn signed_state(state: usize, vision: &VisionConfig) -> i64 {
    state as i64 - (vision.num_layers as i64 + 1)
}

fn vision_json(config: &VlmConfig) -> Value {
    let vision = &config.vision;
    let mut json = json!({
        "attention_dropout": 0.0,
        "hidden_act": vision.activation,
        "hidden_size": vision.hidden_size,
        "image_size": vision.image_size,
        "initializer_range": config.init.std,
        "intermediate_size": vision.intermediate_size,
        "layer_norm_eps": decimal(vision.layer_norm_eps),
        "model_type": match vision.family {
            VisionFamily::Clip => "clip_vision_model",
            VisionFamily::ChineseClip => "chinese_clip_vision_model",
            VisionFamily::Siglip => "siglip_vision_model",
        },
        "num_attention_heads": vision.num_heads,
        "num_channels": vision.num_channels,
        "num_hidden_layers": vision.num_layers,
        "patch_size": vision.patch_size,
    });
    if vision.family == VisionFamily::Siglip {
        json["vision_use_head"] = json!(vision.pooling_head);
    }
    json
}

/// Both generations of rotary keys are written, so that transformers 4 and 5 read the same model.
fn language_json(config: &VlmConfig) -> Value {
    let language = &config.language;
    let mut json = json!({
        "attention_dropout": 0.0,
        "head_dim": language.head_dim,
        "hidden_act": "silu",
        "hidden_size": language.hidden_size,
        "initializer_range": config.init.std,
        "intermediate_size": language.intermediate_size,
        "max_position_embeddings": language.max_positions,
        "model_type": match language.family {
            LanguageFamily::Qwen2 => "qwen2",
            LanguageFamily::Llama => "llama",
        },
        "num_attention_heads": language.num_heads,
        "num_hidden_layers": language.num_layers,
        "num_key_value_heads": language.num_key_value_heads,
        "rms_norm_eps": decimal(language.rms_norm_eps),
        "rope_theta": language.rope_theta,
        "tie_word_embeddings": language.tie_embeddings,
        "use_cache": true,
        "vocab_size": language.vocab_size,
    });
    let mut rope = json!({ "rope_theta": language.rope_theta, "rope_type": "default" });
    if let Some(scaling) = &language.rope_scaling {
        rope["rope_type"] = json!("llama3");
        rope["factor"] = json!(scaling.factor);
        rope["low_freq_factor"] = json!(scaling.low_freq_factor);
        rope["high_freq_factor"] = json!(scaling.high_freq_factor);
        rope["original_max_position_embeddings"] = json!(scaling.original_max_positions);
        json["rope_scaling"] = rope.clone();
    }
    json["rope_parameters"] = rope;
    for (key, value) in &language.token_ids {
        json[key.as_str()] = value.clone();
    }
    json
}

/// An f32 as the shortest decimal that reads back as it, instead of the nearest f64's long expansion.
fn decimal(value: f32) -> Value {
    let shortest: f64 = value.to_string().parse().unwrap_or(f64::from(value));
    json!(shortest)
}
