//! The small fields of one row, in buffers that are used again for the next.

use crc32fast::Hasher;
use vela_types::{Fingerprint, Language, RecordLengths};

/// Where an image's bytes stand in its shard, and how to know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHome {
    /// The row whose `pixels` cell holds the image.
    pub row: u32,
    /// Which image of that cell.
    pub index: u32,
    /// blake3 of the image's bytes.
    pub hash: Fingerprint,
    /// CRC-32 (IEEE) of the image's bytes.
    pub checksum: u32,
}

/// One row without its pixels. Reading into the same buffer again allocates nothing once it has grown.
#[derive(Default)]
pub struct RowBuffer {
    /// The record's id.
    pub id: String,
    /// The record's source.
    pub source: String,
    /// The language code.
    pub(crate) language_code: String,
    /// Token ids, image tokens unexpanded.
    pub input_ids: Vec<u32>,
    /// One per token.
    pub labels: Vec<i32>,
    /// One per image token, in order.
    pub images: Vec<ImageHome>,
    /// Decompressed page bodies.
    pub(crate) page: Vec<u8>,
    /// The decompressor, made on first use.
    pub(crate) zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl std::fmt::Debug for RowBuffer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("RowBuffer").field("id", &self.id).field("num_tokens", &self.input_ids.len()).finish()
    }
}

impl RowBuffer {
    /// The row's language; `None` if its code is not one of this version.
    pub fn language(&self) -> Option<Language> {
        parse_language(&self.language_code)
    }

    /// The row's entry in the lengths index.
    pub fn lengths(&self) -> RecordLengths {
        let predicted = self.labels.iter().skip(1).filter(|&&label| label != vela_types::IGNORE_LABEL).count();
        RecordLengths {
            num_tokens: self.input_ids.len() as u32,
            num_label_tokens: predicted as u32,
            num_images: self.images.len() as u32,
        }
    }
}

pub(crate) fn parse_language(code: &str) -> Option<Language> {
    [Language::En, Language::Zh, Language::Other].into_iter().find(|language| language.as_str() == code)
}

/// The fields that a row's checksum covers, in the order of `docs/formats/shard-v2.md`.
pub(crate) struct RowFields<'a> {
    pub(crate) row: u64,
    pub(crate) texts: [&'a str; 3],
    pub(crate) input_ids: &'a [u32],
    pub(crate) labels: &'a [i32],
    pub(crate) images: &'a [ImageHome],
}

impl RowFields<'_> {
    /// CRC-32 (IEEE) over the fields, numbers little-endian.
    pub(crate) fn checksum(&self) -> u32 {
        let mut hasher = Hasher::new();
        hasher.update(&self.row.to_le_bytes());
        for text in self.texts {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.update(&(self.input_ids.len() as u64).to_le_bytes());
        update_words(&mut hasher, self.input_ids.iter().map(|id| id.to_le_bytes()));
        update_words(&mut hasher, self.labels.iter().map(|label| label.to_le_bytes()));
        hasher.update(&(self.images.len() as u64).to_le_bytes());
        for image in self.images {
            hasher.update(&image.row.to_le_bytes());
            hasher.update(&image.index.to_le_bytes());
            hasher.update(&image.hash.0);
            hasher.update(&image.checksum.to_le_bytes());
        }
        hasher.finalize()
    }
}

/// Feeds words through a small block, so that the hasher sees long runs.
fn update_words(hasher: &mut Hasher, words: impl Iterator<Item = [u8; 4]>) {
    let mut block = [0u8; 1024];
    let mut filled = 0;
    for word in words {
        block[filled..filled + 4].copy_from_slice(&word);
        filled += 4;
        if filled == block.len() {
            hasher.update(&block);
            filled = 0;
        }
    }
    hasher.update(&block[..filled]);
}
