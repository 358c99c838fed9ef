//! Which records go into which shard, fixed before the first one is processed.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value, json};
use vela_shard::SCHEMA_VERSION;
use vela_types::{Fingerprint, ProcessorSummary};

use super::{BuildConfig, output_folder};
use crate::PrepareError;
use crate::dialogue::DialogueConfig;
use crate::sources::{ImageFolder, InputFile, InputSet};

/// Counted per record besides its image when records are divided among shards.
const TEXT_BYTES_PER_RECORD: u64 = 4096;

/// A run of records of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordRange {
    /// Index into [`BuildPlan::files`].
    pub file: usize,
    /// Zero-based record numbers.
    pub records: Range<u64>,
}

/// Everything that decides a shard's bytes besides the files themselves and the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardSpec {
    /// Place in the manifest.
    pub index: u32,
    /// Records, in order.
    pub ranges: Vec<RecordRange>,
}

impl ShardSpec {
    /// Raw records of the shard, rejects included.
    pub fn num_records(&self) -> u64 {
        self.ranges.iter().map(|range| range.records.end - range.records.start).sum()
    }
}

/// A raw file with what its input says about it.
pub struct PlannedFile {
    /// The scanned file.
    pub file: InputFile,
    /// How its records become dialogues.
    pub dialogue: DialogueConfig,
}

/// The shards of a build, and its name.
pub struct BuildPlan {
    /// Raw files of all inputs.
    pub files: Vec<PlannedFile>,
    /// The shards in order.
    pub shards: Vec<ShardSpec>,
    /// blake3 of `echo`, the listings of the images, the processor and the shard format: names the build while it is in
    /// progress. Not the fingerprint of the data set: it covers modification times and not the pixels.
    pub name: Fingerprint,
    /// The settings and inputs, for the manifest.
    pub echo: Value,
}

impl BuildPlan {
    /// Scans the inputs of `config` and divides their records.
    pub fn new(config: &BuildConfig, processor: &ProcessorSummary) -> Result<Self, PrepareError> {
        let (mut files, mut inputs, mut listings) = (Vec::new(), Vec::new(), Vec::new());
        let output = output_folder(&config.output);
        for input in &config.inputs {
            let images = Arc::new(ImageFolder::open(input.images.as_deref(), Some(output))?);
            let set = InputSet::open(input.source, &input.input, &images, Some(output))?;
            let listed = |file: &InputFile| file.hash().map(|(bytes, hash)| json!([file.name, bytes, hash]));
            let listed: Vec<Value> = set.files.iter().map(listed).collect::<Result<_, _>>()?;
            inputs.push(json!({ "source": input.source, "dialogue": input.dialogue, "files": listed }));
            listings.push(images.fingerprint());
            listings.extend(set.files.iter().map(|file| file.records.images()));
            files.extend(set.files.into_iter().map(|file| PlannedFile { file, dialogue: input.dialogue }));
        }
        let record_bytes = processor.image_shape.num_elements() as u64 + TEXT_BYTES_PER_RECORD;
        let records_per_shard = (config.shard_size_bytes / record_bytes).max(1);
        let echo = json!({
            "inputs": inputs, "seed": config.seed, "limit": config.limit, "records_per_shard": records_per_shard,
            "max_length": config.max_length, "image_mode": config.image_mode,
        });
        let counts: Vec<u64> = files.iter().map(|planned| planned.file.records.num_records()).collect();
        let shards = divide(&counts, config.limit.unwrap_or(u64::MAX), records_per_shard);
        let name = format!("vela build\n{echo}\n{}\n{}\n{SCHEMA_VERSION}", json!(listings), processor.fingerprint);
        let name = Fingerprint(*blake3::hash(name.as_bytes()).as_bytes());
        Ok(Self { files, shards, name, echo })
    }

    /// Raw records of all shards.
    pub fn num_records(&self) -> u64 {
        self.shards.iter().map(ShardSpec::num_records).sum()
    }
}

/// Deals the records of files with `counts` records, at most `limit` in all, to shards of `per_shard`.
fn divide(counts: &[u64], limit: u64, per_shard: u64) -> Vec<ShardSpec> {
    let mut shards: Vec<ShardSpec> = Vec::new();
    let (mut left, mut room) = (limit, 0);
    for (file, &count) in counts.iter().enumerate() {
        let end = count.min(left);
        left -= end;
        let mut start = 0;
        while start < end {
            if room == 0 {
                shards.push(ShardSpec { index: shards.len() as u32, ranges: Vec::new() });
                room = per_shard;
            }
            let num = room.min(end - start);
            let shard = shards.last_mut().expect("one was pushed when there was no room");
            shard.ranges.push(RecordRange { file, records: start..start + num });
            start += num;
            room -= num;
        }
    }
    shards
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_record_up_to_the_limit_is_dealt_once_in_order(
            counts in proptest::collection::vec(0u64..50, 0..8), limit in 0u64..200, per_shard in 1u64..40,
        ) {
            let shards = divide(&counts, limit, per_shard);
            let all = counts.iter().enumerate().flat_map(|(file, &count)| (0..count).map(move |record| (file, record)));
            let expected: Vec<_> = all.take(limit as usize).collect();
            let ranges = shards.iter().flat_map(|shard| &shard.ranges);
            let dealt: Vec<_> =
                ranges.flat_map(|range| range.records.clone().map(move |record| (range.file, record))).collect();
            prop_assert_eq!(dealt, expected);
            for (index, shard) in shards.iter().enumerate() {
                prop_assert_eq!(shard.index as usize, index);
                let is_last = index + 1 == shards.len();
                prop_assert!(shard.num_records() == per_shard || (is_last && shard.num_records() < per_shard));
            }
        }
    }
}
