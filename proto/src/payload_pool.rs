//! Buffers of received batches, used again: a fresh one of some megabytes costs the system a page at a time, a third of what receiving costs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Buffers that are kept idle, each as large as a batch: the one being filled while two are being used.
const KEPT: usize = 3;

/// Buffers that no batch uses any more. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct PayloadPool {
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl PayloadPool {
    /// An empty buffer with room for `num_bytes`.
    pub(crate) fn take(&self, num_bytes: usize) -> Vec<u8> {
        let mut idle = self.lock();
        let fits = |buffer: &Vec<u8>| buffer.capacity() >= num_bytes && buffer.capacity() / 2 <= num_bytes;
        match idle.iter().position(fits) {
            Some(at) => idle.swap_remove(at),
            None => Vec::with_capacity(num_bytes),
        }
    }

    /// `buffer` as bytes; it comes back when the last slice of them is dropped.
    pub(crate) fn lend(&self, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { buffer, pool: self.clone() })
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        let mut idle = self.lock();
        // The oldest goes: batches may have grown or shrunk since.
        if idle.len() == KEPT {
            idle.remove(0);
        }
        buffer.clear();
        idle.push(buffer);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Lent {
    buffer: Vec<u8>,
    pool: PayloadPool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_with_its_last_slice_and_only_a_few_are_kept() {
        let pool = PayloadPool::default();
        let mut buffer = pool.take(1000);
        buffer.extend_from_slice(&[7; 1000]);
        let address = buffer.as_ptr();
        let whole = pool.lend(buffer);
        let slice = whole.slice(10..20);
        drop(whole);
        let other = pool.take(1000);
        assert_ne!(other.as_ptr(), address, "a slice is left");
        assert_eq!(slice, [7; 10][..]);
        drop(slice);
        let again = pool.take(900);
        assert_eq!((again.as_ptr(), again.len()), (address, 0));
        assert!(pool.take(100).capacity() < 900, "not for what is much smaller");
        (0..9).for_each(|_| drop(pool.lend(Vec::with_capacity(50))));
        assert_eq!(pool.lock().len(), KEPT);
    }
}
