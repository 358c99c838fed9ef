//! The accurate inverse DCT of libjpeg-turbo, several blocks at a time, bit for bit.
//!
//! Loeffler, Ligtenberg and Moschytz (1989) in fixed point with 13 fractional bits, down the columns and then along the
//! rows, with 2 fractional bits kept between. Sums of two inputs wrap at 16 bits and results saturate, as in the
//! library's vector code; [`MAX_FIRST`] keeps clear of a shortcut that it takes.

use std::arch::x86_64::{
    __m256i, _mm_cvtsi32_si128, _mm_loadu_si128, _mm256_add_epi8, _mm256_add_epi16, _mm256_add_epi32,
    _mm256_broadcastsi128_si256, _mm256_cmpgt_epi16, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_movemask_epi8,
    _mm256_mullo_epi16, _mm256_or_si256, _mm256_packs_epi16, _mm256_packs_epi32, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_setzero_si256, _mm256_sra_epi32, _mm256_storeu_si256, _mm256_sub_epi16, _mm256_sub_epi32,
    _mm256_unpackhi_epi8, _mm256_unpackhi_epi16, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi8,
    _mm256_unpacklo_epi16, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
};

use crate::pixels::machine::has_vnni;

/// Blocks that are transformed together.
pub(super) const LANES: usize = 4;
/// Lanes of one vector.
const VECTOR_LANES: usize = 2;
/// Coefficients from one row of a block to the next.
pub(super) const ROW: usize = 8 * LANES;

/// Coefficients of all lanes, and as many more as a lane's first is from the first of all.
const BLOCKS: usize = 64 * LANES + ROW;

/// Fractional bits of the constants.
const CONST_BITS: u32 = 13;
/// Fractional bits kept between the passes.
const KEPT_BITS: u32 = 2;
/// Bits that the passes drop; the second also divides by 8.
const DROPPED: [u32; 2] = [CONST_BITS - KEPT_BITS, CONST_BITS + KEPT_BITS + 3];

/// A product in a block's first row of a larger amount might wrap in the library where it saturates here.
const MAX_FIRST: i16 = i16::MAX >> KEPT_BITS;

/// Coefficients as the file has them: row by row, in each row those of all lanes, the even lanes first: interleaving two
/// vectors of them brings the lanes in order.
#[repr(align(64))]
pub(super) struct Blocks([i16; BLOCKS]);

/// Samples: row by row, in each row those of all lanes side by side.
#[repr(align(64))]
pub(super) struct Samples([u8; 64 * LANES]);

impl Samples {
    pub(super) fn new() -> Self {
        Self([0; 64 * LANES])
    }

    /// A row of the `N / 8` blocks from `lane` on.
    #[inline(always)]
    pub(super) fn row<const N: usize>(&self, lane: usize, row: usize) -> &[u8; N] {
        self.0[row * ROW + lane * 8..].first_chunk().expect("the lanes asked for are in the row")
    }
}

impl Blocks {
    pub(super) fn new() -> Self {
        Self([0; BLOCKS])
    }

    /// A lane's first coefficient and what follows: row by row, [`ROW`] from one to the next.
    #[inline(always)]
    pub(super) fn lane(&mut self, lane: usize) -> &mut [i16; 256] {
        let place = lane % VECTOR_LANES * VECTOR_LANES + lane % LANES / VECTOR_LANES;
        self.0[place * 8..].first_chunk_mut().expect("the last lane has as much behind it")
    }

    /// Multiplies by the quantisation steps, transforms, and leaves the coefficients zero. False, and the samples mean
    /// nothing, where the library might differ.
    #[target_feature(enable = "avx2")]
    pub(super) fn transform(&mut self, steps: &[i16; 64], samples: &mut Samples) -> bool {
        match has_vnni() {
            // SAFETY: the instructions are there.
            true => unsafe { vnni::transform(self, steps, samples) },
            false => plain::transform(self, steps, samples),
        }
    }
}

/// A constant with [`CONST_BITS`] fractional bits.
const fn fixed(value: f64) -> i32 {
    (value * (1 << CONST_BITS) as f64 + 0.5) as i32
}

const SQRT2_C6: i32 = fixed(0.541_196_100);
const Z1: i32 = -fixed(0.899_976_223);
const Z2: i32 = -fixed(2.562_915_447);
const Z5: i32 = fixed(1.175_875_602);

/// Rows or columns of a vector's blocks.
type Rows = [__m256i; 8];
/// Sums of 32 bits: of the lower and of the upper four inputs of each lane.
type Wide = [__m256i; 2];

/// The transform, with `$dot` to multiply pairs and add to a sum.
macro_rules! transform {
    ($features:literal, $dot:path) => {
        /// All lanes.
        #[target_feature(enable = $features)]
        pub(super) fn transform(blocks: &mut Blocks, steps: &[i16; 64], samples: &mut Samples) -> bool {
            let (even, is_even_exact) = transform_vector(blocks, steps, 0);
            let (odd, is_odd_exact) = transform_vector(blocks, steps, VECTOR_LANES);
            for (pair, (even, odd)) in even.into_iter().zip(odd).enumerate() {
                let (upper, lower) = (_mm256_unpacklo_epi64(even, odd), _mm256_unpackhi_epi64(even, odd));
                for (to, bytes) in samples.0[pair * 2 * ROW..][..2 * ROW].chunks_exact_mut(ROW).zip([upper, lower]) {
                    // SAFETY: 32 bytes.
                    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), bytes) };
                }
            }
            is_even_exact && is_odd_exact
        }

        /// The vector of lanes from the place `first` on: two rows in each result.
        #[target_feature(enable = $features)]
        fn transform_vector(blocks: &mut Blocks, steps: &[i16; 64], first: usize) -> ([__m256i; 4], bool) {
            let mut rows = [_mm256_setzero_si256(); 8];
            for (row, to) in rows.iter_mut().enumerate() {
                let from = &mut blocks.0[row * ROW + first * 8..][..8 * VECTOR_LANES];
                let steps = &steps[row * 8..][..8];
                // SAFETY: 16 coefficients and 8 steps.
                unsafe {
                    let steps = _mm256_broadcastsi128_si256(_mm_loadu_si128(steps.as_ptr().cast()));
                    *to = _mm256_mullo_epi16(_mm256_loadu_si256(from.as_ptr().cast()), steps);
                    _mm256_storeu_si256(from.as_mut_ptr().cast(), _mm256_setzero_si256());
                }
            }
            let columns = transposed(pass::<{ DROPPED[0] }>(rows));
            let is_above = _mm256_cmpgt_epi16(rows[0], _mm256_set1_epi16(MAX_FIRST));
            let is_below = _mm256_cmpgt_epi16(_mm256_set1_epi16(-MAX_FIRST), rows[0]);
            let is_exact = _mm256_movemask_epi8(_mm256_or_si256(is_above, is_below)) == 0;
            (rows_of_bytes(pass::<{ DROPPED[1] }>(columns)), is_exact)
        }

        /// Two factors for `madd`, the first for the lower half.
        #[target_feature(enable = $features)]
        fn factors(first: i32, second: i32) -> __m256i {
            _mm256_set1_epi32((first & 0xFFFF) | second << 16)
        }

        /// The inputs of `a` and `b` in turn.
        #[target_feature(enable = $features)]
        fn paired(a: __m256i, b: __m256i) -> Wide {
            [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)]
        }

        /// Adds products of pairs to sums.
        #[target_feature(enable = $features)]
        fn dotted(sums: Wide, pairs: Wide, factors: __m256i) -> Wide {
            [$dot(sums[0], pairs[0], factors), $dot(sums[1], pairs[1], factors)]
        }

        #[target_feature(enable = $features)]
        fn weighted([low, high]: Wide, factors: __m256i) -> Wide {
            [_mm256_madd_epi16(low, factors), _mm256_madd_epi16(high, factors)]
        }

        #[target_feature(enable = $features)]
        fn added(a: Wide, b: Wide) -> Wide {
            [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])]
        }

        #[target_feature(enable = $features)]
        fn minus(a: Wide, b: Wide) -> Wide {
            [_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])]
        }

        /// A value with [`CONST_BITS`] fractional bits, and a half of the bits that are dropped later.
        #[target_feature(enable = $features)]
        fn scaled(value: __m256i, half: __m256i) -> Wide {
            let [low, high] = paired(_mm256_setzero_si256(), value);
            let count = _mm_cvtsi32_si128(16 - CONST_BITS as i32);
            added([_mm256_sra_epi32(low, count), _mm256_sra_epi32(high, count)], [half; 2])
        }

        /// Sum and difference without the last bits.
        #[target_feature(enable = $features)]
        fn butterfly<const BITS: u32>(even: Wide, odd: Wide) -> (__m256i, __m256i) {
            let count = _mm_cvtsi32_si128(BITS as i32);
            let [a, b] = added(even, odd);
            let [c, d] = minus(even, odd);
            (
                _mm256_packs_epi32(_mm256_sra_epi32(a, count), _mm256_sra_epi32(b, count)),
                _mm256_packs_epi32(_mm256_sra_epi32(c, count), _mm256_sra_epi32(d, count)),
            )
        }

        /// One dimension: `inputs` by frequency, results by place.
        #[target_feature(enable = $features)]
        fn pass<const BITS: u32>([in0, in1, in2, in3, in4, in5, in6, in7]: Rows) -> Rows {
            let half = _mm256_set1_epi32(1 << (BITS - 1));
            let rotated = paired(in2, in6);
            let a3 = weighted(rotated, factors(SQRT2_C6 + fixed(0.765_366_865), SQRT2_C6));
            let a2 = weighted(rotated, factors(SQRT2_C6, SQRT2_C6 - fixed(1.847_759_065)));
            let (a0, a1) = (scaled(_mm256_add_epi16(in0, in4), half), scaled(_mm256_sub_epi16(in0, in4), half));
            let sums = paired(_mm256_add_epi16(in7, in3), _mm256_add_epi16(in5, in1));
            let z3 = weighted(sums, factors(Z5 - fixed(1.961_570_560), Z5));
            let z4 = weighted(sums, factors(Z5, Z5 - fixed(0.390_180_644)));
            let (outer, inner) = (paired(in7, in1), paired(in5, in3));
            let odd0 = dotted(z4, outer, factors(Z1, fixed(1.501_321_110) + Z1));
            let odd1 = dotted(z3, inner, factors(Z2, fixed(3.072_711_026) + Z2));
            let odd2 = dotted(z4, inner, factors(fixed(2.053_119_869) + Z2, Z2));
            let odd3 = dotted(z3, outer, factors(fixed(0.298_631_336) + Z1, Z1));
            let (out0, out7) = butterfly::<BITS>(added(a0, a3), odd0);
            let (out1, out6) = butterfly::<BITS>(added(a1, a2), odd1);
            let (out2, out5) = butterfly::<BITS>(minus(a1, a2), odd2);
            let (out3, out4) = butterfly::<BITS>(minus(a0, a3), odd3);
            [out0, out1, out2, out3, out4, out5, out6, out7]
        }

        /// Rows to columns, in each lane.
        #[target_feature(enable = $features)]
        fn transposed([r0, r1, r2, r3, r4, r5, r6, r7]: Rows) -> Rows {
            let [a, b, c, d] = [paired(r0, r1), paired(r2, r3), paired(r4, r5), paired(r6, r7)];
            let quads = |a, b| [_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)];
            let halves = |a, b| [_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b)];
            let ([a0, a1], [a2, a3]) = (quads(a[0], b[0]), quads(a[1], b[1]));
            let ([c0, c1], [c2, c3]) = (quads(c[0], d[0]), quads(c[1], d[1]));
            let ([c0, c1], [c2, c3], [c4, c5], [c6, c7]) =
                (halves(a0, c0), halves(a1, c1), halves(a2, c2), halves(a3, c3));
            [c0, c1, c2, c3, c4, c5, c6, c7]
        }

        /// Columns of values around zero to rows of samples, two rows to a lane.
        #[target_feature(enable = $features)]
        fn rows_of_bytes([c0, c1, c2, c3, c4, c5, c6, c7]: Rows) -> [__m256i; 4] {
            let center = _mm256_set1_epi8(-128);
            let bytes = |a, b| _mm256_add_epi8(_mm256_packs_epi16(a, b), center);
            let (c04, c15, c26, c37) = (bytes(c0, c4), bytes(c1, c5), bytes(c2, c6), bytes(c3, c7));
            let (c02, c46) = (_mm256_unpacklo_epi8(c04, c26), _mm256_unpackhi_epi8(c04, c26));
            let (c13, c57) = (_mm256_unpacklo_epi8(c15, c37), _mm256_unpackhi_epi8(c15, c37));
            let (left_upper, left_lower) = (_mm256_unpacklo_epi8(c02, c13), _mm256_unpackhi_epi8(c02, c13));
            let (right_upper, right_lower) = (_mm256_unpacklo_epi8(c46, c57), _mm256_unpackhi_epi8(c46, c57));
            [
                _mm256_unpacklo_epi32(left_upper, right_upper),
                _mm256_unpackhi_epi32(left_upper, right_upper),
                _mm256_unpacklo_epi32(left_lower, right_lower),
                _mm256_unpackhi_epi32(left_lower, right_lower),
            ]
        }
    };
}

/// With AVX2 alone.
mod plain {
    use super::*;

    #[target_feature(enable = "avx2")]
    fn dot(sum: __m256i, pairs: __m256i, factors: __m256i) -> __m256i {
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, factors))
    }

    transform!("avx2", dot);
}

/// With AVX-512 VNNI, which multiplies and adds at once, and has twice the registers.
mod vnni {
    use std::arch::x86_64::_mm256_dpwssd_epi32;

    use super::*;

    transform!("avx2,avx512vl,avx512vnni", _mm256_dpwssd_epi32);
}
