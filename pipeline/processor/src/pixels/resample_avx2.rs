//! The two passes of the resize with AVX2: the same sums in another order of lanes, so the same bytes.
//!
//! A weight w (23 bits and sign) is split as `w = high * 2^15 + low` with `0 <= low < 2^15`, so that both halves
//! multiply u8 samples in 16-bit lanes (`vpmaddwd`): `sum(w * s) = (sum(high * s) << 15) + sum(low * s)`, exact in
//! wrapping 32-bit arithmetic.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_add_epi32, _mm_cvtsi128_si32, _mm_loadu_si128, _mm_packs_epi32, _mm_packus_epi16,
    _mm_set1_epi32, _mm_setr_epi8, _mm_shuffle_epi8, _mm_srai_epi32, _mm_storeu_si128, _mm256_add_epi32,
    _mm256_castsi256_si128, _mm256_cvtepu8_epi16, _mm256_extracti128_si256, _mm256_madd_epi16, _mm256_packs_epi32,
    _mm256_packus_epi16, _mm256_permutevar8x32_epi32, _mm256_set1_epi32, _mm256_setr_epi32, _mm256_setzero_si256,
    _mm256_slli_epi32, _mm256_srai_epi32, _mm256_unpackhi_epi16, _mm256_unpacklo_epi16,
};

use super::filter::{AxisWeights, PRECISION_BITS};
use super::resample::{CHANNELS, ROUNDING};

/// Bits of a weight's low half.
const LOW_BITS: u32 = 15;

/// Whether this machine can run the functions below.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
}

/// A pair of neighbouring taps' halves, as `vpmaddwd` takes them: the first tap in the low 16 bits.
fn pair(first: i32, second: i32, half: fn(i32) -> i32) -> i32 {
    (half(first) & 0xFFFF) | (half(second) << 16)
}

fn low(weight: i32) -> i32 {
    weight & ((1 << LOW_BITS) - 1)
}

fn high(weight: i32) -> i32 {
    weight >> LOW_BITS
}

/// The weights of an axis as pairs: for each four taps `[low01, low23, high01, high23]`.
pub(super) fn packed(axis: &AxisWeights) -> Vec<i32> {
    let quads = axis.weights.chunks_exact(4);
    quads
        .flat_map(|w| [pair(w[0], w[1], low), pair(w[2], w[3], low), pair(w[0], w[1], high), pair(w[2], w[3], high)])
        .collect()
}

/// One row of the first pass. `packed` is [`packed`] of `axis`.
///
/// # Panics
/// If `to` or `packed` does not belong to `axis`, or `from` is shorter than its windows.
pub(super) fn row_across(from: &[u8], axis: &AxisWeights, packed: &[i32], to: &mut [u8]) {
    assert!(is_available(), "the caller checks");
    assert_eq!((to.len(), packed.len()), (axis.starts.len() * CHANNELS, axis.weights.len()));
    let taps = from.len() / CHANNELS;
    for ((pixel, (&start, &count)), quads) in
        to.chunks_exact_mut(CHANNELS).zip(axis.starts.iter().zip(&axis.counts)).zip(packed.chunks_exact(axis.stride))
    {
        let (start, count) = (start as usize, count as usize);
        assert!(start + count <= taps, "window within the row");
        // SAFETY: AVX2 is there (asserted above); the function reads within its slices only.
        let rgb = unsafe { pixel_across(&from[start * CHANNELS..], quads, count) };
        pixel.copy_from_slice(&rgb[..CHANNELS]);
    }
}

/// One output pixel: `from` starts at the window's first tap.
#[target_feature(enable = "avx2")]
fn pixel_across(from: &[u8], quads: &[i32], count: usize) -> [u8; 4] {
    // r0 r1 g0 g1 b0 b1 - - r2 r3 g2 g3 b2 b3 - -
    let spread = _mm_setr_epi8(0, 3, 1, 4, 2, 5, -1, -1, 6, 9, 7, 10, 8, 11, -1, -1);
    let low_lanes = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    let high_lanes = _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3);
    let (mut low_sums, mut high_sums) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    for (quad, weights) in quads.chunks_exact(4).take(count.div_ceil(4)).enumerate() {
        let samples = _mm256_cvtepu8_epi16(_mm_shuffle_epi8(load_16(from, quad * 4 * CHANNELS), spread));
        // SAFETY: `weights` holds four i32.
        let weights = unsafe { _mm_loadu_si128(weights.as_ptr().cast()) };
        let weights = widen(weights);
        let low_weights = _mm256_permutevar8x32_epi32(weights, low_lanes);
        let high_weights = _mm256_permutevar8x32_epi32(weights, high_lanes);
        low_sums = _mm256_add_epi32(low_sums, _mm256_madd_epi16(samples, low_weights));
        high_sums = _mm256_add_epi32(high_sums, _mm256_madd_epi16(samples, high_weights));
    }
    let sums = _mm256_add_epi32(low_sums, _mm256_slli_epi32::<{ LOW_BITS as i32 }>(high_sums));
    let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
    let sums = _mm_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm_add_epi32(sums, _mm_set1_epi32(ROUNDING)));
    let words = _mm_packs_epi32(sums, sums);
    _mm_cvtsi128_si32(_mm_packus_epi16(words, words)).to_le_bytes()
}

#[target_feature(enable = "avx2")]
fn widen(weights: __m128i) -> __m256i {
    std::arch::x86_64::_mm256_castsi128_si256(weights)
}

/// Sixteen bytes from `at`; zeros beyond the slice's end.
#[target_feature(enable = "avx2")]
fn load_16(from: &[u8], at: usize) -> __m128i {
    let mut tail = [0u8; 16];
    let bytes = match from.get(at..at + 16) {
        Some(bytes) => bytes,
        None => {
            let rest = from.get(at..).unwrap_or_default();
            tail[..rest.len()].copy_from_slice(rest);
            &tail
        }
    };
    // SAFETY: both slices hold 16 bytes.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Samples that one step of the second pass takes.
const STEP: usize = 16;

/// One row of the second pass: `from` starts at the window's first row. Returns how many samples it made; the rest, a
/// tail below the step, is the caller's.
///
/// # Panics
/// If `from` is shorter than the window's rows.
pub(super) fn row_down(from: &[u8], weights: &[i32], to: &mut [u8]) -> usize {
    assert!(is_available(), "the caller checks");
    let row_bytes = to.len();
    assert!(from.len() >= weights.len() * row_bytes, "window within the picture");
    let steps = row_bytes / STEP;
    for step in 0..steps {
        // SAFETY: AVX2 is there (asserted above); columns `step * STEP..+STEP` lie within every row and within `to`.
        unsafe { samples_down(&from[step * STEP..], row_bytes, weights, &mut to[step * STEP..][..STEP]) };
    }
    steps * STEP
}

/// Sixteen samples of one output row.
#[target_feature(enable = "avx2")]
fn samples_down(from: &[u8], row_bytes: usize, weights: &[i32], to: &mut [u8]) {
    let zero = _mm256_setzero_si256();
    let (mut low_a, mut low_b, mut high_a, mut high_b) = (zero, zero, zero, zero);
    for (index, taps) in weights.chunks(2).enumerate() {
        let second = taps.get(1).copied();
        let row = &from[2 * index * row_bytes..];
        let first_row = _mm256_cvtepu8_epi16(load_16(row, 0));
        let second_row = match second {
            Some(_) => _mm256_cvtepu8_epi16(load_16(row, row_bytes)),
            None => zero,
        };
        let (a, b) = (_mm256_unpacklo_epi16(first_row, second_row), _mm256_unpackhi_epi16(first_row, second_row));
        let low_weights = _mm256_set1_epi32(pair(taps[0], second.unwrap_or(0), low));
        let high_weights = _mm256_set1_epi32(pair(taps[0], second.unwrap_or(0), high));
        low_a = _mm256_add_epi32(low_a, _mm256_madd_epi16(a, low_weights));
        low_b = _mm256_add_epi32(low_b, _mm256_madd_epi16(b, low_weights));
        high_a = _mm256_add_epi32(high_a, _mm256_madd_epi16(a, high_weights));
        high_b = _mm256_add_epi32(high_b, _mm256_madd_epi16(b, high_weights));
    }
    // Unpacking and packing both work within 128-bit lanes, so samples 0-7 and 8-15 come out in order.
    let words = _mm256_packs_epi32(finish(low_a, high_a), finish(low_b, high_b));
    let bytes = _mm256_packus_epi16(words, words);
    let halves = [_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes)];
    for (half, to) in halves.into_iter().zip(to.chunks_exact_mut(8)) {
        let mut out = [0u8; 16];
        // SAFETY: `out` holds 16 bytes.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), half) };
        to.copy_from_slice(&out[..8]);
    }
}

#[target_feature(enable = "avx2")]
fn finish(low_sums: __m256i, high_sums: __m256i) -> __m256i {
    let sums = _mm256_add_epi32(low_sums, _mm256_slli_epi32::<{ LOW_BITS as i32 }>(high_sums));
    _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm256_add_epi32(sums, _mm256_set1_epi32(ROUNDING)))
}
