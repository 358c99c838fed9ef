//! Folders joined from published parts, and folders exported for `transformers` and PEFT.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{DType, Tensor};
use safetensors::SafeTensors;
use support::{DEVICE, IMAGE, assert_close, batch, document, golden, pixels, preset, values, with_image};
use tempfile::TempDir;
use vela_models::{
    Export, Join, LanguageFamily, LoraConfig, ModelBatch, ModelError, ProjectorKind, ProjectorPreset, VisionFamily,
    Vlm, VlmConfig, WeightDtype, is_adapter,
};

const FILE: &str = "model.safetensors";

fn join<'a>(vision: &'a Path, language: &'a Path) -> Join<'a> {
    Join {
        vision,
        language,
        projector: ProjectorPreset::default(),
        feature_layer: -2,
        feature_norm: false,
        image_token_id: IMAGE,
        num_ids: 80,
        seed: 7,
        dtype: None,
    }
}

fn load(dir: &Path) -> Vlm {
    Vlm::load(dir, &|_| false, &DEVICE).unwrap()
}

fn one_row() -> ModelBatch {
    batch(&[document(&with_image(&[1, 2], &[3, 4, 5, 6]), 3, 1)], Some(pixels(1)))
}

#[test]
fn joined_folders_hold_every_published_tensor_bit_for_bit() {
    for (vision, language) in [
        ("clip", "vicuna"),
        ("chinese_clip", "qwen2"),
        ("siglip", "qwen"),
        ("siglip", "minimind3"),
        ("clip", "minimind"),
    ] {
        let (dir, parts) =
            (TempDir::new().unwrap(), [golden(&format!("vision_{vision}")), golden(&format!("language_{language}"))]);
        let joined = join(&parts[0], &parts[1]).write(dir.path(), &|| false).unwrap();
        assert_eq!((joined.rows_added, joined.config.language.vocab_size), (0, 80));
        let model = load(dir.path());
        let written = candle_core::safetensors::load(dir.path().join(FILE), &DEVICE).unwrap();
        let mut left: BTreeSet<&str> = written.keys().map(String::as_str).collect();
        for (part, prefix) in parts.iter().zip(["vision_tower.", "language_model."]) {
            for (name, tensor) in candle_core::safetensors::load(part.join(FILE), &DEVICE).unwrap() {
                let Some(found) = written.get(&format!("{prefix}{name}")) else {
                    let text_half =
                        ["text_", "logit_", "visual_projection"].iter().any(|start| name.starts_with(start));
                    assert!(text_half, "{name} was lost");
                    continue;
                };
                assert_eq!(values(found), values(&tensor), "{name}");
                left.remove(format!("{prefix}{name}").as_str());
            }
        }
        assert_eq!(left.len(), 4, "{left:?}");
        assert!(left.iter().all(|name| name.starts_with("multi_modal_projector.")), "{left:?}");
        assert_eq!(model.image_tokens(), 9);
        assert!(values(&model.logits(&one_row()).unwrap()).iter().all(|logit| logit.is_finite()));
    }
}

#[test]
fn half_precision_shards_are_joined_as_they_are_or_as_asked() {
    let (vision, language, dir) = (golden("vision_clip"), TempDir::new().unwrap(), TempDir::new().unwrap());
    let whole = candle_core::safetensors::load(golden("language_llama").join(FILE), &DEVICE).unwrap();
    let (mut shards, mut map) = ([HashMap::new(), HashMap::new()], HashMap::new());
    for (index, (name, tensor)) in whole.into_iter().enumerate() {
        map.insert(name.clone(), format!("model-{}.safetensors", index % 2));
        shards[index % 2].insert(name, tensor.to_dtype(DType::BF16).unwrap());
    }
    for (index, shard) in shards.iter().enumerate() {
        candle_core::safetensors::save(shard, language.path().join(format!("model-{index}.safetensors"))).unwrap();
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    fs::write(language.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::copy(golden("language_llama/config.json"), language.path().join("config.json")).unwrap();
    join(&vision, language.path()).write(dir.path(), &|| false).unwrap();
    let written = candle_core::safetensors::load(dir.path().join(FILE), &DEVICE).unwrap();
    for (name, tensor) in &written {
        let expected = if name.starts_with("language_model.") { DType::BF16 } else { DType::F32 };
        assert_eq!(tensor.dtype(), expected, "{name}");
    }
    let shard = &shards[0];
    for (name, tensor) in shard {
        let widened = |tensor: &Tensor| values(&tensor.to_dtype(DType::F32).unwrap());
        assert_eq!(widened(&written[&format!("language_model.{name}")]), widened(tensor), "{name}");
    }
    let all = Join { dtype: Some(WeightDtype::Bf16), ..join(&vision, language.path()) };
    all.write(dir.path(), &|| false).unwrap();
    let text = fs::read(dir.path().join(FILE)).unwrap();
    let file = SafeTensors::deserialize(&text).unwrap();
    assert!(file.iter().all(|(_, view)| view.dtype() == safetensors::Dtype::BF16));
    let config: serde_json::Value = serde_json::from_slice(&fs::read(dir.path().join("config.json")).unwrap()).unwrap();
    assert_eq!(config["dtype"], "bfloat16");
}

#[test]
fn tables_grow_by_their_mean_where_the_tokenizer_has_more_ids() {
    let (vision, language, dir) = (golden("vision_clip"), golden("language_vicuna"), TempDir::new().unwrap());
    let joined =
        Join { image_token_id: 80, num_ids: 81, ..join(&vision, &language) }.write(dir.path(), &|| false).unwrap();
    assert_eq!((joined.rows_added, joined.config.language.vocab_size), (48, 128));
    let model = load(dir.path());
    let given = candle_core::safetensors::load(language.join(FILE), &DEVICE).unwrap();
    for (grown, own) in [
        ("language_model.model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
    ] {
        let table = model.params().get(grown).unwrap().tensor();
        assert_eq!(values(&table.narrow(0, 0, 80).unwrap().contiguous().unwrap()), values(&given[own]));
        let mean = values(&given[own].mean(0).unwrap());
        for row in [80, 127] {
            assert_eq!(values(&table.narrow(0, row, 1).unwrap().contiguous().unwrap()), mean, "{grown} row {row}");
        }
    }
}

#[test]
fn parts_that_do_not_fit_are_listed_and_nothing_is_written() {
    let (language, dir) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::copy(golden("language_llama/config.json"), language.path().join("config.json")).unwrap();
    let mut tensors = candle_core::safetensors::load(golden("language_llama").join(FILE), &DEVICE).unwrap();
    tensors.remove("model.norm.weight");
    tensors.insert("model.surprise".to_owned(), Tensor::zeros(3, DType::F32, &DEVICE).unwrap());
    candle_core::safetensors::save(&tensors, language.path().join(FILE)).unwrap();
    let vision = golden("vision_clip");
    let error = join(&vision, language.path()).write(dir.path(), &|| false).unwrap_err();
    let ModelError::Weights { problems } = &error else { panic!("{error}") };
    let told: Vec<&str> = problems.iter().map(|problem| problem.name.as_str()).collect();
    assert_eq!(told, ["language_model.model.norm.weight", "model.surprise"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A small model saved and exported; what came out, and its logits beside its own.
fn exported(model: &Vlm) -> (TempDir, Vlm) {
    let (own, out) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    model.save(own.path()).unwrap();
    let written =
        Export { model: own.path(), dtype: None, max_shard_bytes: None }.write(out.path(), &|| false).unwrap();
    assert!(written.opens_in_transformers());
    let opened = load(out.path());
    assert_eq!(VlmConfig::load(out.path()).unwrap().language, written.language);
    assert_close("exported", &opened.logits(&one_row()).unwrap(), &model.logits(&one_row()).unwrap(), 2e-6);
    (out, opened)
}

fn small(family: LanguageFamily, kind: ProjectorKind, lora: Option<LoraConfig>) -> Vlm {
    let mut config = preset(VisionFamily::Clip, family, kind).config(80, IMAGE).unwrap();
    config.language.lora = lora;
    let mut model = Vlm::init(config, 5, &|_| true, &DEVICE).unwrap();
    let second: Vec<String> =
        model.params().trainable().map(|(name, _)| name.to_owned()).filter(|name| name.contains("lora_B")).collect();
    for (index, name) in second.iter().enumerate() {
        let shape = model.params().get(name).unwrap().tensor().shape().clone();
        let wave = (0..shape.elem_count()).map(|at| ((at + 3 * index) as f32 * 0.7).sin() * 0.2).collect::<Vec<_>>();
        model.params_mut().set(name, &Tensor::from_vec(wave, shape, &DEVICE).unwrap()).unwrap();
    }
    model
}

#[test]
fn the_first_qwen_is_exported_as_qwen2() {
    let (_, opened) = exported(&small(LanguageFamily::Qwen, ProjectorKind::Mlp2xGelu, None));
    assert_eq!(opened.config().language.family, LanguageFamily::Qwen2);
    assert!(opened.params().get("language_model.model.layers.1.self_attn.v_proj.bias").is_ok());
}

#[test]
fn a_single_linear_is_exported_as_two_of_which_the_second_changes_nothing() {
    let model = small(LanguageFamily::Llama, ProjectorKind::Linear, None);
    let (_, opened) = exported(&model);
    assert_eq!(opened.config().projector.kind, ProjectorKind::Mlp2xGelu);
    assert_eq!(values(&opened.image_features(&pixels(1)).unwrap()), values(&model.image_features(&pixels(1)).unwrap()));
}

#[test]
fn an_export_larger_than_a_shard_is_several_with_an_index_and_the_same_model() {
    let (own, whole, cut) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    small(LanguageFamily::Llama, ProjectorKind::Mlp2xGelu, None).save(own.path()).unwrap();
    const MOST: u64 = 4000;
    for (dir, max_shard_bytes) in [(&whole, Some(1 << 30)), (&cut, Some(MOST))] {
        Export { model: own.path(), dtype: None, max_shard_bytes }.write(dir.path(), &|| false).unwrap();
    }
    assert!(whole.path().join(FILE).is_file() && !whole.path().join("model.safetensors.index.json").exists());
    let text = fs::read_to_string(cut.path().join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&text).unwrap();
    let files: std::collections::BTreeSet<&str> =
        index["weight_map"].as_object().unwrap().values().map(|file| file.as_str().unwrap()).collect();
    assert!(files.len() > 3 && !cut.path().join(FILE).exists(), "{files:?}");
    let mut total = 0;
    for file in &files {
        assert!(
            file.starts_with("model-000") && file.ends_with(&format!("-of-{:05}.safetensors", files.len())),
            "{file}"
        );
        let bytes = fs::read(cut.path().join(file)).unwrap();
        let shard = SafeTensors::deserialize(&bytes).unwrap();
        let sizes: Vec<u64> = shard.tensors().iter().map(|(_, view)| view.data().len() as u64).collect();
        assert!(sizes.len() == 1 || sizes.iter().sum::<u64>() <= MOST, "{file}: {sizes:?}");
        total += sizes.iter().sum::<u64>();
    }
    assert_eq!(index["metadata"]["total_size"], total);
    let (whole, cut) = (load(whole.path()), load(cut.path()));
    let same = whole.params().iter().zip(cut.params().iter()).all(|(a, b)| a.0 == b.0 && values(a.1) == values(b.1));
    assert!(same && whole.params().iter().count() == cut.params().iter().count());
}

#[test]
fn an_export_in_bf16_is_the_rounded_model_and_repeats_bit_for_bit() {
    let (own, out, again) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let model = small(LanguageFamily::Qwen3, ProjectorKind::Mlp2xGelu, None);
    model.save(own.path()).unwrap();
    for dir in [&out, &again] {
        Export { model: own.path(), dtype: Some(WeightDtype::Bf16), max_shard_bytes: None }
            .write(dir.path(), &|| false)
            .unwrap();
    }
    let bytes = fs::read(out.path().join(FILE)).unwrap();
    assert_eq!(bytes, fs::read(again.path().join(FILE)).unwrap());
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    let opened = load(out.path());
    for (name, tensor, _) in model.params().iter() {
        let rounded = tensor.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        assert_eq!(values(opened.params().get(name).unwrap().tensor()), values(&rounded), "{name}");
    }
}

fn adapters(targets: &[&str]) -> Option<LoraConfig> {
    let targets = targets.iter().map(|target| (*target).to_owned()).collect();
    Some(LoraConfig { rank: 2, alpha: 6.0, targets, dropout: 0.0 })
}

#[test]
fn merged_adapters_give_what_they_gave_apart() {
    let linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    for family in [LanguageFamily::Qwen2, LanguageFamily::Llama, LanguageFamily::Qwen3] {
        let (_, opened) = exported(&small(family, ProjectorKind::Linear, adapters(&linears)));
        assert!(opened.params().iter().all(|(name, ..)| !is_adapter(name)));
    }
    let (_, opened) =
        exported(&small(LanguageFamily::Qwen, ProjectorKind::Mlp2xGelu, adapters(&["c_attn", "w1", "w2"])));
    assert_eq!(opened.config().language.family, LanguageFamily::Qwen2);
}

/// The adapter file of a small model: names and shapes.
fn adapter_file(model: &Vlm) -> (serde_json::Value, HashMap<String, Tensor>) {
    let (own, out) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    model.save(own.path()).unwrap();
    Export { model: own.path(), dtype: None, max_shard_bytes: None }.write_adapter(out.path(), &|| false).unwrap();
    let config = serde_json::from_slice(&fs::read(out.path().join("adapter_config.json")).unwrap()).unwrap();
    (config, candle_core::safetensors::load(out.path().join("adapter_model.safetensors"), &DEVICE).unwrap())
}

#[test]
fn an_adapter_folder_has_the_names_of_one_that_peft_saved() {
    let targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"];
    let (config, written) = adapter_file(&small(LanguageFamily::Llama, ProjectorKind::Mlp2xGelu, adapters(&targets)));
    let case = golden("lora_clip_llama");
    let by_peft = candle_core::safetensors::load(case.join("adapter_model.safetensors"), &DEVICE).unwrap();
    let names = |tensors: &HashMap<String, Tensor>| tensors.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&written), names(&by_peft));
    let expected: serde_json::Value =
        serde_json::from_slice(&fs::read(case.join("adapter_config.json")).unwrap()).unwrap();
    for (key, value) in config.as_object().unwrap() {
        match key.as_str() {
            "r" => assert_eq!(value, 2),
            "target_modules" => assert!(value.as_str().unwrap().contains(r"(self_attn\.q_proj|"), "{value}"),
            "base_model_name_or_path" => assert!(value.is_null()),
            _ => assert_eq!(value, &expected[key], "{key}"),
        }
    }
}

#[test]
fn an_adapter_of_the_first_qwen_is_cut_for_qwen2() {
    let model = small(LanguageFamily::Qwen, ProjectorKind::Linear, adapters(&["c_attn", "w2"]));
    let (config, written) = adapter_file(&model);
    let layer = "base_model.model.model.language_model.layers.1";
    let whole =
        model.params().get("language_model.transformer.h.1.attn.c_attn.lora_B.weight").unwrap().tensor().clone();
    for (part, name) in ["q_proj", "k_proj", "v_proj"].iter().enumerate() {
        let b = &written[&format!("{layer}.self_attn.{name}.lora_B.weight")];
        assert_eq!(values(b), values(&whole.narrow(0, 16 * part, 16).unwrap().contiguous().unwrap()));
        assert_eq!(written[&format!("{layer}.self_attn.{name}.lora_A.weight")].dims(), [2, 16]);
    }
    assert!(written.contains_key(&format!("{layer}.mlp.gate_proj.lora_B.weight")));
    assert!(written.contains_key("base_model.model.model.multi_modal_projector.linear_2.weight"));
    let pattern = r".*language_model\..*\.(self_attn\.q_proj|self_attn\.k_proj|self_attn\.v_proj|mlp\.gate_proj)";
    assert_eq!(config["target_modules"], pattern);
}

#[test]
fn what_the_published_class_cannot_say_is_refused_by_key() {
    let refused = |model: &Vlm| {
        let (own, out) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        model.save(own.path()).unwrap();
        let told = Export { model: own.path(), dtype: None, max_shard_bytes: None }
            .write(out.path(), &|| false)
            .unwrap_err()
            .to_string();
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
        told
    };
    let told = refused(&small(LanguageFamily::Llama, ProjectorKind::LnMlp, None));
    assert!(told.contains("`projector_type`") && told.contains("`ln_mlp`"), "{told}");
    let mut preset = preset(VisionFamily::Siglip, LanguageFamily::Llama, ProjectorKind::Mlp2xGelu);
    preset.vision.feature_layer = -1;
    preset.vision.feature_norm = true;
    let model = Vlm::init(preset.config(80, IMAGE).unwrap(), 1, &|_| false, &DEVICE).unwrap();
    assert!(refused(&model).contains("`vision_feature_norm`"));
    let (own, out) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    small(LanguageFamily::Llama, ProjectorKind::Mlp2xGelu, None).save(own.path()).unwrap();
    let told = Export { model: own.path(), dtype: None, max_shard_bytes: None }
        .write_adapter(out.path(), &|| false)
        .unwrap_err()
        .to_string();
    assert!(told.contains("`lora`"), "{told}");
}
