//! Rates over a stretch of steps.

use std::time::{Duration, Instant};

use crate::step::StepReport;

/// Counts what passed since it was started.
pub(crate) struct Stopwatch {
    started: Instant,
    data_wait: Duration,
    samples: u64,
    tokens: u64,
    label_tokens: u64,
}

/// Counts per second, and the share of time spent waiting for batches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speed {
    pub(crate) samples: f64,
    pub(crate) tokens: f64,
    pub(crate) label_tokens: f64,
    pub(crate) data_wait: f64,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), data_wait: Duration::ZERO, samples: 0, tokens: 0, label_tokens: 0 }
    }

    pub(crate) fn count(&mut self, step: &StepReport) {
        self.data_wait += step.data_wait;
        self.samples += step.num_samples;
        self.tokens += step.num_tokens;
        self.label_tokens += step.num_label_tokens;
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    pub(crate) fn speed(&self) -> Speed {
        let seconds = self.seconds().max(1e-9);
        Speed {
            samples: self.samples as f64 / seconds,
            tokens: self.tokens as f64 / seconds,
            label_tokens: self.label_tokens as f64 / seconds,
            data_wait: self.data_wait.as_secs_f64() / seconds,
        }
    }
}
