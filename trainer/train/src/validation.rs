//! Loss over held-out data.

use vela_models::Vlm;
use vela_types::{BatchSource, BatchSpec, Position};

use crate::data::next_batch;
use crate::device_batch::{ImageInput, to_model_batch};
use crate::error::TrainError;
use crate::ranks::Ranks;
use crate::step::has_labels;

/// Mean loss per label token over one pass of `source`, in nats, of which each rank has its part.
pub(crate) fn validation_loss(
    model: &Vlm,
    source: &mut dyn BatchSource,
    spec: &BatchSpec,
    images: &ImageInput,
    ranks: &mut Ranks<'_>,
) -> Result<f64, TrainError> {
    let (mut sum, mut num_labels) = (0.0, 0);
    for step in 0..source.steps_per_epoch() {
        let batch = next_batch(source, Position { epoch: 0, step, micro: 0 })?;
        if has_labels(&batch) {
            let inputs = to_model_batch(&batch, spec.image_tokens, images, model.device())?;
            sum += f64::from(model.loss(&inputs)?.to_scalar::<f32>()?);
        }
        num_labels += batch.step_label_tokens;
    }
    let [sum] = ranks.sum("the validation loss", [sum])?;
    Ok(sum / num_labels.max(1) as f64)
}
