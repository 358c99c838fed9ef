//! How many tokens may still be spent.

/// Tokens spent, tokens that running requests may yet cost, and the limit of both together.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    limit: Option<u64>,
    spent: u64,
    reserved: u64,
    /// Largest ratio of what an answer cost to what was expected of it, at least 1.
    scale: f64,
}

/// Tokens set aside for one request.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "what is set aside must be settled"]
pub(super) struct Reservation {
    tokens: u64,
    expected: u64,
}

impl Budget {
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self { limit, spent: 0, reserved: 0, scale: 1.0 }
    }

    /// Sets aside what a request is expected to cost at most; `None` if that is more than is left.
    pub(super) fn reserve(&mut self, expected: u64) -> Option<Reservation> {
        let tokens = (expected as f64 * self.scale).ceil() as u64;
        let total = self.spent.saturating_add(self.reserved).saturating_add(tokens);
        if self.limit.is_some_and(|limit| total > limit) {
            return None;
        }
        self.reserved += tokens;
        Some(Reservation { tokens, expected })
    }

    /// The request cost `tokens`.
    pub(super) fn settle(&mut self, reservation: Reservation, tokens: u64) {
        self.reserved -= reservation.tokens;
        self.spend(tokens);
        self.scale = self.scale.max(tokens as f64 / reservation.expected.max(1) as f64);
    }

    /// Counts tokens that were not set aside.
    pub(super) fn spend(&mut self, tokens: u64) {
        self.spent = self.spent.saturating_add(tokens);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn without_a_limit_everything_is_granted() {
        let mut budget = Budget::new(None);
        budget.spend(u64::MAX);
        assert!(budget.reserve(u64::MAX / 4).is_some());
    }

    proptest! {
        #[test]
        fn answers_no_dearer_than_expected_never_exceed_the_limit(limit in 0u64..2000, costs in proptest::collection::vec((1u64..200, 0u64..100), 0..60)) {
            let mut budget = Budget::new(Some(limit));
            let mut running = Vec::new();
            for (expected, percent) in costs {
                if let Some(reservation) = budget.reserve(expected) {
                    running.push((reservation, expected * percent / 100));
                }
                if running.len() > 3 {
                    let (reservation, cost) = running.remove(0);
                    budget.settle(reservation, cost);
                }
                prop_assert!(budget.spent + budget.reserved <= limit);
            }
        }

        #[test]
        fn one_answer_at_a_time_the_limit_is_exceeded_by_less_than_one_answer(limit in 1u64..5000, dearer in 1u64..5, answers in 1usize..40) {
            let mut budget = Budget::new(Some(limit));
            for _ in 0..answers {
                if let Some(reservation) = budget.reserve(100) {
                    budget.settle(reservation, 100 * dearer);
                }
            }
            prop_assert!(budget.spent < limit + 100 * dearer);
        }
    }
}
