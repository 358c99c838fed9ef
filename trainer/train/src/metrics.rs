//! `metrics.jsonl`: one JSON object per logged step.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// One line of `metrics.jsonl`. Rates and shares are over the steps since the line before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Learning rate of each trained group in this step.
    pub lr: Rates,
    /// L2 norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Samples per second.
    pub samples_per_second: f64,
    /// Tokens per second, images expanded, padding not counted.
    pub tokens_per_second: f64,
    /// Predicted tokens per second.
    pub label_tokens_per_second: f64,
    /// Share of the time spent waiting for batches, 0 to 1.
    pub data_wait: f64,
    /// Seconds since the run began, earlier parts of a resumed run included.
    pub seconds: f64,
}

/// Learning rates by group; a frozen group is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Of the projector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projector: Option<f64>,
    /// Of the language model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language_model: Option<f64>,
    /// Of the vision tower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision_tower: Option<f64>,
}

/// The metrics file of a run, open for appending.
pub(crate) struct MetricsLog {
    path: PathBuf,
    file: File,
    lines: Vec<StepMetrics>,
}

impl MetricsLog {
    /// Opens the log of a run that stands after `step` steps: lines of later steps and a torn last line, left by a run
    /// that was killed, are dropped.
    pub(crate) fn open(path: PathBuf, step: u64) -> Result<Self, TrainError> {
        let mut lines = read_metrics(&path)?;
        lines.retain(|line| line.step <= step);
        let kept: String = lines.iter().map(to_line).collect();
        let partial = path.with_extension("jsonl.partial");
        fs::write(&partial, kept).map_err(TrainError::io("write", &partial))?;
        fs::rename(&partial, &path).map_err(TrainError::io("replace", &path))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(TrainError::io("open", &path))?;
        Ok(Self { path, file, lines })
    }

    /// Appends one line in one write.
    pub(crate) fn push(&mut self, line: StepMetrics) -> Result<(), TrainError> {
        self.file.write_all(to_line(&line).as_bytes()).map_err(TrainError::io("append to", &self.path))?;
        self.lines.push(line);
        Ok(())
    }

    /// Every line of the run, earlier parts included.
    pub(crate) fn lines(&self) -> &[StepMetrics] {
        &self.lines
    }
}

fn to_line(metrics: &StepMetrics) -> String {
    let json = serde_json::to_string(metrics).expect("a struct of numbers always has a JSON form");
    json + "\n"
}

/// The lines of a metrics file up to the first that is not whole; none if there is no file.
pub fn read_metrics(path: &Path) -> Result<Vec<StepMetrics>, TrainError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map_while(|line| serde_json::from_str(line).ok()).collect()),
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(fault) => Err(TrainError::io("read", path)(fault)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> StepMetrics {
        let lr = Rates { projector: Some(1e-3), ..Rates::default() };
        let (epoch, loss, seconds) = (0.1 * step as f64, 1.0 / (2.0 + step as f64), step as f64);
        StepMetrics {
            step,
            epoch,
            loss,
            validation_loss: None,
            lr,
            grad_norm: 0.1 + 0.2,
            samples_per_second: 8.0,
            tokens_per_second: 64.0,
            label_tokens_per_second: 16.0,
            data_wait: 0.01,
            seconds,
        }
    }

    #[test]
    fn a_line_comes_back_bit_for_bit_and_frozen_groups_are_absent() {
        let text = to_line(&line(1));
        assert_eq!(serde_json::from_str::<StepMetrics>(&text).expect("our own line"), line(1));
        assert!(text.contains(r#""lr":{"projector":0.001}"#), "{text}");
    }

    #[test]
    fn a_resumed_log_drops_later_steps_and_the_torn_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("metrics.jsonl");
        let torn = &to_line(&line(4))[..20];
        let text: String = (1..=3).map(|step| to_line(&line(step))).collect();
        fs::write(&path, text + torn).expect("written");
        let mut log = MetricsLog::open(path.clone(), 2).expect("opened");
        log.push(line(3)).expect("pushed");
        let steps: Vec<u64> = read_metrics(&path).expect("read").iter().map(|line| line.step).collect();
        assert_eq!(steps, [1, 2, 3]);
        assert_eq!(log.lines().len(), 3);
    }
}
