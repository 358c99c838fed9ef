//! `config.json` of `LlavaForConditionalGeneration`, as transformers 4 and 5 write it, to and from [`VlmConfig`].
//!
//! Such a file carries many keys that do not bear on the computation, so unknown keys are passed over; known keys whose
//! value would change the computation into one that is not built are refused by name.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::hf_language;
use super::{
    Activation, FeatureConfig, InitConfig, LanguageConfig, LoraConfig, ProjectorConfig, ProjectorKind, ProjectorPreset,
    VisionConfig, VisionFamily, VlmConfig,
};
use crate::{ModelError, WeightDtype};

const CONFIG_FILE: &str = "config.json";

#[derive(Deserialize)]
struct HfConfig {
    model_type: String,
    vision_config: HfVision,
    text_config: Value,
    #[serde(alias = "image_token_id")]
    image_token_index: u32,
    image_seq_length: Option<usize>,
    projector_hidden_act: Option<Activation>,
    #[serde(default = "yes")]
    multimodal_projector_bias: bool,
    /// Ours, as the next two: absent in files of `transformers`.
    projector_type: Option<ProjectorKind>,
    #[serde(default)]
    vision_feature_norm: bool,
    lora: Option<LoraConfig>,
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
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    num_channels: Option<usize>,
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

fn yes() -> bool {
    true
}

pub(super) fn load(dir: &Path) -> Result<VlmConfig, ModelError> {
    checked(read(dir)?, &dir.join(CONFIG_FILE))
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
        language: hf_language::read(read(language_dir)?, None, &language_dir.join(CONFIG_FILE))?,
        image_token_id,
        init: InitConfig::default(),
        vision,
    };
    Ok(config)
}

fn read<T: DeserializeOwned>(dir: &Path) -> Result<T, ModelError> {
    let path = dir.join(CONFIG_FILE);
    let text = fs::read_to_string(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
    serde_json::from_str(&text).map_err(|source| ModelError::Json { path, source })
}

pub(super) fn save(config: &VlmConfig, dir: &Path, dtype: WeightDtype) -> Result<(), ModelError> {
    let path = dir.join(CONFIG_FILE);
    let mut json = to_json(config);
    json["dtype"] = json!(dtype.torch_name());
    let text = format!("{json:#}\n");
    fs::write(&path, text).map_err(|source| ModelError::Write { path, source })
}

fn checked(raw: HfConfig, path: &Path) -> Result<VlmConfig, ModelError> {
    if raw.model_type != "llava" {
        return Err(ModelError::config("model_type", "`llava`", format!("`{}`", raw.model_type)));
    }
    let vision = vision(raw.vision_config)?;
    let features = FeatureConfig {
        post_norm: raw.vision_feature_norm,
        ..features(&raw.vision_feature_layer, raw.vision_feature_select_strategy, &vision)?
    };
    let activation = raw.projector_hidden_act.unwrap_or(Activation::Gelu);
    let kind = raw.projector_type.unwrap_or(ProjectorKind::Mlp2xGelu);
    let config = VlmConfig {
        language: LanguageConfig {
            lora: raw.lora,
            ..hf_language::read(raw.text_config, raw.tie_word_embeddings, path)?
        },
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
    Ok(FeatureConfig { states: states?, single, keep_class_token: strategy == Strategy::Full, post_norm: false })
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
    // What a published file leaves out is the value of its class: a ViT-B, of patches of 32 or 16 pixels.
    Ok(VisionConfig {
        family,
        hidden_size: raw.hidden_size.unwrap_or(768),
        intermediate_size: raw.intermediate_size.unwrap_or(3072),
        num_layers: raw.num_hidden_layers.unwrap_or(12),
        num_heads: raw.num_attention_heads.unwrap_or(12),
        image_size: raw.image_size.unwrap_or(224),
        patch_size: raw.patch_size.unwrap_or(if siglip { 16 } else { 32 }),
        num_channels: raw.num_channels.unwrap_or(3),
        activation: raw.hidden_act.unwrap_or(if siglip { Activation::GeluTanh } else { Activation::QuickGelu }),
        layer_norm_eps: raw.layer_norm_eps.unwrap_or(if siglip { 1e-6 } else { 1e-5 }),
        pooling_head: siglip && raw.vision_use_head.unwrap_or(true),
    })
}

fn to_json(config: &VlmConfig) -> Value {
    let states: Vec<i64> = config.features.states.iter().map(|&state| signed_state(state, &config.vision)).collect();
    let mut json = json!({
        "architectures": ["LlavaForConditionalGeneration"],
        "image_seq_length": config.image_tokens(),
        "image_token_index": config.image_token_id,
        "model_type": "llava",
        "multimodal_projector_bias": config.projector.bias,
        "projector_hidden_act": config.projector.activation,
        "text_config": hf_language::write(&config.language, config.init.std),
        "tie_word_embeddings": config.language.tie_embeddings,
        "vision_config": vision_json(config),
        "vision_feature_layer": if config.features.single { json!(states[0]) } else { json!(states) },
        "vision_feature_select_strategy": if config.features.keep_class_token { "full" } else { "default" },
    });
    if config.projector.kind != ProjectorKind::Mlp2xGelu {
        json["projector_type"] = json!(config.projector.kind);
    }
    if config.features.post_norm {
        json["vision_feature_norm"] = json!(true);
    }
    if let Some(lora) = &config.language.lora {
        json["lora"] = json!(lora);
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

/// An f32 as the shortest decimal that reads back as it, instead of the nearest f64's long expansion.
pub(super) fn decimal(value: f32) -> Value {
    let shortest: f64 = value.to_string().parse().unwrap_or(f64::from(value));
    json!(shortest)
}
