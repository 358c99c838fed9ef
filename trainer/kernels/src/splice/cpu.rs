//! CPU code: row copies both ways.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use crate::cpu::{contiguous, shaped, with_values};

pub(super) struct Splice {
    pub(super) rows: Vec<u32>,
}

impl CustomOp2 for Splice {
    fn name(&self) -> &'static str {
        "splice_rows"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut spliced = contiguous(s1, l1)?.to_vec();
        let (_, width) = l1.shape().dims2()?;
        for (&row, value) in self.rows.iter().zip(contiguous(s2, l2)?.chunks_exact(width.max(1))) {
            spliced[row as usize * width..][..width].copy_from_slice(value);
        }
        Ok((CpuStorage::F32(spliced), l1.shape().clone()))
    }

    fn bwd(
        &self,
        base: &Tensor,
        values: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (_, width) = base.dims2()?;
        let grad = grad.contiguous()?;
        let mut base_grad = None;
        if base.track_op() {
            let mut kept = with_values(&grad, <[f32]>::to_vec)?;
            self.rows.iter().for_each(|&row| kept[row as usize * width..][..width].fill(0.0));
            base_grad = Some(shaped(kept, base)?);
        }
        let mut values_grad = None;
        if values.track_op() {
            let mut taken = Vec::with_capacity(values.elem_count());
            with_values(&grad, |grad| {
                self.rows.iter().for_each(|&row| taken.extend_from_slice(&grad[row as usize * width..][..width]));
            })?;
            values_grad = Some(shaped(taken, values)?);
        }
        Ok((base_grad, values_grad))
    }
}
