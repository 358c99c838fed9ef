//! Raw formats, one file each. A source turns a file into entries: every record is either content or a named fault.

mod coco;
mod images;
mod input;
mod llava;
mod records;
mod sa1b;
mod walk;

use std::error::Error;
use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::{Deserialize, Serialize};
use vela_processor::ProcessorError;
use vela_runtime::clap;
use vela_types::{Fingerprint, ImageRef, Sample};

pub use images::ImageFolder;
pub use input::{InputFile, InputSet};

use crate::PrepareError;

/// A raw format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// SA1B-Dense-Caption: Parquet files with `url` and `cap_seg`, a Python dict as text.
    Sa1b,
    /// LLaVA: a JSON list or JSON lines of `id`, `image`, `conversations`.
    Llava,
    /// COCO captions: one JSON object with `images` and `annotations`.
    Coco,
}

impl Source {
    /// The name in flags, ids and manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sa1b => "sa1b",
            Self::Llava => "llava",
            Self::Coco => "coco",
        }
    }

    /// True if records are captions that `--dialogue` must turn into dialogues.
    pub const fn has_captions(self) -> bool {
        !matches!(self, Self::Llava)
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
