//! PNG, as Pillow reads it: the first picture, its chunks walked here.
//!
//! Only the header and the pixel data reach the decoder. Text and colour profiles are never unpacked, except for what
//! tells an orientation, which is cut off at [`MAX_TEXT_BYTES`]: a bomb in them has nothing to blow up.
//! As in Pillow, checksums count in the chunks before the pixel data; that of the data itself is the one inside its
//! compressed stream; after the data a broken chunk ends the file.

use std::io::{self, Cursor};

use png::{BitDepth, ColorType, DecodeOptions, Decoder, DecodingError, Limits, Transformations};

use crate::ProcessorError;

use super::decode::check_extent;
use super::{RgbImage, convert, orientation};

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Unpacked text that is looked at: Pillow's `MAX_TEXT_CHUNK`.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// Width, height, depth, colour type, compression, filter, interlace (PNG specification, 11.2.1).
const HEADER_BYTES: usize = 13;
/// The colour type of one index per pixel.
const INDEXED: u8 = 3;

/// The picture as RGB, not yet upright, and the orientation (1-8) its metadata tells.
pub(super) fn decode(bytes: &[u8], name: &str) -> Result<(RgbImage, u8), ProcessorError> {
    let file = File::walk(bytes, name)?;
    if file.is_cut {
        return Err(truncated(name));
    }
    let fault = |error| to_error(error, name);
    let mut options = DecodeOptions::default();
    options.set_ignore_crc(true);
    options.set_ignore_adler32(false);
    let mut decoder = Decoder::new_with_options(Cursor::new(file.pixel_stream()), options);
    decoder.set_transformations(Transformations::IDENTITY);
    decoder.set_limits(Limits { bytes: usize::MAX });
    let mut reader = decoder.read_info().map_err(fault)?;
    let size = reader.output_buffer_size().ok_or_else(|| fault(DecodingError::LimitsExceeded))?;
    let mut packed = vec![0; size];
    let frame = reader.next_frame(&mut packed).map_err(fault)?;
    let rows = packed.chunks_exact(frame.line_size);
    let row_to_rgb = |row| file.row_to_rgb(row, frame.color_type, frame.bit_depth);
    let data = rows.flat_map(row_to_rgb).collect();
    Ok((RgbImage { width: file.width, height: file.height, data }, file.orientation()))
}

/// Reads the header alone.
pub(super) fn check_header(bytes: &[u8], name: &str) -> Result<(), ProcessorError> {
    let header = Chunk::first(&bytes[SIGNATURE.len()..]).ok_or_else(|| truncated(name))?;
    check_extent_of(header.body, name).map(drop)
}

fn check_extent_of(header: &[u8], name: &str) -> Result<(u32, u32), ProcessorError> {
    let [w0, w1, w2, w3, h0, h1, h2, h3, ..] = *header else { return Err(truncated(name)) };
    let (width, height) = (u32::from_be_bytes([w0, w1, w2, w3]), u32::from_be_bytes([h0, h1, h2, h3]));
    if width == 0 || height == 0 {
        return Err(ProcessorError::EmptyImage { name: name.to_owned() });
    }
    check_extent(width, height, name)?;
    Ok((width, height))
}

/// What the chunks hold.
struct File<'a> {
    header: &'a [u8],
    width: u32,
    height: u32,
    palette: &'a [u8],
    /// Consecutive pixel data, the decoder's due.
    data: Vec<&'a [u8]>,
    exif: Option<&'a [u8]>,
    /// Bodies of text chunks, the kind first.
    texts: Vec<Chunk<'a>>,
    /// Whether the last pixel data breaks off.
    is_cut: bool,
}

#[derive(Clone, Copy)]
struct Chunk<'a> {
    kind: [u8; 4],
    body: &'a [u8],
    /// Bytes that the chunk lacks.
    missing: usize,
    checksum: Option<u32>,
}

impl<'a> Chunk<'a> {
    /// The chunk at the start of `bytes`; `None` where there is no whole, plausible chunk header.
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let [l0, l1, l2, l3, k0, k1, k2, k3, rest @ ..] = bytes else { return None };
        let kind = [*k0, *k1, *k2, *k3];
        if !kind.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return None;
        }
        let length = u32::from_be_bytes([*l0, *l1, *l2, *l3]) as usize;
        let (body, after) = rest.split_at(length.min(rest.len()));
        let checksum = after.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        Some(Self { kind, body, missing: length - body.len(), checksum })
    }

    /// Bytes to the next chunk.
    fn len(&self) -> usize {
        8 + self.body.len() + 4
    }

    fn is_sound(&self) -> bool {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.kind);
        hasher.update(self.body);
        self.checksum == Some(hasher.finalize())
    }
}

impl<'a> File<'a> {
    fn walk(bytes: &'a [u8], name: &str) -> Result<Self, ProcessorError> {
        let mut rest = &bytes[SIGNATURE.len()..];
        let first = Chunk::first(rest).ok_or_else(|| truncated(name))?;
        let damaged = |detail: &str| ProcessorError::DamagedImage { name: name.to_owned(), detail: detail.to_owned() };
        if &first.kind != b"IHDR" || first.body.len() < HEADER_BYTES {
            return Err(damaged("expected a PNG header chunk"));
        }
        let (width, height) = check_extent_of(first.body, name)?;
        let (header, data, texts) = (&first.body[..HEADER_BYTES], Vec::new(), Vec::new());
        let mut file = Self { header, width, height, palette: &[], data, exif: None, texts, is_cut: false };
        let mut ends = false;
        while !ends {
            let Some(chunk) = Chunk::first(rest) else {
                return if file.data.is_empty() { Err(truncated(name)) } else { Ok(file) };
            };
            let before_pixels = file.data.is_empty() && &chunk.kind != b"IDAT";
            if before_pixels && chunk.missing == 0 && chunk.checksum.is_some() && !chunk.is_sound() {
                return Err(damaged(&format!("wrong checksum in chunk `{}`", chunk.kind.escape_ascii())));
            }
            let is_pixels = &chunk.kind == b"IDAT";
            if (before_pixels && chunk.checksum.is_none()) || (chunk.missing > 0 && !is_pixels) {
                return Err(truncated(name));
            }
            ends = &chunk.kind == b"IEND";
            file.take(chunk);
            rest = rest.get(chunk.len()..).unwrap_or_default();
            if is_pixels {
                rest = file.take_more_pixels(rest);
            }
        }
        match file.data.is_empty() {
            true => Err(damaged("no pixel data")),
            false => Ok(file),
        }
    }

    fn take(&mut self, chunk: Chunk<'a>) {
        match &chunk.kind {
            b"PLTE" => self.palette = chunk.body,
            b"eXIf" => self.exif = Some(chunk.body),
            b"tEXt" | b"zTXt" | b"iTXt" => self.texts.push(chunk),
            // Pixel data that another chunk parts from the first counts no more.
            b"IDAT" if self.data.is_empty() => {
                self.data.push(chunk.body);
                self.is_cut = chunk.missing > 0;
            }
            _ => {}
        }
    }

    /// Takes the pixel data that follows without a gap; returns what is left of the file.
    fn take_more_pixels(&mut self, mut rest: &'a [u8]) -> &'a [u8] {
        while let Some(chunk) = Chunk::first(rest).filter(|chunk| &chunk.kind == b"IDAT") {
            self.data.push(chunk.body);
            self.is_cut = chunk.missing > 0;
            rest = rest.get(chunk.len()..).unwrap_or_default();
        }
        rest
    }

    /// A PNG of the header and the pixel data alone. Indices are called gray, so that no palette is looked for.
    fn pixel_stream(&self) -> Vec<u8> {
        let mut header = self.header.to_vec();
        if header[9] == INDEXED {
            header[9] = 0;
        }
        let data = self.data.concat();
        let mut stream = Vec::with_capacity(data.len() + 64);
        stream.extend_from_slice(SIGNATURE);
        for (kind, body) in [(b"IHDR", &header), (b"IDAT", &data), (b"IEND", &Vec::new())] {
            stream.extend_from_slice(&(body.len() as u32).to_be_bytes());
            stream.extend_from_slice(kind);
            stream.extend_from_slice(body);
            // The checksum, which the decoder is told to ignore.
            stream.extend_from_slice(&[0; 4]);
        }
        stream
    }

    fn row_to_rgb(&self, row: &[u8], color: ColorType, depth: BitDepth) -> Vec<u8> {
        if self.header[9] == INDEXED {
            let indices = unpacked(row, depth, self.width as usize, 1);
            return convert::look_up(&indices, self.palette);
        }
        match (color, depth) {
            (ColorType::Grayscale, BitDepth::Sixteen) => convert::gray_to_rgb(&convert::clip_gray_16_be(row)),
            (ColorType::Grayscale, _) => {
                let largest = (1u16 << (depth as u8)) - 1;
                convert::gray_to_rgb(&unpacked(row, depth, self.width as usize, (255 / largest) as u8))
            }
            (_, BitDepth::Sixteen) => {
                let high_bytes: Vec<u8> = row.iter().step_by(2).copied().collect();
                convert::colors(&high_bytes, color.samples())
            }
            _ => convert::colors(row, color.samples()),
        }
    }

    /// EXIF in its own chunk, else as text; else XMP.
    fn orientation(&self) -> u8 {
        let in_text = || orientation::from_exif(&profile_in_hex(&self.text(b"Raw profile type exif")?)?);
        let in_xmp = || orientation::from_xmp(&self.text(b"XML:com.adobe.xmp")?);
        let from_exif = match self.exif {
            Some(block) => orientation::from_exif(block),
            None => in_text(),
        };
        from_exif.or_else(in_xmp).unwrap_or(1)
    }

    /// The last text under `keyword`, unpacked.
    fn text(&self, keyword: &[u8]) -> Option<Vec<u8>> {
        let of_keyword =
            |chunk: &&Chunk<'_>| chunk.body.strip_prefix(keyword).is_some_and(|rest| rest.first() == Some(&0));
        let chunk = self.texts.iter().rev().find(of_keyword)?;
        let rest = &chunk.body[keyword.len() + 1..];
        let unpack = |packed: &[u8]| fdeflate::decompress_to_vec_bounded(packed, MAX_TEXT_BYTES).ok();
        match &chunk.kind {
            b"tEXt" => Some(rest.to_vec()),
            // A byte tells the method.
            b"zTXt" => unpack(rest.get(1..)?),
            // A flag and the method, then language and translated keyword, each ended by a zero.
            _ => {
                let text = rest.get(2..)?.splitn(3, |&byte| byte == 0).nth(2)?;
                if rest[0] == 0 { Some(text.to_vec()) } else { unpack(text) }
            }
        }
    }
}

/// ImageMagick's form: a line break, name, length, then hexadecimal digits.
fn profile_in_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.split(|&byte| byte == b'\n').skip(3).flatten().copied().collect();
    let digit = |&byte: &u8| char::from(byte).to_digit(16).map(|value| value as u8);
    digits.chunks_exact(2).map(|pair| Some(digit(&pair[0])? << 4 | digit(&pair[1])?)).collect()
}

/// Samples of 1, 2, 4 or 8 bits, `factor` times each.
fn unpacked(row: &[u8], depth: BitDepth, width: usize, factor: u8) -> Vec<u8> {
    let bits = depth as usize;
    let mask = ((1u16 << bits) - 1) as u8;
    let sample = |at: usize| row[at * bits / 8] >> (8 - bits - at * bits % 8) & mask;
    (0..width).map(|at| sample(at) * factor).collect()
}

fn truncated(name: &str) -> ProcessorError {
    ProcessorError::TruncatedImage { name: name.to_owned() }
}

fn to_error(error: DecodingError, name: &str) -> ProcessorError {
    match error {
        DecodingError::IoError(io) if io.kind() == io::ErrorKind::UnexpectedEof => truncated(name),
        other => ProcessorError::DamagedImage { name: name.to_owned(), detail: other.to_string() },
    }
}
