//! CPU code: blocks of rows forward and for the input's gradient, a blocked sum over rows for the weight's.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use crate::cpu::{contiguous, shaped, with_two, with_values};
use crate::machine::{Mat, new_rows, reduce_rows, vectorised};
use crate::simd::rows_per_task;

pub(super) struct Linear;

/// Output values and shape.
fn forward(x: (&[f32], &Layout), w: (&[f32], &Layout), bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
    let (outputs, inputs) = w.1.shape().dims2()?;
    let mut dims = x.1.dims().to_vec();
    let rows: usize = dims[..dims.len() - 1].iter().product();
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    let y = new_rows(rows, x.0, Mat::strided(w.0, outputs, inputs, inputs).t(), bias);
    Ok((CpuStorage::F32(y), Shape::from(dims)))
}

/// Gradients of `x` and `w`, each only if it is part of the graph.
fn backward(x: &Tensor, w: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let (outputs, inputs) = w.dims2()?;
    let mut dx = None;
    if x.track_op() {
        let rows = x.elem_count() / inputs.max(1);
        let values = with_two(w, grad, |w, grad| new_rows(rows, grad, Mat::strided(w, outputs, inputs, inputs), None))?;
        dx = Some(shaped(values, x)?);
    }
    let mut dw = None;
    if w.track_op() {
        let mut values = vec![0f32; w.elem_count()];
        with_two(x, grad, |x, grad| {
            reduce_rows(&mut values, Mat::rows(grad, outputs), Mat::rows(x, inputs), false);
        })?;
        dw = Some(shaped(values, w)?);
    }
    Ok((dx, dw))
}

/// Column sums of the gradient, by blocks of rows.
fn bias_grad(b: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
    use rayon::prelude::*;
    if !b.track_op() {
        return Ok(None);
    }
    let width = b.elem_count().max(1);
    let sum = |block: &[f32]| {
        let mut sum = vec![0f32; width];
        vectorised(
            #[inline(always)]
            || block.chunks_exact(width).for_each(|row| sum.iter_mut().zip(row).for_each(|(sum, &g)| *sum += g)),
        );
        sum
    };
    let parts: Vec<Vec<f32>> =
        with_values(grad, |grad| grad.par_chunks(rows_per_task(width) * width).map(sum).collect())?;
    let mut db = vec![0f32; b.elem_count()];
    for part in parts {
        db.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    shaped(db, b).map(Some)
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        forward((contiguous(s1, l1)?, l1), (contiguous(s2, l2)?, l2), None)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        backward(x, w, &grad.contiguous()?)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
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
        forward((contiguous(s1, l1)?, l1), (contiguous(s2, l2)?, l2), Some(contiguous(s3, l3)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, dw) = backward(x, w, &grad)?;
        Ok((dx, dw, bias_grad(b, &grad)?))
    }
}
