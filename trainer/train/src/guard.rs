//! What happens at a loss or gradient that is not finite.

use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::recipe::{NonFinitePolicy, RawGuard};
use crate::step_log::StepLine;

/// One line of `skipped.jsonl`: a step whose update was left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SkippedStep {
    /// One-based optimizer step.
    pub step: u64,
    /// `the loss`, or the gradient of a parameter.
    pub what: String,
    /// What it was: `NaN`, `inf` or `-inf`.
    pub value: String,
    /// Ids of the samples of the step.
    pub samples: Vec<String>,
    /// Mean loss per label token over the validation data, where it was measured after this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
}

impl StepLine for SkippedStep {
    fn step(&self) -> u64 {
        self.step
    }
}

/// Decides whether a run goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guard {
    policy: NonFinitePolicy,
    max_skipped: u64,
    /// Steps left out so far, earlier parts of a resumed run included.
    num_skipped: u64,
}

impl Guard {
    pub(crate) fn new(settings: &RawGuard, num_skipped: u64) -> Self {
        Self { policy: settings.non_finite, max_skipped: settings.max_skipped, num_skipped }
    }

    /// Lets the step be left out, or ends the run with its samples' ids.
    pub(crate) fn admit(&mut self, skipped: SkippedStep) -> Result<SkippedStep, TrainError> {
        let limit = match self.policy {
            NonFinitePolicy::Stop => "`guard.non_finite` is `stop`".to_owned(),
            NonFinitePolicy::Skip if self.num_skipped < self.max_skipped => {
                self.num_skipped += 1;
                return Ok(skipped);
            }
            NonFinitePolicy::Skip => format!("{} steps were left out before it", self.num_skipped),
        };
        let SkippedStep { step, what, value, samples, .. } = skipped;
        Err(TrainError::NonFinite { step, what, value, samples, limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> SkippedStep {
        let (what, value, samples) = ("the loss".into(), "NaN".into(), vec!["set/7".into()]);
        SkippedStep { step, what, value, samples, validation_loss: None }
    }

    #[test]
    fn a_run_may_leave_out_so_many_steps_and_no_more() {
        let settings = RawGuard { non_finite: NonFinitePolicy::Skip, max_skipped: 2, ..RawGuard::default() };
        let mut guard = Guard::new(&settings, 1);
        assert_eq!(guard.admit(step(4)).expect("the second"), step(4));
        let told = guard.admit(step(5)).expect_err("the third").to_string();
        assert!(
            told.contains("step 5: the loss is NaN") && told.contains("set/7") && told.contains("2 steps"),
            "{told}"
        );
    }

    #[test]
    fn it_stops_unless_told_otherwise() {
        assert!(Guard::new(&RawGuard::default(), 0).admit(step(1)).is_err());
    }
}
