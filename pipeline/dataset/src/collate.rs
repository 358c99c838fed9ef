//! Records to tensors: expand image tokens, pad to the longest row, gather pixels.
//!
//! Every extent of a batch follows from the lengths index, so the tensors are allocated once and the rows are filled
//! in parallel, each into its own part. Axes: B rows, T columns, N images.

use std::cell::RefCell;

use bytes::Bytes;
use rayon::prelude::*;
use vela_shard::RowBuffer;
use vela_types::{Batch, BatchSpec, DType, HostTensor, IGNORE_LABEL, ImageSpan, Position, SampleSlot, ScatteredBatch};

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
    /// As `Mask` for this many different records; one more fails the batch.
    Budget(u64),
}

/// Where the pixels of a batch lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PixelPlace {
    /// In one tensor of the batch.
    Gathered,
    /// In the mapped shards.
    Stored,
}

/// What stands in a row of the batch, or in a part of it.
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
    + size_of::<Vec<Slot>>()
    + size_of::<RowExtent>()
    + size_of::<RowOut<'static>>()
    + size_of::<Result<Vec<SampleDone>, RowFault>>()
    + size_of::<Vec<SampleDone>>()) as u64;

/// Bytes that go with a sample of a row.
const SAMPLE_BYTES: u64 = (size_of::<Slot>() + size_of::<SampleDone>() + size_of::<SampleSlot>()) as u64;

/// Tensors of `[B, T]` in a batch.
const NUM_TOKEN_TENSORS: u64 = 4;

/// Bytes allocated for `num_rows` rows of `columns` tokens that hold `num_samples` samples, and for `num_images` images of
/// `image_bytes`; `u64::MAX` if that overflows.
pub(crate) fn batch_bytes(num_rows: u64, columns: u64, num_samples: u64, num_images: u64, image_bytes: u64) -> u64 {
    let row_bytes = columns.saturating_mul(NUM_TOKEN_TENSORS * DType::I32.size_in_bytes() as u64);
    let rows = num_rows.saturating_mul(row_bytes.saturating_add(ROW_BYTES));
    let images = num_images.saturating_mul(image_bytes.saturating_add(size_of::<ImageSpan>() as u64));
    rows.saturating_add(num_samples.saturating_mul(SAMPLE_BYTES)).saturating_add(images)
}

/// A collated micro-batch that does not know its place yet.
pub(crate) struct Rows {
    input_ids: Vec<u8>,
    labels: Vec<u8>,
    position_ids: Vec<u8>,
    document_ids: Vec<u8>,
    place: PixelPlace,
    /// Of [`PixelPlace::Gathered`].
    pixels: PooledPixels,
    /// Of [`PixelPlace::Stored`], image by image.
    stored_images: Vec<Bytes>,
    shape_bt: [usize; 2],
    shape_nchw: [usize; 4],
    image_spans: Vec<ImageSpan>,
    /// Of each image, as its shard has it.
    image_checksums: Vec<u32>,
    samples: Vec<SampleSlot>,
}

/// Collates the slots of each row. Where `health` is kept, damaged records turn into empty slots and the rest is done again: rare, and
/// the only way that extents stay a function of what is in the batch.
pub(crate) fn collate(
    dataset: &Dataset,
    spec: &BatchSpec,
    mut rows: Vec<Vec<Slot>>,
    place: PixelPlace,
    health: Option<&RecordHealth>,
) -> Result<Rows, DatasetError> {
    loop {
        let faults = match collate_once(dataset, spec, &rows, place) {
            Ok(rows) => return Ok(rows),
            Err(faults) => faults,
        };
        for RowFault { row, slot, fault } in faults {
            let (Slot::Sample(index), Some(health), true) = (rows[row][slot], health, fault.is_damage()) else {
                return Err(fault);
            };
            health.note_damaged(index, fault)?;
            dataset.forget_step_labels();
            rows[row][slot] = Slot::Damaged(index);
        }
    }
}

/// Which slot of which row could not be filled.
struct RowFault {
    row: usize,
    slot: usize,
    fault: DatasetError,
}

/// At most one of each row, at least one.
type RowFaults = Vec<RowFault>;

/// What a row takes of the tensors.
#[derive(Clone, Copy, Default)]
struct RowExtent {
    columns: u64,
    num_images: usize,
}

impl RowExtent {
    /// A slot whose lengths cannot be read comes back with the fault.
    fn of(dataset: &Dataset, spec: &BatchSpec, slots: &[Slot]) -> Result<Self, (usize, DatasetError)> {
        let mut extent = Self::default();
        for (number, slot) in slots.iter().enumerate() {
            if let Slot::Sample(index) = *slot {
                let lengths = dataset.lengths(index).map_err(|fault| (number, fault))?;
                extent.columns += expanded_length(&lengths, spec);
                extent.num_images += lengths.num_images as usize;
            }
        }
        Ok(extent)
    }
}

/// One row's part of every tensor, to be filled; no pixels where they stay stored.
struct RowOut<'a> {
    input_ids: &'a mut [u8],
    labels: &'a mut [u8],
    position_ids: &'a mut [u8],
    document_ids: &'a mut [u8],
    pixels: Option<&'a mut [u8]>,
}

/// What a filled slot tells of itself.
#[derive(Default)]
struct SampleDone {
    id: String,
    /// First column of each image.
    starts: Vec<u32>,
    /// Of each image.
    checksums: Vec<u32>,
    /// The images, where they stay stored.
    images: Vec<Bytes>,
}

fn collate_once(dataset: &Dataset, spec: &BatchSpec, rows: &[Vec<Slot>], place: PixelPlace) -> Result<Rows, RowFaults> {
    let extents = of_rows(rows.iter().map(|slots| RowExtent::of(dataset, spec, slots)))?;
    check_longest(dataset, spec, rows, &extents).map_err(|fault| vec![fault])?;
    let mut out = Rows::allocate(dataset, &extents, place);
    let done = out.fill(dataset, spec, rows, &extents)?;
    for (row, (slots, done)) in rows.iter().zip(done).enumerate() {
        out.describe(row as u32, slots, done);
    }
    Ok(out)
}

/// One result per row, or the faults by their rows and slots.
fn of_rows<T>(rows: impl IntoIterator<Item = Result<T, (usize, DatasetError)>>) -> Result<Vec<T>, RowFaults> {
    let (mut done, mut faults) = (Vec::new(), Vec::new());
    for (row, filled) in rows.into_iter().enumerate() {
        match filled {
            Ok(filled) => done.push(filled),
            Err((slot, fault)) => faults.push(RowFault { row, slot, fault }),
        }
    }
    if faults.is_empty() { Ok(done) } else { Err(faults) }
}

/// Refuses a batch with a row that exceeds the spec, by the name of a sample that does. A packed row fits by its plan.
fn check_longest(
    dataset: &Dataset,
    spec: &BatchSpec,
    rows: &[Vec<Slot>],
    extents: &[RowExtent],
) -> Result<(), RowFault> {
    let is_too_long = |extent: &RowExtent| extent.columns > u64::from(spec.max_length);
    let Some(row) = extents.iter().position(is_too_long) else { return Ok(()) };
    let mut longest = None;
    for (slot, sample) in rows[row].iter().enumerate() {
        let Slot::Sample(index) = *sample else { continue };
        let lengths = dataset.lengths(index).map_err(|fault| RowFault { row, slot, fault })?;
        longest = longest.max(Some((expanded_length(&lengths, spec), slot, index)));
    }
    match longest {
        Some((_, slot, index)) => Err(RowFault { row, slot, fault: dataset.too_long(spec, index) }),
        None => Ok(()),
    }
}

impl Rows {
    fn allocate(dataset: &Dataset, extents: &[RowExtent], place: PixelPlace) -> Self {
        let shape = dataset.info().processor.image_shape;
        let num_rows = extents.len();
        let columns = extents.iter().map(|extent| extent.columns).max().unwrap_or(0).max(1) as usize;
        let num_images: usize = extents.iter().map(|extent| extent.num_images).sum();
        let num_gathered = if place == PixelPlace::Gathered { num_images } else { 0 };
        let token_bytes = num_rows * columns * DType::I32.size_in_bytes();
        Self {
            input_ids: vec![0; token_bytes],
            labels: vec![0; token_bytes],
            position_ids: vec![0; token_bytes],
            document_ids: vec![0; token_bytes],
            place,
            pixels: dataset.take_pixels(num_gathered * shape.num_elements()),
            stored_images: Vec::with_capacity(num_images - num_gathered),
            shape_bt: [num_rows, columns],
            shape_nchw: [num_images, shape.channels as usize, shape.height as usize, shape.width as usize],
            image_spans: Vec::with_capacity(num_images),
            image_checksums: Vec::with_capacity(num_images),
            samples: Vec::with_capacity(num_rows),
        }
    }

    /// Fills all rows in parallel; the first failing slot of each row comes back with its fault.
    fn fill(
        &mut self,
        dataset: &Dataset,
        spec: &BatchSpec,
        rows: &[Vec<Slot>],
        extents: &[RowExtent],
    ) -> Result<Vec<Vec<SampleDone>>, RowFaults> {
        let parts = self.split_rows(extents, dataset.info().processor.image_shape.num_elements());
        let filled: Vec<Result<Vec<SampleDone>, (usize, DatasetError)>> = parts
            .into_par_iter()
            .zip(rows)
            .map(|(out, slots)| ROW_BUFFER.with_borrow_mut(|buffer| fill_row(dataset, spec, slots, buffer, out)))
            .collect();
        of_rows(filled)
    }

    /// Cuts the tensors into one part per row.
    fn split_rows(&mut self, extents: &[RowExtent], image_bytes: usize) -> Vec<RowOut<'_>> {
        let row_bytes = self.shape_bt[1] * DType::I32.size_in_bytes();
        let is_gathered = self.place == PixelPlace::Gathered;
        let mut pixels = &mut self.pixels[..];
        let tokens = self.input_ids.chunks_exact_mut(row_bytes).zip(self.labels.chunks_exact_mut(row_bytes));
        let places = self.position_ids.chunks_exact_mut(row_bytes).zip(self.document_ids.chunks_exact_mut(row_bytes));
        let rows = tokens.zip(places).zip(extents);
        rows.map(|(((input_ids, labels), (position_ids, document_ids)), extent)| {
            let mut of_row = || pixels.split_off_mut(..extent.num_images * image_bytes);
            let pixels = is_gathered.then(|| of_row().expect("allocated for these extents"));
            RowOut { input_ids, labels, position_ids, document_ids, pixels }
        })
        .collect()
    }

    /// Lists the samples and images of row `row`.
    fn describe(&mut self, row: u32, slots: &[Slot], done: Vec<SampleDone>) {
        for (slot, SampleDone { id, starts, checksums, images }) in slots.iter().zip(done) {
            self.stored_images.extend(images);
            self.image_checksums.extend(checksums);
            self.image_spans.extend(starts.into_iter().map(|start| ImageSpan { row, start }));
            let (index, valid) = match *slot {
                Slot::Sample(index) => (index, true),
                Slot::Damaged(index) => (index, false),
                Slot::Padding => (0, false),
            };
            self.samples.push(SampleSlot { row, index, id, valid });
        }
    }

    /// As [`Rows::into_batch`], the pixels left where they lie, be they gathered or not.
    pub(crate) fn into_scattered(
        mut self,
        position: Position,
        num_micro: u32,
        step_label_tokens: u64,
    ) -> Result<ScatteredBatch, DatasetError> {
        let pixel_shape = self.shape_nchw.to_vec();
        let pixel_pieces = match self.place {
            PixelPlace::Stored => std::mem::take(&mut self.stored_images),
            PixelPlace::Gathered => vec![Bytes::from_owner(std::mem::take(&mut self.pixels))],
        };
        self.shape_nchw[0] = 0;
        let image_checksums = std::mem::take(&mut self.image_checksums);
        let rest = self.into_batch(position, num_micro, step_label_tokens)?;
        Ok(ScatteredBatch { rest, pixel_shape, pixel_pieces, image_checksums })
    }

    /// The batch, with its place and the divisor of its step's loss; of gathered pixels.
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

/// Fills one row: its samples one after another, each a document of its own, then padding. A slot without a sample takes
/// no column.
fn fill_row(
    dataset: &Dataset,
    spec: &BatchSpec,
    slots: &[Slot],
    buffer: &mut RowBuffer,
    out: RowOut<'_>,
) -> Result<Vec<SampleDone>, (usize, DatasetError)> {
    let mut row = RowWriter { dataset, spec, out, end: 0, num_documents: 0 };
    let mut done = Vec::with_capacity(slots.len());
    for (number, slot) in slots.iter().enumerate() {
        done.push(match *slot {
            Slot::Sample(index) => row.write(index, buffer).map_err(|fault| (number, fault))?,
            Slot::Damaged(_) | Slot::Padding => SampleDone::default(),
        });
    }
    row.pad();
    Ok(done)
}

/// A row that is being filled from the left.
struct RowWriter<'a> {
    dataset: &'a Dataset,
    spec: &'a BatchSpec,
    out: RowOut<'a>,
    /// The first column that is free.
    end: usize,
    num_documents: i32,
}

impl RowWriter<'_> {
    /// Appends sample `index` as the next document.
    fn write(&mut self, index: u64, buffer: &mut RowBuffer) -> Result<SampleDone, DatasetError> {
        let Self { dataset, spec, .. } = *self;
        let processor = &dataset.info().processor;
        let image_bytes = processor.image_shape.num_elements();
        let num_bytes = dataset.lengths(index)?.num_images as usize * image_bytes;
        let mut pixels = self.out.pixels.as_mut().map(|pixels| {
            let of_sample = pixels.split_off_mut(..num_bytes);
            of_sample.expect("allocated for these images")
        });
        let images = dataset.read_with(index, |reader, row| {
            reader.read_row(row, buffer)?;
            check_lengths(dataset, index, buffer)?;
            let homes = buffer.images.iter();
            match &mut pixels {
                Some(pixels) => {
                    let mut images = homes.zip(pixels.chunks_exact_mut(image_bytes));
                    images.try_for_each(|(home, out)| reader.copy_image(row, &buffer.id, home, out))?;
                    Ok(Vec::new())
                }
                None => Ok(homes.map(|home| reader.image(row, &buffer.id, home)).collect::<Result<_, _>>()?),
            }
        })?;
        let (start, end) = (self.end, self.end + expanded_length(&buffer.lengths(), spec) as usize);
        let columns = 4 * start..4 * end;
        let (ids, labels) = (&mut self.out.input_ids[columns.clone()], &mut self.out.labels[columns.clone()]);
        let mut starts = expand(buffer, processor.image_token_id, spec.image_tokens as usize, ids, labels);
        starts.iter_mut().for_each(|column| *column += start as u32);
        if start > 0 {
            // A document's first token is predicted by nothing: what stands before it is of another document.
            fill_words(&mut labels[..4], IGNORE_LABEL);
        }
        self.num_documents += 1;
        write_words(&mut self.out.position_ids[columns.clone()], 0..(end - start) as i32);
        fill_words(&mut self.out.document_ids[columns], self.num_documents);
        self.end = end;
        let checksums = buffer.images.iter().map(|home| home.checksum).collect();
        Ok(SampleDone { id: buffer.id.clone(), starts, checksums, images })
    }

    /// Pads what is left.
    fn pad(self) {
        fill_words(&mut self.out.input_ids[4 * self.end..], self.dataset.info().processor.pad_token_id as i32);
        fill_words(&mut self.out.labels[4 * self.end..], IGNORE_LABEL);
    }
}

/// Reads all of record `index` and finds what [`collate`] would find.
pub(crate) fn probe(dataset: &Dataset, index: u64) -> Result<(), DatasetError> {
    ROW_BUFFER.with_borrow_mut(|buffer| {
        dataset.read_with(index, |reader, row| {
            reader.read_row(row, buffer)?;
            check_lengths(dataset, index, buffer)?;
            Ok(buffer.images.iter().try_for_each(|home| reader.image(row, &buffer.id, home).map(drop))?)
        })
    })
}

/// The record must be what the lengths index said when the tensors were allocated.
fn check_lengths(dataset: &Dataset, index: u64, buffer: &RowBuffer) -> Result<(), DatasetError> {
    let image_token = dataset.info().processor.image_token_id;
    let num_marks = buffer.input_ids.iter().filter(|&&id| id == image_token).count();
    let (expected, found) = (dataset.lengths(index)?, buffer.lengths());
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
