//! A processed sample: what a shard row holds.

use serde::{Deserialize, Serialize};

use crate::{ImageTensor, Language};

/// The label of a token that is not trained on, as in PyTorch and Hugging Face.
pub const IGNORE_LABEL: i32 = -100;

/// One processed sample: token ids with labels, and its images as tensors.
///
/// `labels[i]` is `input_ids[i]` where the assistant speaks (end-of-turn token included) and [`IGNORE_LABEL`] elsewhere;
/// the shift by one happens in the loss. An image stands in `input_ids` as one single image token, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The sample's id.
    pub id: String,
    /// The sample's source.
    pub source: String,
    /// The sample's language.
    pub language: Language,
    /// Token ids, image tokens unexpanded.
    pub input_ids: Vec<u32>,
    /// Same length as `input_ids`.
    pub labels: Vec<i32>,
    /// The images in the order of their tokens.
    pub images: Vec<ImageTensor>,
}

impl Record {
    /// The row of the lengths index for this record.
    pub fn lengths(&self) -> RecordLengths {
        let num_label_tokens = self.labels.iter().skip(1).filter(|&&label| label != IGNORE_LABEL).count();
        RecordLengths {
            num_tokens: self.input_ids.len() as u32,
            num_label_tokens: num_label_tokens as u32,
            num_images: self.images.len() as u32,
        }
    }
}

/// Everything planning needs to know of a record without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RecordLengths {
    /// Length of `input_ids`, each image counted as one token.
    pub num_tokens: u32,
    /// Tokens that are predicted: labels other than [`IGNORE_LABEL`] after the shift by one (the first is never predicted).
    pub num_label_tokens: u32,
    /// Images.
    pub num_images: u32,
}
