//! Records to tensors: expand image tokens, pad to the longest row, gather pixels.
//!
//! Every extent of a batch follows from the lengths index, so the tensors are allocated once and the rows are filled
//! in parallel, each into its own part. Axes: B rows, T columns, N images.

use std::cell::RefCell;

use bytes::Bytes;
use rayon::prelude::*;
use vela_shard::RowBuffer;
use vela_types::{Batch, BatchSpec, DType, HostTensor, IGNORE_LABEL, ImageSpan, Position, RecordLengths, SampleSlot};

use crate::extent::expanded_length;
use crate::health::RecordHealth;
use crate::pixel_pool::PooledPixels;
use crate::{Dataset, DatasetError};

/// What to do with a record whose stored bytes are damaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DamagePolicy {
    /// The batch fails with an error that names file, row and id.
    #[default]
    Fail,
    /// The record's slot is kept with `valid` false and nothing in it, and its labels are not in `step_label_tokens`;
    /// every other slot is as it would have been. Each record is read once more, when its step first needs the count.
    Mask,
}

/// What stands in a row of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// The record of this index.
    Sample(u64),
    /// A record of this index that is damaged.
    Damaged(u64),
    /// Nothing: the epoch has no more samples.
    Padding,
}

thread_local! {
    /// Kept from batch to batch: for short rows a new one, with its decompressor, costs more than a row.
    static ROW_BUFFER: RefCell<RowBuffer> = RefCell::default();
}

/// Bytes that go with a row besides its tokens: the slots and what the threads tell of it.
const ROW_BYTES: u64 = (size_of::<Slot>()
    + size_of::<Option<RecordLengths>>()
    + size_of::<RowOut<'static>>()
    + size_of::<Result<RowDone, DatasetError>>()
    + size_of::<RowDone>()
    + size_of::<SampleSlot>()) as u64;

/// Tensors of `[B, T]` in a batch.
const NUM_TOKEN_TENSORS: u64 = 4;

/// Bytes allocated for `num_rows` rows of `columns` tokens and `num_images` images of `image_bytes`; `u64::MAX` if
/// that overflows.
pub(crate) fn batch_bytes(num_rows: u64, columns: u64, num_images: u64, image_bytes: u64) -> u64 {
    let row_bytes = columns.saturating_mul(NUM_TOKEN_TENSORS * DType::I32.size_in_bytes() as u64);
    let rows = num_rows.saturating_mul(row_bytes.saturating_add(ROW_BYTES));
    let images = num_images.saturating_mul(image_bytes.saturating_add(size_of::<ImageSpan>() as u64));
    rows.saturating_add(images)
}

/// A collated micro-batch that does not know its place yet.
pub(crate) struct Rows {
    input_ids: Vec<u8>,
    labels: Vec<u8>,
    position_ids: Vec<u8>,
    document_ids: Vec<u8>,
    pixels: PooledPixels,
    shape_bt: [usize; 2],
    shape_nchw: [usize; 4],
    image_spans: Vec<ImageSpan>,
    samples: Vec<SampleSlot>,
}

/// Collates `slots`. Where `health` is kept a damaged record turns into an empty slot and the rest is done again: rare,
/// and the only way that extents stay a function of what is in the batch.
pub(crate) fn collate(
    dataset: &Dataset,
    spec: &BatchSpec,
    mut slots: Vec<Slot>,
    health: Option<&RecordHealth>,
) -> Result<Rows, DatasetError> {
    loop {
        let (row, fault) = match collate_once(dataset, spec, &slots) {
            Ok(rows) => return Ok(rows),
            Err(refused) => refused,
        };
        match (health, slots[row]) {
            (Some(health), Slot::Sample(index)) if fault.is_damage() => {
                health.note(index, false);
                slots[row] = Slot::Damaged(index);
            }
            _ => return Err(fault),
        }
    }
}

/// One row's part of every tensor, to be filled.
struct RowOut<'a> {
    input_ids: &'a mut [u8],
    labels: &'a mut [u8],
    position_ids: &'a mut [u8],
    document_ids: &'a mut [u8],
    pixels: &'a mut [u8],
}

/// What a filled row tells of itself.
#[derive(Default)]
struct RowDone {
    id: String,
    starts: Vec<u32>,
}

fn collate_once(dataset: &Dataset, spec: &BatchSpec, slots: &[Slot]) -> Result<Rows, (usize, DatasetError)> {
    let lengths: Vec<Option<RecordLengths>> = slots
        .iter()
        .map(|slot| match slot {
            Slot::Sample(index) => Some(dataset.lengths(*index)),
            Slot::Damaged(_) | Slot::Padding => None,
        })
        .collect();
    let columns = lengths.iter().flatten().map(|lengths| expanded_length(lengths, spec)).max().unwrap_or(1);
    check_longest(dataset, spec, slots, columns)?;
    let mut rows = Rows::allocate(dataset, slots.len(), columns as usize, &lengths);
    let done = rows.fill(dataset, spec, slots, &lengths)?;
    for (row, (slot, RowDone { id, starts })) in slots.iter().zip(done).enumerate() {
        let row = row as u32;
        rows.image_spans.extend(starts.into_iter().map(|start| ImageSpan { row, start }));
        let (index, valid) = match *slot {
            Slot::Sample(index) => (index, true),
            Slot::Damaged(index) => (index, false),
            Slot::Padding => (0, false),
        };
        rows.samples.push(SampleSlot { row, index, id, valid });
    }
    Ok(rows)
}

/// Refuses a batch whose longest row exceeds the spec, by that row's name.
fn check_longest(
    dataset: &Dataset,
    spec: &BatchSpec,
    slots: &[Slot],
    columns: u64,
) -> Result<(), (usize, DatasetError)> {
    if columns <= u64::from(spec.max_length) {
        return Ok(());
    }
    let is_too_long = |slot: &Slot| match *slot {
        Slot::Sample(index) => expanded_length(&dataset.lengths(index), spec) == columns,
        Slot::Damaged(_) | Slot::Padding => false,
    };
    match slots.iter().enumerate().find(|(_, slot)| is_too_long(slot)) {
        Some((row, &Slot::Sample(index))) => Err((row, dataset.too_long(spec, index))),
        _ => Ok(()),
    }
}

impl Rows {
    fn allocate(dataset: &Dataset, num_rows: usize, columns: usize, lengths: &[Option<RecordLengths>]) -> Self {
        let shape = dataset.info().processor.image_shape;
        let num_images = lengths.iter().flatten().map(|lengths| lengths.num_images as usize).sum();
        let token_bytes = num_rows * columns * DType::I32.size_in_bytes();
        Self {
            input_ids: vec![0; token_bytes],
            labels: vec![0; token_bytes],
            position_ids: vec![0; token_bytes],
            document_ids: vec![0; token_bytes],
            pixels: dataset.take_pixels(num_images * shape.num_elements()),
            shape_bt: [num_rows, columns],
            shape_nchw: [num_images, shape.channels as usize, shape.height as usize, shape.width as usize],
            image_spans: Vec::with_capacity(num_images),
            samples: Vec::with_capacity(num_rows),
        }
    }

    /// Fills all rows in parallel; the error of the first failing row comes back with its number.
    fn fill(
        &mut self,
        dataset: &Dataset,
        spec: &BatchSpec,
        slots: &[Slot],
        lengths: &[Option<RecordLengths>],
    ) -> Result<Vec<RowDone>, (usize, DatasetError)> {
        let parts = self.split_rows(lengths, dataset.info().processor.image_shape.num_elements());
        let filled: Vec<Result<RowDone, DatasetError>> = parts
            .into_par_iter()
            .zip(slots)
            .map(|(out, slot)| ROW_BUFFER.with_borrow_mut(|buffer| fill_row(dataset, spec, *slot, buffer, out)))
            .collect();
        filled.into_iter().enumerate().map(|(row, done)| done.map_err(|fault| (row, fault))).collect()
    }

    /// Cuts the tensors into one part per row.
    fn split_rows(&mut self, lengths: &[Option<RecordLengths>], image_bytes: usize) -> Vec<RowOut<'_>> {
        let row_bytes = self.shape_bt[1] * DType::I32.size_in_bytes();
        let mut pixels = &mut self.pixels[..];
        let tokens = self.input_ids.chunks_exact_mut(row_bytes).zip(self.labels.chunks_exact_mut(row_bytes));
        let places = self.position_ids.chunks_exact_mut(row_bytes).zip(self.document_ids.chunks_exact_mut(row_bytes));
        let rows = tokens.zip(places).zip(lengths);
        rows.map(|(((input_ids, labels), (position_ids, document_ids)), lengths)| {
            let num_images = lengths.map_or(0, |lengths| lengths.num_images as usize);
            let row_pixels = pixels.split_off_mut(..num_images * image_bytes).expect("allocated for these lengths");
            RowOut { input_ids, labels, position_ids, document_ids, pixels: row_pixels }
        })
        .collect()
    }

    /// The batch, with its place and the divisor of its step's loss.
    pub(crate) fn into_batch(
        self,
        position: Position,
        num_micro: u32,
        step_label_tokens: u64,
    ) -> Result<Batch, DatasetError> {
        let tokens = |data: Vec<u8>| HostTensor::new(DType::I32, self.shape_bt.to_vec(), Bytes::from(data));
        Ok(Batch {
            position,
            num_micro,
            input_ids: tokens(self.input_ids)?,
            labels: tokens(self.labels)?,
            position_ids: tokens(self.position_ids)?,
            document_ids: tokens(self.document_ids)?,
            pixels: HostTensor::new(DType::U8, self.shape_nchw.to_vec(), Bytes::from_owner(self.pixels))?,
            image_spans: self.image_spans,
            samples: self.samples,
            step_label_tokens,
        })
    }
}

fn fill_row(
    dataset: &Dataset,
    spec: &BatchSpec,
    slot: Slot,
    buffer: &mut RowBuffer,
    out: RowOut<'_>,
) -> Result<RowDone, DatasetError> {
    let processor = &dataset.info().processor;
    let pad = processor.pad_token_id as i32;
    let Slot::Sample(index) = slot else {
        fill_words(out.input_ids, pad);
        fill_words(out.labels, IGNORE_LABEL);
        return Ok(RowDone::default());
    };
    let (reader, row) = dataset.read_row(index, buffer)?;
    check_lengths(dataset, index, buffer)?;
    let image_bytes = processor.image_shape.num_elements();
    for (home, pixels) in buffer.images.iter().zip(out.pixels.chunks_exact_mut(image_bytes)) {
        reader.copy_image(row, &buffer.id, home, pixels)?;
    }
    let starts = expand(buffer, processor.image_token_id, spec.image_tokens as usize, out.input_ids, out.labels);
    let end = expanded_length(&buffer.lengths(), spec) as usize;
    let (input_ids, labels) = (&mut out.input_ids[4 * end..], &mut out.labels[4 * end..]);
    fill_words(input_ids, pad);
    fill_words(labels, IGNORE_LABEL);
    write_words(&mut out.position_ids[..4 * end], 0..end as i32);
    fill_words(&mut out.document_ids[..4 * end], 1);
    Ok(RowDone { id: buffer.id.clone(), starts })
}

/// Reads all of record `index` and finds what [`collate`] would find.
pub(crate) fn probe(dataset: &Dataset, index: u64) -> Result<(), DatasetError> {
    ROW_BUFFER.with_borrow_mut(|buffer| {
        let (reader, row) = dataset.read_row(index, buffer)?;
        check_lengths(dataset, index, buffer)?;
        for home in &buffer.images {
            reader.image(row, &buffer.id, home)?;
        }
        Ok(())
    })
}

/// The record must be what the lengths index said when the tensors were allocated.
fn check_lengths(dataset: &Dataset, index: u64, buffer: &RowBuffer) -> Result<(), DatasetError> {
    let image_token = dataset.info().processor.image_token_id;
    let num_marks = buffer.input_ids.iter().filter(|&&id| id == image_token).count();
    let (expected, found) = (dataset.lengths(index), buffer.lengths());
    if expected == found && num_marks == buffer.images.len() {
        return Ok(());
    }
    Err(DatasetError::Inconsistent {
        id: buffer.id.clone(),
        index,
        expected: format!("{expected:?} with an image token per image"),
        found: format!("{found:?} with {num_marks} image tokens"),
    })
}

/// Writes ids and labels with every image token repeated `image_tokens` times, unlabelled; gives the images' columns.
fn expand(
    buffer: &RowBuffer,
    image_token: u32,
    image_tokens: usize,
    ids_out: &mut [u8],
    labels_out: &mut [u8],
) -> Vec<u32> {
    let mut starts = Vec::with_capacity(buffer.images.len());
    let (mut from, mut to) = (0, 0);
    let tokens = &buffer.input_ids;
    while from < tokens.len() {
        let run = tokens[from..].iter().position(|&id| id == image_token).unwrap_or(tokens.len() - from);
        write_words(&mut ids_out[4 * to..4 * (to + run)], tokens[from..from + run].iter().map(|&id| id as i32));
        write_words(&mut labels_out[4 * to..4 * (to + run)], buffer.labels[from..from + run].iter().copied());
        (from, to) = (from + run, to + run);
        if from < tokens.len() {
            starts.push(to as u32);
            fill_words(&mut ids_out[4 * to..4 * (to + image_tokens)], image_token as i32);
            fill_words(&mut labels_out[4 * to..4 * (to + image_tokens)], IGNORE_LABEL);
            (from, to) = (from + 1, to + image_tokens);
        }
    }
    starts
}

/// Writes little-endian words; both sides have the same number.
fn write_words(out: &mut [u8], words: impl Iterator<Item = i32>) {
    out.as_chunks_mut::<4>().0.iter_mut().zip(words).for_each(|(out, word)| *out = word.to_le_bytes());
}

fn fill_words(out: &mut [u8], word: i32) {
    out.as_chunks_mut::<4>().0.fill(word.to_le_bytes());
}
