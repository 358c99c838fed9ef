//! What the trainer consumes.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{DType, ImageShape, PackLimits, Position};

/// How samples become batches. Everything but `micro_batch` decides which samples a step holds, so it is hashed into
/// the cursor; `micro_batch` only cuts a rank's share of a step into pieces that fit in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchSpec {
    /// Rows of one optimizer step over all ranks. A row is one sample, or several where they are packed.
    pub global_batch: u32,
    /// Rows of one forward pass on one rank.
    pub micro_batch: u32,
    /// Seed of the epoch orders.
    pub seed: u64,
    /// Epoch order is a seeded permutation; otherwise the manifest's order.
    pub shuffle: bool,
    /// Shards whose samples are mixed with one another before the next shards are read; 0: all, as suits local files.
    #[serde(default)]
    pub shuffle_window: u32,
    /// Tokens the vision tower gives per image: each image token is expanded to that many.
    pub image_tokens: u32,
    /// Longest row accepted after image tokens are expanded.
    pub max_length: u32,
    /// Puts several samples into one row of at most `max_length` tokens; `None`: one sample, one row.
    #[serde(default)]
    pub packing: Option<PackingSpec>,
}

/// How samples share rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackingSpec {
    /// Images of one row at most: what bounds the tower's work.
    pub max_images: u32,
    /// Samples that are packed together; more fill rows better and take longer to plan.
    pub window: u32,
}

impl BatchSpec {
    /// What a row may hold and how many samples are packed together, where they are packed.
    pub fn pack_limits(&self) -> Option<PackLimits> {
        self.packing.map(|PackingSpec { max_images, window }| PackLimits {
            tokens: self.max_length,
            images: max_images,
            window,
        })
    }
}

/// A dense tensor in host memory: row-major, little-endian, no padding between rows.
#[derive(Clone, PartialEq, Eq)]
pub struct HostTensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Bytes,
}

/// The bytes given do not fill the shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorError {
    /// The shape that was asked for.
    pub shape: Vec<usize>,
    /// Bytes that shape takes.
    pub expected_bytes: usize,
    /// Bytes given.
    pub found_bytes: usize,
}

impl fmt::Display for TensorError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shape, expected_bytes, found_bytes } = self;
        write!(out, "tensor of shape {shape:?}: expected {expected_bytes} bytes, found {found_bytes}")
    }
}

impl std::error::Error for TensorError {}

impl HostTensor {
    /// Takes `data` as a tensor; its length must be the product of `shape` times the element size.
    pub fn new(dtype: DType, shape: Vec<usize>, data: Bytes) -> Result<Self, TensorError> {
        let expected = shape.iter().try_fold(dtype.size_in_bytes(), |bytes, &extent| bytes.checked_mul(extent));
        match expected {
            Some(expected) if expected == data.len() => Ok(Self { dtype, shape, data }),
            _ => Err(TensorError { expected_bytes: expected.unwrap_or(usize::MAX), found_bytes: data.len(), shape }),
        }
    }

    /// An i32 tensor from values; their number must be the product of `shape`.
    pub fn from_i32(shape: Vec<usize>, values: &[i32]) -> Result<Self, TensorError> {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::new(DType::I32, shape, data.into())
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The little-endian bytes.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The values of an i32 tensor; `None` for another element type.
    pub fn to_i32(&self) -> Option<Vec<i32>> {
        (self.dtype == DType::I32).then(|| {
            let words = self.data.chunks_exact(4);
            words.map(|word| i32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
        })
    }
}

impl fmt::Debug for HostTensor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "HostTensor({:?}, {:?}, {} bytes)", self.dtype, self.shape, self.data.len())
    }
}

/// Where an expanded image lies in a batch. Spans are listed in the order of the images in `pixels`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageSpan {
    /// Row of the batch.
    pub row: u32,
    /// First of its `image_tokens` columns.
    pub start: u32,
}

/// Which sample a document of the batch is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SampleSlot {
    /// Row of the batch.
    pub row: u32,
    /// Index in the manifest's order; unspecified for a masked slot.
    pub index: u64,
    /// The sample's id; empty for a masked slot.
    pub id: String,
    /// False for a slot that pads the last step of an epoch, or stands for a damaged record under policy `mask`.
    pub valid: bool,
}

/// One micro-batch, ready for the device. Axes: B rows, T columns (tokens), N images, C, H, W.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Where in the stream it stands.
    pub position: Position,
    /// Micro-batches of this rank in this step; `position.micro` runs below it.
    pub num_micro: u32,
    /// i32 `[B, T]`: token ids, image tokens expanded, padded on the right.
    pub input_ids: HostTensor,
    /// i32 `[B, T]`: the id to predict *at* its own column (shift in the loss), or `IGNORE_LABEL`.
    pub labels: HostTensor,
    /// i32 `[B, T]`: position inside the document, from 0; 0 on padding.
    pub position_ids: HostTensor,
    /// i32 `[B, T]`: 1, 2, ... for the documents of a row, 0 on padding. Tokens attend within their document only.
    pub document_ids: HostTensor,
    /// u8 `[N, C, H, W]`: pixels before mean and deviation.
    pub pixels: HostTensor,
    /// One span per image.
    pub image_spans: Vec<ImageSpan>,
    /// One slot per document, rows ascending.
    pub samples: Vec<SampleSlot>,
    /// Predicted tokens of the whole global step, all ranks and micro-batches: the divisor of the loss.
    pub step_label_tokens: u64,
}

impl Batch {
    /// Rows and columns of the token tensors.
    pub fn rows_and_columns(&self) -> (usize, usize) {
        (self.input_ids.shape()[0], self.input_ids.shape()[1])
    }

    /// Extent of one image, or `None` if the batch has none.
    pub fn image_shape(&self) -> Option<ImageShape> {
        match *self.pixels.shape() {
            [images, channels, height, width] if images > 0 => {
                Some(ImageShape { channels: channels as u32, height: height as u32, width: width as u32 })
            }
            _ => None,
        }
    }

    /// Bytes of all tensors: what a byte budget counts.
    pub fn num_bytes(&self) -> usize {
        let tensors = [&self.input_ids, &self.labels, &self.position_ids, &self.document_ids, &self.pixels];
        tensors.iter().map(|tensor| tensor.data().len()).sum()
    }
}

/// A micro-batch whose pixels lie in pieces wherever they are stored: for those who only send it on.
#[derive(Clone, Debug)]
pub struct ScatteredBatch {
    /// All of it but the pixels, whose tensor holds no image.
    pub rest: Batch,
    /// `[N, C, H, W]` of the pixels.
    pub pixel_shape: Vec<usize>,
    /// The bytes of the pixels, one piece after another.
    pub pixel_pieces: Vec<Bytes>,
    /// CRC-32 of each image, as its shard has it.
    pub image_checksums: Vec<u32>,
}

impl ScatteredBatch {
    /// Bytes of all tensors.
    pub fn num_bytes(&self) -> usize {
        self.rest.num_bytes() + self.pixel_pieces.iter().map(Bytes::len).sum::<usize>()
    }

    /// The batch with its pixels copied together.
    ///
    /// # Errors
    /// If the pieces do not fill the shape.
    pub fn gather(self) -> Result<Batch, TensorError> {
        let pixels = HostTensor::new(DType::U8, self.pixel_shape, self.pixel_pieces.concat().into())?;
        Ok(Batch { pixels, ..self.rest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_refuses_bytes_that_do_not_fill_its_shape() {
        let fault = HostTensor::new(DType::I32, vec![2, 3], Bytes::from(vec![0; 23])).expect_err("23 bytes");
        assert_eq!((fault.expected_bytes, fault.found_bytes), (24, 23));
        let huge = HostTensor::new(DType::F32, vec![usize::MAX, 2], Bytes::new());
        assert!(huge.is_err());
    }

    #[test]
    fn integers_survive_the_byte_form() {
        let values = [0, -100, i32::MAX, i32::MIN, 151_936, 7];
        let tensor = HostTensor::from_i32(vec![3, 2], &values).expect("six values");
        assert_eq!(tensor.to_i32().as_deref(), Some(&values[..]));
    }
}
