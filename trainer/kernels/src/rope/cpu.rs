//! CPU code: one pass; the backward turns the other way.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::RopeTable;
use crate::cpu::{contiguous, shaped, with_values};
use crate::simd::new_row_blocks;

pub(super) struct Rotate {
    /// `[B, T]`, row-major.
    pub(super) positions: Vec<u32>,
    pub(super) table: RopeTable,
    pub(super) heads: usize,
    /// Whether heads come before positions in memory (`BHTD`) or after them (`BTHD`).
    pub(super) heads_first: bool,
}

impl Rotate {
    /// Rotates every head of `x` by its angle, or by the opposite angle where `direction` is -1.
    fn turn(&self, x: &[f32], length: usize, direction: f32) -> Vec<f32> {
        let (half, width) = (self.table.half, self.table.head_dim());
        new_row_blocks(
            x.len(),
            width,
            #[inline(always)]
            |first, block| {
                for (i, y) in block.chunks_exact_mut(width).enumerate() {
                    let head = first + i;
                    let token = if self.heads_first {
                        head / (self.heads * length) * length + head % length
                    } else {
                        head / self.heads
                    };
                    let start = self.positions[token] as usize * half;
                    let (cos, sin) = (&self.table.cos[start..start + half], &self.table.sin[start..start + half]);
                    let (a, b) = x[head * width..(head + 1) * width].split_at(half);
                    let (y_a, y_b) = y.split_at_mut(half);
                    for i in 0..half {
                        let sin = sin[i] * direction;
                        y_a[i] = a[i] * cos[i] - b[i] * sin;
                        y_b[i] = b[i] * cos[i] + a[i] * sin;
                    }
                }
            },
        )
    }

    fn length(&self, dims: &[usize]) -> usize {
        dims[if self.heads_first { 2 } else { 1 }].max(1)
    }
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.turn(contiguous(storage, layout)?, self.length(layout.dims()), 1.0);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let length = self.length(x.dims());
        let dx = with_values(&grad.contiguous()?, |grad| self.turn(grad, length, -1.0))?;
        shaped(dx, x).map(Some)
    }
}
