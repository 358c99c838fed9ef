//! The three training runs: what `trainer train` does with three recipes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vela_prepare::DemoDataReport;
use vela_runtime::{Progress, Shutdown};
use vela_train::{
    RawBatch, RawCheckpoint, RawData, RawGroup, RawGuard, RawLogging, RawModel, RawOptimizer, RawRecipe, RawRun,
    RawSchedule, Recipe, Resume, StepMetrics, TrainReport, read_metrics, train,
};

use crate::plan::{BATCH, MAX_LENGTH, Plan, StagePlan};
use crate::workplace::Workplace;

/// The shape of the model, and how its fresh weights are drawn.
const PRESET: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../trainer/configs/model/demo.toml"));
/// Room for the image's own tokens beside the text.
const IMAGE_ROOM: u32 = 64;

/// A finished run.
pub(crate) struct Stage {
    pub(crate) plan: StagePlan,
    pub(crate) report: TrainReport,
    pub(crate) curve: Vec<StepMetrics>,
    pub(crate) seconds: f64,
    pub(crate) folder: PathBuf,
    /// Weights, config and processor after the last step.
    pub(crate) checkpoint: PathBuf,
}

/// Runs all stages, each from the weights of the one before.
pub(crate) fn train_all(
    plan: &Plan,
    workplace: &Workplace,
    raw: &DemoDataReport,
    loader: &str,
    shutdown: &Shutdown,
) -> Result<Vec<Stage>> {
    fs::write(workplace.preset(), PRESET).context("cannot write the model preset")?;
    let mut stages: Vec<Stage> = Vec::new();
    for stage in plan.stages {
        let model = match stages.last() {
            None => RawModel {
                init: Some(text(&workplace.preset())),
                processor: Some(text(&raw.processor)),
                ..RawModel::default()
            },
            Some(before) => RawModel {
                path: Some(text(&before.checkpoint)),
                fresh_projector: !stage.trains_language_model,
                ..RawModel::default()
            },
        };
        let recipe = recipe(plan.seed, stage, workplace.run(stage.name), loader, model);
        stages.push(run(stage, recipe, shutdown).with_context(|| format!("{} failed", stage.name))?);
    }
    Ok(stages)
}

fn run(stage: StagePlan, recipe: RawRecipe, shutdown: &Shutdown) -> Result<Stage> {
    Progress::new("", None).note(&format!("{}: {}", stage.name, stage.purpose));
    let started = Instant::now();
    let folder = PathBuf::from(&recipe.run.output);
    let report = train(&Recipe::check(recipe)?, &Resume::Fresh, shutdown)?;
    ensure!(!report.interrupted, "stopped after {} of {} steps", report.steps, report.total_steps);
    let curve = read_metrics(&folder.join("metrics.jsonl"))?;
    let checkpoint = report.checkpoint.clone().context("no checkpoint was written")?;
    Ok(Stage { plan: stage, report, curve, seconds: started.elapsed().as_secs_f64(), folder, checkpoint })
}

fn recipe(seed: u64, stage: StagePlan, output: PathBuf, loader: &str, model: RawModel) -> RawRecipe {
    let trained =
        [("projector", true), ("language_model", stage.trains_language_model), ("vision_tower", stage.trains_tower)];
    let trained = trained.into_iter().filter(|(_, trained)| *trained);
    RawRecipe {
        train_type: stage.train_type.to_owned(),
        run: RawRun { output: text(&output), seed, epochs: None, max_steps: Some(stage.steps) },
        data: RawData { loader: Some(loader.to_owned()), ..RawData::default() },
        model,
        batch: RawBatch {
            global: BATCH,
            micro: None,
            max_length: MAX_LENGTH as u32 + IMAGE_ROOM,
            packing: None,
            recompute: None,
        },
        groups: trained.map(|(name, _)| (name.to_owned(), RawGroup::with_lr(stage.learning_rate))).collect(),
        lora: None,
        optimizer: RawOptimizer { betas: [0.9, 0.98], weight_decay: 0.01, ..RawOptimizer::default() },
        schedule: RawSchedule { warmup_steps: Some(stage.warmup_steps), floor: 0.05, ..RawSchedule::default() },
        guard: RawGuard::default(),
        logging: RawLogging::default(),
        samples: None,
        checkpoint: RawCheckpoint { every: stage.steps, keep: 1 },
        ranks: Default::default(),
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
