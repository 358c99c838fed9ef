//! Which records of a set can be read, asked once per record: what policy `mask` counts by.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::collate::probe;
use crate::{Dataset, DatasetError};

const UNKNOWN: u8 = 0;
const WHOLE: u8 = 1;
const DAMAGED: u8 = 2;

/// One byte per record. Later damage is noted when a batch meets it.
#[derive(Debug)]
pub(crate) struct RecordHealth {
    states: Vec<AtomicU8>,
}

impl RecordHealth {
    pub(crate) fn new(num_samples: u64) -> Self {
        Self { states: (0..num_samples).map(|_| AtomicU8::new(UNKNOWN)).collect() }
    }

    pub(crate) fn note(&self, index: u64, is_whole: bool) {
        let state = if is_whole { WHOLE } else { DAMAGED };
        self.states[index as usize].store(state, Ordering::Relaxed);
    }

    pub(crate) fn is_known_damaged(&self, index: u64) -> bool {
        self.state(index) == DAMAGED
    }

    /// Whether record `index` of `dataset` can be read; reads it with its pixels the first time.
    pub(crate) fn is_whole(&self, dataset: &Dataset, index: u64) -> Result<bool, DatasetError> {
        if self.state(index) == UNKNOWN {
            match probe(dataset, index) {
                Err(fault) if !fault.is_damage() => return Err(fault),
                probed => self.note(index, probed.is_ok()),
            }
        }
        Ok(!self.is_known_damaged(index))
    }

    fn state(&self, index: u64) -> u8 {
        self.states[index as usize].load(Ordering::Relaxed)
    }
}
