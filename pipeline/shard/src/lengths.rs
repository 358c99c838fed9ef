//! The lengths index: twelve bytes per record, so that planning never opens a shard.

use bytes::Bytes;
use vela_types::{Fingerprint, RecordLengths};

use crate::ShardError;
use crate::manifest::FileEntry;
use crate::store::{Store, open_mapped, write_whole};

/// Name of the index beside the manifest.
pub const LENGTHS_FILE: &str = "lengths.bin";

const MAGIC: [u8; 8] = *b"VELALEN1";
const HEADER_BYTES: usize = 16;
const ROW_BYTES: usize = 12;

/// [`RecordLengths`] of every record in the manifest's order, mapped.
#[derive(Clone, Debug)]
pub struct LengthsIndex {
    rows: Bytes,
}

impl LengthsIndex {
    /// Writes the index and gives its manifest entry.
    pub(crate) fn write(
        store: &dyn Store,
        count: u64,
        lengths: impl Iterator<Item = RecordLengths>,
    ) -> Result<FileEntry, ShardError> {
        let mut content = Vec::with_capacity(HEADER_BYTES + count as usize * ROW_BYTES);
        content.extend(MAGIC);
        content.extend(count.to_le_bytes());
        for row in lengths {
            [row.num_tokens, row.num_label_tokens, row.num_images].iter().for_each(|n| content.extend(n.to_le_bytes()));
        }
        write_whole(store, LENGTHS_FILE, &content)?;
        let checksum = Fingerprint(*blake3::hash(&content).as_bytes());
        Ok(FileEntry { file: LENGTHS_FILE.to_owned(), bytes: content.len() as u64, checksum })
    }

    /// Maps the index that `entry` names, verifies it, and checks that it has `count` rows.
    pub fn open(store: &dyn Store, entry: &FileEntry, count: u64) -> Result<Self, ShardError> {
        let path = store.path(&entry.file);
        open_mapped(store, entry, |content| Self::parse(&path, &content, entry, count))
    }

    fn parse(path: &str, content: &Bytes, entry: &FileEntry, count: u64) -> Result<Self, ShardError> {
        let damaged = |what, expected: String, found: String| {
            Err(ShardError::DamagedFile { path: path.to_owned(), what, expected, found })
        };
        let checksum = Fingerprint(*blake3::hash(content).as_bytes());
        if checksum != entry.checksum {
            return damaged("checksum of the lengths index", entry.checksum.to_string(), checksum.to_string());
        }
        if content.get(..8) != Some(&MAGIC[..]) {
            return damaged("first bytes", "`VELALEN1`".to_owned(), "others".to_owned());
        }
        let expected = (count as usize).checked_mul(ROW_BYTES).and_then(|bytes| bytes.checked_add(HEADER_BYTES));
        if expected != Some(content.len()) || content.get(8..16) != Some(&count.to_le_bytes()[..]) {
            let rows = (content.len().saturating_sub(HEADER_BYTES)) / ROW_BYTES;
            return damaged("rows of the lengths index", count.to_string(), rows.to_string());
        }
        Ok(Self { rows: content.slice(HEADER_BYTES..) })
    }

    /// Records of the set.
    pub fn len(&self) -> u64 {
        (self.rows.len() / ROW_BYTES) as u64
    }

    /// True for a set without records.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lengths of record `index` in the manifest's order. Panics past the end, as a slice does.
    pub fn get(&self, index: u64) -> RecordLengths {
        let start = index as usize * ROW_BYTES;
        let words = self.rows[start..start + ROW_BYTES].as_chunks::<4>().0;
        let [num_tokens, num_label_tokens, num_images] = [0, 1, 2].map(|word: usize| u32::from_le_bytes(words[word]));
        RecordLengths { num_tokens, num_label_tokens, num_images }
    }
}
