//! The manifest: what makes a folder of shards a data set.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use vela_types::{DatasetInfo, Fingerprint, ImageShape, ProcessorSummary, RecordLengths};

use crate::ShardError;
use crate::lengths::{LengthsFiles, LengthsIndex};
use crate::schema::SCHEMA_VERSION;
use crate::store::{Claim, Store};

/// Name of the manifest in its folder.
pub const MANIFEST_FILE: &str = "manifest.json";

/// One shard in the manifest's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Name in the folder.
    pub file: String,
    /// Records.
    pub rows: u64,
    /// Size of the file.
    pub bytes: u64,
    /// blake3 of the file.
    pub checksum: Fingerprint,
    /// Where the pages end and the offset index begins.
    pub index_offset: u64,
    /// blake3 of the file from `index_offset` to its end: verified at each open.
    pub index_checksum: Fingerprint,
    /// Tokens, an image counted as one.
    pub num_tokens: u64,
    /// Tokens that are predicted.
    pub num_label_tokens: u64,
    /// Images, each use counted.
    pub num_images: u64,
    /// Images stored: each different one once.
    pub num_stored_images: u64,
    /// Bytes of those images.
    pub pixel_bytes: u64,
}

impl ShardEntry {
    pub(crate) fn empty(file: String) -> Self {
        let none = Fingerprint::default();
        Self {
            file,
            rows: 0,
            bytes: 0,
            checksum: none,
            index_offset: 0,
            index_checksum: none,
            num_tokens: 0,
            num_label_tokens: 0,
            num_images: 0,
            num_stored_images: 0,
            pixel_bytes: 0,
        }
    }

    /// The file of this shard.
    pub fn file_entry(&self) -> FileEntry {
        FileEntry { file: self.file.clone(), bytes: self.bytes, checksum: self.checksum }
    }

    /// Adds one record to the counts.
    pub(crate) fn count(&mut self, lengths: &RecordLengths, new_images: u64, shape: ImageShape) {
        self.rows += 1;
        self.num_tokens += u64::from(lengths.num_tokens);
        self.num_label_tokens += u64::from(lengths.num_label_tokens);
        self.num_images += u64::from(lengths.num_images);
        self.num_stored_images += new_images;
        self.pixel_bytes += new_images * shape.num_elements() as u64;
    }

    pub(crate) fn payload_bytes(&self) -> u64 {
        self.pixel_bytes + 8 * self.num_tokens
    }
}

/// Sums over all shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Records.
    pub rows: u64,
    /// Bytes of all shard files.
    pub bytes: u64,
    /// Tokens, an image counted as one.
    pub num_tokens: u64,
    /// Tokens that are predicted.
    pub num_label_tokens: u64,
    /// Images, each use counted.
    pub num_images: u64,
}

impl Totals {
    /// The sums over `shards`.
    pub fn of(shards: &[ShardEntry]) -> Self {
        shards.iter().fold(Self::default(), |sum, shard| Self {
            rows: sum.rows + shard.rows,
            bytes: sum.bytes + shard.bytes,
            num_tokens: sum.num_tokens + shard.num_tokens,
            num_label_tokens: sum.num_label_tokens + shard.num_label_tokens,
            num_images: sum.num_images + shard.num_images,
        })
    }
}

/// A file beside the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Name in the folder.
    pub file: String,
    /// Size.
    pub bytes: u64,
    /// blake3 of the file.
    pub checksum: Fingerprint,
}

/// The list of everything that belongs to a shard set. Written last, once, in one step; readers follow it alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA_VERSION`] of the writer.
    pub version: u32,
    /// blake3 of format, processor, shards and settings: names the data set. Equal builds of equal inputs have equal
    /// fingerprints on every machine; shards with other pixels or tokens have another.
    pub fingerprint: Fingerprint,
    /// What the builder called the build before its first shard was made; a build with this name continues the folder.
    pub plan: Fingerprint,
    /// The shards; records are numbered through them in this order.
    pub shards: Vec<ShardEntry>,
    /// Sums over `shards`.
    pub totals: Totals,
    /// Inputs that became no record, by cause.
    pub rejects: BTreeMap<String, u64>,
    /// The lengths index.
    pub lengths: FileEntry,
    /// The sums of its blocks.
    pub lengths_sums: FileEntry,
    /// The processor that made the records.
    pub processor: ProcessorSummary,
    /// The build's settings, for people; part of the fingerprint.
    pub build: serde_json::Value,
    /// blake3 of this manifest in compact JSON with this field empty.
    pub checksum: String,
}

/// The one field that every version has.
#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

impl Manifest {
    /// Reads and verifies the manifest of a folder: version, unknown keys, its own checksum, sums, file names.
    /// Its shards are verified as they are opened, its lengths index by [`Manifest::open_lengths`].
    pub fn load(store: &dyn Store) -> Result<Self, ShardError> {
        let path = store.path(MANIFEST_FILE);
        let content = store.read(MANIFEST_FILE)?.ok_or_else(|| ShardError::MissingManifest { path: path.clone() })?;
        let json_fault = |source| ShardError::Json { path: path.clone(), what: "manifest", source };
        let version = serde_json::from_slice::<VersionOnly>(&content).map_err(json_fault)?.version;
        if version != SCHEMA_VERSION {
            return Err(ShardError::Version { path, expected: SCHEMA_VERSION, found: version });
        }
        let manifest: Self = serde_json::from_slice(&content).map_err(json_fault)?;
        manifest.check(&path, &content)?;
        Ok(manifest)
    }

    fn check(&self, path: &str, content: &[u8]) -> Result<(), ShardError> {
        let damaged = |what, expected: String, found: String| {
            Err(ShardError::DamagedFile { path: path.to_owned(), what, expected, found })
        };
        let checksum = self.compute_checksum();
        if checksum != self.checksum {
            return damaged("checksum of the manifest", checksum, self.checksum.clone());
        }
        if self.to_json() != content {
            return damaged(
                "form of the manifest",
                "the bytes Vela writes".to_owned(),
                "unknown keys or another layout".to_owned(),
            );
        }
        if self.fingerprint != self.compute_fingerprint() {
            return damaged("fingerprint", self.compute_fingerprint().to_string(), self.fingerprint.to_string());
        }
        if self.totals != Totals::of(&self.shards) {
            return damaged("totals", format!("{:?}", Totals::of(&self.shards)), format!("{:?}", self.totals));
        }
        let mut seen = BTreeSet::new();
        let beside = [&self.lengths.file, &self.lengths_sums.file];
        for name in self.shards.iter().map(|shard| &shard.file).chain(beside) {
            if !is_plain_name(name) {
                return damaged("file name", "a name without folders".to_owned(), name.clone());
            }
            if !seen.insert(name) {
                return damaged("file name", "each name once".to_owned(), format!("`{name}` more than once"));
            }
        }
        Ok(())
    }

    /// Opens the lengths index: its sums are verified against this manifest, its rows against the sums as they are read.
    pub fn open_lengths(&self, store: &dyn Store) -> Result<LengthsIndex, ShardError> {
        LengthsIndex::open(store, &self.lengths_files(), self.totals.rows)
    }

    /// The files of the lengths index.
    pub(crate) fn lengths_files(&self) -> LengthsFiles {
        LengthsFiles { lengths: self.lengths.clone(), sums: self.lengths_sums.clone() }
    }

    /// Names and seals the manifest and makes it visible: after this the folder is a data set. Of several builds that
    /// commit into one folder one wins, and the others are told whose set it is; equal builds all win.
    pub fn commit(&mut self, store: &dyn Store) -> Result<(), ShardError> {
        self.fingerprint = self.compute_fingerprint();
        self.checksum = self.compute_checksum();
        match store.create_new(MANIFEST_FILE, &self.to_json())? {
            Claim::Won => Ok(()),
            Claim::Lost(_) => {
                let found = Self::load(store)?.plan;
                Err(ShardError::CommitLost { path: store.path(MANIFEST_FILE), expected: self.plan, found })
            }
        }
    }

    /// What a trainer needs to know of the set.
    pub fn info(&self) -> DatasetInfo {
        DatasetInfo {
            fingerprint: self.fingerprint,
            num_samples: self.totals.rows,
            num_images: self.totals.num_images,
            num_tokens: self.totals.num_tokens,
            processor: self.processor.clone(),
        }
    }

    /// Of nothing that differs between machines: no plan, no time, no path.
    fn compute_fingerprint(&self) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"vela shard set\n").update(&self.version.to_le_bytes()).update(&self.processor.fingerprint.0);
        self.shards.iter().for_each(|shard| _ = hasher.update(&shard.checksum.0));
        hasher.update(self.build.to_string().as_bytes());
        Fingerprint(*hasher.finalize().as_bytes())
    }

    fn compute_checksum(&self) -> String {
        let unsealed = Self { checksum: String::new(), ..self.clone() };
        let compact = serde_json::to_vec(&unsealed).expect("a manifest has string keys only");
        blake3::hash(&compact).to_hex().to_string()
    }

    fn to_json(&self) -> Vec<u8> {
        let mut content = serde_json::to_vec_pretty(self).expect("a manifest has string keys only");
        content.push(b'\n');
        content
    }
}

/// A name that cannot leave its folder.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
}
