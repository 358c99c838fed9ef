//! A few results that are asked for again and again: plans of rows, orders of epochs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A value that is being made, or was.
type Slot<V> = Arc<Mutex<Option<Arc<V>>>>;

/// The `N` values used last, each made once while it is kept.
#[derive(Debug)]
pub(crate) struct Recent<K, V, const N: usize> {
    entries: Mutex<Vec<(K, Slot<V>)>>,
}

impl<K, V, const N: usize> Default for Recent<K, V, N> {
    fn default() -> Self {
        Self { entries: Mutex::default() }
    }
}

impl<K: PartialEq, V, const N: usize> Recent<K, V, N> {
    /// The value of `key`, made by `make` if it is not kept. Whoever asks for the same meanwhile waits, nobody else does.
    pub(crate) fn get<E>(&self, key: K, make: impl FnOnce() -> Result<V, E>) -> Result<Arc<V>, E> {
        let slot = self.slot(key);
        let mut value = lock(&slot);
        match value.as_ref() {
            Some(made) => Ok(Arc::clone(made)),
            None => Ok(Arc::clone(value.insert(Arc::new(make()?)))),
        }
    }

    /// Forgets all values.
    pub(crate) fn clear(&self) {
        lock(&self.entries).clear();
    }

    /// Whether the value of `key` is kept and made.
    pub(crate) fn has(&self, key: &K) -> bool {
        let slot = lock(&self.entries).iter().find(|(kept, _)| kept == key).map(|(_, slot)| Arc::clone(slot));
        slot.is_some_and(|slot| slot.try_lock().is_ok_and(|value| value.is_some()))
    }

    /// The place of `key`'s value, now the last used.
    fn slot(&self, key: K) -> Slot<V> {
        let mut entries = lock(&self.entries);
        let entry = match entries.iter().position(|(kept, _)| *kept == key) {
            Some(at) => entries.remove(at),
            None => (key, Slot::default()),
        };
        let slot = Arc::clone(&entry.1);
        entries.push(entry);
        if entries.len() > N {
            entries.remove(0);
        }
        slot
    }
}

/// What a panic left half done was not put in its place.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[test]
    fn a_value_that_takes_long_holds_up_only_those_who_ask_for_it() {
        let recent: Recent<u32, u32, 2> = Recent::default();
        let value = recent.get(1, || -> Result<u32, ()> {
            let other = std::thread::scope(|scope| scope.spawn(|| recent.get(2, || Ok::<_, ()>(20))).join());
            Ok(*other.expect("no panic").expect("no error") + 1)
        });
        assert_eq!(value.map(|value| *value), Ok(21));
        assert!(recent.get(3, || Err("no")).is_err() && recent.get(3, || Ok::<_, ()>(30)).is_ok(), "tried again");
    }
}
