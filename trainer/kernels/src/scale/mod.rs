//! A tensor times a number, as low-rank adapters scale what they add.

mod cpu;

use candle_core::Tensor;

use crate::error::{InOp, Result, check_f32};
use crate::tape::{self, Needs};

/// `factor * x`, element by element.
///
/// # Errors
/// If `x` is not f32 on a device this build has code for.
pub fn scale(x: &Tensor, factor: f32) -> Result<Tensor> {
    check_f32("scale", "x", x)?;
    tape::contiguous(x).and_then(|x| tape::apply1(&x, cpu::Scale(factor), Needs::SHAPES)).in_op("scale")
}
