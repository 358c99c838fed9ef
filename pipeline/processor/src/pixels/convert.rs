//! Pillow's `convert("RGB")`, mode by mode. Alpha is dropped, not composed: that is what Pillow does.

/// Mode `L`: the sample three times.
pub(super) fn gray_to_rgb(gray: &[u8]) -> Vec<u8> {
    gray.iter().flat_map(|&sample| [sample; 3]).collect()
}

/// The colours of 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha) samples per pixel.
pub(super) fn colors(samples: &[u8], channels: usize) -> Vec<u8> {
    let pixels = samples.chunks_exact(channels);
    match channels {
        1 | 2 => pixels.flat_map(|pixel| [pixel[0]; 3]).collect(),
        3 => samples.to_vec(),
        _ => pixels.flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
    }
}

/// Mode `P`: the palette's colours, RGB triples; black beyond its end.
pub(super) fn look_up(indices: &[u8], palette: &[u8]) -> Vec<u8> {
    let mut table = [[0; 3]; 256];
    table.iter_mut().zip(palette.chunks_exact(3)).for_each(|(entry, color)| entry.copy_from_slice(color));
    indices.iter().flat_map(|&index| table[usize::from(index)]).collect()
}

/// 16-bit samples in machine order to 8 bits, as Pillow unpacks every 16-bit mode but gray: the high byte.
pub(super) fn high_bytes(samples: &[u8]) -> Vec<u8> {
    samples.chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]).to_be_bytes()[0]).collect()
}

/// Mode `I;16`, 16-bit gray in machine order, to 8 bits: Pillow clips at 255 and does not scale.
pub(super) fn clip_gray_16(samples: &[u8]) -> Vec<u8> {
    samples.chunks_exact(2).map(|pair| clip(u16::from_ne_bytes([pair[0], pair[1]]))).collect()
}

/// As [`clip_gray_16`], samples with the high byte first.
pub(super) fn clip_gray_16_be(samples: &[u8]) -> Vec<u8> {
    samples.chunks_exact(2).map(|pair| clip(u16::from_be_bytes([pair[0], pair[1]]))).collect()
}

fn clip(sample: u16) -> u8 {
    u8::try_from(sample).unwrap_or(u8::MAX)
}

/// Four-component JPEG samples, which Pillow takes to be inverted ink (Adobe's habit), to RGB.
pub(super) fn inverted_cmyk_to_rgb(samples: &[u8]) -> Vec<u8> {
    samples
        .chunks_exact(4)
        .flat_map(|pixel| {
            // Inverted black is the paper left white.
            let white = pixel[3];
            let channel = |ink_inverted: u8| white.saturating_sub(scale_255(255 - ink_inverted, white));
            [channel(pixel[0]), channel(pixel[1]), channel(pixel[2])]
        })
        .collect()
}

/// `a * b / 255`, rounded, by Pillow's shift formula.
fn scale_255(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}
