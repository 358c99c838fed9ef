//! Plans of packed rows that consumers hold, counted: other specs make other plans, and no number of them may take all memory.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use vela_dataset::{Dataset, spec_fingerprint};
use vela_proto::{ErrorKind, ServiceError};
use vela_types::{BatchSpec, Fingerprint};

/// What a plan takes at most for each record of its data set: the record's number, and where a row begins, of which there are no
/// more than records.
const BYTES_PER_RECORD: u64 = 4 + 8;

/// The plans that are held.
pub(crate) struct Plans {
    max_bytes: u64,
    held: Mutex<Vec<Held>>,
}

struct Held {
    /// Data set and spec.
    of: (Fingerprint, Fingerprint),
    bytes: u64,
    place: Weak<PlanPlace>,
}

/// A plan counts as long as somebody has its place.
#[derive(Debug)]
pub(crate) struct PlanPlace;

impl Plans {
    /// Plans of at most `max_bytes` together.
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, held: Mutex::default() }
    }

    /// A place for the plan of `spec`, the same for all who share it; `None` where rows are samples and nothing is planned.
    ///
    /// # Errors
    /// If it does not fit beside those that are held, or not at all.
    pub(crate) fn hold(&self, dataset: &Dataset, spec: &BatchSpec) -> Result<Option<Arc<PlanPlace>>, ServiceError> {
        if spec.packing.is_none() {
            return Ok(None);
        }
        let of = (dataset.info().fingerprint, spec_fingerprint(spec));
        let bytes = dataset.num_records().saturating_mul(BYTES_PER_RECORD);
        // One that the data set has no more at hand is made again, beside the one that is held.
        self.hold_as(of, bytes, dataset.is_planned(spec)).map(Some)
    }

    fn hold_as(
        &self,
        of: (Fingerprint, Fingerprint),
        bytes: u64,
        is_shared: bool,
    ) -> Result<Arc<PlanPlace>, ServiceError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|plan| plan.place.strong_count() > 0);
        let newest = held.iter().rev().find(|plan| plan.of == of && is_shared);
        if let Some(place) = newest.and_then(|plan| plan.place.upgrade()) {
            return Ok(place);
        }
        let taken: u64 = held.iter().map(|plan| plan.bytes).sum();
        if taken.saturating_add(bytes) > self.max_bytes {
            return Err(self.refusal(bytes, taken));
        }
        let place = Arc::new(PlanPlace);
        held.push(Held { of, bytes, place: Arc::downgrade(&place) });
        Ok(place)
    }

    fn refusal(&self, bytes: u64, taken: u64) -> ServiceError {
        let limit = self.max_bytes;
        match bytes > limit {
            true => ServiceError::new(
                ErrorKind::InvalidRequest,
                format_args!(
                    "`spec.packing`: a plan of this data's rows may take {bytes} bytes: expected at most {limit}; leave it out, or have the loader's `--max-plan-bytes` raised"
                ),
            ),
            false => ServiceError::new(
                ErrorKind::Busy,
                format_args!(
                    "`spec.packing`: the plans of other specs take {taken} of {limit} bytes, this one up to {bytes}; try later, or have the loader's `--max-plan-bytes` raised"
                ),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spec: u8) -> (Fingerprint, Fingerprint) {
        (Fingerprint([7; 32]), Fingerprint([spec; 32]))
    }

    fn kind<T>(answer: Result<T, ServiceError>) -> Option<ErrorKind> {
        answer.err().map(|error| error.kind)
    }

    #[test]
    fn plans_that_fit_are_counted_as_long_as_they_are_held() {
        let plans = Plans::new(25);
        let one = plans.hold_as(of(1), 10, false).expect("room");
        let other = plans.hold_as(of(2), 10, false).expect("room");
        assert_eq!(kind(plans.hold_as(of(3), 10, false)), Some(ErrorKind::Busy));
        let again = plans.hold_as(of(1), 10, true).expect("the same plan");
        drop(one);
        assert_eq!(kind(plans.hold_as(of(3), 10, false)), Some(ErrorKind::Busy), "somebody holds it still");
        drop(again);
        let third = plans.hold_as(of(3), 10, false).expect("its room");
        assert_eq!(kind(plans.hold_as(of(2), 10, false)), Some(ErrorKind::Busy), "made a second time, it counts twice");
        drop((other, third));
        assert_eq!(kind(plans.hold_as(of(4), 26, false)), Some(ErrorKind::InvalidRequest), "it never fits");
        assert!(plans.hold_as(of(4), 25, true).is_ok(), "planned, but held by nobody");
    }
}
