//! A batch as the messages it travels in, without a copy of its tensors.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{encode_varint, encoded_len_varint};
use vela_types::{Batch, DType, HostTensor, ScatteredBatch};

use crate::spec::encode_position;
use crate::v1::{self, TensorRole, batch_part::Part};

/// Most payload in one chunk: with its message and gRPC framing it would still fit in one HTTP/2 frame of 1 MiB.
pub const PART_BYTES: usize = (1 << 20) - 64;

/// gRPC's prefix of a message: a byte for compression, four for the length.
pub(crate) const GRPC_PREFIX_BYTES: usize = 5;

/// Tag of `BatchPart.chunk`: field 2, length-delimited.
pub(crate) const PART_CHUNK_TAG: u8 = 2 << 3 | 2;
/// Tag of `BatchChunk.offset`: field 1, a varint.
pub(crate) const CHUNK_OFFSET_TAG: u8 = 1 << 3;
/// Tag of `BatchChunk.data`: field 2, length-delimited.
pub(crate) const CHUNK_DATA_TAG: u8 = 2 << 3 | 2;

/// Tag of `BatchHeader.header_checksum`: field 9, four bytes.
pub(crate) const HEADER_CHECKSUM_TAG: u8 = 9 << 3 | 5;

/// The tensors of a batch in the order of the payload, with the element type of each.
pub(crate) const TENSORS: [(TensorRole, DType); 5] = [
    (TensorRole::InputIds, DType::I32),
    (TensorRole::Labels, DType::I32),
    (TensorRole::PositionIds, DType::I32),
    (TensorRole::DocumentIds, DType::I32),
    (TensorRole::Pixels, DType::U8),
];

/// Shape of each tensor, in the order of [`TENSORS`].
fn shapes(batch: &ScatteredBatch) -> [&[usize]; 5] {
    let tokens = token_tensors(&batch.rest).map(HostTensor::shape);
    [tokens[0], tokens[1], tokens[2], tokens[3], &batch.pixel_shape]
}

/// Those of [`TENSORS`] before the pixels.
fn token_tensors(batch: &Batch) -> [&HostTensor; 4] {
    [&batch.input_ids, &batch.labels, &batch.position_ids, &batch.document_ids]
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
fn batch_header(batch: &ScatteredBatch) -> v1::BatchHeader {
    let mut tokens = crc32fast::Hasher::new();
    token_tensors(&batch.rest).iter().for_each(|tensor| tokens.update(tensor.data()));
    let image_checksums = batch.image_checksums.clone();
    let tensor_header = |((role, dtype), shape): (&(TensorRole, DType), &[usize])| v1::TensorHeader {
        role: (*role).into(),
        dtype: encode_dtype(*dtype).into(),
        shape: shape.iter().map(|&extent| extent as u64).collect(),
    };
    let tensors = TENSORS.iter().zip(shapes(batch)).map(tensor_header).collect();
    let batch = &batch.rest;
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
        tensors,
        image_spans: spans.collect(),
        samples: slots.collect(),
        image_checksums,
        token_checksum: Some(tokens.finalize()),
        header_checksum: None,
    }
}

/// One message of a batch stream as it goes on the wire: gRPC's prefix and every protobuf field up to the payload, then the
/// payload as it lies in the tensors.
#[derive(Clone, Debug)]
pub struct EncodedPart {
    /// The bytes of the message, in order.
    pub pieces: VecDeque<Bytes>,
    /// How many of them are payload, which is what costs credit.
    pub payload_bytes: usize,
}

/// `batch` as the messages it travels in: its header, then its payload in chunks of at most [`PART_BYTES`].
///
/// No byte of a tensor is copied: the pieces share the memory of the tensors and of pixels in pieces, across the seams between them too. Framing: gRPC over HTTP/2,
/// "Length-Prefixed-Message"; fields: `BatchPart` in `loader.proto`.
pub fn encode_batch(batch: ScatteredBatch) -> impl Iterator<Item = EncodedPart> + Send + use<> {
    let mut header = batch_header(&batch);
    header.header_checksum = Some(crc32fast::hash(&header.encode_to_vec()));
    let header = v1::BatchPart { part: Some(Part::Header(header)) };
    let mut segments: VecDeque<Bytes> = token_tensors(&batch.rest).map(|tensor| tensor.data().clone()).into();
    segments.extend(batch.pixel_pieces);
    let mut offset = 0u64;
    let chunks = std::iter::from_fn(move || {
        let payload = take_chunk(&mut segments);
        let part = (!payload.is_empty()).then(|| encode_chunk(offset, payload))?;
        offset += part.payload_bytes as u64;
        Some(part)
    });
    std::iter::once_with(move || encode_header(&header)).chain(chunks)
}

fn encode_header(header: &v1::BatchPart) -> EncodedPart {
    let num_bytes = header.encoded_len();
    let mut message = BytesMut::with_capacity(GRPC_PREFIX_BYTES + num_bytes);
    put_grpc_prefix(&mut message, num_bytes);
    header.encode(&mut message).expect("a growing buffer has room");
    EncodedPart { pieces: [message.freeze()].into(), payload_bytes: 0 }
}

/// Field numbers and wire types as `prost` writes them: a zero offset is left out.
fn encode_chunk(offset: u64, mut pieces: VecDeque<Bytes>) -> EncodedPart {
    let payload_bytes: usize = pieces.iter().map(Bytes::len).sum();
    let mut chunk = BytesMut::new();
    if offset != 0 {
        chunk.put_u8(CHUNK_OFFSET_TAG);
        encode_varint(offset, &mut chunk);
    }
    chunk.put_u8(CHUNK_DATA_TAG);
    encode_varint(payload_bytes as u64, &mut chunk);
    let chunk_bytes = chunk.len() + payload_bytes;
    let message_bytes = 1 + encoded_len_varint(chunk_bytes as u64) + chunk_bytes;
    let mut opening = BytesMut::with_capacity(2 * GRPC_PREFIX_BYTES + chunk.len() + 1);
    put_grpc_prefix(&mut opening, message_bytes);
    opening.put_u8(PART_CHUNK_TAG);
    encode_varint(chunk_bytes as u64, &mut opening);
    opening.extend_from_slice(&chunk);
    pieces.push_front(opening.freeze());
    EncodedPart { pieces, payload_bytes }
}

fn put_grpc_prefix(message: &mut BytesMut, num_bytes: usize) {
    message.put_u8(0);
    message.put_u32(u32::try_from(num_bytes).expect("a part is about 1 MiB, a header is bounded by the batch limit"));
}

/// The next [`PART_BYTES`] of the payload, or what is left of it.
fn take_chunk(segments: &mut VecDeque<Bytes>) -> VecDeque<Bytes> {
    let (mut pieces, mut room) = (VecDeque::new(), PART_BYTES);
    while room > 0
        && let Some(segment) = segments.front_mut()
    {
        let piece = segment.split_to(segment.len().min(room));
        if segment.is_empty() {
            segments.pop_front();
        }
        room -= piece.len();
        pieces.extend((!piece.is_empty()).then_some(piece));
    }
    pieces
}
