//! Where each page of each row lies: the offset index of a shard in four bytes per page.

use std::ops::Range;

use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::page_index::offset_index::OffsetIndexMetaData;
use vela_types::ImageShape;

use crate::ShardError;
use crate::schema::{Column, SCHEMA_VERSION, parse_file_metadata};

const NUM_COLUMNS: usize = Column::ALL.len();

/// Byte ranges of all pages of one file, row by row.
#[derive(Debug)]
pub(crate) struct PageTable {
    pub(crate) image_shape: ImageShape,
    rows: u64,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    first_row: u64,
    columns: [Pages; NUM_COLUMNS],
}

/// The pages of one column chunk, which stand one after the other.
#[derive(Debug)]
struct Pages {
    start: u64,
    /// Where page `r` ends, counted from `start`.
    ends: Box<[u32]>,
}

impl PageTable {
    /// Parses footer and offset index of the file `path`, which were verified before.
    pub(crate) fn parse(path: &str, file: &bytes::Bytes) -> Result<Self, ShardError> {
        let reader = ParquetMetaDataReader::new()
            .with_column_index_policy(PageIndexPolicy::Skip)
            .with_offset_index_policy(PageIndexPolicy::Required);
        let metadata = reader.parse_and_finish(file).map_err(ShardError::parquet(path))?;
        let image_shape = check_file_metadata(path, &metadata)?;
        let offsets = metadata.offset_index().ok_or_else(|| layout_fault(path, "an offset index", "none"))?;
        let mut rows = 0;
        let mut groups = Vec::with_capacity(metadata.num_row_groups());
        for (group, columns) in metadata.row_groups().iter().zip(offsets) {
            let num_rows = group.num_rows().max(0) as u64;
            groups.push(Group { first_row: rows, columns: group_pages(path, columns, num_rows, file.len())? });
            rows += num_rows;
        }
        Ok(Self { image_shape, rows, groups })
    }

    /// Rows of the file.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// The bytes of `column`'s page for `row`; `None` past the last row.
    pub(crate) fn page(&self, row: u64, column: Column) -> Option<Range<usize>> {
        let group = self.groups.get(self.groups.partition_point(|group| group.first_row <= row).checked_sub(1)?)?;
        let Pages { start, ends } = &group.columns[column as usize];
        let page = (row - group.first_row) as usize;
        let end = *ends.get(page)?;
        let begin = page.checked_sub(1).map_or(0, |previous| ends[previous]);
        Some((start + u64::from(begin)) as usize..(start + u64::from(end)) as usize)
    }
}

fn check_file_metadata(path: &str, metadata: &ParquetMetaData) -> Result<ImageShape, ShardError> {
    let file = metadata.file_metadata();
    let entries = file.key_value_metadata().map_or(&[][..], Vec::as_slice);
    let (version, image_shape) =
        parse_file_metadata(entries).ok_or_else(|| layout_fault(path, "Vela's metadata keys", "other keys"))?;
    if version != SCHEMA_VERSION {
        return Err(ShardError::Version { path: path.to_owned(), expected: SCHEMA_VERSION, found: version });
    }
    match file.schema_descr().num_columns() {
        NUM_COLUMNS => Ok(image_shape),
        found => Err(layout_fault(path, &format!("{NUM_COLUMNS} columns"), &found.to_string())),
    }
}

fn group_pages(
    path: &str,
    columns: &[OffsetIndexMetaData],
    num_rows: u64,
    file_bytes: usize,
) -> Result<[Pages; NUM_COLUMNS], ShardError> {
    let pages: Vec<Pages> = columns
        .iter()
        .map(|column| column_pages(column, num_rows, file_bytes as u64))
        .collect::<Option<_>>()
        .ok_or_else(|| layout_fault(path, "one page per row", "another layout"))?;
    pages.try_into().map_err(|_| layout_fault(path, &format!("{NUM_COLUMNS} columns"), "another number"))
}

/// `None` unless page `r` holds row `r` alone and the pages follow one another inside the file.
fn column_pages(column: &OffsetIndexMetaData, num_rows: u64, file_bytes: u64) -> Option<Pages> {
    let locations = column.page_locations();
    if locations.len() as u64 != num_rows {
        return None;
    }
    let start = u64::try_from(locations.first()?.offset).ok()?;
    let mut end = start;
    let mut ends = Vec::with_capacity(locations.len());
    for (row, page) in locations.iter().enumerate() {
        if page.offset as u64 != end || page.first_row_index != row as i64 {
            return None;
        }
        end += u64::try_from(page.compressed_page_size).ok()?;
        ends.push(u32::try_from(end - start).ok()?);
    }
    (end <= file_bytes).then(|| Pages { start, ends: ends.into() })
}

fn layout_fault(path: &str, expected: &str, found: &str) -> ShardError {
    ShardError::DamagedFile {
        path: path.to_owned(),
        what: "the Parquet layout is not a shard's",
        expected: expected.to_owned(),
        found: found.to_owned(),
    }
}
