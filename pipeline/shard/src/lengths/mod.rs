//! The lengths index: twelve bytes per record, so that planning never opens a shard.
//!
//! Opening it costs nothing per record: a side file, verified whole, holds a sum of each block of rows, and a block is compared with
//! its sum when it is first touched.

mod sums;
mod writer;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use vela_types::{Fingerprint, RecordLengths};

use crate::ShardError;
use crate::manifest::FileEntry;
use crate::store::{Store, open_mapped};

pub use sums::LengthGroup;
use sums::LengthsSums;
pub use writer::{LengthsFiles, LengthsWriter};

/// Name of the index beside the manifest.
pub const LENGTHS_FILE: &str = "lengths.bin";
/// Name of the sums of its blocks.
pub const LENGTHS_SUMS_FILE: &str = "lengths.sums";

const MAGIC: [u8; 8] = *b"VELALEN2";
const ROW_BYTES: u64 = 12;

/// [`RecordLengths`] of every record in the manifest's order, mapped. Every method may be called from many threads at once.
#[derive(Debug)]
pub struct LengthsIndex {
    path: String,
    checksum: Fingerprint,
    /// The whole file.
    content: Bytes,
    sums: LengthsSums,
    /// A bit for each block that was found whole. Rows never change, so whoever sees a bit needs nothing else of who set it.
    verified: Vec<AtomicU64>,
}

impl LengthsIndex {
    /// Maps the index of `count` records that `files` names. Verifies its sums and its size; the rows are verified as they are read.
    pub fn open(store: &dyn Store, files: &LengthsFiles, count: u64) -> Result<Self, ShardError> {
        let sums_path = store.path(&files.sums.file);
        let sums =
            open_mapped(store, &files.sums, |content| LengthsSums::open(&sums_path, content, &files.sums, count))?;
        let path = store.path(&files.lengths.file);
        let content = open_mapped(store, &files.lengths, |content| {
            check_extent(&path, &content, &files.lengths, count).map(|()| content)
        })?;
        let verified = (0..sums.num_blocks().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { path, checksum: files.lengths.checksum, content, sums, verified })
    }

    /// Records of the set.
    pub fn len(&self) -> u64 {
        self.sums.num_records()
    }

    /// True for a set without records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The records of the set grouped by their number of images, fewest first.
    pub fn groups(&self) -> &[LengthGroup] {
        self.sums.groups()
    }

    /// The lengths of record `index` in the manifest's order.
    ///
    /// # Errors
    /// If the block that holds them is damaged, by its number, or there is no such record.
    pub fn get(&self, index: u64) -> Result<RecordLengths, ShardError> {
        let rows = self.len();
        if index >= rows {
            return Err(ShardError::NoSuchRow { path: self.path.clone(), row: index, rows });
        }
        self.touch(index / self.sums.block_rows())?;
        Ok(decode_row(&self.content[row_bytes(index..index + 1)]))
    }

    /// Compares every byte of the index with its checksum, and every block with its sum.
    pub fn verify(&self) -> Result<(), ShardError> {
        let found = Fingerprint(*blake3::hash(&self.content).as_bytes());
        if found != self.checksum {
            let (path, what) = (self.path.clone(), "checksum of the lengths index");
            return Err(ShardError::DamagedFile {
                path,
                what,
                expected: self.checksum.to_string(),
                found: found.to_string(),
            });
        }
        (0..self.sums.num_blocks()).try_for_each(|block| self.verify_block(block))
    }

    /// Verifies a block unless it was found whole before. Threads that touch it at the same time may all verify it.
    fn touch(&self, block: u64) -> Result<(), ShardError> {
        let (word, bit) = (&self.verified[(block / 64) as usize], 1 << (block % 64));
        if word.load(Ordering::Relaxed) & bit == 0 {
            self.verify_block(block)?;
            word.fetch_or(bit, Ordering::Relaxed);
        }
        Ok(())
    }

    fn verify_block(&self, block: u64) -> Result<(), ShardError> {
        let records = self.sums.records_of(block);
        let found = blake3::hash(&self.content[row_bytes(records.clone())]);
        let expected = self.sums.sum(block);
        match found == expected {
            true => Ok(()),
            false => Err(ShardError::DamagedLengths {
                path: self.path.clone(),
                block,
                records,
                expected: expected.to_hex().to_string(),
                found: found.to_hex().to_string(),
            }),
        }
    }
}

/// Where the rows of `records` stand in the file.
fn row_bytes(records: Range<u64>) -> Range<usize> {
    let start = |record: u64| MAGIC.len() + (record * ROW_BYTES) as usize;
    start(records.start)..start(records.end)
}

fn decode_row(bytes: &[u8]) -> RecordLengths {
    let words = bytes.as_chunks::<4>().0;
    let [num_tokens, num_label_tokens, num_images] = [0, 1, 2].map(|word: usize| u32::from_le_bytes(words[word]));
    RecordLengths { num_tokens, num_label_tokens, num_images }
}

/// The file must have the magic, the size of `count` rows, and the size of its entry.
fn check_extent(path: &str, content: &Bytes, entry: &FileEntry, count: u64) -> Result<(), ShardError> {
    let damaged = |what, expected: String, found: String| {
        Err(ShardError::DamagedFile { path: path.to_owned(), what, expected, found })
    };
    if content.get(..MAGIC.len()) != Some(&MAGIC[..]) {
        return damaged("first bytes", "`VELALEN2`".to_owned(), "others".to_owned());
    }
    let expected = count.checked_mul(ROW_BYTES).and_then(|bytes| bytes.checked_add(MAGIC.len() as u64));
    if expected != Some(content.len() as u64) || expected != Some(entry.bytes) {
        let expected = format!("{} of {count} records", expected.unwrap_or(u64::MAX));
        return damaged("size in bytes", expected, format!("{} ({} in the manifest)", content.len(), entry.bytes));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
