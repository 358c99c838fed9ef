//! One optimizer step: forward and backward over its micro-batches, the guards, the update.

use std::time::{Duration, Instant};

use candle_core::backprop::GradStore;
use vela_kernels::{Tape, on_workers};
use vela_models::Vlm;
use vela_types::{Batch, BatchSource, IGNORE_LABEL, Position};

use crate::data::next_batch;
use crate::device_batch::{ImageInput, to_model_batch};
use crate::dropout::dropout_keys;
use crate::error::TrainError;
use crate::flops::{StepSize, causal_pairs};
use crate::gradient_check::GradientCheck;
use crate::guard::{Guard, SkippedStep};
use crate::optimizer::{Gradients, Optimizer};
use crate::ranks::Ranks;
use crate::schedule::Schedule;

/// What one step did.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepReport {
    /// Mean loss per label token of the global batch.
    pub(crate) loss: f64,
    pub(crate) grad_norm: f64,
    /// The schedule's factor on every learning rate.
    pub(crate) factor: f64,
    pub(crate) num_samples: u64,
    pub(crate) size: StepSize,
    pub(crate) data_wait: Duration,
    /// The update was left out, since loss or gradient were not finite.
    pub(crate) skipped: Option<SkippedStep>,
    pub(crate) sample_ids: Vec<String>,
}

/// What a step needs and changes.
pub(crate) struct Stepper {
    pub(crate) model: Vlm,
    pub(crate) optimizer: Optimizer,
    pub(crate) schedule: Schedule,
    pub(crate) source: Box<dyn BatchSource>,
    pub(crate) images: ImageInput,
    pub(crate) gradient_check: GradientCheck,
    pub(crate) guard: Guard,
    /// Of the run; dropout draws from it.
    pub(crate) seed: u64,
}

impl Stepper {
    /// Runs zero-based optimizer step `step`, whose batches begin at `position`, and updates the weights, as all ranks do.
    pub(crate) fn train_step(
        &mut self,
        step: u64,
        position: Position,
        ranks: &mut Ranks<'_>,
    ) -> Result<StepReport, TrainError> {
        let (mut gradients, mut report) = self.forward_backward(step, position)?;
        ranks.sum_step(step + 1, &self.model, &mut gradients, &mut report)?;
        report.factor = self.schedule.factor(step);
        report.grad_norm = gradients.norm()?;
        if let Some((what, value)) = find_non_finite(&report, &gradients)? {
            let (step, value) = (step + 1, value.to_string());
            let samples = ranks.gather("naming the samples of a step", std::mem::take(&mut report.sample_ids))?;
            let skipped = SkippedStep { step, what, value, samples, validation_loss: None };
            report.skipped = Some(self.guard.admit(skipped)?);
            return Ok(report);
        }
        self.gradient_check.check_step(&self.model, &gradients, report.size.images > 0)?;
        on_workers(|| self.optimizer.step(&gradients, report.factor, report.grad_norm))?;
        Ok(report)
    }

    /// Sums loss and gradients over the micro-batches of a step, each divided by the step's global label count.
    fn forward_backward(&mut self, step: u64, mut position: Position) -> Result<(Gradients, StepReport), TrainError> {
        let (mut gradients, mut report) = (Gradients::default(), StepReport::default());
        loop {
            let asked = Instant::now();
            let batch = next_batch(self.source.as_mut(), position)?;
            report.data_wait += asked.elapsed();
            report.count(&batch)?;
            // A micro-batch of masked slots alone has nothing to learn from.
            if has_labels(&batch) {
                // No more than this: a worker that waits for a batch would keep those who make it from their work.
                report.loss += on_workers(|| self.backward(step, &batch, &mut gradients))?;
            }
            position.micro += 1;
            if position.micro >= batch.num_micro {
                return Ok((gradients, report));
            }
        }
    }

    /// One micro-batch: its share of the step's loss; its gradients are added to `gradients`.
    fn backward(&mut self, step: u64, batch: &Batch, gradients: &mut Gradients) -> Result<f64, TrainError> {
        let image_tokens = self.model.image_tokens() as u32;
        let inputs = to_model_batch(batch, image_tokens, &self.images, self.model.device())?;
        let share = 1.0 / batch.step_label_tokens as f64;
        let dropout = dropout_keys(&self.model, batch, self.seed, step)?;
        let (loss, tape) = Tape::record(|| self.model.training_loss(&inputs, dropout.as_ref()));
        let loss = loss?;
        let value = loss.to_scalar::<f32>()?;
        let mut store: GradStore = tape.backward(loss, share as f32)?;
        self.gradient_check.check_frozen(&self.model, &store)?;
        for (name, var) in self.model.params().trainable() {
            if let Some(gradient) = store.remove(var.as_tensor()) {
                gradients.add(name, gradient)?;
            }
        }
        Ok(f64::from(value * share as f32))
    }
}

/// Whether any label of the batch is predicted.
pub(crate) fn has_labels(batch: &Batch) -> bool {
    batch.labels.data().chunks_exact(4).any(|word| word != IGNORE_LABEL.to_le_bytes())
}

impl StepReport {
    fn count(&mut self, batch: &Batch) -> Result<(), TrainError> {
        if batch.step_label_tokens == 0 {
            return Err(TrainError::Batch {
                position: batch.position,
                expected: "a step with at least one label token".to_owned(),
                found: "none".to_owned(),
            });
        }
        let real = batch.document_ids.data().chunks_exact(4).filter(|word| *word != [0; 4]).count();
        let valid = batch.samples.iter().filter(|slot| slot.valid);
        self.sample_ids.extend(valid.map(|slot| slot.id.clone()));
        self.num_samples = self.sample_ids.len() as u64;
        let (_, columns) = batch.rows_and_columns();
        self.size.tokens += real as u64;
        self.size.label_tokens = batch.step_label_tokens;
        self.size.images += batch.image_spans.len() as u64;
        self.size.pairs += batch.document_ids.to_i32().map_or(0, |documents| causal_pairs(&documents, columns));
        Ok(())
    }
}

/// What is not finite, and its value.
fn find_non_finite(report: &StepReport, gradients: &Gradients) -> Result<Option<(String, f64)>, TrainError> {
    if !report.loss.is_finite() {
        return Ok(Some(("the loss".to_owned(), report.loss)));
    }
    if report.grad_norm.is_finite() {
        return Ok(None);
    }
    let first = gradients.first_non_finite()?;
    Ok(Some(match first {
        Some((name, value)) => (format!("the gradient of `{name}`"), value),
        // Each is finite, their sum is not.
        None => ("the gradient norm".to_owned(), report.grad_norm),
    }))
}
