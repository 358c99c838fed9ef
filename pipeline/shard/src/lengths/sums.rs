//! The side file of the lengths index: a sum of each block of rows, and what the extents of every batch follow from.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use vela_types::{Fingerprint, RecordLengths};

use crate::ShardError;
use crate::manifest::FileEntry;

const MAGIC: [u8; 8] = *b"VELASUM1";
/// Magic, records, rows of a block, groups.
const HEADER_BYTES: usize = 32;
const GROUP_BYTES: usize = 24;
const SUM_BYTES: usize = 32;

/// The records of a set that have equally many images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthGroup {
    /// Images of each of them.
    pub num_images: u32,
    /// Tokens of the longest, an image counted as one.
    pub num_tokens: u32,
    /// How many there are.
    pub num_records: u64,
    /// Index of the longest; of several the first.
    pub longest: u64,
}

/// Groups of a set that is being written.
#[derive(Debug, Default)]
pub(super) struct Grouping {
    groups: BTreeMap<u32, LengthGroup>,
}

impl Grouping {
    /// Takes in record `index`, the next one.
    pub(super) fn add(&mut self, index: u64, lengths: &RecordLengths) {
        let RecordLengths { num_tokens, num_images, .. } = *lengths;
        let empty = LengthGroup { num_images, num_tokens, num_records: 0, longest: index };
        let group = self.groups.entry(num_images).or_insert(empty);
        group.num_records += 1;
        if num_tokens > group.num_tokens {
            (group.longest, group.num_tokens) = (index, num_tokens);
        }
    }
}

/// The side file, verified.
#[derive(Debug)]
pub(super) struct LengthsSums {
    num_records: u64,
    block_rows: u64,
    groups: Vec<LengthGroup>,
    sums: Bytes,
}

impl LengthsSums {
    /// The bytes of the file.
    pub(super) fn encode(num_records: u64, block_rows: u64, grouping: &Grouping, sums: &[u8]) -> Vec<u8> {
        let groups = &grouping.groups;
        let mut content = Vec::with_capacity(HEADER_BYTES + groups.len() * GROUP_BYTES + sums.len());
        content.extend(MAGIC);
        [num_records, block_rows, groups.len() as u64].iter().for_each(|word| content.extend(word.to_le_bytes()));
        for group in groups.values() {
            [group.num_images, group.num_tokens].iter().for_each(|word| content.extend(word.to_le_bytes()));
            [group.num_records, group.longest].iter().for_each(|word| content.extend(word.to_le_bytes()));
        }
        content.extend_from_slice(sums);
        content
    }

    /// Compares `content` with its manifest entry and reads it: the sums of a set of `count` records.
    pub(super) fn open(path: &str, content: Bytes, entry: &FileEntry, count: u64) -> Result<Self, ShardError> {
        let damaged = |what, expected: String, found: String| {
            Err(ShardError::DamagedFile { path: path.to_owned(), what, expected, found })
        };
        let checksum = Fingerprint(*blake3::hash(&content).as_bytes());
        if checksum != entry.checksum {
            return damaged("checksum of the file", entry.checksum.to_string(), checksum.to_string());
        }
        match Self::parse(&content) {
            Some(sums) if sums.num_records == count => Ok(sums),
            Some(sums) => damaged("records", count.to_string(), sums.num_records.to_string()),
            None => damaged("form of the file", "sums of the lengths index".to_owned(), "another".to_owned()),
        }
    }

    /// `None` unless sizes, groups and sums fit one another.
    fn parse(content: &Bytes) -> Option<Self> {
        let (header, rest) = content.split_at_checked(HEADER_BYTES)?;
        let [num_records, block_rows, num_groups] = [8, 16, 24].map(|at| word_at(header, at));
        let group_bytes = usize::try_from(num_groups).ok()?.checked_mul(GROUP_BYTES)?;
        let (groups, sums) = rest.split_at_checked(group_bytes)?;
        let groups: Vec<LengthGroup> = groups.as_chunks::<GROUP_BYTES>().0.iter().map(decode).collect();
        let num_blocks = num_records.checked_div(block_rows)? + u64::from(!num_records.is_multiple_of(block_rows));
        let is_whole = header[..8] == MAGIC
            && usize::try_from(num_blocks).ok()?.checked_mul(SUM_BYTES)? == sums.len()
            && groups.is_sorted_by(|group, next| group.num_images < next.num_images)
            && groups.iter().all(|group| group.longest < num_records)
            && groups.iter().try_fold(0u64, |sum, group| sum.checked_add(group.num_records))? == num_records;
        is_whole.then(|| Self { num_records, block_rows, groups, sums: content.slice_ref(sums) })
    }

    pub(super) fn num_records(&self) -> u64 {
        self.num_records
    }

    /// Rows of a block; the last may have fewer.
    pub(super) fn block_rows(&self) -> u64 {
        self.block_rows
    }

    pub(super) fn groups(&self) -> &[LengthGroup] {
        &self.groups
    }

    pub(super) fn num_blocks(&self) -> u64 {
        (self.sums.len() / SUM_BYTES) as u64
    }

    /// The records of a block.
    pub(super) fn records_of(&self, block: u64) -> Range<u64> {
        let start = block * self.block_rows;
        start..start.saturating_add(self.block_rows).min(self.num_records)
    }

    /// The blake3 of a block's rows.
    pub(super) fn sum(&self, block: u64) -> blake3::Hash {
        blake3::Hash::from_bytes(self.sums.as_chunks::<SUM_BYTES>().0[block as usize])
    }
}

fn word_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]))
}

fn decode(group: &[u8; GROUP_BYTES]) -> LengthGroup {
    let first = word_at(group, 0);
    LengthGroup {
        num_images: first as u32,
        num_tokens: (first >> 32) as u32,
        num_records: word_at(group, 8),
        longest: word_at(group, 16),
    }
}
