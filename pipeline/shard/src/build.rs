//! A folder that is becoming a shard set: which shards are already good, and the commit that makes it one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vela_types::{Fingerprint, RecordLengths};

use crate::ShardError;
use crate::lengths::{LengthsFiles, LengthsWriter};
use crate::manifest::{FileEntry, Manifest, ShardEntry, Totals};
use crate::reader::ShardReader;
use crate::row::RowBuffer;
use crate::schema::SCHEMA_VERSION;
use crate::store::{Store, is_partial_name, write_whole};
use crate::writer::{ShardSettings, ShardWriter, shard_file_name};

/// A finished shard file: its manifest entry and its part of the lengths index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompletedShard {
    /// For the manifest.
    pub entry: ShardEntry,
    /// One per row.
    pub lengths: Vec<RecordLengths>,
}

/// `shard-00003.json`, written after its shard and removed by the commit.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Completion {
    version: u32,
    plan: Fingerprint,
    shard: CompletedShard,
    notes: serde_json::Value,
    /// The store's name for the shard's content, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
}

/// A build in a folder. Stopped at any moment it leaves complete shards, each with a completion file, and perhaps one
/// partial file; a build with the same plan keeps the former and overwrites the latter.
#[derive(Debug)]
pub struct BuildFolder {
    store: Arc<dyn Store>,
    plan: Fingerprint,
    settings: ShardSettings,
}

/// Completions that are read at once.
const READ_AT_ONCE: usize = 16;

/// All shards of a build on their way into a set: their entries, and an index of their lengths that is not visible yet.
pub struct GatheredShards {
    shards: Vec<ShardEntry>,
    lengths: LengthsWriter,
}

impl GatheredShards {
    /// True if there is no record in any of them.
    pub fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.rows == 0)
    }
}

/// Shards and completions.
fn is_build_file(name: &str) -> bool {
    name.starts_with("shard-") && (name.ends_with(".json") || name.ends_with(".parquet"))
}

fn completion_file_name(index: u32) -> String {
    format!("shard-{index:05}.json")
}

impl BuildFolder {
    /// Takes the folder for the build `plan`: a hash of all that decides its bytes, known before the first shard is
    /// made. Refuses a folder that holds a finished set of another build.
    pub fn open(store: Arc<dyn Store>, plan: Fingerprint, settings: ShardSettings) -> Result<Self, ShardError> {
        let folder = Self { store, plan, settings };
        folder.manifest()?;
        Ok(folder)
    }

    /// The same build with its files in another place, such as one for shards that are made only to be compared.
    pub fn elsewhere(&self, store: Arc<dyn Store>) -> Self {
        Self { store, plan: self.plan, settings: self.settings.clone() }
    }

    /// The committed manifest, if this very build has already been finished here.
    pub fn manifest(&self) -> Result<Option<Manifest>, ShardError> {
        let manifest = match Manifest::load(self.store.as_ref()) {
            Err(ShardError::MissingManifest { .. }) => return Ok(None),
            loaded => loaded?,
        };
        match manifest.plan == self.plan {
            true => Ok(Some(manifest)),
            false => Err(ShardError::ForeignBuild {
                path: self.store.path(crate::MANIFEST_FILE),
                expected: self.plan,
                found: manifest.plan,
            }),
        }
    }

    /// Starts (again) shard `index`. A completion left by another build is removed first.
    pub fn create_shard(&self, index: u32) -> Result<ShardWriter, ShardError> {
        self.store.remove(&completion_file_name(index))?;
        ShardWriter::create(Arc::clone(&self.store), index, &self.settings)
    }

    /// Records that shard `index` is complete, with notes (its rejects, say) that a resumed build gets back.
    pub fn complete_shard(
        &self,
        index: u32,
        shard: &CompletedShard,
        notes: serde_json::Value,
    ) -> Result<(), ShardError> {
        let path = self.store.path(&shard.entry.file);
        let Some(stamp) = self.store.stamp(&shard.entry.file)? else { return Err(ShardError::MissingFile { path }) };
        if stamp.bytes != shard.entry.bytes {
            let (expected, found) = (shard.entry.bytes.to_string(), stamp.bytes.to_string());
            return Err(ShardError::DamagedFile { path, what: "size of the file just written", expected, found });
        }
        let (shard, tag) = (shard.clone(), stamp.tag);
        let completion = Completion { version: SCHEMA_VERSION, plan: self.plan, shard, notes, tag };
        let content = serde_json::to_vec(&completion).expect("a completion has string keys only");
        write_whole(self.store.as_ref(), &completion_file_name(index), &content)
    }

    /// Shard `index` and its notes if this build has completed it and every byte of it is still there; `None` if it has to
    /// be made. A store that names contents is believed to hold what it named; otherwise the shard is read.
    pub fn completed_shard(&self, index: u32) -> Result<Option<(CompletedShard, serde_json::Value)>, ShardError> {
        let Some(completion) = self.read_completion(index)? else { return Ok(None) };
        let entry = &completion.shard.entry;
        let is_whole = match self.store.stamp(&entry.file)? {
            None => false,
            Some(stamp) if stamp.bytes != entry.bytes => false,
            Some(stamp) if stamp.tag.is_some() && completion.tag.is_some() => stamp.tag == completion.tag,
            Some(_) => self.store.hash(&entry.file)? == Some(entry.checksum),
        };
        Ok(is_whole.then_some((completion.shard, completion.notes)))
    }

    fn read_completion(&self, index: u32) -> Result<Option<Completion>, ShardError> {
        let content = self.store.read(&completion_file_name(index))?;
        Ok(content.and_then(|content| self.parse_completion(index, &content)))
    }

    /// A completion of this build; another build's, a broken or an older one counts as none, since making the shard
    /// again is always right.
    fn parse_completion(&self, index: u32, content: &[u8]) -> Option<Completion> {
        let completion = serde_json::from_slice::<Completion>(content).ok();
        completion.filter(|found| {
            found.version == SCHEMA_VERSION
                && found.plan == self.plan
                && found.shard.entry.file == shard_file_name(index)
                && found.shard.entry.rows == found.shard.lengths.len() as u64
        })
    }

    /// Reads the completions of shards `0..num_shards`, which must all be there, and hands the notes of each to `take_notes`, in order. Lengths
    /// go on into the index as they come: those of a few shards are in memory.
    pub fn gather(
        &self,
        num_shards: u32,
        mut take_notes: impl FnMut(u32, serde_json::Value) -> Result<(), ShardError>,
    ) -> Result<GatheredShards, ShardError> {
        let mut gathered = GatheredShards { shards: Vec::new(), lengths: LengthsWriter::create(self.store.as_ref())? };
        let indices: Vec<u32> = (0..num_shards).collect();
        for some in indices.chunks(READ_AT_ONCE) {
            let names: Vec<String> = some.iter().copied().map(completion_file_name).collect();
            for (&index, content) in some.iter().zip(self.store.read_all(&names)?) {
                let completion = content.and_then(|content| self.parse_completion(index, &content));
                let completion =
                    completion.ok_or_else(|| ShardError::Incomplete { path: self.store.path(""), index })?;
                completion.shard.lengths.iter().try_for_each(|lengths| gathered.lengths.push(lengths))?;
                gathered.shards.push(completion.shard.entry);
                take_notes(index, completion.notes)?;
            }
        }
        Ok(gathered)
    }

    /// Removes what a killed build left half written. Only while nobody else builds here.
    pub fn sweep(&self) -> Result<(), ShardError> {
        let names = self.store.list()?;
        names.iter().filter(|name| is_partial_name(name)).try_for_each(|name| self.store.remove(name))
    }

    /// Writes lengths index and manifest over shards `0..num_shards`, all completed, then removes what only the build
    /// needed. `rejects` counts by cause; `build` echoes the build's settings. If an equal build was faster, its manifest
    /// is given.
    pub fn commit(
        &self,
        num_shards: u32,
        rejects: BTreeMap<String, u64>,
        build: serde_json::Value,
    ) -> Result<Manifest, ShardError> {
        match self.gather(num_shards, |_, _| Ok(())) {
            Err(fault @ ShardError::Incomplete { .. }) => self.manifest()?.ok_or(fault),
            gathered => self.commit_gathered(gathered?, rejects, build),
        }
    }

    /// [`BuildFolder::commit`] of shards that were gathered before.
    pub fn commit_gathered(
        &self,
        gathered: GatheredShards,
        rejects: BTreeMap<String, u64>,
        build: serde_json::Value,
    ) -> Result<Manifest, ShardError> {
        let GatheredShards { shards, lengths } = gathered;
        let LengthsFiles { lengths, sums } = lengths.finish(self.store.as_ref())?;
        let mut manifest = Manifest {
            version: SCHEMA_VERSION,
            fingerprint: Fingerprint::default(),
            plan: self.plan,
            totals: Totals::of(&shards),
            shards,
            rejects,
            lengths,
            lengths_sums: sums,
            processor: self.settings.processor.clone(),
            build,
            checksum: String::new(),
        };
        manifest.commit(self.store.as_ref())?;
        self.clean(&manifest)?;
        Ok(manifest)
    }

    /// Makes the lengths index of a finished set and its sums again from its shards, all of them whole, if one of the two is damaged or
    /// gone. True if it was.
    pub fn repair_lengths(&self, manifest: &Manifest) -> Result<bool, ShardError> {
        let (store, named) = (self.store.as_ref(), manifest.lengths_files());
        let is_whole = |file: &FileEntry| Ok::<_, ShardError>(store.hash(&file.file)? == Some(file.checksum));
        if is_whole(&named.lengths)? && is_whole(&named.sums)? {
            return Ok(false);
        }
        let (mut lengths, mut buffer) = (LengthsWriter::create(store)?, RowBuffer::default());
        for entry in &manifest.shards {
            let reader = ShardReader::open(store, entry)?;
            for row in 0..reader.rows() {
                reader.read_row(row, &mut buffer)?;
                lengths.push(&buffer.lengths())?;
            }
        }
        let made = lengths.seal()?;
        if made.files != named {
            let (expected, found) = (&named.lengths.checksum, &made.files.lengths.checksum);
            return Err(ShardError::DamagedFile {
                path: store.path(&named.lengths.file),
                what: "checksum of the lengths index made again",
                expected: expected.to_string(),
                found: found.to_string(),
            });
        }
        made.publish(store)?;
        Ok(true)
    }

    /// Removes all shards and completions of an unfinished build.
    pub fn abandon(&self) -> Result<(), ShardError> {
        let names = self.store.list()?;
        names.iter().filter(|name| is_build_file(name)).try_for_each(|name| self.store.remove(name))
    }

    /// Removes completions, and shards of an earlier build that the manifest does not name. Files that are half written stay, as
    /// other processes of the build may be at them: see [`BuildFolder::sweep`].
    pub fn clean(&self, manifest: &Manifest) -> Result<(), ShardError> {
        let named: BTreeSet<&str> = manifest.shards.iter().map(|shard| shard.file.as_str()).collect();
        for name in self.store.list()? {
            if is_build_file(&name) && !named.contains(name.as_str()) {
                self.store.remove(&name)?;
            }
        }
        Ok(())
    }
}
