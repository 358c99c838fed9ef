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
    let (a, b) = (tape::contiguous(a).in_op(OP)?, tape::contiguous(b).in_op(OP)?);
    tape::apply_sum(&a, &b, cpu::Add).in_op(OP)
}

/// `sum += x` in place; both are contiguous, have one shape and share no memory. Everyone who holds `sum` sees it.
///
/// # Errors
/// If the shapes differ, or a tensor is not contiguous f32 on a device this build has code for.
pub fn add_assign(sum: &Tensor, x: &Tensor) -> Result<()> {
    const OP: &str = "add_assign";
    check_f32(OP, "sum", sum)?;
    check_f32(OP, "x", x)?;
    check_dims(OP, "x", x, sum.dims())?;
    add_in_place(sum, x).in_op(OP)
}
