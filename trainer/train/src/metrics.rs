//! `metrics.jsonl`: one JSON object per logged step.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::step_log::{StepLine, read_lines};

/// One line of `metrics.jsonl`. Rates and shares are over the steps since the line before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// One-based optimizer step.
    pub step: u64,
    /// Passes over the data after this step, with fraction.
    pub epoch: f64,
    /// Mean loss per label token of this step's global batch, in nats.
    pub loss: f64,
    /// Mean loss per label token over the validation data, where it was measured after this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
    /// Learning rate of each trained group in this step; a frozen group is absent.
    pub lr: BTreeMap<String, f64>,
    /// L2 norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Samples per second.
    pub samples_per_second: f64,
    /// Tokens per second, images expanded, padding not counted.
    pub tokens_per_second: f64,
    /// Predicted tokens per second.
    pub label_tokens_per_second: f64,
    /// Images per second.
    #[serde(default)]
    pub images_per_second: f64,
    /// Share of the time spent waiting for batches, 0 to 1.
    pub data_wait: f64,
    /// Model FLOP utilisation: the operations required, over those the machine could have done in the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Bytes of memory that the process holds, where the system tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The most it has held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Seconds since the run began, earlier parts of a resumed run included.
    pub seconds: f64,
}

impl StepLine for StepMetrics {
    fn step(&self) -> u64 {
        self.step
    }
}

/// The lines of a metrics file up to the first that is not whole; none if there is no file.
pub fn read_metrics(path: &Path) -> Result<Vec<StepMetrics>, TrainError> {
    read_lines(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_back_bit_for_bit_and_frozen_groups_are_absent() {
        let lr = [("projector".to_owned(), 1e-3)].into_iter().collect();
        let line = StepMetrics { step: 7, loss: 1.0 / 3.0, grad_norm: 0.1 + 0.2, lr, ..StepMetrics::default() };
        let text = serde_json::to_string(&line).expect("numbers");
        assert_eq!(serde_json::from_str::<StepMetrics>(&text).expect("our own line"), line);
        assert!(text.contains(r#""lr":{"projector":0.001}"#), "{text}");
    }
}
