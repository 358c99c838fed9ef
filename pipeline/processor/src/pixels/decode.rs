//! Any supported file to upright RGB, as `PIL.ImageOps.exif_transpose` and `Image.convert("RGB")` give it.

use crate::ProcessorError;

use super::transform::TensorBuilder;
use super::{PreprocessorConfig, convert, gif, jpeg, orientation, png, raster};

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
    let (image, orientation) = match Format::of(bytes, name)? {
        Format::Jpeg => (decode_jpeg(bytes, name)?, orientation::of_jpeg(bytes)),
        Format::Png => png::decode(bytes, name)?,
        Format::Gif => (gif::decode(bytes, name)?, 1),
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
    match Format::of(bytes, name)? {
        Format::Jpeg => open_jpeg(bytes, name).map(drop),
        Format::Png => png::check_header(bytes, name),
        Format::Gif => gif::check_header(bytes, name),
        Format::Raster(format) => raster::check_header(bytes, format, name),
    }
}

/// A file's picture as the tower's u8 planes, channel-height-width. An upright JPEG is resized row by row while it is
/// decoded.
pub(crate) fn load_tensor(bytes: &[u8], name: &str, config: &PreprocessorConfig) -> Result<Vec<u8>, ProcessorError> {
    let upright_jpeg =
        matches!(Format::of(bytes, name)?, Format::Jpeg) && !(2..=8).contains(&orientation::of_jpeg(bytes));
    if !upright_jpeg {
        let image = decode_rgb(bytes, name)?;
        let mut tensor = TensorBuilder::new((image.width, image.height), config, name)?;
        tensor.push(&image.data);
        return Ok(tensor.finish());
    }
    let picture = open_jpeg(bytes, name)?;
    let mut tensor = TensorBuilder::new((picture.width, picture.height), config, name)?;
    read_jpeg(picture, name, |rows| tensor.push(rows))?;
    Ok(tensor.finish())
}

enum Format {
    Jpeg,
    Png,
    Gif,
    Raster(image::ImageFormat),
}

impl Format {
    /// The format that the first bytes tell; an error that names it where it is one of those not decoded.
    fn of(bytes: &[u8], name: &str) -> Result<Self, ProcessorError> {
        use image::ImageFormat::{Bmp, Tiff, WebP};
        let refused = |format: &str| {
            let detail = format!("{format} is not decoded: convert it to JPEG, PNG, GIF, WebP, BMP or TIFF");
            Err(ProcessorError::UnsupportedImage { name: name.to_owned(), detail })
        };
        match bytes {
            [] => Err(ProcessorError::EmptyImage { name: name.to_owned() }),
            [0xFF, 0xD8, 0xFF, ..] => Ok(Self::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', ..] => Ok(Self::Png),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Ok(Self::Gif),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Ok(Self::Raster(WebP)),
            [b'B', b'M', ..] => Ok(Self::Raster(Bmp)),
            [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => Ok(Self::Raster(Tiff)),
            [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] | [0xFF, 0x4F, 0xFF, 0x51, ..] => refused("JPEG 2000"),
            [_, _, _, _, b'f', b't', b'y', b'p', b'a', b'v', b'i', b'f' | b's', ..] => refused("AVIF"),
            [_, _, _, _, b'f', b't', b'y', b'p', b'h' | b'm', b'e' | b'i', ..] => refused("HEIF"),
            [0xFF, 0x0A, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => refused("JPEG XL"),
            _ => {
                let head = bytes[..bytes.len().min(8)].to_vec();
                Err(ProcessorError::UnknownImageFormat { name: name.to_owned(), head })
            }
        }
    }
}

fn open_jpeg<'a>(bytes: &'a [u8], name: &str) -> Result<jpeg::Picture<'a>, ProcessorError> {
    jpeg::Picture::open(bytes, MAX_PIXELS).map_err(|fault| jpeg_error(fault, name))
}

fn decode_jpeg(bytes: &[u8], name: &str) -> Result<RgbImage, ProcessorError> {
    let picture = open_jpeg(bytes, name)?;
    let (width, height) = (picture.width, picture.height);
    let mut data = Vec::with_capacity(width as usize * height as usize * 3);
    read_jpeg(picture, name, |rows| data.extend_from_slice(rows))?;
    Ok(RgbImage { width, height, data })
}

/// Hands out RGB rows from the top, some at a time.
fn read_jpeg(picture: jpeg::Picture<'_>, name: &str, mut take: impl FnMut(&[u8])) -> Result<(), ProcessorError> {
    let channels = picture.channels;
    let result = picture.read(|samples| match channels {
        1 => take(&convert::gray_to_rgb(samples)),
        3 => take(samples),
        _ => take(&convert::inverted_cmyk_to_rgb(samples)),
    });
    result.map_err(|fault| jpeg_error(fault, name))
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

/// Refuses a picture of more than [`MAX_PIXELS`].
pub(super) fn check_extent(width: u32, height: u32, name: &str) -> Result<(), ProcessorError> {
    match u64::from(width) * u64::from(height) > MAX_PIXELS {
        true => Err(ProcessorError::ImageTooLarge { name: name.to_owned(), width, height, limit: MAX_PIXELS }),
        false => Ok(()),
    }
}
