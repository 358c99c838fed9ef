//! One shard set, or a blend of several, with random access to records and batches.

use std::sync::Arc;
use std::time::Duration;

use rayon::prelude::*;
use vela_shard::{Manifest, RowBuffer, ShardReader, Store, open_store};
use vela_types::{Batch, BatchSpec, Cursor, DatasetInfo, Fingerprint, Position, Record, RecordLengths, ScatteredBatch};

use crate::blended::{BlendPart, Weight, blend_info};
use crate::collate::{DamagePolicy, PixelPlace, Rows, Slot, batch_bytes, collate};
use crate::epoch::{EpochRows, Part};
use crate::extent::{LengthProfile, expanded_length};
use crate::health::RecordHealth;
use crate::look_ahead::AheadBytes;
use crate::pixel_pool::{PixelPool, PooledPixels};
use crate::recent::Recent;
use crate::shard_set::ShardSet;
use crate::units::{PartUnits, Units};
use crate::{Blend, DatasetError, Partition, StepPlan, spec_fingerprint};

/// Largest micro-batch made unless [`Dataset::with_max_batch_bytes`] says otherwise: some 1,500 images of 336 x 336.
pub const DEFAULT_MAX_BATCH_BYTES: u64 = 512 << 20;

/// Epochs whose orders are kept: those of several trainers with their validation.
const KEPT_EPOCHS: usize = 16;
/// Specs whose rows are kept planned though nobody streams them.
const KEPT_PLANS: usize = 4;
/// Steps whose labels are kept counted: where several trainers' ranks stand.
const KEPT_STEPS: usize = 64;

/// Images of fewer bytes are copied together before they are sent.
const MIN_PIECE_BYTES: usize = 64 << 10;

/// Open data. Cheap to share behind an `Arc`; every method may be called from many threads at once.
///
/// Records are named by an index: the manifest's order, and in a blend the records of one part after those of another.
#[derive(Debug)]
pub struct Dataset {
    parts: Vec<OpenPart>,
    info: DatasetInfo,
    profile: LengthProfile,
    /// Kept under [`DamagePolicy::Mask`] and [`DamagePolicy::Budget`] only.
    health: Option<RecordHealth>,
    max_batch_bytes: u64,
    pixel_pool: PixelPool,
    plans: Recent<Fingerprint, Vec<Arc<Units>>, KEPT_PLANS>,
    epochs: Recent<(Fingerprint, u64), EpochRows, KEPT_EPOCHS>,
    /// Labels of whole steps: every micro-batch of every rank asks.
    step_labels: Recent<(Fingerprint, u64, u64), u64, KEPT_STEPS>,
    ahead: AheadBytes,
}

/// The rows of a spec, planned, and how one rank's steps are cut from them.
#[derive(Clone, Debug)]
pub(crate) struct PlannedRows {
    pub(crate) spec: BatchSpec,
    /// [`spec_fingerprint`] of `spec`: what every batch would hash again.
    pub(crate) name: Fingerprint,
    units: PartUnits,
    pub(crate) plan: StepPlan,
}

#[derive(Debug)]
struct OpenPart {
    set: ShardSet,
    weight: Weight,
    /// Index of its first record.
    first_index: u64,
}

/// How large a micro-batch gets at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroExtents {
    /// Rows.
    pub rows: u64,
    /// Tokens of a row.
    pub columns: u64,
    /// Images of all rows.
    pub images: u64,
}

/// Where a record came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// The shard set.
    pub shards: String,
    /// File of the shard in it.
    pub file: String,
    /// Row of that file.
    pub row: u64,
    /// The sample's id, which names the file and record that it was made of.
    pub id: String,
    /// The sample's source.
    pub source: String,
}

impl Dataset {
    /// Opens the shard set at a path or a url (`file://`, `s3://`, `gs://`, `az://`): verifies its manifest, the sums of its lengths
    /// index, and that every shard is there in its full size; nothing is read per record. Lengths are verified block by block as they
    /// are read. Shards are mapped, and their rows verified, as they are read; a remote file is first copied into the
    /// local cache, and the copy verified.
    pub fn open(url: &str) -> Result<Self, DatasetError> {
        Self::open_in(url, open_store(url)?)
    }

    /// [`Dataset::open`] of a store that is open already; `url` is its name in messages.
    pub fn open_in(url: &str, store: Arc<dyn Store>) -> Result<Self, DatasetError> {
        Self::of(vec![(ShardSet::open(url, store)?, Weight::ONE)])
    }

    /// Opens several shard sets as one. An epoch holds each part's rows as many times as its weight says; parts with a
    /// fraction go on in the next epoch where this one stopped. All must have been made by the same processor.
    pub fn open_blend(parts: &[BlendPart]) -> Result<Self, DatasetError> {
        let open = |part: &BlendPart| Ok((ShardSet::open(&part.shards, open_store(&part.shards)?)?, part.weight));
        Self::of(parts.iter().map(open).collect::<Result<_, DatasetError>>()?)
    }

    fn of(sets: Vec<(ShardSet, Weight)>) -> Result<Self, DatasetError> {
        let manifests: Vec<(&str, &Manifest, Weight)> =
            sets.iter().map(|(set, weight)| (set.url(), &set.manifest, *weight)).collect();
        let info = blend_info(&manifests)?;
        let mut profile = LengthProfile::default();
        let mut first_index = 0;
        let mut parts = Vec::with_capacity(sets.len());
        for (set, weight) in sets {
            profile.add(set.length_groups(), first_index, weight.most_copies());
            let num_records = set.num_records();
            parts.push(OpenPart { set, weight, first_index });
            first_index += num_records;
        }
        Ok(Self {
            parts,
            info,
            profile,
            health: None,
            max_batch_bytes: DEFAULT_MAX_BATCH_BYTES,
            pixel_pool: PixelPool::default(),
            plans: Recent::default(),
            epochs: Recent::default(),
            step_labels: Recent::default(),
            ahead: AheadBytes::default(),
        })
    }

    /// What to do with a damaged record; [`DamagePolicy::Fail`] unless set.
    pub fn with_damage_policy(self, policy: DamagePolicy) -> Self {
        let health = match policy {
            DamagePolicy::Fail => None,
            DamagePolicy::Mask => Some(RecordHealth::new(self.num_records(), u64::MAX)),
            DamagePolicy::Budget(budget) => Some(RecordHealth::new(self.num_records(), budget)),
        };
        Self { health, ..self }
    }

    /// How long a shard whose bytes are damaged is left alone before it is looked at again: 30 s unless set.
    pub fn with_damage_rest(self, rest: Duration) -> Self {
        self.parts.iter().for_each(|part| part.set.set_damage_rest(rest));
        self
    }

    /// Refuses every spec whose largest micro-batch takes more bytes than this; [`DEFAULT_MAX_BATCH_BYTES`] unless set.
    pub fn with_max_batch_bytes(self, max_batch_bytes: u64) -> Self {
        Self { max_batch_bytes, ..self }
    }

    /// Size, fingerprint and processor of the data.
    pub fn info(&self) -> &DatasetInfo {
        &self.info
    }

    /// Where the data was opened; the parts of a blend with a comma between.
    pub fn url(&self) -> String {
        self.parts.iter().map(|part| part.set.url()).collect::<Vec<_>>().join(", ")
    }

    /// Records of all parts, each counted once.
    pub fn num_records(&self) -> u64 {
        self.parts.iter().map(|part| part.set.num_records()).sum()
    }

    /// Records that were found damaged so far; 0 under [`DamagePolicy::Fail`], which does not count them.
    pub fn num_damaged(&self) -> u64 {
        self.health.as_ref().map_or(0, RecordHealth::num_damaged)
    }

    /// The lengths of record `index`, without reading it.
    pub fn lengths(&self, index: u64) -> Result<RecordLengths, DatasetError> {
        let (part, index) = self.locate(index)?;
        part.set.lengths(index)
    }

    /// Reads record `index`; pixels are slices of the mapped shard.
    pub fn record(&self, index: u64) -> Result<Record, DatasetError> {
        let (part, index) = self.locate(index)?;
        part.set.record(index)
    }

    /// Where record `index` lies and which sample it is.
    pub fn provenance(&self, index: u64) -> Result<Provenance, DatasetError> {
        let (part, local) = self.locate(index)?;
        let (shard, row) = part.set.locate(local);
        let (id, source) = self.name_of(index)?;
        let file = part.set.manifest.shards[shard].file.clone();
        Ok(Provenance { shards: part.set.url().to_owned(), file, row, id, source })
    }

    /// Compares every byte of every lengths index and shard with its manifest.
    pub fn verify(&self) -> Result<(), DatasetError> {
        self.parts.iter().try_for_each(|part| part.set.verify())
    }

    /// The rows of `epoch` under `spec`. Rows that are packed are planned when a spec is first used, which reads all
    /// lengths.
    ///
    /// # Errors
    /// If a sample fits no packed row.
    pub fn epoch(&self, spec: &BatchSpec, epoch: u64) -> Result<Arc<EpochRows>, DatasetError> {
        let name = spec_fingerprint(spec);
        let units = self.units(spec, name)?;
        self.epoch_of(spec, name, &units, epoch)
    }

    /// The rows of `epoch` under the spec of this name.
    fn epoch_of(
        &self,
        spec: &BatchSpec,
        name: Fingerprint,
        units: &[Arc<Units>],
        epoch: u64,
    ) -> Result<Arc<EpochRows>, DatasetError> {
        self.epochs.get((name, epoch), || {
            let parts = self.parts.iter().zip(units).map(|(part, units)| Part {
                units: Arc::clone(units),
                fingerprint: &part.set.manifest.fingerprint,
                first_index: part.first_index,
            });
            Ok(EpochRows::new(spec, epoch, self.blend(units), parts.collect()))
        })
    }

    /// Rows of one epoch under `spec`: the same number in every epoch.
    pub fn rows_per_epoch(&self, spec: &BatchSpec) -> Result<u64, DatasetError> {
        Ok(self.blend(&self.units(spec, spec_fingerprint(spec))?).num_places())
    }

    /// Whether [`Dataset::plan`] has the rows of `spec` at hand, or no long way to them.
    pub fn is_planned(&self, spec: &BatchSpec) -> bool {
        spec.packing.is_none() || self.plans.has(&spec_fingerprint(spec))
    }

    /// How `partition` cuts this data's steps under `spec`. Refuses micro-batches that may take more than the byte limit,
    /// however the order falls: so nothing is allocated for a spec beyond it.
    pub fn plan(&self, spec: &BatchSpec, partition: Partition) -> Result<StepPlan, DatasetError> {
        self.plan_rows(spec, partition).map(|rows| rows.plan)
    }

    /// No micro-batch of `partition` has more rows, columns or images than this, however the order falls.
    ///
    /// # Errors
    /// If the sizes of `spec` or `partition` make no sense.
    pub fn largest_micro_batch(&self, spec: &BatchSpec, partition: Partition) -> Result<MicroExtents, DatasetError> {
        let rows = StepPlan::new(spec, partition, 0)?.rows_per_micro();
        let Some(packing) = spec.packing else {
            // A longer row is refused when its turn comes.
            let longest = self.profile.longest(spec).map_or(1, |(_, length)| length);
            let columns = longest.clamp(1, u64::from(spec.max_length));
            return Ok(MicroExtents { rows, columns, images: self.profile.most_images(rows) });
        };
        let columns = u64::from(spec.max_length);
        let fullest = self.profile.most_images(self.most_samples(rows, columns));
        Ok(MicroExtents { rows, columns, images: fullest.min(rows.saturating_mul(u64::from(packing.max_images))) })
    }

    /// Samples that `rows` packed rows can hold.
    fn most_samples(&self, rows: u64, columns: u64) -> u64 {
        self.profile.num_samples().min(rows.saturating_mul(columns)).max(rows)
    }

    /// [`Dataset::plan`] with the rows that it cuts.
    pub(crate) fn plan_rows(&self, spec: &BatchSpec, partition: Partition) -> Result<PlannedRows, DatasetError> {
        // The sizes first: rows are only planned for a spec that can be served.
        let MicroExtents { rows: num_rows, columns, images: num_images } = self.largest_micro_batch(spec, partition)?;
        let num_samples = match spec.packing {
            Some(_) => self.most_samples(num_rows, columns),
            None => num_rows,
        };
        let image_bytes = self.info.processor.image_shape.num_elements() as u64;
        let found = batch_bytes(num_rows, columns, num_samples, num_images, image_bytes);
        if found > self.max_batch_bytes {
            let limit = self.max_batch_bytes;
            return Err(DatasetError::TooLarge { num_rows, columns, num_images, limit, found });
        }
        let name = spec_fingerprint(spec);
        let units = self.units(spec, name)?;
        let plan = StepPlan::new(spec, partition, self.blend(&units).num_places())?;
        Ok(PlannedRows { spec: spec.clone(), name, units, plan })
    }

    /// Refuses a spec that some record of the data is too long for, by the longest record's name, from the lengths index
    /// alone: a run should learn of it before its first step.
    pub fn check_lengths(&self, spec: &BatchSpec) -> Result<(), DatasetError> {
        match self.profile.longest(spec) {
            Some((index, length)) if length > u64::from(spec.max_length) => Err(self.too_long(spec, index)),
            _ => Ok(()),
        }
    }

    /// The error for record `index`, which is longer than `spec` allows.
    pub(crate) fn too_long(&self, spec: &BatchSpec, index: u64) -> DatasetError {
        match self.lengths(index).and_then(|lengths| Ok((lengths, self.name_of(index)?))) {
            Err(fault) => fault,
            Ok((lengths, (id, _))) => DatasetError::TooLong {
                id,
                index,
                length: expanded_length(&lengths, spec),
                num_images: lengths.num_images,
                image_tokens: spec.image_tokens,
                max_length: spec.max_length,
            },
        }
    }

    /// Id and source of record `index`, its pixels left alone.
    fn name_of(&self, index: u64) -> Result<(String, String), DatasetError> {
        self.read_with(index, |reader, row| {
            let mut buffer = RowBuffer::default();
            reader.read_row(row, &mut buffer)?;
            Ok((buffer.id, buffer.source))
        })
    }

    /// The start of this data's first epoch under `spec`.
    pub fn start_cursor(&self, spec: &BatchSpec) -> Cursor {
        Cursor::start(self.info.fingerprint, spec_fingerprint(spec))
    }

    /// The first position after `cursor`; refuses a cursor of other data, another spec or past the end of an epoch.
    /// A cursor that stands right behind the last step of its epoch continues with the next epoch.
    pub fn position_of(&self, spec: &BatchSpec, cursor: &Cursor) -> Result<Position, DatasetError> {
        let name = spec_fingerprint(spec);
        let num_rows = self.blend(&self.units(spec, name)?).num_places();
        let plan = StepPlan::new(spec, Partition::WHOLE, num_rows)?;
        self.check_cursor(name, plan.steps_per_epoch(), cursor)
    }

    /// [`Dataset::position_of`] under the spec of this name.
    pub(crate) fn check_cursor(
        &self,
        name: Fingerprint,
        steps_per_epoch: u64,
        cursor: &Cursor,
    ) -> Result<Position, DatasetError> {
        cursor.check(self.info.fingerprint, name)?;
        match cursor.step {
            step if step < steps_per_epoch => Ok(Position { epoch: cursor.epoch, step, micro: 0 }),
            step if step == steps_per_epoch => {
                Ok(Position { epoch: cursor.epoch.saturating_add(1), step: 0, micro: 0 })
            }
            found => Err(DatasetError::Position { what: "cursor step", bound: steps_per_epoch + 1, found }),
        }
    }

    /// Makes the micro-batch at `position` of `partition`'s share. Who wants more than one asks a [`crate::Share`].
    pub fn batch(&self, spec: &BatchSpec, partition: Partition, position: Position) -> Result<Batch, DatasetError> {
        self.make_batch(&self.plan_rows(spec, partition)?, position)
    }

    pub(crate) fn make_batch(&self, rows: &PlannedRows, position: Position) -> Result<Batch, DatasetError> {
        let (made, labels) = self.collated(rows, position, PixelPlace::Gathered)?;
        made.into_batch(position, rows.plan.num_micro(), labels)
    }

    /// [`Dataset::make_batch`] for who only sends it on: pixels of local shards are slices of the mapped files, their checksums verified.
    /// Those of a cache are copied all the same, since a slow consumer would keep their room taken, and small images, which would each go
    /// out by a system call of its own.
    pub(crate) fn make_scattered(
        &self,
        rows: &PlannedRows,
        position: Position,
    ) -> Result<ScatteredBatch, DatasetError> {
        let image_bytes = self.info.processor.image_shape.num_elements();
        let is_copied = image_bytes < MIN_PIECE_BYTES || self.parts.iter().any(|part| part.set.maps_copies());
        let place = if is_copied { PixelPlace::Gathered } else { PixelPlace::Stored };
        let (made, labels) = self.collated(rows, position, place)?;
        made.into_scattered(position, rows.plan.num_micro(), labels)
    }

    /// The rows of the micro-batch at `position`, and the labels of its whole step.
    fn collated(&self, rows: &PlannedRows, position: Position, place: PixelPlace) -> Result<(Rows, u64), DatasetError> {
        let PlannedRows { spec, name, units, plan } = rows;
        let micro = plan.micro_rows(position)?;
        let epoch = self.epoch_of(spec, *name, units, position.epoch)?;
        let slots = micro.places.map(|place| self.slots(&epoch, place));
        let masked = (0..micro.num_masked).map(|_| vec![Slot::Padding]);
        let made = collate(self, spec, slots.chain(masked).collect(), place, self.health.as_ref())?;
        let step = (*name, position.epoch, position.step);
        let labels = self.step_labels.get(step, || self.step_label_tokens(plan, &epoch, position.step))?;
        Ok((made, *labels))
    }

    /// The samples that are read for the micro-batch at `position`.
    pub(crate) fn samples_of(&self, rows: &PlannedRows, position: Position) -> Result<Vec<u64>, DatasetError> {
        let PlannedRows { spec, name, units, plan } = rows;
        let micro = plan.micro_rows(position)?;
        let epoch = self.epoch_of(spec, *name, units, position.epoch)?;
        // Where damage is counted, all samples of the step are looked at once.
        let step = (*name, position.epoch, position.step);
        let places = match &self.health {
            Some(_) if !self.step_labels.has(&step) => plan.step_places(position.step),
            _ => micro.places,
        };
        // A damaged record is not read again.
        let is_read = |&index: &u64| !self.health.as_ref().is_some_and(|health| health.is_known_damaged(index));
        let samples = places.filter_map(|place| epoch.samples_at(place)).flatten();
        Ok(samples.filter(is_read).collect())
    }

    /// Part and shard of record `index`.
    pub(crate) fn shard_of(&self, index: u64) -> (usize, usize) {
        let number = self.part_number(index);
        (number, self.parts[number].set.locate(index - self.parts[number].first_index).0)
    }

    pub(crate) fn open_shard(&self, part: usize, shard: usize) -> Result<(), DatasetError> {
        self.parts[part].set.open_shard(shard)
    }

    /// The limit of the smallest cache that holds copies of its shards; `None` if all are local files.
    pub(crate) fn copies_limit(&self) -> Option<u64> {
        self.parts.iter().filter_map(|part| part.set.copies_limit()).min()
    }

    /// What streams have fetched ahead.
    pub(crate) fn ahead(&self) -> &AheadBytes {
        &self.ahead
    }

    /// Bytes that opening a shard would fetch.
    pub(crate) fn bytes_to_fetch(&self, part: usize, shard: usize) -> u64 {
        self.parts[part].set.bytes_to_fetch(shard)
    }

    pub(crate) fn is_open(&self, part: usize, shard: usize) -> bool {
        self.parts[part].set.is_open(shard)
    }

    /// Forgets how many labels steps have: a record that counted turned out damaged.
    pub(crate) fn forget_step_labels(&self) {
        self.step_labels.clear();
    }

    /// What stands in the row at `place`.
    fn slots(&self, epoch: &EpochRows, place: u64) -> Vec<Slot> {
        let slot = |index| match &self.health {
            Some(health) if health.is_known_damaged(index) => Slot::Damaged(index),
            _ => Slot::Sample(index),
        };
        match epoch.samples_at(place) {
            Some(samples) => samples.into_iter().map(slot).collect(),
            None => vec![Slot::Padding],
        }
    }

    /// Labels of the whole global step, as far as its records are not masked.
    fn step_label_tokens(&self, plan: &StepPlan, epoch: &EpochRows, step: u64) -> Result<u64, DatasetError> {
        let count = |index: u64| match &self.health {
            Some(health) if !health.is_whole(self, index)? => Ok(0),
            _ => Ok(u64::from(self.lengths(index)?.num_label_tokens)),
        };
        let count_row = |place| -> Result<u64, DatasetError> {
            epoch.samples_at(place).unwrap_or_default().into_iter().map(count).sum()
        };
        match self.health {
            None => plan.step_places(step).map(count_row).sum(),
            // The first time each record is read for it.
            Some(_) => plan.step_places(step).into_par_iter().map(count_row).sum(),
        }
    }

    fn units(&self, spec: &BatchSpec, name: Fingerprint) -> Result<PartUnits, DatasetError> {
        let plan = || self.parts.iter().map(|part| Units::plan(&part.set, spec).map(Arc::new)).collect();
        match spec.packing {
            Some(_) => self.plans.get(name, plan),
            // Rows that are samples are no plan worth keeping in the place of one.
            None => plan().map(Arc::new),
        }
    }

    fn blend(&self, units: &[Arc<Units>]) -> Blend {
        let turns = self.parts.iter().zip(units).map(|(part, units)| part.weight.of(units.num_units()));
        Blend::new(turns.collect())
    }

    /// Lets `read` have the shard of record `index` and its row there; once more where a damaged copy was fetched again.
    pub(crate) fn read_with<T>(
        &self,
        index: u64,
        read: impl FnMut(&Arc<ShardReader>, u64) -> Result<T, DatasetError>,
    ) -> Result<T, DatasetError> {
        let (part, index) = self.locate(index)?;
        part.set.read_with(index, read)
    }

    /// A buffer for a batch's pixels, with unspecified content.
    pub(crate) fn take_pixels(&self, length: usize) -> PooledPixels {
        self.pixel_pool.take(length)
    }

    fn locate(&self, index: u64) -> Result<(&OpenPart, u64), DatasetError> {
        let num_samples = self.num_records();
        if index >= num_samples {
            return Err(DatasetError::NoSuchRecord { url: self.url(), index, num_samples });
        }
        let part = self.part_of(index);
        Ok((part, index - part.first_index))
    }

    fn part_of(&self, index: u64) -> &OpenPart {
        &self.parts[self.part_number(index)]
    }

    fn part_number(&self, index: u64) -> usize {
        self.parts.partition_point(|part| part.first_index <= index) - 1
    }
}
