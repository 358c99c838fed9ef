//! The reject list.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::sources::{Fault, InputFile};

/// The reject list beside the manifest: one JSON object per line, in the order of the records.
pub const REJECTS_FILE: &str = "rejects.jsonl";

/// A record that became no sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reject {
    /// Raw file, named as in the input.
    pub file: String,
    /// Zero-based number of the record in its file.
    pub record: u64,
    /// The sample's id as far as it was known.
    pub id: Option<String>,
    /// Stable name under which rejects are counted.
    pub cause: String,
    /// What was expected and found.
    pub detail: String,
}

impl Reject {
    pub(crate) fn new(file: &InputFile, record: u64, fault: Fault) -> Self {
        let Fault { id, cause, detail } = fault;
        Self { file: file.name.clone(), record, id, cause: cause.to_owned(), detail }
    }

    /// Its line of the list.
    pub(crate) fn to_line(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are JSON") + "\n"
    }
}

/// What a shard's records were besides samples.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShardNotes {
    pub(super) rejects: Vec<Reject>,
    /// Turns cut off whole to fit `--max-length`.
    pub(super) dropped_turns: u64,
}

impl ShardNotes {
    pub(super) fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("texts and numbers are JSON")
    }

    /// `None` for notes of another version: the shard is made again.
    pub(super) fn from_json(value: serde_json::Value) -> Option<Self> {
        serde_json::from_value(value).ok()
    }

    pub(super) fn append(&mut self, other: Self) {
        self.rejects.extend(other.rejects);
        self.dropped_turns += other.dropped_turns;
    }

    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        self.rejects.iter().for_each(|reject| *counts.entry(reject.cause.clone()).or_default() += 1);
        counts
    }

    pub(super) fn to_lines(&self) -> String {
        self.rejects.iter().map(Reject::to_line).collect()
    }

    /// A reject list read back; `None` if a line is not as it was written.
    pub(super) fn from_lines(lines: &[u8]) -> Option<Self> {
        let rejects = lines.split_inclusive(|byte| *byte == b'\n').map(|line| serde_json::from_slice(line).ok());
        let notes = Self { rejects: rejects.collect::<Option<_>>()?, dropped_turns: 0 };
        (notes.to_lines().as_bytes() == lines).then_some(notes)
    }
}
