//! Two tensors side by side, as features of several hidden states are joined.

mod cpu;

use candle_core::Tensor;

use crate::error::{InOp, Result, check_dims, check_f32, last_dim};
use crate::tape::{self, Needs};

/// `a_XI` and `b_XO`, whose leading dimensions agree, as rows `[X.., I + O]`.
///
/// # Errors
/// If the leading dimensions differ, or a tensor is not f32 on a device this build has code for.
pub fn concat(a_XI: &Tensor, b_XO: &Tensor) -> Result<Tensor> {
    const OP: &str = "concat";
    check_f32(OP, "a", a_XI)?;
    check_f32(OP, "b", b_XO)?;
    last_dim(OP, "a", a_XI)?;
    let mut dims = a_XI.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = last_dim(OP, "b", b_XO)?;
    }
    check_dims(OP, "b", b_XO, &dims)?;
    let (a_XI, b_XO) = (tape::contiguous(a_XI).in_op(OP)?, tape::contiguous(b_XO).in_op(OP)?);
    tape::apply2(&a_XI, &b_XO, cpu::Concat, Needs::SHAPES).in_op(OP)
}
