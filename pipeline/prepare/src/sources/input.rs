//! The files of one input: found and scanned before anything is built.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vela_types::Fingerprint;

use super::walk::walk;
use super::{ImageFolder, RawFile, Source, coco, llava, sa1b};
use crate::PrepareError;

/// One raw file.
pub struct InputFile {
    /// Path below the input folder, `/` between parts; the file's name if the input is that file.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// The scanned file.
    pub records: Box<dyn RawFile>,
}

impl InputFile {
    /// Size and blake3 of the content.
    pub fn hash(&self) -> Result<(u64, Fingerprint), PrepareError> {
        let file = File::open(&self.path).map_err(PrepareError::io("read", &self.path))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file).map_err(PrepareError::io("read", &self.path))?;
        Ok((hasher.count(), Fingerprint(*hasher.finalize().as_bytes())))
    }
}

/// All raw files of one input, in the order of their names.
pub struct InputSet {
    /// The files.
    pub files: Vec<InputFile>,
}

impl InputSet {
    /// Finds and scans the files of `source` at `input`, a file or a folder searched to the bottom; nothing below `output` is
    /// an input.
    pub fn open(
        source: Source,
        input: &Path,
        images: &Arc<ImageFolder>,
        output: Option<&Path>,
    ) -> Result<Self, PrepareError> {
        let (endings, expected): (&[&str], _) = match source {
            Source::Sa1b => (&["parquet"], "a Parquet file, or a folder of them"),
            Source::Llava => (&["json", "jsonl", "ndjson"], "JSON or JSON lines with `conversations`"),
            Source::Coco => (&["json"], "a COCO captions JSON file, or a folder of them"),
        };
        let mut paths = Vec::new();
        let data = fs::metadata(input).map_err(PrepareError::io("read", input))?;
        match data.is_dir() {
            true => walk(input, output, &mut |path, _| paths.extend(has_ending(&path, endings).then_some(path)))?,
            false => paths.push(input.to_owned()),
        }
        paths.sort();
        if paths.is_empty() {
            return Err(PrepareError::NoFiles { path: input.to_owned(), expected });
        }
        let files = paths.iter().map(|path| open_file(source, input, path, images)).collect::<Result<_, _>>()?;
        let set = Self { files };
        match set.num_records() > 0 && set.files.iter().all(|file| file.records.num_recognized() == 0) {
            true => Err(PrepareError::WrongFormat {
                path: input.to_owned(),
                source_name: source.as_str(),
                expected,
                found: "without a single record of that format",
            }),
            false => Ok(set),
        }
    }

    /// Records of all files.
    pub fn num_records(&self) -> u64 {
        self.files.iter().map(|file| file.records.num_records()).sum()
    }
}

fn open_file(source: Source, input: &Path, path: &Path, images: &Arc<ImageFolder>) -> Result<InputFile, PrepareError> {
    let name = match path.strip_prefix(input) {
        Ok(below) if below.as_os_str().is_empty() => {
            path.file_name().unwrap_or_default().to_string_lossy().into_owned()
        }
        Ok(below) => below.to_string_lossy().replace('\\', "/"),
        Err(_) => path.to_string_lossy().into_owned(),
    };
    let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem).to_owned();
    let images = Arc::clone(images);
    let records: Box<dyn RawFile> = match source {
        Source::Sa1b => Box::new(sa1b::Sa1bFile::open(path, stem, images)?),
        Source::Llava => Box::new(llava::LlavaFile::open(path, stem, images)?),
        Source::Coco => Box::new(coco::CocoFile::open(path, images)?),
    };
    Ok(InputFile { name, path: path.to_owned(), records })
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| endings.contains(&ending.as_str()))
}
