//! Root-mean-square norm and layer norm over the last dimension.

mod cpu;

use candle_core::Tensor;

use crate::error::{InOp, Result, check_dims, check_f32, last_dim};
use crate::tape::{self, Needs};

/// `x / sqrt(mean(x^2) + eps) * w` over the last dimension; `w` has that dimension's length.
///
/// # Errors
/// If the shapes do not fit, or a tensor is not f32 on a device this build has code for.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
    const OP: &str = "rms_norm";
    check_f32(OP, "x", x)?;
    check_f32(OP, "w", w)?;
    check_dims(OP, "w", w, &[last_dim(OP, "x", x)?])?;
    let (x, w) = (tape::contiguous(x).in_op(OP)?, tape::contiguous(w).in_op(OP)?);
    let needs = Needs::args([true, true, false]).cheap();
    tape::apply2(&x, &w, cpu::RmsNorm(cpu::Norm::new(eps)), needs).in_op(OP)
}

/// `(x - mean) / sqrt(var + eps) * w + b` over the last dimension, with the biased variance; `w` and `b` have that
/// dimension's length.
///
/// # Errors
/// If the shapes do not fit, or a tensor is not f32 on a device this build has code for.
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f32) -> Result<Tensor> {
    const OP: &str = "layer_norm";
    check_f32(OP, "x", x)?;
    let width = last_dim(OP, "x", x)?;
    for (name, t) in [("w", w), ("b", b)] {
        check_f32(OP, name, t)?;
        check_dims(OP, name, t, &[width])?;
    }
    let [x, w, b] = [x, w, b].map(|t| tape::contiguous(t).in_op(OP));
    let needs = Needs::args([true; 3]).cheap();
    tape::apply3([&x?, &w?, &b?], cpu::LayerNorm(cpu::Norm::new(eps)), needs).in_op(OP)
}
