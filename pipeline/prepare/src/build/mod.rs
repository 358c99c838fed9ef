//! The build: plan, then shard after shard, then one commit.

mod budget;
mod config;
mod plan;
mod reject;
mod report;
mod stages;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use vela_processor::{Processor, ProcessorOptions};
use vela_runtime::{Progress, Shutdown};
use vela_shard::{BuildFolder, LocalStore, Manifest, ShardEntry, ShardError, ShardSettings, Store, open_store};
use vela_types::Sample;

pub(crate) use config::check_share;
pub use config::{BuildConfig, InputConfig};
pub use plan::{BuildPlan, PlannedFile, RecordRange, ShardSpec};
pub use reject::{REJECTS_FILE, Reject};
pub use report::BuildReport;

use crate::PrepareError;
use reject::ShardNotes;
use report::RunFacts;
use stages::{Process, Stages};

/// Where shards are made that are not kept.
const SCRATCH_FOLDER: &str = "repair.partial";
/// Names the build that a folder without a manifest belongs to.
const BUILD_FILE: &str = "build.json";

/// The folder of a shard set.
fn output_folder(shards: &str) -> &Path {
    Path::new(shards.strip_prefix("file://").unwrap_or(shards))
}

/// Where a shard set keeps a copy of the processor that made it.
pub(crate) fn processor_folder(shards: &str) -> PathBuf {
    output_folder(shards).join("processor")
}

/// Opens the store that `flag` names.
pub(crate) fn open_shards(flag: &'static str, url: &str) -> Result<Arc<dyn Store>, PrepareError> {
    open_store(url).map_err(|fault| match fault {
        ShardError::UnsupportedUrl { url } => PrepareError::Flag {
            flag,
            expected: "a folder, or a `file://` URL with an absolute path".to_owned(),
            found: url,
        },
        fault => fault.into(),
    })
}

/// Loads what `--processor` names.
pub(crate) fn load_processor(path: &Path, options: &ProcessorOptions) -> Result<Processor, PrepareError> {
    let fault = |source| PrepareError::ProcessorFolder { path: path.to_owned(), source };
    Processor::load(path, options).map_err(fault)
}

/// Turns the raw inputs of `config` into a shard set, or continues a build of the same plan.
///
/// The bytes written depend on the inputs, the processor and those settings that the plan covers, never on workers,
/// timing or how often the build was stopped. Rejected records do not fail the build; see
/// [`BuildReport::reject_rate`].
pub fn build_shards(
    config: &BuildConfig,
    progress: &Progress,
    shutdown: &Shutdown,
) -> Result<BuildReport, PrepareError> {
    config.check()?;
    let options = ProcessorOptions { image_mode: config.image_mode, ..ProcessorOptions::default() };
    let processor = load_processor(&config.processor, &options)?;
    let process = |sample: &Sample| processor.process(sample, config.max_length);
    build_with(config, &processor, &process, progress, shutdown)
}

/// A build whose records are made by `process`.
fn build_with(
    config: &BuildConfig,
    processor: &Processor,
    process: &Process<'_>,
    progress: &Progress,
    shutdown: &Shutdown,
) -> Result<BuildReport, PrepareError> {
    let started = Instant::now();
    let store = open_shards("--output", &config.output)?;
    let plan = BuildPlan::new(config, processor.summary())?;
    progress.set_total(plan.num_records());
    let folder = open_folder(config, &plan, &store, ShardSettings::new(processor.summary().clone()))?;
    processor.save(&processor_folder(&config.output))?;
    let (image_bytes, peak_queue_bytes) = (processor.summary().image_shape.num_elements() as u64, AtomicU64::new(0));
    let stages = Stages { plan: &plan, config, process, image_bytes, progress, shutdown, peak_queue_bytes };
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
        expected: format!("an empty folder or a build of the plan `{}`", plan.name.short()),
        found,
    };
    let folder = match BuildFolder::open(Arc::clone(store), plan.name, settings) {
        Err(ShardError::ForeignBuild { found, .. }) => {
            return Err(in_use(format!("a build of other inputs, images or settings (plan `{}`)", found.short())));
        }
        opened => opened?,
    };
    if folder.manifest()?.is_some() {
        return Ok(folder);
    }
    let name = serde_json::json!({ "plan": plan.name }).to_string();
    match store.read(BUILD_FILE)? {
        Some(found) if found[..] == *name.as_bytes() => {}
        Some(_) => return Err(in_use("an unfinished build of other inputs, images or settings".to_owned())),
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

/// Verifies a finished set and makes again what is damaged or missing: shards, lengths index, reject list. Their bytes
/// come out as the manifest says. Returns how many shards were kept.
fn repair(
    stages: &Stages<'_>,
    folder: &BuildFolder,
    store: &dyn Store,
    manifest: &Manifest,
) -> Result<usize, PrepareError> {
    // A build stopped right after its commit leaves this behind.
    store.remove(BUILD_FILE)?;
    folder.clean(manifest)?;
    let rejects_lost = !has_rejects(store, manifest)?;
    let (mut kept, mut notes) = (0, ShardNotes::default());
    for (spec, entry) in stages.plan.shards.iter().zip(&manifest.shards) {
        let content = store.read(&entry.file)?;
        let is_good = content.is_some_and(|content| *blake3::hash(&content).as_bytes() == entry.checksum.0);
        if !is_good {
            notes.append(remake_shard(stages, folder, store, spec, entry)?);
            continue;
        }
        kept += 1;
        match rejects_lost && entry.rows < spec.num_records() {
            true => notes.append(find_rejects(stages, folder, store, spec, entry)?),
            false => stages.progress.inc(spec.num_records()),
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

/// The rejects of a good shard, whose causes are found only by processing its records again: in a folder beside it, so that
/// a shard that would now come out otherwise (its images changed since) does not replace the good one.
fn find_rejects(
    stages: &Stages<'_>,
    folder: &BuildFolder,
    store: &dyn Store,
    spec: &ShardSpec,
    entry: &ShardEntry,
) -> Result<ShardNotes, PrepareError> {
    let scratch = output_folder(&stages.config.output).join(SCRATCH_FOLDER);
    let clear = || match fs::remove_dir_all(&scratch) {
        Err(fault) if fault.kind() != ErrorKind::NotFound => Err(PrepareError::io("remove", &scratch)(fault)),
        _ => Ok(()),
    };
    // Left behind by a kill.
    clear()?;
    let beside = folder.elsewhere(Arc::new(LocalStore::new(&scratch)));
    let notes = remake_shard(stages, &beside, store, spec, entry);
    clear()?;
    notes
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

fn write_file(store: &dyn Store, name: &str, content: &[u8]) -> Result<(), PrepareError> {
    let path = store.path(name);
    let mut file = store.create(name)?;
    file.write_all(content).map_err(PrepareError::io("write", path.as_ref()))?;
    Ok(file.publish()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DemoDataConfig, InputConfig, Source, write_demo_data};

    /// Twenty records, their processor, and a build of them into `shards` of the folder.
    fn build_of_twenty() -> (tempfile::TempDir, Processor, BuildConfig) {
        let root = tempfile::tempdir().expect("temp folder");
        let demo = DemoDataConfig { num_train: 20, num_heldout: 1, ..DemoDataConfig::new(root.path().join("demo")) };
        let demo = write_demo_data(&demo).expect("demo data");
        let processor = load_processor(&demo.processor, &ProcessorOptions::default()).expect("processor");
        let inputs = vec![InputConfig::new(Source::Llava, &demo.llava)];
        let config = BuildConfig::new(inputs, &demo.processor, root.path().join("shards").to_string_lossy());
        (root, processor, config)
    }

    #[test]
    fn a_lost_reject_list_costs_no_good_shard() {
        let (root, processor, config) = build_of_twenty();
        let output = root.path().join("shards");
        // Stands for an image that was replaced without a trace between two runs.
        let build = |refused: char| {
            let process = |sample: &Sample| {
                assert!(!sample.id.ends_with(refused), "refused");
                processor.process(sample, config.max_length)
            };
            build_with(&config, &processor, &process, &Progress::hidden(), &Shutdown::new())
        };
        build('7').expect("builds");
        let files = || ["shard-00000.parquet", REJECTS_FILE].map(|name| std::fs::read(output.join(name)).ok());
        let sound = files();
        std::fs::remove_file(output.join(REJECTS_FILE)).expect("there");
        let told = build('6').expect_err("other records").to_string();
        assert!(told.contains("made again"), "{told}");
        assert_eq!(files()[0], sound[0], "the good shard is still there");
        assert_eq!(build('7').expect("as before").samples, 18);
        assert_eq!(files(), sound);
        assert!(!output.join(SCRATCH_FOLDER).exists());
    }

    #[test]
    fn a_record_whose_processing_panics_is_a_reject_and_the_build_goes_on() {
        let (root, processor, config) = build_of_twenty();
        let output = root.path().join("shards");
        for workers in [1, 3] {
            let _ = std::fs::remove_dir_all(&output);
            let config = BuildConfig { workers, ..config.clone() };
            let process = |sample: &Sample| {
                assert!(!sample.id.ends_with('7'), "the test wants no seven");
                processor.process(sample, config.max_length)
            };
            let report = build_with(&config, &processor, &process, &Progress::hidden(), &Shutdown::new());
            let report = report.expect("builds");
            assert_eq!((report.samples, report.rejected.get("processor_panicked")), (18, Some(&2)));
            let rejects = std::fs::read_to_string(output.join(REJECTS_FILE)).expect("reject list");
            let rejects: Vec<Reject> = rejects.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
            assert_eq!(rejects.iter().map(|reject| reject.record).collect::<Vec<_>>(), [7, 17]);
            assert_eq!(rejects[0].id.as_deref(), Some("llava/demo_instruct/demo_000007"));
            assert!(rejects[0].detail.contains("the test wants no seven"), "{}", rejects[0].detail);
        }
    }
}
