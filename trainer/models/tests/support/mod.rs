//! What the tests of this crate share: golden folders, batches, comparison of tensors, small models.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::Deserialize;
use vela_models::{LanguageFamily, ModelBatch, ModelPreset, ProjectorKind, VisionFamily, Vlm, VlmConfig};

pub(crate) const DEVICE: Device = Device::Cpu;
pub(crate) const IMAGE: u32 = 79;

/// `tests/golden/models`, made by the script beside it.
pub(crate) fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models").join(case)
}

#[derive(Deserialize)]
pub(crate) struct Expected {
    pub(crate) ids: Vec<Vec<u32>>,
    pub(crate) mask: Vec<Vec<u32>>,
    pub(crate) labels: Vec<Vec<i32>>,
    pub(crate) loss: f64,
    #[serde(default)]
    pub(crate) prompt: Vec<u32>,
    #[serde(default)]
    pub(crate) answer: Vec<u32>,
}

impl Expected {
    pub(crate) fn load(case: &str) -> Self {
        serde_json::from_str(&std::fs::read_to_string(golden(case).join("expected.json")).unwrap()).unwrap()
    }

    /// The batch whose rows are these, one document each.
    pub(crate) fn batch(&self, pixels: Option<Tensor>) -> ModelBatch {
        let shape = (self.ids.len(), self.ids[0].len());
        let tensor = |values: Vec<u32>| Tensor::from_vec(values, shape, &DEVICE).unwrap();
        let ids = self.ids.concat();
        let image_rows = (0u32..).zip(&ids).filter(|(_, id)| **id == IMAGE).map(|(row, _)| row).collect();
        ModelBatch {
            positions_BT: tensor((0..shape.0).flat_map(|_| 0..shape.1 as u32).collect()),
            documents_BT: tensor(self.mask.concat()),
            ids_BT: tensor(ids),
            labels: self.labels.concat(),
            pixels_NCHW: pixels,
            image_rows,
        }
    }
}

pub(crate) fn tensors(case: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden(case).join("expected.safetensors"), &DEVICE).unwrap()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn largest(tensor: &Tensor) -> f32 {
    values(tensor).iter().fold(0.0, |most, value| most.max(value.abs()))
}

/// The largest difference, relative to the largest expected value, or to `floor` where all are smaller.
pub(crate) fn relative_error(actual: &Tensor, expected: &Tensor, floor: f32) -> f32 {
    assert_eq!(actual.dims(), expected.dims());
    let (actual, expected_values) = (values(actual), values(expected));
    let worst = actual.iter().zip(&expected_values).fold(0.0f32, |most, (a, e)| most.max((a - e).abs()));
    worst / largest(expected).max(floor)
}

pub(crate) fn assert_close(what: &str, actual: &Tensor, expected: &Tensor, tolerance: f32) {
    let error = relative_error(actual, expected, f32::MIN_POSITIVE);
    assert!(error <= tolerance, "{what}: relative error {error} above {tolerance}");
}

/// Softmax does not see a shift of all keys: without rotary positions the true gradient of a key bias is zero, and what
/// comes out is rounding.
pub(crate) fn is_blind(name: &str) -> bool {
    name.starts_with("vision_tower.") && name.ends_with("k_proj.bias")
}

/// Compares every `grad.*` tensor and gives their number. Errors are relative to the tensor's largest value, but to no
/// less than a thousandth of the model's largest gradient; a blind bias has only to vanish beside that one.
pub(crate) fn assert_gradients(
    model: &Vlm,
    loss: &Tensor,
    expected: &HashMap<String, Tensor>,
    tolerance: f32,
) -> usize {
    let gradients = loss.backward().unwrap();
    let expected: Vec<(&str, &Tensor)> =
        expected.iter().filter_map(|(name, tensor)| name.strip_prefix("grad.").map(|name| (name, tensor))).collect();
    let most = expected.iter().map(|(_, tensor)| largest(tensor)).fold(0.0, f32::max);
    let is_expected = |wanted: &str| expected.iter().any(|(name, _)| *name == wanted);
    for (name, param) in model.params().trainable() {
        let moves = gradients.get(param.as_tensor()).is_some_and(|gradient| largest(gradient) > 0.0);
        assert!(!moves || is_expected(name), "{name} has a gradient, the reference has none");
    }
    for (name, tensor) in &expected {
        let param = model.params().get(name).unwrap();
        let Some(gradient) = param.var().and_then(|var| gradients.get(var.as_tensor())) else {
            // Weights that are carried along get a zero gradient, if any, from the reference.
            assert_eq!(largest(tensor), 0.0, "{name} has no gradient");
            continue;
        };
        if is_blind(name) {
            assert!(largest(gradient) <= 1e-6 * most, "gradient of {name} does not vanish: {}", largest(gradient));
            continue;
        }
        let error = relative_error(gradient, tensor, 1e-3 * most);
        assert!(error <= tolerance, "gradient of {name}: relative error {error} above {tolerance}");
    }
    expected.len()
}

/// A preset of a few thousand parameters.
pub(crate) fn preset(vision: VisionFamily, language: LanguageFamily, projector: ProjectorKind) -> ModelPreset {
    let text = "
        [vision]
        family = 'clip'
        hidden_size = 16
        intermediate_size = 24
        num_layers = 3
        num_heads = 2
        image_size = 14
        patch_size = 4
        [language]
        family = 'qwen2'
        hidden_size = 16
        intermediate_size = 24
        num_layers = 2
        num_heads = 4
        num_key_value_heads = 2
        max_positions = 128
        [init]
        std = 0.3
    ";
    let mut preset: ModelPreset = toml::from_str(text).unwrap();
    preset.vision.family = vision;
    preset.language.family = language;
    if language == LanguageFamily::Qwen {
        preset.language.num_key_value_heads = None;
    }
    preset.projector.kind = projector;
    preset
}

pub(crate) fn small_config() -> VlmConfig {
    preset(VisionFamily::Clip, LanguageFamily::Qwen2, ProjectorKind::Mlp2xGelu).config(80, IMAGE).unwrap()
}

/// Pixels that differ from image to image.
pub(crate) fn pixels(images: usize) -> Tensor {
    let count = images * 3 * 14 * 14;
    let wave: Vec<f32> = (0..count).map(|index| (index as f32 * 0.37 + (index / 588) as f32).sin()).collect();
    Tensor::from_vec(wave, (images, 3, 14, 14), &DEVICE).unwrap()
}

/// A batch from rows of (id, label, position, document).
pub(crate) fn batch(rows: &[Vec<(u32, i32, u32, u32)>], pixels: Option<Tensor>) -> ModelBatch {
    let (shape, cells) = ((rows.len(), rows[0].len()), rows.concat());
    let tensor = |values: Vec<u32>| Tensor::from_vec(values, shape, &DEVICE).unwrap();
    ModelBatch {
        ids_BT: tensor(cells.iter().map(|cell| cell.0).collect()),
        labels: cells.iter().map(|cell| cell.1).collect(),
        positions_BT: tensor(cells.iter().map(|cell| cell.2).collect()),
        documents_BT: tensor(cells.iter().map(|cell| cell.3).collect()),
        pixels_NCHW: pixels,
        image_rows: (0u32..).zip(&cells).filter(|(_, cell)| cell.0 == IMAGE).map(|(row, _)| row).collect(),
    }
}

/// One document: `ids`, the last `labelled` of them labelled.
pub(crate) fn document(ids: &[u32], labelled: usize, number: u32) -> Vec<(u32, i32, u32, u32)> {
    let first = ids.len() - labelled;
    let label = |column: usize| if column >= first { ids[column] as i32 } else { -100 };
    ids.iter().enumerate().map(|(column, &id)| (id, label(column), column as u32, number)).collect()
}

/// `before`, an image of nine features, `after`.
pub(crate) fn with_image(before: &[u32], after: &[u32]) -> Vec<u32> {
    [before, &[IMAGE; 9], after].concat()
}
