//! Matrix product with a weight stored as PyTorch stores it, with the bias fused.

mod cpu;

use candle_core::Tensor;

use crate::error::{InOp, KernelError, Result, check_dims, check_f32, last_dim};
use crate::tape::{self, Needs};

/// `x w^T + b`: `x_XI` of any leading dimensions, `w_OI`, `b_O`, giving `[X.., O]`.
///
/// A weight or bias outside the graph (no `Var`, no recorded op) costs no gradient, and neither does such an `x`.
///
/// # Errors
/// If the shapes do not fit, or a tensor is not f32 on a device this build has code for.
pub fn linear(x_XI: &Tensor, w_OI: &Tensor, b_O: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "linear";
    check_f32(OP, "x", x_XI)?;
    check_f32(OP, "w", w_OI)?;
    let inputs = last_dim(OP, "x", x_XI)?;
    let (outputs, w_inputs) = w_OI.dims2().map_err(|_| KernelError::Shape {
        op: OP,
        expected: format!("`w` [outputs, {inputs}]"),
        found: format!("{:?}", w_OI.dims()),
    })?;
    if w_inputs != inputs {
        return check_dims(OP, "w", w_OI, &[outputs, inputs]).map(|()| w_OI.clone());
    }
    if let Some(b_O) = b_O {
        check_f32(OP, "b", b_O)?;
        check_dims(OP, "b", b_O, &[outputs])?;
    }
    let (x_XI, w_OI) = (tape::contiguous(x_XI).in_op(OP)?, tape::contiguous(w_OI).in_op(OP)?);
    let needs = Needs::args([w_OI.track_op(), x_XI.track_op(), false]);
    match b_O {
        Some(b_O) => tape::apply3([&x_XI, &w_OI, &tape::contiguous(b_O).in_op(OP)?], cpu::Linear, needs).in_op(OP),
        None => tape::apply2(&x_XI, &w_OI, cpu::Linear, needs).in_op(OP),
    }
}
