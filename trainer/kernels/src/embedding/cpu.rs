//! CPU code: a row copy forward; backward adds rows in the order of the ids.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::cpu::{contiguous, shaped, with_values};

/// Adds below which the backward stays on one thread.
const SERIAL: usize = 256 * 1024;
/// Ranges of the table that tasks own.
const RANGES: usize = 8;

pub(super) struct Embedding {
    pub(super) ids: Vec<u32>,
    pub(super) dims: Vec<usize>,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let table = contiguous(storage, layout)?;
        let (_, width) = layout.shape().dims2()?;
        let mut rows = Vec::with_capacity(self.ids.len() * width);
        self.ids.iter().for_each(|&id| rows.extend_from_slice(&table[id as usize * width..][..width]));
        Ok((CpuStorage::F32(rows), Shape::from(self.dims.clone())))
    }

    fn bwd(&self, table: &Tensor, _rows: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (size, width) = table.dims2()?;
        let grad = grad.contiguous()?;
        let mut sums = vec![0f32; size * width];
        with_values(&grad, |grad| {
            // Each range sees the ids in their order, so the split changes no sum.
            let range = |first: usize, sums: &mut [f32]| {
                for (&id, g) in self.ids.iter().zip(grad.chunks_exact(width)) {
                    let Some(row) = (id as usize).checked_sub(first) else { continue };
                    if let Some(sum) = sums.get_mut(row * width..(row + 1) * width) {
                        sum.iter_mut().zip(g).for_each(|(sum, &g)| *sum += g);
                    }
                }
            };
            if grad.len() < SERIAL {
                return range(0, &mut sums);
            }
            let rows = size.div_ceil(RANGES);
            sums.par_chunks_mut(rows * width).enumerate().for_each(|(i, sums)| range(i * rows, sums));
        })?;
        shaped(sums, table).map(Some)
    }
}
