//! Writing the lengths index and its sums, row after row, in the memory of one block.

use vela_types::{Fingerprint, RecordLengths};

use super::sums::{Grouping, LengthsSums};
use super::{LENGTHS_FILE, LENGTHS_SUMS_FILE, MAGIC, ROW_BYTES};
use crate::ShardError;
use crate::manifest::FileEntry;
use crate::store::{Store, StoreFile, write_whole};

/// Rows of a block. A first touch reads and hashes 96 KiB; the sums of a billion records take 4 MB.
const BLOCK_ROWS: u64 = 8192;

/// The two files of a lengths index, as the manifest names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LengthsFiles {
    /// Twelve bytes per record.
    pub lengths: FileEntry,
    /// The sums of its blocks.
    pub sums: FileEntry,
}

/// A lengths index being written. Dropped before it is published, it leaves nothing behind.
pub struct LengthsWriter {
    path: String,
    file: Box<dyn StoreFile>,
    file_hash: blake3::Hasher,
    block_rows: u64,
    num_records: u64,
    /// Rows that have no sum yet.
    block: Vec<u8>,
    sums: Vec<u8>,
    grouping: Grouping,
}

impl LengthsWriter {
    /// Starts the index of a set in `store`.
    pub fn create(store: &dyn Store) -> Result<Self, ShardError> {
        Self::with_block_rows(store, BLOCK_ROWS)
    }

    pub(super) fn with_block_rows(store: &dyn Store, block_rows: u64) -> Result<Self, ShardError> {
        let mut writer = Self {
            path: store.path(LENGTHS_FILE),
            file: store.create(LENGTHS_FILE)?,
            file_hash: blake3::Hasher::new(),
            block_rows,
            num_records: 0,
            block: Vec::new(),
            sums: Vec::new(),
            grouping: Grouping::default(),
        };
        writer.write(&MAGIC)?;
        Ok(writer)
    }

    /// Adds the next record in the manifest's order.
    pub fn push(&mut self, lengths: &RecordLengths) -> Result<(), ShardError> {
        let RecordLengths { num_tokens, num_label_tokens, num_images } = *lengths;
        [num_tokens, num_label_tokens, num_images].iter().for_each(|word| self.block.extend(word.to_le_bytes()));
        self.grouping.add(self.num_records, lengths);
        self.num_records += 1;
        match self.num_records.is_multiple_of(self.block_rows) {
            true => self.end_block(),
            false => Ok(()),
        }
    }

    /// Publishes both files.
    pub fn finish(self, store: &dyn Store) -> Result<LengthsFiles, ShardError> {
        self.seal()?.publish(store)
    }

    /// The files whole, but not visible yet.
    pub(crate) fn seal(mut self) -> Result<SealedLengths, ShardError> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        let sums = LengthsSums::encode(self.num_records, self.block_rows, &self.grouping, &self.sums);
        let entry = |file: &str, bytes: u64, hash: blake3::Hash| FileEntry {
            file: file.to_owned(),
            bytes,
            checksum: Fingerprint(*hash.as_bytes()),
        };
        let bytes = MAGIC.len() as u64 + self.num_records * ROW_BYTES;
        let files = LengthsFiles {
            lengths: entry(LENGTHS_FILE, bytes, self.file_hash.finalize()),
            sums: entry(LENGTHS_SUMS_FILE, sums.len() as u64, blake3::hash(&sums)),
        };
        Ok(SealedLengths { files, file: self.file, sums })
    }

    fn end_block(&mut self) -> Result<(), ShardError> {
        let block = std::mem::take(&mut self.block);
        self.sums.extend_from_slice(blake3::hash(&block).as_bytes());
        self.write(&block)?;
        self.block = block;
        self.block.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ShardError> {
        self.file_hash.update(bytes);
        self.file.write_all(bytes).map_err(ShardError::write(&self.path))
    }
}

/// A lengths index that is written and not visible.
pub(crate) struct SealedLengths {
    pub(crate) files: LengthsFiles,
    file: Box<dyn StoreFile>,
    sums: Vec<u8>,
}

impl SealedLengths {
    pub(crate) fn publish(self, store: &dyn Store) -> Result<LengthsFiles, ShardError> {
        self.file.publish()?;
        write_whole(store, LENGTHS_SUMS_FILE, &self.sums)?;
        Ok(self.files)
    }
}
