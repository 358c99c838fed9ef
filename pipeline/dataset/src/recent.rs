//! A few results that are asked for again and again: plans of rows, orders of epochs.

use std::sync::{Arc, Mutex, PoisonError};

/// The `N` values used last, each made once while it is kept.
#[derive(Debug)]
pub(crate) struct Recent<K, V, const N: usize> {
    entries: Mutex<Vec<(K, Arc<V>)>>,
}

impl<K, V, const N: usize> Default for Recent<K, V, N> {
    fn default() -> Self {
        Self { entries: Mutex::default() }
    }
}

impl<K: PartialEq, V, const N: usize> Recent<K, V, N> {
    /// The value of `key`, made by `make` if it is not kept. Whoever asks meanwhile waits.
    pub(crate) fn get<E>(&self, key: K, make: impl FnOnce() -> Result<V, E>) -> Result<Arc<V>, E> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match entries.iter().position(|(kept, _)| *kept == key) {
            Some(at) => entries.remove(at),
            None => (key, Arc::new(make()?)),
        };
        let value = Arc::clone(&entry.1);
        entries.push(entry);
        if entries.len() > N {
            entries.remove(0);
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_used_last_are_kept() {
        let recent: Recent<u32, u32, 2> = Recent::default();
        let mut made = Vec::new();
        for key in [1, 2, 1, 3, 1, 2] {
            let value = recent.get(key, || -> Result<u32, ()> {
                made.push(key);
                Ok(key * 10)
            });
            assert_eq!(value.map(|value| *value), Ok(key * 10));
        }
        assert_eq!(made, [1, 2, 3, 2]);
    }
}
