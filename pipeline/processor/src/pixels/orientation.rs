//! The orientation that a camera wrote, found as Pillow finds it (EXIF, else XMP), and the turn that undoes it.

use super::RgbImage;

/// The EXIF tag `Orientation` (EXIF 2.32, table 4).
const ORIENTATION_TAG: u16 = 0x0112;

/// Orientation (1-8) of a JPEG file; 1 if it tells none.
pub(super) fn of_jpeg(bytes: &[u8]) -> u8 {
    const EXIF: &[u8] = b"Exif\0\0";
    const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
    let mut exif: Vec<u8> = Vec::new();
    let mut xmp = None;
    for payload in app1_segments(bytes) {
        if let Some(block) = payload.strip_prefix(EXIF) {
            // A block too large for one segment continues in the next.
            exif.extend_from_slice(block);
        } else if let Some(packet) = payload.strip_prefix(XMP) {
            xmp.get_or_insert(packet);
        }
    }
    from_exif(&exif).or_else(|| xmp.and_then(from_xmp)).unwrap_or(1)
}

/// Payloads of the APP1 segments before the first scan.
fn app1_segments(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    const APP1: u8 = 0xE1;
    const START_OF_SCAN: u8 = 0xDA;
    let mut rest = bytes.get(2..).unwrap_or_default();
    std::iter::from_fn(move || {
        loop {
            let marker_at = rest.windows(2).position(|pair| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xFF))?;
            let marker = rest[marker_at + 1];
            rest = &rest[marker_at + 2..];
            match marker {
                START_OF_SCAN => return None,
                // Markers without a payload.
                0x01 | 0xD0..=0xD9 => continue,
                _ => {}
            }
            let length = usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?]));
            let payload = rest.get(2..length.max(2)).unwrap_or_default();
            rest = rest.get(length.max(2)..).unwrap_or_default();
            if marker == APP1 {
                return Some(payload);
            }
        }
    })
}

/// Orientation of an EXIF block: a TIFF header (optionally after `Exif\0\0`) and its first directory.
pub(super) fn from_exif(block: &[u8]) -> Option<u8> {
    let tiff = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    tiff_number(tiff, ORIENTATION_TAG).and_then(|value| u8::try_from(value).ok())
}

/// The single whole number that a TIFF file's first directory holds under `tag`.
pub(super) fn tiff_number(tiff: &[u8], tag: u16) -> Option<u32> {
    let little = match tiff.get(..2)? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    let read_u16 = |at: usize| {
        let pair: [u8; 2] = tiff.get(at..at + 2)?.try_into().ok()?;
        Some(if little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) })
    };
    let read_u32 = |at: usize| {
        let quad: [u8; 4] = tiff.get(at..at + 4)?.try_into().ok()?;
        Some(if little { u32::from_le_bytes(quad) } else { u32::from_be_bytes(quad) })
    };
    let directory = read_u32(4)? as usize;
    let num_entries = usize::from(read_u16(directory)?);
    let entry = (0..num_entries).map(|index| directory + 2 + 12 * index).find(|&entry| read_u16(entry) == Some(tag))?;
    match (read_u16(entry + 2)?, read_u32(entry + 4)?) {
        (3, 1) => Some(u32::from(read_u16(entry + 8)?)),
        (4, 1) => read_u32(entry + 8),
        _ => None,
    }
}

/// Orientation of an XMP packet: the digit after `tiff:Orientation="` or `tiff:Orientation>`.
pub(super) fn from_xmp(packet: &[u8]) -> Option<u8> {
    const KEY: &[u8] = b"tiff:Orientation";
    let mut hits = packet.windows(KEY.len()).enumerate().filter(|(_, window)| *window == KEY);
    hits.find_map(|(at, _)| {
        let tail = &packet[at + KEY.len()..];
        let tail = tail.strip_prefix(b"=\"").or_else(|| tail.strip_prefix(b">"))?;
        tail.first().filter(|digit| digit.is_ascii_digit()).map(|digit| digit - b'0')
    })
}

/// Side of the square that is turned at a time.
const TILE: usize = 32;

/// Turns the picture upright. Orientations outside 2-8 mean nothing to do.
pub(super) fn apply(image: RgbImage, orientation: u8) -> RgbImage {
    let (width, height) = (image.width as usize, image.height as usize);
    let (out_width, out_height) = if orientation >= 5 { (height, width) } else { (width, height) };
    // Where output (x, y) comes from; the comments are Pillow's names.
    let source: fn(usize, usize, usize, usize) -> (usize, usize) = match orientation {
        2 => |x, y, w, _| (w - 1 - x, y),         // FLIP_LEFT_RIGHT
        3 => |x, y, w, h| (w - 1 - x, h - 1 - y), // ROTATE_180
        4 => |x, y, _, h| (x, h - 1 - y),         // FLIP_TOP_BOTTOM
        5 => |x, y, _, _| (y, x),                 // TRANSPOSE
        6 => |x, y, _, h| (y, h - 1 - x),         // ROTATE_270
        7 => |x, y, w, h| (w - 1 - y, h - 1 - x), // TRANSVERSE
        8 => |x, y, w, _| (w - 1 - y, x),         // ROTATE_90
        _ => return image,
    };
    let mut data = vec![0u8; image.data.len()];
    // In tiles, so that rows read across and written along both stay in the cache.
    for (tile_y, tile_x) in
        (0..out_height).step_by(TILE).flat_map(|y| (0..out_width).step_by(TILE).map(move |x| (y, x)))
    {
        for y in tile_y..out_height.min(tile_y + TILE) {
            let columns = tile_x..out_width.min(tile_x + TILE);
            let row = &mut data[3 * (y * out_width + columns.start)..3 * (y * out_width + columns.end)];
            for (x, pixel) in columns.zip(row.chunks_exact_mut(3)) {
                let (from_x, from_y) = source(x, y, width, height);
                let at = 3 * (from_y * width + from_x);
                pixel.copy_from_slice(&image.data[at..at + 3]);
            }
        }
    }
    RgbImage { width: out_width as u32, height: out_height as u32, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xmp_orientation_is_found_in_both_spellings() {
        assert_eq!(from_xmp(b"<x tiff:Orientation=\"6\" />"), Some(6));
        assert_eq!(from_xmp(b"<tiff:Orientation>8</tiff:Orientation>"), Some(8));
        assert_eq!(from_xmp(b"<tiff:Orientation=8>"), None);
    }

    #[test]
    fn broken_exif_blocks_tell_nothing() {
        let valid = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        assert_eq!(from_exif(valid), Some(6));
        for length in 0..valid.len() - 6 {
            assert_eq!(from_exif(&valid[..length]), None, "cut at {length}");
        }
        assert_eq!(from_exif(b"MM\0*\xff\xff\xff\xff"), None);
    }
}
