//! CPU code: rows in parallel.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::cpu::{contiguous, shaped, with_two};
use crate::simd::{exp, for_row_blocks, max, sum_of};

/// Turns one row into its softmax; gives the log of the sum of exponentials. A row of minus infinities stays finite.
#[inline(always)]
pub(crate) fn softmax_in_place(row: &mut [f32]) -> f32 {
    let top = max(row);
    row.iter_mut().for_each(|x| *x = exp(*x - top));
    let sum = sum_of(row, row, |x, _| x);
    let scale = 1.0 / sum;
    row.iter_mut().for_each(|x| *x *= scale);
    top + sum.ln()
}

pub(super) struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = contiguous(storage, layout)?.to_vec();
        let width = layout.dims().last().copied().unwrap_or(1).max(1);
        for_row_blocks(
            &mut y,
            width,
            #[inline(always)]
            |_, rows| {
                rows.chunks_exact_mut(width).for_each(|row| {
                    softmax_in_place(row);
                })
            },
        );
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let width = y.dims().last().copied().unwrap_or(1).max(1);
        let mut dx = vec![0f32; y.elem_count()];
        with_two(y, &grad, |y, grad| {
            for_row_blocks(
                &mut dx,
                width,
                #[inline(always)]
                |first, rows| {
                    for (r, dx) in rows.chunks_exact_mut(width).enumerate() {
                        let start = (first + r) * width;
                        let (y, g) = (&y[start..start + width], &grad[start..start + width]);
                        let mean = sum_of(y, g, |y, g| y * g);
                        dx.iter_mut().zip(y).zip(g).for_each(|((dx, &y), &g)| *dx = y * (g - mean));
                    }
                },
            );
        })?;
        shaped(dx, y).map(Some)
    }
}
