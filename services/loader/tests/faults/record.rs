//! What a consumer has used, kept beside its place in one file that no kill leaves half written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use vela_types::{Batch, Cursor, Fingerprint};

use crate::work::{digest, ids};

/// Everything up to the step that the cursor names. Place and record change in one rename, so neither is ahead of the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Where to go on; `None` before the first step.
    pub(crate) cursor: Option<Cursor>,
    pub(crate) epochs: BTreeMap<u64, EpochRecord>,
}

/// What was used of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EpochRecord {
    pub(crate) num_steps: u64,
    pub(crate) num_ids: u64,
    /// Samples in the order in which they were used; of finished epochs only where they are wanted.
    pub(crate) ids: Vec<u64>,
    /// Names all batches and their order.
    pub(crate) chain: Fingerprint,
}

impl Record {
    /// The record at `path`; an empty one if there is none.
    pub(crate) fn load(path: &Path) -> Self {
        match fs::read(path) {
            Ok(content) => serde_json::from_slice(&content).expect("a whole record, whenever its writer was killed"),
            Err(fault) if fault.kind() == ErrorKind::NotFound => Self::default(),
            Err(fault) => panic!("{}: {fault}", path.display()),
        }
    }

    /// Replaces the file in one step.
    pub(crate) fn save(&self, path: &Path) {
        let partial = path.with_extension("partial");
        let mut file = File::create(&partial).expect("a file");
        file.write_all(&serde_json::to_vec(self).expect("plain data")).expect("written");
        file.sync_all().expect("on the disk");
        fs::rename(&partial, path).expect("renamed");
        File::open(path.parent().expect("a folder")).and_then(|folder| folder.sync_all()).expect("on the disk");
    }

    /// Notes a whole step. `keeps_ids` of epochs that are over.
    pub(crate) fn add_step(&mut self, batches: &[Batch], next: Cursor, keeps_ids: bool) {
        let epoch = batches[0].position.epoch;
        let empty = EpochRecord { num_steps: 0, num_ids: 0, ids: Vec::new(), chain: Fingerprint::default() };
        let record = self.epochs.entry(epoch).or_insert(empty);
        record.num_steps += 1;
        for batch in batches {
            record.num_ids += ids(batch).count() as u64;
            record.ids.extend(ids(batch));
            let link = [record.chain.0, digest(batch).0].concat();
            record.chain = Fingerprint(*blake3::hash(&link).as_bytes());
        }
        if next.epoch > epoch && !keeps_ids {
            record.ids.clear();
        }
        self.cursor = Some(next);
    }

    /// Steps used in all.
    pub(crate) fn num_steps(&self) -> u64 {
        self.epochs.values().map(|epoch| epoch.num_steps).sum()
    }

    /// Epoch of the next step.
    pub(crate) fn epoch(&self) -> u64 {
        self.cursor.as_ref().map_or(0, |cursor| cursor.epoch)
    }
}
