//! Adapters against PEFT (`tests/golden/models/lora.py`), and what they leave alone.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::HashMap;

use candle_core::Tensor;
use support::{
    DEVICE, Expected, IMAGE, assert_close, assert_gradients, batch, document, golden, pixels, preset, tensors, values,
    with_image,
};
use vela_kernels::Tape;
use vela_models::{
    DropoutKeys, Fresh, LanguageFamily, Layout, LoraConfig, ModelBatch, ProjectorKind, TokenPlace, VisionFamily, Vlm,
    VlmConfig, is_adapter,
};

const CASE: &str = "lora_clip_llama";
const TOLERANCE: f32 = 2e-5;

fn lora(rank: usize, targets: &[&str]) -> LoraConfig {
    let targets = targets.iter().map(|target| (*target).to_owned()).collect();
    LoraConfig { rank, alpha: 2.0 * rank as f64, targets, dropout: 0.0 }
}

/// Adapters and projector learn.
fn learns(name: &str) -> bool {
    is_adapter(name) || name.starts_with("multi_modal_projector.")
}

/// The golden base with the golden adapter, from PEFT's file.
fn golden_model(dropout: f64) -> Vlm {
    let base = golden("joined_clip_llama");
    let targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"];
    let lora = LoraConfig { dropout, ..lora(3, &targets) };
    let config = VlmConfig::load(&base).unwrap().with_lora(lora).unwrap();
    let fresh = Fresh { names: &is_adapter, seed: 1 };
    let mut model = Vlm::from_folders(config, &[(Layout::Joined, &base)], fresh, &learns, &DEVICE).unwrap();
    let given = candle_core::safetensors::load(golden(CASE).join("adapter_model.safetensors"), &DEVICE).unwrap();
    assert_eq!(given.len(), model.params().trainable().count());
    for (name, tensor) in given {
        let name = name.strip_prefix("base_model.model.model.").unwrap();
        let name = name.replace("language_model.", "language_model.model.");
        model.params_mut().set(&name, &tensor).unwrap();
    }
    model
}

#[test]
fn logits_loss_and_gradients_equal_those_of_peft() {
    let (model, expected, given) = (golden_model(0.0), tensors(CASE), Expected::load(CASE));
    let batch = given.batch(Some(expected["pixels"].clone()));
    let visible = |logits: &Tensor| {
        let seen: Vec<u32> =
            (0u32..).zip(given.mask.concat()).filter(|(_, seen)| *seen == 1).map(|(row, _)| row).collect();
        logits.flatten_to(1).unwrap().index_select(&Tensor::new(seen, &DEVICE).unwrap(), 0).unwrap()
    };
    let logits = visible(&model.logits(&batch).unwrap());
    assert_close("logits", &logits, &visible(&expected["logits"]), TOLERANCE);
    let loss = model.loss(&batch).unwrap();
    assert!((f64::from(loss.to_scalar::<f32>().unwrap()) / given.loss - 1.0).abs() <= f64::from(TOLERANCE));
    assert_eq!(assert_gradients(&model, &loss, &expected, TOLERANCE), 24);
}

/// The settings of `lora_dropout`.
#[derive(serde::Deserialize)]
struct Dropout {
    rate: f64,
    seed: u64,
    step: u64,
    samples: Vec<u64>,
}

#[test]
fn with_dropout_loss_and_gradients_equal_those_of_peft_under_the_same_masks() {
    let (expected, given) = (tensors("lora_dropout"), Expected::load("lora_dropout"));
    let text = std::fs::read_to_string(golden("lora_dropout").join("expected.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let dropout: Dropout = serde_json::from_value(json["dropout"].clone()).unwrap();
    let (model, batch) = (golden_model(dropout.rate), given.batch(Some(expected["pixels"].clone())));
    let columns = given.mask[0].len() as u64;
    let row = |&sample: &u64| (0..columns).map(move |position| TokenPlace { sample, position });
    let places = || dropout.samples.iter().flat_map(row);
    let keys = DropoutKeys::new(dropout.seed, dropout.step, places());
    let loss = model.training_loss(&batch, Some(&keys)).unwrap();
    let value = |loss: &Tensor| f64::from(loss.to_scalar::<f32>().unwrap());
    assert!((value(&loss) / given.loss - 1.0).abs() <= f64::from(TOLERANCE), "{} {}", value(&loss), given.loss);
    assert_eq!(assert_gradients(&model, &loss, &expected, TOLERANCE), 24);
    // Outside training nothing is left out, and each seed and step leaves out something else.
    let plain = golden_model(0.0);
    assert_eq!(value(&model.loss(&batch).unwrap()), value(&plain.loss(&batch).unwrap()));
    assert_eq!(values(&model.logits(&batch).unwrap()), values(&plain.logits(&batch).unwrap()));
    assert_eq!(value(&plain.training_loss(&batch, Some(&keys)).unwrap()), value(&plain.loss(&batch).unwrap()));
    for (seed, step) in [(dropout.seed + 1, dropout.step), (dropout.seed, dropout.step + 1)] {
        let other = DropoutKeys::new(seed, step, places());
        assert_ne!(value(&model.training_loss(&batch, Some(&other)).unwrap()), value(&loss));
    }
}

/// Gradients of both walks, by name; the frozen base has none in either.
fn both_walks(model: &Vlm, batch: &ModelBatch) -> [HashMap<String, Vec<f32>>; 2] {
    let (loss, tape) = Tape::record(|| model.loss(batch).unwrap());
    let stores = [model.loss(batch).unwrap().backward().unwrap(), tape.backward(loss, 1.0).unwrap()];
    stores.map(|store| {
        let frozen = model.params().iter().filter(|(_, _, trains)| !trains);
        frozen.for_each(|(name, tensor, _)| assert!(store.get(tensor).is_none(), "{name} has a gradient"));
        let found = model
            .params()
            .trainable()
            .filter_map(|(name, var)| store.get(var.as_tensor()).map(|gradient| (name.to_owned(), values(gradient))));
        found.collect()
    })
}

fn two_rows() -> ModelBatch {
    let first = document(&with_image(&[1, 2], &[3, 4, 5, 6]), 3, 1);
    let second = document(&with_image(&[7], &[8, 9, 10, 11, 12]), 4, 1);
    batch(&[first, second], Some(pixels(2)))
}

/// A model with an adapter on every linear of its family.
fn adapted(family: LanguageFamily) -> Vlm {
    let linears: &[&str] = match family {
        LanguageFamily::Qwen => &["c_attn", "c_proj", "w1", "w2"],
        _ => &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    };
    let mut config = preset(VisionFamily::Clip, family, ProjectorKind::Mlp2xGelu).config(80, IMAGE).unwrap();
    config.language.lora = Some(lora(2, linears));
    Vlm::init(config, 5, &learns, &DEVICE).unwrap()
}

#[test]
fn a_fresh_adapter_changes_nothing_and_its_second_matrix_learns_first() {
    for family in [LanguageFamily::Qwen2, LanguageFamily::Llama, LanguageFamily::Qwen3, LanguageFamily::Qwen] {
        let mut model = adapted(family);
        let mut plain = model.config().clone();
        plain.language.lora = None;
        let plain = Vlm::init(plain, 5, &|_| false, &DEVICE).unwrap();
        assert_eq!(values(&model.logits(&two_rows()).unwrap()), values(&plain.logits(&two_rows()).unwrap()));
        let trained = model.params().trainable().count();
        let moves = |gradients: &HashMap<String, Vec<f32>>, part: &str, of: bool| {
            let some = gradients.iter().filter(|(name, _)| name.ends_with(part));
            some.for_each(|(name, values)| {
                assert_eq!(values.iter().any(|value| *value != 0.0), of, "{family:?} {name}")
            });
        };
        let first = both_walks(&model, &two_rows());
        assert_eq!(first[0].len(), trained);
        moves(&first[0], ".lora_B.weight", true);
        moves(&first[0], ".lora_A.weight", false);
        let second: Vec<(String, Tensor)> = model
            .params()
            .trainable()
            .filter(|(name, _)| name.ends_with(".lora_B.weight"))
            .map(|(name, var)| (name.to_owned(), (var.as_tensor().ones_like().unwrap() * 0.05).unwrap().detach()))
            .collect();
        second.iter().for_each(|(name, values)| model.params_mut().set(name, values).unwrap());
        let [graph, tape] = both_walks(&model, &two_rows());
        moves(&graph, ".lora_A.weight", true);
        assert_eq!(graph.len(), tape.len());
        for (name, expected) in &graph {
            let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
            let worst = expected.iter().zip(&tape[name]).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(worst <= 1e-4 * largest.max(1e-3), "{family:?} {name}: {worst} of {largest}");
        }
    }
}

#[test]
fn targets_of_another_family_are_refused_with_the_names_there_are() {
    let config = VlmConfig::load(&golden("joined_clip_llama")).unwrap();
    let told = config.with_lora(lora(3, &["c_attn"])).unwrap_err().to_string();
    assert!(told.contains("`lora.targets`") && told.contains("`self_attn.q_proj`"), "{told}");
}

#[test]
fn a_saved_model_comes_back_with_its_adapters() {
    let (model, dir) = (adapted(LanguageFamily::Qwen), tempfile::tempdir().unwrap());
    model.save(dir.path()).unwrap();
    let loaded = Vlm::load(dir.path(), &learns, &DEVICE).unwrap();
    assert_eq!(loaded.config().language.lora, model.config().language.lora);
    let same = model.params().iter().zip(loaded.params().iter()).all(|(a, b)| a.0 == b.0 && values(a.1) == values(b.1));
    assert!(same && model.params().iter().count() == loaded.params().iter().count());
}
