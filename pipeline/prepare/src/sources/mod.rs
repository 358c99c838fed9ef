//! Raw formats, one file each. A source turns a file into entries: every record is either content or a named fault.

mod ai_challenger;
mod cells;
mod coco;
mod cogvlm;
mod fields;
mod finevision;
mod image_names;
mod images;
mod input;
mod json_file;
mod llava;
mod minimind;
mod openai;
mod options;
mod records;
mod repeats;
mod sa1b;
mod scienceqa;
mod sharegpt;
mod table_file;
#[cfg(test)]
mod testing;
mod tsv;
mod vlmeval;
mod walk;
mod webdataset;

use std::error::Error;
use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vela_processor::ProcessorError;
use vela_runtime::clap;
use vela_types::{Fingerprint, ImageRef, Sample};

pub use images::ImageFolder;
pub(crate) use images::url_path;
pub(crate) use input::check_ids_apart;
pub use input::{InputFile, InputSet};
pub use options::{AnswerForm, CaptionChoice, SourceOptions};
pub(crate) use records::{MAX_RECORD_BYTES, TOO_LONG};
pub(crate) use walk::walk;

use crate::PrepareError;

/// A raw format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// SA1B-Dense-Caption: Parquet files with `url` and `cap_seg`, a Python dict as text.
    Sa1b,
    /// SA1B-Paired-Captions-Images: Parquet files with `opensource_url` and `global_caption`.
    Sa1bPaired,
    /// LLaVA: a JSON list or JSON lines of `id`, `image`, `conversations`.
    Llava,
    /// CogVLM-SFT-311K: folders of `labels*/NAME.json` beside `images/NAME.jpg`.
    Cogvlm,
    /// AI Challenger captions: a JSON list of `image_id` and five captions.
    AiChallenger,
    /// COCO: one JSON object with `images` and `annotations` (captions or instances).
    Coco,
    /// ScienceQA: `problems.json`, beside it `pid_splits.json` and `images/`.
    Scienceqa,
    /// minimind-v: JSON lines, or Parquet with `conversations` and `image_bytes`.
    Minimind,
    /// LLaMA-Factory's `messages` and `images`: JSON, JSON lines or Parquet.
    Sharegpt,
    /// OpenAI messages with content parts: JSON lines or a JSON list.
    Openai,
    /// FineVision and the Cauldron: Parquet with `images`, `texts` and ratings.
    Finevision,
    /// WebDataset: tar files of `KEY.jpg` with `KEY.json` or `KEY.txt`.
    Webdataset,
    /// VLMEvalKit's tab-separated benchmarks.
    VlmevalTsv,
}

/// What the records of a source are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Captions, which `--dialogue` must turn into dialogues.
    Captions,
    /// Dialogues, which stay as they are.
    Dialogues,
    /// Both; `--dialogue` is for the captions.
    Both,
}

impl Source {
    /// The name in flags, ids and manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sa1b => "sa1b",
            Self::Sa1bPaired => "sa1b-paired",
            Self::Llava => "llava",
            Self::Cogvlm => "cogvlm",
            Self::AiChallenger => "ai-challenger",
            Self::Coco => "coco",
            Self::Scienceqa => "scienceqa",
            Self::Minimind => "minimind",
            Self::Sharegpt => "sharegpt",
            Self::Openai => "openai",
            Self::Finevision => "finevision",
            Self::Webdataset => "webdataset",
            Self::VlmevalTsv => "vlmeval-tsv",
        }
    }

    /// What its records are.
    pub const fn holds(self) -> Holds {
        match self {
            Self::Sa1b | Self::Sa1bPaired | Self::AiChallenger | Self::Coco => Holds::Captions,
            Self::Cogvlm | Self::Webdataset => Holds::Both,
            _ => Holds::Dialogues,
        }
    }
}

/// A caption record before it becomes a dialogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawCaption {
    /// Source-qualified, unique id.
    pub id: String,
    /// The source's name.
    pub source: &'static str,
    /// The image it describes.
    pub image: ImageRef,
    /// The caption of the whole image, trimmed, never empty.
    pub global: String,
    /// Captions of parts, trimmed, none empty, in the file's order.
    pub locals: Vec<String>,
    /// Questions published for the source, with or without `<image>`; empty for those of the caption's language.
    pub prompts: &'static [&'static str],
}

/// What a sound record holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawContent {
    /// A caption.
    Caption(RawCaption),
    /// A dialogue that passes [`Sample::check`].
    Dialogue(Sample),
}

impl RawContent {
    /// The sample id.
    pub fn id(&self) -> &str {
        match self {
            Self::Caption(caption) => &caption.id,
            Self::Dialogue(sample) => &sample.id,
        }
    }

    /// Its images, in order.
    pub fn images(&self) -> &[ImageRef] {
        match self {
            Self::Caption(caption) => std::slice::from_ref(&caption.image),
            Self::Dialogue(sample) => &sample.images,
        }
    }

    /// Bytes of image files that are in memory with it.
    pub(crate) fn embedded_bytes(&self) -> usize {
        self.images().iter().map(ImageRef::embedded_bytes).sum()
    }

    pub(crate) fn set_id(&mut self, id: String) {
        match self {
            Self::Caption(caption) => caption.id = id,
            Self::Dialogue(sample) => sample.id = id,
        }
    }
}

/// Why one record cannot be used; it becomes a row of the reject list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The record's own id, as far as it could be read.
    pub id: Option<String>,
    /// The stable name under which rejects are counted.
    pub cause: &'static str,
    /// What was expected and found, in words.
    pub detail: String,
}

impl Fault {
    pub(crate) fn new(cause: &'static str, detail: impl Into<String>) -> Self {
        Self { id: None, cause, detail: detail.into() }
    }

    pub(crate) fn of(self, id: &str) -> Self {
        Self { id: Some(id.to_owned()), ..self }
    }

    /// What a processor says of a record, with its causes on one line.
    pub(crate) fn of_processor(fault: &ProcessorError) -> Self {
        Self::new(fault.cause(), chain_text(fault))
    }

    /// Runs `body`; a panic in it becomes a fault of the record `id`, which costs the record and no more.
    pub(crate) fn catch<T>(id: Option<String>, body: impl FnOnce() -> Result<T, Self>) -> Result<T, Self> {
        catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            let detail = format!("this is a bug, please report it with the record: {text}");
            Err(Self { id, ..Self::new("processor_panicked", detail) })
        })
    }
}

/// An error with its causes on one line.
pub(crate) fn chain_text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// One raw record, read: its zero-based number in its file, and its content or fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Zero-based number of the record in its file.
    pub record: u64,
    /// The content, or why there is none.
    pub content: Result<RawContent, Fault>,
}

/// What a raw file is opened with.
#[derive(Clone)]
pub(crate) struct SourceContext {
    /// Name of the file below the input, without its ending.
    pub(crate) below: String,
    /// The same behind the input's own name, if it has one: part of sample ids.
    pub(crate) stem: String,
    /// Where names of images lead.
    pub(crate) images: Arc<ImageFolder>,
    /// What the user said about the source.
    pub(crate) options: SourceOptions,
    /// Seed of draws.
    pub(crate) seed: u64,
}

/// Takes entries in order; `Break` ends the reading early.
pub type Emit<'a> = dyn FnMut(Entry) -> ControlFlow<()> + 'a;

/// A raw file that was scanned once and can be read at any record.
pub trait RawFile: Send + Sync {
    /// Records in the file, sound or not.
    fn num_records(&self) -> u64;

    /// Records that look like the source's own; none of many says that the file is of another format.
    fn num_recognized(&self) -> u64 {
        self.num_records()
    }

    /// Names, sizes and times of the images that records name beside the file; nothing of them with `--images`.
    fn images(&self) -> Fingerprint;

    /// Reads `records` in order, one entry each. Equal ranges give equal entries, whoever reads them.
    fn read(&self, records: Range<u64>, emit: &mut Emit<'_>) -> Result<(), PrepareError>;
}
