//! Weight files that do not fit, and files that come back as they were saved.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Tensor};
use support::{DEVICE, batch, document, golden, pixels, small_config, values, with_image};
use tempfile::TempDir;
use vela_models::{Fresh, Layout, ModelError, Vlm, VlmConfig};

const FILE: &str = "model.safetensors";
const NORM: &str = "language_model.model.norm.weight";

fn saved_model() -> (TempDir, Vlm) {
    let dir = TempDir::new().unwrap();
    let model = Vlm::init(small_config(), 3, &|_| false, &DEVICE).unwrap();
    model.save(dir.path()).unwrap();
    (dir, model)
}

fn rewrite(dir: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let mut tensors = candle_core::safetensors::load(dir.join(FILE), &DEVICE).unwrap();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors, dir.join(FILE)).unwrap();
}

fn load_error(dir: &Path) -> ModelError {
    Vlm::load(dir, &|_| false, &DEVICE).err().expect("the folder is bad")
}

#[test]
fn a_saved_model_loads_with_equal_config_and_bits() {
    let (dir, model) = saved_model();
    let loaded = Vlm::load(dir.path(), &|_| false, &DEVICE).unwrap();
    let mut config = model.config().clone();
    config.init = loaded.config().init.clone();
    assert_eq!(&config, loaded.config());
    for ((name, saved, _), (other_name, read, _)) in model.params().iter().zip(loaded.params().iter()) {
        assert_eq!((name, values(saved)), (other_name, values(read)));
    }
}

#[test]
fn saving_twice_gives_equal_bytes_with_names_in_order_and_the_format_named() {
    let (dir, model) = saved_model();
    let first = fs::read(dir.path().join(FILE)).unwrap();
    model.save(dir.path()).unwrap();
    assert_eq!(first, fs::read(dir.path().join(FILE)).unwrap());
    let (_, header) = safetensors::SafeTensors::read_metadata(&first).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
    let names = header.offset_keys();
    assert!(names.is_sorted() && !names.iter().any(|name| name.contains("lm_head")), "{names:?}");
}

#[test]
fn every_tensor_that_does_not_fit_is_listed_at_once() {
    let (dir, _) = saved_model();
    rewrite(dir.path(), |tensors| {
        tensors.remove(NORM);
        let wide = Tensor::zeros((3, 5), DType::F32, &DEVICE).unwrap();
        tensors.insert("multi_modal_projector.linear_1.weight".to_owned(), wide.clone());
        tensors.insert("multi_modal_projector.linear_3.weight".to_owned(), wide);
        let whole = Tensor::zeros(16, DType::U32, &DEVICE).unwrap();
        tensors.insert("multi_modal_projector.linear_2.bias".to_owned(), whole);
    });
    let error = load_error(dir.path());
    let ModelError::Weights { problems } = &error else { panic!("{error}") };
    let told: Vec<_> = problems.iter().map(|problem| (problem.name.as_str(), problem.found.as_str())).collect();
    let expected = [
        (NORM, "no such tensor"),
        ("multi_modal_projector.linear_1.weight", "[3, 5] f32"),
        ("multi_modal_projector.linear_2.bias", "[16] u32"),
        ("multi_modal_projector.linear_3.weight", "[3, 5] f32"),
    ];
    assert_eq!(told, expected);
    let places: Vec<_> = problems.iter().map(|problem| problem.file.as_path()).collect();
    let file = dir.path().join(FILE);
    assert_eq!(places, [dir.path(), &file, &file, &file]);
    assert!(error.to_string().contains("expected [16, 16], f32, bf16 or f16, found [3, 5] f32"), "{error}");
}

#[test]
fn a_truncated_file_is_named() {
    let (dir, _) = saved_model();
    let bytes = fs::read(dir.path().join(FILE)).unwrap();
    for keep in [0, 5, 200, bytes.len() - 1] {
        fs::write(dir.path().join(FILE), &bytes[..keep]).unwrap();
        let error = load_error(dir.path());
        let named = error.to_string().contains(&format!("{FILE}` ({keep} bytes)"));
        assert!(matches!(error, ModelError::SafeTensors { .. }) && named, "{keep} bytes: {error}");
    }
}

#[test]
fn a_folder_without_weights_says_which_files_were_looked_for() {
    let (dir, _) = saved_model();
    fs::remove_file(dir.path().join(FILE)).unwrap();
    let told = load_error(dir.path()).to_string();
    assert!(told.contains("`model.safetensors`") && told.contains("`pytorch_model.bin`"), "{told}");
}

#[test]
fn half_precision_weights_are_widened_exactly() {
    for dtype in [DType::BF16, DType::F16] {
        let (dir, _) = saved_model();
        rewrite(dir.path(), |tensors| {
            tensors.values_mut().for_each(|tensor| *tensor = tensor.to_dtype(dtype).unwrap())
        });
        let halves = candle_core::safetensors::load(dir.path().join(FILE), &DEVICE).unwrap();
        let loaded = Vlm::load(dir.path(), &|_| false, &DEVICE).unwrap();
        for (name, tensor, _) in loaded.params().iter() {
            assert_eq!(values(tensor), values(&halves[name].to_dtype(DType::F32).unwrap()), "{name} as {dtype:?}");
        }
    }
}

#[test]
fn shards_listed_in_an_index_load_as_one_file() {
    let (dir, model) = saved_model();
    let tensors = candle_core::safetensors::load(dir.path().join(FILE), &DEVICE).unwrap();
    let (mut shards, mut map) = ([HashMap::new(), HashMap::new()], HashMap::new());
    for (index, (name, tensor)) in tensors.into_iter().enumerate() {
        map.insert(name.clone(), format!("model-{}.safetensors", index % 2));
        shards[index % 2].insert(name, tensor);
    }
    for (index, shard) in shards.iter().enumerate() {
        candle_core::safetensors::save(shard, dir.path().join(format!("model-{index}.safetensors"))).unwrap();
    }
    fs::remove_file(dir.path().join(FILE)).unwrap();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let loaded = Vlm::load(dir.path(), &|_| false, &DEVICE).unwrap();
    assert!(model.params().iter().zip(loaded.params().iter()).all(|(a, b)| values(a.1) == values(b.1)));
    fs::remove_file(dir.path().join("model-1.safetensors")).unwrap();
    assert!(matches!(load_error(dir.path()), ModelError::Read { path, .. } if path.ends_with("model-1.safetensors")));
}

#[test]
fn a_tied_head_in_the_file_must_be_the_embedding_table() {
    let (dir, _) = saved_model();
    let table = "language_model.model.embed_tokens.weight";
    rewrite(dir.path(), |tensors| {
        tensors.insert("language_model.lm_head.weight".to_owned(), tensors[table].clone());
    });
    assert!(Vlm::load(dir.path(), &|_| false, &DEVICE).is_ok());
    rewrite(dir.path(), |tensors| {
        tensors.insert("lm_head.weight".to_owned(), tensors[table].affine(2.0, 0.0).unwrap());
        tensors.remove("language_model.lm_head.weight");
    });
    assert!(load_error(dir.path()).to_string().contains("`tie_word_embeddings`"));
}

#[test]
fn a_tensor_under_two_names_is_refused() {
    let (dir, _) = saved_model();
    rewrite(dir.path(), |tensors| {
        tensors.insert("model.language_model.norm.weight".to_owned(), tensors[NORM].clone());
    });
    assert!(load_error(dir.path()).to_string().contains("found twice"));
}

#[test]
fn older_and_newer_names_load_alike() {
    let case = golden("joined_siglip_qwen2");
    let reference = Vlm::load(&case, &|_| false, &DEVICE).unwrap();
    let dir = TempDir::new().unwrap();
    fs::copy(case.join("config.json"), dir.path().join("config.json")).unwrap();
    let written = candle_core::safetensors::load(case.join(FILE), &DEVICE).unwrap();
    let inside = |name: &str| match name.strip_prefix("language_model.") {
        Some("lm_head.weight") => "lm_head.weight".to_owned(),
        Some(rest) => format!("model.language_model.{}", rest.trim_start_matches("model.")),
        None => format!("model.{name}"),
    };
    let renamed: HashMap<String, Tensor> = written.into_iter().map(|(name, tensor)| (inside(&name), tensor)).collect();
    candle_core::safetensors::save(&renamed, dir.path().join(FILE)).unwrap();
    let loaded = Vlm::load(dir.path(), &|_| false, &DEVICE).unwrap();
    assert!(
        reference.params().iter().zip(loaded.params().iter()).all(|(a, b)| a.0 == b.0 && values(a.1) == values(b.1))
    );
}

#[test]
fn a_fresh_projector_replaces_the_saved_one_and_nothing_else() {
    let (dir, model) = saved_model();
    let projector = |name: &str| name.starts_with("multi_modal_projector.");
    let fresh = Fresh { names: &projector, seed: 8 };
    let config = VlmConfig::load(dir.path()).unwrap();
    let other = Vlm::from_folders(config, &[(Layout::Joined, dir.path())], fresh, &projector, &DEVICE).unwrap();
    for ((name, before, _), (_, after, trains)) in model.params().iter().zip(other.params().iter()) {
        assert_eq!(trains, projector(name), "{name}");
        let redrawn = projector(name) && name.ends_with("weight");
        assert_eq!(values(before) != values(after), redrawn, "{name}");
    }
    let batch = batch(&[document(&with_image(&[1], &[2, 3, 4]), 2, 1)], Some(pixels(1)));
    assert_ne!(values(&model.logits(&batch).unwrap()), values(&other.logits(&batch).unwrap()));
}
