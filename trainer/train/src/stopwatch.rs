//! Rates over a stretch of steps.

use std::time::{Duration, Instant};

use crate::flops::StepSize;
use crate::step::StepReport;

/// Counts what passed since it was started.
pub(crate) struct Stopwatch {
    started: Instant,
    /// Spent on something else than steps.
    paused: Duration,
    data_wait: Duration,
    samples: u64,
    size: StepSize,
}

/// Counts per second, and the share of time spent waiting for batches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speed {
    pub(crate) samples: f64,
    pub(crate) tokens: f64,
    pub(crate) label_tokens: f64,
    pub(crate) images: f64,
    pub(crate) data_wait: f64,
    /// What was done, and in how many seconds, pauses left out.
    pub(crate) size: StepSize,
    pub(crate) seconds: f64,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self {
            started: Instant::now(),
            paused: Duration::ZERO,
            data_wait: Duration::ZERO,
            samples: 0,
            size: StepSize::default(),
        }
    }

    pub(crate) fn count(&mut self, step: &StepReport) {
        self.data_wait += step.data_wait;
        self.samples += step.num_samples;
        self.size.tokens += step.size.tokens;
        self.size.label_tokens += step.size.label_tokens;
        self.size.images += step.size.images;
        self.size.pairs += step.size.pairs;
    }

    /// Leaves `period` out of the rates: validation, answers and checkpoints are no training.
    pub(crate) fn pause(&mut self, period: Duration) {
        self.paused += period;
    }

    /// Since the start, pauses included.
    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    pub(crate) fn speed(&self) -> Speed {
        let seconds = (self.seconds() - self.paused.as_secs_f64()).max(1e-9);
        Speed {
            samples: self.samples as f64 / seconds,
            tokens: self.size.tokens as f64 / seconds,
            label_tokens: self.size.label_tokens as f64 / seconds,
            images: self.size.images as f64 / seconds,
            size: self.size,
            seconds,
            data_wait: self.data_wait.as_secs_f64() / seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_no_part_of_the_rates() {
        let mut watch = Stopwatch::start();
        watch.count(&StepReport { num_samples: 100, ..StepReport::default() });
        std::thread::sleep(Duration::from_millis(20));
        watch.pause(watch.started.elapsed() - Duration::from_millis(10));
        let speed = watch.speed();
        assert!(speed.samples > 2_000.0 && speed.samples <= 10_000.0, "{speed:?}");
        assert!(watch.seconds() >= 0.02);
    }
}
