//! The files of one input: found and scanned before anything is built.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use vela_types::Fingerprint;

use super::json_file::JsonFile;
use super::table_file::TableFile;
use super::walk::walk;
use super::{
    CaptionChoice, ImageFolder, RawFile, Source, SourceContext, SourceOptions, ai_challenger, coco, cogvlm, finevision,
    llava, minimind, openai, sa1b, scienceqa, sharegpt, vlmeval, webdataset,
};
use crate::PrepareError;
use crate::build::InputConfig;
use crate::input_path::{check_content, check_input};

/// One raw file.
pub struct InputFile {
    /// Path below the input folder, `/` between parts; the file's name if the input is that file.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What the ids of its samples begin with: the source, the input's own name if it has one, and `name` without its ending.
    pub id_prefix: String,
    /// The scanned file.
    pub records: Box<dyn RawFile>,
}

impl InputFile {
    /// Size and blake3 of the content, of a folder that counts as one file those of all its files.
    pub fn hash(&self) -> Result<(u64, Fingerprint), PrepareError> {
        if self.path.is_dir() {
            return cogvlm::hash_labels(&self.path);
        }
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
    /// What a registry beside the files says of how they are read: part of what a build is, as nothing else covers it.
    pub registered: Option<Value>,
}

impl InputSet {
    /// Finds and scans the raw files of `config`, in a file or a folder searched to the bottom; nothing below `output` is an
    /// input. `seed` is that of draws among a record's captions. Refuses an input without a single record.
    pub fn open(
        config: &InputConfig,
        images: &Arc<ImageFolder>,
        seed: u64,
        output: Option<&Path>,
    ) -> Result<Self, PrepareError> {
        let InputConfig { source, input, options, name: input_name, .. } = config;
        let format = InputFormat::of(*source, input, options)?;
        let paths = format.find(output)?;
        check_content(input, &paths)?;
        let open = |path: &PathBuf| {
            let name = file_name(&format.root, path);
            let below = match path.is_dir() {
                true => name.clone(),
                false => name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem).to_owned(),
            };
            let stem = input_name.as_ref().map_or_else(|| below.clone(), |own| format!("{own}/{below}"));
            let id_prefix = format!("{}/{stem}", source.as_str());
            let context = SourceContext { below, stem, images: Arc::clone(images), options: options.clone(), seed };
            Ok(InputFile { name, path: path.clone(), id_prefix, records: format.open_file(path, context)? })
        };
        let registered = options.dataset.is_some().then(|| json!(format.columns));
        let set = Self { files: paths.iter().map(open).collect::<Result<_, PrepareError>>()?, registered };
        check_ids_apart(set.files.iter())?;
        match () {
            () if set.num_records() == 0 => Err(PrepareError::NoRecords { path: input.to_owned() }),
            () if set.files.iter().all(|file| file.records.num_recognized() == 0) => Err(PrepareError::WrongFormat {
                path: input.to_owned(),
                source_name: source.as_str(),
                expected: format.expected,
                found: "without a single record of that format",
            }),
            () => Ok(set),
        }
    }

    /// Records of all files.
    pub fn num_records(&self) -> u64 {
        self.files.iter().map(|file| file.records.num_records()).sum()
    }
}

/// Refuses two files whose samples would have the same ids.
pub(crate) fn check_ids_apart<'a>(files: impl Iterator<Item = &'a InputFile>) -> Result<(), PrepareError> {
    let mut first_of: HashMap<&str, &InputFile> = HashMap::new();
    for file in files {
        if let Some(first) = first_of.insert(&file.id_prefix, file) {
            let (first, second) = (first.path.clone(), file.path.clone());
            return Err(PrepareError::SameIds { first, second, prefix: file.id_prefix.clone() });
        }
    }
    Ok(())
}

/// Which files an input consists of and how they are read.
struct InputFormat {
    source: Source,
    /// The file or folder to look in.
    root: PathBuf,
    endings: &'static [&'static str],
    expected: &'static str,
    /// Field names of a `sharegpt` data set.
    columns: sharegpt::Columns,
}

const JSON: &[&str] = &["json", "jsonl", "ndjson"];
const PARQUET: &[&str] = &["parquet"];
const JSON_OR_PARQUET: &[&str] = &["json", "jsonl", "ndjson", "parquet"];

impl InputFormat {
    fn of(source: Source, input: &Path, options: &SourceOptions) -> Result<Self, PrepareError> {
        let (endings, expected): (&[&str], _) = match source {
            Source::Sa1b | Source::Sa1bPaired => (PARQUET, "a Parquet file, or a folder of them"),
            Source::Llava => (JSON, "JSON or JSON lines with `conversations`"),
            Source::AiChallenger => (JSON, "a JSON list with `image_id` and `caption`"),
            Source::Coco => (&["json"], "a COCO captions or instances JSON file, or a folder of them"),
            Source::Minimind => (JSON_OR_PARQUET, "JSON lines or Parquet with `conversations`"),
            Source::Sharegpt => (JSON_OR_PARQUET, "JSON, JSON lines or Parquet with `messages`"),
            Source::Openai => (JSON, "JSON lines with `messages`"),
            Source::Finevision => (PARQUET, "a Parquet file with `texts`, or a folder of them"),
            Source::Cogvlm => (&[], "folders `labels`, `labels_zh` or `labels_en` of JSON files, beside `images`"),
            Source::Scienceqa => (&[], "`problems.json`, or a folder with it"),
            // Compressed ones are found so that they are refused by name.
            Source::Webdataset => (&["tar", "tar.gz", "tgz"], "a tar file with images and texts, or a folder of them"),
            Source::VlmevalTsv => {
                (&["tsv"], "tab-separated text with `question` and `answer`, or a folder of such files")
            }
        };
        let (root, columns) = match &options.dataset {
            Some(dataset) => sharegpt::registered(input, dataset)?,
            None => (input.to_owned(), sharegpt::Columns::default()),
        };
        Ok(Self { source, root, endings, expected, columns })
    }

    /// The files in the order of their names.
    fn find(&self, output: Option<&Path>) -> Result<Vec<PathBuf>, PrepareError> {
        let root = &self.root;
        check_input(root)?;
        let mut paths = Vec::new();
        match fs::metadata(root).map_err(PrepareError::io("read", root))?.is_dir() {
            true if self.source == Source::Cogvlm => paths = cogvlm::label_folders(root, output)?,
            true => walk(root, output, &mut |path, _| paths.extend(self.is_wanted(&path).then_some(path)))?,
            false if self.source == Source::Cogvlm => {}
            false => paths.push(root.clone()),
        }
        paths.sort();
        match paths.is_empty() {
            true => Err(PrepareError::NoFiles { path: root.clone(), expected: self.expected }),
            false => Ok(paths),
        }
    }

    fn is_wanted(&self, path: &Path) -> bool {
        match self.source {
            Source::Scienceqa => path.file_name().is_some_and(|name| name == scienceqa::PROBLEMS_FILE),
            _ => has_ending(path, self.endings),
        }
    }

    fn open_file(&self, path: &Path, context: SourceContext) -> Result<Box<dyn RawFile>, PrepareError> {
        let is_parquet = has_ending(path, PARQUET);
        Ok(match self.source {
            Source::Sa1b => Box::new(TableFile::open(path, context, sa1b::DenseCaptions)?),
            Source::Sa1bPaired => Box::new(TableFile::open(path, context, sa1b::PairedCaptions)?),
            Source::Llava => Box::new(JsonFile::open(path, context, llava::Llava)?),
            Source::AiChallenger => {
                let choice = context.options.captions.unwrap_or(CaptionChoice::All);
                let format = ai_challenger::AiChallenger { choice, seed: context.seed };
                Box::new(JsonFile::open(path, context, format)?)
            }
            Source::Coco => Box::new(coco::CocoFile::open(path, context)?),
            Source::Minimind if is_parquet => Box::new(TableFile::open(path, context, minimind::Minimind)?),
            Source::Minimind => Box::new(JsonFile::open(path, context, minimind::Minimind)?),
            Source::Sharegpt if is_parquet => {
                Box::new(TableFile::open(path, context, sharegpt::Sharegpt(self.columns.clone()))?)
            }
            Source::Sharegpt => Box::new(JsonFile::open(path, context, sharegpt::Sharegpt(self.columns.clone()))?),
            Source::Openai => Box::new(JsonFile::open(path, context, openai::Openai)?),
            Source::Finevision => {
                let format = finevision::Finevision::new(&context.options.min_ratings);
                Box::new(TableFile::open(path, context, format)?)
            }
            Source::Cogvlm => Box::new(cogvlm::LabelFolder::open(path, context)?),
            Source::Scienceqa => Box::new(scienceqa::ProblemFile::open(path, context)?),
            Source::Webdataset => Box::new(webdataset::TarFile::open(path, context)?),
            Source::VlmevalTsv => Box::new(vlmeval::BenchmarkFile::open(path, context)?),
        })
    }
}

/// The path of a file below the input, `/` between parts; its own name if the input is that file.
fn file_name(root: &Path, path: &Path) -> String {
    match path.strip_prefix(root) {
        Ok(below) if below.as_os_str().is_empty() => {
            path.file_name().unwrap_or_default().to_string_lossy().into_owned()
        }
        Ok(below) => below.to_string_lossy().replace('\\', "/"),
        Err(_) => path.to_string_lossy().into_owned(),
    }
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    endings.iter().any(|ending| name.strip_suffix(ending).is_some_and(|stem| stem.len() > 1 && stem.ends_with('.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_whose_samples_would_share_ids_are_refused() {
        let folder = tempfile::tempdir().expect("temp folder");
        for name in ["a.json", "b.json", "a.jsonl"] {
            fs::write(folder.path().join(name), r#"[{"id": 1, "conversations": []}]"#).expect("file");
        }
        let images = Arc::new(ImageFolder::open(None, None).expect("no folder"));
        let open = || InputSet::open(&InputConfig::new(Source::Llava, folder.path()), &images, 0, None);
        let fault = open().err().expect("refused");
        let text = fault.to_string();
        assert!(fault.is_usage() && text.contains("a.json`") && text.contains("a.jsonl`"), "{text}");
        assert!(text.contains("rename") && !text.contains("b.json"), "{text}");
        fs::remove_file(folder.path().join("a.jsonl")).expect("removed");
        let prefixes: Vec<String> = open().expect("opens").files.into_iter().map(|file| file.id_prefix).collect();
        assert_eq!(prefixes, ["llava/a", "llava/b"]);
    }
}
