//! One shard set with random access to its records.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use vela_shard::{LengthGroup, LengthsIndex, Manifest, ShardError, ShardReader, Store};
use vela_types::{Record, RecordLengths};

use crate::DatasetError;
use crate::open_shards::ShardSlot;

/// How long a store that says a shard is gone is given before it is asked once more.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// An open shard set. Records are named by their index in the manifest's order.
#[derive(Debug)]
pub(crate) struct ShardSet {
    url: String,
    store: Arc<dyn Store>,
    pub(crate) manifest: Manifest,
    lengths: LengthsIndex,
    /// Of a copy that was fetched because that of `lengths` turned out damaged.
    fresh_lengths: OnceLock<LengthsIndex>,
    /// Held while they are fetched.
    fetching_lengths: Mutex<()>,
    /// Rows before each shard.
    pub(crate) first_rows: Vec<u64>,
    slots: Vec<Arc<ShardSlot>>,
}

impl ShardSet {
    /// Verifies the manifest and the sums of the lengths index, and that every shard is there in its full size. What it costs
    /// grows with the number of shards, not of records.
    pub(crate) fn open(url: &str, store: Arc<dyn Store>) -> Result<Self, DatasetError> {
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
        let slots = manifest.shards.iter().map(|_| ShardSlot::new(store.maps_copies())).collect();
        let (fresh_lengths, fetching_lengths) = (OnceLock::new(), Mutex::default());
        Ok(Self { url: url.to_owned(), store, manifest, lengths, fresh_lengths, fetching_lengths, first_rows, slots })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn num_records(&self) -> u64 {
        self.lengths.len()
    }

    /// All records by their number of images.
    pub(crate) fn length_groups(&self) -> &[LengthGroup] {
        self.lengths.groups()
    }

    /// The lengths of record `index`, without reading it. Where they are damaged in a local copy, another copy is fetched, once: only then
    /// does the damage count.
    pub(crate) fn lengths(&self, index: u64) -> Result<RecordLengths, DatasetError> {
        if let Some(fresh) = self.fresh_lengths.get() {
            return Ok(fresh.get(index)?);
        }
        match self.lengths.get(index) {
            Err(fault) if fault.is_damage() && self.store.maps_copies() => Ok(self.fresh_lengths()?.get(index)?),
            read => Ok(read?),
        }
    }

    fn fresh_lengths(&self) -> Result<&LengthsIndex, DatasetError> {
        let _held = self.fetching_lengths.lock().unwrap_or_else(PoisonError::into_inner);
        if self.fresh_lengths.get().is_none() {
            self.store.drop_copy(&self.manifest.lengths)?;
            let _ = self.fresh_lengths.set(self.manifest.open_lengths(self.store.as_ref())?);
        }
        Ok(self.fresh_lengths.get().expect("it was there, or has been set with the lock held"))
    }

    /// Reads record `index`; pixels are slices of the mapped shard.
    pub(crate) fn record(&self, index: u64) -> Result<Record, DatasetError> {
        self.read_with(index, |reader, row| Ok(reader.read(row)?))
    }

    /// Lets `read` have the shard of record `index` and its row there. Where that finds damage in a local copy, another copy is fetched and
    /// `read` called again: only then does the damage count.
    pub(crate) fn read_with<T>(
        &self,
        index: u64,
        mut read: impl FnMut(&Arc<ShardReader>, u64) -> Result<T, DatasetError>,
    ) -> Result<T, DatasetError> {
        let (shard, row) = self.locate(index);
        let reader = self.reader(shard)?;
        match read(&reader, row) {
            Err(fault) if fault.is_damage() => match self.replace(shard, &reader)? {
                Some(fresh) => read(&fresh, row),
                None => Err(fault),
            },
            outcome => outcome,
        }
    }

    /// Opens shard `shard`; a remote one is fetched.
    pub(crate) fn open_shard(&self, shard: usize) -> Result<(), DatasetError> {
        self.reader(shard).map(drop)
    }

    pub(crate) fn set_damage_rest(&self, rest: Duration) {
        self.slots.iter().for_each(|slot| slot.set_rest(rest));
    }

    /// Whether its shards are copies in a cache.
    pub(crate) fn maps_copies(&self) -> bool {
        self.store.maps_copies()
    }

    /// The limit of the cache that holds copies of its shards, if one does.
    pub(crate) fn copies_limit(&self) -> Option<u64> {
        self.store.copies_limit()
    }

    /// Bytes of a shard that is not open, if opening it needs a copy.
    pub(crate) fn bytes_to_fetch(&self, shard: usize) -> u64 {
        let is_needed = self.maps_copies() && !self.is_open(shard);
        if is_needed { self.manifest.shards[shard].bytes } else { 0 }
    }

    pub(crate) fn is_open(&self, shard: usize) -> bool {
        self.slots[shard].is_open()
    }

    /// Compares every byte of the lengths index and of every shard with the manifest.
    pub(crate) fn verify(&self) -> Result<(), DatasetError> {
        self.lengths.verify()?;
        for (shard, entry) in self.manifest.shards.iter().enumerate() {
            self.reader(shard)?.verify(entry)?;
        }
        Ok(())
    }

    /// The shard of record `index` and its row there.
    pub(crate) fn locate(&self, index: u64) -> (usize, u64) {
        let shard = self.first_rows.partition_point(|&first| first <= index) - 1;
        (shard, index - self.first_rows[shard])
    }

    fn reader(&self, shard: usize) -> Result<Arc<ShardReader>, DatasetError> {
        self.slots[shard].reader(|| self.open_reader(shard))
    }

    fn replace(&self, shard: usize, faulty: &Arc<ShardReader>) -> Result<Option<Arc<ShardReader>>, DatasetError> {
        let drop_copy = || Ok(self.store.drop_copy(&self.manifest.shards[shard].file_entry())?);
        self.slots[shard].replace(faulty, drop_copy, || self.open_reader(shard))
    }

    fn open_reader(&self, shard: usize) -> Result<ShardReader, DatasetError> {
        let open = || ShardReader::open(self.store.as_ref(), &self.manifest.shards[shard]);
        let reader = match open() {
            Err(fault) if is_gone(&fault) => {
                // A store may say so of an object that is just being written.
                std::thread::sleep(SECOND_LOOK);
                open()
            }
            opened => opened,
        };
        let reader = reader.map_err(|fault| match is_gone(&fault) {
            true => DatasetError::Gone(Box::new(fault)),
            false => DatasetError::Shard(fault),
        })?;
        let expected = self.manifest.info().processor.image_shape;
        if reader.image_shape() != expected {
            return Err(DatasetError::Shard(ShardError::DamagedFile {
                path: reader.path().to_owned(),
                what: "image shape",
                expected: format!("{expected:?}"),
                found: format!("{:?}", reader.image_shape()),
            }));
        }
        Ok(reader)
    }
}

/// Whether a shard is not there, or is not as long as the manifest has it.
fn is_gone(fault: &ShardError) -> bool {
    matches!(fault, ShardError::MissingFile { .. } | ShardError::DamagedFile { what: "size in bytes", .. })
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
