//! The learning rate over a run: linear warmup from 0, then what the recipe's kind of schedule says.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::recipe::{RawSchedule, refuse};

/// What comes after the warmup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Half a cosine down to the floor.
    #[default]
    Cosine,
    /// A straight line down to the floor.
    Linear,
    /// Warmup, stable, decay: the peak, and over the last steps down to the floor.
    Wsd,
    /// The peak to the end.
    Constant,
}

/// How the rate falls, as `transformers` names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DecayShape {
    /// Half a cosine.
    #[default]
    #[serde(rename = "cosine")]
    Cosine,
    /// A straight line.
    #[serde(rename = "linear")]
    Linear,
    /// One minus the root of the progress.
    #[serde(rename = "1-sqrt")]
    OneMinusRoot,
}

impl DecayShape {
    /// From 1 to 0 as `progress` goes from 0 to 1.
    fn at(self, progress: f64) -> f64 {
        match self {
            Self::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
            Self::Linear => 1.0 - progress,
            Self::OneMinusRoot => 1.0 - progress.sqrt(),
        }
    }
}

/// Length of a part of the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stretch {
    Steps(u64),
    Ratio(f64),
}

impl Stretch {
    /// Steps of a run of `total`; a share is rounded up.
    fn steps(self, total: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Ratio(ratio) => (ratio * total as f64).ceil() as u64,
        }
    }

    /// At most one of two keys, `STEM_steps` and `STEM_ratio`; `None` if neither is there.
    fn check(stem: &str, steps: Option<u64>, ratio: Option<f64>) -> Result<Option<Self>, TrainError> {
        match (steps, ratio) {
            (Some(_), Some(_)) => {
                refuse(&format!("schedule.{stem}_steps, schedule.{stem}_ratio"), "at most one of them", "both")
            }
            (_, Some(ratio)) if !(0.0..=1.0).contains(&ratio) => {
                refuse(&format!("schedule.{stem}_ratio"), "a share of all steps from 0 to 1", ratio)
            }
            (_, Some(ratio)) => Ok(Some(Self::Ratio(ratio))),
            (steps, None) => Ok(steps.map(Self::Steps)),
        }
    }
}

/// The `[schedule]` of a recipe, checked; a [`Schedule`] once the length of the run is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SchedulePlan {
    warmup: Stretch,
    decay: Option<Stretch>,
    kind: ScheduleKind,
    shape: DecayShape,
    floor: f64,
}

impl SchedulePlan {
    pub(crate) fn check(raw: &RawSchedule) -> Result<Self, TrainError> {
        let RawSchedule { kind, floor, .. } = *raw;
        let warmup = Stretch::check("warmup", raw.warmup_steps, raw.warmup_ratio)?.unwrap_or(Stretch::Steps(0));
        let decay = Stretch::check("decay", raw.decay_steps, raw.decay_ratio)?;
        let is_wsd = kind == ScheduleKind::Wsd;
        match () {
            () if warmup == Stretch::Ratio(1.0) => refuse("schedule.warmup_ratio", "from 0 to below 1", 1.0),
            () if !(0.0..=1.0).contains(&floor) => refuse("schedule.floor", "a share of the peak from 0 to 1", floor),
            () if kind == ScheduleKind::Constant && floor != 0.0 => {
                refuse("schedule.floor", "nothing, since `schedule.kind` `constant` stays at the peak", floor)
            }
            () if is_wsd && decay.is_none() => {
                refuse("schedule.decay_steps, schedule.decay_ratio", "one of them for `wsd`", "neither")
            }
            () if matches!(decay, Some(Stretch::Steps(0) | Stretch::Ratio(0.0))) => {
                let expected = "a decay of at least one step, since the last has the floor";
                refuse("schedule.decay_steps, schedule.decay_ratio", expected, 0)
            }
            () if !is_wsd && (decay.is_some() || raw.decay_shape.is_some()) => {
                refuse("schedule.decay_steps, schedule.decay_ratio, schedule.decay_shape", "none without `wsd`", "some")
            }
            () => {
                let shape = match kind {
                    ScheduleKind::Linear => DecayShape::Linear,
                    _ => raw.decay_shape.unwrap_or_default(),
                };
                Ok(Self { warmup, decay, kind, shape, floor })
            }
        }
    }

    /// The schedule of a run of `total` steps; a warmup that leaves no step at the peak, or a decay that begins within
    /// it, is refused.
    pub(crate) fn over(self, total: u64) -> Result<Schedule, TrainError> {
        // A share that rounds up to the whole run still leaves one step at the peak.
        let room = total.saturating_sub(1);
        let warmup = match self.warmup {
            Stretch::Steps(steps) => steps,
            ratio => ratio.steps(total).min(room),
        };
        if warmup >= total {
            return refuse("schedule.warmup_steps", &format!("fewer steps than the run's {total}"), warmup);
        }
        let after = room - warmup;
        let decay = match (self.kind, self.decay) {
            (ScheduleKind::Constant, _) => 0,
            (_, None) => after,
            (_, Some(Stretch::Steps(steps))) if steps > after => {
                let expected = format!("at most the {after} steps after the warmup and the first at the peak");
                return refuse("schedule.decay_steps", &expected, steps);
            }
            (_, Some(decay)) => decay.steps(total).min(after),
        };
        Ok(Schedule { warmup, total, decay, shape: self.shape, floor: self.floor })
    }
}

/// The factor on every group's peak learning rate, a pure function of the step.
///
/// With warmup, step 0 has factor 0 and step `warmup` the peak, 1; without, step 0 has 1. The last step has exactly the
/// floor, unless the rate is constant. A run whose decay is a single step keeps the peak there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    warmup: u64,
    total: u64,
    /// Steps after the last one at the peak.
    decay: u64,
    shape: DecayShape,
    floor: f64,
}

impl Schedule {
    /// Steps of the run.
    pub fn total_steps(&self) -> u64 {
        self.total
    }

    /// The factor of zero-based optimizer step `step`; that of the last one after it.
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let last_at_peak = self.total - 1 - self.decay;
        match step.min(self.total - 1).saturating_sub(last_at_peak) {
            0 => 1.0,
            // The cosine's rounding must not leave the last step a hair off.
            last if last == self.decay => self.floor,
            some => self.floor + (1.0 - self.floor) * self.shape.at(some as f64 / self.decay as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn raw(kind: ScheduleKind, warmup_steps: u64, floor: f64) -> RawSchedule {
        RawSchedule { kind, warmup_steps: Some(warmup_steps), floor, ..RawSchedule::default() }
    }

    fn schedule(warmup: u64, floor: f64, total: u64) -> Schedule {
        let plan = SchedulePlan::check(&raw(ScheduleKind::Cosine, warmup, floor)).expect("right");
        plan.over(total).expect("a fitting warmup")
    }

    fn refusal(raw: RawSchedule, total: u64) -> String {
        SchedulePlan::check(&raw).and_then(|plan| plan.over(total)).expect_err("refused").to_string()
    }

    #[test]
    fn every_kind_equals_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/train/schedules.json");
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).expect("committed")).expect("JSON");
        let cases = golden["cases"].as_array().expect("cases");
        assert!(cases.len() >= 8, "{}", cases.len());
        for case in cases {
            let raw: RawSchedule = serde_json::from_value(case["schedule"].clone()).expect("a schedule");
            let expected = case["factors"].as_array().expect("factors");
            let schedule = SchedulePlan::check(&raw).and_then(|plan| plan.over(expected.len() as u64)).expect("right");
            for (step, expected) in expected.iter().enumerate() {
                let (found, expected) = (schedule.factor(step as u64), expected.as_f64().expect("a number"));
                assert!((found - expected).abs() < 1e-12, "{raw:?} step {step}: {found} {expected}");
            }
        }
    }

    #[test]
    fn warmup_starts_at_zero_and_reaches_the_peak() {
        let schedule = schedule(4, 0.1, 20);
        let head: Vec<f64> = (0..5).map(|step| schedule.factor(step)).collect();
        assert_eq!(head, [0.0, 0.25, 0.5, 0.75, 1.0]);
    }

    /// Minimind's formula `lr / 10 + 0.5 * lr * (1 + cos)` begins at 1.1 times the peak, without warmup.
    #[test]
    fn defect_12_the_first_rate_is_0_or_the_peak_and_no_more() {
        assert_eq!(schedule(0, 0.1, 10).factor(0), 1.0);
        assert_eq!(schedule(0, 0.0, 1).factor(0), 1.0);
        assert_eq!(schedule(3, 0.1, 10).factor(0), 0.0);
    }

    #[test]
    fn a_ratio_is_a_share_of_all_steps() {
        let with = |ratio: f64, total: u64| {
            let raw = RawSchedule { warmup_ratio: Some(ratio), ..RawSchedule::default() };
            SchedulePlan::check(&raw).and_then(|plan| plan.over(total)).expect("right")
        };
        assert_eq!(with(0.3, 10), schedule(3, 0.0, 10));
        assert_eq!(with(0.99, 2), schedule(1, 0.0, 2));
    }

    #[test]
    fn wsd_holds_the_peak_and_falls_at_the_end() {
        let raw = RawSchedule { decay_ratio: Some(0.8), ..raw(ScheduleKind::Wsd, 0, 0.1) };
        let schedule = SchedulePlan::check(&raw).and_then(|plan| plan.over(100)).expect("right");
        assert_eq!([0, 19].map(|step| schedule.factor(step)), [1.0, 1.0]);
        assert!(schedule.factor(20) < 1.0 && schedule.factor(99) == 0.1);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_key() {
        assert!(refusal(raw(ScheduleKind::Cosine, 20, 0.0), 20).contains("schedule.warmup_steps"));
        let decay = RawSchedule { decay_steps: Some(18), ..raw(ScheduleKind::Wsd, 2, 0.0) };
        assert!(refusal(decay, 20).contains("schedule.decay_steps"));
        assert!(refusal(raw(ScheduleKind::Wsd, 0, 0.0), 20).contains("one of them for `wsd`"));
        for (decay_steps, decay_ratio) in [(Some(0), None), (None, Some(0.0))] {
            let never = RawSchedule { decay_steps, decay_ratio, ..raw(ScheduleKind::Wsd, 0, 0.1) };
            assert!(refusal(never, 20).contains("at least one step"));
        }
        assert!(
            refusal(RawSchedule { decay_steps: Some(1), ..raw(ScheduleKind::Linear, 0, 0.0) }, 20)
                .contains("without `wsd`")
        );
        assert!(refusal(raw(ScheduleKind::Constant, 0, 0.1), 20).contains("schedule.floor"));
    }

    proptest! {
        #[test]
        fn the_last_step_is_at_the_floor_and_no_step_above_the_peak(
            total in 2u64..5_000, warmup_share in 0.0f64..1.0, decay_share in 0.001f64..=1.0, floor in 0.0f64..=1.0,
            kind in prop_oneof![Just(ScheduleKind::Cosine), Just(ScheduleKind::Linear), Just(ScheduleKind::Wsd)],
        ) {
            let warmup = (warmup_share * (total - 1) as f64) as u64;
            let decay_ratio = (kind == ScheduleKind::Wsd).then_some(decay_share);
            let plan = SchedulePlan::check(&RawSchedule { decay_ratio, ..raw(kind, warmup, floor) }).expect("right");
            let schedule = plan.over(total).expect("fits");
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
