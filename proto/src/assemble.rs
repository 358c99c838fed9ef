//! Header and chunks back into a batch, believing nothing.

use bytes::Bytes;
use prost::Message;
use vela_types::{Batch, DType, HostTensor, ImageSpan, SampleSlot};

use crate::batch::{TENSORS, encode_dtype};
use crate::checks::PayloadChecks;
use crate::outline::Outline;
use crate::payload_pool::PayloadPool;
use crate::reader::Received;
use crate::spec::decode_position;
use crate::v1::{self, batch_part::Part};
use crate::{MAX_FRAME_BYTES, MAX_RESPONSE_BYTES, PART_BYTES, WireError};

/// Sample slots, and image spans, of one micro-batch.
pub const MAX_SAMPLES: usize = 1 << 20;

/// The longest sample id.
const MAX_ID_BYTES: usize = 4 << 10;

/// Axes of a tensor.
const MAX_AXES: usize = 8;

/// Entries of this much are within every limit.
const MIN_HEADER_LIMIT: usize = 64 << 10;

/// Bytes that are copied and summed together, so that they are read from memory once.
const FILL_BYTES: usize = 32 << 10;

/// Collects the parts of one stream into batches. After an error it must be thrown away with its stream.
#[derive(Debug)]
pub(crate) struct Assembler {
    max_batch_bytes: usize,
    verifies_images: bool,
    pool: PayloadPool,
    open: Option<OpenBatch>,
}

/// A batch whose header has come.
#[derive(Debug)]
struct OpenBatch {
    header: v1::BatchHeader,
    extents: Vec<TensorExtent>,
    num_bytes: usize,
    payload: Vec<u8>,
    checks: PayloadChecks,
}

#[derive(Debug)]
struct TensorExtent {
    dtype: DType,
    shape: Vec<usize>,
    num_bytes: usize,
}

impl Assembler {
    /// Refuses batches of more than `max_batch_bytes`, and images whose checksums are wrong if it `verifies_images`.
    pub(crate) fn new(max_batch_bytes: usize, verifies_images: bool) -> Self {
        Self { max_batch_bytes, verifies_images, pool: PayloadPool::default(), open: None }
    }

    /// The longest message that a batch of its limit may need.
    pub(crate) fn max_message_bytes(&self) -> usize {
        self.max_batch_bytes.clamp(MAX_FRAME_BYTES as usize, MAX_RESPONSE_BYTES)
    }

    /// Decodes a whole part, once it is known what that takes.
    pub(crate) fn decode(&mut self, message: Bytes) -> Result<Received, WireError> {
        let (outline, limit) = (Outline::of(&message)?, self.max_batch_bytes.max(MIN_HEADER_LIMIT));
        if outline.entry_bytes() > limit {
            let expected = format!("entries of at most {limit} bytes in memory");
            return Err(WireError::value("header", expected, outline.entry_bytes()));
        }
        let header_bytes = outline.header_bytes(message.len());
        let part =
            v1::BatchPart::decode(message).map_err(|fault| WireError::value("message", "a `BatchPart`", fault))?;
        self.push(part, header_bytes)
    }

    fn push(&mut self, part: v1::BatchPart, header_bytes: usize) -> Result<Received, WireError> {
        match (part.part, &mut self.open) {
            (Some(Part::Header(header)), None) => {
                let open = OpenBatch::new(header, self.max_batch_bytes, self.verifies_images)?;
                let open = self.open.insert(open);
                Ok(Received::Header { payload_bytes: open.num_bytes, header_bytes })
            }
            (Some(Part::Header(_)), Some(open)) => Err(out_of_order(&open.expects(), "a header")),
            (Some(Part::Chunk(chunk)), _) => {
                self.open_chunk(chunk.offset, chunk.data.len())?;
                self.fill(&chunk.data)?;
                Ok(Received::Payload(chunk.data.len()))
            }
            (None, _) => Err(WireError::Missing { field: "part" }),
        }
    }

    /// A chunk of `num_bytes` for `offset` begins.
    pub(crate) fn open_chunk(&mut self, offset: u64, num_bytes: usize) -> Result<(), WireError> {
        match &mut self.open {
            Some(open) => open.check_chunk(offset, num_bytes, &self.pool),
            None => Err(out_of_order("a header", "a chunk")),
        }
    }

    /// Takes the next bytes of the chunk that was opened, no more than it has.
    ///
    /// # Errors
    /// If they are not what was sent.
    pub(crate) fn fill(&mut self, data: &[u8]) -> Result<(), WireError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        data.chunks(FILL_BYTES).try_for_each(|data| {
            open.payload.extend_from_slice(data);
            open.checks.update(data)
        })
    }

    /// The batch under way, once it has all its bytes.
    pub(crate) fn take_complete(&mut self) -> Result<Option<Batch>, WireError> {
        let complete = self.open.take_if(|open| open.payload.len() == open.num_bytes);
        complete.map(|complete| complete.finish(&self.pool)).transpose()
    }
}

fn out_of_order(expected: &str, found: &str) -> WireError {
    WireError::Order { expected: expected.to_owned(), found: found.to_owned() }
}

impl OpenBatch {
    fn new(header: v1::BatchHeader, max_batch_bytes: usize, verifies_images: bool) -> Result<Self, WireError> {
        let extents = decode_tensors(&header.tensors)?;
        let total = extents.iter().try_fold(0usize, |total, extent| total.checked_add(extent.num_bytes));
        let num_bytes = total.filter(|total| *total <= max_batch_bytes).ok_or_else(|| {
            let found = total.map_or("an overflow".to_owned(), |total| format!("{total} bytes"));
            WireError::value("header.tensors", format_args!("at most {max_batch_bytes} bytes"), found)
        })?;
        if num_bytes == 0 {
            // It would cost no credit, so nothing would bound how many come.
            return Err(WireError::value("header.tensors", "a payload", "0 bytes"));
        }
        check_ids(&header)?;
        let checks = payload_checks(&header, &extents, verifies_images)?;
        Ok(Self { header, extents, num_bytes, payload: Vec::new(), checks })
    }

    fn expects(&self) -> String {
        format!("a chunk at offset {}", self.payload.len())
    }

    fn check_chunk(&mut self, offset: u64, num_bytes: usize, pool: &PayloadPool) -> Result<(), WireError> {
        if offset != self.payload.len() as u64 {
            return Err(out_of_order(&self.expects(), &format!("one at {offset}")));
        }
        let room = (self.num_bytes - self.payload.len()).min(PART_BYTES);
        if num_bytes == 0 || num_bytes > room {
            return Err(WireError::value("chunk.data", format_args!("1 to {room} bytes"), num_bytes));
        }
        if self.payload.is_empty() {
            // Only now: memory is taken when bytes come, not when a header promises them.
            self.payload = pool.take(self.num_bytes);
        }
        Ok(())
    }

    fn finish(self, pool: &PayloadPool) -> Result<Batch, WireError> {
        let mut payload = pool.lend(self.payload);
        let mut tensors = self.extents.into_iter().map(|extent| take_tensor(&mut payload, extent));
        let mut next = || tensors.next().unwrap_or(Err(WireError::Missing { field: "header.tensors" }));
        let batch = Batch {
            position: decode_position(self.header.position)?,
            num_micro: self.header.num_micro,
            input_ids: next()?,
            labels: next()?,
            position_ids: next()?,
            document_ids: next()?,
            pixels: next()?,
            image_spans: self.header.image_spans.into_iter().map(decode_span).collect(),
            samples: self.header.samples.into_iter().map(decode_slot).collect(),
            step_label_tokens: self.header.step_label_tokens,
        };
        check_batch(&batch)?;
        Ok(batch)
    }
}

fn take_tensor(payload: &mut Bytes, extent: TensorExtent) -> Result<HostTensor, WireError> {
    let data = payload.split_to(extent.num_bytes.min(payload.len()));
    HostTensor::new(extent.dtype, extent.shape, data)
        .map_err(|fault| WireError::value("header.tensors", fault.expected_bytes, fault.found_bytes))
}

fn decode_span(span: v1::ImageSpan) -> ImageSpan {
    ImageSpan { row: span.row, start: span.start }
}

fn decode_slot(slot: v1::SampleSlot) -> SampleSlot {
    let v1::SampleSlot { row, index, id, valid } = slot;
    SampleSlot { row, index, id, valid }
}

/// Each role once, in the order of the contract, with its element type.
fn decode_tensors(headers: &[v1::TensorHeader]) -> Result<Vec<TensorExtent>, WireError> {
    if headers.len() != TENSORS.len() {
        return Err(WireError::value("header.tensors", format_args!("{} tensors", TENSORS.len()), headers.len()));
    }
    headers.iter().zip(TENSORS).map(|(header, (role, dtype))| decode_tensor(header, role, dtype)).collect()
}

fn decode_tensor(header: &v1::TensorHeader, role: v1::TensorRole, dtype: DType) -> Result<TensorExtent, WireError> {
    if header.role != i32::from(role) {
        return Err(WireError::value("tensor.role", role.as_str_name(), header.role));
    }
    let expected = encode_dtype(dtype);
    if header.dtype != i32::from(expected) {
        return Err(WireError::value("tensor.dtype", expected.as_str_name(), header.dtype));
    }
    if header.shape.len() > MAX_AXES {
        return Err(WireError::value("tensor.shape", format_args!("at most {MAX_AXES} axes"), header.shape.len()));
    }
    let too_large = || WireError::value("tensor.shape", "extents that fit in memory", format!("{:?}", header.shape));
    let shape: Result<Vec<usize>, _> = header.shape.iter().map(|&extent| usize::try_from(extent)).collect();
    let shape = shape.map_err(|_| too_large())?;
    let num_bytes = shape.iter().try_fold(dtype.size_in_bytes(), |bytes, &extent| bytes.checked_mul(extent));
    Ok(TensorExtent { dtype, num_bytes: num_bytes.ok_or_else(too_large)?, shape })
}

/// The pixels come last, images of equal size.
fn payload_checks(
    header: &v1::BatchHeader,
    extents: &[TensorExtent],
    verifies_images: bool,
) -> Result<PayloadChecks, WireError> {
    let tokens = header.token_checksum.ok_or(WireError::Missing { field: "header.token_checksum" })?;
    let (pixels, others) = extents.split_last().ok_or(WireError::Missing { field: "header.tensors" })?;
    let (num_images, sums) = (pixels.shape.first().copied().unwrap_or(0), &header.image_checksums);
    if sums.len() != num_images {
        return Err(WireError::value(
            "header.image_checksums",
            format_args!("one for each of {num_images} images"),
            sums.len(),
        ));
    }
    let token_bytes = others.iter().map(|extent| extent.num_bytes).sum();
    let image_bytes = pixels.num_bytes / num_images.max(1);
    Ok(PayloadChecks::new(token_bytes, tokens, image_bytes, if verifies_images { sums } else { &[] }))
}

fn check_ids(header: &v1::BatchHeader) -> Result<(), WireError> {
    match header.samples.iter().find(|slot| slot.id.len() > MAX_ID_BYTES) {
        Some(slot) => Err(WireError::value("sample.id", format_args!("at most {MAX_ID_BYTES} bytes"), slot.id.len())),
        None => Ok(()),
    }
}

/// The relations between the parts of a batch that a trainer indexes by.
fn check_batch(batch: &Batch) -> Result<(), WireError> {
    let shape = batch.input_ids.shape();
    let &[rows, columns] = shape else {
        return Err(WireError::value("input_ids", "two axes", shape.len()));
    };
    for (field, tensor) in
        [("labels", &batch.labels), ("position_ids", &batch.position_ids), ("document_ids", &batch.document_ids)]
    {
        if tensor.shape() != shape {
            return Err(WireError::value(field, format!("shape {shape:?}"), format!("{:?}", tensor.shape())));
        }
    }
    if batch.pixels.shape().len() != 4 || batch.pixels.shape()[0] != batch.image_spans.len() {
        let found = format!("{:?} for {} spans", batch.pixels.shape(), batch.image_spans.len());
        return Err(WireError::value("pixels", "four axes, one image per span", found));
    }
    if batch.image_spans.iter().any(|span| span.row as usize >= rows || span.start as usize >= columns) {
        return Err(WireError::value("image_spans", format!("places in {shape:?}"), "one outside"));
    }
    if batch.samples.iter().any(|slot| slot.row as usize >= rows) {
        return Err(WireError::value("samples", format!("rows below {rows}"), "one outside"));
    }
    match batch.position.micro < batch.num_micro {
        true => Ok(()),
        false => Err(WireError::value("position.micro", format!("below {}", batch.num_micro), batch.position.micro)),
    }
}
