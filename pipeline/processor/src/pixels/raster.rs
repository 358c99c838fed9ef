//! WebP, BMP and TIFF, by the `image` crate, brought to what Pillow gives for the same file.

use std::error::Error;
use std::io::{self, Cursor};

use image::{ColorType, ExtendedColorType, ImageDecoder, ImageError, ImageFormat, ImageReader, ImageResult, Limits};

use crate::ProcessorError;

use super::decode::check_extent;
use super::resample::CHANNELS;
use super::{RgbImage, convert, orientation, webp};

/// The picture as RGB, not yet upright, and the orientation (1-8) its metadata tells.
pub(super) fn decode(bytes: &[u8], format: ImageFormat, name: &str) -> Result<(RgbImage, u8), ProcessorError> {
    let mut decoder = open(bytes, format, name)?;
    let orientation = read_orientation(&mut decoder, bytes, format);
    let (width, height) = decoder.dimensions();
    let frame = if format == ImageFormat::WebP { webp::first_frame(bytes) } else { None };
    let mut image = match frame {
        Some(frame) => {
            let still = to_rgb(open(&frame.still, format, name)?, name)?;
            on_canvas(&still, (width, height), (frame.left, frame.top))
        }
        None => to_rgb(decoder, name)?,
    };
    if format == ImageFormat::Bmp {
        round_down_16_bit(&mut image.data, bytes);
    }
    Ok((image, orientation))
}

/// A frame at its place; black where it does not reach.
fn on_canvas(frame: &RgbImage, (width, height): (u32, u32), (left, top): (u32, u32)) -> RgbImage {
    let mut data = vec![0; width as usize * height as usize * CHANNELS];
    let visible = frame.width.min(width.saturating_sub(left)) as usize * CHANNELS;
    let rows = frame.data.chunks_exact((frame.width as usize * CHANNELS).max(1));
    for (row, samples) in rows.enumerate().take(height.saturating_sub(top) as usize).filter(|_| visible > 0) {
        let at = ((top as usize + row) * width as usize + left as usize) * CHANNELS;
        data[at..at + visible].copy_from_slice(&samples[..visible]);
    }
    RgbImage { width, height, data }
}

/// Samples of 5 and 6 bits are brought to 8 by the library rounding to the nearest, by Pillow rounding down.
fn round_down_16_bit(rgb: &mut [u8], bmp: &[u8]) {
    // Bits per pixel and compression in the header; with bit fields, then the green mask.
    let &[16, 0, compression, ..] = bmp.get(28..).unwrap_or_default() else { return };
    let has_6_bit_green = compression == 3 && bmp.get(58..60) == Some(&[0xE0, 0x07]);
    let levels = [31, if has_6_bit_green { 63 } else { 31 }, 31];
    for (sample, levels) in rgb.iter_mut().zip(levels.iter().cycle()) {
        let level = (u32::from(*sample) * levels + 127) / 255;
        *sample = (level * 255 / levels) as u8;
    }
}

/// Reads the header alone: what [`decode`] refuses before the first pixel.
pub(super) fn check_header(bytes: &[u8], format: ImageFormat, name: &str) -> Result<(), ProcessorError> {
    open(bytes, format, name).map(drop)
}

fn open<'a>(bytes: &'a [u8], format: ImageFormat, name: &str) -> Result<impl ImageDecoder + use<'a>, ProcessorError> {
    let reader = ImageReader::with_format(Cursor::new(bytes), format);
    let decoder = unlimited(reader).into_decoder().map_err(|error| to_error(error, name))?;
    let (width, height) = decoder.dimensions();
    check_extent(width, height, name)?;
    let refused = |what: &str| {
        Err(ProcessorError::UnsupportedImage {
            name: name.to_owned(),
            detail: format!("TIFF with {what} is not decoded"),
        })
    };
    match decoder.original_color_type() {
        _ if is_jpeg_in_tiff(bytes, format) => refused("JPEG inside"),
        ExtendedColorType::Cmyk8 | ExtendedColorType::Cmyk16 => refused("CMYK samples"),
        _ => Ok(decoder),
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

/// Not exactly libjpeg-turbo's pixels, so none at all.
fn is_jpeg_in_tiff(bytes: &[u8], format: ImageFormat) -> bool {
    const COMPRESSION_TAG: u16 = 259;
    let compression = || orientation::tiff_number(bytes, COMPRESSION_TAG);
    format == ImageFormat::Tiff && matches!(compression(), Some(6 | 7))
}

fn to_rgb(decoder: impl ImageDecoder, name: &str) -> Result<RgbImage, ProcessorError> {
    let (width, height) = decoder.dimensions();
    let color = decoder.color_type();
    let mut samples = vec![0; decoder.total_bytes() as usize];
    decoder.read_image(&mut samples).map_err(|error| to_error(error, name))?;
    let channels = usize::from(color.channel_count());
    let data = match color {
        ColorType::Rgb8 => samples,
        ColorType::L8 | ColorType::La8 | ColorType::Rgba8 => convert::colors(&samples, channels),
        ColorType::L16 => convert::gray_to_rgb(&convert::clip_gray_16(&samples)),
        ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16 => {
            convert::colors(&convert::high_bytes(&samples), channels)
        }
        other => {
            let detail = format!("expected 8 or 16 bits per sample, found {other:?}");
            return Err(ProcessorError::UnsupportedImage { name: name.to_owned(), detail });
        }
    };
    Ok(RgbImage { width, height, data })
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
