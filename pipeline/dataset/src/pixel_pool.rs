//! Pixel buffers that are used again: a fresh one of many megabytes costs more in page faults than its copy.

use std::ops::DerefMut;
use std::sync::{Arc, Mutex, PoisonError};

/// Idle buffers kept for the next batches; more than this many are given back to the system.
const MAX_IDLE: usize = 4;

type Idle = Arc<Mutex<Vec<Vec<u8>>>>;

/// Buffers whose batches have been dropped. It holds no more memory than those batches did.
#[derive(Debug, Default)]
pub(crate) struct PixelPool {
    idle: Idle,
}

/// A buffer on loan; dropping it, or the last `Bytes` made of it, returns it.
#[derive(Debug, Default)]
pub(crate) struct PooledPixels {
    bytes: Vec<u8>,
    idle: Idle,
}

impl PixelPool {
    /// A buffer of `length` bytes with unspecified content: the caller writes every byte.
    pub(crate) fn take(&self, length: usize) -> PooledPixels {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = idle.iter().position(|buffer| buffer.capacity() >= length && buffer.capacity() / 2 <= length);
        let mut bytes = fitting.map(|at| idle.swap_remove(at)).unwrap_or_default();
        drop(idle);
        if bytes.capacity() == 0 {
            // Asks the system for zero pages instead of writing zeros.
            bytes = vec![0; length];
        }
        bytes.resize(length, 0);
        PooledPixels { bytes, idle: Arc::clone(&self.idle) }
    }
}

impl AsRef<[u8]> for PooledPixels {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::ops::Deref for PooledPixels {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for PooledPixels {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for PooledPixels {
    fn drop(&mut self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() == MAX_IDLE {
            idle.remove(0);
        }
        idle.push(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_serves_the_next_batch_and_few_are_kept() {
        let pool = PixelPool::default();
        let first = pool.take(1000);
        let address = first.as_ptr();
        drop(bytes::Bytes::from_owner(first));
        let second = pool.take(900);
        assert_eq!((second.as_ptr(), second.len()), (address, 900));
        assert_ne!(pool.take(100).len(), 1000, "a buffer far too large is left for a batch that fills it");
        let many: Vec<_> = (0..10).map(|_| pool.take(64)).collect();
        drop(many);
        assert!(pool.idle.lock().expect("not poisoned").len() <= MAX_IDLE);
    }
}
