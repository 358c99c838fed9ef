//! Softmax over the last dimension.

pub(crate) mod cpu;

use candle_core::Tensor;

use crate::error::{InOp, Result, check_f32, last_dim};
use crate::tape::{self, Needs};

/// Softmax over the last dimension, shifted by each row's maximum.
///
/// # Errors
/// If `x` is a scalar, or not f32 on a device this build has code for.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    check_f32("softmax", "x", x)?;
    last_dim("softmax", "x", x)?;
    let needs = Needs::SHAPES.and_result();
    tape::contiguous(x).and_then(|x| tape::apply1(&x, cpu::Softmax, needs)).in_op("softmax")
}
