//! One shard set with random access to its records.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use vela_shard::{LengthsIndex, Manifest, RowBuffer, ShardError, ShardReader, Store};
use vela_types::{Record, RecordLengths};

use crate::DatasetError;
use crate::extent::LengthProfile;

/// An open shard set. Records are named by their index in the manifest's order.
#[derive(Debug)]
pub(crate) struct ShardSet {
    url: String,
    store: Arc<dyn Store>,
    pub(crate) manifest: Manifest,
    lengths: LengthsIndex,
    pub(crate) profile: LengthProfile,
    /// Rows before each shard.
    pub(crate) first_rows: Vec<u64>,
    /// Opened when a record of theirs is first read, and again when a local copy turned out damaged or had to make room.
    readers: Vec<RwLock<Option<Arc<ShardReader>>>>,
}

impl ShardSet {
    /// Verifies the manifest and the lengths index, and that every shard is there in its full size.
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
        let readers = manifest.shards.iter().map(|_| RwLock::default()).collect();
        let profile = LengthProfile::new(&lengths);
        Ok(Self { url: url.to_owned(), store, manifest, lengths, profile, first_rows, readers })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn num_records(&self) -> u64 {
        self.lengths.len()
    }

    /// The lengths of record `index`, without reading it. Panics past the last record.
    pub(crate) fn lengths(&self, index: u64) -> RecordLengths {
        self.lengths.get(index)
    }

    /// Reads record `index`; pixels are slices of the mapped shard.
    pub(crate) fn record(&self, index: u64) -> Result<Record, DatasetError> {
        self.with_reader(index, |reader, row| reader.read(row))
    }

    /// Reads the small fields of record `index` into `buffer` and gives the reader and row to copy its images from.
    pub(crate) fn read_row(&self, index: u64, buffer: &mut RowBuffer) -> Result<(Arc<ShardReader>, u64), DatasetError> {
        self.with_reader(index, |reader, row| reader.read_row(row, buffer).map(|()| (Arc::clone(reader), row)))
    }

    /// Gives the shard of record `index` back to its store if that holds a local copy of it: the next read fetches it
    /// again. False if there is no other copy to hope for.
    pub(crate) fn fetch_again(&self, index: u64) -> Result<bool, DatasetError> {
        let (shard, _) = self.locate(index);
        let has_dropped = self.store.drop_copy(&self.manifest.shards[shard].file_entry())?;
        if has_dropped {
            *self.readers[shard].write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        Ok(has_dropped)
    }

    /// Compares every byte of every shard with the manifest.
    pub(crate) fn verify(&self) -> Result<(), DatasetError> {
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

    /// Lets `read` have record `index`; a damaged local copy is fetched once more before its damage counts.
    fn with_reader<T>(
        &self,
        index: u64,
        mut read: impl FnMut(&Arc<ShardReader>, u64) -> Result<T, ShardError>,
    ) -> Result<T, DatasetError> {
        let (shard, row) = self.locate(index);
        match read(&self.reader(shard)?, row) {
            Err(fault) if fault.is_damage() && self.fetch_again(index)? => Ok(read(&self.reader(shard)?, row)?),
            outcome => Ok(outcome?),
        }
    }

    fn reader(&self, shard: usize) -> Result<Arc<ShardReader>, DatasetError> {
        let slot = &self.readers[shard];
        if let Some(reader) = slot.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            return Ok(Arc::clone(reader));
        }
        let mut slot = slot.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = slot.as_ref() {
            return Ok(Arc::clone(reader));
        }
        let open = || ShardReader::open(self.store.as_ref(), &self.manifest.shards[shard]);
        let reader = match open() {
            // A shard that is open keeps its place in the cache; those that are not being read give it up.
            Err(ShardError::CacheFull { .. }) => {
                self.close_others(shard);
                open()?
            }
            opened => opened?,
        };
        let expected = self.manifest.info().processor.image_shape;
        if reader.image_shape() != expected {
            return Err(DatasetError::Shard(ShardError::DamagedFile {
                path: reader.path().to_owned(),
                what: "image shape",
                expected: format!("{expected:?}"),
                found: format!("{:?}", reader.image_shape()),
            }));
        }
        Ok(Arc::clone(slot.insert(Arc::new(reader))))
    }

    /// Closes all shards but `kept`. Who is reading one still has it, and one that is being opened is passed over.
    fn close_others(&self, kept: usize) {
        let others = self.readers.iter().enumerate().filter(|(shard, _)| *shard != kept);
        for mut slot in others.filter_map(|(_, slot)| slot.try_write().ok()) {
            *slot = None;
        }
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
