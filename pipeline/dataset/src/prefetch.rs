//! A queue of batches bounded in bytes.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use vela_types::Batch;

use crate::DatasetError;

/// How full a prefetch queue is and which side waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefetchStats {
    /// Batches ready.
    pub depth: usize,
    /// Bytes of those batches.
    pub bytes: usize,
    /// Most bytes that were ever ready at once.
    pub peak_bytes: usize,
    /// Batches taken so far.
    pub num_taken: u64,
    /// Times the consumer found the queue empty: the accelerator waited for data.
    pub num_consumer_waits: u64,
    /// Times the producer found the queue full: data waited for the accelerator.
    pub num_producer_waits: u64,
}

/// One producer, one consumer. Holds at most `limit_bytes`, or a single batch if that alone is larger.
#[derive(Debug)]
pub(crate) struct PrefetchQueue {
    limit_bytes: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Result<Batch, DatasetError>>,
    stats: PrefetchStats,
    closed: bool,
}

impl PrefetchQueue {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Adds a batch once there is room; false if the queue was closed.
    pub(crate) fn push(&self, batch: Result<Batch, DatasetError>) -> bool {
        let bytes = batch.as_ref().map_or(0, Batch::num_bytes);
        let is_full =
            |state: &mut State| !state.closed && state.stats.depth > 0 && state.stats.bytes + bytes > self.limit_bytes;
        let mut state = self.lock();
        if is_full(&mut state) {
            state.stats.num_producer_waits += 1;
            state = self.changed.wait_while(state, is_full).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return false;
        }
        state.ready.push_back(batch);
        state.stats.depth += 1;
        state.stats.bytes += bytes;
        state.stats.peak_bytes = state.stats.peak_bytes.max(state.stats.bytes);
        self.changed.notify_all();
        true
    }

    /// Takes the oldest batch, waiting for one; `None` if the queue was closed and is empty.
    pub(crate) fn pop(&self) -> Option<Result<Batch, DatasetError>> {
        let is_empty = |state: &mut State| !state.closed && state.ready.is_empty();
        let mut state = self.lock();
        if is_empty(&mut state) {
            state.stats.num_consumer_waits += 1;
            state = self.changed.wait_while(state, is_empty).unwrap_or_else(PoisonError::into_inner);
        }
        let batch = state.ready.pop_front()?;
        state.stats.depth -= 1;
        state.stats.bytes -= batch.as_ref().map_or(0, Batch::num_bytes);
        state.stats.num_taken += 1;
        self.changed.notify_all();
        Some(batch)
    }

    /// Wakes both sides and refuses further batches.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    pub(crate) fn stats(&self) -> PrefetchStats {
        self.lock().stats
    }

    /// A panic of the other side leaves counters that are still true.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
