//! Records that are like an earlier one that stays, found in bounded memory: keys go to Parquet files by their value, and
//! repeats are looked for in one file at a time.

use std::fs::File;
use std::path::{Path, PathBuf};

use polars::io::parquet::write::BatchedWriter;
use polars::prelude::{Column, DataFrame, NamedFrom, ParquetReader, ParquetWriter, SerReader, Series};

use super::Likeness;
use super::rules::Cause;
use crate::PrepareError;

/// Files that keys are dealt to: of 10 million records with 18 keys each, 2.8 million keys (67 MB in memory) a file.
const NUM_PARTS: usize = 64;
/// Keys held before they are written: 24 MB.
const MAX_HELD: usize = 1 << 20;

/// A key of a row, and the code of the cause if another row has it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    key: u64,
    row: u64,
    cause: u8,
}

/// Keys of records in order.
pub(super) struct KeyTable {
    folder: tempfile::TempDir,
    writers: Vec<BatchedWriter<File>>,
    held: Vec<Key>,
    max_held: usize,
}

impl KeyTable {
    /// An empty table in a folder for temporary files.
    pub(super) fn new() -> Result<Self, PrepareError> {
        let folder = tempfile::tempdir().map_err(PrepareError::io("create a folder in", &std::env::temp_dir()))?;
        Ok(Self { folder, writers: Vec::new(), held: Vec::new(), max_held: MAX_HELD })
    }

    /// Adds a key of record `row`; rows must not fall.
    pub(super) fn add(&mut self, row: u64, likeness: Likeness, key: u64) -> Result<(), PrepareError> {
        self.held.push(Key { key, row, cause: cause_of(likeness) as u8 });
        if self.held.len() == self.max_held { self.spill() } else { Ok(()) }
    }

    /// What becomes of rows `0..num_rows`, decided in their order: 0, or the code of the cause if the row shares a key with an
    /// earlier one that stays. Of several causes the first in order of the codes.
    ///
    /// Each round takes the rows that the one before has dropped for dropped; a row is right once all earlier ones are, so that
    /// the rounds are as many as the longest chain of rows of which each is like the one before alone.
    pub(super) fn finish(mut self, num_rows: usize) -> Result<Vec<u8>, PrepareError> {
        if !self.writers.is_empty() {
            self.spill()?;
        }
        keep_shared(&mut self.held);
        let parts = self.close_parts()?;
        let mut codes = vec![0; num_rows];
        loop {
            let mut next = vec![0; num_rows];
            mark_later_ones(&self.held, &codes, &mut next);
            for part in &parts {
                mark_later_ones(&read_part(part)?, &codes, &mut next);
            }
            if next == codes {
                return Ok(codes);
            }
            codes = next;
        }
    }

    /// Writes each part again, sorted and without the keys that a single row has.
    fn close_parts(&mut self) -> Result<Vec<PathBuf>, PrepareError> {
        let mut paths = Vec::new();
        for (part, writer) in self.writers.drain(..).enumerate() {
            let path = part_path(self.folder.path(), part);
            writer.finish().map_err(PrepareError::parquet(&path))?;
            let mut keys = read_part(&path)?;
            keep_shared(&mut keys);
            let mut frame = frame_of(&keys).map_err(PrepareError::parquet(&path))?;
            let file = File::create(&path).map_err(PrepareError::io("create", &path))?;
            ParquetWriter::new(file).finish(&mut frame).map_err(PrepareError::parquet(&path))?;
            paths.push(path);
        }
        Ok(paths)
    }

    fn spill(&mut self) -> Result<(), PrepareError> {
        let mut parts: Vec<Vec<Key>> = vec![Vec::new(); NUM_PARTS];
        for key in self.held.drain(..) {
            parts[(key.key % NUM_PARTS as u64) as usize].push(key);
        }
        for (part, keys) in parts.into_iter().enumerate() {
            let path = part_path(self.folder.path(), part);
            let frame = frame_of(&keys).map_err(PrepareError::parquet(&path))?;
            if self.writers.len() == part {
                let file = File::create(&path).map_err(PrepareError::io("create", &path))?;
                let writer = ParquetWriter::new(file).batched(frame.schema());
                self.writers.push(writer.map_err(PrepareError::parquet(&path))?);
            }
            self.writers[part].write_batch(&frame).map_err(PrepareError::parquet(&path))?;
        }
        Ok(())
    }
}

fn part_path(folder: &Path, part: usize) -> PathBuf {
    folder.join(format!("keys-{part:02}.parquet"))
}

/// Why a record that is like an earlier one is left out.
fn cause_of(likeness: Likeness) -> Cause {
    match likeness {
        Likeness::Text => Cause::DuplicateText,
        Likeness::NearText => Cause::NearDuplicate,
        Likeness::Image => Cause::DuplicateImage,
    }
}

fn frame_of(keys: &[Key]) -> polars::prelude::PolarsResult<DataFrame> {
    let column = |name: &str, values: Vec<u64>| Column::from(Series::new(name.into(), values));
    let rows = column("row", keys.iter().map(|key| key.row).collect());
    let causes = Column::from(Series::new("cause".into(), keys.iter().map(|key| key.cause).collect::<Vec<u8>>()));
    DataFrame::new(keys.len(), vec![rows, causes, column("key", keys.iter().map(|key| key.key).collect())])
}

/// Sorts keys and leaves those that several rows have.
fn keep_shared(keys: &mut Vec<Key>) {
    keys.sort_unstable();
    let shared = keys.chunk_by(|left, right| left.key == right.key).filter(|group| group.len() > 1);
    *keys = shared.flatten().copied().collect();
}

/// Marks in `next` every row that shares one of the sorted `keys` with an earlier row that has no code in `codes`.
fn mark_later_ones(keys: &[Key], codes: &[u8], next: &mut [u8]) {
    for group in keys.chunk_by(|left, right| left.key == right.key) {
        let Some(first) = group.iter().find(|key| codes[key.row as usize] == 0) else { continue };
        for later in group.iter().filter(|key| key.row > first.row) {
            let code = &mut next[later.row as usize];
            *code = if *code == 0 { later.cause } else { later.cause.min(*code) };
        }
    }
}

fn read_part(path: &Path) -> Result<Vec<Key>, PrepareError> {
    let fault = |fault| PrepareError::parquet(path)(fault);
    let file = File::open(path).map_err(PrepareError::io("read", path))?;
    let frame = ParquetReader::new(file).finish().map_err(fault)?;
    let numbers = |name: &str| frame.column(name).and_then(|column| column.u64()).map_err(fault);
    let causes = frame.column("cause").and_then(|causes| causes.u8()).map_err(fault)?;
    let places = numbers("key")?.into_no_null_iter().zip(numbers("row")?.into_no_null_iter());
    Ok(places.zip(causes.into_no_null_iter()).map(|((key, row), cause)| Key { key, row, cause }).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Row after row, as the words say it.
    fn one_by_one(rows: &[Vec<(Likeness, u64)>]) -> Vec<u8> {
        let mut of_kept = HashSet::new();
        let decide = |row: &Vec<(Likeness, u64)>| {
            let causes =
                row.iter().filter(|(_, key)| of_kept.contains(key)).map(|(likeness, _)| cause_of(*likeness) as u8);
            let code = causes.min().unwrap_or(0);
            if code == 0 {
                of_kept.extend(row.iter().map(|(_, key)| *key));
            }
            code
        };
        rows.iter().map(decide).collect()
    }

    fn decided(rows: &[Vec<(Likeness, u64)>], max_held: usize) -> Vec<u8> {
        let mut table = KeyTable { max_held, ..KeyTable::new().expect("a folder") };
        for (row, keys) in (0..).zip(rows) {
            for (likeness, key) in keys {
                table.add(row, *likeness, *key).expect("added");
            }
        }
        table.finish(rows.len()).expect("decided")
    }

    #[test]
    fn a_row_that_is_dropped_drops_no_other() {
        let near = |keys: &[u64]| keys.iter().map(|key| (Likeness::NearText, *key)).collect::<Vec<_>>();
        let near_code = Cause::NearDuplicate as u8;
        let chain = [near(&[1, 2]), near(&[2, 3]), near(&[3, 4]), near(&[4])];
        assert_eq!(decided(&chain, 100), [0, near_code, 0, near_code]);
        let both = [
            vec![(Likeness::Text, 1), (Likeness::Image, 11)],
            vec![(Likeness::Text, 2), (Likeness::Image, 11)],
            vec![(Likeness::Text, 2), (Likeness::Image, 13)],
        ];
        assert_eq!(decided(&both, 100), [0, Cause::DuplicateImage as u8, 0]);
    }

    proptest! {
        // Each case writes 128 files.
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn rows_are_decided_in_their_order_however_the_keys_are_kept(
            rows in proptest::collection::vec(proptest::collection::vec((0u8..3, 0u64..12), 0..4), 0..40),
        ) {
            let of = |kind: u8| [Likeness::Text, Likeness::NearText, Likeness::Image][usize::from(kind)];
            // The hashes of two kinds of likeness have nothing to do with one another.
            let row = |keys: &Vec<(u8, u64)>| keys.iter().map(|(kind, key)| (of(*kind), u64::from(*kind) * 1000 + key)).collect();
            let rows: Vec<Vec<(Likeness, u64)>> = rows.iter().map(row).collect();
            let expected = one_by_one(&rows);
            prop_assert_eq!(&decided(&rows, 1 << 20), &expected);
            prop_assert_eq!(&decided(&rows, 7), &expected);
        }
    }
}
