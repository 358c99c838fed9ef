//! The first frame of a GIF, as Pillow shows it.
//!
//! Blocks are walked here, so that the extent is known and checked before memory is taken; the codes are unpacked by
//! `weezl`. A frame beyond the screen enlarges it; what a frame leaves open is the transparent index, else index 0.

use weezl::{BitOrder, LzwStatus, decode::Decoder};

use crate::ProcessorError;

use super::decode::check_extent;
use super::{RgbImage, convert};

/// The first frame on its screen.
pub(super) fn decode(bytes: &[u8], name: &str) -> Result<RgbImage, ProcessorError> {
    let frame = Frame::find(bytes, name)?;
    let (frame_width, frame_height) = (usize::from(frame.width), usize::from(frame.height));
    let pixels = frame.pixels(name)?;
    let mut indices = vec![frame.transparent.unwrap_or(0); frame.screen_width as usize * frame.screen_height as usize];
    for (row, samples) in pixels.chunks_exact(frame_width.max(1)).enumerate() {
        let row = if frame.is_interlaced { interlaced_row(row, frame_height) } else { row };
        let at = (usize::from(frame.top) + row) * frame.screen_width as usize + usize::from(frame.left);
        indices[at..at + frame_width].copy_from_slice(samples);
    }
    let data = match frame.palette {
        Some(palette) => convert::look_up(&indices, palette),
        None => convert::gray_to_rgb(&indices),
    };
    Ok(RgbImage { width: frame.screen_width, height: frame.screen_height, data })
}

/// Walks to the first frame.
pub(super) fn check_header(bytes: &[u8], name: &str) -> Result<(), ProcessorError> {
    Frame::find(bytes, name).map(drop)
}

struct Frame<'a> {
    screen_width: u32,
    screen_height: u32,
    left: u16,
    top: u16,
    width: u16,
    height: u16,
    is_interlaced: bool,
    /// RGB triples; `None`: indices are gray, as where the palette would say just that.
    palette: Option<&'a [u8]>,
    transparent: Option<u8>,
    /// The smallest code's bits, then blocks of codes.
    codes: &'a [u8],
}

/// Reads from the front of the file.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
    }

    /// A table of colours if `flags` tell one; `Some(None)` if there is none or it is the gray ramp.
    fn palette(&mut self, flags: u8) -> Option<Palette<'a>> {
        if flags & 0x80 == 0 {
            return Some(Palette::Absent);
        }
        let colors = self.take(3 << ((flags & 7) + 1))?;
        let is_ramp =
            colors.chunks_exact(3).enumerate().all(|(index, color)| color.iter().all(|&c| usize::from(c) == index));
        Some(if is_ramp { Palette::Gray } else { Palette::Colors(colors) })
    }

    /// The first of the blocks at hand, all of which are passed.
    fn blocks(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        let first = self.take(length.into())?;
        let mut length = length;
        while length > 0 {
            length = self.byte()?;
            self.take(length.into())?;
        }
        Some(first)
    }
}

enum Palette<'a> {
    Absent,
    Gray,
    Colors(&'a [u8]),
}

impl<'a> Frame<'a> {
    fn find(bytes: &'a [u8], name: &str) -> Result<Self, ProcessorError> {
        let frame = Self::walk(bytes).ok_or_else(|| ProcessorError::TruncatedImage { name: name.to_owned() })?;
        check_extent(frame.screen_width, frame.screen_height, name)?;
        Ok(frame)
    }

    /// `None` if the file ends before a frame's codes.
    fn walk(bytes: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor { rest: bytes };
        cursor.take(b"GIF89a".len())?;
        let (screen_width, screen_height) = (cursor.number()?, cursor.number()?);
        let flags = cursor.byte()?;
        // Background colour and aspect ratio, which Pillow does not use either.
        cursor.take(2)?;
        let global = cursor.palette(flags)?;
        let mut transparent = None;
        loop {
            match cursor.byte()? {
                b'!' => transparent = extension(&mut cursor)?.or(transparent),
                b',' => break,
                b';' => return None,
                _ => {}
            }
        }
        let (left, top, width, height) = (cursor.number()?, cursor.number()?, cursor.number()?, cursor.number()?);
        let flags = cursor.byte()?;
        let palette = match (cursor.palette(flags)?, global) {
            (Palette::Colors(colors), _) | (Palette::Absent, Palette::Colors(colors)) => Some(colors),
            _ => None,
        };
        let beyond = |screen: u16, start: u16, length: u16| u32::from(screen).max(u32::from(start) + u32::from(length));
        Some(Self {
            screen_width: beyond(screen_width, left, width),
            screen_height: beyond(screen_height, top, height),
            left,
            top,
            width,
            height,
            is_interlaced: flags & 0x40 != 0,
            palette,
            transparent,
            codes: cursor.rest,
        })
    }

    /// The frame's indices, in the order of the file.
    fn pixels(&self, name: &str) -> Result<Vec<u8>, ProcessorError> {
        let damaged = |detail: String| ProcessorError::DamagedImage { name: name.to_owned(), detail };
        let truncated = || ProcessorError::TruncatedImage { name: name.to_owned() };
        let mut cursor = Cursor { rest: self.codes };
        let bits = cursor.byte().ok_or_else(truncated)?;
        if !(1..=11).contains(&bits) {
            return Err(damaged(format!("expected codes from 1 to 11 bits on, found {bits}")));
        }
        let mut pixels = vec![0; usize::from(self.width) * usize::from(self.height)];
        let mut decoder = Decoder::new(BitOrder::Lsb, bits);
        let mut filled = 0;
        while filled < pixels.len() {
            let length = cursor.byte().filter(|&length| length > 0).ok_or_else(truncated)?;
            let mut block = cursor.take(length.into()).ok_or_else(truncated)?;
            // Until the block is used up and nothing more comes of it.
            while filled < pixels.len() {
                let step = decoder.decode_bytes(block, &mut pixels[filled..]);
                filled += step.consumed_out;
                block = &block[step.consumed_in..];
                match step.status {
                    Err(error) => return Err(damaged(error.to_string())),
                    Ok(LzwStatus::Done) if filled < pixels.len() => return Err(truncated()),
                    Ok(_) if step.consumed_in + step.consumed_out == 0 => break,
                    Ok(_) => {}
                }
            }
        }
        Ok(pixels)
    }
}

/// Passes an extension; returns the transparent index if it tells one.
fn extension(cursor: &mut Cursor<'_>) -> Option<Option<u8>> {
    const GRAPHIC_CONTROL: u8 = 0xF9;
    let kind = cursor.byte()?;
    let block = cursor.blocks()?;
    Some(match (kind, block) {
        (GRAPHIC_CONTROL, &[flags, _, _, index, ..]) if flags & 1 == 1 => Some(index),
        _ => None,
    })
}

/// Where the `row`-th row of an interlaced frame stands (GIF89a, appendix E).
fn interlaced_row(row: usize, height: usize) -> usize {
    let mut before = 0;
    for (start, step) in [(0, 8), (4, 8), (2, 4), (1, 2)] {
        let count = height.saturating_sub(start).div_ceil(step);
        if row < before + count {
            return start + (row - before) * step;
        }
        before += count;
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_an_interlaced_frame_stands_somewhere_once() {
        for height in 1..40 {
            let mut rows: Vec<usize> = (0..height).map(|row| interlaced_row(row, height)).collect();
            rows.sort_unstable();
            assert!(rows.into_iter().eq(0..height));
        }
    }
}
