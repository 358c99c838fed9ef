//! Byte credit from the consumer's side.

/// Where the prefetch budget is. `held + open + outstanding <= budget` at any time, whatever the server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ledger {
    budget: usize,
    /// Bytes of complete batches that the consumer has not taken.
    held: usize,
    /// Bytes received of the batch under way.
    open: usize,
    /// Bytes granted to the server and not yet received.
    outstanding: usize,
}

/// The server sent more than it was allowed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overdraft {
    pub(crate) allowed: usize,
    pub(crate) found: usize,
}

impl Ledger {
    pub(crate) fn new(budget: usize) -> Self {
        Self { budget, held: 0, open: 0, outstanding: 0 }
    }

    /// A new stream begins: what was under way is lost. Returns the credit to open with.
    pub(crate) fn reopen(&mut self) -> usize {
        self.open = 0;
        self.outstanding = self.budget - self.held;
        self.outstanding
    }

    /// A batch of `num_bytes` is announced. Returns the credit to add so that it can arrive at all.
    pub(crate) fn announce(&mut self, num_bytes: usize) -> usize {
        let growth = num_bytes.saturating_sub(self.budget);
        self.budget += growth;
        self.outstanding += growth;
        growth
    }

    /// A chunk has come.
    pub(crate) fn receive(&mut self, num_bytes: usize) -> Result<(), Overdraft> {
        let overdraft = Overdraft { allowed: self.outstanding, found: num_bytes };
        self.outstanding = self.outstanding.checked_sub(num_bytes).ok_or(overdraft)?;
        self.open += num_bytes;
        Ok(())
    }

    /// The batch under way is complete.
    pub(crate) fn complete(&mut self) {
        self.held += std::mem::take(&mut self.open);
    }

    /// The consumer took a batch. Returns the credit to add.
    pub(crate) fn take(&mut self, num_bytes: usize) -> usize {
        self.held -= num_bytes;
        self.outstanding += num_bytes;
        num_bytes
    }

    /// Whether the consumer waits: no batch is held back, and the server has all credit that there is.
    pub(crate) fn is_waiting(&self) -> bool {
        self.held == 0
    }

    /// Bytes in this process.
    pub(crate) fn resident(&self) -> usize {
        self.held + self.open
    }

    /// Bytes held by the budget, in this process or on their way.
    #[cfg(test)]
    fn committed(&self) -> usize {
        self.resident() + self.outstanding
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Batches of any size are received and taken in any order, with streams lost in between.
        #[test]
        fn the_budget_is_never_exceeded_and_never_lost(
            budget in 1usize..200,
            steps in prop::collection::vec((1usize..300, any::<bool>(), any::<bool>()), 1..60),
        ) {
            let mut ledger = Ledger::new(budget);
            let mut limit = budget;
            let mut waiting = std::collections::VecDeque::new();
            ledger.reopen();
            for (batch, take_first, lose) in steps {
                if take_first && let Some(bytes) = waiting.pop_front() {
                    ledger.take(bytes);
                }
                ledger.announce(batch);
                limit = limit.max(batch);
                // The server waits for credit, which comes as the consumer takes what is held.
                while ledger.outstanding < batch {
                    let bytes = waiting.pop_front().expect("an empty client leaves room for any batch");
                    ledger.take(bytes);
                }
                prop_assert_eq!(ledger.receive(batch), Ok(()));
                prop_assert_eq!(ledger.committed(), limit);
                if lose {
                    ledger.reopen();
                } else {
                    ledger.complete();
                    waiting.push_back(batch);
                }
                prop_assert_eq!(ledger.committed(), limit);
                prop_assert!(ledger.resident() <= limit);
            }
        }
    }

    #[test]
    fn a_server_that_overdraws_is_found_out() {
        let mut ledger = Ledger::new(10);
        assert_eq!(ledger.reopen(), 10);
        assert_eq!(ledger.receive(11), Err(Overdraft { allowed: 10, found: 11 }));
    }
}
