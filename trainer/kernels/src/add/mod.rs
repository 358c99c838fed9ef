//! The sum of two tensors of one shape, as residual connections need it.

mod cpu;

use candle_core::Tensor;

use crate::error::{InOp, Result, check_dims, check_f32};
use crate::tape;

pub(crate) use cpu::{add_in_place, add_rows_in_place};

/// `a + b`, element by element; both have one shape.
///
/// # Errors
/// If the shapes differ, or a tensor is not f32 on a device this build has code for.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    const OP: &str = "add";
    check_f32(OP, "a", a)?;
    check_f32(OP, "b", b)?;
    check_dims(OP, "b", b, a.dims())?;
    let (a, b) = (a.contiguous().in_op(OP)?, b.contiguous().in_op(OP)?);
    let sum = a.apply_op2(&b, cpu::Add).in_op(OP)?;
    tape::note_sum(&a, &b, &sum);
    Ok(sum)
}
