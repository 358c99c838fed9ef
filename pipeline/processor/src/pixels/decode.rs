//! Any supported file to upright RGB, as `PIL.ImageOps.exif_transpose` and `Image.convert("RGB")` give it.

use crate::ProcessorError;

use super::{convert, jpeg, orientation, raster};

/// Pictures above this number of pixels are refused before memory is taken: where Pillow 13 stops (twice its
/// `MAX_IMAGE_PIXELS`).
pub const MAX_PIXELS: u64 = 178_956_970;

/// A decoded picture: `height * width * 3` bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Interleaved RGB, rows from the top.
    pub data: Vec<u8>,
}

/// Decodes a file by its first bytes, whatever it is called: JPEG, PNG, GIF (first frame), WebP (first frame), BMP,
/// TIFF (first page). The orientation its metadata tells is applied; alpha is dropped, palettes are looked up.
/// `name` is for messages.
///
/// # Errors
/// The image variants of [`ProcessorError`].
pub fn decode_rgb(bytes: &[u8], name: &str) -> Result<RgbImage, ProcessorError> {
    let format = Format::sniff(bytes).ok_or_else(|| unknown_format(bytes, name))?;
    let (image, orientation) = match format {
        Format::Jpeg => (decode_jpeg(bytes, name)?, orientation::of_jpeg(bytes)),
        Format::Raster(format) => raster::decode(bytes, format, name)?,
    };
    if image.data.is_empty() {
        return Err(ProcessorError::EmptyImage { name: name.to_owned() });
    }
    Ok(orientation::apply(image, orientation))
}

/// Reads the header alone: finds what [`decode_rgb`] refuses before the first pixel, not a file that breaks off later.
///
/// # Errors
/// The image variants of [`ProcessorError`].
pub fn check_header(bytes: &[u8], name: &str) -> Result<(), ProcessorError> {
    match Format::sniff(bytes).ok_or_else(|| unknown_format(bytes, name))? {
        Format::Jpeg => jpeg::check_header(bytes, MAX_PIXELS).map_err(|fault| jpeg_error(fault, name)),
        Format::Raster(format) => raster::check_header(bytes, format, name),
    }
}

enum Format {
    Jpeg,
    Raster(image::ImageFormat),
}

impl Format {
    fn sniff(bytes: &[u8]) -> Option<Self> {
        use image::ImageFormat::{Bmp, Gif, Png, Tiff, WebP};
        match bytes {
            [0xFF, 0xD8, 0xFF, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Some(Self::Raster(Png)),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Raster(Gif)),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::Raster(WebP)),
            [b'B', b'M', ..] => Some(Self::Raster(Bmp)),
            [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => Some(Self::Raster(Tiff)),
            _ => None,
        }
    }
}

fn unknown_format(bytes: &[u8], name: &str) -> ProcessorError {
    let name = name.to_owned();
    match bytes {
        [] => ProcessorError::EmptyImage { name },
        _ => ProcessorError::UnknownImageFormat { name, head: bytes[..bytes.len().min(8)].to_vec() },
    }
}

fn decode_jpeg(bytes: &[u8], name: &str) -> Result<RgbImage, ProcessorError> {
    let samples = jpeg::decode(bytes, MAX_PIXELS).map_err(|fault| jpeg_error(fault, name))?;
    let data = match samples.channels {
        1 => convert::gray_to_rgb(&samples.data),
        3 => samples.data,
        _ => convert::inverted_cmyk_to_rgb(&samples.data),
    };
    Ok(RgbImage { width: samples.width, height: samples.height, data })
}

fn jpeg_error(fault: jpeg::Fault, name: &str) -> ProcessorError {
    let name = name.to_owned();
    match fault {
        jpeg::Fault::Truncated => ProcessorError::TruncatedImage { name },
        jpeg::Fault::TooLarge { width, height } => {
            ProcessorError::ImageTooLarge { name, width, height, limit: MAX_PIXELS }
        }
        jpeg::Fault::Unsupported(detail) => ProcessorError::UnsupportedImage { name, detail },
        jpeg::Fault::Damaged(detail) => ProcessorError::DamagedImage { name, detail },
    }
}
