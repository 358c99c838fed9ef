//! CPU code: one pass forward, none backward.

use candle_core::{CpuStorage, CustomOp2, InplaceOp2, Layout, Result, Shape, Tensor};

use crate::cpu::{contiguous, contiguous_mut};
use crate::simd::{for_row_blocks, new_row_blocks};

pub(super) struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (contiguous(s1, l1)?, contiguous(s2, l2)?);
        let sum = new_row_blocks(
            a.len(),
            1,
            #[inline(always)]
            |start, sum| {
                for ((sum, &a), &b) in sum.iter_mut().zip(&a[start..]).zip(&b[start..]) {
                    *sum = a + b;
                }
            },
        );
        Ok((CpuStorage::F32(sum), l1.shape().clone()))
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _sum: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((a.track_op().then(|| grad.clone()), b.track_op().then(|| grad.clone())))
    }
}

struct AddInPlace;

impl InplaceOp2 for AddInPlace {
    fn name(&self) -> &'static str {
        "add_in_place"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let (sum, x) = (contiguous_mut(s1, l1)?, contiguous(s2, l2)?);
        for_row_blocks(
            sum,
            1,
            #[inline(always)]
            |start, sum| sum.iter_mut().zip(&x[start..]).for_each(|(sum, &x)| *sum += x),
        );
        Ok(())
    }
}

/// `sum += x`; the two must not share memory.
pub(crate) fn add_in_place(sum: &Tensor, x: &Tensor) -> Result<()> {
    sum.inplace_op2(x, &AddInPlace)
}

/// Adds row `i` to row `ids[i]`.
struct AddRows<'a> {
    ids: &'a [u32],
}

impl InplaceOp2 for AddRows<'_> {
    fn name(&self) -> &'static str {
        "add_rows_in_place"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let (_, width) = l1.shape().dims2()?;
        let (sum, rows) = (contiguous_mut(s1, l1)?, contiguous(s2, l2)?);
        for (&id, row) in self.ids.iter().zip(rows.chunks_exact(width.max(1))) {
            sum[id as usize * width..][..width].iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
        }
        Ok(())
    }
}

/// Adds row `i` of `rows` to row `ids[i]` of `sum`, in the order of the ids.
pub(crate) fn add_rows_in_place(sum: &Tensor, ids: &[u32], rows: &Tensor) -> Result<()> {
    sum.inplace_op2(rows, &AddRows { ids })
}
