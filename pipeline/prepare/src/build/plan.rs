//! Which records go into which shard, fixed before the first one is processed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vela_shard::SCHEMA_VERSION;
use vela_types::{Fingerprint, ProcessorSummary};

use super::output::output_folder;
use super::{BuildConfig, InputConfig};
use crate::PrepareError;
use crate::clean::{Cause, Judged, Selection, select};
use crate::dialogue::DialogueConfig;
use crate::sources::{ImageFolder, InputFile, InputSet, check_ids_apart};

/// Counted per record besides its image when records are divided among shards.
const TEXT_BYTES_PER_RECORD: u64 = 4096;

/// A run of records of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordRange {
    /// Index into [`BuildPlan::files`].
    pub file: usize,
    /// Zero-based record numbers.
    pub records: Range<u64>,
}

/// Everything that decides a shard's bytes besides the files themselves and the settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardSpec {
    /// Place in the manifest.
    pub index: u32,
    /// Records, in order; those that a draw leaves out are among them.
    pub ranges: Vec<RecordRange>,
    /// Records that become samples or rejects.
    pub num_records: u64,
}

/// A raw file with what its input says about it.
pub struct PlannedFile {
    /// The scanned file.
    pub file: Arc<InputFile>,
    /// How its records become dialogues.
    pub dialogue: DialogueConfig,
    /// Which of the copies that the input's weight asks for, from 0.
    pub copy: u32,
}

/// The shards of a build, and its name.
pub struct BuildPlan {
    /// Raw files of all inputs.
    pub files: Vec<PlannedFile>,
    /// The shards in order.
    pub shards: Vec<ShardSpec>,
    /// Which records of the files are in the set.
    selection: Selection,
    /// Records that a draw left out: of the other part, or by an input's weight.
    pub left_out: BTreeMap<String, u64>,
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
        let output = output_folder(&config.output)?;
        for input in &config.inputs {
            let input = &input.staged()?;
            let images = Arc::new(ImageFolder::open(input.images.as_deref(), output)?);
            let set = InputSet::open(input, &images, config.seed, output)?;
            let listed = |file: &InputFile| file.hash().map(|(bytes, hash)| json!([file.name, bytes, hash]));
            let listed: Vec<Value> = set.files.iter().map(listed).collect::<Result<_, _>>()?;
            let mut echo = json!({
                "source": input.source, "name": input.name, "dialogue": input.dialogue, "options": input.options, "weight": input.weight,
                "files": listed,
            });
            if let Some(registered) = &set.registered {
                echo["registered"] = registered.clone();
            }
            inputs.push(echo);
            listings.push(images.fingerprint());
            listings.extend(set.files.iter().map(|file| file.records.images()));
            files.extend(planned_files(set, input));
        }
        let originals = files.iter().filter(|(planned, _): &&(PlannedFile, f64)| planned.copy == 0);
        check_ids_apart(originals.map(|(planned, _)| &*planned.file))?;
        let record_bytes = processor.image_shape.num_elements() as u64 + TEXT_BYTES_PER_RECORD;
        let records_per_shard = (config.shard_size_bytes / record_bytes).max(1);
        let echo = json!({
            "inputs": inputs, "seed": config.seed, "limit": config.limit, "records_per_shard": records_per_shard,
            "max_length": config.max_length, "image_mode": config.image_mode, "clean": config.clean,
        });
        let (files, shares): (Vec<PlannedFile>, Vec<f64>) = files.into_iter().unzip();
        let first_of = |planned: &PlannedFile| files.iter().position(|first| Arc::ptr_eq(&first.file, &planned.file));
        let judged = files.iter().zip(&shares).enumerate().map(|(index, (planned, share))| Judged {
            file: &planned.file,
            share: *share,
            copy_of: first_of(planned).filter(|first| *first < index),
        });
        let selection = select(&judged.collect::<Vec<_>>(), &config.clean)?;
        let counts: Vec<u64> = files.iter().map(|planned| planned.file.records.num_records()).collect();
        let is_in = |file, record| selection.cause(file, record).is_none_or(Cause::is_listed);
        let limit = config.limit.unwrap_or(u64::MAX);
        let shards = divide(&counts, limit, records_per_shard, &is_in);
        let left_out = count_left_out(&shards, &selection);
        let name = format!("vela build\n{echo}\n{}\n{}\n{SCHEMA_VERSION}", json!(listings), processor.fingerprint);
        let name = Fingerprint(*blake3::hash(name.as_bytes()).as_bytes());
        Ok(Self { files, shards, selection, left_out, name, echo })
    }

    /// Records of all shards that become samples or rejects.
    pub fn num_records(&self) -> u64 {
        self.shards.iter().map(|shard| shard.num_records).sum()
    }

    /// Why a sound record is not in the set, if it is not.
    pub(super) fn left_out(&self, file: usize, record: u64) -> Option<Cause> {
        self.selection.cause(file, record)
    }
}

/// The files of an input, each as often as its weight asks for, with the share of the records that each takes.
fn planned_files(set: InputSet, input: &InputConfig) -> Vec<(PlannedFile, f64)> {
    let files: Vec<Arc<InputFile>> = set.files.into_iter().map(Arc::new).collect();
    let num_copies = input.weight.ceil() as u32;
    let copy_of = |copy: u32| {
        let share = (input.weight - f64::from(copy)).min(1.0);
        let dialogue = input.dialogue;
        files.iter().map(move |file| (PlannedFile { file: Arc::clone(file), dialogue, copy }, share))
    };
    (0..num_copies).flat_map(copy_of).collect()
}

fn count_left_out(shards: &[ShardSpec], selection: &Selection) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for range in shards.iter().flat_map(|shard| &shard.ranges) {
        let causes = range.records.clone().filter_map(|record| selection.cause(range.file, record));
        for cause in causes.filter(|cause| !cause.is_listed()) {
            *counts.entry(cause.as_str().to_owned()).or_default() += 1;
        }
    }
    counts
}

/// Deals the records of files with `counts` records, at most `limit` in all, to shards of `per_shard` of those that `is_in`.
fn divide(counts: &[u64], limit: u64, per_shard: u64, is_in: &dyn Fn(usize, u64) -> bool) -> Vec<ShardSpec> {
    let mut shards: Vec<ShardSpec> = Vec::new();
    let (mut left, mut room) = (limit, 0);
    for (file, &count) in counts.iter().enumerate() {
        let end = count.min(left);
        left -= end;
        let mut start = 0;
        while start < end {
            if room == 0 {
                shards.push(ShardSpec { index: shards.len() as u32, ranges: Vec::new(), num_records: 0 });
                room = per_shard;
            }
            let (next, num_in) = take(start..end, room, &|record| is_in(file, record));
            let shard = shards.last_mut().expect("one was pushed when there was no room");
            shard.ranges.push(RecordRange { file, records: start..next });
            shard.num_records += num_in;
            start = next;
            room -= num_in;
        }
    }
    shards
}

/// Where `room` records that are in end, or the range does, and how many there are.
fn take(records: Range<u64>, room: u64, is_in: &dyn Fn(u64) -> bool) -> (u64, u64) {
    let mut num_in = 0;
    for record in records.clone() {
        num_in += u64::from(is_in(record));
        if num_in == room {
            return (record + 1, num_in);
        }
    }
    (records.end, num_in)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_record_up_to_the_limit_is_dealt_once_in_order(
            counts in proptest::collection::vec(0u64..50, 0..8), limit in 0u64..200, per_shard in 1u64..40, out in 1u64..9,
        ) {
            let is_in = |file: usize, record: u64| (record + file as u64) % out != 1;
            let shards = divide(&counts, limit, per_shard, &is_in);
            let all = counts.iter().enumerate().flat_map(|(file, &count)| (0..count).map(move |record| (file, record)));
            let expected: Vec<_> = all.take(limit as usize).collect();
            let dealt_to = |shard: &ShardSpec| -> Vec<(usize, u64)> {
                let ranges = shard.ranges.iter();
                ranges.flat_map(|range| range.records.clone().map(|record| (range.file, record))).collect()
            };
            prop_assert_eq!(shards.iter().flat_map(dealt_to).collect::<Vec<_>>(), expected);
            for (index, shard) in shards.iter().enumerate() {
                prop_assert_eq!(shard.index as usize, index);
                let num_in = dealt_to(shard).into_iter().filter(|(file, record)| is_in(*file, *record)).count() as u64;
                prop_assert_eq!(shard.num_records, num_in);
                let is_last = index + 1 == shards.len();
                prop_assert!(num_in == per_shard || (is_last && num_in < per_shard));
            }
        }
    }
}
