//! The one face of a stream of batches, in process or remote.

use serde::{Deserialize, Serialize};

use crate::{Batch, Cursor, Fingerprint, ImageShape};

/// Mean and deviation per channel, applied on the device to `pixel * rescale_factor`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageNormalization {
    /// Usually 1/255.
    pub rescale_factor: f64,
    /// Per channel, after rescaling.
    pub mean: Vec<f64>,
    /// Per channel, after rescaling.
    pub std: Vec<f64>,
}

/// What a model must know of the processor that made the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessorSummary {
    /// blake3 over the processor's files and settings, in a stated order.
    pub fingerprint: Fingerprint,
    /// Extent of every image.
    pub image_shape: ImageShape,
    /// How pixels become the tower's input.
    pub normalization: ImageNormalization,
    /// `pillow`, `torchvision` or `draft`.
    pub image_mode: String,
    /// Name of the built-in chat template, or `folder` for the processor folder's own; empty in older shard sets.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub template: String,
    /// The day that the chat template may tell, as `2024-07-26`; empty in older shard sets.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub template_date: String,
    /// Size of the tokenizer with its added tokens: ids are below it.
    pub vocab_size: u32,
    /// The token that stands for an image.
    pub image_token_id: u32,
    /// The token that pads rows.
    pub pad_token_id: u32,
    /// The token that ends an assistant turn.
    pub end_of_turn_id: u32,
}

/// A data set as a trainer sees it before the first batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetInfo {
    /// The manifest's fingerprint; of a blend, the hash of its parts' fingerprints and weights.
    pub fingerprint: Fingerprint,
    /// Samples of one epoch: of each part of a blend its number times its weight.
    pub num_samples: u64,
    /// Images of one epoch, each use counted; of a blend in proportion to its weights.
    pub num_images: u64,
    /// Tokens of one epoch, an image counted as one; of a blend in proportion to its weights.
    pub num_tokens: u64,
    /// The processor that made it.
    pub processor: ProcessorSummary,
}

/// Any failure of a batch source, with its own type kept inside.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// A stream of micro-batches for one rank, endless over epochs, positioned by a cursor.
///
/// The in-process source and the remote stream yield equal batches for equal (data, spec, rank, world, position).
pub trait BatchSource: Send {
    /// The data behind the stream.
    fn info(&self) -> &DatasetInfo;

    /// Continues from `cursor`; refuses one of other data or another spec.
    fn seek(&mut self, cursor: &Cursor) -> Result<(), SourceError>;

    /// The cursor of the start of the data under this stream's spec.
    fn start_cursor(&self) -> Cursor;

    /// Optimizer steps of one epoch, the same in every epoch: the last one is padded with masked slots.
    fn steps_per_epoch(&self) -> u64;

    /// The next micro-batch; blocks until it is there. Never ends: after an epoch comes the next.
    fn next_batch(&mut self) -> Result<Batch, SourceError>;
}
