//! Weights that `torch.save` wrote (`tests/golden/models/pickled.py`) are those of the safetensors file beside them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Tensor};
use support::{DEVICE, golden, values};
use tempfile::TempDir;
use vela_models::{Join, ModelError, ProjectorPreset};

/// A language model's folder with the config of `language_qwen2` and the given files, by their names there.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::copy(golden("language_qwen2").join("config.json"), dir.path().join("config.json")).unwrap();
    for (from, to) in files {
        fs::copy(golden("pickled").join(from), dir.path().join(to)).unwrap();
    }
    dir
}

/// Every tensor of the joined model, in its own element type.
fn joined(language: &Path) -> Result<HashMap<String, Tensor>, ModelError> {
    let (output, vision) = (TempDir::new().unwrap(), golden("vision_clip"));
    let join = Join {
        vision: &vision,
        language,
        projector: ProjectorPreset::default(),
        feature_layer: -2,
        feature_norm: false,
        image_token_id: 79,
        num_ids: 80,
        seed: 3,
        dtype: None,
    };
    join.write(output.path(), &|| false)?;
    Ok(candle_core::safetensors::load(output.path().join("model.safetensors"), &DEVICE).unwrap())
}

/// The language model's tensors are those of `language_qwen2` rounded to `dtype`, in that type.
fn assert_same(language: &Path, dtype: DType) {
    let (found, expected) = (joined(language).unwrap(), joined(&golden("language_qwen2")).unwrap());
    assert_eq!(found.len(), expected.len());
    for (name, expected) in expected {
        let dtype = if name.starts_with("language_model.") { dtype } else { expected.dtype() };
        assert_eq!((found[&name].dtype(), found[&name].dims()), (dtype, expected.dims()), "{name}");
        let as_f32 = |tensor: &Tensor| values(&tensor.to_dtype(DType::F32).unwrap());
        assert_eq!(as_f32(&found[&name]), as_f32(&expected.to_dtype(dtype).unwrap()), "{name}");
    }
}

#[test]
fn a_state_dict_with_shared_and_transposed_storages_is_read() {
    assert_same(folder(&[("strided.bin", "pytorch_model.bin")]).path(), DType::F32);
}

#[test]
fn a_training_scripts_file_is_read_where_its_model_stands() {
    assert_same(folder(&[("training.pth", "llm_512.pth")]).path(), DType::F16);
}

#[test]
fn parameters_are_tensors_too() {
    assert_same(folder(&[("parameters.bin", "pytorch_model.bin")]).path(), DType::BF16);
}

#[test]
fn shards_are_read_by_their_index() {
    let names =
        ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"];
    let places = names.map(|name| (format!("shards/{name}"), name));
    let files: Vec<(&str, &str)> = places.iter().map(|(from, to)| (from.as_str(), *to)).collect();
    assert_same(folder(&files).path(), DType::F32);
}

#[test]
fn a_safetensors_file_comes_first() {
    let dir = folder(&[("training.pth", "pytorch_model.bin")]);
    fs::copy(golden("language_qwen2").join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    assert_same(dir.path(), DType::F32);
}

fn told(dir: &TempDir) -> String {
    joined(dir.path()).expect_err("refused").to_string()
}

#[test]
fn what_is_no_state_dict_is_refused_by_what_it_is() {
    let told = |file: &str| told(&folder(&[(file, "pytorch_model.bin")]));
    assert!(told("legacy.bin").contains("PyTorch before 1.6"), "{}", told("legacy.bin"));
    assert!(told("module.bin").contains("dictionary of tensors"), "{}", told("module.bin"));
    assert!(told("list.bin").contains("dictionary of tensors"), "{}", told("list.bin"));
}

#[test]
fn none_and_several_files_are_refused() {
    assert!(told(&folder(&[])).contains("0 `.pth` files"));
    let two = folder(&[("training.pth", "a.pth"), ("training.pth", "b.pth")]);
    assert!(told(&two).contains("2 `.pth` files"), "{}", told(&two));
}

/// Whatever byte of a file is another, and wherever it is cut: a refusal or other numbers, and no panic.
#[test]
fn a_damaged_file_never_takes_the_process_down() {
    let dir = folder(&[("training.pth", "a.pth")]);
    let path = dir.path().join("a.pth");
    let sound = fs::read(&path).unwrap();
    // The pickle at the start, the directory at the end; between them are numbers.
    let (first, last) = (0..4000.min(sound.len()), sound.len().saturating_sub(3000)..sound.len());
    let mut refused = 0;
    for at in first.chain(last).step_by(29) {
        let mut damaged = sound.clone();
        damaged[at] ^= 0x5A;
        fs::write(&path, &damaged).unwrap();
        refused += u32::from(joined(dir.path()).is_err());
    }
    assert!(refused > 20, "{refused}");
    for length in (0..sound.len()).step_by(997) {
        fs::write(&path, &sound[..length]).unwrap();
        assert!(joined(dir.path()).is_err(), "{length} bytes");
    }
}
