//! CPU code: row copies both ways.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use crate::cpu::{contiguous, shaped, with_values};

pub(super) struct Concat;

/// The width of a row.
fn width(dims: &[usize]) -> usize {
    dims.last().copied().unwrap_or(1).max(1)
}

impl CustomOp2 for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (contiguous(s1, l1)?, contiguous(s2, l2)?);
        let (a_width, b_width) = (width(l1.dims()), width(l2.dims()));
        let mut joined = Vec::with_capacity(a.len() + b.len());
        for (a, b) in a.chunks_exact(a_width).zip(b.chunks_exact(b_width)) {
            joined.extend_from_slice(a);
            joined.extend_from_slice(b);
        }
        let mut dims = l1.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = a_width + b_width;
        }
        Ok((CpuStorage::F32(joined), Shape::from(dims)))
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _joined: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (a_width, row) = (width(a.dims()), width(grad.dims()));
        let grad = grad.contiguous()?;
        let part = |of: &Tensor, columns: std::ops::Range<usize>| -> Result<Option<Tensor>> {
            if !of.track_op() {
                return Ok(None);
            }
            let values = with_values(&grad, |grad| {
                grad.chunks_exact(row).flat_map(|row| &row[columns.clone()]).copied().collect::<Vec<f32>>()
            })?;
            shaped(values, of).map(Some)
        };
        Ok((part(a, 0..a_width)?, part(b, a_width..row)?))
    }
}
