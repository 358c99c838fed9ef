//! A finished set that is built again: what is whole stays, what is damaged or gone is made again to the same bytes.

use std::sync::Arc;

use vela_shard::{BuildFolder, DiscardStore, Manifest, ShardEntry, ShardError, Store};

use super::ShardSpec;
use super::output::{leave, write_file};
use super::reject::{REJECTS_FILE, ShardNotes};
use super::stages::Stages;
use crate::PrepareError;

/// Verifies a finished set and makes again what is damaged or missing: shards, lengths index, reject list. Their bytes
/// come out as the manifest says. Returns how many shards were kept.
pub(super) fn repair(
    stages: &Stages<'_>,
    folder: &BuildFolder,
    store: &dyn Store,
    manifest: &Manifest,
) -> Result<usize, PrepareError> {
    // A build stopped right after its commit leaves this behind.
    leave(store)?;
    folder.clean(manifest)?;
    let rejects_lost = !has_rejects(store, manifest)?;
    let (mut kept, mut notes) = (0, ShardNotes::default());
    for (spec, entry) in stages.plan.shards.iter().zip(&manifest.shards) {
        if store.hash(&entry.file)? != Some(entry.checksum) {
            notes.append(remake_shard(stages, folder, store, spec, entry)?);
            continue;
        }
        kept += 1;
        match rejects_lost && entry.rows < spec.num_records {
            true => notes.append(find_rejects(stages, folder, store, spec, entry)?),
            false => stages.progress.inc(spec.num_records),
        }
    }
    folder.repair_lengths(manifest)?;
    if rejects_lost {
        write_file(store, REJECTS_FILE, notes.to_lines().as_bytes())?;
    }
    Ok(kept)
}

/// True if the reject list is there, well-formed, and counts what the manifest counts.
fn has_rejects(store: &dyn Store, manifest: &Manifest) -> Result<bool, PrepareError> {
    let notes = store.read(REJECTS_FILE)?.and_then(|lines| ShardNotes::from_lines(&lines));
    Ok(notes.is_some_and(|notes| notes.counts() == manifest.rejects))
}

/// The rejects of a good shard, whose causes are found only by processing its records again. Nothing is kept of that, so a
/// shard that would now come out otherwise (its images changed since) does not replace the good one.
fn find_rejects(
    stages: &Stages<'_>,
    folder: &BuildFolder,
    store: &dyn Store,
    spec: &ShardSpec,
    entry: &ShardEntry,
) -> Result<ShardNotes, PrepareError> {
    remake_shard(stages, &folder.elsewhere(Arc::new(DiscardStore)), store, spec, entry)
}

fn remake_shard(
    stages: &Stages<'_>,
    folder: &BuildFolder,
    store: &dyn Store,
    spec: &ShardSpec,
    entry: &ShardEntry,
) -> Result<ShardNotes, PrepareError> {
    let (made, notes) = stages.build_shard(spec, folder)?;
    match made.entry == *entry {
        true => Ok(notes),
        false => Err(PrepareError::Shard(ShardError::DamagedFile {
            path: store.path(&entry.file),
            what: "checksum of a shard made again (its images changed since)",
            expected: entry.checksum.to_string(),
            found: made.entry.checksum.to_string(),
        })),
    }
}
