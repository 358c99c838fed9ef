//! The optimizer's arithmetic: one AdamW step in place, and the norm that clips gradients.

mod cpu;

use std::sync::Mutex;

use candle_core::{Tensor, Var};

use crate::error::{InOp, KernelError, Result, check_dims, check_f32};

/// The numbers of one AdamW step; all of one parameter tensor share them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the running mean of the gradient.
    pub beta1: f64,
    /// Decay of the running mean of the squared gradient.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay: the parameter is multiplied by `1 - lr * weight_decay` first.
    pub weight_decay: f64,
    /// The number of this step; the first is 1.
    pub step: u64,
    /// Multiplies the gradient before anything else: `clip coefficient / labelled tokens`.
    pub grad_scale: f64,
}

/// One AdamW step in place on `param`, in the order of operations of PyTorch's `torch.optim.AdamW`.
///
/// `m` and `v` are the running means, one f32 per element in row-major order, zeros before step 1. They are plain
/// slices so that a checkpoint writes them as they are.
///
/// # Errors
/// If shapes or lengths differ, or a tensor is not contiguous f32 on the CPU.
pub fn adamw_step(param: &Var, grad: &Tensor, m: &mut [f32], v: &mut [f32], step: &AdamWStep) -> Result<()> {
    const OP: &str = "adamw_step";
    check_f32(OP, "param", param)?;
    check_f32(OP, "grad", grad)?;
    check_dims(OP, "grad", grad, param.dims())?;
    for (name, moment) in [("m", &*m), ("v", &*v)] {
        if moment.len() != param.elem_count() {
            return Err(KernelError::Shape {
                op: OP,
                expected: format!("`{name}` of {} elements", param.elem_count()),
                found: moment.len().to_string(),
            });
        }
    }
    let grad = grad.contiguous().in_op(OP)?;
    param.inplace_op2(&grad, &cpu::AdamWOp { moments: Mutex::new((m, v)), step: *step }).in_op(OP)
}

/// The sum of squares of all elements, in f64, in an order that does not depend on the number of threads.
///
/// # Errors
/// If `t` is not f32 on the CPU.
pub fn square_sum(t: &Tensor) -> Result<f64> {
    const OP: &str = "square_sum";
    check_f32(OP, "t", t)?;
    let t = t.contiguous().in_op(OP)?;
    cpu::square_sum(&t).in_op(OP)
}

/// What gradients are multiplied by so that their norm is at most `max_norm`: PyTorch's
/// `clip_grad_norm_`, `min(1, max_norm / (total_norm + 1e-6))`.
#[must_use]
pub fn clip_coefficient(total_norm: f64, max_norm: f64) -> f64 {
    (max_norm / (total_norm + 1e-6)).min(1.0)
}
