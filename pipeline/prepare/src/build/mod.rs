//! The build: plan, then shard after shard, then one commit.

mod budget;
mod config;
mod lock;
mod mix;
mod output;
mod plan;
mod reject;
mod repair;
mod report;
mod stages;
mod task;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use vela_processor::Processor;
use vela_runtime::{Progress, Shutdown};
use vela_shard::{BuildFolder, Manifest, ShardEntry, ShardError, ShardSettings, Store};
use vela_types::Sample;

pub(crate) use config::check_share;
pub use config::{BuildConfig, InputConfig};
pub use mix::Mix;
pub(crate) use output::{load_processor, open_shards, processor_folder};
pub use plan::{BuildPlan, PlannedFile, RecordRange, ShardSpec};
pub use reject::{REJECTS_FILE, Reject};
pub use report::BuildReport;
pub(crate) use report::counted;
pub use task::{BuildTask, BuildWorker, build_shard};

use crate::PrepareError;
use lock::{Company, OutputLock, is_read_only};
use output::{abandon, leave, open_folder, output_folder, save_processor, write_file};
use reject::ShardNotes;
use repair::repair;
use report::RunFacts;
use stages::{Process, Stages};

/// Turns the raw inputs of `config` into a shard set, or continues a build of the same plan.
///
/// The bytes written depend on the inputs, the processor and those settings that the plan covers, never on workers,
/// timing, how often the build was stopped, or where its shards were made ([`BuildTask`]). Rejected records do not fail
/// the build; see [`BuildReport::reject_rate`].
pub fn build_shards(
    config: &BuildConfig,
    progress: &Progress,
    shutdown: &Shutdown,
) -> Result<BuildReport, PrepareError> {
    let processor = open_processor(config)?;
    let process = |sample: &Sample| processor.process(sample, config.max_length);
    build_with(config, &processor, &process, progress, shutdown)
}

/// Checks `config` and loads the processor it names.
fn open_processor(config: &BuildConfig) -> Result<Processor, PrepareError> {
    config.check()?;
    load_processor(&config.processor, &config.processor_options())
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
    let build = OpenBuild::new(config, processor, Company::Nobody)?;
    progress.set_total(build.plan.num_records());
    let stages = build.stages(config, process, progress, shutdown);
    let (manifest, kept_shards) = match build.folder.manifest()? {
        Some(manifest) => {
            build.sweep()?;
            let kept = repair(&stages, &build.folder, build.store.as_ref(), &manifest)?;
            (manifest, kept)
        }
        None => build.build_all(&stages)?,
    };
    progress.finish();
    let peak_queue_bytes = stages.peak_queue_bytes.load(Ordering::Relaxed);
    let run = RunFacts { kept_shards, peak_queue_bytes, seconds: started.elapsed().as_secs_f64() };
    Ok(BuildReport::new(config, &build.plan, &manifest, run))
}

/// A plan and the place it fills.
struct OpenBuild {
    plan: BuildPlan,
    store: Arc<dyn Store>,
    folder: BuildFolder,
    /// Bytes of one image of a record.
    image_bytes: u64,
    /// Names of the processor's files.
    processor_files: Vec<String>,
    output: String,
    /// Of a local output.
    lock: Option<OutputLock>,
}

impl OpenBuild {
    /// Plans the build of `config`, takes its output and leaves a copy of the processor there.
    fn new(config: &BuildConfig, processor: &Processor, company: Company) -> Result<Self, PrepareError> {
        let output = config.output.clone();
        let store = open_shards("--output", &output)?;
        let local = output_folder(&output)?;
        if let Some(file) = local.filter(|path| path.exists() && !path.is_dir()) {
            let (expected, found) = ("a folder".to_owned(), file.display().to_string());
            return Err(PrepareError::Flag { flag: "--output", expected, found });
        }
        let plan = BuildPlan::new(config, processor.summary())?;
        let lock = local.map(|folder| OutputLock::take(folder, company)).transpose();
        let folder = || open_folder(config, &plan, &store, ShardSettings::new(processor.summary().clone()));
        let (lock, folder) = match lock {
            // A finished set on a read-only medium needs none: it is verified, and nothing is written unless it is damaged.
            Err(fault) if is_read_only(&fault) => match folder().and_then(|folder| Ok((folder.manifest()?, folder))) {
                Ok((Some(_), folder)) => (None, folder),
                _ => return Err(fault),
            },
            lock => (lock?, folder()?),
        };
        save_processor(processor, &output)?;
        let image_bytes = processor.summary().image_shape.num_elements() as u64;
        let processor_files = processor.files().map(|(name, _)| name.to_owned()).collect();
        Ok(Self { plan, store, folder, image_bytes, processor_files, output, lock })
    }

    fn stages<'a>(
        &'a self,
        config: &'a BuildConfig,
        process: &'a Process<'a>,
        progress: &'a Progress,
        shutdown: &'a Shutdown,
    ) -> Stages<'a> {
        let (plan, image_bytes, peak_queue_bytes) = (&self.plan, self.image_bytes, AtomicU64::new(0));
        Stages { plan, config, process, image_bytes, progress, shutdown, peak_queue_bytes }
    }

    /// Makes every shard that is not complete, then commits. Returns the manifest and how many shards were kept.
    fn build_all(&self, stages: &Stages<'_>) -> Result<(Manifest, usize), PrepareError> {
        self.sweep()?;
        let mut kept = 0;
        for spec in &self.plan.shards {
            kept += usize::from(self.complete_shard(stages, spec)?.1);
        }
        Ok((self.commit()?, kept))
    }

    /// Makes shard `spec` unless this build has completed it. Returns its entry and whether it was kept.
    fn complete_shard(&self, stages: &Stages<'_>, spec: &ShardSpec) -> Result<(ShardEntry, bool), PrepareError> {
        if let Some((shard, notes)) = self.folder.completed_shard(spec.index)?
            && ShardNotes::from_json(notes).is_some()
        {
            stages.progress.inc(spec.num_records);
            return Ok((shard.entry, true));
        }
        match self.make_shard(stages, spec) {
            Ok(entry) => Ok((entry, false)),
            // An equal build may have been faster, and have removed what this one was writing.
            Err(fault) if is_gone(&fault) => match self.folder.manifest()? {
                Some(mut manifest) => Ok((manifest.shards.swap_remove(spec.index as usize), true)),
                None => Err(fault),
            },
            Err(fault) => Err(fault),
        }
    }

    fn make_shard(&self, stages: &Stages<'_>, spec: &ShardSpec) -> Result<ShardEntry, PrepareError> {
        let (shard, notes) = stages.build_shard(spec, &self.folder)?;
        self.folder.complete_shard(spec.index, &shard, notes.to_json())?;
        Ok(shard.entry)
    }

    /// Removes what killed processes left half written, unless somebody else is at work here. A remote store has no such files.
    fn sweep(&self) -> Result<(), PrepareError> {
        match &self.lock {
            Some(lock) => lock.alone(|| Ok(self.folder.sweep()?)),
            // Nor can anything be removed from a read-only medium.
            None => Ok(()),
        }
    }

    /// Makes a shard set of the completed shards, whoever made them. Refuses while one is missing.
    fn commit(&self) -> Result<Manifest, PrepareError> {
        let num_shards = self.plan.shards.len() as u32;
        let mut notes = ShardNotes::default();
        let gathered = self.folder.gather(num_shards, |index, known| {
            let incomplete = || ShardError::Incomplete { path: self.store.path(""), index };
            notes.append(ShardNotes::from_json(known).ok_or_else(incomplete)?);
            Ok(())
        });
        let shards = match gathered {
            // An equal build may have been faster, and its completions are gone.
            Err(fault @ ShardError::Incomplete { .. }) => return Ok(self.folder.manifest()?.ok_or(fault)?),
            gathered => gathered?,
        };
        write_file(self.store.as_ref(), REJECTS_FILE, notes.to_lines().as_bytes())?;
        if shards.is_empty() {
            drop(shards);
            let rejects = self.store.path(REJECTS_FILE).into();
            abandon(&self.folder, &self.output, &self.processor_files)?;
            leave(self.store.as_ref())?;
            return Err(PrepareError::NothingLeft { records: self.plan.num_records(), rejects });
        }
        let mut echo = self.plan.echo.clone();
        echo["dropped_turns"] = notes.dropped_turns.into();
        let manifest = self.folder.commit_gathered(shards, notes.counts(), echo)?;
        leave(self.store.as_ref())?;
        Ok(manifest)
    }
}

/// True of a file that was there a moment ago.
fn is_gone(fault: &PrepareError) -> bool {
    match fault {
        PrepareError::Shard(ShardError::Io { source, .. }) => source.kind() == std::io::ErrorKind::NotFound,
        PrepareError::Shard(ShardError::MissingFile { .. }) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use vela_processor::ProcessorOptions;

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
    fn a_shard_whose_file_vanished_is_that_of_an_equal_build_that_was_faster() {
        let (root, processor, config) = build_of_twenty();
        let (output, finished) = (root.path().join("shards"), root.path().join("finished"));
        let process = |sample: &Sample| processor.process(sample, config.max_length);
        build_with(&config, &processor, &process, &Progress::hidden(), &Shutdown::new()).expect("builds");
        std::fs::rename(&output, &finished).expect("moved");
        let build = OpenBuild::new(&config, &processor, Company::Tasks).expect("planned");
        let names = |folder: &std::path::Path| {
            let entries = std::fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path());
            entries.filter(|path| path.is_file()).collect::<Vec<_>>()
        };
        let (once, num_removed) = (std::sync::Once::new(), AtomicU64::new(0));
        let process = |sample: &Sample| {
            once.call_once(|| {
                for path in names(&output).iter().filter(|path| path.to_string_lossy().ends_with(".partial")) {
                    std::fs::remove_file(path).expect("removed");
                    num_removed.fetch_add(1, Ordering::Relaxed);
                }
                for path in names(&finished) {
                    std::fs::copy(&path, output.join(path.file_name().expect("a name"))).expect("copied");
                }
            });
            processor.process(sample, config.max_length)
        };
        let (progress, shutdown) = (Progress::hidden(), Shutdown::new());
        let stages = build.stages(&config, &process, &progress, &shutdown);
        let (entry, was_kept) = build.complete_shard(&stages, &build.plan.shards[0]).expect("its row");
        let manifest = build.folder.manifest().expect("read").expect("finished");
        assert!(was_kept && num_removed.load(Ordering::Relaxed) == 1);
        assert_eq!(entry, manifest.shards[0]);
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
