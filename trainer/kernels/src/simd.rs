//! Element-wise arithmetic that vectorises: loops compiled for the widest vectors the processor has, and the
//! transcendental functions they need. No multiply-add is fused, so every processor gives the same bits.

use rayon::prelude::*;

use crate::machine::{build, vectorised};

/// Elements per task; less stays on the calling thread.
const BLOCK: usize = 16 * 1024;
/// Independent partial results of a reduction; fixed, so that its order is.
const LANES: usize = 16;

/// The rows of `width` elements one task takes.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (BLOCK / width.max(1)).max(1)
}

/// Calls `body(first row, rows)` for blocks of rows, in parallel if there is more than one block.
pub(crate) fn for_row_blocks(dst: &mut [f32], width: usize, body: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = rows_per_task(width);
    if dst.len() <= rows * width {
        return vectorised(
            #[inline(always)]
            || body(0, dst),
        );
    }
    dst.par_chunks_mut(rows * width).enumerate().for_each(|(block, chunk)| {
        vectorised(
            #[inline(always)]
            || body(block * rows, chunk),
        );
    });
}

/// [`for_row_blocks`] into new memory of `len` elements.
pub(crate) fn new_row_blocks(len: usize, width: usize, body: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let rows = rows_per_task(width);
    build(len, rows * width.max(1), |block, dst| {
        vectorised(
            #[inline(always)]
            || body(block * rows, dst),
        );
    })
}

/// Sum of `f(a[i], b[i])` over fixed lanes.
#[inline(always)]
pub(crate) fn sum_of(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    for (lane, (&a, &b)) in lanes.iter_mut().zip(rest) {
        *lane += f(a, b);
    }
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += f(a, b);
        }
    }
    lanes.iter().sum()
}

/// The largest element; NaN is passed over.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = if x > *lane { x } else { *lane };
    }
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

/// `e^x` within 2 units in the last place; 0 below -87.33, infinity above 88.37, NaN for NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.33;
    const HIGHEST: f32 = 88.7;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding it rounds to an integer, which then sits in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < LOWEST { LOWEST } else { x };
    let clamped = if clamped > HIGHEST { HIGHEST } else { clamped };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    // Taylor series; |r| <= ln 2 / 2 leaves a relative error below 2e-9.
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let exponent = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let power = f32::from_bits((exponent.wrapping_add(127) as u32) << 23);
    if x < LOWEST { 0.0 } else { p * power }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The normal distribution function and `e^(-x^2/2)`; absolute error below 2e-7
/// (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26).
#[inline(always)]
pub(crate) fn normal(x: f32) -> (f32, f32) {
    let bell = exp(-0.5 * x * x);
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let p = t * (0.254_829_6 + t * (-0.284_496_73 + t * (1.421_413_7 + t * (-1.453_152 + t * 1.061_405_4))));
    let upper = 0.5 * p * bell;
    (if x < 0.0 { upper } else { 1.0 - upper }, bell)
}
