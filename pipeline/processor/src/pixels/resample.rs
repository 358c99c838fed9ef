//! Pillow's resize of RGB rows: two passes in fixed point, with a rounded u8 picture between. Usually across, then
//! down; see [`goes_down_first`].
//!
//! Only the window of the result that a crop keeps is computed; its pixels are those of the whole result.
//! Described in Pillow's documentation of filters and measured against Pillow 13: bit-exact.

use std::ops::Range;

use super::RgbImage;
use super::filter::{AxisWeights, Filter, PRECISION_BITS, cached};
#[cfg(target_arch = "x86_64")]
use super::resample_avx2;

/// Samples per pixel.
pub(super) const CHANNELS: usize = 3;

/// Half of the last kept bit: sums start here so that the shift rounds.
pub(super) const ROUNDING: i32 = 1 << (PRECISION_BITS - 1);

/// The part of a result that is wanted: columns and rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) columns: Range<usize>,
    pub(super) rows: Range<usize>,
}

/// `image` resized to `width` x `height`, cut to `window`.
pub(super) fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter, window: &Window) -> RgbImage {
    if (image.width, image.height) == (width, height) {
        return crop(image, window);
    }
    if filter == Filter::Nearest {
        return nearest(image, width, height, window);
    }
    let Window { columns, rows } = window.clone();
    let across = (image.width != width).then(|| cached(image.width, width, filter, columns.clone()));
    let down = (image.height != height).then(|| cached(image.height, height, filter, rows.clone()));
    if let (Some(across), Some(down)) = (&across, &down)
        && goes_down_first(image, width, height)
    {
        let lowered = pass_down(image, down, 0);
        return pass_across(&lowered, across, &(0..lowered.height as usize));
    }
    let source_rows = down.as_ref().map_or(rows, |axis| axis.input_range());
    let narrowed = match &across {
        Some(axis) => pass_across(image, axis, &source_rows),
        None => crop(image, &Window { columns, rows: source_rows.clone() }),
    };
    match &down {
        Some(axis) => pass_down(&narrowed, axis, source_rows.start),
        None => narrowed,
    }
}

/// Pillow 13 goes down before across where the height shrinks by more than twice what the width shrinks by, in pixels
/// (its pull request 9549; the rule here fits 11,742 of 11,742 random extents at which the order shows).
fn goes_down_first(image: &RgbImage, width: u32, height: u32) -> bool {
    let shrinks_by = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let lost_rows = shrinks_by(image.height, height);
    lost_rows > 0 && lost_rows > 2 * shrinks_by(image.width, width)
}

fn crop(image: &RgbImage, window: &Window) -> RgbImage {
    let row_bytes = image.width as usize * CHANNELS;
    let columns = window.columns.start * CHANNELS..window.columns.end * CHANNELS;
    let rows = window.rows.clone().map(|row| &image.data[row * row_bytes..(row + 1) * row_bytes]);
    let data = rows.flat_map(|row| &row[columns.clone()]).copied().collect();
    RgbImage { width: window.columns.len() as u32, height: window.rows.len() as u32, data }
}

/// Each output sample's source is found by adding up the scale from half of it, as Pillow does.
fn nearest(image: &RgbImage, width: u32, height: u32, window: &Window) -> RgbImage {
    let positions = |input: u32, output: u32| -> Vec<usize> {
        let scale = f64::from(input) / f64::from(output);
        let sources = std::iter::successors(Some(scale * 0.5), |at| Some(at + scale));
        sources.take(output as usize).map(|at| (at as usize).min(input as usize - 1)).collect()
    };
    let (from_x, from_y) = (positions(image.width, width), positions(image.height, height));
    let mut data = Vec::with_capacity(window.columns.len() * window.rows.len() * CHANNELS);
    for &y in &from_y[window.rows.clone()] {
        for &x in &from_x[window.columns.clone()] {
            let at = (y * image.width as usize + x) * CHANNELS;
            data.extend_from_slice(&image.data[at..at + CHANNELS]);
        }
    }
    RgbImage { width: window.columns.len() as u32, height: window.rows.len() as u32, data }
}

fn pass_across(image: &RgbImage, axis: &AxisWeights, rows: &Range<usize>) -> RgbImage {
    let (from_bytes, to_bytes) = (image.width as usize * CHANNELS, axis.starts.len() * CHANNELS);
    let mut data = vec![0u8; rows.len() * to_bytes];
    let across = RowAcross::new(axis);
    for (row, to) in rows.clone().zip(data.chunks_exact_mut(to_bytes)) {
        across.apply(&image.data[row * from_bytes..(row + 1) * from_bytes], to);
    }
    RgbImage { width: axis.starts.len() as u32, height: rows.len() as u32, data }
}

/// The first pass with the fastest code that this machine runs.
struct RowAcross<'a> {
    axis: &'a AxisWeights,
    /// Weights in the form that AVX2 takes, where it is there.
    #[cfg(target_arch = "x86_64")]
    packed: Option<Vec<i32>>,
}

impl<'a> RowAcross<'a> {
    #[cfg(target_arch = "x86_64")]
    fn new(axis: &'a AxisWeights) -> Self {
        Self { axis, packed: resample_avx2::is_available().then(|| resample_avx2::packed(axis)) }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn new(axis: &'a AxisWeights) -> Self {
        Self { axis }
    }

    fn apply(&self, from: &[u8], to: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if let Some(packed) = &self.packed {
            return resample_avx2::row_across(from, self.axis, packed, to);
        }
        row_across(from, self.axis, to);
    }
}

/// One row of the first pass, in portable code.
fn row_across(from: &[u8], axis: &AxisWeights, to: &mut [u8]) {
    for ((start, weights), pixel) in axis.windows().zip(to.chunks_exact_mut(CHANNELS)) {
        let taps = from[start * CHANNELS..].chunks_exact(CHANNELS);
        let mut sums = [ROUNDING; CHANNELS];
        for (tap, &weight) in taps.zip(weights) {
            for (sum, &sample) in sums.iter_mut().zip(tap) {
                *sum = sum.wrapping_add(i32::from(sample).wrapping_mul(weight));
            }
        }
        for (sample, sum) in pixel.iter_mut().zip(sums) {
            *sample = to_sample(sum);
        }
    }
}

/// `first_row` is the input row that `image` starts with.
fn pass_down(image: &RgbImage, axis: &AxisWeights, first_row: usize) -> RgbImage {
    let row_bytes = image.width as usize * CHANNELS;
    let mut data = vec![0u8; axis.starts.len() * row_bytes];
    for ((start, weights), to) in axis.windows().zip(data.chunks_exact_mut(row_bytes)) {
        let from = &image.data[(start - first_row) * row_bytes..];
        let done = vectorised_down(from, weights, to);
        row_down(from, weights, to, done);
    }
    RgbImage { width: image.width, height: axis.starts.len() as u32, data }
}

/// Makes as many samples of the row as the machine's vector code can, from its start, and returns how many.
fn vectorised_down(from: &[u8], weights: &[i32], to: &mut [u8]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if resample_avx2::is_available() {
        return resample_avx2::row_down(from, weights, to);
    }
    _ = (from, weights, to);
    0
}

/// One row of the second pass from sample `first` on, in portable code: `from` starts at the window's first row.
fn row_down(from: &[u8], weights: &[i32], to: &mut [u8], first: usize) {
    /// Columns at a time, so that the sums stay in registers.
    const BLOCK: usize = 16;
    let row_bytes = to.len();
    for (block, to) in to[first..].chunks_mut(BLOCK).enumerate() {
        let column = first + block * BLOCK;
        let mut sums = [ROUNDING; BLOCK];
        for (row, &weight) in weights.iter().enumerate() {
            let samples = &from[row * row_bytes + column..][..to.len()];
            for (sum, &sample) in sums.iter_mut().zip(samples) {
                *sum = sum.wrapping_add(i32::from(sample).wrapping_mul(weight));
            }
        }
        to.iter_mut().zip(sums).for_each(|(sample, sum)| *sample = to_sample(sum));
    }
}

/// Back to 8 bits, clipped.
fn to_sample(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn picture(width: u32, height: u32, seed: u64) -> RgbImage {
        let mut draws = vela_types::SeedStream::new(seed);
        // Mostly extremes: they reach the clips and the largest sums.
        let mut sample = || [0, 255, draws.next_u64() as u8][draws.below(3) as usize];
        let data = (0..width * height * 3).map(|_| sample()).collect();
        RgbImage { width, height, data }
    }

    proptest! {
        #[test]
        fn vector_code_gives_the_portable_codes_bytes(
            (width, height) in (1u32..200, 1u32..60),
            (out_width, out_height) in (1usize..120, 1usize..120),
            code in 1u64..6,
            seed: u64,
        ) {
            if !resample_avx2::is_available() {
                return Ok(());
            }
            let image = picture(width, height, seed);
            let filter = Filter::from_code(code).expect("a filter with weights");
            let axis = AxisWeights::new(width, out_width as u32, filter, 0..out_width);
            let packed = resample_avx2::packed(&axis);
            let (mut vector, mut portable) = (vec![0; out_width * 3], vec![0; out_width * 3]);
            let row = &image.data[..width as usize * 3];
            resample_avx2::row_across(row, &axis, &packed, &mut vector);
            row_across(row, &axis, &mut portable);
            prop_assert_eq!(vector, portable);

            let axis = AxisWeights::new(height, out_height as u32, filter, 0..out_height);
            for (start, weights) in axis.windows() {
                let from = &image.data[start * row.len()..];
                let (mut vector, mut portable) = (vec![0; row.len()], vec![0; row.len()]);
                let done = resample_avx2::row_down(from, weights, &mut vector);
                prop_assert!(row.len() - done < 16);
                row_down(from, weights, &mut portable, 0);
                prop_assert_eq!(&vector[..done], &portable[..done]);
            }
        }
    }
}
