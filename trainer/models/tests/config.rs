//! Configs of published forms, presets in this repository, and configs that must be refused.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{DEVICE, golden};
use tempfile::TempDir;
use vela_models::{LanguageFamily, ModelPreset, VisionFamily, Vlm, VlmConfig};

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
fn defect_05_siglip_gives_729_tokens_and_chinese_clip_196_after_its_class_token_is_dropped() {
    let (english, chinese) = (load(&english()).unwrap(), load(&chinese()).unwrap());
    assert_eq!((english.image_tokens(), chinese.image_tokens()), (729, 196));
    assert_eq!((english.vision.family, english.features.states.as_slice()), (VisionFamily::Siglip, &[26][..]));
    assert_eq!((chinese.language.head_dim, chinese.language.rope_scaling.is_none()), (64, true));
}

#[test]
fn defect_06_an_image_seq_length_that_is_not_the_towers_is_refused() {
    // s-mllm's own: ViT-B/16 at 224 pixels, and the number of ViT-L/14 at 336.
    let told = load(&changed(chinese(), "/image_seq_length", json!(576))).unwrap_err();
    assert!(told.contains("`image_seq_length`: expected 196") && told.contains("found 576"), "{told}");
    let (mut large, mut silent) = (chinese(), chinese());
    for (key, value) in [("image_size", 336), ("patch_size", 14), ("hidden_size", 1024), ("num_attention_heads", 16)] {
        large["vision_config"][key] = json!(value);
    }
    assert!(load(&large).unwrap_err().contains("`image_seq_length`: expected 576"));
    silent.as_object_mut().unwrap().remove("image_seq_length");
    assert_eq!(load(&silent).unwrap().image_tokens(), 196);
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
        (changed(chinese(), "/text_config/model_type", json!("mamba")), "`qwen`"),
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
fn what_published_configs_leave_out_is_the_value_of_their_class() {
    // `llava-1.5-7b-hf` as published.
    let llava = json!({
        "model_type": "llava", "image_token_index": 32_000, "ignore_index": -100, "pad_token_id": 32_001,
        "projector_hidden_act": "gelu", "tie_word_embeddings": false, "vocab_size": 32_064,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "text_config": {"_name_or_path": "lmsys/vicuna-7b-v1.5", "model_type": "llama", "vocab_size": 32_064,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "torch_dtype": "float16"},
        "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
            "projection_dim": 768, "vocab_size": 32_000},
    });
    let config = load(&llava).unwrap();
    let language = &config.language;
    assert_eq!((language.hidden_size, language.intermediate_size, language.num_layers), (4096, 11_008, 32));
    assert_eq!((language.num_key_value_heads, language.head_dim, language.rope_theta), (32, 128, 10_000.0));
    assert_eq!((config.image_tokens(), config.features.states.as_slice()), (576, &[23][..]));
    let base = changed(llava, "/vision_config", json!({"model_type": "clip_vision_model", "patch_size": 16}));
    let config = load(&base).unwrap();
    assert_eq!((config.vision.hidden_size, config.vision.num_layers, config.image_tokens()), (768, 12, 196));
}

/// Qwen-7B's config as published, beside the Chinese model's tower.
fn qwen() -> Value {
    let text = json!({"model_type": "qwen", "architectures": ["QWenLMHeadModel"], "attn_dropout_prob": 0.0,
        "emb_dropout_prob": 0.0, "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 22_016,
        "kv_channels": 128, "layer_norm_epsilon": 1e-6, "max_position_embeddings": 32_768, "no_bias": true,
        "num_attention_heads": 32, "num_hidden_layers": 32, "rotary_emb_base": 10_000, "rotary_pct": 1.0,
        "scale_attn_weights": true, "seq_length": 8192, "tie_word_embeddings": false, "use_dynamic_ntk": true,
        "use_logn_attn": true, "vocab_size": 151_936});
    changed(chinese(), "/text_config", text)
}

#[test]
fn the_first_qwen_is_read_up_to_the_length_where_its_scaling_begins() {
    let config = load(&qwen()).unwrap();
    let language = &config.language;
    assert_eq!((language.max_positions, language.intermediate_size, language.head_dim), (8192, 11_008, 128));
    assert!(!config.opens_in_transformers());
    let dir = TempDir::new().unwrap();
    config.save(dir.path()).unwrap();
    assert_eq!(VlmConfig::load(dir.path()).unwrap(), config);
    for (key, value) in [("rotary_pct", json!(0.25)), ("no_bias", json!(false)), ("intermediate_size", json!(7))] {
        let told = load(&changed(qwen(), &format!("/text_config/{key}"), value)).expect_err(key);
        assert!(told.contains(&format!("`text_config.{key}`")), "{told}");
    }
    let told = load(&changed(qwen(), "/text_config/kv_channels", json!(64))).expect_err("narrow heads");
    assert!(told.contains("`text_config.kv_channels`: expected 4096"), "{told}");
}

#[test]
fn minimind_reads_as_the_family_that_computes_it() {
    let mut text = json!({"model_type": "minimind", "hidden_size": 512, "num_hidden_layers": 8, "vocab_size": 6400,
        "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": null, "rms_norm_eps": 1e-5,
        "rope_theta": 1e6, "use_moe": false, "inference_rope_scaling": false, "rope_scaling": null});
    let model = |text: &Value| changed(changed(chinese(), "/text_config", text.clone()), "/image_token_id", json!(34));
    let first = load(&model(&text)).unwrap().language;
    assert_eq!((first.family, first.intermediate_size, first.tie_embeddings), (LanguageFamily::Llama, 1408, true));
    text["head_dim"] = json!(64);
    let later = load(&model(&text)).unwrap();
    assert_eq!(later.language.family, LanguageFamily::Qwen3);
    assert!(later.opens_in_transformers());
    for key in ["use_moe", "inference_rope_scaling"] {
        let told = load(&model(&changed(json!({"t": text}), &format!("/t/{key}"), json!(true))["t"])).expect_err(key);
        assert!(told.contains(key), "{told}");
    }
}

#[test]
fn keys_of_ours_are_written_where_the_published_class_has_no_word() {
    let lora = json!({"rank": 4, "alpha": 8.0, "targets": ["q_proj"], "dropout": 0.0});
    let normed = changed(changed(english(), "/vision_feature_norm", json!(true)), "/vision_feature_layer", json!(-1));
    for config in [changed(chinese(), "/lora", lora.clone()), normed.clone()] {
        let (config, dir) = (load(&config).unwrap(), TempDir::new().unwrap());
        assert!(!config.opens_in_transformers());
        config.save(dir.path()).unwrap();
        assert_eq!(VlmConfig::load(dir.path()).unwrap(), config);
    }
    let told = load(&changed(normed, "/vision_feature_layer", json!(-2))).expect_err("not the last state");
    assert!(told.contains("`vision_feature_layer`: expected 27"), "{told}");
    let told =
        load(&changed(chinese(), "/lora", changed(json!({"l": lora}), "/l/targets", json!(["c_attn"]))["l"].clone()));
    assert!(told.expect_err("no such linear").contains("`self_attn.q_proj`"));
}

fn presets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/model")
}

fn num_values(config: &VlmConfig, component: &str) -> usize {
    let parameters = config.parameters().into_iter().filter(|(name, _)| name.starts_with(component));
    parameters.map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

#[test]
fn every_preset_reads_and_the_small_ones_make_a_model() {
    let mut made = Vec::new();
    for entry in fs::read_dir(presets()).unwrap() {
        let path = entry.unwrap().path();
        let config = ModelPreset::load(&path).unwrap().config(600, 599).unwrap();
        if num_values(&config, "") > 5_000_000 {
            continue;
        }
        let model = Vlm::init(config, 1, &|_| false, &DEVICE).unwrap();
        assert!(model.params().num_values().0 > 50_000, "{path:?}");
        made.push(path.file_stem().unwrap().to_str().unwrap().to_owned());
    }
    made.sort();
    assert_eq!(made, ["demo", "mllm_ch_tiny", "mllm_en_tiny"]);
}

/// A preset's parts, under their names in `published.json`, and what is published of its projector and image tokens.
struct Pair {
    preset: &'static str,
    tower: &'static str,
    language: &'static str,
    projector_values: usize,
    image_tokens: usize,
    state: usize,
}

const PAIRS: [Pair; 9] = [
    pair("mllm_ch", ["chinese_clip_b16", "qwen2.5_0.5b"], 1_492_736, 196, 11),
    pair("mllm_ch_l14_336", ["chinese_clip_l14_336", "qwen2.5_0.5b"], 1_722_112, 576, 23),
    pair("mllm_en", ["siglip_so400m", "llama3.2_1b"], 6_557_696, 729, 26),
    pair("basic_vlm_siglip", ["siglip_so400m", "qwen_7b"], 21_504_000, 729, 27),
    pair("basic_vlm_clip", ["clip_l14", "qwen_7b"], 20_979_712, 256, 24),
    pair("llava_v1", ["clip_l14", "vicuna_7b"], 4_198_400, 256, 23),
    pair("llava_v1_5", ["clip_l14_336", "vicuna_7b"], 20_979_712, 576, 23),
    pair("minimind_v", ["clip_b16", "minimind_26m"], 393_728, 196, 12),
    pair("minimind_3v", ["siglip2_b32_256", "minimind3_64m"], 1_182_720, 64, 12),
];

const fn pair(
    preset: &'static str,
    [tower, language]: [&'static str; 2],
    projector_values: usize,
    image_tokens: usize,
    state: usize,
) -> Pair {
    Pair { preset, tower, language, projector_values, image_tokens, state }
}

/// `layers.3.` as `layers.*.`, as `published.py` folds names.
fn folded(name: &str) -> String {
    let parts = name.split('.').map(|part| if part.bytes().all(|byte| byte.is_ascii_digit()) { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

/// Parameters of one component as `published.json` lists them.
fn folded_parameters(config: &VlmConfig, component: &str) -> Value {
    let mut found = serde_json::Map::new();
    for (name, shape) in config.parameters().into_iter().filter(|(name, _)| name.starts_with(component)) {
        let entry = found.entry(folded(&name)).or_insert_with(|| json!({"shape": shape, "count": 0}));
        assert_eq!(entry["shape"], json!(shape), "{name}");
        entry["count"] = json!(entry["count"].as_u64().unwrap() + 1);
    }
    Value::Object(found)
}

#[test]
fn presets_of_published_pairs_have_the_published_parameters() {
    let published: Value = serde_json::from_str(&fs::read_to_string(golden("published.json")).unwrap()).unwrap();
    for pair in &PAIRS {
        let preset = ModelPreset::load(&presets().join(format!("{}.toml", pair.preset))).unwrap();
        let config = preset.config(6400, 6399).unwrap();
        for (part, component) in [(pair.tower, "vision_tower."), (pair.language, "language_model.")] {
            let expected = &published[part];
            assert_eq!(folded_parameters(&config, component), expected["tensors"], "{}: {part}", pair.preset);
            assert_eq!(json!(num_values(&config, component)), expected["values"], "{}: {part}", pair.preset);
        }
        assert_eq!(num_values(&config, "multi_modal_projector."), pair.projector_values, "{}", pair.preset);
        assert_eq!(config.image_tokens(), pair.image_tokens, "{}", pair.preset);
        assert_eq!(config.features.states, [pair.state], "{}", pair.preset);
    }
}

#[test]
fn published_totals_are_those_of_the_model_cards() {
    let published: Value = serde_json::from_str(&fs::read_to_string(golden("published.json")).unwrap()).unwrap();
    let totals = [
        ("clip_b16", 85_799_424),
        ("clip_l14", 303_179_776),
        ("clip_l14_336", 303_507_456),
        ("qwen2.5_0.5b", 494_032_768),
        ("llama3.2_1b", 1_235_814_400),
        // 6,738,415,616 and 64 rows in table and head.
        ("vicuna_7b", 6_738_415_616 + 2 * 64 * 4096),
        ("qwen_7b", 7_721_324_544u64),
    ];
    totals.iter().for_each(|(name, total)| assert_eq!(published[*name]["values"], json!(total), "{name}"));
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
