//! CPU code: one pass forward, one pass backward.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::cpu::{contiguous, shaped, with_three, with_two};
use crate::machine::vectorised;
use crate::simd::{exp, new_row_blocks, normal, rows_per_task, sigmoid};

/// A function of one element and its derivative.
pub(super) trait Activation: Send + Sync + 'static {
    const NAME: &'static str;
    fn value(x: f32) -> f32;
    fn slope(x: f32) -> f32;
}

pub(super) struct GeluErf;

impl Activation for GeluErf {
    const NAME: &'static str = "gelu_erf";

    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * normal(x).0
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;
        let (below, bell) = normal(x);
        below + x * bell * FRAC_1_SQRT_2PI
    }
}

pub(super) struct GeluTanh;

const TWICE_SQRT_2_PI: f32 = 1.595_769;

/// `(1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2`, which is a sigmoid of twice the argument.
#[inline(always)]
fn tanh_gate(x: f32) -> f32 {
    sigmoid(TWICE_SQRT_2_PI * (x + 0.044_715 * x * x * x))
}

impl Activation for GeluTanh {
    const NAME: &'static str = "gelu_tanh";

    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * tanh_gate(x)
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let gate = tanh_gate(x);
        gate + x * gate * (1.0 - gate) * TWICE_SQRT_2_PI * (1.0 + 3.0 * 0.044_715 * x * x)
    }
}

pub(super) struct QuickGelu;

impl Activation for QuickGelu {
    const NAME: &'static str = "quick_gelu";

    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(1.702 * x)
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let gate = sigmoid(1.702 * x);
        gate + 1.702 * x * gate * (1.0 - gate)
    }
}

pub(super) struct Silu;

impl Activation for Silu {
    const NAME: &'static str = "silu";

    #[inline(always)]
    fn value(x: f32) -> f32 {
        x / (1.0 + exp(-x))
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let gate = sigmoid(x);
        gate + x * gate * (1.0 - gate)
    }
}

/// An activation as an op over a contiguous tensor.
pub(super) struct Elementwise<A>(pub(super) A);

impl<A: Activation> CustomOp1 for Elementwise<A> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?;
        let y = new_row_blocks(
            x.len(),
            1,
            #[inline(always)]
            |start, y| y.iter_mut().zip(&x[start..]).for_each(|(y, &x)| *y = A::value(x)),
        );
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dx = with_two(x, &grad, |x, grad| {
            new_row_blocks(
                x.len(),
                1,
                #[inline(always)]
                |start, dx| {
                    for ((dx, &x), &g) in dx.iter_mut().zip(&x[start..]).zip(&grad[start..]) {
                        *dx = g * A::slope(x);
                    }
                },
            )
        })?;
        shaped(dx, x).map(Some)
    }
}

/// `silu(gate) * up` over contiguous tensors.
pub(super) struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (contiguous(s1, l1)?, contiguous(s2, l2)?);
        let y = new_row_blocks(
            gate.len(),
            1,
            #[inline(always)]
            |start, y| {
                for ((y, &gate), &up) in y.iter_mut().zip(&gate[start..]).zip(&up[start..]) {
                    *y = Silu::value(gate) * up;
                }
            },
        );
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (mut dgate, mut dup) = (vec![0f32; gate.elem_count()], vec![0f32; up.elem_count()]);
        with_three([gate, up, &grad], |gate, up, grad| {
            let size = rows_per_task(1);
            dgate.par_chunks_mut(size).zip(dup.par_chunks_mut(size)).enumerate().for_each(|(block, (dgate, dup))| {
                let start = block * size;
                swiglu_slopes(dgate, dup, [&gate[start..], &up[start..], &grad[start..]]);
            });
        })?;
        let give = |values, of: &Tensor| if of.track_op() { shaped(values, of).map(Some) } else { Ok(None) };
        Ok((give(dgate, gate)?, give(dup, up)?))
    }
}

fn swiglu_slopes(dgate: &mut [f32], dup: &mut [f32], [gate, up, grad]: [&[f32]; 3]) {
    vectorised(
        #[inline(always)]
        || {
            for ((((dgate, dup), &gate), &up), &g) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(grad) {
                let open = sigmoid(gate);
                *dgate = g * up * (open + gate * open * (1.0 - open));
                *dup = g * gate * open;
            }
        },
    );
}
