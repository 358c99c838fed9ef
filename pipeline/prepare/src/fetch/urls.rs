//! Where the URLs of a data set stand.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use polars::prelude::{DataFrame, DataType, ParquetReader, SerReader, StringChunked};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vela_runtime::clap;

use crate::PrepareError;
use crate::input_path::{check_content, check_input};
use crate::json_records::read_records;
use crate::sources::walk;

/// Rows of a Parquet file read at once; only URLs and names are read, some 200 bytes each.
const SLICE_ROWS: u64 = 1 << 16;

/// No URL is longer.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// One image to fetch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUrl {
    /// Where it is; empty if its record has none.
    pub url: String,
    /// What the data set calls its file, if that is not the URL's own path.
    pub name: Option<String>,
}

/// Takes URLs in order; `Break` ends the reading early.
pub type EmitUrl<'a> = dyn FnMut(ImageUrl) -> ControlFlow<()> + 'a;

/// A list of images in a fixed order.
pub trait ImageUrls: Send + Sync {
    /// Shows every URL to `emit`: the same ones in the same order each time.
    ///
    /// # Errors
    /// If a file cannot be read or is of another format.
    fn read(&self, emit: &mut EmitUrl<'_>) -> Result<(), PrepareError>;
}

impl ImageUrls for Vec<ImageUrl> {
    fn read(&self, emit: &mut EmitUrl<'_>) -> Result<(), PrepareError> {
        let _ = self.iter().try_for_each(|image| emit(image.clone()));
        Ok(())
    }
}

/// A data set that names its images by URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum UrlSource {
    /// SA1B-Dense-Caption: Parquet with `url`.
    Sa1b,
    /// SA1B-Paired-Captions-Images: Parquet with `opensource_url`.
    Sa1bPaired,
    /// COCO annotations: `images[].coco_url`, or `flickr_url` where it is missing, kept as `file_name`.
    Coco,
    /// AI Challenger captions: a JSON list with `url`, kept as `image_id`.
    AiChallenger,
    /// Any list: text with one URL per line; Parquet, a JSON list or JSON lines with `url` or `URL`.
    Urls,
}

/// The fields that a source keeps its URLs in.
struct Layout {
    endings: &'static [&'static str],
    expected: &'static str,
    /// The key of the list in a JSON object.
    key: Option<&'static str>,
    urls: Vec<String>,
    name: Option<String>,
}

impl UrlSource {
    /// The name in flags and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sa1b => "sa1b",
            Self::Sa1bPaired => "sa1b-paired",
            Self::Coco => "coco",
            Self::AiChallenger => "ai-challenger",
            Self::Urls => "urls",
        }
    }

    fn layout(self) -> Layout {
        const PARQUET: &[&str] = &["parquet"];
        const JSON: &[&str] = &["json", "jsonl", "ndjson"];
        const ANY: &[&str] = &["txt", "parquet", "json", "jsonl", "ndjson"];
        let (endings, expected, key, urls, name): (_, _, _, &[&str], _) = match self {
            Self::Sa1b => (PARQUET, "a Parquet file, or a folder of them", None, &["url"], None),
            Self::Sa1bPaired => (PARQUET, "a Parquet file, or a folder of them", None, &["opensource_url"], None),
            Self::Coco => {
                let expected = "a COCO annotation file, or a folder of them";
                (JSON, expected, Some("images"), &["coco_url", "flickr_url"], Some("file_name"))
            }
            Self::AiChallenger => (JSON, "a JSON list of captions", None, &["url"], Some("image_id")),
            Self::Urls => (ANY, "a list of URLs as text, Parquet or JSON", None, &["url", "URL"], None),
        };
        let urls = urls.iter().map(|name| (*name).to_owned()).collect();
        Layout { endings, expected, key, urls, name: name.map(str::to_owned) }
    }
}

/// The URLs of the files of one input.
pub struct UrlList {
    layout: Layout,
    source: UrlSource,
    files: Vec<PathBuf>,
}

impl UrlList {
    /// The list of `source` at `input`, a file or a folder. `column` and `name_column` replace the fields that URLs and file
    /// names are read from.
    ///
    /// # Errors
    /// If there is no such file, or no record in it.
    pub fn open(
        source: UrlSource,
        input: &Path,
        column: Option<String>,
        name_column: Option<String>,
    ) -> Result<Self, PrepareError> {
        let mut layout = source.layout();
        if let Some(column) = column {
            layout.urls = vec![column];
        }
        layout.name = name_column.or(layout.name);
        let mut files = Vec::new();
        check_input(input)?;
        match input.is_dir() {
            true => walk(input, None, &mut |path, _| {
                if layout.endings.contains(&ending(&path).as_str()) {
                    files.push(path);
                }
            })?,
            false => files.push(input.to_owned()),
        }
        match files.is_empty() {
            true => return Err(PrepareError::NoFiles { path: input.to_owned(), expected: layout.expected }),
            false => check_content(input, &files)?,
        }
        let (this, mut is_empty) = (Self { layout, source, files }, true);
        this.read(&mut |_| {
            is_empty = false;
            ControlFlow::Break(())
        })?;
        match is_empty {
            true => Err(PrepareError::NoRecords { path: input.to_owned() }),
            false => Ok(this),
        }
    }

    fn read_file(&self, path: &Path, emit: &mut EmitUrl<'_>) -> Result<(), PrepareError> {
        match ending(path).as_str() {
            "parquet" => self.read_parquet(path, emit),
            "json" | "jsonl" | "ndjson" => {
                read_records(path, self.layout.key, &mut |record| emit(self.of_record(&record.unwrap_or_default())))
            }
            _ if self.source == UrlSource::Urls => read_text(path, emit).map_err(PrepareError::io("read", path)),
            _ => Err(self.wrong_format(path, "of another ending")),
        }
    }

    fn wrong_format(&self, path: &Path, found: &'static str) -> PrepareError {
        let (source_name, expected) = (self.source.as_str(), self.layout.expected);
        PrepareError::WrongFormat { path: path.to_owned(), source_name, expected, found }
    }

    fn of_record(&self, record: &Value) -> ImageUrl {
        let text = |key: &String| record[key.as_str()].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let url = self.layout.urls.iter().find_map(text).unwrap_or_default();
        ImageUrl { url, name: self.layout.name.as_ref().and_then(text) }
    }

    fn read_parquet(&self, path: &Path, emit: &mut EmitUrl<'_>) -> Result<(), PrepareError> {
        let open = || File::open(path).map(ParquetReader::new).map_err(PrepareError::io("read", path));
        let mut reader = open()?;
        let schema = reader.schema().map_err(PrepareError::parquet(path))?;
        let missing = |column: &str| PrepareError::MissingField {
            path: path.to_owned(),
            field: column.to_owned(),
            found: schema.iter_names().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
        };
        let url = self.layout.urls.iter().find(|column| schema.contains(column.as_str()));
        let url = url.ok_or_else(|| missing(&self.layout.urls[0]))?;
        let name = self.layout.name.as_ref();
        if let Some(name) = name.filter(|name| !schema.contains(name.as_str())) {
            return Err(missing(name));
        }
        let columns: Vec<String> = [Some(url), name].into_iter().flatten().cloned().collect();
        let num_rows = reader.num_rows().map_err(PrepareError::parquet(path))? as u64;
        for first in (0..num_rows).step_by(SLICE_ROWS as usize) {
            let num = SLICE_ROWS.min(num_rows - first);
            let slice = open()?.with_slice(Some((first as usize, num as usize))).with_columns(Some(columns.clone()));
            let frame = slice.finish().map_err(PrepareError::parquet(path))?;
            let names = name.map(|name| texts(path, &frame, name)).transpose()?;
            for (row, url) in texts(path, &frame, url)?.iter().enumerate() {
                let name = names.and_then(|names| names.get(row)).map(str::to_owned);
                if emit(ImageUrl { url: url.unwrap_or_default().to_owned(), name }).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl ImageUrls for UrlList {
    fn read(&self, emit: &mut EmitUrl<'_>) -> Result<(), PrepareError> {
        let mut has_stopped = false;
        for path in &self.files {
            let mut pass_on = |image| {
                let flow = emit(image);
                has_stopped |= flow.is_break();
                flow
            };
            self.read_file(path, &mut pass_on)?;
            if has_stopped {
                break;
            }
        }
        Ok(())
    }
}

fn texts<'a>(path: &Path, frame: &'a DataFrame, column: &str) -> Result<&'a StringChunked, PrepareError> {
    let values = frame.column(column).map_err(PrepareError::parquet(path))?;
    match values.dtype() {
        DataType::String => values.str().map_err(PrepareError::parquet(path)),
        other => Err(PrepareError::MissingField {
            path: path.to_owned(),
            field: column.to_owned(),
            found: format!("`{column}` of type {other}"),
        }),
    }
}

/// One URL per line; blank lines are none, and longer ones than any URL are records without one.
fn read_text(path: &Path, emit: &mut EmitUrl<'_>) -> std::io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    while (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? > 0 {
        let is_whole = line.ends_with(b"\n") || (line.len() as u64) < MAX_LINE_BYTES;
        if !is_whole {
            reader.skip_until(b'\n')?;
        }
        let url = String::from_utf8_lossy(line.trim_ascii()).trim_start_matches('\u{feff}').to_owned();
        let is_blank = is_whole && url.is_empty();
        let url = if is_whole { url } else { String::new() };
        if !is_blank && emit(ImageUrl { url, name: None }).is_break() {
            break;
        }
        line.clear();
    }
    Ok(())
}

fn ending(path: &Path) -> String {
    path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(source: UrlSource, path: &Path, column: Option<&str>, name: Option<&str>) -> Vec<(String, Option<String>)> {
        let list = UrlList::open(source, path, column.map(str::to_owned), name.map(str::to_owned)).expect("opens");
        let mut urls = Vec::new();
        list.read(&mut |image| {
            urls.push((image.url, image.name));
            ControlFlow::Continue(())
        })
        .expect("reads");
        urls
    }

    fn named(url: &str, name: &str) -> (String, Option<String>) {
        (url.to_owned(), Some(name.to_owned()))
    }

    #[test]
    fn json_sources_name_the_file_as_their_records_do() {
        let root = tempfile::tempdir().expect("temp folder");
        let path = root.path().join("a.json");
        fs::write(&path, r#"{"info":{},"images":[{"id":1,"file_name":"1.jpg","coco_url":"http://c/1.jpg","flickr_url":"http://f/x.jpg"},{"file_name":"2.jpg","flickr_url":"http://f/y.jpg"}],"annotations":[]}"#).expect("file");
        let expected = [named("http://c/1.jpg", "1.jpg"), named("http://f/y.jpg", "2.jpg")];
        assert_eq!(read(UrlSource::Coco, &path, None, None), expected);
        assert_eq!(read(UrlSource::Coco, &path, Some("flickr_url"), None)[0], named("http://f/x.jpg", "1.jpg"));
        fs::write(&path, r#"[{"url":"http://m/Img_n.jpg","image_id":"8f.jpg","caption":["a"]},{"image_id":"9f.jpg"}]"#)
            .expect("file");
        let expected = [named("http://m/Img_n.jpg", "8f.jpg"), named("", "9f.jpg")];
        assert_eq!(read(UrlSource::AiChallenger, &path, None, None), expected);
    }

    #[test]
    fn plain_lists_are_text_or_json_lines_in_a_file_or_a_folder() {
        let root = tempfile::tempdir().expect("temp folder");
        fs::write(root.path().join("a.txt"), "\u{feff}http://h/1.jpg\r\n\n  http://h/2.jpg").expect("file");
        fs::write(root.path().join("b.jsonl"), "{\"URL\":\"http://h/3.jpg\"}\n{broken\n").expect("file");
        fs::write(root.path().join("ignored.md"), "http://h/4.jpg").expect("file");
        let urls = read(UrlSource::Urls, root.path(), None, None);
        let urls: Vec<&str> = urls.iter().map(|(url, _)| url.as_str()).collect();
        assert_eq!(urls, ["http://h/1.jpg", "http://h/2.jpg", "http://h/3.jpg", ""]);
    }

    #[test]
    fn a_line_that_is_longer_than_any_url_is_one_record_without_one() {
        let root = tempfile::tempdir().expect("temp folder");
        let path = root.path().join("a.txt");
        let url = |len: usize| format!("http://h/{}", "x".repeat(len - 9));
        let longest = MAX_LINE_BYTES as usize - 1;
        let lines =
            [url(longest), url(longest + 1), url(3 << 20), " ".repeat(longest + 1), "http://h/1.jpg".to_owned()];
        fs::write(&path, lines.join("\n")).expect("file");
        let urls = read(UrlSource::Urls, &path, None, None);
        let lens: Vec<usize> = urls.iter().map(|(url, _)| url.len()).collect();
        assert_eq!(lens, [longest, 0, 0, 0, 14]);
    }

    #[test]
    fn a_wrong_file_is_refused() {
        let root = tempfile::tempdir().expect("temp folder");
        let path = root.path().join("a.txt");
        assert!(UrlList::open(UrlSource::Sa1b, &path, None, None).err().expect("absent").is_usage());
        assert!(UrlList::open(UrlSource::Sa1b, root.path(), None, None).err().expect("empty").is_usage());
        fs::write(&path, "http://h/1.jpg").expect("file");
        assert!(UrlList::open(UrlSource::Sa1b, &path, None, None).err().expect("text").is_usage());
        fs::write(&path, "\n\n").expect("file");
        let fault = UrlList::open(UrlSource::Urls, &path, None, None).err().expect("no URL");
        assert!(matches!(fault, PrepareError::NoRecords { .. }), "{fault}");
    }
}
