//! Writes one shard.

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, FixedLenByteArray, FixedLenByteArrayType, Int32Type};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use vela_types::{Fingerprint, IGNORE_LABEL, ImageTensor, ProcessorSummary, Record, RecordLengths};

use crate::ShardError;
use crate::build::CompletedShard;
use crate::manifest::ShardEntry;
use crate::row::{ImageHome, RowFields};
use crate::schema::{Column, MAX_TOKENS, file_schema, writer_properties};
use crate::store::{Store, StoreFile};

/// Bytes of one row group when settings do not say otherwise.
pub const DEFAULT_ROW_GROUP_BYTES: usize = 16 << 20;

/// What the bytes of a shard depend on besides its records.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardSettings {
    /// The processor that made the records.
    pub processor: ProcessorSummary,
    /// A row group is closed once it holds this many bytes; 8 to 32 MiB serve readers best.
    pub row_group_bytes: usize,
}

impl ShardSettings {
    /// Settings with [`DEFAULT_ROW_GROUP_BYTES`].
    pub fn new(processor: ProcessorSummary) -> Self {
        Self { processor, row_group_bytes: DEFAULT_ROW_GROUP_BYTES }
    }
}

/// The file name of shard `index`.
pub fn shard_file_name(index: u32) -> String {
    format!("shard-{index:05}.parquet")
}

/// Writes records into one shard file, which appears under its name only when [`ShardWriter::finish`] returns.
///
/// The bytes depend on the records, their order and the settings alone. Memory is bounded by one row group.
pub struct ShardWriter {
    path: String,
    settings: ShardSettings,
    parquet: SerializedFileWriter<HashingFile>,
    group: Vec<PendingRow>,
    group_bytes: usize,
    homes: HashMap<Fingerprint, ImageHome>,
    entry: ShardEntry,
    lengths: Vec<RecordLengths>,
}

impl std::fmt::Debug for ShardWriter {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ShardWriter").field("path", &self.path).field("rows", &self.entry.rows).finish()
    }
}

/// A record whose new images are still to be written.
struct PendingRow {
    texts: [String; 3],
    input_ids: Vec<u32>,
    labels: Vec<i32>,
    images: Vec<ImageHome>,
    pixels: Vec<Bytes>,
    checksum: u32,
}

impl ShardWriter {
    /// Starts shard `index` in `store`.
    pub fn create(store: Arc<dyn Store>, index: u32, settings: &ShardSettings) -> Result<Self, ShardError> {
        let file = shard_file_name(index);
        let path = store.path(&file);
        let sink = HashingFile::new(store.create(&file)?);
        let properties = writer_properties(&settings.processor).map_err(ShardError::parquet(&path))?;
        let schema = file_schema().map_err(ShardError::parquet(&path))?;
        let parquet =
            SerializedFileWriter::new(sink, schema, Arc::new(properties)).map_err(ShardError::parquet(&path))?;
        Ok(Self {
            entry: ShardEntry::empty(file),
            path,
            settings: settings.clone(),
            parquet,
            group: Vec::new(),
            group_bytes: 0,
            homes: HashMap::new(),
            lengths: Vec::new(),
        })
    }

    /// Rows pushed so far.
    pub fn rows(&self) -> u64 {
        self.entry.rows
    }

    /// Payload bytes pushed so far (pixels of new images, ids and labels before compression): what a shard size bounds.
    pub fn payload_bytes(&self) -> u64 {
        self.entry.payload_bytes()
    }

    /// Adds one record. A record that breaks the format's invariants is refused by name and leaves the shard as it was.
    pub fn push(&mut self, record: &Record) -> Result<(), ShardError> {
        check_record(record, &self.settings.processor)?;
        let lengths = record.lengths();
        let row = self.entry.rows;
        let (images, pixels) = self.place_images(record, row as u32);
        let texts = [record.id.clone(), record.source.clone(), record.language.as_str().to_owned()];
        let fields = RowFields {
            row,
            texts: [&texts[0], &texts[1], &texts[2]],
            input_ids: &record.input_ids,
            labels: &record.labels,
            images: &images,
        };
        let checksum = fields.checksum();
        let bytes = pixels.iter().map(Bytes::len).sum::<usize>() + 8 * record.input_ids.len();
        let (input_ids, labels) = (record.input_ids.clone(), record.labels.clone());
        self.entry.count(&lengths, pixels.len() as u64, self.settings.processor.image_shape);
        self.lengths.push(lengths);
        self.group.push(PendingRow { texts, input_ids, labels, images, pixels, checksum });
        self.group_bytes += bytes;
        match self.group_bytes >= self.settings.row_group_bytes {
            true => self.write_group(),
            false => Ok(()),
        }
    }

    /// Gives each image its home: the cell that already holds it, or this row's.
    fn place_images(&mut self, record: &Record, row: u32) -> (Vec<ImageHome>, Vec<Bytes>) {
        let mut pixels = Vec::new();
        let homes = record.images.iter().map(|image| {
            *self.homes.entry(image.hash).or_insert_with(|| {
                pixels.push(image.data.clone());
                let checksum = crc32fast::hash(&image.data);
                ImageHome { row, index: pixels.len() as u32 - 1, hash: image.hash, checksum }
            })
        });
        (homes.collect(), pixels)
    }

    fn write_group(&mut self) -> Result<(), ShardError> {
        if self.group.is_empty() {
            return Ok(());
        }
        let mut group = self.parquet.next_row_group().map_err(ShardError::parquet(&self.path))?;
        for column in Column::ALL {
            write_column(&mut group, column, &self.group).map_err(ShardError::parquet(&self.path))?;
        }
        group.close().map_err(ShardError::parquet(&self.path))?;
        self.group.clear();
        self.group_bytes = 0;
        Ok(())
    }

    /// Writes the footer, makes the file durable and gives its manifest entry and lengths.
    pub fn finish(mut self) -> Result<CompletedShard, ShardError> {
        self.write_group()?;
        self.parquet.flush().map_err(ShardError::write(&self.path))?;
        self.entry.index_offset = self.parquet.bytes_written() as u64;
        self.parquet.inner_mut().index_hash = Some(blake3::Hasher::new());
        let sink = self.parquet.into_inner().map_err(ShardError::parquet(&self.path))?;
        self.entry.bytes = sink.bytes;
        self.entry.checksum = Fingerprint(*sink.file_hash.finalize().as_bytes());
        let index_hash = sink.index_hash.expect("set above");
        self.entry.index_checksum = Fingerprint(*index_hash.finalize().as_bytes());
        sink.file.publish()?;
        Ok(CompletedShard { entry: self.entry, lengths: self.lengths })
    }
}

/// Writes one page per row.
fn write_column<W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    column: Column,
    rows: &[PendingRow],
) -> Result<(), parquet::errors::ParquetError> {
    match column {
        Column::Id => write_cells::<W, ByteArrayType>(group, rows, |row| ByteArray::from(row.texts[0].as_str())),
        Column::Source => write_cells::<W, ByteArrayType>(group, rows, |row| ByteArray::from(row.texts[1].as_str())),
        Column::Language => write_cells::<W, ByteArrayType>(group, rows, |row| ByteArray::from(row.texts[2].as_str())),
        Column::InputIds => {
            write_lists::<W, Int32Type>(group, rows, |row, out| out.extend(row.input_ids.iter().map(|&id| id as i32)))
        }
        Column::Labels => write_lists::<W, Int32Type>(group, rows, |row, out| out.extend(&row.labels)),
        Column::ImageRows => write_images::<W>(group, rows, |image| image.row as i32),
        Column::ImageIndices => write_images::<W>(group, rows, |image| image.index as i32),
        Column::ImageHashes => write_lists::<W, FixedLenByteArrayType>(group, rows, |row, out| {
            out.extend(row.images.iter().map(|image| FixedLenByteArray::from(ByteArray::from(image.hash.0.to_vec()))));
        }),
        Column::ImageChecksums => write_images::<W>(group, rows, |image| image.checksum as i32),
        Column::Checksum => write_cells::<W, Int32Type>(group, rows, |row| row.checksum as i32),
        Column::Pixels => write_cells::<W, ByteArrayType>(group, rows, |row| match &row.pixels[..] {
            [one] => ByteArray::from(one.clone()),
            several => ByteArray::from(several.concat()),
        }),
    }
}

fn write_cells<W: Write + Send, T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    rows: &[PendingRow],
    cell: impl Fn(&PendingRow) -> T::T,
) -> Result<(), parquet::errors::ParquetError> {
    let mut writer = group.next_column()?.expect("the schema has a column for each `Column`");
    for row in rows {
        writer.typed::<T>().write_batch(&[cell(row)], None, None)?;
    }
    writer.close()
}

fn write_images<W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    rows: &[PendingRow],
    value: impl Fn(&ImageHome) -> i32,
) -> Result<(), parquet::errors::ParquetError> {
    write_lists::<W, Int32Type>(group, rows, |row, out| out.extend(row.images.iter().map(&value)))
}

fn write_lists<W: Write + Send, T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    rows: &[PendingRow],
    fill: impl Fn(&PendingRow, &mut Vec<T::T>),
) -> Result<(), parquet::errors::ParquetError> {
    let mut writer = group.next_column()?.expect("the schema has a column for each `Column`");
    let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        values.clear();
        fill(row, &mut values);
        // An empty list is one undefined value; a full one starts a record once and then repeats.
        let levels = values.len().max(1);
        defined.clear();
        defined.resize(levels, i16::from(!values.is_empty()));
        repeated.clear();
        repeated.resize(levels, 1);
        repeated[0] = 0;
        writer.typed::<T>().write_batch(&values, Some(&defined), Some(&repeated))?;
    }
    writer.close()
}

/// Refuses what a reader could not trust: misaligned labels, ids outside the vocabulary, images that do not fit.
fn check_record(record: &Record, processor: &ProcessorSummary) -> Result<(), ShardError> {
    let refuse = |what, expected: String, found: String| {
        Err(ShardError::Record { id: record.id.clone(), what, expected, found })
    };
    let num_tokens = record.input_ids.len();
    if num_tokens == 0 || num_tokens > MAX_TOKENS {
        return refuse("number of tokens", format!("1 to {MAX_TOKENS}"), num_tokens.to_string());
    }
    if record.labels.len() != num_tokens {
        return refuse("number of labels", num_tokens.to_string(), record.labels.len().to_string());
    }
    if let Some(id) = record.input_ids.iter().find(|&&id| id >= processor.vocab_size) {
        return refuse("token id", format!("below {}", processor.vocab_size), id.to_string());
    }
    let mut pairs = record.input_ids.iter().zip(&record.labels);
    if let Some((id, label)) = pairs.find(|&(&id, &label)| label != IGNORE_LABEL && label != id as i32) {
        return refuse("label", format!("{id} or {IGNORE_LABEL}"), label.to_string());
    }
    if record.lengths().num_label_tokens == 0 {
        return refuse("predicted tokens", "at least 1".to_owned(), "0".to_owned());
    }
    let num_marks = record.input_ids.iter().filter(|&&id| id == processor.image_token_id).count();
    if num_marks != record.images.len() {
        return refuse("number of images", format!("{num_marks} (image tokens)"), record.images.len().to_string());
    }
    record.images.iter().try_for_each(|image| check_image(&record.id, image, processor))
}

fn check_image(id: &str, image: &ImageTensor, processor: &ProcessorSummary) -> Result<(), ShardError> {
    let refuse =
        |what, expected: String, found: String| Err(ShardError::Record { id: id.to_owned(), what, expected, found });
    let shape = processor.image_shape;
    if image.shape != shape {
        return refuse("image shape", format!("{shape:?}"), format!("{:?}", image.shape));
    }
    if image.data.len() != shape.num_elements() {
        return refuse("image bytes", shape.num_elements().to_string(), image.data.len().to_string());
    }
    let hash = Fingerprint(*blake3::hash(&image.data).as_bytes());
    match hash == image.hash {
        true => Ok(()),
        false => refuse("image hash", image.hash.to_string(), hash.to_string()),
    }
}

/// A file that hashes what passes through it: the whole, and the index after the last page.
struct HashingFile {
    file: Box<dyn StoreFile>,
    bytes: u64,
    file_hash: blake3::Hasher,
    index_hash: Option<blake3::Hasher>,
}

impl HashingFile {
    fn new(file: Box<dyn StoreFile>) -> Self {
        Self { file, bytes: 0, file_hash: blake3::Hasher::new(), index_hash: None }
    }
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        self.file_hash.update(&bytes[..written]);
        if let Some(index_hash) = &mut self.index_hash {
            index_hash.update(&bytes[..written]);
        }
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
