//! Shard sets of any number of records that take the room of few: one shard under many names.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

use vela_shard::{
    DEFAULT_ROW_GROUP_BYTES, LengthsFiles, LengthsWriter, LocalStore, Manifest, SCHEMA_VERSION, ShardEntry,
    ShardSettings, ShardWriter, Totals, shard_file_name,
};
use vela_types::{Fingerprint, Record};

use crate::fixture;

/// Writes a set of `num_shards` shards into the empty `folder`: the same `shard_rows` texts in each, so that their records are told apart by
/// their index alone. A text is one of the fixture (some ten tokens) so many `times`.
pub(crate) fn write(
    folder: &Path,
    shard_rows: u64,
    num_shards: u32,
    times: usize,
) -> Result<Manifest, Box<dyn Error + Send + Sync>> {
    let (local, store) = (LocalStore::new(folder), fixture::store(folder));
    let settings = ShardSettings {
        row_group_bytes: DEFAULT_ROW_GROUP_BYTES,
        ..ShardSettings::new(fixture::processor(fixture::SHAPE))
    };
    let mut shard = ShardWriter::create(store, 0, &settings)?;
    for number in 0..shard_rows {
        // Every third record of the fixture has no image.
        let short = fixture::record(3 * number);
        let (input_ids, labels) = (short.input_ids.repeat(times), short.labels.repeat(times));
        let record = Record { id: format!("linked/{number}"), input_ids, labels, ..short };
        shard.push(&record)?;
    }
    let shard = shard.finish()?;
    let name = |index| ShardEntry { file: shard_file_name(index), ..shard.entry.clone() };
    let shards: Vec<ShardEntry> = (0..num_shards).map(name).collect();
    for linked in &shards[1..] {
        fs::hard_link(folder.join(&shard.entry.file), folder.join(&linked.file))?;
    }
    let mut lengths = LengthsWriter::create(&local)?;
    for _ in 0..num_shards {
        shard.lengths.iter().try_for_each(|row| lengths.push(row))?;
    }
    let LengthsFiles { lengths, sums: lengths_sums } = lengths.finish(&local)?;
    let mut manifest = Manifest {
        version: SCHEMA_VERSION,
        fingerprint: Fingerprint::default(),
        plan: fixture::BUILD,
        totals: Totals::of(&shards),
        shards,
        rejects: BTreeMap::new(),
        lengths,
        lengths_sums,
        processor: settings.processor,
        build: serde_json::json!({ "source": "linked" }),
        checksum: String::new(),
    };
    manifest.commit(&local)?;
    Ok(manifest)
}
