//! Element-wise activations and their gated form.

mod cpu;

use candle_core::Tensor;

use crate::error::{InOp, Result, check_dims, check_f32};
use crate::tape::{self, Needs};

/// `x * Phi(x)` with the exact normal distribution function (PyTorch `gelu`).
///
/// # Errors
/// If `x` is not f32 on a device this build has code for.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    apply(x, cpu::GeluErf)
}

/// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` (PyTorch `gelu(approximate="tanh")`).
///
/// # Errors
/// If `x` is not f32 on a device this build has code for.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    apply(x, cpu::GeluTanh)
}

/// `x * sigmoid(1.702 x)`, the activation of CLIP's towers.
///
/// # Errors
/// If `x` is not f32 on a device this build has code for.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    apply(x, cpu::QuickGelu)
}

/// `x * sigmoid(x)`.
///
/// # Errors
/// If `x` is not f32 on a device this build has code for.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    apply(x, cpu::Silu)
}

/// `silu(gate) * up`, element by element.
///
/// # Errors
/// If the shapes differ, or a tensor is not f32 on a device this build has code for.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    const OP: &str = "swiglu";
    check_f32(OP, "gate", gate)?;
    check_f32(OP, "up", up)?;
    check_dims(OP, "up", up, gate.dims())?;
    let (gate, up) = (tape::contiguous(gate).in_op(OP)?, tape::contiguous(up).in_op(OP)?);
    tape::apply2(&gate, &up, cpu::SwiGlu, Needs::args([true, true, false]).cheap()).in_op(OP)
}

fn apply<A: cpu::Activation>(x: &Tensor, activation: A) -> Result<Tensor> {
    check_f32(A::NAME, "x", x)?;
    let needs = Needs::args([true, false, false]).cheap();
    tape::contiguous(x).and_then(|x| tape::apply1(&x, cpu::Elementwise(activation), needs)).in_op(A::NAME)
}
