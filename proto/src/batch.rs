//! A batch as a header and chunks.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use vela_types::{Batch, DType, HostTensor};

use crate::spec::encode_position;
use crate::v1::{self, TensorRole};

/// Most data in one chunk. A chunk with its message and gRPC framing still fits in one HTTP/2 frame of 1 MiB.
pub const PART_BYTES: usize = (1 << 20) - 64;

/// The tensors of a batch in the order of the payload, with the element type of each.
pub(crate) const TENSORS: [(TensorRole, DType); 5] = [
    (TensorRole::InputIds, DType::I32),
    (TensorRole::Labels, DType::I32),
    (TensorRole::PositionIds, DType::I32),
    (TensorRole::DocumentIds, DType::I32),
    (TensorRole::Pixels, DType::U8),
];

/// Follows the order of [`TENSORS`].
fn tensors(batch: &Batch) -> [&HostTensor; 5] {
    [&batch.input_ids, &batch.labels, &batch.position_ids, &batch.document_ids, &batch.pixels]
}

pub(crate) fn encode_dtype(dtype: DType) -> v1::DType {
    match dtype {
        DType::U8 => v1::DType::DtypeU8,
        DType::I32 => v1::DType::DtypeI32,
        DType::Bf16 => v1::DType::DtypeBf16,
        DType::F32 => v1::DType::DtypeF32,
    }
}

/// Everything of `batch` but its payload.
pub fn batch_header(batch: &Batch) -> v1::BatchHeader {
    let tensor_header = |((role, _), tensor): (&(TensorRole, DType), &HostTensor)| v1::TensorHeader {
        role: (*role).into(),
        dtype: encode_dtype(tensor.dtype()).into(),
        shape: tensor.shape().iter().map(|&extent| extent as u64).collect(),
    };
    let spans = batch.image_spans.iter().map(|span| v1::ImageSpan { row: span.row, start: span.start });
    let slots = batch.samples.iter().map(|slot| v1::SampleSlot {
        row: slot.row,
        index: slot.index,
        id: slot.id.clone(),
        valid: slot.valid,
    });
    v1::BatchHeader {
        position: Some(encode_position(batch.position)),
        num_micro: batch.num_micro,
        step_label_tokens: batch.step_label_tokens,
        tensors: TENSORS.iter().zip(tensors(batch)).map(tensor_header).collect(),
        image_spans: spans.collect(),
        samples: slots.collect(),
    }
}

/// The payload of `batch` in chunks of at most [`PART_BYTES`], in order.
///
/// A chunk inside one tensor shares the tensor's memory; only the small tensors and the seams between are copied.
pub fn batch_chunks(batch: &Batch) -> impl Iterator<Item = v1::BatchChunk> + Send + use<> {
    let mut segments: VecDeque<Bytes> = tensors(batch).map(|tensor| tensor.data().clone()).into();
    let mut offset = 0u64;
    std::iter::from_fn(move || {
        let data = take_chunk(&mut segments)?;
        let chunk = v1::BatchChunk { offset, data };
        offset += chunk.data.len() as u64;
        Some(chunk)
    })
}

fn take_chunk(segments: &mut VecDeque<Bytes>) -> Option<Bytes> {
    segments.retain(|segment| !segment.is_empty());
    let first = segments.front_mut()?;
    if first.len() >= PART_BYTES {
        return Some(first.split_to(PART_BYTES));
    }
    if segments.len() == 1 {
        return segments.pop_front();
    }
    let total: usize = segments.iter().map(Bytes::len).sum();
    let mut joined = BytesMut::with_capacity(total.min(PART_BYTES));
    while let Some(segment) = segments.front_mut().filter(|_| joined.len() < PART_BYTES) {
        let piece = segment.split_to(segment.len().min(PART_BYTES - joined.len()));
        joined.extend_from_slice(&piece);
        if segment.is_empty() {
            segments.pop_front();
        }
    }
    Some(joined.freeze())
}
