//! CPU code: fixed chunks, so that neither the result nor the sum depends on the number of threads.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;

use super::AdamWStep;
use crate::cpu::{contiguous, contiguous_mut, with_values};
use crate::machine::vectorised;

/// Elements per task; also the unit of the fixed summation order.
const CHUNK: usize = 16 * 1024;
/// Independent partial sums within a chunk, so that the loop vectorises.
const LANES: usize = 8;

pub(super) struct AdamWOp<'a> {
    pub(super) moments: Mutex<(&'a mut [f32], &'a mut [f32])>,
    pub(super) step: AdamWStep,
}

/// The step's numbers, rounded to f32 where PyTorch rounds its scalars.
struct Scalars {
    grad_scale: f32,
    decay: f32,
    mean_weight: f32,
    beta2: f32,
    square_weight: f32,
    root_correction: f32,
    eps: f32,
    step_size: f32,
}

impl Scalars {
    fn new(step: &AdamWStep) -> Self {
        let power = i32::try_from(step.step).unwrap_or(i32::MAX);
        let correction1 = 1.0 - step.beta1.powi(power);
        let correction2 = 1.0 - step.beta2.powi(power);
        Self {
            grad_scale: step.grad_scale as f32,
            decay: (1.0 - step.lr * step.weight_decay) as f32,
            mean_weight: (1.0 - step.beta1) as f32,
            beta2: step.beta2 as f32,
            square_weight: (1.0 - step.beta2) as f32,
            root_correction: correction2.sqrt() as f32,
            eps: step.eps as f32,
            step_size: (step.lr / correction1) as f32,
        }
    }

    #[inline(always)]
    fn update(&self, param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
            let g = g * self.grad_scale;
            *m += self.mean_weight * (g - *m);
            *v = *v * self.beta2 + self.square_weight * g * g;
            let denominator = v.sqrt() / self.root_correction + self.eps;
            *p = *p * self.decay - self.step_size * (*m / denominator);
        }
    }
}

impl InplaceOp2 for AdamWOp<'_> {
    fn name(&self) -> &'static str {
        "adamw_step"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> candle_core::Result<()> {
        let param = contiguous_mut(s1, l1)?;
        let grad = contiguous(s2, l2)?;
        let scalars = Scalars::new(&self.step);
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let (m, v) = &mut *moments;
        if param.len() <= CHUNK {
            vectorised(
                #[inline(always)]
                || scalars.update(param, grad, m, v),
            );
            return Ok(());
        }
        (param.par_chunks_mut(CHUNK), grad.par_chunks(CHUNK), m.par_chunks_mut(CHUNK), v.par_chunks_mut(CHUNK))
            .into_par_iter()
            .for_each(|(p, g, m, v)| {
                vectorised(
                    #[inline(always)]
                    || scalars.update(p, g, m, v),
                );
            });
        Ok(())
    }
}

pub(super) fn square_sum(t: &Tensor) -> candle_core::Result<f64> {
    with_values(t, |values| {
        if values.len() <= CHUNK {
            return chunk_square_sum(values);
        }
        let sums: Vec<f64> = values.par_chunks(CHUNK).map(chunk_square_sum).collect();
        sums.iter().sum()
    })
}

fn chunk_square_sum(values: &[f32]) -> f64 {
    vectorised(
        #[inline(always)]
        || square_sum_of(values),
    )
}

#[inline(always)]
fn square_sum_of(values: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f64 = chunks.remainder().iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(x) * f64::from(x);
        }
    }
    lanes.iter().sum::<f64>() + rest
}
