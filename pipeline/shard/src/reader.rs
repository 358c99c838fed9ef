//! Reads rows of one shard out of its mapped bytes, each checked before it is given away.

use bytes::Bytes;
use vela_types::{Fingerprint, ImageShape, ImageTensor, Language, Record};

use crate::ShardError;
use crate::manifest::ShardEntry;
use crate::page::{byte_array_value, list_values, parse_header};
use crate::page_table::PageTable;
use crate::row::{ImageHome, RowBuffer, RowFields, parse_language};
use crate::schema::{Column, MAX_TOKENS};
use crate::store::{Store, open_mapped};

/// Bytes a decompressed list page can have at most: the longest record, its level runs, and their lengths.
const MAX_BODY_BYTES: usize = 4 * MAX_TOKENS + MAX_TOKENS / 2 + 64;

/// One shard, mapped. Cheap to share; every method may be called from many threads at once.
#[derive(Debug)]
pub struct ShardReader {
    path: String,
    file: Bytes,
    table: PageTable,
}

impl ShardReader {
    /// Maps the shard that `entry` names and verifies its size and its index (offset index and footer), not its rows:
    /// those are verified as they are read. Errors name the file.
    pub fn open(store: &dyn Store, entry: &ShardEntry) -> Result<Self, ShardError> {
        let path = store.path(&entry.file);
        open_mapped(store, &entry.file_entry(), |file| Self::parse(path.clone(), file, entry))
    }

    fn parse(path: String, file: Bytes, entry: &ShardEntry) -> Result<Self, ShardError> {
        let damaged = |what, expected: String, found: String| {
            Err(ShardError::DamagedFile { path: path.clone(), what, expected, found })
        };
        if file.len() as u64 != entry.bytes {
            return damaged("size in bytes", entry.bytes.to_string(), file.len().to_string());
        }
        if !file.starts_with(b"PAR1") {
            return damaged("first bytes", "`PAR1`".to_owned(), "others".to_owned());
        }
        let index = usize::try_from(entry.index_offset).ok().and_then(|offset| file.get(offset..)).unwrap_or_default();
        let checksum = Fingerprint(*blake3::hash(index).as_bytes());
        if checksum != entry.index_checksum {
            return damaged("checksum of index and footer", entry.index_checksum.to_string(), checksum.to_string());
        }
        let table = PageTable::parse(&path, &file)?;
        match table.rows() == entry.rows {
            true => Ok(Self { path, file, table }),
            false => damaged("number of rows", entry.rows.to_string(), table.rows().to_string()),
        }
    }

    /// Rows of the shard.
    pub fn rows(&self) -> u64 {
        self.table.rows()
    }

    /// Extent of every image of the shard.
    pub fn image_shape(&self) -> ImageShape {
        self.table.image_shape
    }

    /// The file, for messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Compares every byte of the file with the checksum of `entry`.
    pub fn verify(&self, entry: &ShardEntry) -> Result<(), ShardError> {
        let found = Fingerprint(*blake3::hash(&self.file).as_bytes());
        match found == entry.checksum {
            true => Ok(()),
            false => Err(ShardError::DamagedFile {
                path: self.path.clone(),
                what: "checksum of the file",
                expected: entry.checksum.to_string(),
                found: found.to_string(),
            }),
        }
    }

    /// Reads a whole record; its pixels are slices of the mapped file.
    pub fn read(&self, row: u64) -> Result<Record, ShardError> {
        let mut buffer = RowBuffer::default();
        self.read_row(row, &mut buffer)?;
        let images = buffer.images.iter().map(|home| {
            let data = self.image(row, &buffer.id, home)?;
            Ok(ImageTensor { shape: self.image_shape(), data, hash: home.hash })
        });
        Ok(Record {
            language: buffer.language().unwrap_or(Language::Other),
            images: images.collect::<Result<_, ShardError>>()?,
            id: buffer.id,
            source: buffer.source,
            input_ids: buffer.input_ids,
            labels: buffer.labels,
        })
    }

    /// Reads everything of a row but its pixels into `buffer` and checks it against the row's checksum.
    pub fn read_row(&self, row: u64, buffer: &mut RowBuffer) -> Result<(), ShardError> {
        if row >= self.rows() {
            return Err(ShardError::NoSuchRow { path: self.path.clone(), row, rows: self.rows() });
        }
        buffer.id.clear();
        self.decode_row(row, buffer).map_err(|what| {
            let id = if buffer.id.is_empty() { "?" } else { &buffer.id };
            self.row_fault(row, id, what.to_owned())
        })
    }

    fn decode_row(&self, row: u64, buffer: &mut RowBuffer) -> Result<(), &'static str> {
        let RowBuffer { id, source, language_code, input_ids, labels, images, page, zstd } = buffer;
        self.read_text(row, Column::Id, id)?;
        self.read_text(row, Column::Source, source)?;
        self.read_text(row, Column::Language, language_code)?;
        let values = self.read_list(row, Column::InputIds, 4, page, zstd)?;
        input_ids.clear();
        input_ids.extend(words(values));
        let values = self.read_list(row, Column::Labels, 4, page, zstd)?;
        labels.clear();
        labels.extend(words(values).map(|word| word as i32));
        self.read_images(row, images)?;
        let stored = self.plain_body(row, Column::Checksum)?.1;
        let fields = RowFields { row, texts: [id, source, language_code], input_ids, labels, images };
        match *stored == fields.checksum().to_le_bytes() {
            true if parse_language(language_code).is_some() => Ok(()),
            true => Err("the language is not one of this version"),
            false => Err("the checksum of the record does not match its fields"),
        }
    }

    fn read_images(&self, row: u64, images: &mut Vec<ImageHome>) -> Result<(), &'static str> {
        let list = |column, value_bytes| {
            let (num_values, body) = self.plain_body(row, column)?;
            list_values(body, num_values, value_bytes)
        };
        let (rows, indices) = (list(Column::ImageRows, 4)?, list(Column::ImageIndices, 4)?);
        let (hashes, checksums) = (list(Column::ImageHashes, 32)?, list(Column::ImageChecksums, 4)?);
        if [indices.len(), checksums.len(), hashes.len() / 8] != [rows.len(); 3] {
            return Err("the image columns differ in length");
        }
        images.clear();
        let numbers = words(rows).zip(words(indices)).zip(words(checksums)).zip(hashes.as_chunks::<32>().0);
        images.extend(numbers.map(|(((row, index), checksum), hash)| ImageHome {
            row,
            index,
            hash: Fingerprint(*hash),
            checksum,
        }));
        Ok(())
    }

    /// The page of an uncompressed column: its value count and its body.
    fn plain_body(&self, row: u64, column: Column) -> Result<(usize, &[u8]), &'static str> {
        let page = self.page(row, column)?;
        let header = parse_header(page)?;
        match header.body_bytes == header.stored_bytes {
            true => Ok((header.num_values, &page[header.header_bytes..])),
            false => Err("an uncompressed page has two sizes"),
        }
    }

    fn page(&self, row: u64, column: Column) -> Result<&[u8], &'static str> {
        let range = self.table.page(&self.file, row, column)?;
        self.file.get(range).ok_or("the page lies outside the file")
    }

    fn read_text(&self, row: u64, column: Column, out: &mut String) -> Result<(), &'static str> {
        let value = byte_array_value(self.plain_body(row, column)?.1)?;
        out.clear();
        out.push_str(std::str::from_utf8(value).map_err(|_| "a text column is not UTF-8")?);
        Ok(())
    }

    /// The values of a compressed list page.
    fn read_list<'a>(
        &self,
        row: u64,
        column: Column,
        value_bytes: usize,
        body: &'a mut Vec<u8>,
        zstd: &mut Option<zstd::bulk::Decompressor<'static>>,
    ) -> Result<&'a [u8], &'static str> {
        let page = self.page(row, column)?;
        let header = parse_header(page)?;
        if header.body_bytes > MAX_BODY_BYTES {
            return Err("a token page is longer than any record");
        }
        let decompressor = match zstd {
            Some(decompressor) => decompressor,
            None => zstd.insert(zstd::bulk::Decompressor::new().map_err(|_| "zstd cannot start")?),
        };
        body.clear();
        body.reserve(header.body_bytes);
        let decompressed = decompressor.decompress_to_buffer(&page[header.header_bytes..], body);
        match decompressed {
            Ok(bytes) if bytes == header.body_bytes => list_values(body, header.num_values, value_bytes),
            _ => Err("a token page does not decompress"),
        }
    }

    /// The bytes of one image, sliced out of the mapped file after its checksum was verified. `row` and `id` are those
    /// of the record that uses it, for the error.
    pub fn image(&self, row: u64, id: &str, home: &ImageHome) -> Result<Bytes, ShardError> {
        let data = self.find_image(row, id, home)?;
        self.check_image(row, id, home, crc32fast::hash(data))?;
        Ok(self.file.slice_ref(data))
    }

    /// Copies one image into `out` and verifies its checksum on the way, block by block while a block is in cache.
    /// `out` must be one image long.
    pub fn copy_image(&self, row: u64, id: &str, home: &ImageHome, out: &mut [u8]) -> Result<(), ShardError> {
        let data = self.find_image(row, id, home)?;
        let mut hasher = crc32fast::Hasher::new();
        for (from, to) in data.chunks(COPY_BLOCK_BYTES).zip(out.chunks_mut(COPY_BLOCK_BYTES)) {
            hasher.update(from);
            to.copy_from_slice(from);
        }
        self.check_image(row, id, home, hasher.finalize())
    }

    fn find_image(&self, row: u64, id: &str, home: &ImageHome) -> Result<&[u8], ShardError> {
        let image_bytes = self.image_shape().num_elements();
        let start = home.index as usize * image_bytes;
        let cell = self.plain_body(u64::from(home.row), Column::Pixels).and_then(|(_, body)| byte_array_value(body));
        let data = cell.and_then(|cell| cell.get(start..start + image_bytes).ok_or("the cell of pixels is too short"));
        data.map_err(|what| self.row_fault(row, id, format!("image {} of row {}: {what}", home.index, home.row)))
    }

    fn check_image(&self, row: u64, id: &str, home: &ImageHome, found: u32) -> Result<(), ShardError> {
        let ImageHome { row: home_row, index, checksum, .. } = *home;
        match found == checksum {
            true => Ok(()),
            false => {
                let what =
                    format!("image {index} of row {home_row}: expected checksum {checksum:08x}, found {found:08x}");
                Err(self.row_fault(row, id, what))
            }
        }
    }

    fn row_fault(&self, row: u64, id: &str, what: String) -> ShardError {
        ShardError::DamagedRow { path: self.path.clone(), row, id: id.to_owned(), what }
    }
}

/// Small enough to stay in the first-level cache between checksum and copy.
const COPY_BLOCK_BYTES: usize = 16 << 10;

/// Little-endian words; a rest of less than four bytes was refused before.
fn words(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word))
}
