//! A Parquet file of records, read by polars a few rows at a time.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use polars::io::parquet::metadata::FileMetadata;
use polars::prelude::{AnyValue, DataFrame, ParquetReader, SerReader};
use vela_types::Fingerprint;

use super::fields::Place;
use super::images::ImageListing;
use super::{Emit, Entry, Fault, RawContent, RawFile, SourceContext, cells};
use crate::PrepareError;

/// First and last bytes of a Parquet file.
const MAGIC: &[u8; 4] = b"PAR1";
/// Rows of the first slice; the next ones are sized by what it held.
const FIRST_ROWS: u64 = 32;
/// Most rows of a slice.
const MAX_ROWS: u64 = 4096;
/// Bytes that a slice should hold.
const SLICE_BYTES: u64 = 16 << 20;

/// How the rows of a format are read.
pub(super) trait TableFormat: Send + Sync {
    /// The source's name.
    const SOURCE: &'static str;

    /// Columns that a file must have.
    fn required(&self) -> Vec<&str>;

    /// Columns that are read where a file has them.
    fn optional(&self) -> Vec<&str> {
        vec![]
    }

    /// Columns whose cells hold images or name them, as [`cells::images`] takes them.
    fn image_columns(&self) -> Vec<&str>;

    /// The sample of a row.
    fn content(&self, row: &Row<'_>, place: &Place<'_>) -> Result<RawContent, Fault>;
}

/// One row of a slice.
pub(super) struct Row<'a> {
    frame: &'a DataFrame,
    at: usize,
}

impl<'a> Row<'a> {
    /// The value of a column; null if the file lacks it.
    pub(super) fn value(&self, column: &str) -> AnyValue<'a> {
        let value = self.frame.column(column).ok().and_then(|values| values.get(self.at).ok());
        value.unwrap_or(AnyValue::Null)
    }

    /// A text that must be there.
    pub(super) fn text(&self, column: &str) -> Result<String, Fault> {
        match self.value(column) {
            AnyValue::String(text) => Ok(text.to_owned()),
            AnyValue::StringOwned(text) => Ok(text.to_string()),
            AnyValue::Null => {
                Err(Fault::new("missing_field", format!("column `{column}`: expected a text, found null")))
            }
            other => {
                let detail = format!("column `{column}`: expected a text, found {}", other.dtype());
                Err(Fault::new("wrong_type", detail))
            }
        }
    }
}

/// One scanned file.
pub(super) struct TableFile<F> {
    path: PathBuf,
    context: SourceContext,
    format: F,
    num_rows: u64,
    /// Columns of the format that the file has.
    columns: Vec<String>,
    /// Those of them that may name images beside the file.
    image_columns: Vec<String>,
    groups: Vec<RowGroup>,
    listing: Fingerprint,
}

/// What the footer says of a row group.
struct RowGroup {
    /// The first row behind it.
    end: u64,
    /// Bytes of a row in the columns of the format, uncompressed, on average.
    row_bytes: u64,
}

/// The row groups of a file with the bytes of `columns`.
fn row_groups(footer: &FileMetadata, columns: &[String]) -> Vec<RowGroup> {
    let mut end = 0;
    let groups = footer.row_groups.iter().map(|group| {
        let chunks = columns.iter().filter_map(|column| group.columns_under_root_iter(column)).flatten();
        let num_bytes: u64 = chunks.map(|chunk| chunk.uncompressed_size().max(0) as u64).sum();
        let num_rows = group.num_rows() as u64;
        end += num_rows;
        RowGroup { end, row_bytes: num_bytes / num_rows.max(1) }
    });
    groups.collect()
}

impl<F: TableFormat> TableFile<F> {
    pub(super) fn open(path: &Path, context: SourceContext, format: F) -> Result<Self, PrepareError> {
        let file = File::open(path).map_err(PrepareError::io("read", path))?;
        check_format(path, F::SOURCE, &file)?;
        let mut reader = ParquetReader::new(file);
        let schema = reader.schema().map_err(PrepareError::parquet(path))?;
        if let Some(column) = format.required().into_iter().find(|column| !schema.contains(column)) {
            let found: Vec<String> = schema.iter_names().map(|name| format!("`{name}`")).collect();
            let (column, found) = (column.to_owned(), found.join(", "));
            return Err(PrepareError::MissingColumn { path: path.to_owned(), column, found });
        }
        let optional = format.optional().into_iter().filter(|column| schema.contains(column));
        let columns: Vec<String> = format.required().into_iter().chain(optional).map(str::to_owned).collect();
        let may_name = |column: &&str| schema.get(column).is_some_and(|field| cells::may_name_images(&field.dtype));
        let image_columns = format.image_columns().into_iter().filter(may_name).map(str::to_owned).collect();
        let num_rows = reader.num_rows().map_err(PrepareError::parquet(path))? as u64;
        let groups = row_groups(reader.get_metadata().map_err(PrepareError::parquet(path))?, &columns);
        let (path, listing) = (path.to_owned(), Fingerprint::default());
        let mut this = Self { path, context, format, num_rows, columns, image_columns, groups, listing };
        this.listing = this.list_images()?;
        Ok(this)
    }

    fn list_images(&self) -> Result<Fingerprint, PrepareError> {
        let mut listing = ImageListing::default();
        let columns = &self.image_columns;
        if !columns.is_empty() && self.context.images.is_beside_data() {
            self.for_each_row(0..self.num_rows, columns, &mut |_, row| {
                let names = columns.iter().flat_map(|column| cells::image_names(&row.value(column)));
                names.for_each(|name| self.context.images.note(&mut listing, &name, self.folder()));
                ControlFlow::Continue(())
            })?;
        }
        Ok(listing.fingerprint())
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// Shows `rows` in order. Memory holds one slice, whose rows are chosen so that it stays near [`SLICE_BYTES`]: by the size of
    /// those before it and by the average of its row group, which it never leaves.
    fn for_each_row(
        &self,
        rows: Range<u64>,
        columns: &[String],
        visit: &mut dyn FnMut(u64, Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), PrepareError> {
        let (mut first, mut num_rows) = (rows.start, FIRST_ROWS);
        while first < rows.end {
            let num = self.most_rows(first).min(num_rows).min(rows.end - first);
            let frame = self.slice(first, num, columns)?;
            for at in 0..frame.height() {
                if visit(first + at as u64, Row { frame: &frame, at }) == ControlFlow::Break(()) {
                    return Ok(());
                }
            }
            let row_bytes = (frame.estimated_size() as u64 / num).max(1);
            num_rows = (SLICE_BYTES / row_bytes).clamp(1, MAX_ROWS);
            first += num;
        }
        Ok(())
    }

    /// How many rows from `first` on may be read together by what the footer says.
    fn most_rows(&self, first: u64) -> u64 {
        let group = self.groups.get(self.groups.partition_point(|group| group.end <= first));
        group.map_or(1, |group| (SLICE_BYTES / group.row_bytes.max(1)).clamp(1, group.end - first))
    }

    fn slice(&self, first: u64, num: u64, columns: &[String]) -> Result<DataFrame, PrepareError> {
        let file = File::open(&self.path).map_err(PrepareError::io("read", &self.path))?;
        ParquetReader::new(file)
            .with_slice(Some((first as usize, num as usize)))
            .with_columns(Some(columns.to_vec()))
            .finish()
            .map_err(PrepareError::parquet(&self.path))
    }
}

impl<F: TableFormat> RawFile for TableFile<F> {
    fn num_records(&self) -> u64 {
        self.num_rows
    }

    fn images(&self) -> Fingerprint {
        self.listing
    }

    fn read(&self, rows: Range<u64>, emit: &mut Emit<'_>) -> Result<(), PrepareError> {
        self.for_each_row(rows, &self.columns, &mut |record, row| {
            let id = format!("{}/{}/{record}", F::SOURCE, self.context.stem);
            let place = Place { id: &id, images: &self.context.images, folder: self.folder() };
            emit(Entry { record, content: self.format.content(&row, &place).map_err(|fault| fault.of(&id)) })
        })
    }
}

/// Refuses what does not begin and end as Parquet does, before a library guesses at it.
fn check_format(path: &Path, source_name: &'static str, mut file: &File) -> Result<(), PrepareError> {
    let (mut head, mut tail) = ([0; 4], [0; 4]);
    let mut read = |at: SeekFrom, out: &mut [u8]| file.seek(at).and_then(|_| file.read_exact(out)).is_ok();
    let found = match (read(SeekFrom::End(-4), &mut tail), read(SeekFrom::Start(0), &mut head)) {
        (true, true) if head == *MAGIC && tail == *MAGIC => return Ok(()),
        (true, true) if head == *MAGIC => "without its end",
        _ => "of another format",
    };
    Err(PrepareError::WrongFormat { path: path.to_owned(), source_name, expected: "a Parquet file", found })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use polars::prelude::{Column, DataType, IntoColumn, IntoSeries, NamedFrom, ParquetWriter, Series, StructChunked};

    use super::*;
    use crate::sources::finevision::Finevision;
    use crate::sources::minimind::Minimind;
    use crate::sources::sharegpt::{Columns, Sharegpt};

    fn write(path: &Path, columns: Vec<Column>, group_rows: usize) {
        let mut frame = DataFrame::new(columns[0].len(), columns).expect("columns of one length");
        let file = File::create(path).expect("file");
        ParquetWriter::new(file).with_row_group_size(Some(group_rows)).finish(&mut frame).expect("written");
    }

    /// The hash of the images that a file of one row names, before and after `cat.png` comes to lie beside it.
    fn listings(columns: Vec<Column>, format: impl Fn() -> Box<dyn Fn(&Path) -> Fingerprint>) -> [Fingerprint; 2] {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("rows.parquet");
        write(&path, columns, 8);
        let first = format()(&path);
        fs::write(folder.path().join("cat.png"), b"x").expect("file");
        [first, format()(&path)]
    }

    fn opened<F: TableFormat>(path: &Path, format: F) -> Fingerprint {
        TableFile::open(path, SourceContext::for_test("rows"), format).expect("opens").images()
    }

    #[test]
    fn images_that_cells_name_beside_the_file_are_part_of_the_listing() {
        let text = |name: &str| Series::new(name.into(), ["[]"]).into_column();
        let names = Series::new("".into(), ["cat.png"]);
        let fields = [
            Series::new("bytes".into(), [None::<&[u8]>]).cast(&DataType::Binary).expect("a column of bytes"),
            Series::new("path".into(), ["cat.png"]),
        ];
        let files = StructChunked::from_series("".into(), 1, fields.iter()).expect("one row").into_series();
        for cell in [names.clone(), files] {
            let of_list = |name: &str| Series::new(name.into(), [cell.clone()]).into_column();
            let of_one = |name: &str| cell.clone().with_name(name.into()).into_column();
            let [before, after] = listings(vec![text("texts"), of_list("images")], || {
                Box::new(|path| opened(path, Finevision::new(&[])))
            });
            assert_ne!(before, after, "finevision, {}", cell.dtype());
            let [before, after] = listings(vec![text("messages"), of_list("images")], || {
                Box::new(|path| opened(path, Sharegpt(Columns::default())))
            });
            assert_ne!(before, after, "sharegpt, {}", cell.dtype());
            let [before, after] = listings(vec![text("conversations"), of_one("image_bytes")], || {
                Box::new(|path| opened(path, Minimind))
            });
            assert_ne!(before, after, "minimind, {}", cell.dtype());
        }
        let bytes = Series::new("image_bytes".into(), [b"cat.png".as_slice()]).into_column();
        let [before, after] = listings(vec![text("conversations"), bytes], || Box::new(|path| opened(path, Minimind)));
        assert_eq!(before, after, "bytes name no file");
    }

    #[test]
    fn photos_after_many_short_rows_are_not_loaded_together() {
        let folder = tempfile::tempdir().expect("temp folder");
        let path = folder.path().join("rows.parquet");
        let photo = |at: usize| format!("{at} {}", "x".repeat(100_000));
        let texts: Vec<String> = (0..1400).map(|at| if at < 1000 { at.to_string() } else { photo(at) }).collect();
        write(&path, vec![Series::new("conversations".into(), &texts).into_column()], 1000);
        let file = TableFile::open(&path, SourceContext::for_test("rows"), Minimind).expect("opens");
        let (mut seen, mut most) = (Vec::new(), 0);
        let mut visit = |_: u64, row: Row<'_>| {
            most = most.max(row.frame.estimated_size() as u64);
            seen.push(row.text("conversations").expect("a text"));
            ControlFlow::Continue(())
        };
        file.for_each_row(0..1400, &file.columns, &mut visit).expect("reads");
        assert!(seen == texts, "every row once, in order");
        // The estimate counts whole buffers; all photos together are 40 MB.
        assert!(most <= 2 * SLICE_BYTES, "{most}");
    }
}
