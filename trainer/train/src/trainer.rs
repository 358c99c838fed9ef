//! The run: open everything a recipe names, step until done or told to stop, leave a checkpoint.

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::Serialize;
use vela_models::{Fresh, Layout, ModelPreset, Vlm, VlmConfig};
use vela_processor::{Processor, ProcessorOptions};
use vela_runtime::{Progress, Shutdown};
use vela_types::{BatchSource, BatchSpec, Cursor, Position, ProcessorSummary};

use crate::checkpoint::{TrainerState, load_moments};
use crate::data::{check_max_length, check_model, check_processor, open_source, open_validation};
use crate::device_batch::PixelTable;
use crate::error::TrainError;
use crate::gradient_check::GradientCheck;
use crate::groups::Component;
use crate::metrics::{MetricsLog, Rates, StepMetrics};
use crate::optimizer::Optimizer;
use crate::recipe::{Recipe, WeightOrigin};
use crate::run_folder::{Resume, RunFolder};
use crate::step::{StepReport, Stepper};
use crate::stopwatch::Stopwatch;
use crate::validation::validation_loss;

/// What a run did; the JSON object of `trainer train`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainReport {
    /// Optimizer steps made, earlier parts of a resumed run included.
    pub steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Mean loss per label token of the first step; absent if none was made.
    pub loss_first: Option<f64>,
    /// Of the last step.
    pub loss_last: Option<f64>,
    /// Samples per second in this process.
    pub samples_per_second: f64,
    /// Tokens per second in this process, images expanded, padding not counted.
    pub tokens_per_second: f64,
    /// Share of the time spent waiting for batches, 0 to 1.
    pub data_wait: f64,
    /// The newest checkpoint; absent if stopped before the first step.
    pub checkpoint: Option<PathBuf>,
    /// Told to stop before the last step: `--resume auto` continues.
    pub interrupted: bool,
}

/// Trains as the recipe says until its last step or until `shutdown` is requested; either way a checkpoint is left.
///
/// # Errors
/// Before the first step: a recipe, model, processor and data that do not fit one another, a run folder that is taken, a
/// checkpoint of another run. Later: gradients that are not those asked for, a loss that is not finite, a broken stream.
pub fn train(recipe: &Recipe, resume: &Resume, shutdown: &Shutdown) -> Result<TrainReport, TrainError> {
    vela_kernels::keep_freed_memory();
    Trainer::open(recipe, resume)?.run(shutdown)
}

struct Trainer {
    recipe: Recipe,
    folder: RunFolder,
    metrics: MetricsLog,
    processor: Processor,
    stepper: Stepper,
    spec: BatchSpec,
    state: TrainerState,
    steps_per_epoch: u64,
    newest: Option<PathBuf>,
    /// Steps that `newest` holds.
    saved_step: u64,
    /// Since the last metrics line, and since this process began.
    stretch: Stopwatch,
    whole: Stopwatch,
    seconds_before: f64,
    /// Sum and number of the losses since the last checkpoint.
    losses: (f64, u64),
}

impl Trainer {
    /// Opens model, data and run folder, and checks that they belong together.
    fn open(recipe: &Recipe, resume: &Resume) -> Result<Self, TrainError> {
        let folder = RunFolder::new(recipe);
        let checkpoint = folder.starting_point(resume)?;
        let saved = checkpoint.as_deref().map(open_saved).transpose()?;
        let processor = open_processor(recipe.processor())?;
        let model = open_model(recipe, checkpoint.as_deref(), processor.summary())?;
        check_model(model.config(), processor.summary())?;
        check_max_length(model.config(), recipe.settings().batch.max_length)?;
        let spec = recipe.batch_spec(model.image_tokens() as u32);
        let mut source = open_source(recipe.data(), spec.clone(), recipe.limits())?;
        check_processor(processor.summary(), &source.info().processor)?;
        let steps_per_epoch = source.steps_per_epoch();
        let schedule = recipe.schedule(recipe.total_steps(steps_per_epoch)?)?;
        let mut optimizer = open_optimizer(recipe, &model);
        let state = open_state(recipe, &processor, source.as_mut(), &mut optimizer, saved)?;
        let metrics = folder.open(recipe, state.step)?;
        let pixels = PixelTable::new(&processor.summary().normalization);
        let gradient_check = GradientCheck::default();
        Ok(Self {
            stepper: Stepper { model, optimizer, schedule, source, pixels, gradient_check },
            recipe: recipe.clone(),
            seconds_before: state.seconds,
            newest: checkpoint,
            saved_step: state.step,
            stretch: Stopwatch::start(),
            whole: Stopwatch::start(),
            losses: (0.0, 0),
            folder,
            metrics,
            processor,
            spec,
            state,
            steps_per_epoch,
        })
    }

    fn run(mut self, shutdown: &Shutdown) -> Result<TrainReport, TrainError> {
        let progress = self.start_progress();
        while !self.is_done() && !shutdown.requested() {
            let report = self.train_step()?;
            let due = self.checkpoint_is_due();
            let validation = if due { self.validate()? } else { None };
            self.log(&report, validation, &progress)?;
            if due {
                self.save_checkpoint(validation)?;
            }
        }
        if self.saved_step != self.state.step {
            self.save_checkpoint(None)?;
        }
        progress.finish();
        self.folder.write_plot(self.metrics.lines())?;
        Ok(self.report())
    }

    fn is_done(&self) -> bool {
        self.state.step >= self.stepper.schedule.total_steps()
    }

    fn checkpoint_is_due(&self) -> bool {
        self.is_done() || self.state.step.is_multiple_of(self.recipe.settings().checkpoint.every)
    }

    /// One optimizer step; the state then points at the next.
    fn train_step(&mut self) -> Result<StepReport, TrainError> {
        let Cursor { epoch, step, .. } = self.state.cursor;
        let report = self.stepper.train_step(self.state.step, Position { epoch, step, micro: 0 })?;
        self.state.step += 1;
        self.state.cursor = self.cursor_after(self.state.step);
        self.losses = (self.losses.0 + report.loss, self.losses.1 + 1);
        [&mut self.stretch, &mut self.whole].into_iter().for_each(|watch| watch.count(&report));
        Ok(report)
    }

    fn cursor_after(&self, steps: u64) -> Cursor {
        let (epoch, step) = (steps / self.steps_per_epoch, steps % self.steps_per_epoch);
        Cursor { epoch, step, ..self.state.cursor.clone() }
    }

    fn validate(&mut self) -> Result<Option<f64>, TrainError> {
        let Some(shards) = &self.recipe.settings().data.validation else { return Ok(None) };
        let mut source = open_validation(shards, &self.spec, self.recipe.limits())?;
        check_processor(self.processor.summary(), &source.info().processor)?;
        validation_loss(&self.stepper.model, source.as_mut(), &self.spec, &self.stepper.pixels).map(Some)
    }

    /// Writes a metrics line if one is due: every `logging.every` steps, at the first and last, and with a validation.
    fn log(&mut self, report: &StepReport, validation: Option<f64>, progress: &Progress) -> Result<(), TrainError> {
        let step = self.state.step;
        progress.inc(1);
        let every = self.recipe.settings().logging.every;
        if !(step == 1 || step.is_multiple_of(every) || self.is_done() || validation.is_some()) {
            return Ok(());
        }
        let speed = std::mem::replace(&mut self.stretch, Stopwatch::start()).speed();
        self.metrics.push(StepMetrics {
            step,
            epoch: step as f64 / self.steps_per_epoch as f64,
            loss: report.loss,
            validation_loss: validation,
            lr: self.rates(report.factor),
            grad_norm: report.grad_norm,
            samples_per_second: speed.samples,
            tokens_per_second: speed.tokens,
            label_tokens_per_second: speed.label_tokens,
            data_wait: speed.data_wait,
            seconds: self.seconds_before + self.whole.seconds(),
        })
    }

    fn rates(&self, factor: f64) -> Rates {
        let rate = |component| {
            let peak = self.recipe.learning_rates().of(component);
            (peak > 0.0).then_some(peak * factor)
        };
        Rates {
            projector: rate(Component::Projector),
            language_model: rate(Component::LanguageModel),
            vision_tower: rate(Component::VisionTower),
        }
    }

    fn save_checkpoint(&mut self, validation: Option<f64>) -> Result<(), TrainError> {
        let (sum, count) = std::mem::take(&mut self.losses);
        self.state.score = Some(validation.unwrap_or(sum / count.max(1) as f64));
        self.state.seconds = self.seconds_before + self.whole.seconds();
        let Stepper { model, optimizer, .. } = &self.stepper;
        let path = self.folder.checkpoints.save(&self.state, model, &self.processor, optimizer)?;
        self.newest = Some(path);
        self.saved_step = self.state.step;
        self.folder.write_plot(self.metrics.lines())
    }

    fn start_progress(&self) -> Progress {
        let total = self.stepper.schedule.total_steps();
        let progress = Progress::new("step", Some(total));
        let (all, trained) = self.stepper.model.params().num_values();
        let samples = self.stepper.source.info().num_samples;
        progress.note(&format!("training {trained} of {all} weights for {total} steps on {samples} samples"));
        if let Some(checkpoint) = &self.newest {
            progress.note(&format!("resuming after step {} from `{}`", self.state.step, checkpoint.display()));
        }
        progress.inc(self.state.step);
        progress
    }

    fn report(&self) -> TrainReport {
        let (lines, speed) = (self.metrics.lines(), self.whole.speed());
        TrainReport {
            steps: self.state.step,
            total_steps: self.stepper.schedule.total_steps(),
            loss_first: lines.first().map(|line| line.loss),
            loss_last: lines.last().map(|line| line.loss),
            samples_per_second: speed.samples,
            tokens_per_second: speed.tokens,
            data_wait: speed.data_wait,
            checkpoint: self.newest.clone(),
            interrupted: !self.is_done(),
        }
    }
}

fn open_processor(path: &Path) -> Result<Processor, TrainError> {
    Processor::load(path, &ProcessorOptions::default())
        .map_err(|source| TrainError::Processor { path: path.to_owned(), source: Box::new(source) })
}

/// The weights: a checkpoint's if there is one, else what the recipe says.
fn open_model(recipe: &Recipe, checkpoint: Option<&Path>, data: &ProcessorSummary) -> Result<Vlm, TrainError> {
    let trains = |name: &str| recipe.learning_rates().trains(name);
    let in_projector = |name: &str| Component::of(name) == Some(Component::Projector);
    let device = &Device::Cpu;
    let (place, model) = match (checkpoint, recipe.weights()) {
        (Some(folder), _) => (folder, Vlm::load(folder, &trains, device)),
        (None, WeightOrigin::Folder { path, fresh_projector: false }) => {
            (path.as_path(), Vlm::load(path, &trains, device))
        }
        (None, WeightOrigin::Folder { path, fresh_projector: true }) => {
            let fresh = Fresh { names: &in_projector, seed: recipe.seed() };
            let folders = [(Layout::Joined, path.as_path())];
            let load = |config| Vlm::from_folders(config, &folders, fresh, &trains, device);
            (path.as_path(), VlmConfig::load(path).and_then(load))
        }
        (None, WeightOrigin::Preset(path)) => {
            let config = ModelPreset::load(path).and_then(|preset| preset.config(data.vocab_size, data.image_token_id));
            let init = |config| Vlm::init(config, recipe.seed(), &trains, device);
            (path.as_path(), config.and_then(init))
        }
    };
    model.map_err(|source| TrainError::ModelFolder { path: place.to_owned(), source: Box::new(source) })
}

fn open_optimizer(recipe: &Recipe, model: &Vlm) -> Optimizer {
    let trained = model.params().trainable().filter_map(|(name, var)| {
        let component = Component::of(name)?;
        Some((name.to_owned(), var.clone(), component))
    });
    Optimizer::new(trained, recipe.settings().optimizer, *recipe.learning_rates())
}

/// The state of the checkpoint in `folder`, whose files are all as they were written.
fn open_saved(folder: &Path) -> Result<(&Path, TrainerState), TrainError> {
    let saved = TrainerState::load(folder)?;
    saved.check_files(folder)?;
    Ok((folder, saved))
}

/// The state of a new run, or the `saved` one with its moments put back and the source moved to its cursor.
fn open_state(
    recipe: &Recipe,
    processor: &Processor,
    source: &mut dyn BatchSource,
    optimizer: &mut Optimizer,
    saved: Option<(&Path, TrainerState)>,
) -> Result<TrainerState, TrainError> {
    let resolved = serde_json::to_value(recipe.resolved()).expect("a checked recipe always has a JSON form");
    let start = TrainerState::new(0, source.start_cursor(), processor.summary().fingerprint, resolved);
    let Some((folder, saved)) = saved else { return Ok(start) };
    saved.check_belongs_to(&start, folder)?;
    load_moments(optimizer.slots_mut(), folder)?;
    source.seek(&saved.cursor).map_err(TrainError::Seek)?;
    Ok(TrainerState { recipe: start.recipe, ..saved })
}
