//! Encoded image bytes: decoding to upright RGB, and the encoders that rendered data is written with.

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

pub use crate::pixels::{MAX_PIXELS, RgbImage, check_header, decode_rgb};

/// Encodes RGB rows (`height * width * 3` bytes) as an 8-bit PNG.
///
/// # Panics
/// If `rgb_hwc` does not fill the extent.
pub fn encode_png(rgb_hwc: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut encoded = Vec::new();
    PngEncoder::new_with_quality(&mut encoded, CompressionType::Fast, FilterType::Adaptive)
        .write_image(rgb_hwc, width, height, ExtendedColorType::Rgb8)
        .expect("writing RGB rows that fill their extent to memory cannot fail");
    encoded
}

/// Encodes RGB rows (`height * width * 3` bytes) as a baseline 4:2:0 JPEG, as libjpeg-turbo does at `quality` (1-100).
///
/// # Panics
/// If `rgb_hwc` does not fill the extent, or a side is 0 or above 65,500.
pub fn encode_jpeg(rgb_hwc: &[u8], width: u32, height: u32, quality: u8) -> Vec<u8> {
    crate::pixels::encode_jpeg(rgb_hwc, width, height, quality)
}
