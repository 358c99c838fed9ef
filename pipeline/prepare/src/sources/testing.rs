//! What the tests of several sources share.

use std::ops::ControlFlow;
use std::sync::Arc;

use polars::prelude::{Column, DataFrame, ParquetWriter};
use vela_types::Sample;

use super::json_file::{JsonFile, JsonFormat};
use super::table_file::{TableFile, TableFormat};
use super::{Entry, ImageFolder, RawContent, RawFile, SourceContext, SourceOptions};
use crate::PrepareError;

impl SourceContext {
    pub(super) fn for_test(stem: &str) -> Self {
        let images = Arc::new(ImageFolder::open(None, None).expect("no folder"));
        Self { below: stem.to_owned(), stem: stem.to_owned(), images, options: SourceOptions::default(), seed: 0 }
    }
}

/// All entries of a file; reading from the middle must give the same.
pub(super) fn read_all(file: &dyn RawFile) -> Result<Vec<Entry>, PrepareError> {
    let read = |first: u64| {
        let mut entries = Vec::new();
        file.read(first..file.num_records(), &mut |entry| {
            entries.push(entry);
            ControlFlow::Continue(())
        })?;
        Ok::<_, PrepareError>(entries)
    };
    let entries = read(0)?;
    assert_eq!(entries.len() as u64, file.num_records());
    for first in 1..entries.len() {
        assert_eq!(read(first as u64)?, entries[first..], "from entry {first}");
    }
    Ok(entries)
}

/// All entries of a JSON file with this content.
pub(super) fn read_json(name: &str, content: &[u8], format: impl JsonFormat) -> Result<Vec<Entry>, PrepareError> {
    let folder = tempfile::tempdir().expect("temp folder");
    let path = folder.path().join(name);
    std::fs::write(&path, content).expect("file");
    read_all(&JsonFile::open(&path, SourceContext::for_test("set"), format)?)
}

/// All entries of a Parquet file with these columns.
pub(super) fn read_table(columns: Vec<Column>, format: impl TableFormat) -> Result<Vec<Entry>, PrepareError> {
    let folder = tempfile::tempdir().expect("temp folder");
    let path = folder.path().join("rows.parquet");
    let height = columns[0].len();
    let mut frame = DataFrame::new(height, columns).expect("columns of one length");
    let file = std::fs::File::create(&path).expect("file");
    ParquetWriter::new(file).finish(&mut frame).expect("written");
    read_all(&TableFile::open(&path, SourceContext::for_test("rows"), format)?)
}

/// The dialogues of entries that must all be sound.
pub(super) fn samples(entries: Vec<Entry>) -> Vec<Sample> {
    let sample = |entry: Entry| match entry.content {
        Ok(RawContent::Dialogue(sample)) => sample,
        other => panic!("{other:?}"),
    };
    entries.into_iter().map(sample).collect()
}

/// The cause of each entry, empty for sound ones.
pub(super) fn causes(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.content.as_ref().err().map_or("", |fault| fault.cause)).collect()
}

/// Whatever was read: every entry has an id or a cause with words, and no panic was caught.
pub(super) fn check_named(entries: &[Entry]) {
    for entry in entries {
        match &entry.content {
            Ok(content) => assert!(content.id().contains('/'), "{entry:?}"),
            Err(fault) => {
                let is_name = |name: &str| {
                    !name.is_empty()
                        && name.bytes().all(|next| next == b'_' || next.is_ascii_lowercase() || next.is_ascii_digit())
                };
                assert!(is_name(fault.cause) && !fault.detail.is_empty(), "{entry:?}");
            }
        }
    }
}

/// A PNG file of one colour.
pub(super) fn png(width: u32, height: u32, rgb: [u8; 3]) -> Vec<u8> {
    vela_processor::codec::encode_png(&rgb.repeat((width * height) as usize), width, height)
}
