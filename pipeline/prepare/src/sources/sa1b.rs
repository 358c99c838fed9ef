//! SA1B-Dense-Caption: Parquet with `url` and `cap_seg`, the `repr` of a Python dict with `global_caption` (text) and
//! `local_caption` (text or list of texts).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polars::prelude::{DataFrame, DataType, ParquetReader, SerReader, StringChunked};
use vela_types::Fingerprint;

use super::images::ImageListing;
use super::{Emit, Entry, Fault, ImageFolder, RawCaption, RawContent, RawFile, Source};
use crate::PrepareError;
use crate::python_literal::{self, Literal};

const URL: &str = "url";
const CAPTIONS: &str = "cap_seg";
/// First and last bytes of a Parquet file.
const MAGIC: &[u8; 4] = b"PAR1";
/// Rows read at once; captions are about 2 KB each.
const SLICE_ROWS: u64 = 1024;

/// One Parquet file.
pub(super) struct Sa1bFile {
    path: PathBuf,
    stem: String,
    images: Arc<ImageFolder>,
    num_rows: u64,
    listing: Fingerprint,
}

impl Sa1bFile {
    pub(super) fn open(path: &Path, stem: String, images: Arc<ImageFolder>) -> Result<Self, PrepareError> {
        let file = File::open(path).map_err(PrepareError::io("read", path))?;
        check_format(path, &file)?;
        let mut reader = ParquetReader::new(file);
        let schema = reader.schema().map_err(PrepareError::parquet(path))?;
        for column in [URL, CAPTIONS] {
            if !schema.contains(column) {
                let found: Vec<String> = schema.iter_names().map(|name| format!("`{name}`")).collect();
                return Err(PrepareError::MissingColumn { path: path.to_owned(), column, found: found.join(", ") });
            }
        }
        let num_rows = reader.num_rows().map_err(PrepareError::parquet(path))? as u64;
        let mut this = Self { path: path.to_owned(), stem, images, num_rows, listing: Fingerprint::default() };
        if this.images.is_beside_data() {
            this.listing = this.list_images()?;
        }
        Ok(this)
    }

    fn list_images(&self) -> Result<Fingerprint, PrepareError> {
        let mut listing = ImageListing::default();
        for first in (0..self.num_rows).step_by(SLICE_ROWS as usize) {
            let frame = self.slice(first, SLICE_ROWS.min(self.num_rows - first), &[URL])?;
            self.texts(&frame, URL)?
                .iter()
                .flatten()
                .for_each(|url| self.images.note(&mut listing, url, self.folder()));
        }
        Ok(listing.fingerprint())
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    fn slice(&self, first: u64, num: u64, columns: &[&str]) -> Result<DataFrame, PrepareError> {
        let file = File::open(&self.path).map_err(PrepareError::io("read", &self.path))?;
        ParquetReader::new(file)
            .with_slice(Some((first as usize, num as usize)))
            .with_columns(Some(columns.iter().map(|column| (*column).to_owned()).collect()))
            .finish()
            .map_err(PrepareError::parquet(&self.path))
    }

    fn texts<'a>(&self, frame: &'a DataFrame, column: &'static str) -> Result<&'a StringChunked, PrepareError> {
        let values = frame.column(column).map_err(PrepareError::parquet(&self.path))?;
        match values.dtype() {
            DataType::String => values.str().map_err(PrepareError::parquet(&self.path)),
            other => Err(PrepareError::MissingColumn {
                path: self.path.clone(),
                column,
                found: format!("`{column}` of type {other}"),
            }),
        }
    }

    fn row(&self, record: u64, url: Option<&str>, captions: Option<&str>) -> Result<RawContent, Fault> {
        let id = format!("sa1b/{}/{record}", self.stem);
        let content = || {
            let url = url.ok_or_else(|| null_column(URL))?;
            let (global, locals) = parse_captions(captions.ok_or_else(|| null_column(CAPTIONS))?)?;
            let image = self.images.resolve(url, self.folder())?;
            Ok(RawContent::Caption(RawCaption { id: id.clone(), source: "sa1b", image, global, locals }))
        };
        content().map_err(|fault: Fault| fault.of(&id))
    }
}

impl RawFile for Sa1bFile {
    fn num_records(&self) -> u64 {
        self.num_rows
    }

    fn images(&self) -> Fingerprint {
        self.listing
    }

    fn read(&self, records: Range<u64>, emit: &mut Emit<'_>) -> Result<(), PrepareError> {
        let mut first = records.start;
        while first < records.end {
            let num = SLICE_ROWS.min(records.end - first);
            let frame = self.slice(first, num, &[URL, CAPTIONS])?;
            let (urls, captions) = (self.texts(&frame, URL)?, self.texts(&frame, CAPTIONS)?);
            for (record, (url, captions)) in (first..).zip(urls.iter().zip(captions.iter())) {
                let content = self.row(record, url, captions);
                if emit(Entry { record, content }) == ControlFlow::Break(()) {
                    return Ok(());
                }
            }
            first += num;
        }
        Ok(())
    }
}

/// Refuses what does not begin and end as Parquet does, before a library guesses at it.
fn check_format(path: &Path, mut file: &File) -> Result<(), PrepareError> {
    let (mut head, mut tail) = ([0; 4], [0; 4]);
    let mut read = |at: SeekFrom, out: &mut [u8]| file.seek(at).and_then(|_| file.read_exact(out)).is_ok();
    let found = match (read(SeekFrom::End(-4), &mut tail), read(SeekFrom::Start(0), &mut head)) {
        (true, true) if head == *MAGIC && tail == *MAGIC => return Ok(()),
        (true, true) if head == *MAGIC => "without its end",
        _ => "of another format",
    };
    let (source_name, expected) = (Source::Sa1b.as_str(), "a Parquet file");
    Err(PrepareError::WrongFormat { path: path.to_owned(), source_name, expected, found })
}

fn null_column(column: &str) -> Fault {
    Fault::new("missing_field", format!("column `{column}`: expected a text, found null"))
}

/// The global caption and the local ones of a `cap_seg` cell. JSON is taken where the text starts like a JSON object.
fn parse_captions(cell: &str) -> Result<(String, Vec<String>), Fault> {
    let broken = |detail: String| Fault::new("broken_cap_seg", detail);
    let literal = match python_literal::parse(cell) {
        Ok(literal) => literal,
        Err(fault) => json_literal(cell).ok_or_else(|| broken(format!("column `cap_seg`: {fault}")))?,
    };
    if !matches!(literal, Literal::Dict(_)) {
        return Err(broken("column `cap_seg`: expected a dict".to_owned()));
    }
    let global = match literal.get("global_caption") {
        Some(Literal::Text(text)) => text.trim().to_owned(),
        None | Some(Literal::None) => String::new(),
        Some(_) => return Err(broken("column `cap_seg`, key `global_caption`: expected a text".to_owned())),
    };
    if global.is_empty() {
        return Err(Fault::new("empty_caption", "column `cap_seg`: `global_caption` holds no text"));
    }
    let locals = match literal.get("local_caption") {
        Some(Literal::Text(text)) => vec![text.as_str()],
        Some(Literal::List(items)) => items
            .iter()
            .filter(|item| **item != Literal::None)
            .map(|item| {
                item.as_str().ok_or_else(|| broken("column `cap_seg`, key `local_caption`: expected texts".into()))
            })
            .collect::<Result<_, _>>()?,
        None | Some(Literal::None) => vec![],
        Some(_) => return Err(broken("column `cap_seg`, key `local_caption`: expected a list or a text".to_owned())),
    };
    let locals = locals.iter().map(|text| text.trim()).filter(|text| !text.is_empty()).map(str::to_owned).collect();
    Ok((global, locals))
}

fn json_literal(text: &str) -> Option<Literal> {
    serde_json::from_str::<serde_json::Value>(text).ok().map(from_json)
}

fn from_json(value: serde_json::Value) -> Literal {
    match value {
        serde_json::Value::Null => Literal::None,
        serde_json::Value::Bool(value) => Literal::Bool(value),
        serde_json::Value::Number(value) => match value.as_i64() {
            Some(value) => Literal::Int(value),
            None => Literal::Float(value.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Literal::Text(text),
        serde_json::Value::Array(items) => Literal::List(items.into_iter().map(from_json).collect()),
        serde_json::Value::Object(items) => {
            Literal::Dict(items.into_iter().map(|(key, value)| (Literal::Text(key), from_json(value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_read_from_python_and_from_json() {
        let expected = ("一只猫说'喵'。".to_owned(), vec!["一只猫".to_owned(), "草地".to_owned()]);
        let python =
            r#"{'global_caption': " 一只猫说'喵'。\n", 'local_caption': ['一只猫', None, ' ', '草地'], 'n': 1}"#;
        assert_eq!(parse_captions(python), Ok(expected.clone()));
        let json = r#"{"global_caption": "一只猫说'喵'。", "local_caption": ["一只猫", null, "草地"], "x": true}"#;
        assert_eq!(parse_captions(json), Ok(expected));
        let text = r"{'global_caption': '全景', 'local_caption': '一段'}";
        assert_eq!(parse_captions(text), Ok(("全景".into(), vec!["一段".into()])));
        assert_eq!(parse_captions("{'global_caption': '全景'}"), Ok(("全景".into(), vec![])));
    }

    #[test]
    fn broken_and_empty_cells_have_their_causes() {
        let broken = [
            "",
            "{'global_caption': '全",
            "['a']",
            "{'global_caption': 1}",
            "{'global_caption': 'a', 'local_caption': 3}",
        ];
        for cell in broken {
            assert_eq!(parse_captions(cell).expect_err(cell).cause, "broken_cap_seg", "{cell}");
        }
        for cell in ["{}", "{'global_caption': ' \\n'}", "{'global_caption': None}", r#"{"global_caption": null}"#] {
            assert_eq!(parse_captions(cell).expect_err(cell).cause, "empty_caption", "{cell}");
        }
    }
}
