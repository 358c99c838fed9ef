//! A language model's part of a Hugging Face config, to and from [`LanguageConfig`]: `qwen2`, `llama`, `qwen3`, the
//! first `qwen`, and `minimind`.
//!
//! `minimind` computes and names its tensors as Llama does (first generation) or as Qwen3 does (later ones), so it is
//! read as one of these and written as it, and `transformers` opens what is written.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::hf::decimal;
use super::{LanguageConfig, LanguageFamily, RopeScaling};
use crate::ModelError;

#[derive(Deserialize)]
struct HfText {
    model_type: String,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
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
    #[serde(default)]
    use_moe: bool,
    #[serde(default)]
    inference_rope_scaling: bool,
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

/// The first Qwen's keys.
#[derive(Deserialize)]
struct HfQwen {
    hidden_size: usize,
    /// Twice the width of the feed-forward part.
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    kv_channels: usize,
    layer_norm_epsilon: f32,
    /// Up to here neither dynamic NTK scaling nor log-n attention changes anything; longer rows are refused.
    seq_length: usize,
    rotary_emb_base: f64,
    #[serde(default = "one")]
    rotary_pct: f64,
    #[serde(default = "yes")]
    no_bias: bool,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    vocab_size: usize,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn yes() -> bool {
    true
}

fn one() -> f64 {
    1.0
}

/// What a config class takes for keys that a published file leaves out (`llava-1.5-7b-hf` leaves out most).
struct Defaults {
    inner: usize,
    head_dim: Option<usize>,
    vocab: usize,
    max_positions: usize,
}

impl Defaults {
    const HIDDEN: usize = 4096;
    const LAYERS: usize = 32;
    const HEADS: usize = 32;
    const RMS_EPS: f32 = 1e-6;

    fn of(family: LanguageFamily) -> Self {
        match family {
            LanguageFamily::Llama => Self { inner: 11_008, head_dim: None, vocab: 32_000, max_positions: 2048 },
            LanguageFamily::Qwen3 => Self { inner: 22_016, head_dim: Some(128), vocab: 151_936, max_positions: 32_768 },
            LanguageFamily::Qwen2 | LanguageFamily::Qwen => {
                Self { inner: 22_016, head_dim: None, vocab: 151_936, max_positions: 32_768 }
            }
        }
    }
}

/// Reads the language part of the config at `path`. `outer_tie` is the joined model's `tie_word_embeddings`.
pub(super) fn read(config: Value, outer_tie: Option<bool>, path: &Path) -> Result<LanguageConfig, ModelError> {
    let model_type = config["model_type"].as_str().unwrap_or_default().to_owned();
    let family = match model_type.as_str() {
        "qwen2" => LanguageFamily::Qwen2,
        "llama" => LanguageFamily::Llama,
        "qwen3" => LanguageFamily::Qwen3,
        "qwen" => return qwen(parse(config, path)?),
        "minimind" => return minimind(parse(config, path)?),
        other => {
            let expected = "`qwen2`, `llama`, `qwen3`, `qwen` or `minimind`";
            return Err(ModelError::config("text_config.model_type", expected, format!("`{other}`")));
        }
    };
    let raw: HfText = parse(config, path)?;
    // As `LlavaConfig`: either level may say so.
    let tie = outer_tie.unwrap_or(false) || raw.tie_word_embeddings.unwrap_or(false);
    language(raw, family, tie)
}

fn parse<T: DeserializeOwned>(config: Value, path: &Path) -> Result<T, ModelError> {
    serde_json::from_value(config).map_err(|source| ModelError::Json { path: path.to_owned(), source })
}

/// The generations are told apart by `head_dim`, which the later one's config class always writes. Both share the table
/// with the head and say so nowhere in older files.
fn minimind(mut raw: HfText) -> Result<LanguageConfig, ModelError> {
    for (key, set) in [("use_moe", raw.use_moe), ("inference_rope_scaling", raw.inference_rope_scaling)] {
        if set {
            return Err(ModelError::config(&format!("text_config.{key}"), "false: it is not built", true));
        }
    }
    let family = if raw.head_dim.is_some() { LanguageFamily::Qwen3 } else { LanguageFamily::Llama };
    let stated = |key: &str, size: Option<usize>| {
        size.ok_or_else(|| ModelError::config(&format!("text_config.{key}"), "a number", "none"))
    };
    let hidden = stated("hidden_size", raw.hidden_size)?;
    stated("num_hidden_layers", raw.num_hidden_layers)?;
    stated("num_attention_heads", raw.num_attention_heads)?;
    stated("vocab_size", raw.vocab_size)?;
    // The first generation's own rule where the width is not stated.
    raw.intermediate_size = raw.intermediate_size.or(Some((hidden * 8 / 3).next_multiple_of(64)));
    let tie = raw.tie_word_embeddings.unwrap_or(true);
    language(raw, family, tie)
}

fn language(raw: HfText, family: LanguageFamily, tie: bool) -> Result<LanguageConfig, ModelError> {
    refuse_unbuilt(&raw)?;
    let defaults = Defaults::of(family);
    let (hidden, heads) =
        (raw.hidden_size.unwrap_or(Defaults::HIDDEN), raw.num_attention_heads.unwrap_or(Defaults::HEADS));
    let head_dim = raw.head_dim.or(defaults.head_dim);
    if head_dim.is_none() && !hidden.is_multiple_of(heads.max(1)) {
        let expected = format!("a multiple of num_attention_heads ({heads})");
        return Err(ModelError::config("text_config.hidden_size", expected, hidden));
    }
    let (rope_theta, rope_scaling) = rope(&raw)?;
    Ok(LanguageConfig {
        family,
        hidden_size: hidden,
        intermediate_size: raw.intermediate_size.unwrap_or(defaults.inner),
        num_layers: raw.num_hidden_layers.unwrap_or(Defaults::LAYERS),
        num_heads: heads,
        num_key_value_heads: raw.num_key_value_heads.unwrap_or(heads),
        head_dim: head_dim.unwrap_or(hidden / heads.max(1)),
        vocab_size: raw.vocab_size.unwrap_or(defaults.vocab),
        max_positions: raw.max_position_embeddings.unwrap_or(defaults.max_positions),
        rms_norm_eps: raw.rms_norm_eps.unwrap_or(Defaults::RMS_EPS),
        rope_theta,
        rope_scaling,
        tie_embeddings: tie,
        lora: None,
        token_ids: token_ids(raw.rest),
    })
}

fn token_ids(rest: Map<String, Value>) -> Map<String, Value> {
    let keys = ["bos_token_id", "eos_token_id", "pad_token_id"];
    rest.into_iter().filter(|(key, _)| keys.contains(&key.as_str())).collect()
}

fn qwen(raw: HfQwen) -> Result<LanguageConfig, ModelError> {
    let refuse = |key: &str, expected: &str, found: String| {
        Err(ModelError::config(&format!("text_config.{key}"), expected, found))
    };
    match () {
        () if raw.rotary_pct != 1.0 => refuse("rotary_pct", "1", raw.rotary_pct.to_string()),
        () if !raw.no_bias => refuse("no_bias", "true", "false".to_owned()),
        () if !raw.scale_attn_weights => refuse("scale_attn_weights", "true", "false".to_owned()),
        () if !raw.intermediate_size.is_multiple_of(2) => {
            refuse("intermediate_size", "an even number", raw.intermediate_size.to_string())
        }
        () => Ok(LanguageConfig {
            family: LanguageFamily::Qwen,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size / 2,
            num_layers: raw.num_hidden_layers,
            num_heads: raw.num_attention_heads,
            num_key_value_heads: raw.num_attention_heads,
            head_dim: raw.kv_channels,
            vocab_size: raw.vocab_size,
            max_positions: raw.seq_length,
            rms_norm_eps: raw.layer_norm_epsilon,
            rope_theta: raw.rotary_emb_base,
            rope_scaling: None,
            tie_embeddings: raw.tie_word_embeddings,
            lora: None,
            token_ids: token_ids(raw.rest),
        }),
    }
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
    let own = if raw.model_type == "minimind" { 1_000_000.0 } else { 10_000.0 };
    let theta = raw.rope_parameters.as_ref().and_then(|rope| rope.rope_theta).or(raw.rope_theta).unwrap_or(own);
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

/// The language part of a config that [`read`] reads as `language`.
pub(super) fn write(language: &LanguageConfig, std: f64) -> Value {
    let mut json = match language.family {
        LanguageFamily::Qwen => qwen_json(language),
        LanguageFamily::Qwen2 => text_json(language, "qwen2"),
        LanguageFamily::Llama => text_json(language, "llama"),
        LanguageFamily::Qwen3 => text_json(language, "qwen3"),
    };
    json["initializer_range"] = json!(std);
    for (key, value) in &language.token_ids {
        json[key.as_str()] = value.clone();
    }
    json
}

fn qwen_json(language: &LanguageConfig) -> Value {
    json!({
        "hidden_size": language.hidden_size,
        "intermediate_size": 2 * language.intermediate_size,
        "kv_channels": language.head_dim,
        "layer_norm_epsilon": decimal(language.rms_norm_eps),
        "max_position_embeddings": language.max_positions,
        "model_type": "qwen",
        "no_bias": true,
        "num_attention_heads": language.num_heads,
        "num_hidden_layers": language.num_layers,
        "rotary_emb_base": language.rope_theta,
        "rotary_pct": 1.0,
        "scale_attn_weights": true,
        "seq_length": language.max_positions,
        "tie_word_embeddings": language.tie_embeddings,
        "use_cache": true,
        "vocab_size": language.vocab_size,
    })
}

/// Both generations of rotary keys are written, so that transformers 4 and 5 read the same model.
fn text_json(language: &LanguageConfig, model_type: &str) -> Value {
    let mut json = json!({
        "attention_dropout": 0.0,
        "head_dim": language.head_dim,
        "hidden_act": "silu",
        "hidden_size": language.hidden_size,
        "intermediate_size": language.intermediate_size,
        "max_position_embeddings": language.max_positions,
        "model_type": model_type,
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
    json
}
