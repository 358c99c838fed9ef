//! Every format but JPEG, by the `image` crate, brought to what Pillow gives for the same file.

use std::error::Error;
use std::io::{self, Cursor};

use image::{ColorType, ImageDecoder, ImageError, ImageFormat, ImageReader, ImageResult, Limits};

use crate::ProcessorError;

use super::{MAX_PIXELS, RgbImage, convert, orientation};

/// The picture as RGB, not yet upright, and the orientation (1-8) its metadata tells.
pub(super) fn decode(bytes: &[u8], format: ImageFormat, name: &str) -> Result<(RgbImage, u8), ProcessorError> {
    let fault = |error: ImageError| to_error(error, name);
    let mut decoder = open(bytes, format, name)?;
    let (width, height) = decoder.dimensions();
    let orientation = read_orientation(&mut decoder, bytes, format);
    let color = decoder.color_type();
    let mut samples = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut samples).map_err(fault)?;
    let data = to_rgb(&samples, color, is_gray_png(bytes, format), name)?;
    Ok((RgbImage { width, height, data }, orientation))
}

/// Reads the header alone: what [`decode`] refuses before the first pixel.
pub(super) fn check_header(bytes: &[u8], format: ImageFormat, name: &str) -> Result<(), ProcessorError> {
    open(bytes, format, name).map(drop)
}

fn open<'a>(bytes: &'a [u8], format: ImageFormat, name: &str) -> Result<impl ImageDecoder + use<'a>, ProcessorError> {
    let reader = ImageReader::with_format(Cursor::new(bytes), format);
    let decoder = unlimited(reader).into_decoder().map_err(|error| to_error(error, name))?;
    let (width, height) = decoder.dimensions();
    match u64::from(width) * u64::from(height) > MAX_PIXELS {
        true => Err(ProcessorError::ImageTooLarge { name: name.to_owned(), width, height, limit: MAX_PIXELS }),
        false => Ok(decoder),
    }
}

/// The pixel limit is ours; the library's own byte limit would be a second, unstated one.
fn unlimited(mut reader: ImageReader<Cursor<&[u8]>>) -> ImageReader<Cursor<&[u8]>> {
    reader.limits(Limits::no_limits());
    reader
}

fn read_orientation(decoder: &mut impl ImageDecoder, bytes: &[u8], format: ImageFormat) -> u8 {
    // A TIFF file is itself the structure that EXIF blocks borrow.
    let exif = match format {
        ImageFormat::Tiff => Some(bytes.to_vec()),
        _ => present(decoder.exif_metadata()),
    };
    let from_exif = exif.and_then(|block| orientation::from_exif(&block));
    from_exif.or_else(|| present(decoder.xmp_metadata()).and_then(|xmp| orientation::from_xmp(&xmp))).unwrap_or(1)
}

/// Metadata that cannot be read does not make the picture unreadable.
fn present(metadata: ImageResult<Option<Vec<u8>>>) -> Option<Vec<u8>> {
    metadata.ok().flatten()
}

/// Whether the PNG header says gray without alpha, even if a transparent colour makes the decoder add a channel.
fn is_gray_png(bytes: &[u8], format: ImageFormat) -> bool {
    /// Signature, chunk length, `IHDR`, width, height, depth; then the colour type.
    const COLOR_TYPE_OFFSET: usize = 25;
    format == ImageFormat::Png && bytes.get(COLOR_TYPE_OFFSET) == Some(&0)
}

fn to_rgb(samples: &[u8], color: ColorType, gray_png: bool, name: &str) -> Result<Vec<u8>, ProcessorError> {
    let rgb = match color {
        ColorType::L8 => convert::gray_to_rgb(samples),
        ColorType::La8 => convert::take_color(samples, 2, 1),
        ColorType::Rgb8 => samples.to_vec(),
        ColorType::Rgba8 => convert::take_color(samples, 4, 3),
        ColorType::L16 => convert::gray_to_rgb(&convert::clip_gray_16(samples)),
        ColorType::La16 if gray_png => convert::take_color(&convert::clip_gray_16(samples), 2, 1),
        ColorType::La16 => convert::take_color(&convert::high_bytes(samples), 2, 1),
        ColorType::Rgb16 => convert::high_bytes(samples),
        ColorType::Rgba16 => convert::take_color(&convert::high_bytes(samples), 4, 3),
        other => {
            let detail = format!("expected 8 or 16 bits per sample, found {other:?}");
            return Err(ProcessorError::UnsupportedImage { name: name.to_owned(), detail });
        }
    };
    Ok(rgb)
}

fn to_error(error: ImageError, name: &str) -> ProcessorError {
    let name = name.to_owned();
    match error {
        // This variant's `source` skips the very error it holds.
        ImageError::IoError(io) if io.kind() == io::ErrorKind::UnexpectedEof => ProcessorError::TruncatedImage { name },
        other if ends_early(&other) => ProcessorError::TruncatedImage { name },
        ImageError::Unsupported(reason) => ProcessorError::UnsupportedImage { name, detail: reason.to_string() },
        other => ProcessorError::DamagedImage { name, detail: other.to_string() },
    }
}

fn ends_early(error: &(dyn Error + 'static)) -> bool {
    let unexpected_end = |io: &io::Error| io.kind() == io::ErrorKind::UnexpectedEof;
    let mut link = Some(error);
    while let Some(cause) = link {
        if cause.downcast_ref().is_some_and(unexpected_end) {
            return true;
        }
        link = cause.source();
    }
    false
}
