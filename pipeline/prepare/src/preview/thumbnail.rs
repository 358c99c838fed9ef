//! A stored image as a small data URL.

use vela_processor::codec;
use vela_types::ImageTensor;

use crate::page::base64;

/// Longest side of a thumbnail in pixels.
const MAX_SIDE: usize = 336;
/// Below this side an image is shown with its pixels as they are, and PNG is the smaller file.
const SMALL_SIDE: usize = 96;
const JPEG_QUALITY: u8 = 82;

/// An image ready for a page.
pub(super) struct Thumbnail {
    /// `data:image/...`
    pub(super) url: String,
    /// True if a browser must not smooth it.
    pub(super) is_small: bool,
}

/// Averages blocks of pixels until no side exceeds [`MAX_SIDE`].
pub(super) fn thumbnail(image: &ImageTensor) -> Thumbnail {
    let (width, height) = (image.shape.width as usize, image.shape.height as usize);
    let factor = width.max(height).div_ceil(MAX_SIDE).max(1);
    let (columns, rows) = (width.div_ceil(factor), height.div_ceil(factor));
    let plane = width * height;
    let channel_of = |channel: usize| if image.shape.channels == 1 { 0 } else { channel };
    let mean = |channel: usize, column: usize, row: usize| {
        let (mut sum, mut num) = (0u32, 0u32);
        for y in row * factor..((row + 1) * factor).min(height) {
            for x in column * factor..((column + 1) * factor).min(width) {
                sum += u32::from(image.data[channel_of(channel) * plane + y * width + x]);
                num += 1;
            }
        }
        ((sum + num / 2) / num.max(1)) as u8
    };
    let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (column, row)));
    let pixels: Vec<u8> =
        places.flat_map(|(column, row)| [0, 1, 2].map(|channel| mean(channel, column, row))).collect();
    let is_small = width.max(height) <= SMALL_SIDE;
    let (kind, bytes) = match is_small {
        true => ("png", codec::encode_png(&pixels, columns as u32, rows as u32)),
        false => ("jpeg", codec::encode_jpeg(&pixels, columns as u32, rows as u32, JPEG_QUALITY)),
    };
    Thumbnail { url: format!("data:image/{kind};base64,{}", base64(&bytes)), is_small }
}

#[cfg(test)]
mod tests {
    use vela_types::{Fingerprint, ImageShape};

    use super::*;

    fn image(side: u32) -> ImageTensor {
        let shape = ImageShape { channels: 3, height: side, width: side };
        ImageTensor { shape, data: vec![7; shape.num_elements()].into(), hash: Fingerprint::default() }
    }

    #[test]
    fn small_images_keep_their_pixels_and_large_ones_stay_small_files() {
        let small = thumbnail(&image(32));
        assert!(small.is_small && small.url.starts_with("data:image/png;base64,"));
        let large = thumbnail(&image(1700));
        assert!(!large.is_small && large.url.starts_with("data:image/jpeg;base64,") && large.url.len() < 40_000);
    }
}
