//! CPU code: chunks of labelled rows; the forward leaves the gradients of a unit loss, so that logits live for one
//! chunk only and are computed once.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::cpu::{contiguous, shaped};
use crate::machine::{Mat, map_rows, reduce_rows, vectorised};
use crate::simd::{for_row_blocks, rows_per_task};
use crate::softmax::cpu::softmax_in_place;

/// Logits held at once, unless that is less than 64 rows.
const CHUNK_LOGITS: usize = 2 * 1024 * 1024;

/// Which gradients the forward computes.
#[derive(Clone, Copy)]
pub(super) struct Wants {
    pub(super) hidden: bool,
    pub(super) weight: bool,
}

/// Gradients of the loss: `[labelled rows, D]` and `[V, D]`; empty where not wanted.
#[derive(Default)]
struct Gradients {
    hidden: Vec<f32>,
    weight: Vec<f32>,
}

pub(super) struct LinearCrossEntropy {
    rows: Vec<u32>,
    targets: Vec<u32>,
    wants: Wants,
    /// Of the last forward; a backward takes them, for they are as large as the weight.
    gradients: Mutex<Option<Gradients>>,
}

impl LinearCrossEntropy {
    pub(super) fn new(rows: Vec<u32>, targets: Vec<u32>, wants: Wants) -> Self {
        Self { rows, targets, wants, gradients: Mutex::new(None) }
    }

    /// The summed loss; leaves the gradients.
    fn forward(&self, hidden: &[f32], weight: &[f32], vocabulary: usize, width: usize) -> f32 {
        let count = self.rows.len();
        let mut gradients = Gradients {
            hidden: vec![0f32; if self.wants.hidden { count * width } else { 0 }],
            weight: vec![0f32; if self.wants.weight { weight.len() } else { 0 }],
        };
        let weight = Mat::strided(weight, vocabulary, width, width);
        let size = (CHUNK_LOGITS / vocabulary.max(1)).clamp(64, 1024);
        let mut logits = vec![0f32; size.min(count) * vocabulary];
        let mut loss = 0f64;
        for (chunk, (rows, targets)) in self.rows.chunks(size).zip(self.targets.chunks(size)).enumerate() {
            let gathered: Vec<f32> =
                rows.iter().flat_map(|&row| &hidden[row as usize * width..][..width]).copied().collect();
            let logits = &mut logits[..rows.len() * vocabulary];
            map_rows(logits, &gathered, weight.t(), None);
            loss += softmax_losses(logits, targets, vocabulary);
            if self.wants.hidden {
                let start = chunk * size * width;
                map_rows(&mut gradients.hidden[start..start + gathered.len()], logits, weight, None);
            }
            if self.wants.weight {
                let gathered = Mat::rows(&gathered, width);
                reduce_rows(&mut gradients.weight, Mat::rows(logits, vocabulary), gathered, true);
            }
        }
        *self.gradients.lock().unwrap_or_else(PoisonError::into_inner) = Some(gradients);
        loss as f32
    }

    /// The hidden gradient, rows back in their places.
    fn spread(&self, gradient: &[f32], hidden: &Tensor, scale: f32) -> Result<Tensor> {
        let (_, width) = hidden.dims2()?;
        let mut spread = vec![0f32; hidden.elem_count()];
        for (&row, gradient) in self.rows.iter().zip(gradient.chunks_exact(width.max(1))) {
            let to = &mut spread[row as usize * width..][..width];
            to.iter_mut().zip(gradient).for_each(|(to, &g)| *to = g * scale);
        }
        shaped(spread, hidden)
    }
}

/// Turns each row of logits into the gradient of its loss; gives the sum of the losses, rows in order.
fn softmax_losses(logits: &mut [f32], targets: &[u32], vocabulary: usize) -> f64 {
    let size = rows_per_task(vocabulary);
    let task = |(logits, targets): (&mut [f32], &[u32])| {
        vectorised(
            #[inline(always)]
            || {
                let mut loss = 0f64;
                for (row, &target) in logits.chunks_exact_mut(vocabulary).zip(targets) {
                    let target_logit = row[target as usize];
                    loss += f64::from(softmax_in_place(row) - target_logit);
                    row[target as usize] -= 1.0;
                }
                loss
            },
        )
    };
    let losses: Vec<f64> = logits.par_chunks_mut(size * vocabulary).zip(targets.par_chunks(size)).map(task).collect();
    losses.iter().sum()
}

impl CustomOp2 for LinearCrossEntropy {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (vocabulary, width) = l2.shape().dims2()?;
        let loss = self.forward(contiguous(s1, l1)?, contiguous(s2, l2)?, vocabulary, width);
        Ok((CpuStorage::F32(vec![loss]), Shape::from(())))
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        _loss: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradients = self.gradients.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut gradients) = gradients else { bail!("a backward before a forward, or a second one") };
        let scale = grad.to_scalar::<f32>()?;
        let mut of_hidden = None;
        if self.wants.hidden {
            of_hidden = Some(self.spread(&gradients.hidden, hidden, scale)?);
        }
        let mut of_weight = None;
        if self.wants.weight {
            for_row_blocks(
                &mut gradients.weight,
                1,
                #[inline(always)]
                |_, values| values.iter_mut().for_each(|g| *g *= scale),
            );
            of_weight = Some(shaped(gradients.weight, weight)?);
        }
        Ok((of_hidden, of_weight))
    }
}
