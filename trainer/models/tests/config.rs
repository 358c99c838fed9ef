//! Configs of published forms, presets in this repository, and configs that must be refused.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::{DEVICE, golden};
use tempfile::TempDir;
use vela_models::{ModelPreset, VisionFamily, Vlm, VlmConfig};

fn load(config: &Value) -> Result<VlmConfig, String> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    VlmConfig::load(dir.path()).map_err(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error}: {source}")
    })
}

/// The sizes that the published SigLIP so400m and Llama-3.2-1B have, in the keys of transformers 4.
fn english() -> Value {
    json!({
        "model_type": "llava", "image_token_index": 128_255, "image_seq_length": 729, "vision_feature_layer": -2,
        "vision_feature_select_strategy": "full", "projector_hidden_act": "gelu",
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
            "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 384, "patch_size": 14},
        "text_config": {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256,
            "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "hidden_act": "silu",
            "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "tie_word_embeddings": true},
    })
}

/// Chinese-CLIP ViT-B/16 and Qwen2.5-0.5B.
fn chinese() -> Value {
    json!({
        "model_type": "llava", "image_token_id": 151_665, "image_seq_length": 196, "pad_token_id": 151_643,
        "vision_config": {"model_type": "chinese_clip_vision_model", "hidden_size": 768, "intermediate_size": 3072,
            "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "patch_size": 16},
        "text_config": {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936, "bos_token_id": 151_643,
            "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
            "sliding_window": 32_768, "use_sliding_window": false, "tie_word_embeddings": true},
    })
}

fn changed(mut config: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    config.pointer_mut(parent).unwrap()[key] = value;
    config
}

#[test]
fn siglip_gives_729_tokens_and_chinese_clip_196_after_its_class_token_is_dropped() {
    let (english, chinese) = (load(&english()).unwrap(), load(&chinese()).unwrap());
    assert_eq!((english.image_tokens(), chinese.image_tokens()), (729, 196));
    assert_eq!((english.vision.family, english.features.states.as_slice()), (VisionFamily::Siglip, &[26][..]));
    assert_eq!((chinese.language.head_dim, chinese.language.rope_scaling.is_none()), (64, true));
}

#[test]
fn both_generations_of_rotary_keys_mean_the_same() {
    let old = english();
    let mut rope = old["text_config"]["rope_scaling"].clone();
    rope["rope_theta"] = json!(500_000.0);
    let mut new = changed(old.clone(), "/text_config/rope_parameters", rope);
    let text = new["text_config"].as_object_mut().unwrap();
    text.remove("rope_scaling");
    text.remove("rope_theta");
    assert_eq!(load(&old).unwrap(), load(&new).unwrap());
    assert_eq!(load(&old).unwrap().language.rope_scaling.unwrap().original_max_positions, 8192);
}

#[test]
fn a_written_config_reads_as_the_one_it_came_from() {
    for config in [english(), chinese(), changed(chinese(), "/vision_feature_layer", json!([-3, 4]))] {
        let (config, dir) = (load(&config).unwrap(), TempDir::new().unwrap());
        config.save(dir.path()).unwrap();
        assert_eq!(VlmConfig::load(dir.path()).unwrap(), config);
    }
}

#[test]
fn contradictions_and_what_is_not_built_are_refused_by_key() {
    let cases = [
        (changed(chinese(), "/image_seq_length", json!(576)), "`image_seq_length`: expected 196"),
        (changed(english(), "/vision_feature_select_strategy", json!("default")), "no class token"),
        (changed(english(), "/vision_config/num_attention_heads", json!(7)), "`vision_config.hidden_size`"),
        (changed(english(), "/text_config/num_key_value_heads", json!(5)), "multiple of num_key_value_heads (5)"),
        (changed(english(), "/text_config/head_dim", json!(63)), "`text_config.head_dim`"),
        (changed(chinese(), "/text_config/num_attention_heads", json!(13)), "`text_config.hidden_size`"),
        (changed(chinese(), "/text_config/num_hidden_layers", json!(0)), "`text_config.num_hidden_layers`"),
        (changed(chinese(), "/image_token_id", json!(151_936)), "`image_token_index`"),
        (changed(chinese(), "/vision_feature_layer", json!(13)), "`vision_feature_layer`"),
        (changed(chinese(), "/vision_feature_layer", json!(-14)), "`vision_feature_layer`"),
        (changed(chinese(), "/text_config/model_type", json!("mamba")), "`qwen2` or `llama`"),
        (changed(chinese(), "/vision_config/model_type", json!("dinov2")), "`chinese_clip_vision_model`"),
        (changed(chinese(), "/text_config/use_sliding_window", json!(true)), "`text_config.use_sliding_window`"),
        (changed(english(), "/text_config/attention_bias", json!(true)), "`text_config.attention_bias`"),
        (changed(english(), "/text_config/rope_scaling/rope_type", json!("yarn")), "`default` or `llama3`"),
        (changed(english(), "/text_config/rope_scaling/factor", Value::Null), "rope_parameters.factor"),
        (changed(english(), "/projector_hidden_act", json!("swish")), "unknown variant `swish`"),
        (changed(english(), "/model_type", json!("llava_next")), "expected `llava`"),
    ];
    for (config, part) in cases {
        let message = load(&config).expect_err(part);
        assert!(message.contains(part), "{message} has no {part}");
    }
}

#[test]
fn configs_of_the_reference_read_and_keep_their_meaning() {
    let tied = VlmConfig::load(&golden("joined_siglip_llama")).unwrap();
    assert!(tied.language.tie_embeddings && !tied.projector.bias && tied.vision.pooling_head);
    let wide = VlmConfig::load(&golden("joined_clip_llama")).unwrap();
    assert_eq!((wide.features.states.as_slice(), wide.feature_size(), wide.image_tokens()), (&[1, 2][..], 32, 10));
    assert_eq!((wide.language.head_dim, wide.language.rope_scaling.unwrap().factor), (8, 32.0));
}

#[test]
fn every_preset_makes_a_model() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/model");
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let config = ModelPreset::load(&path).unwrap().config(600, 599).unwrap();
        let model = Vlm::init(config, 1, &|_| false, &DEVICE).unwrap();
        assert!(model.params().num_values().0 > 50_000, "{path:?}");
        names.push(path.file_stem().unwrap().to_str().unwrap().to_owned());
    }
    names.sort();
    for needed in ["demo", "mllm_ch_tiny", "mllm_en_tiny"] {
        assert!(names.iter().any(|name| name == needed), "{names:?} has no {needed}");
    }
}

#[test]
fn a_preset_with_an_unknown_or_impossible_key_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("bad.toml");
    let tiny = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/model/mllm_ch_tiny.toml"));
    let tiny = tiny.unwrap();
    fs::write(&path, tiny.replace("patch_size", "patch_width")).unwrap();
    let error = ModelPreset::load(&path).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(error.to_string().contains("bad.toml") && source.contains("patch_width"), "{source}");
    fs::write(&path, tiny.replace("num_heads = 4", "num_heads = 5")).unwrap();
    let error = ModelPreset::load(&path).unwrap().config(600, 599).unwrap_err();
    assert!(error.to_string().contains("`language.hidden_size`"), "{error}");
}
