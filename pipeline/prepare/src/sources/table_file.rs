//! A Parquet file of records, read by polars a few rows at a time.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use polars::prelude::{AnyValue, DataFrame, ParquetReader, SerReader};
use vela_types::Fingerprint;

use super::fields::Place;
use super::images::ImageListing;
use super::{Emit, Entry, Fault, RawContent, RawFile, SourceContext};
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

    /// Columns that say which images a row names beside the file; none if images are in the file.
    fn image_columns(&self) -> Vec<&str> {
        vec![]
    }

    /// Names of the images of a row that holds the image columns.
    fn image_names(&self, _row: &Row<'_>) -> Vec<String> {
        vec![]
    }

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
    listing: Fingerprint,
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
        let columns = format.required().into_iter().chain(optional).map(str::to_owned).collect();
        let num_rows = reader.num_rows().map_err(PrepareError::parquet(path))? as u64;
        let path = path.to_owned();
        let mut this = Self { path, context, format, num_rows, columns, listing: Fingerprint::default() };
        this.listing = this.list_images()?;
        Ok(this)
    }

    fn list_images(&self) -> Result<Fingerprint, PrepareError> {
        let mut listing = ImageListing::default();
        let columns: Vec<String> = self.format.image_columns().into_iter().map(str::to_owned).collect();
        if !columns.is_empty() && self.context.images.is_beside_data() {
            self.for_each_row(0..self.num_rows, &columns, &mut |_, row| {
                let names = self.format.image_names(&row);
                names.iter().for_each(|name| self.context.images.note(&mut listing, name, self.folder()));
                ControlFlow::Continue(())
            })?;
        }
        Ok(listing.fingerprint())
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// Shows `rows` in order. Memory holds one slice, whose rows are chosen so that it stays near [`SLICE_BYTES`].
    fn for_each_row(
        &self,
        rows: Range<u64>,
        columns: &[String],
        visit: &mut dyn FnMut(u64, Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), PrepareError> {
        let (mut first, mut num_rows) = (rows.start, FIRST_ROWS);
        while first < rows.end {
            let num = num_rows.min(rows.end - first);
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
