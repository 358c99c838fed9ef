//! The build: plan, then shard after shard, then one commit.

mod budget;
mod config;
mod plan;
mod reject;
mod report;
mod stages;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use vela_processor::{Processor, ProcessorOptions};
use vela_runtime::{Progress, Shutdown};
use vela_shard::{BuildFolder, Manifest, ShardError, ShardSettings, Store, open_store};

pub use config::{BuildConfig, InputConfig};
pub use plan::{BuildPlan, PlannedFile, RecordRange, ShardSpec};
pub use reject::{REJECTS_FILE, Reject};
pub use report::BuildReport;

use crate::PrepareError;
use reject::ShardNotes;
use report::RunFacts;
use stages::Stages;

/// Names the build that a folder without a manifest belongs to.
const BUILD_FILE: &str = "build.json";

/// Where a shard set keeps a copy of the processor that made it.
pub(crate) fn processor_folder(shards: &str) -> PathBuf {
    Path::new(shards.strip_prefix("file://").unwrap_or(shards)).join("processor")
}

/// Turns the raw inputs of `config` into a shard set, or continues a build of the same fingerprint.
///
/// The bytes written depend on the inputs, the processor and those settings that the fingerprint covers, never on
/// workers, timing or how often the build was stopped. Rejected records do not fail the build; see
/// [`BuildReport::reject_rate`].
pub fn build_shards(
    config: &BuildConfig,
    progress: &Progress,
    shutdown: &Shutdown,
) -> Result<BuildReport, PrepareError> {
    let started = Instant::now();
    config.check()?;
    let options = ProcessorOptions { image_mode: config.image_mode, ..ProcessorOptions::default() };
    let processor = Arc::new(Processor::load(&config.processor, &options)?);
    let plan = BuildPlan::new(config, processor.summary())?;
    progress.set_total(plan.num_records());
    let store = open_store(&config.output)?;
    let folder = open_folder(config, &plan, &store, ShardSettings::new(processor.summary().clone()))?;
    processor.save(&processor_folder(&config.output))?;
    let peak_queue_bytes = AtomicU64::new(0);
    let stages = Stages { plan: &plan, config, processor: &processor, progress, shutdown, peak_queue_bytes };
    let finished = folder.manifest()?;
    let (manifest, kept) = match finished {
        Some(manifest) => {
            let kept = repair(&stages, &folder, store.as_ref(), &manifest)?;
            (manifest, kept)
        }
        None => build_all(&stages, &folder, store.as_ref())?,
    };
    progress.finish();
    let run = RunFacts {
        kept_shards: kept,
        peak_queue_bytes: stages.peak_queue_bytes.load(Ordering::Relaxed),
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok(BuildReport::new(config, &plan, &manifest, run))
}

/// Refuses a folder that holds anything but this build, and leaves this build's name in it.
fn open_folder(
    config: &BuildConfig,
    plan: &BuildPlan,
    store: &Arc<dyn Store>,
    settings: ShardSettings,
) -> Result<BuildFolder, PrepareError> {
    let in_use = |found: String| PrepareError::OutputInUse {
        path: config.output.clone().into(),
        expected: plan.fingerprint.short(),
        found,
    };
    let folder = match BuildFolder::open(Arc::clone(store), plan.fingerprint, settings) {
        Err(ShardError::ForeignBuild { found, .. }) => return Err(in_use(format!("fingerprint {}", found.short()))),
        opened => opened?,
    };
    if folder.manifest()?.is_some() {
        return Ok(folder);
    }
    let name = serde_json::json!({ "fingerprint": plan.fingerprint }).to_string();
    match store.read(BUILD_FILE)? {
        Some(found) if found[..] == *name.as_bytes() => {}
        Some(_) => return Err(in_use("an unfinished build with other inputs or settings".to_owned())),
        None => match store.list()?.into_iter().find(|file| !file.ends_with(".partial")) {
            Some(file) => return Err(in_use(format!("`{file}`"))),
            None => write_file(store.as_ref(), BUILD_FILE, name.as_bytes())?,
        },
    }
    Ok(folder)
}

/// Makes every shard that is not complete, then commits. Returns the manifest and how many shards were kept.
fn build_all(stages: &Stages<'_>, folder: &BuildFolder, store: &dyn Store) -> Result<(Manifest, usize), PrepareError> {
    let mut notes = ShardNotes::default();
    let (mut kept, mut samples) = (0, 0);
    let shards = &stages.plan.shards;
    for spec in shards {
        let complete = match folder.completed_shard(spec.index)? {
            Some((shard, known)) => ShardNotes::from_json(known).map(|known| (shard, known)),
            None => None,
        };
        let (shard, of_shard) = match complete {
            Some(complete) => {
                kept += 1;
                stages.progress.inc(spec.num_records());
                complete
            }
            None => {
                let (shard, made) = stages.build_shard(spec, folder)?;
                folder.complete_shard(spec.index, &shard, made.to_json())?;
                (shard, made)
            }
        };
        samples += shard.entry.rows;
        notes.append(of_shard);
    }
    write_file(store, REJECTS_FILE, notes.to_lines().as_bytes())?;
    if samples == 0 {
        let rejects = store.path(REJECTS_FILE).into();
        return Err(PrepareError::NothingLeft { records: stages.plan.num_records(), rejects });
    }
    let mut echo = stages.plan.echo.clone();
    echo["dropped_turns"] = notes.dropped_turns.into();
    let manifest = folder.commit(shards.len() as u32, notes.counts(), echo)?;
    store.remove(BUILD_FILE)?;
    Ok((manifest, kept))
}

/// Verifies a finished set and makes damaged or missing shards again; their bytes come out as the manifest says.
fn repair(
    stages: &Stages<'_>,
    folder: &BuildFolder,
    store: &dyn Store,
    manifest: &Manifest,
) -> Result<usize, PrepareError> {
    // A build stopped right after its commit leaves this behind.
    store.remove(BUILD_FILE)?;
    folder.clean(manifest)?;
    let mut kept = 0;
    for (spec, entry) in stages.plan.shards.iter().zip(&manifest.shards) {
        let content = store.read(&entry.file)?;
        if content.is_some_and(|content| *blake3::hash(&content).as_bytes() == entry.checksum.0) {
            kept += 1;
            stages.progress.inc(spec.num_records());
            continue;
        }
        let (made, _) = stages.build_shard(spec, folder)?;
        if made.entry != *entry {
            return Err(PrepareError::Shard(ShardError::DamagedFile {
                path: store.path(&entry.file),
                what: "checksum of a shard made again (its images changed since)",
                expected: entry.checksum.to_string(),
                found: made.entry.checksum.to_string(),
            }));
        }
    }
    Ok(kept)
}

fn write_file(store: &dyn Store, name: &str, content: &[u8]) -> Result<(), PrepareError> {
    let path = store.path(name);
    let mut file = store.create(name)?;
    file.write_all(content).map_err(PrepareError::io("write", path.as_ref()))?;
    Ok(file.publish()?)
}
