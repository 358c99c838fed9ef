//! The two passes of the resize with AVX2, or AVX-512 VNNI: the same sums in another order of lanes, so the same bytes.
//!
//! Samples and weights meet in 16-bit lanes (`vpmaddwd`). A weight of more than 16 bits comes in two halves
//! ([`super::weights::AxisWeights::pairs`]): `sum(w * s) = (sum(high * s) << 15) + sum(low * s)`, exact in wrapping
//! 32-bit arithmetic.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_cvtsi32_si128, _mm_cvtsi128_si64, _mm_loadl_epi64, _mm_loadu_si128, _mm_or_si128,
    _mm_setr_epi8, _mm_shuffle_epi8, _mm_storeu_si128, _mm256_add_epi32, _mm256_broadcastsi128_si256,
    _mm256_castsi128_si256, _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_packs_epi32, _mm256_packus_epi16, _mm256_permute2x128_si256, _mm256_permutevar8x32_epi32, _mm256_set1_epi32,
    _mm256_setr_epi8, _mm256_setr_epi32, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi32,
    _mm256_sra_epi32, _mm256_storeu_si256, _mm256_unpackhi_epi8, _mm256_unpacklo_epi8, _mm256_zextsi128_si256,
};

use super::machine::has_vnni;
use super::resample::CHANNELS;
use super::weights::{AxisWeights, LOW_BITS};

/// Rows that the first pass takes at a time, so that weights are loaded once for all of them.
const ROWS: usize = 4;
/// Taps whose pixels one load brings.
const TAPS: usize = 4;
/// Bytes of a load.
const LOAD: usize = 16;

/// Whether this machine can run the functions below.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
}

/// The first pass over whole rows of `from_bytes`.
///
/// # Panics
/// If a row is shorter than the axis' windows, or `to` does not hold as many rows as `from`.
pub(super) fn rows_across(from: &[u8], from_bytes: usize, axis: &AxisWeights, to: &mut [u8]) {
    assert!(is_available(), "the caller checks");
    let to_bytes = axis.starts.len() * CHANNELS;
    assert_eq!(from.len() / from_bytes, to.len() / to_bytes, "as many rows out as in");
    assert!(axis.input_range().end * CHANNELS <= from_bytes, "windows within the row");
    let reach = reach_of(axis);
    // Loads reach beyond a window's taps: rows with too little memory behind them are copied.
    let mut copies: [Vec<u8>; ROWS] = Default::default();
    for (group, to) in to.chunks_mut(to_bytes * ROWS).enumerate() {
        let group = &from[group * ROWS * from_bytes..];
        let num_rows = to.len() / to_bytes;
        for (row, copy) in copies.iter_mut().enumerate().take(num_rows) {
            copy.clear();
            if group.len() - row * from_bytes < reach {
                copy.extend_from_slice(&group[row * from_bytes..]);
                copy.resize(reach, 0);
            }
        }
        // Rows that `to` lacks are taken to be the first.
        let rows: [&[u8]; ROWS] = std::array::from_fn(|row| match if row < num_rows { row } else { 0 } {
            row if copies[row].is_empty() => &group[row * from_bytes..],
            row => &copies[row],
        });
        // SAFETY: AVX2 is there, and VNNI where it is asked for; each row has `reach` bytes.
        unsafe {
            match (has_vnni(), axis.wide) {
                (true, true) => vnni::group_across::<true>(rows, axis, to),
                (true, false) => vnni::group_across::<false>(rows, axis, to),
                (false, true) => plain::group_across::<true>(rows, axis, to),
                (false, false) => plain::group_across::<false>(rows, axis, to),
            }
        }
    }
}

/// Bytes from a row's start that the loads of all windows touch.
fn reach_of(axis: &AxisWeights) -> usize {
    let last_load = |(&start, &count): (&u32, &u32)| (start as usize + (count as usize - 1) / TAPS * TAPS) * CHANNELS;
    axis.starts.iter().zip(&axis.counts).map(last_load).max().unwrap_or(0) + LOAD
}

/// What brings sums back to samples.
#[derive(Clone, Copy)]
struct Rounding {
    half: __m256i,
    shift: __m128i,
}

impl Rounding {
    #[target_feature(enable = "avx2")]
    fn of(axis: &AxisWeights) -> Self {
        Self { half: _mm256_set1_epi32(axis.rounding()), shift: _mm_cvtsi32_si128(axis.precision as i32) }
    }
}

/// The sums of both passes, with `$dot` to multiply pairs and add to a sum.
macro_rules! sums {
    ($features:literal, $dot:path) => {
        /// The rows of the first pass that `to` has room for.
        ///
        /// # Safety
        /// Each row must have [`reach_of`] bytes; rows that `to` has no room for must be the first.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn group_across<const WIDE: bool>(rows: [&[u8]; ROWS], axis: &AxisWeights, to: &mut [u8]) {
            let (rounding, num_pixels) = (Rounding::of(axis), axis.starts.len());
            let (quad_pairs, row_bytes) = (if WIDE { 4 } else { 2 }, num_pixels * CHANNELS);
            let num_rows = to.len() / row_bytes;
            let out = |row: usize| if row < num_rows { row * row_bytes } else { 0 };
            let out = [out(0), out(1), out(2), out(3)];
            let windows = axis.pairs.chunks_exact(axis.stride / TAPS * quad_pairs);
            for (position, ((&start, &count), pairs)) in axis.starts.iter().zip(&axis.counts).zip(windows).enumerate() {
                let at = start as usize * CHANNELS;
                debug_assert!(
                    rows.iter().all(|row| row.len() >= at + (count as usize - 1) / TAPS * TAPS * CHANNELS + LOAD)
                );
                let pairs = &pairs[..(count as usize).div_ceil(TAPS) * quad_pairs];
                let rows = rows.map(|row| row.as_ptr().wrapping_add(at));
                // SAFETY: each load of the window lies within the caller's promise.
                let pixels = unsafe { pixels_across::<WIDE>(rows, pairs, rounding) };
                for (out, pixel) in out.iter().zip(pixels) {
                    let to = &mut to[out + position * CHANNELS..];
                    // Four bytes at once, of which the next pixel overwrites the last; three at a row's end.
                    match to.first_chunk_mut() {
                        Some(to) if position + 1 < num_pixels => *to = pixel.to_le_bytes(),
                        _ => to[..CHANNELS].copy_from_slice(&pixel.to_le_bytes()[..CHANNELS]),
                    }
                }
            }
        }

        /// One output pixel of each row, four bytes each; `from` starts at the window's first tap.
        ///
        /// # Safety
        /// For each four taps of `pairs`, each row must have another 12 bytes, and four more at the end.
        #[target_feature(enable = $features)]
        unsafe fn pixels_across<const WIDE: bool>(
            mut from: [*const u8; ROWS],
            pairs: &[i32],
            rounding: Rounding,
        ) -> [u32; ROWS] {
            // Of four pixels, in 16-bit lanes: r0 r1 g0 g1 b0 b1 - - | r2 r3 g2 g3 b2 b3 - -
            let spread = _mm256_setr_epi8(
                0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, //
                6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1,
            );
            let (first, second) =
                (_mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1), _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3));
            let zero = _mm256_setzero_si256();
            let half = _mm256_zextsi128_si256(_mm256_castsi256_si128(rounding.half));
            let (mut low, mut high) = ([half; ROWS], [zero; ROWS]);
            for weights in pairs.chunks_exact(if WIDE { 4 } else { 2 }) {
                // SAFETY: `weights` holds four or two i32.
                let weights = unsafe {
                    match WIDE {
                        true => _mm_loadu_si128(weights.as_ptr().cast()),
                        false => _mm_loadl_epi64(weights.as_ptr().cast()),
                    }
                };
                let weights = _mm256_castsi128_si256(weights);
                let low_weights = _mm256_permutevar8x32_epi32(weights, first);
                let high_weights = _mm256_permutevar8x32_epi32(weights, second);
                for row in 0..ROWS {
                    // SAFETY: promised by the caller; the last step ends within the four bytes beyond the taps.
                    let bytes = unsafe { _mm_loadu_si128(from[row].cast()) };
                    let samples = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), spread);
                    low[row] = $dot(low[row], samples, low_weights);
                    if WIDE {
                        high[row] = $dot(high[row], samples, high_weights);
                    }
                    from[row] = from[row].wrapping_add(TAPS * CHANNELS);
                }
            }
            let sums = |row: usize| whole::<WIDE>(low[row], high[row]);
            let (even, odd) = (pixels_of(sums(0), sums(1), rounding), pixels_of(sums(2), sums(3), rounding));
            let words = _mm256_packs_epi32(even, odd);
            let bytes = _mm256_packus_epi16(words, words);
            // In each half of the vector a pixel of `even` and one of `odd`.
            let first = _mm_cvtsi128_si64(_mm256_castsi256_si128(bytes));
            let second = _mm_cvtsi128_si64(_mm256_extracti128_si256::<1>(bytes));
            [first as u32, second as u32, (first >> 32) as u32, (second >> 32) as u32]
        }

        /// A step's samples of one output row.
        ///
        /// # Safety
        /// Each of the window's rows must have [`STEP`] samples in `from`, and so must `to`.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn samples_down<const WIDE: bool>(
            from: &[u8],
            row_bytes: usize,
            axis: &AxisWeights,
            position: usize,
            to: &mut [u8],
        ) {
            let zero = _mm256_setzero_si256();
            let (mut low, mut high) = ([zero; 4], [zero; 4]);
            let count = axis.counts[position] as usize;
            let quad_pairs = if WIDE { 4 } else { 2 };
            let pairs = &axis.pairs[position * (axis.stride / TAPS * quad_pairs)..];
            debug_assert!(to.len() >= STEP && from.len() >= (count - 1) * row_bytes + STEP);
            let last = from.as_ptr().wrapping_add((count - 1) * row_bytes);
            let mut row = from.as_ptr();
            for quad in pairs.chunks_exact(quad_pairs).take(count.div_ceil(TAPS)) {
                for half in 0..TAPS / 2 {
                    // A window whose length is no multiple of four ends with its last row again, at weight zero.
                    let next = row.wrapping_add(row_bytes).min(last);
                    // SAFETY: both point at rows of the window, promised by the caller.
                    let [a, b] = unsafe { [_mm256_loadu_si256(row.cast()), _mm256_loadu_si256(next.cast())] };
                    row = next.wrapping_add(row_bytes).min(last);
                    let (ab_low, ab_high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
                    let samples = [
                        _mm256_unpacklo_epi8(ab_low, zero),
                        _mm256_unpackhi_epi8(ab_low, zero),
                        _mm256_unpacklo_epi8(ab_high, zero),
                        _mm256_unpackhi_epi8(ab_high, zero),
                    ];
                    let low_weights = _mm256_set1_epi32(quad[half]);
                    for part in 0..4 {
                        low[part] = $dot(low[part], samples[part], low_weights);
                    }
                    if WIDE {
                        let high_weights = _mm256_set1_epi32(quad[half + 2]);
                        for part in 0..4 {
                            high[part] = $dot(high[part], samples[part], high_weights);
                        }
                    }
                }
            }
            let rounding = Rounding::of(axis);
            // Unpacking and packing both work within 128-bit lanes, so the samples come out in order.
            let words = [
                _mm256_packs_epi32(
                    rounded(whole::<WIDE>(low[0], high[0]), rounding),
                    rounded(whole::<WIDE>(low[1], high[1]), rounding),
                ),
                _mm256_packs_epi32(
                    rounded(whole::<WIDE>(low[2], high[2]), rounding),
                    rounded(whole::<WIDE>(low[3], high[3]), rounding),
                ),
            ];
            // SAFETY: promised by the caller.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_packus_epi16(words[0], words[1])) };
        }
    };
}

/// With AVX2 alone.
mod plain {
    use super::*;

    #[target_feature(enable = "avx2")]
    fn dot(sum: __m256i, samples: __m256i, weights: __m256i) -> __m256i {
        _mm256_add_epi32(sum, _mm256_madd_epi16(samples, weights))
    }

    sums!("avx2", dot);
}

/// With AVX-512 VNNI, which multiplies and adds at once, and has twice the registers.
mod vnni {
    use std::arch::x86_64::_mm256_dpwssd_epi32;

    use super::*;

    sums!("avx2,avx512vl,avx512vnni", _mm256_dpwssd_epi32);
}

/// The sums of even and odd pairs of taps, added and brought to samples: a pixel of each of two rows.
#[target_feature(enable = "avx2")]
fn pixels_of(first: __m256i, second: __m256i, rounding: Rounding) -> __m256i {
    let even = _mm256_permute2x128_si256::<0x20>(first, second);
    let odd = _mm256_permute2x128_si256::<0x31>(first, second);
    _mm256_sra_epi32(_mm256_add_epi32(even, odd), rounding.shift)
}

#[target_feature(enable = "avx2")]
fn whole<const WIDE: bool>(low: __m256i, high: __m256i) -> __m256i {
    if WIDE { _mm256_add_epi32(low, _mm256_slli_epi32::<{ LOW_BITS as i32 }>(high)) } else { low }
}

/// Samples that one step of the second pass takes.
const STEP: usize = 32;

/// One row of the second pass: output `position` of the axis, `from` starting at its window's first row. False, and
/// nothing is done, where rows are shorter than a step.
///
/// # Panics
/// If `from` is shorter than the window's rows.
pub(super) fn row_down(from: &[u8], axis: &AxisWeights, position: usize, to: &mut [u8]) -> bool {
    assert!(is_available(), "the caller checks");
    let (row_bytes, count) = (to.len(), axis.counts[position] as usize);
    assert!(from.len() >= count * row_bytes, "window within the picture");
    if row_bytes < STEP {
        return false;
    }
    // The last step overlaps the one before it, and makes the same bytes again.
    let steps = (0..row_bytes / STEP).map(|step| step * STEP).chain([row_bytes - STEP]);
    // SAFETY: AVX2 is there, and VNNI where it is asked for; each step's columns lie within every row of the window and
    // within `to`.
    steps.for_each(|at| unsafe {
        match (has_vnni(), axis.wide) {
            (true, true) => vnni::samples_down::<true>(&from[at..], row_bytes, axis, position, &mut to[at..]),
            (true, false) => vnni::samples_down::<false>(&from[at..], row_bytes, axis, position, &mut to[at..]),
            (false, true) => plain::samples_down::<true>(&from[at..], row_bytes, axis, position, &mut to[at..]),
            (false, false) => plain::samples_down::<false>(&from[at..], row_bytes, axis, position, &mut to[at..]),
        }
    });
    true
}

#[target_feature(enable = "avx2")]
fn rounded(sums: __m256i, rounding: Rounding) -> __m256i {
    _mm256_sra_epi32(_mm256_add_epi32(sums, rounding.half), rounding.shift)
}

/// Parts interleaved RGB samples into three rows.
///
/// # Panics
/// If the rows are not a third as long.
pub(super) fn part(rgb: &[u8], mut planes: [&mut [u8]; CHANNELS]) {
    assert!(is_available(), "the caller checks");
    let width = rgb.len() / CHANNELS;
    assert!(planes.iter().all(|plane| plane.len() == width), "a third each");
    let whole = width / LOAD * LOAD;
    for at in (0..whole).step_by(LOAD) {
        // SAFETY: AVX2 is there; 48 bytes in and three times 16 bytes out lie within their slices.
        unsafe {
            part_16(&rgb[at * CHANNELS..][..LOAD * CHANNELS], planes.each_mut().map(|plane| &mut plane[at..at + LOAD]))
        };
    }
    for (channel, plane) in planes.iter_mut().enumerate() {
        let rest = rgb[whole * CHANNELS..].iter().skip(channel).step_by(CHANNELS);
        plane[whole..].iter_mut().zip(rest).for_each(|(to, &sample)| *to = sample);
    }
}

/// Sixteen pixels.
///
/// # Safety
/// `rgb` must hold 48 bytes and each plane 16.
#[target_feature(enable = "avx2")]
unsafe fn part_16(rgb: &[u8], planes: [&mut [u8]; CHANNELS]) {
    // SAFETY: promised by the caller.
    let loads: [__m128i; 3] =
        std::array::from_fn(|load| unsafe { _mm_loadu_si128(rgb.as_ptr().add(load * LOAD).cast()) });
    // Where in each load the samples of each channel stand, and where they go.
    let red = [
        _mm_setr_epi8(0, 3, 6, 9, 12, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1),
        _mm_setr_epi8(-1, -1, -1, -1, -1, -1, 2, 5, 8, 11, 14, -1, -1, -1, -1, -1),
        _mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 1, 4, 7, 10, 13),
    ];
    let green = [
        _mm_setr_epi8(1, 4, 7, 10, 13, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1),
        _mm_setr_epi8(-1, -1, -1, -1, -1, 0, 3, 6, 9, 12, 15, -1, -1, -1, -1, -1),
        _mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 2, 5, 8, 11, 14),
    ];
    let blue = [
        _mm_setr_epi8(2, 5, 8, 11, 14, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1),
        _mm_setr_epi8(-1, -1, -1, -1, -1, 1, 4, 7, 10, 13, -1, -1, -1, -1, -1, -1),
        _mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 3, 6, 9, 12, 15),
    ];
    for (plane, masks) in planes.into_iter().zip([red, green, blue]) {
        let [a, b, c]: [__m128i; 3] = std::array::from_fn(|load| _mm_shuffle_epi8(loads[load], masks[load]));
        // SAFETY: promised by the caller.
        unsafe { _mm_storeu_si128(plane.as_mut_ptr().cast(), _mm_or_si128(_mm_or_si128(a, b), c)) };
    }
}
