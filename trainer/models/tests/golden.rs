//! Towers, language models, projectors and joined models against `transformers` and PyTorch
//! (`tests/golden/models/make.py`).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::PathBuf;

use candle_core::Tensor;
use support::{DEVICE, Expected, IMAGE, assert_close, assert_gradients, golden, tensors};
use vela_models::{
    Fresh, GenerateOptions, LanguageFamily, Layout, ProjectorKind, ProjectorPreset, VisionFamily, Vlm, VlmConfig,
};

const TOLERANCE: f32 = 2e-5;

fn folders(vision: &str, language: &str) -> (PathBuf, PathBuf) {
    (golden(&format!("vision_{vision}")), golden(&format!("language_{language}")))
}

/// A model joined from a two-tower folder and a language model's folder, with a fresh projector and features from the
/// tower's last state, so that every block is computed.
fn joined_from_parts(vision: &str, language: &str) -> Vlm {
    let (vision_dir, language_dir) = folders(vision, language);
    let mut config = VlmConfig::join(&vision_dir, &language_dir, &ProjectorPreset::default(), IMAGE).unwrap();
    config.features.states = vec![config.vision.num_layers];
    let fresh = Fresh { names: &|name| name.starts_with("multi_modal_projector."), seed: 1 };
    let parts = [(Layout::Vision, vision_dir.as_path()), (Layout::Language, language_dir.as_path())];
    Vlm::from_folders(config, &parts, fresh, &|_| true, &DEVICE).unwrap()
}

fn check_tower(vision: &str) {
    let (model, expected) = (joined_from_parts(vision, "qwen2"), tensors(&format!("vision_{vision}")));
    let states = model.tower().hidden_states(&expected["pixels"]).unwrap();
    assert_eq!(states.len(), 4);
    for (index, state) in states.iter().enumerate() {
        assert_close(&format!("{vision} state {index}"), state, &expected[&format!("hidden.{index}")], TOLERANCE);
    }
}

#[test]
fn hidden_states_of_clip_equal_the_reference() {
    check_tower("clip");
}

#[test]
fn hidden_states_of_chinese_clip_equal_the_reference() {
    check_tower("chinese_clip");
}

#[test]
fn hidden_states_of_siglip_equal_the_reference() {
    check_tower("siglip");
}

/// Logits where the mask is set, which is all the reference defines.
fn visible(logits: &Tensor, mask: &[Vec<u32>]) -> Tensor {
    let rows: Vec<u32> = (0u32..).zip(mask.concat()).filter(|(_, seen)| *seen == 1).map(|(row, _)| row).collect();
    let rows = Tensor::new(rows, &DEVICE).unwrap();
    logits.flatten_to(1).unwrap().index_select(&rows, 0).unwrap()
}

/// Logits, summed loss and every gradient; gives the number of gradients compared.
fn check_text(case: &str, model: &Vlm, pixels: Option<Tensor>) -> usize {
    let (expected, values) = (tensors(case), Expected::load(case));
    let batch = values.batch(pixels);
    let logits = visible(&model.logits(&batch).unwrap(), &values.mask);
    assert_close(&format!("{case} logits"), &logits, &visible(&expected["logits"], &values.mask), TOLERANCE);
    let loss = model.loss(&batch).unwrap();
    let found = f64::from(loss.to_scalar::<f32>().unwrap());
    assert!((found / values.loss - 1.0).abs() <= f64::from(TOLERANCE), "{case}: loss {found}, not {}", values.loss);
    assert_gradients(model, &loss, &expected, TOLERANCE)
}

#[test]
fn qwen2_alone_equals_the_reference() {
    assert_eq!(check_text("language_qwen2", &joined_from_parts("clip", "qwen2"), None), 26);
}

#[test]
fn llama_alone_equals_the_reference() {
    assert_eq!(check_text("language_llama", &joined_from_parts("clip", "llama"), None), 21);
}

#[test]
fn the_first_qwen_equals_the_reference() {
    assert_eq!(check_text("language_qwen", &joined_from_parts("clip", "qwen"), None), 19);
}

#[test]
fn both_generations_of_minimind_equal_the_reference() {
    assert_eq!(check_text("language_minimind", &joined_from_parts("clip", "minimind"), None), 20);
    assert_eq!(check_text("language_minimind3", &joined_from_parts("clip", "minimind3"), None), 24);
}

#[test]
fn qwen3_and_a_vicuna_folder_equal_the_reference() {
    assert_eq!(check_text("language_qwen3", &joined_from_parts("clip", "qwen3"), None), 25);
    assert_eq!(check_text("language_vicuna", &joined_from_parts("clip", "vicuna"), None), 21);
}

#[test]
fn the_last_hidden_state_of_each_tower_equals_the_reference() {
    let expected = tensors("vision_last");
    for (vision, normed) in [("siglip", true), ("clip", false)] {
        let (vision_dir, language_dir) = folders(vision, "qwen2");
        let mut config = VlmConfig::join(&vision_dir, &language_dir, &ProjectorPreset::default(), IMAGE).unwrap();
        config.features.states = vec![config.vision.num_layers];
        config.features.keep_class_token = true;
        config.features.post_norm = normed;
        let fresh = Fresh { names: &|name| name.starts_with("multi_modal_projector."), seed: 1 };
        let parts = [(Layout::Vision, vision_dir.as_path()), (Layout::Language, language_dir.as_path())];
        let model = Vlm::from_folders(config, &parts, fresh, &|_| true, &DEVICE).unwrap();
        let pixels = tensors(&format!("vision_{vision}"))["pixels"].clone();
        assert_close(vision, &model.tower().forward(&pixels).unwrap(), &expected[vision], TOLERANCE);
        let trains = model.params().get("vision_tower.vision_model.post_layernorm.weight").unwrap().var().is_some();
        assert_eq!(trains, normed, "{vision}");
    }
}

/// `num_gradients`: parameters but those of tower layers that no feature is read from.
fn check_joined(case: &str, num_gradients: usize) {
    let model = Vlm::load(&golden(case), &|_| true, &DEVICE).unwrap();
    let pixels = tensors(case)["pixels"].clone();
    assert_eq!(check_text(case, &model, Some(pixels.clone())), num_gradients, "{case}");
    let values = Expected::load(case);
    let options = GenerateOptions { max_new_tokens: values.answer.len(), ..GenerateOptions::default() };
    let answer = model.generate(&values.prompt, Some(&pixels.narrow(0, 0, 1).unwrap()), &options).unwrap();
    assert_eq!(answer, values.answer, "{case}: greedy answer");
}

#[test]
fn chinese_clip_with_qwen2_equals_the_reference() {
    check_joined("joined_chinese_clip_qwen2", 67);
}

#[test]
fn clip_with_llama_and_two_feature_layers_and_class_token_equals_the_reference() {
    check_joined("joined_clip_llama", 62);
}

#[test]
fn siglip_with_tied_llama_and_projector_without_bias_equals_the_reference() {
    check_joined("joined_siglip_llama", 73);
}

#[test]
fn siglip_with_untied_qwen2_equals_the_reference() {
    check_joined("joined_siglip_qwen2", 66);
}

fn check_projector(case: &str, kind: ProjectorKind) {
    let preset = support::preset(VisionFamily::Clip, LanguageFamily::Qwen2, kind);
    let mut model = Vlm::init(preset.config(80, IMAGE).unwrap(), 1, &|_| true, &DEVICE).unwrap();
    let expected = tensors(case);
    let given: Vec<_> = expected.iter().filter_map(|(name, t)| name.strip_prefix("param.").map(|n| (n, t))).collect();
    let held = model.params().iter().filter(|(name, ..)| name.starts_with("multi_modal_projector.")).count();
    assert_eq!(given.len(), held);
    given.iter().for_each(|(name, values)| model.params_mut().set(name, values).unwrap());
    let out = model.projector().forward(&expected["features"]).unwrap();
    assert_close(case, &out, &expected["out"], TOLERANCE);
    let count = out.elem_count();
    let ramp: Vec<f32> = (0..count).map(|index| -1.0 + 2.0 * index as f32 / (count - 1) as f32).collect();
    let weighted = (&out * Tensor::from_vec(ramp, out.shape(), &DEVICE).unwrap()).unwrap().sum_all().unwrap();
    assert_eq!(assert_gradients(&model, &weighted, &expected, TOLERANCE), held);
}

#[test]
fn linear_projector_equals_the_reference() {
    check_projector("projector_linear", ProjectorKind::Linear);
}

#[test]
fn normed_projector_equals_the_reference() {
    check_projector("projector_ln_mlp", ProjectorKind::LnMlp);
}
