//! CPU code: one pass either way.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::cpu::{contiguous, shaped, with_values};
use crate::simd::new_row_blocks;

pub(super) struct Scale(pub(super) f32);

impl Scale {
    fn times(&self, x: &[f32]) -> Vec<f32> {
        new_row_blocks(
            x.len(),
            1,
            #[inline(always)]
            |start, y| y.iter_mut().zip(&x[start..]).for_each(|(y, &x)| *y = self.0 * x),
        )
    }
}

impl CustomOp1 for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.times(contiguous(storage, layout)?)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        with_values(&grad.contiguous()?, |grad| self.times(grad)).and_then(|dx| shaped(dx, x)).map(Some)
    }
}
