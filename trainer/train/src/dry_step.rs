//! The largest micro-batch there can be, tried before the first step.
//!
//! Shape suffixes: B rows, T columns, N images, C channels, H height, W width.

#![expect(non_snake_case, reason = "tensors carry shape suffixes")]

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use vela_dataset::MicroExtents;
use vela_kernels::Tape;
use vela_models::{ModelBatch, Vlm, VlmConfig};

use crate::dropout::trial_keys;
use crate::error::TrainError;

/// Runs forward and backward on a made-up micro-batch of these extents, every token of it labelled, each row one
/// document. Nothing is learnt: the gradients are dropped.
pub(crate) fn dry_step(model: &Vlm, largest: MicroExtents, from_features: bool) -> Result<Duration, TrainError> {
    let started = Instant::now();
    let batch = largest_batch(model.config(), largest, from_features, model.device())?;
    let dropout = trial_keys(model, batch.labels.len());
    let (loss, tape) = Tape::record(|| model.training_loss(&batch, dropout.as_ref()));
    drop(tape.backward(loss?, 1.0)?);
    Ok(started.elapsed())
}

fn largest_batch(
    config: &VlmConfig,
    largest: MicroExtents,
    from_features: bool,
    device: &Device,
) -> Result<ModelBatch, TrainError> {
    let (rows, columns) = (largest.rows as usize, largest.columns as usize);
    let num_tokens = rows * columns;
    // A bound on the images may exceed what the rows hold.
    let num_images = (largest.images as usize).min(num_tokens / config.image_tokens());
    let token = u32::from(config.image_token_id == 0);
    let positions: Vec<u32> = (0..num_tokens).map(|index| (index % columns) as u32).collect();
    let size = config.vision.image_size;
    let extents = match from_features {
        true => vec![num_images, config.image_tokens(), config.feature_size()],
        false => vec![num_images, config.vision.num_channels, size, size],
    };
    let pixels_NCHW = match num_images {
        0 => None,
        _ => Some(Tensor::zeros(extents, DType::F32, device)?),
    };
    Ok(ModelBatch {
        ids_BT: Tensor::full(token, (rows, columns), device)?,
        labels: vec![token as i32; num_tokens],
        positions_BT: Tensor::from_vec(positions, (rows, columns), device)?,
        documents_BT: Tensor::full(1u32, (rows, columns), device)?,
        pixels_NCHW,
        image_rows: (0..(num_images * config.image_tokens()) as u32).collect(),
    })
}
