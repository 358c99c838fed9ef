//! What a build says at its end.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use vela_shard::Manifest;
use vela_types::Fingerprint;

use super::{BuildConfig, BuildPlan, REJECTS_FILE};
use crate::clean::Cause;

/// The JSON object of `pipeline build-shards --json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BuildReport {
    /// Records in the shards.
    pub samples: u64,
    /// Rejected records by cause.
    pub rejected: BTreeMap<String, u64>,
    /// Records that a draw left out, by cause: `other_part`, `not_drawn`.
    pub left_out: BTreeMap<String, u64>,
    /// Images, each use counted.
    pub images: u64,
    /// Tokens, an image counted as one.
    pub tokens: u64,
    /// Shard files.
    pub shards: usize,
    /// Bytes of the shard files.
    pub bytes: u64,
    /// Wall-clock time of this run.
    pub seconds: f64,
    /// Names the data set: its settings and the content of its shards.
    pub fingerprint: Fingerprint,
    /// Raw records read: `samples` plus all rejects.
    pub records: u64,
    /// Turns cut off whole to fit `--max-length`.
    pub dropped_turns: u64,
    /// Shards that an earlier run had finished.
    pub kept_shards: usize,
    /// Most bytes of records that were between reader and writer.
    pub peak_queue_bytes: u64,
    /// Where the shards are.
    pub output: String,
}

/// What differs from run to run of one build.
pub(super) struct RunFacts {
    pub(super) kept_shards: usize,
    pub(super) peak_queue_bytes: u64,
    pub(super) seconds: f64,
}

impl BuildReport {
    pub(super) fn new(config: &BuildConfig, plan: &BuildPlan, manifest: &Manifest, run: RunFacts) -> Self {
        Self {
            samples: manifest.totals.rows,
            rejected: manifest.rejects.clone(),
            left_out: plan.left_out.clone(),
            images: manifest.totals.num_images,
            tokens: manifest.totals.num_tokens,
            shards: manifest.shards.len(),
            bytes: manifest.totals.bytes,
            seconds: run.seconds,
            fingerprint: manifest.fingerprint,
            records: plan.num_records(),
            dropped_turns: manifest.build["dropped_turns"].as_u64().unwrap_or(0),
            kept_shards: run.kept_shards,
            peak_queue_bytes: run.peak_queue_bytes,
            output: config.output.clone(),
        }
    }

    /// Share of records that have a fault; those that cleaning left out have none.
    pub fn reject_rate(&self) -> f64 {
        let faulty = self.rejected.iter().filter(|(cause, _)| !Cause::is_name(cause));
        faulty.map(|(_, count)| count).sum::<u64>() as f64 / self.records.max(1) as f64
    }

    /// A few lines for people.
    pub fn to_text(&self) -> String {
        let Self { samples, records, shards, seconds, output, .. } = self;
        let mut text = format!(
            "{samples} samples of {records} records in {}, {seconds:.1} s: {output}\n",
            counted(*shards as u64, "shard")
        );
        let rejected: u64 = self.rejected.values().sum();
        if rejected > 0 {
            let causes: Vec<String> = self.rejected.iter().map(|(cause, count)| format!("{count} {cause}")).collect();
            let list = format!("{}/{REJECTS_FILE}", output.trim_end_matches('/'));
            writeln!(text, "{rejected} rejected ({}): {list}", causes.join(", ")).expect("a String takes text");
        }
        for (cause, count) in &self.left_out {
            writeln!(text, "{count} left out ({cause})").expect("a String takes text");
        }
        if self.dropped_turns > 0 {
            writeln!(text, "{} turns dropped to fit --max-length", self.dropped_turns).expect("a String takes text");
        }
        if self.kept_shards > 0 {
            let kept = counted(self.kept_shards as u64, "shard");
            let were = if self.kept_shards == 1 { "was" } else { "were" };
            writeln!(text, "{kept} {were} already there and good").expect("a String takes text");
        }
        text
    }
}

/// `1 shard`, `2 shards`.
pub(crate) fn counted(number: u64, name: &str) -> String {
    format!("{number} {name}{}", if number == 1 { "" } else { "s" })
}
