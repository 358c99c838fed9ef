//! What a build is told to do.

use std::path::PathBuf;

use vela_processor::ImageMode;

use crate::PrepareError;
use crate::dialogue::{DialogueConfig, DialogueMode};
use crate::sources::Source;

/// One raw input of a build.
#[derive(Clone, Debug, PartialEq)]
pub struct InputConfig {
    /// Raw format.
    pub source: Source,
    /// A file, or a folder searched to the bottom.
    pub input: PathBuf,
    /// Folder that URLs and relative names are mapped into; without it, names are relative to the data file.
    pub images: Option<PathBuf>,
    /// How records become dialogues.
    pub dialogue: DialogueConfig,
}

impl InputConfig {
    /// An input with its source's default dialogue: `keep` for dialogues, `caption` for captions.
    pub fn new(source: Source, input: impl Into<PathBuf>) -> Self {
        let mode = if source.has_captions() { DialogueMode::Caption } else { DialogueMode::Keep };
        Self { source, input: input.into(), images: None, dialogue: mode.into() }
    }
}

impl InputConfig {
    /// Refuses places that are not there.
    pub(crate) fn check(&self) -> Result<(), PrepareError> {
        match &self.images {
            Some(images) if !images.is_dir() => wrong("--images", "a folder", images.display().to_string()),
            _ if !self.input.exists() => wrong("--input", "a file or folder", self.input.display().to_string()),
            _ => Ok(()),
        }
    }
}

fn wrong<T>(flag: &'static str, expected: &str, found: String) -> Result<T, PrepareError> {
    Err(PrepareError::Flag { flag, expected: expected.to_owned(), found })
}

/// `--max-reject`.
pub(crate) fn check_share(max_reject: f64) -> Result<(), PrepareError> {
    match (0.0..=1.0).contains(&max_reject) {
        true => Ok(()),
        false => wrong("--max-reject", "a share from 0 to 1", max_reject.to_string()),
    }
}

/// A build, checked by [`build_shards`](crate::build_shards) before it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildConfig {
    /// Raw inputs, one after another; several make one mixed shard set.
    pub inputs: Vec<InputConfig>,
    /// Hugging Face processor folder.
    pub processor: PathBuf,
    /// Folder or `file://` URL of the shard set.
    pub output: String,
    /// Seed of prompts and rule dialogues.
    pub seed: u64,
    /// Threads that process records; the bytes written do not depend on it.
    pub workers: usize,
    /// Raw records to read, from the first; all without it.
    pub limit: Option<u64>,
    /// Upper bound of a shard's images and text, in bytes: together with the image size it fixes the records per shard.
    pub shard_size_bytes: u64,
    /// Longest dialogue in tokens, an image counted as one; whole turns are dropped from the end to fit.
    pub max_length: usize,
    /// Whose pixels are reproduced.
    pub image_mode: ImageMode,
    /// Accepted share of rejected records, 0 to 1.
    pub max_reject: f64,
}

impl BuildConfig {
    /// A build with the defaults of the command line.
    pub fn new(inputs: Vec<InputConfig>, processor: impl Into<PathBuf>, output: impl Into<String>) -> Self {
        Self {
            inputs,
            processor: processor.into(),
            output: output.into(),
            seed: 0,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            limit: None,
            shard_size_bytes: 512 << 20,
            max_length: 2048,
            image_mode: ImageMode::default(),
            max_reject: 0.05,
        }
    }

    pub(super) fn check(&self) -> Result<(), PrepareError> {
        if self.inputs.is_empty() {
            return wrong("--input", "at least one input", "none".to_owned());
        }
        for input in &self.inputs {
            input.check()?;
            if input.source.has_captions() == (input.dialogue.mode == DialogueMode::Keep) {
                let expected = if input.source.has_captions() { "`caption` or `rules`" } else { "`keep`" };
                let expected = format!("{expected} with `--source {}`", input.source.as_str());
                return wrong("--dialogue", &expected, format!("{:?}", input.dialogue.mode).to_lowercase());
            }
        }
        match self {
            Self { workers: 0, .. } => wrong("--workers", "at least 1", "0".to_owned()),
            Self { limit: Some(0), .. } => wrong("--limit", "at least 1", "0".to_owned()),
            Self { shard_size_bytes: 0, .. } => wrong("--shard-size", "at least 1B", "0".to_owned()),
            Self { max_length: 0, .. } => wrong("--max-length", "at least 1", "0".to_owned()),
            _ => check_share(self.max_reject),
        }
    }
}
