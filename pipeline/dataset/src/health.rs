//! Which records of a data set can be read, asked once per record: what policies `mask` and `budget` count by.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::collate::probe;
use crate::{Dataset, DatasetError};

const UNKNOWN: u8 = 0;
const WHOLE: u8 = 1;
const DAMAGED: u8 = 2;

/// Records whose states are allocated together.
const PAGE_RECORDS: usize = 1 << 14;

type Page = Box<[AtomicU8]>;

/// One byte per record, from when a record near it was first asked for. Later damage is noted when a batch meets it.
#[derive(Debug)]
pub(crate) struct RecordHealth {
    states: Vec<OnceLock<Page>>,
    num_damaged: Mutex<u64>,
    /// Records that may be damaged before it is an error.
    budget: u64,
}

impl RecordHealth {
    pub(crate) fn new(num_records: u64, budget: u64) -> Self {
        let states = (0..num_records.div_ceil(PAGE_RECORDS as u64)).map(|_| OnceLock::new()).collect();
        Self { states, num_damaged: Mutex::new(0), budget }
    }

    /// Notes that record `index` turned out damaged by `fault`.
    ///
    /// # Errors
    /// If the budget is spent. The record is not noted then, so whoever tries again is refused again.
    pub(crate) fn note_damaged(&self, index: u64, fault: DatasetError) -> Result<(), DatasetError> {
        let mut num_damaged = self.lock();
        if self.is_known_damaged(index) {
            return Ok(());
        }
        if *num_damaged >= self.budget {
            return Err(DatasetError::BudgetSpent { budget: self.budget, source: Box::new(fault) });
        }
        *num_damaged += 1;
        self.of(index).store(DAMAGED, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn is_known_damaged(&self, index: u64) -> bool {
        self.state(index) == DAMAGED
    }

    /// Records found damaged so far.
    pub(crate) fn num_damaged(&self) -> u64 {
        *self.lock()
    }

    /// Whether record `index` of `dataset` can be read; reads it with its pixels the first time.
    pub(crate) fn is_whole(&self, dataset: &Dataset, index: u64) -> Result<bool, DatasetError> {
        if self.state(index) == UNKNOWN {
            match probe(dataset, index) {
                // A batch may have met damage meanwhile, which stays.
                Ok(()) => self.note_whole(index),
                Err(fault) if fault.is_damage() => self.note_damaged(index, fault)?,
                Err(fault) => return Err(fault),
            }
        }
        Ok(!self.is_known_damaged(index))
    }

    fn note_whole(&self, index: u64) {
        let _ = self.of(index).compare_exchange(UNKNOWN, WHOLE, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.num_damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self, index: u64) -> u8 {
        let (page, at) = place(index);
        self.states[page].get().map_or(UNKNOWN, |page| page[at].load(Ordering::Relaxed))
    }

    fn of(&self, index: u64) -> &AtomicU8 {
        let (page, at) = place(index);
        &self.states[page].get_or_init(|| (0..PAGE_RECORDS).map(|_| AtomicU8::new(UNKNOWN)).collect())[at]
    }
}

/// The page of record `index` and its place there.
fn place(index: u64) -> (usize, usize) {
    let index = index as usize;
    (index / PAGE_RECORDS, index % PAGE_RECORDS)
}
