//! One rank's part of the data under a spec, its rows planned: what batches are made from.

use std::collections::BTreeSet;
use std::sync::Arc;

use vela_types::{Batch, BatchSpec, Cursor, Fingerprint, Position, ScatteredBatch};

use crate::dataset::PlannedRows;
use crate::{Dataset, DatasetError, Partition, StepPlan};

/// Shards of one batch that are opened, and so fetched, at once.
const OPENED_AT_ONCE: usize = 4;

/// A rank's part of every step of a [`Dataset`] under one spec. Whoever streams holds one: the plan of its rows is kept with it.
#[derive(Clone, Debug)]
pub struct Share {
    dataset: Arc<Dataset>,
    rows: PlannedRows,
}

impl Share {
    /// Plans the rows, which reads all lengths if they are packed and the plan is not known yet.
    ///
    /// # Errors
    /// If the spec makes no sense, its largest micro-batch may exceed the byte limit, or some record is too long for it.
    pub fn new(dataset: Arc<Dataset>, spec: BatchSpec, partition: Partition) -> Result<Self, DatasetError> {
        let rows = dataset.plan_rows(&spec, partition)?;
        dataset.check_lengths(&spec)?;
        Ok(Self { dataset, rows })
    }

    /// The data.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// The spec.
    pub fn spec(&self) -> &BatchSpec {
        &self.rows.spec
    }

    /// [`crate::spec_fingerprint`] of the spec.
    pub fn spec_fingerprint(&self) -> Fingerprint {
        self.rows.name
    }

    /// How its steps are cut.
    pub fn plan(&self) -> StepPlan {
        self.rows.plan
    }

    /// The first position after `cursor`; refuses a cursor of other data, another spec or past the end of an epoch.
    /// A cursor that stands right behind the last step of its epoch continues with the next epoch.
    pub fn position_of(&self, cursor: &Cursor) -> Result<Position, DatasetError> {
        self.dataset.check_cursor(self.rows.name, self.rows.plan.steps_per_epoch(), cursor)
    }

    /// Whether the shards that the micro-batch at `position` reads are open. Fetches nothing and waits for none.
    pub fn has_open_shards(&self, position: Position) -> Result<bool, DatasetError> {
        let samples = self.dataset.samples_of(&self.rows, position)?;
        let mut shards = samples.into_iter().map(|index| self.dataset.shard_of(index));
        Ok(shards.all(|(part, shard)| self.dataset.is_open(part, shard)))
    }

    /// Bytes of the shards that the micro-batch at `position` reads and that must be fetched, unless a cache has them.
    pub(crate) fn bytes_to_fetch(&self, position: Position) -> Result<u64, DatasetError> {
        let samples = self.dataset.samples_of(&self.rows, position)?;
        let shards: BTreeSet<(usize, usize)> = samples.iter().map(|&index| self.dataset.shard_of(index)).collect();
        Ok(shards.into_iter().map(|(part, shard)| self.dataset.bytes_to_fetch(part, shard)).sum())
    }

    /// Opens the shards that the micro-batch at `position` reads, several at once: remote ones are fetched, which may take long and needs no
    /// processor. [`Share::batch`] then waits for none, unless they had to make room for others meanwhile. Where there were any, the lengths
    /// of its samples are touched too, which may lie on a disk. Damage is no error here.
    pub fn open_shards(&self, position: Position) -> Result<(), DatasetError> {
        self.open_shards_of(&[position])
    }

    /// [`Share::open_shards`] of several micro-batches, their shards together.
    pub(crate) fn open_shards_of(&self, positions: &[Position]) -> Result<(), DatasetError> {
        let dataset = &self.dataset;
        let mut samples = Vec::new();
        for &position in positions {
            samples.extend(dataset.samples_of(&self.rows, position)?);
        }
        let shards: BTreeSet<(usize, usize)> = samples.iter().map(|&index| dataset.shard_of(index)).collect();
        let shards: Vec<(usize, usize)> = shards.into_iter().collect();
        if shards.iter().all(|&(part, shard)| dataset.is_open(part, shard)) {
            return Ok(());
        }
        let open = |&(part, shard): &(usize, usize)| unless_damaged(dataset.open_shard(part, shard));
        let touch = |&index: &u64| unless_damaged(dataset.lengths(index).map(drop));
        let work = |thread: usize| {
            samples.iter().skip(thread).step_by(OPENED_AT_ONCE).try_for_each(touch)?;
            shards.iter().skip(thread).step_by(OPENED_AT_ONCE).try_for_each(open)
        };
        let work = &work;
        std::thread::scope(|scope| {
            let spawn = |thread| {
                let builder = std::thread::Builder::new().name("vela-open".to_owned());
                builder.spawn_scoped(scope, move || work(thread)).map_err(DatasetError::Thread)
            };
            let threads = (0..OPENED_AT_ONCE.min(samples.len())).map(spawn);
            let threads: Vec<_> = threads.collect::<Result<_, _>>()?;
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(DatasetError::WorkerLost)))
        })
    }

    /// [`Share::batch`] for who only sends it on: its pixels stay in the mapped shards where those are local.
    pub fn scattered_batch(&self, position: Position) -> Result<ScatteredBatch, DatasetError> {
        self.dataset.make_scattered(&self.rows, position)
    }

    /// Makes the micro-batch at `position`. Equal shares and positions give equal batches, always.
    pub fn batch(&self, position: Position) -> Result<Batch, DatasetError> {
        self.dataset.make_batch(&self.rows, position)
    }
}

/// The batch meets damage again and treats it by its policy.
fn unless_damaged(outcome: Result<(), DatasetError>) -> Result<(), DatasetError> {
    match outcome {
        Err(fault) if fault.is_damage() => Ok(()),
        outcome => outcome,
    }
}
