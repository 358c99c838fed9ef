//! Pillow's `convert("RGB")`, mode by mode. Alpha is dropped, not composed: that is what Pillow does.

/// Mode `L`: the sample three times.
pub(super) fn gray_to_rgb(gray: &[u8]) -> Vec<u8> {
    gray.iter().flat_map(|&sample| [sample; 3]).collect()
}

/// Keeps the first `keep` (1 or 3) of each pixel's `channels` samples and makes them RGB.
pub(super) fn take_color(samples: &[u8], channels: usize, keep: usize) -> Vec<u8> {
    let pixels = samples.chunks_exact(channels);
    match keep {
        1 => pixels.flat_map(|pixel| [pixel[0]; 3]).collect(),
        _ => pixels.flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
    }
}

/// 16-bit samples in machine order to 8 bits, as Pillow unpacks every 16-bit mode but gray: the high byte.
pub(super) fn high_bytes(samples: &[u8]) -> Vec<u8> {
    samples.chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]).to_be_bytes()[0]).collect()
}

/// Mode `I;16`, 16-bit gray in machine order, to 8 bits: Pillow clips at 255 and does not scale.
pub(super) fn clip_gray_16(samples: &[u8]) -> Vec<u8> {
    let clip = |pair: &[u8]| u8::try_from(u16::from_ne_bytes([pair[0], pair[1]])).unwrap_or(u8::MAX);
    samples.chunks_exact(2).map(clip).collect()
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
