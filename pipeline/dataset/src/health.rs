//! Which records of a data set can be read, asked once per record: what policies `mask` and `budget` count by.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

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
    num_damaged: AtomicU64,
    /// Records that may be damaged before it is an error.
    budget: u64,
}

impl RecordHealth {
    pub(crate) fn new(num_records: u64, budget: u64) -> Self {
        let states = (0..num_records.div_ceil(PAGE_RECORDS as u64)).map(|_| OnceLock::new()).collect();
        Self { states, num_damaged: AtomicU64::new(0), budget }
    }

    /// Notes that record `index` turned out damaged by `fault`.
    ///
    /// # Errors
    /// If that is one more than the budget allows.
    pub(crate) fn note_damaged(&self, index: u64, fault: DatasetError) -> Result<(), DatasetError> {
        if self.of(index).swap(DAMAGED, Ordering::Relaxed) != DAMAGED {
            self.num_damaged.fetch_add(1, Ordering::Relaxed);
        }
        match self.num_damaged() <= self.budget {
            true => Ok(()),
            false => Err(DatasetError::BudgetSpent { budget: self.budget, source: Box::new(fault) }),
        }
    }

    pub(crate) fn is_known_damaged(&self, index: u64) -> bool {
        self.state(index) == DAMAGED
    }

    /// Records found damaged so far.
    pub(crate) fn num_damaged(&self) -> u64 {
        self.num_damaged.load(Ordering::Relaxed)
    }

    /// Whether record `index` of `dataset` can be read; reads it with its pixels the first time.
    pub(crate) fn is_whole(&self, dataset: &Dataset, index: u64) -> Result<bool, DatasetError> {
        if self.state(index) == UNKNOWN {
            match probe(dataset, index) {
                Ok(()) => self.of(index).store(WHOLE, Ordering::Relaxed),
                Err(fault) if fault.is_damage() => self.note_damaged(index, fault)?,
                Err(fault) => return Err(fault),
            }
        }
        Ok(!self.is_known_damaged(index))
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
