//! A shard set with random access to records and batches.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;
use vela_shard::{LengthsIndex, Manifest, RowBuffer, ShardError, ShardReader, Store, open_store};
use vela_types::{Batch, BatchSpec, Cursor, DatasetInfo, Position, Record, RecordLengths};

use crate::collate::{DamagePolicy, Slot, batch_bytes, collate};
use crate::extent::{LengthProfile, expanded_length};
use crate::health::RecordHealth;
use crate::pixel_pool::{PixelPool, PooledPixels};
use crate::{DatasetError, EpochOrder, Partition, StepPlan, spec_fingerprint};

/// Largest micro-batch made unless [`Dataset::with_max_batch_bytes`] says otherwise: some 1,500 images of 336 x 336.
pub const DEFAULT_MAX_BATCH_BYTES: u64 = 512 << 20;

/// An open shard set. Cheap to share behind an `Arc`; every method may be called from many threads at once.
#[derive(Debug)]
pub struct Dataset {
    url: String,
    store: Arc<dyn Store>,
    manifest: Manifest,
    info: DatasetInfo,
    lengths: LengthsIndex,
    profile: LengthProfile,
    /// Rows before each shard.
    first_rows: Vec<u64>,
    readers: Vec<OnceLock<Arc<ShardReader>>>,
    /// Kept under [`DamagePolicy::Mask`] only.
    health: Option<RecordHealth>,
    max_batch_bytes: u64,
    pixel_pool: PixelPool,
}

impl Dataset {
    /// Opens the shard set at a path or a url (`file://`, `s3://`, `gs://`, `az://`): verifies its manifest and lengths
    /// index and that every shard is there in its full size. Shards are mapped, and their rows verified, as they are read;
    /// a remote shard is first copied into the local cache, and the copy verified.
    pub fn open(url: &str) -> Result<Self, DatasetError> {
        Self::open_in(url, open_store(url)?)
    }

    /// [`Dataset::open`] of a store that is open already; `url` is its name in messages.
    pub fn open_in(url: &str, store: Arc<dyn Store>) -> Result<Self, DatasetError> {
        let manifest = Manifest::load(store.as_ref())?;
        let lengths = manifest.open_lengths(store.as_ref())?;
        if lengths.is_empty() {
            return Err(DatasetError::Empty { url: url.to_owned() });
        }
        let mut first_rows = Vec::with_capacity(manifest.shards.len());
        let mut rows = 0;
        let sizes = store.sizes()?;
        for shard in &manifest.shards {
            check_size(store.as_ref(), &sizes, &shard.file, shard.bytes)?;
            first_rows.push(rows);
            rows += shard.rows;
        }
        let readers = manifest.shards.iter().map(|_| OnceLock::new()).collect();
        let (info, url) = (manifest.info(), url.to_owned());
        Ok(Self {
            url,
            store,
            manifest,
            info,
            profile: LengthProfile::new(&lengths),
            lengths,
            first_rows,
            readers,
            health: None,
            max_batch_bytes: DEFAULT_MAX_BATCH_BYTES,
            pixel_pool: PixelPool::default(),
        })
    }

    /// What to do with a damaged record; [`DamagePolicy::Fail`] unless set.
    pub fn with_damage_policy(self, policy: DamagePolicy) -> Self {
        let health = match policy {
            DamagePolicy::Fail => None,
            DamagePolicy::Mask => Some(RecordHealth::new(self.info.num_samples)),
        };
        Self { health, ..self }
    }

    /// Refuses every spec whose largest micro-batch takes more bytes than this; [`DEFAULT_MAX_BATCH_BYTES`] unless set.
    pub fn with_max_batch_bytes(self, max_batch_bytes: u64) -> Self {
        Self { max_batch_bytes, ..self }
    }

    /// Size, fingerprint and processor of the set.
    pub fn info(&self) -> &DatasetInfo {
        &self.info
    }

    /// The manifest that is followed.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the set was opened.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The lengths of record `index` in the manifest's order, without reading it. Panics past the last record.
    pub fn lengths(&self, index: u64) -> RecordLengths {
        self.lengths.get(index)
    }

    /// Reads record `index` in the manifest's order; pixels are slices of the mapped shard.
    pub fn record(&self, index: u64) -> Result<Record, DatasetError> {
        let (reader, row) = self.locate(index)?;
        Ok(reader.read(row)?)
    }

    /// Compares every byte of every shard with the manifest.
    pub fn verify(&self) -> Result<(), DatasetError> {
        for (shard, entry) in self.manifest.shards.iter().enumerate() {
            self.reader(shard)?.verify(entry)?;
        }
        Ok(())
    }

    /// The order of `epoch` under `spec`.
    pub fn order(&self, spec: &BatchSpec, epoch: u64) -> EpochOrder {
        match spec.shuffle {
            true => EpochOrder::shuffled(self.info.num_samples, &self.info.fingerprint, spec.seed, epoch),
            false => EpochOrder::sequential(self.info.num_samples),
        }
    }

    /// How `partition` cuts this set's steps under `spec`. Refuses shares that are not equal and micro-batches that may
    /// take more than the byte limit, however the order falls: so nothing is allocated for a spec beyond it.
    pub fn plan(&self, spec: &BatchSpec, partition: Partition) -> Result<StepPlan, DatasetError> {
        let plan = StepPlan::new(spec, partition, self.info.num_samples)?;
        let num_rows = plan.rows_per_micro();
        // A longer row is refused when its turn comes.
        let columns = self.profile.longest(spec).map_or(1, |(_, length)| length.clamp(1, u64::from(spec.max_length)));
        let num_images = self.profile.most_images(num_rows);
        let image_bytes = self.info.processor.image_shape.num_elements() as u64;
        let found = batch_bytes(num_rows, columns, num_images, image_bytes);
        match found <= self.max_batch_bytes {
            true => Ok(plan),
            false => {
                let limit = self.max_batch_bytes;
                Err(DatasetError::TooLarge { num_rows, columns, num_images, limit, found })
            }
        }
    }

    /// Refuses a spec that some record of the set is too long for, by the longest record's name, from the lengths index
    /// alone: a run should learn of it before its first step.
    pub fn check_lengths(&self, spec: &BatchSpec) -> Result<(), DatasetError> {
        match self.profile.longest(spec) {
            Some((index, length)) if length > u64::from(spec.max_length) => Err(self.too_long(spec, index)),
            _ => Ok(()),
        }
    }

    /// The error for record `index`, which is longer than `spec` allows.
    pub(crate) fn too_long(&self, spec: &BatchSpec, index: u64) -> DatasetError {
        let lengths = self.lengths(index);
        match self.record(index) {
            Err(fault) => fault,
            Ok(record) => DatasetError::TooLong {
                id: record.id,
                index,
                length: expanded_length(&lengths, spec),
                num_images: lengths.num_images,
                image_tokens: spec.image_tokens,
                max_length: spec.max_length,
            },
        }
    }

    /// The start of this set's first epoch under `spec`.
    pub fn start_cursor(&self, spec: &BatchSpec) -> Cursor {
        Cursor::start(self.info.fingerprint, spec_fingerprint(spec))
    }

    /// The first position after `cursor`; refuses a cursor of other data, another spec or past the end of an epoch.
    /// A cursor that stands right behind the last step of its epoch continues with the next epoch.
    pub fn position_of(&self, spec: &BatchSpec, cursor: &Cursor) -> Result<Position, DatasetError> {
        cursor.check(self.info.fingerprint, spec_fingerprint(spec))?;
        let bound = self.info.steps_per_epoch(spec);
        match cursor.step {
            step if step < bound => Ok(Position { epoch: cursor.epoch, step, micro: 0 }),
            step if step == bound => Ok(Position { epoch: cursor.epoch.saturating_add(1), step: 0, micro: 0 }),
            found => Err(DatasetError::Position { what: "cursor step", bound: bound + 1, found }),
        }
    }

    /// Makes the micro-batch at `position` of `partition`'s share. Equal arguments give equal batches, always.
    pub fn batch(&self, spec: &BatchSpec, partition: Partition, position: Position) -> Result<Batch, DatasetError> {
        let plan = self.plan(spec, partition)?;
        let places = plan.micro_places(position)?;
        let order = self.order(spec, position.epoch);
        let slots = places.map(|place| order.index_at(place).map_or(Slot::Padding, |index| self.slot(index))).collect();
        let rows = collate(self, spec, slots, self.health.as_ref())?;
        let step_label_tokens = self.step_label_tokens(&plan, &order, position.step)?;
        rows.into_batch(position, plan.num_micro(), step_label_tokens)
    }

    fn slot(&self, index: u64) -> Slot {
        match &self.health {
            Some(health) if health.is_known_damaged(index) => Slot::Damaged(index),
            _ => Slot::Sample(index),
        }
    }

    /// Labels of the whole global step, as far as its records are not masked.
    fn step_label_tokens(&self, plan: &StepPlan, order: &EpochOrder, step: u64) -> Result<u64, DatasetError> {
        let labels = |index| u64::from(self.lengths(index).num_label_tokens);
        let Some(health) = &self.health else {
            return Ok(plan.step_places(step).filter_map(|place| order.index_at(place)).map(labels).sum());
        };
        let count = |place| match order.index_at(place) {
            Some(index) if health.is_whole(self, index)? => Ok(labels(index)),
            _ => Ok(0),
        };
        plan.step_places(step).into_par_iter().map(count).try_reduce(|| 0, |sum, labels| Ok(sum + labels))
    }

    /// Reads the small fields of record `index` into `buffer` and gives the reader and row to copy its images from.
    pub(crate) fn read_row(&self, index: u64, buffer: &mut RowBuffer) -> Result<(&ShardReader, u64), DatasetError> {
        let (reader, row) = self.locate(index)?;
        reader.read_row(row, buffer)?;
        Ok((reader, row))
    }

    /// A buffer for a batch's pixels, with unspecified content.
    pub(crate) fn take_pixels(&self, length: usize) -> PooledPixels {
        self.pixel_pool.take(length)
    }

    fn locate(&self, index: u64) -> Result<(&ShardReader, u64), DatasetError> {
        let num_samples = self.info.num_samples;
        if index >= num_samples {
            return Err(DatasetError::NoSuchRecord { url: self.url.clone(), index, num_samples });
        }
        let shard = self.first_rows.partition_point(|&first| first <= index) - 1;
        Ok((self.reader(shard)?, index - self.first_rows[shard]))
    }

    fn reader(&self, shard: usize) -> Result<&ShardReader, DatasetError> {
        let slot = &self.readers[shard];
        if let Some(reader) = slot.get() {
            return Ok(reader);
        }
        let reader = ShardReader::open(self.store.as_ref(), &self.manifest.shards[shard])?;
        let expected = self.info.processor.image_shape;
        if reader.image_shape() != expected {
            return Err(DatasetError::Shard(ShardError::DamagedFile {
                path: reader.path().to_owned(),
                what: "image shape",
                expected: format!("{expected:?}"),
                found: format!("{:?}", reader.image_shape()),
            }));
        }
        Ok(slot.get_or_init(|| Arc::new(reader)))
    }
}

fn check_size(store: &dyn Store, sizes: &BTreeMap<String, u64>, file: &str, expected: u64) -> Result<(), ShardError> {
    let path = store.path(file);
    match sizes.get(file) {
        None => Err(ShardError::MissingFile { path }),
        Some(&found) if found == expected => Ok(()),
        Some(found) => Err(ShardError::DamagedFile {
            path,
            what: "size in bytes",
            expected: expected.to_string(),
            found: found.to_string(),
        }),
    }
}
