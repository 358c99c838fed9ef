//! CPU code: both norms are one routine, with or without centring.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::{contiguous, shaped, with_three};
use crate::machine::vectorised;
use crate::simd::{new_row_blocks, rows_per_task, sum_of};

/// What the forward leaves for the backward: each row's mean (zero unless centred) and inverse deviation.
pub(super) struct Norm {
    eps: f32,
    rows: OnceLock<Vec<(f32, f32)>>,
}

impl Norm {
    pub(super) fn new(eps: f32) -> Self {
        Self { eps, rows: OnceLock::new() }
    }

    fn forward<const CENTRED: bool>(&self, x: &[f32], w: &[f32], b: Option<&[f32]>) -> Vec<f32> {
        let width = w.len().max(1);
        let stats = |row: &[f32]| self.row_stats::<CENTRED>(row);
        let rows: Vec<(f32, f32)> = {
            let task = |block: &[f32]| -> Vec<(f32, f32)> {
                vectorised(
                    #[inline(always)]
                    || block.chunks_exact(width).map(stats).collect(),
                )
            };
            let size = rows_per_task(width) * width;
            if x.len() <= size { task(x) } else { x.par_chunks(size).flat_map_iter(task).collect() }
        };
        let y = new_row_blocks(
            x.len(),
            width,
            #[inline(always)]
            |first, block| {
                for (r, y) in block.chunks_exact_mut(width).enumerate() {
                    let (mean, scale) = rows[first + r];
                    let x = &x[(first + r) * width..][..width];
                    match b {
                        Some(b) => {
                            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(w).zip(b) {
                                *y = (x - mean) * scale * w + b;
                            }
                        }
                        None => y.iter_mut().zip(x).zip(w).for_each(|((y, &x), &w)| *y = (x - mean) * scale * w),
                    }
                }
            },
        );
        // A second forward of the same op would save the same numbers.
        let _ = self.rows.set(rows);
        y
    }

    #[inline(always)]
    fn row_stats<const CENTRED: bool>(&self, row: &[f32]) -> (f32, f32) {
        let width = row.len() as f32;
        let mean = if CENTRED { sum_of(row, row, |x, _| x) / width } else { 0.0 };
        let variance = sum_of(row, row, |x, _| (x - mean) * (x - mean)) / width;
        (mean, 1.0 / (variance + self.eps).sqrt())
    }

    /// Gradients of `x`, `w` and `b`; the last two are summed by blocks of rows, then over the blocks in order.
    fn backward<const CENTRED: bool>(&self, x: &[f32], w: &[f32], grad: &[f32]) -> Result<Gradients> {
        let Some(rows) = self.rows.get() else { bail!("backward before forward") };
        let width = w.len().max(1);
        let size = rows_per_task(width);
        let mut dx = vec![0f32; x.len()];
        let task = |(block, dx): (usize, &mut [f32])| {
            let mut sums = (vec![0f32; width], vec![0f32; width]);
            vectorised(
                #[inline(always)]
                || {
                    for (r, dx) in dx.chunks_exact_mut(width).enumerate() {
                        let row = block * size + r;
                        let span = row * width..(row + 1) * width;
                        let of = RowOf { x: &x[span.clone()], w, grad: &grad[span], stats: rows[row] };
                        of.backward::<CENTRED>(dx, &mut sums.0, &mut sums.1);
                    }
                },
            );
            sums
        };
        let parts: Vec<_> = if dx.len() <= size * width {
            vec![task((0, &mut dx))]
        } else {
            dx.par_chunks_mut(size * width).enumerate().map(task).collect()
        };
        let (mut dw, mut db) = (vec![0f32; width], vec![0f32; width]);
        for (dw_part, db_part) in parts {
            dw.iter_mut().zip(dw_part).for_each(|(sum, x)| *sum += x);
            db.iter_mut().zip(db_part).for_each(|(sum, x)| *sum += x);
        }
        Ok(Gradients { dx, dw, db })
    }
}

struct Gradients {
    dx: Vec<f32>,
    dw: Vec<f32>,
    db: Vec<f32>,
}

/// One row of the backward.
struct RowOf<'a> {
    x: &'a [f32],
    w: &'a [f32],
    grad: &'a [f32],
    stats: (f32, f32),
}

impl RowOf<'_> {
    #[inline(always)]
    fn backward<const CENTRED: bool>(&self, dx: &mut [f32], dw: &mut [f32], db: &mut [f32]) {
        let (mean, scale) = self.stats;
        let width = self.x.len() as f32;
        for ((((dx, &x), &g), dw), &w) in dx.iter_mut().zip(self.x).zip(self.grad).zip(dw).zip(self.w) {
            *dw += g * ((x - mean) * scale);
            *dx = g * w;
        }
        let along = sum_of(dx, self.x, |g, x| g * (x - mean)) * scale * scale / width;
        let level = if CENTRED {
            db.iter_mut().zip(self.grad).for_each(|(db, &g)| *db += g);
            sum_of(dx, dx, |g, _| g) / width
        } else {
            0.0
        };
        dx.iter_mut().zip(self.x).for_each(|(dx, &x)| *dx = scale * (*dx - level - (x - mean) * along));
    }
}

pub(super) struct RmsNorm(pub(super) Norm);

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.0.forward::<false>(contiguous(s1, l1)?, contiguous(s2, l2)?, None);
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let d = with_three([x, w, &grad], |x, w, grad| self.0.backward::<false>(x, w, grad))??;
        Ok((if_tracked(d.dx, x)?, if_tracked(d.dw, w)?))
    }
}

pub(super) struct LayerNorm(pub(super) Norm);

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = self.0.forward::<true>(contiguous(s1, l1)?, contiguous(s2, l2)?, Some(contiguous(s3, l3)?));
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, b: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Three> {
        let grad = grad.contiguous()?;
        let d = with_three([x, w, &grad], |x, w, grad| self.0.backward::<true>(x, w, grad))??;
        Ok((if_tracked(d.dx, x)?, if_tracked(d.dw, w)?, if_tracked(d.db, b)?))
    }
}

type Three = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

fn if_tracked(values: Vec<f32>, of: &Tensor) -> Result<Option<Tensor>> {
    if of.track_op() { shaped(values, of).map(Some) } else { Ok(None) }
}
