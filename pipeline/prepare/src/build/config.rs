//! What a build is told to do.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vela_processor::{ImageMode, ProcessorOptions, TemplateDate};
use vela_shard::{RemoteOptions, stage_input};

use super::output::refused_url;
use crate::PrepareError;
use crate::clean::CleanConfig;
use crate::dialogue::{DialogueConfig, DialogueMode};
use crate::input_path::check_input;
use crate::sources::{Holds, Source, SourceOptions};

/// Most copies of an input.
const MAX_WEIGHT: f64 = 100.0;

/// One raw input of a build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputConfig {
    /// Raw format.
    pub source: Source,
    /// A file, or a folder searched to the bottom; or the URL of one in a bucket (`s3://`, `gs://`, `az://`).
    pub input: PathBuf,
    /// Folder that URLs and relative names are mapped into; without it, names are relative to the data file.
    pub images: Option<PathBuf>,
    /// Stands in the ids of its samples, between the source and the file, so that two inputs whose files have equal names can be
    /// told apart; none needed where they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How captions become dialogues.
    pub dialogue: DialogueConfig,
    /// Settings of the source.
    pub options: SourceOptions,
    /// How often its records are in the set: 2 twice, 0.5 half of them, drawn by their ids.
    pub weight: f64,
}

impl InputConfig {
    /// An input with its source's default dialogue: `keep` for dialogues, `caption` for captions.
    pub fn new(source: Source, input: impl Into<PathBuf>) -> Self {
        let mode = if source.holds() == Holds::Dialogues { DialogueMode::Keep } else { DialogueMode::Caption };
        let options = SourceOptions::default();
        Self { source, input: input.into(), images: None, name: None, dialogue: mode.into(), options, weight: 1.0 }
    }

    /// Refuses names that could not stand in an id, places that are not there, and settings of other sources.
    pub(crate) fn check(&self) -> Result<(), PrepareError> {
        self.options.check(self.source)?;
        match &self.images {
            _ if self.name.as_ref().is_some_and(|name| name.trim().is_empty() || name.contains('/')) => {
                wrong("name", "a word without `/`", self.name.clone().unwrap_or_default())
            }
            Some(images) if !is_remote(images) && !images.is_dir() => {
                wrong("--images", "a folder", images.display().to_string())
            }
            _ if !(self.weight > 0.0 && self.weight <= MAX_WEIGHT) => {
                wrong("weight", "a number above 0 and at most 100", self.weight.to_string())
            }
            _ if is_remote(&self.input) => Ok(()),
            _ => check_input(&self.input),
        }
    }

    /// The same input with remote places fetched into the cache folder, once per content; local ones stay as they are.
    pub(crate) fn staged(&self) -> Result<Self, PrepareError> {
        let images = self.images.as_deref().map(|images| stage("--images", images)).transpose()?;
        Ok(Self { input: stage("--input", &self.input)?, images, ..self.clone() })
    }

    fn check_dialogue(&self) -> Result<(), PrepareError> {
        let expected = match (self.source.holds(), self.dialogue.mode) {
            (Holds::Captions, DialogueMode::Keep) => "`caption` or `rules`",
            (Holds::Dialogues, DialogueMode::Caption | DialogueMode::Rules) => "`keep`",
            _ => return Ok(()),
        };
        let expected = format!("{expected} with `--source {}`", self.source.as_str());
        wrong("--dialogue", &expected, format!("{:?}", self.dialogue.mode).to_lowercase())
    }
}

/// True of a URL, which is looked for when it is fetched.
pub(super) fn is_remote(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.contains("://"))
}

fn stage(flag: &'static str, path: &Path) -> Result<PathBuf, PrepareError> {
    match path.to_str().filter(|_| is_remote(path)) {
        None => Ok(path.to_owned()),
        Some(url) => {
            let cache = RemoteOptions::from_env()?.input_folder();
            stage_input(url, &cache).map_err(|fault| refused_url(flag, fault))
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildConfig {
    /// Raw inputs, one after another; several make one mixed shard set.
    pub inputs: Vec<InputConfig>,
    /// Hugging Face processor folder.
    pub processor: PathBuf,
    /// Where the shard set goes: a folder, or a `file://`, `s3://`, `gs://` or `az://` URL.
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
    /// A built-in chat template instead of the processor folder's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The day that templates may tell, instead of the processor folder's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_date: Option<TemplateDate>,
    /// The system turn of dialogues that bring none, instead of the processor folder's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Accepted share of rejected records, 0 to 1.
    pub max_reject: f64,
    /// Which sound records are left out.
    pub clean: CleanConfig,
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
            template: None,
            template_date: None,
            system: None,
            max_reject: 0.05,
            clean: CleanConfig::default(),
        }
    }

    /// What is asked of the processor. Its fingerprint covers it, and so does the plan.
    pub(super) fn processor_options(&self) -> ProcessorOptions {
        ProcessorOptions {
            image_mode: Some(self.image_mode),
            template: self.template.clone(),
            template_date: self.template_date,
            system: self.system.clone(),
        }
    }

    pub(super) fn check(&self) -> Result<(), PrepareError> {
        self.clean.check()?;
        if self.inputs.is_empty() {
            return wrong("--input", "at least one input", "none".to_owned());
        }
        for input in &self.inputs {
            input.check()?;
            input.check_dialogue()?;
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
