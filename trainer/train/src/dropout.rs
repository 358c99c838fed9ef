//! The words that the dropout of a step draws its masks from: of the seed, the step, and each token's sample and position.

use std::collections::BTreeMap;

use vela_models::{DropoutKeys, TokenPlace, Vlm};
use vela_types::{Batch, HostTensor};

use crate::error::TrainError;

/// The keys of zero-based optimizer step `step`; `None` where the model drops nothing. Document `d` of a row is the row's
/// `d`-th valid sample.
pub(crate) fn dropout_keys(
    model: &Vlm,
    batch: &Batch,
    seed: u64,
    step: u64,
) -> Result<Option<DropoutKeys>, TrainError> {
    if !drops(model) {
        return Ok(None);
    }
    let mut samples: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for slot in batch.samples.iter().filter(|slot| slot.valid) {
        samples.entry(slot.row).or_default().push(slot.index);
    }
    let integers = |name: &str, tensor: &HostTensor| {
        tensor.to_i32().ok_or_else(|| TrainError::Batch {
            position: batch.position,
            expected: format!("`{name}` of 32-bit integers"),
            found: format!("{:?}", tensor.dtype()),
        })
    };
    let (documents, positions) =
        (integers("document_ids", &batch.document_ids)?, integers("position_ids", &batch.position_ids)?);
    let (_, columns) = batch.rows_and_columns();
    let place = |(at, (document, position)): (usize, (&i32, &i32))| {
        let of_row = samples.get(&((at / columns) as u32));
        let index = usize::try_from(document - 1).ok();
        // Padding is dropped or not as it comes: nothing learns from it.
        let sample = of_row.zip(index).and_then(|(of_row, index)| of_row.get(index)).copied().unwrap_or(u64::MAX);
        TokenPlace { sample, position: *position as u64 }
    };
    Ok(Some(DropoutKeys::new(seed, step, documents.iter().zip(&positions).enumerate().map(place))))
}

/// Any keys for `num_tokens` tokens: what a step of dropout costs shows with them.
pub(crate) fn trial_keys(model: &Vlm, num_tokens: usize) -> Option<DropoutKeys> {
    let place = |position| TokenPlace { sample: 0, position };
    drops(model).then(|| DropoutKeys::new(0, 0, (0..num_tokens as u64).map(place)))
}

fn drops(model: &Vlm) -> bool {
    model.config().language.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0)
}
