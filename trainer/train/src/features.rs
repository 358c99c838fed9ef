//! Features of a frozen tower as the images of a shard set.
//!
//! Such a set is a shard set like any other. In the place of an image's pixels it has the tower's features of them, row after
//! row, little-endian: to readers an image of 1 channel, a row of bytes per image token. `image_mode` says so, and of
//! which tower and pixels: `features/DTYPE/TOWER/MODE`, where TOWER is [`tower_fingerprint`] in hexadecimal and MODE the
//! image mode of the pixels. Everything else that is known of the processor, its fingerprint included, stays.

use std::fmt;
use std::str::FromStr;

use half::bf16;
use serde::Serialize;
use vela_models::{FeatureConfig, VisionConfig, Vlm, VlmConfig};
use vela_types::{Fingerprint, ImageShape, ProcessorSummary};

use crate::error::TrainError;

const PREFIX: &str = "features";

/// How a feature is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureType {
    /// As computed: training from it is training from pixels, bit for bit.
    F32,
    /// Rounded to the nearest, half the bytes.
    Bf16,
}

impl FeatureType {
    const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// The bytes that are stored for `values`.
    pub(crate) fn to_bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        }
    }

    /// The values of stored bytes.
    pub(crate) fn to_values(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect(),
            Self::Bf16 => bytes.as_chunks::<2>().0.iter().map(|word| bf16::from_le_bytes(*word).to_f32()).collect(),
        }
    }
}

impl fmt::Display for FeatureType {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl FromStr for FeatureType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::F32, Self::Bf16].into_iter().find(|known| known.as_str() == text);
        known.ok_or_else(|| format!("expected `f32` or `bf16`, found `{text}`"))
    }
}

/// What the image mode of a feature set tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FeatureMode {
    pub(crate) dtype: FeatureType,
    pub(crate) tower: Fingerprint,
    /// The image mode of the pixels.
    pub(crate) pixels: String,
}

impl FeatureMode {
    /// Reads an image mode; `None` for one of pixels.
    pub(crate) fn parse(image_mode: &str) -> Option<Self> {
        let mut parts = image_mode.splitn(4, '/');
        let (PREFIX, dtype, tower, pixels) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?) else {
            return None;
        };
        Some(Self { dtype: dtype.parse().ok()?, tower: tower.parse().ok()?, pixels: pixels.to_owned() })
    }

    fn image_mode(&self) -> String {
        let Self { dtype, tower, pixels } = self;
        format!("{PREFIX}/{dtype}/{tower}/{pixels}")
    }

    /// The summary of a feature set made from data of `processor` by the tower of `config`.
    pub(crate) fn summary(&self, processor: &ProcessorSummary, config: &VlmConfig) -> ProcessorSummary {
        let width = (config.feature_size() * self.dtype.size()) as u32;
        let image_shape = ImageShape { channels: 1, height: config.image_tokens() as u32, width };
        ProcessorSummary { image_shape, image_mode: self.image_mode(), ..processor.clone() }
    }
}

/// blake3 over all that decides a tower's features besides the pixels: a line about the tower's config, one about the states
/// that are taken and how, and name, extents and little-endian values of each of its parameters, in name order.
pub(crate) fn tower_fingerprint(model: &Vlm) -> Result<Fingerprint, TrainError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(describe(model.config()).as_bytes());
    for (name, tensor, _) in model.params().iter().filter(|(name, ..)| name.starts_with("vision_tower.")) {
        hasher.update(format!("{name} {:?}\n", tensor.dims()).as_bytes());
        let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
        hasher.update(&FeatureType::F32.to_bytes(&values));
    }
    Ok(Fingerprint(*hasher.finalize().as_bytes()))
}

/// What is not told by the parameters. Taken apart field by field, so that a new one is not forgotten here.
fn describe(config: &VlmConfig) -> String {
    let VisionConfig {
        family,
        hidden_size,
        intermediate_size,
        num_layers,
        num_heads,
        image_size,
        patch_size,
        num_channels,
        activation,
        layer_norm_eps,
        pooling_head,
    } = &config.vision;
    let FeatureConfig { states, single: _, keep_class_token, post_norm } = &config.features;
    format!(
        "vela tower 2\n{family:?} {hidden_size} {intermediate_size} {num_layers} {num_heads} {image_size} {patch_size} \
         {num_channels} {activation:?} {layer_norm_eps:e} {pooling_head}\n{states:?} {keep_class_token} {post_norm}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_comes_back_and_pixels_have_none() {
        let mode = FeatureMode { dtype: FeatureType::Bf16, tower: Fingerprint([7; 32]), pixels: "pillow".into() };
        assert_eq!(FeatureMode::parse(&mode.image_mode()), Some(mode));
        for pixels in ["pillow", "torchvision", "features", "features/f64/00/pillow", "features/f32/zz/pillow"] {
            assert_eq!(FeatureMode::parse(pixels), None, "{pixels}");
        }
    }

    #[test]
    fn values_come_back_as_stored() {
        let values = [0.0, -1.5, 1.0 / 3.0, 3e38, -1e-30];
        assert_eq!(FeatureType::F32.to_values(&FeatureType::F32.to_bytes(&values)), values);
        let rounded = FeatureType::Bf16.to_values(&FeatureType::Bf16.to_bytes(&values));
        assert!(rounded.iter().zip(&values).all(|(found, value)| (found - value).abs() <= value.abs() / 256.0));
        assert_eq!(rounded[..2], values[..2]);
    }
}
