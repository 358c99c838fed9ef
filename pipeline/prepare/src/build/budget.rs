//! A bound on the bytes that are on their way between the reader and the writer.

use std::sync::{Condvar, Mutex, PoisonError};

/// Bytes that may be reserved at once. A reservation larger than the whole budget is granted when nothing else is held.
pub(super) struct ByteBudget {
    limit: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    held: u64,
    peak: u64,
    closed: bool,
}

impl ByteBudget {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Waits until `bytes` fit; false once the budget is closed.
    pub(super) fn reserve(&self, bytes: u64) -> bool {
        let mut state = self.lock();
        while !state.closed && state.held > 0 && state.held + bytes > self.limit {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.held += bytes;
        state.peak = state.peak.max(state.held);
        !state.closed
    }

    pub(super) fn release(&self, bytes: u64) {
        self.lock().held -= bytes;
        self.changed.notify_all();
    }

    /// Wakes and refuses everybody.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Closes the budget when the value is dropped, a panic included.
    pub(super) fn close_on_drop(&self) -> impl Drop {
        struct Closer<'a>(&'a ByteBudget);
        impl Drop for Closer<'_> {
            fn drop(&mut self) {
                self.0.close();
            }
        }
        Closer(self)
    }

    /// Most bytes ever held.
    pub(super) fn peak(&self) -> u64 {
        self.lock().peak
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_wait_for_room_and_end_when_closed() {
        let budget = ByteBudget::new(10);
        assert!(budget.reserve(50), "an oversized reservation passes when nothing is held");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.reserve(4) && budget.reserve(5));
            budget.release(50);
            assert!(waiting.join().expect("no panic"));
            let refused = scope.spawn(|| budget.reserve(2));
            budget.close();
            assert!(!refused.join().expect("no panic"));
        });
        assert_eq!(budget.peak(), 50);
    }
}
