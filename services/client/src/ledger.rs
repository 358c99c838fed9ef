//! Byte credit from the consumer's side.

use std::collections::VecDeque;

/// Bytes of headers beyond the budget that are read on nevertheless: those of honest batches take less.
const HEADER_ROOM: usize = 16 << 20;

/// Where the prefetch budget is. Payload: `held + open + outstanding <= budget` at any time, whatever the server does. Headers cost no
/// credit; what they take is made up for by less credit, and above [`HEADER_ROOM`] by reading no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ledger {
    budget: usize,
    /// Payload of complete batches that the consumer has not taken.
    held: usize,
    /// What else each of them takes, the oldest first.
    headers: VecDeque<usize>,
    /// Their sum.
    held_headers: usize,
    /// Payload received of the batch under way.
    open: usize,
    /// What else that batch takes.
    open_header: usize,
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
        Self { budget, held: 0, headers: VecDeque::new(), held_headers: 0, open: 0, open_header: 0, outstanding: 0 }
    }

    /// A new stream begins: what was under way is lost. Returns the credit to open with.
    pub(crate) fn reopen(&mut self) -> usize {
        (self.open, self.open_header, self.outstanding) = (0, 0, 0);
        self.grant()
    }

    /// A batch is announced. Returns the credit to add so that it can arrive at all.
    pub(crate) fn announce(&mut self, payload_bytes: usize, header_bytes: usize) -> usize {
        self.open_header = header_bytes;
        self.budget = self.budget.max(payload_bytes + header_bytes);
        self.grant()
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
        let header = std::mem::take(&mut self.open_header);
        self.held_headers += header;
        self.headers.push_back(header);
    }

    /// The consumer took the oldest batch. Returns the credit to add.
    pub(crate) fn take(&mut self, payload_bytes: usize) -> usize {
        self.held -= payload_bytes;
        self.held_headers -= self.headers.pop_front().unwrap_or(0);
        self.grant()
    }

    /// Whether the server could send a part of at most `part_bytes` now.
    pub(crate) fn is_waiting(&self, part_bytes: usize) -> bool {
        self.has_room() && (self.outstanding >= part_bytes || self.held == 0)
    }

    /// Whether more may be read: always, unless headers take too much.
    pub(crate) fn has_room(&self) -> bool {
        self.headers.is_empty() || self.occupied() <= self.budget + HEADER_ROOM
    }

    /// Payload bytes in this process.
    pub(crate) fn resident(&self) -> usize {
        self.held + self.open
    }

    /// Everything that the batches in this process take.
    fn occupied(&self) -> usize {
        self.resident() + self.held_headers + self.open_header
    }

    /// Bytes held by the budget, in this process or on their way.
    fn committed(&self) -> usize {
        self.occupied() + self.outstanding
    }

    /// Gives the server what is left of the budget.
    fn grant(&mut self) -> usize {
        let room = self.budget.saturating_sub(self.committed());
        self.outstanding += room;
        room
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
            largest_header in 0usize..60,
            steps in prop::collection::vec((1usize..300, 0usize..60, any::<bool>(), any::<bool>()), 1..60),
        ) {
            let mut ledger = Ledger::new(budget);
            let mut limit = budget;
            let mut waiting = VecDeque::new();
            ledger.reopen();
            for (batch, header, take_first, lose) in steps {
                let header = header.min(largest_header);
                if take_first && let Some(bytes) = waiting.pop_front() {
                    ledger.take(bytes);
                }
                ledger.announce(batch, header);
                limit = limit.max(batch + header);
                // The server waits for credit, which comes as the consumer takes what is held.
                while ledger.outstanding < batch {
                    let bytes = waiting.pop_front().expect("an empty client leaves room for any batch");
                    ledger.take(bytes);
                }
                prop_assert_eq!(ledger.receive(batch), Ok(()));
                // Only headers that came after the credit was given go beyond the budget.
                let headers = ledger.held_headers + ledger.open_header;
                prop_assert!(ledger.committed() >= limit && ledger.committed() <= limit + headers);
                if lose {
                    ledger.reopen();
                } else {
                    ledger.complete();
                    waiting.push_back(batch);
                }
                prop_assert!(ledger.resident() <= limit);
                prop_assert_eq!(ledger.headers.len(), waiting.len());
            }
            waiting.into_iter().for_each(|bytes| _ = ledger.take(bytes));
            prop_assert_eq!((ledger.occupied(), ledger.outstanding), (0, limit));
        }
    }

    #[test]
    fn headers_without_much_payload_are_read_until_they_take_their_room() {
        let mut ledger = Ledger::new(1 << 20);
        ledger.reopen();
        let mut batches = 0;
        while ledger.has_room() {
            ledger.announce(16, 1 << 20);
            ledger.receive(16).expect("within the credit");
            ledger.complete();
            batches += 1;
            assert!(batches < 100, "nothing bounds them");
        }
        assert!(ledger.occupied() <= HEADER_ROOM + 2 * ((1 << 20) + 16) && !ledger.is_waiting(1));
        while !ledger.has_room() {
            ledger.take(16);
        }
        assert!(batches > 2 && ledger.headers.len() == batches - 1, "one is taken, the next may come");
    }

    #[test]
    fn a_server_that_overdraws_is_found_out() {
        let mut ledger = Ledger::new(10);
        assert_eq!(ledger.reopen(), 10);
        assert_eq!(ledger.receive(11), Err(Overdraft { allowed: 10, found: 11 }));
    }
}
