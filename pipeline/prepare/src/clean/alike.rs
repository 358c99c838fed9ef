//! Records that are like an earlier one, found in bounded memory: keys go to Parquet files by their value, and polars
//! looks for repeats in one file at a time.

use std::fs::File;
use std::path::{Path, PathBuf};

use polars::io::parquet::write::BatchedWriter;
use polars::prelude::{Column, DataFrame, IntoLazy, NamedFrom, ParquetReader, ParquetWriter, SerReader, Series, col};

use super::Likeness;
use super::rules::Cause;
use crate::PrepareError;

/// Files that keys are dealt to: of 10 million records with 18 keys each, 2.8 million keys (48 MB) a file.
const NUM_PARTS: usize = 64;
/// Keys held before they are written: 18 MB.
const MAX_HELD: usize = 1 << 20;

/// Keys of records in order.
pub(super) struct KeyTable {
    folder: tempfile::TempDir,
    writers: Vec<BatchedWriter<File>>,
    held: Vec<(u64, u8, u64)>,
}

impl KeyTable {
    /// An empty table in a folder for temporary files.
    pub(super) fn new() -> Result<Self, PrepareError> {
        let folder = tempfile::tempdir().map_err(PrepareError::io("create a folder in", &std::env::temp_dir()))?;
        Ok(Self { folder, writers: Vec::new(), held: Vec::new() })
    }

    /// Adds a key of record `row`; rows must not fall.
    pub(super) fn add(&mut self, row: u64, likeness: Likeness, key: u64) -> Result<(), PrepareError> {
        self.held.push((row, cause_of(likeness) as u8, key));
        if self.held.len() == MAX_HELD { self.spill() } else { Ok(()) }
    }

    /// Shows every row that shares a key with an earlier one, with the cause; a row may come several times.
    pub(super) fn finish(mut self, visit: &mut dyn FnMut(u64, Cause)) -> Result<(), PrepareError> {
        if self.writers.is_empty() {
            let frame = frame_of(&self.held).and_then(later_ones);
            return show(frame.map_err(PrepareError::parquet(self.folder.path()))?, visit);
        }
        self.spill()?;
        for (part, writer) in self.writers.drain(..).enumerate() {
            let path = part_path(self.folder.path(), part);
            let fault = |fault| PrepareError::parquet(&path)(fault);
            writer.finish().map_err(fault)?;
            let file = File::open(&path).map_err(PrepareError::io("read", &path))?;
            let frame = ParquetReader::new(file).finish().and_then(later_ones).map_err(fault)?;
            show(frame, visit)?;
        }
        Ok(())
    }

    fn spill(&mut self) -> Result<(), PrepareError> {
        let mut parts: Vec<Vec<(u64, u8, u64)>> = vec![Vec::new(); NUM_PARTS];
        for key in self.held.drain(..) {
            parts[(key.2 % NUM_PARTS as u64) as usize].push(key);
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

fn frame_of(keys: &[(u64, u8, u64)]) -> polars::prelude::PolarsResult<DataFrame> {
    let column = |name: &str, values: Vec<u64>| Column::from(Series::new(name.into(), values));
    let rows = column("row", keys.iter().map(|key| key.0).collect());
    let causes = Column::from(Series::new("cause".into(), keys.iter().map(|key| key.1).collect::<Vec<u8>>()));
    DataFrame::new(keys.len(), vec![rows, causes, column("key", keys.iter().map(|key| key.2).collect())])
}

/// The rows whose key stands in an earlier row.
fn later_ones(frame: DataFrame) -> polars::prelude::PolarsResult<DataFrame> {
    frame.lazy().filter(col("key").is_first_distinct().not()).select([col("row"), col("cause")]).collect()
}

fn show(frame: DataFrame, visit: &mut dyn FnMut(u64, Cause)) -> Result<(), PrepareError> {
    let fault = |fault| PrepareError::parquet(Path::new("keys"))(fault);
    let rows = frame.column("row").and_then(|rows| rows.u64().cloned()).map_err(fault)?;
    let causes = frame.column("cause").and_then(|causes| causes.u8().cloned()).map_err(fault)?;
    for (row, cause) in rows.into_no_null_iter().zip(causes.into_no_null_iter()) {
        visit(row, Cause::from_code(cause));
    }
    Ok(())
}
