//! One shard as a task for any process: in JSON, pure, and safe to run twice.
//!
//! An engine plans once, runs every task somewhere, at least once and in any order, and commits once:
//! [`BuildWorker::tasks`], [`BuildWorker::build_shard`], [`BuildWorker::commit`]. Nothing but the inputs and the output's
//! store is shared. A worker derives the plan from the task's config and its own view of the inputs, and refuses a task of
//! another plan: so a machine that sees other files makes no shard, instead of a wrong one.

use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vela_processor::Processor;
use vela_runtime::{Progress, Shutdown};
use vela_shard::ShardEntry;
use vela_types::{Fingerprint, Sample};

use super::lock::Company;
use super::report::RunFacts;
use super::{BuildConfig, BuildPlan, BuildReport, OpenBuild, ShardSpec, open_processor};
use crate::PrepareError;

/// Everything a process needs to make one shard: a few hundred bytes, whatever the inputs hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildTask {
    /// The build. Local paths are absolute.
    pub config: BuildConfig,
    /// [`BuildPlan::name`]: what the worker must see of the inputs.
    pub plan: Fingerprint,
    /// The shard.
    pub shard: ShardSpec,
}

/// A process's view of one build: opened once, it runs any number of tasks.
pub struct BuildWorker {
    config: BuildConfig,
    processor: Processor,
    build: OpenBuild,
}

impl BuildWorker {
    /// Plans the build of `config` and takes its output, which other workers of the same build may share.
    pub fn open(config: &BuildConfig) -> Result<Self, PrepareError> {
        let config = config.absolute()?;
        let processor = open_processor(&config)?;
        let build = OpenBuild::new(&config, &processor, Company::Tasks)?;
        Ok(Self { config, processor, build })
    }

    /// The plan.
    pub fn plan(&self) -> &BuildPlan {
        &self.build.plan
    }

    /// One task per shard, in the shards' order.
    pub fn tasks(&self) -> Vec<BuildTask> {
        let plan = &self.build.plan;
        let task = |shard: &ShardSpec| BuildTask { config: self.config.clone(), plan: plan.name, shard: shard.clone() };
        plan.shards.iter().map(task).collect()
    }

    /// Makes the shard of `task`, unless it is complete, and records that it is. Gives its manifest row, which is the same
    /// whoever makes it and however often.
    pub fn build_shard(
        &self,
        task: &BuildTask,
        progress: &Progress,
        shutdown: &Shutdown,
    ) -> Result<ShardEntry, PrepareError> {
        let OpenBuild { plan, folder, .. } = &self.build;
        let spec = plan.shards.get(task.shard.index as usize).filter(|spec| **spec == task.shard);
        let (Some(spec), true) = (spec, plan.name == task.plan) else {
            return Err(PrepareError::OtherPlan { expected: task.plan, found: plan.name, index: task.shard.index });
        };
        // Late, after the commit: the row stands in the manifest.
        if let Some(entry) =
            folder.manifest()?.and_then(|manifest| manifest.shards.into_iter().nth(spec.index as usize))
        {
            return Ok(entry);
        }
        progress.set_total(spec.num_records);
        let process = |sample: &Sample| self.processor.process(sample, self.config.max_length);
        let stages = self.build.stages(&self.config, &process, progress, shutdown);
        let (entry, _) = self.build.complete_shard(&stages, spec)?;
        if let Some(manifest) = folder.manifest()? {
            folder.clean(&manifest)?;
        }
        Ok(entry)
    }

    /// Makes a shard set of the completed shards. Refuses while one is missing, by its number.
    pub fn commit(&self) -> Result<BuildReport, PrepareError> {
        let started = Instant::now();
        let manifest = match self.build.folder.manifest()? {
            Some(manifest) => manifest,
            None => self.build.commit()?,
        };
        self.build.sweep()?;
        let run = RunFacts {
            kept_shards: manifest.shards.len(),
            peak_queue_bytes: 0,
            seconds: started.elapsed().as_secs_f64(),
        };
        Ok(BuildReport::new(&self.config, &self.build.plan, &manifest, run))
    }
}

/// Runs one task in this process. For several tasks of one build, [`BuildWorker::open`] reads the inputs once.
pub fn build_shard(task: &BuildTask, progress: &Progress, shutdown: &Shutdown) -> Result<ShardEntry, PrepareError> {
    BuildWorker::open(&task.config)?.build_shard(task, progress, shutdown)
}

impl BuildConfig {
    /// The same build for a process with another working folder.
    fn absolute(&self) -> Result<Self, PrepareError> {
        let mut config = self.clone();
        for input in &mut config.inputs {
            make_absolute(&mut input.input)?;
            input.images.as_mut().map_or(Ok(()), make_absolute)?;
        }
        make_absolute(&mut config.processor)?;
        let mut output = PathBuf::from(&config.output);
        make_absolute(&mut output)?;
        config.output = output.to_string_lossy().into_owned();
        Ok(config)
    }
}

/// Leaves URLs as they are.
fn make_absolute(path: &mut PathBuf) -> Result<(), PrepareError> {
    if !path.to_string_lossy().contains("://") {
        *path = std::path::absolute(&*path).map_err(PrepareError::io("find", path))?;
    }
    Ok(())
}
