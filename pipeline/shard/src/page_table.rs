//! Where each page of each row lies: the offset index of a shard in four bytes per page, read row group by row group.

use std::ops::Range;
use std::sync::OnceLock;

use bytes::Bytes;
use parquet::file::metadata::{
    PageIndexPolicy, ParquetMetaData, ParquetMetaDataBuilder, ParquetMetaDataReader, RowGroupMetaData,
};
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
    footer: ParquetMetaData,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    first_row: u64,
    num_rows: u64,
    /// Read when a row of the group is first asked for: a shard of small rows has a million pages, and whoever opens it may want one row. `None`:
    /// what is there is no shard's.
    columns: OnceLock<Option<[Pages; NUM_COLUMNS]>>,
}

/// The pages of one column chunk, which stand one after the other.
#[derive(Debug)]
struct Pages {
    start: u64,
    /// Where page `r` ends, counted from `start`.
    ends: Box<[u32]>,
}

impl PageTable {
    /// Parses the footer of the file `path`, which was verified before, as its offset index was.
    pub(crate) fn parse(path: &str, file: &Bytes) -> Result<Self, ShardError> {
        let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Skip);
        let footer = reader.parse_and_finish(file).map_err(ShardError::parquet(path))?;
        let image_shape = check_file_metadata(path, &footer)?;
        let mut rows = 0;
        let mut groups = Vec::with_capacity(footer.num_row_groups());
        for group in footer.row_groups() {
            if group.columns().iter().any(|column| column.offset_index_offset().is_none()) {
                return Err(layout_fault(path, "an offset index", "none"));
            }
            let num_rows = group.num_rows().max(0) as u64;
            groups.push(Group { first_row: rows, num_rows, columns: OnceLock::new() });
            rows += num_rows;
        }
        Ok(Self { image_shape, rows, footer, groups })
    }

    /// Rows of the file.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// The bytes of `column`'s page for `row` of `file`.
    pub(crate) fn page(&self, file: &Bytes, row: u64, column: Column) -> Result<Range<usize>, &'static str> {
        let after = self.groups.partition_point(|group| group.first_row <= row);
        let number = after.checked_sub(1).ok_or("there is no such row")?;
        let group = &self.groups[number];
        let columns = group.columns.get_or_init(|| self.read_group(file, number));
        let columns = columns.as_ref().ok_or("the offset index is not that of one page per row")?;
        let Pages { start, ends } = &columns[column as usize];
        let page = (row - group.first_row) as usize;
        let end = *ends.get(page).ok_or("there is no such row")?;
        let begin = page.checked_sub(1).map_or(0, |previous| ends[previous]);
        Ok((start + u64::from(begin)) as usize..(start + u64::from(end)) as usize)
    }

    /// The pages of row group `number`; `None` if they are not laid out as a shard's.
    fn read_group(&self, file: &Bytes, number: usize) -> Option<[Pages; NUM_COLUMNS]> {
        let group: RowGroupMetaData = self.footer.row_group(number).clone();
        let alone = ParquetMetaDataBuilder::new(self.footer.file_metadata().clone()).add_row_group(group).build();
        let mut reader =
            ParquetMetaDataReader::new_with_metadata(alone).with_offset_index_policy(PageIndexPolicy::Required);
        reader.read_page_indexes(file).ok()?;
        let metadata = reader.finish().ok()?;
        let columns = metadata.offset_index()?.first()?;
        group_pages(columns, self.groups[number].num_rows, file.len() as u64)
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

fn group_pages(columns: &[OffsetIndexMetaData], num_rows: u64, file_bytes: u64) -> Option<[Pages; NUM_COLUMNS]> {
    let pages: Option<Vec<Pages>> = columns.iter().map(|column| column_pages(column, num_rows, file_bytes)).collect();
    pages?.try_into().ok()
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
