//! The learning rate over a run: linear warmup from 0, then a cosine down to the floor.

use std::f64::consts::PI;

use crate::error::TrainError;
use crate::recipe::Warmup;

/// The factor on every group's peak learning rate, a pure function of the step.
///
/// With warmup, step 0 has factor 0 and step `warmup` the peak, 1; without, step 0 has 1. The last step has exactly the
/// floor. A run whose decay is a single step keeps the peak there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    warmup: u64,
    total: u64,
    floor: f64,
}

impl Schedule {
    /// A schedule of `total` steps; a warmup that leaves no step at the peak is refused.
    pub(crate) fn new(warmup: Warmup, floor: f64, total: u64) -> Result<Self, TrainError> {
        let warmup = match warmup {
            Warmup::Steps(steps) => steps,
            Warmup::Ratio(ratio) => ((ratio * total as f64).ceil() as u64).min(total.saturating_sub(1)),
        };
        if warmup >= total {
            return Err(TrainError::Recipe {
                key: "schedule.warmup_steps".to_owned(),
                expected: format!("fewer steps than the run's {total}"),
                found: warmup.to_string(),
            });
        }
        Ok(Self { warmup, total, floor })
    }

    /// Steps of the run.
    pub fn total_steps(&self) -> u64 {
        self.total
    }

    /// The factor of zero-based optimizer step `step`; the floor after the last.
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let decay_steps = self.total - 1 - self.warmup;
        let past_peak = (step - self.warmup).min(decay_steps);
        match past_peak {
            0 => 1.0,
            // The cosine's rounding must not leave the last step a hair off.
            last if last == decay_steps => self.floor,
            some => self.floor + (1.0 - self.floor) * 0.5 * (1.0 + (PI * some as f64 / decay_steps as f64).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule(warmup: u64, floor: f64, total: u64) -> Schedule {
        Schedule::new(Warmup::Steps(warmup), floor, total).expect("a fitting warmup")
    }

    #[test]
    fn warmup_starts_at_zero_and_reaches_the_peak() {
        let schedule = schedule(4, 0.1, 20);
        let head: Vec<f64> = (0..5).map(|step| schedule.factor(step)).collect();
        assert_eq!(head, [0.0, 0.25, 0.5, 0.75, 1.0]);
    }

    #[test]
    fn without_warmup_the_first_step_has_the_peak_and_no_more() {
        assert_eq!(schedule(0, 0.0, 10).factor(0), 1.0);
        assert_eq!(schedule(0, 0.0, 1).factor(0), 1.0);
    }

    #[test]
    fn a_ratio_is_a_share_of_all_steps() {
        let third = Schedule::new(Warmup::Ratio(0.3), 0.0, 10).expect("3 of 10");
        assert_eq!(third, schedule(3, 0.0, 10));
        assert_eq!(Schedule::new(Warmup::Ratio(0.99), 0.0, 2).expect("1 of 2"), schedule(1, 0.0, 2));
    }

    #[test]
    fn a_warmup_as_long_as_the_run_is_refused() {
        let fault = Schedule::new(Warmup::Steps(20), 0.0, 20).expect_err("no step at the peak");
        assert!(fault.to_string().contains("schedule.warmup_steps"), "{fault}");
    }

    proptest! {
        #[test]
        fn the_last_step_is_at_the_floor_and_no_step_above_the_peak(
            total in 2u64..5_000, warmup_share in 0.0f64..1.0, floor in 0.0f64..=1.0,
        ) {
            let warmup = (warmup_share * (total - 1) as f64) as u64;
            let schedule = schedule(warmup, floor, total);
            if warmup + 1 < total {
                prop_assert_eq!(schedule.factor(total - 1), floor);
            }
            let factors: Vec<f64> = (0..total).map(|step| schedule.factor(step)).collect();
            prop_assert!(factors.iter().all(|factor| (0.0..=1.0).contains(factor)));
            prop_assert!(factors[..=warmup as usize].windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(factors[warmup as usize..].windows(2).all(|pair| pair[0] >= pair[1]));
            prop_assert!(factors[warmup as usize..].iter().all(|&factor| factor >= floor));
        }
    }
}
