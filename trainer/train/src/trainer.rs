//! The run: step until done or told to stop, watch what happens, leave a checkpoint.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;
use vela_dataset::MicroExtents;
use vela_processor::Processor;
use vela_runtime::{Progress, Shutdown};
use vela_types::{Cursor, Position};

use crate::answerer::Answerer;
use crate::checkpoint::{Score, TrainerState};
use crate::collective::{Collective, Single};
use crate::device_batch::PixelTable;
use crate::dry_step::dry_step;
use crate::error::TrainError;
use crate::flops::FlopCount;
use crate::guard::SkippedStep;
use crate::lock::FolderLock;
use crate::memory::{MemoryEstimate, free_memory, held_memory, in_mib, process_memory};
use crate::metrics::StepMetrics;
use crate::opened::Opened;
use crate::ranks::{Ranks, account_of};
use crate::recipe::Recipe;
use crate::report::write_report;
use crate::run_card::{RUN_CARD, RunCard};
use crate::run_folder::{Resume, RunFolder, RunLogs};
use crate::samples::answer_samples;
use crate::step::{StepReport, Stepper};
use crate::stopwatch::Stopwatch;
use crate::validation::Validation;
use crate::watch::{Peak, Watch};

/// What a run did; the JSON object of `trainer train`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainReport {
    /// Optimizer steps made, earlier parts of a resumed run included.
    pub steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Mean loss per label token of the first step; absent if none was made, and on ranks other than 0.
    pub loss_first: Option<f64>,
    /// Of the last step.
    pub loss_last: Option<f64>,
    /// Samples per second since this start, of all ranks.
    pub samples_per_second: f64,
    /// Tokens per second likewise, images expanded, padding not counted.
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
/// Before the first step: a recipe, model, processor and data that do not fit one another, a run folder that is taken or
/// in use, a checkpoint of another run. Later: gradients that are not those asked for, a loss that is not finite, a broken
/// stream, or something that watches; the steps made are then kept in a checkpoint too.
pub fn train(recipe: &Recipe, resume: &Resume, shutdown: &Shutdown) -> Result<TrainReport, TrainError> {
    train_together(recipe, resume, shutdown, &mut Single)
}

/// [`train`] as one of several ranks, each of which calls this with the same recipe: together they take the steps that one
/// process would. Rank 0 alone writes. A shutdown requested of any rank stops all, with a checkpoint.
///
/// # Errors
/// Those of [`train`], and ranks that do not hold the same. After an error of one rank the others wait for it: the
/// processes have to be ended together.
pub fn train_together(
    recipe: &Recipe,
    resume: &Resume,
    shutdown: &Shutdown,
    collective: &mut dyn Collective,
) -> Result<TrainReport, TrainError> {
    vela_kernels::keep_freed_memory();
    Trainer::open(recipe, resume, Ranks::new(collective))?.run(shutdown)
}

/// What only rank 0 has: the files that grow, and those who are told.
struct Records {
    logs: RunLogs,
    watch: Watch,
}

struct Trainer<'a> {
    recipe: Recipe,
    ranks: Ranks<'a>,
    folder: RunFolder,
    /// Of rank 0.
    _lock: Option<FolderLock>,
    records: Option<Records>,
    /// Of the processor, for answers.
    pixels: PixelTable,
    processor: Processor,
    stepper: Stepper,
    validation: Option<Validation>,
    largest: MicroExtents,
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

impl<'a> Trainer<'a> {
    /// Opens model, data and run folder, and checks that they belong together, on all ranks.
    fn open(recipe: &Recipe, resume: &Resume, mut ranks: Ranks<'a>) -> Result<Self, TrainError> {
        let folder = RunFolder::new(recipe);
        let mut lock = None;
        let checkpoint = ranks.start_from(|| {
            lock = Some(folder.lock()?);
            folder.starting_point(resume)
        })?;
        let opened = Opened::open(recipe, checkpoint.as_deref(), ranks.partition());
        let account = |opened: &Opened| account_of(&opened.stepper.model, &opened.state, checkpoint.as_deref());
        let Opened { stepper, processor, pixels, validation, largest, state, steps_per_epoch } =
            ranks.agree(opened, account)?;
        let mut peak = Peak::of(&recipe.settings().logging, &stepper.model)?;
        [peak.flops] = ranks.sum("measuring the machines", [peak.flops])?;
        let records = match ranks.leads() {
            false => None,
            true => {
                let logs = folder.open(recipe, state.step)?;
                let flops = FlopCount::new(&stepper.model, stepper.images.is_features());
                let watch = Watch::open(&recipe.settings().logging, (peak, flops), &folder, state.step + 1)?;
                Some(Records { logs, watch })
            }
        };
        Ok(Self {
            recipe: recipe.clone(),
            seconds_before: state.seconds,
            newest: checkpoint,
            saved_step: state.step,
            stretch: Stopwatch::start(),
            whole: Stopwatch::start(),
            losses: (0.0, 0),
            ranks,
            folder,
            _lock: lock,
            records,
            stepper,
            pixels,
            processor,
            validation,
            largest,
            state,
            steps_per_epoch,
        })
    }

    fn run(mut self, shutdown: &Shutdown) -> Result<TrainReport, TrainError> {
        let progress = self.start_progress();
        self.prepare(&progress)?;
        let ended = self.train_steps(&progress, shutdown);
        let saved = self.keep_steps(&ended);
        if let (Err(_), Err(fault)) = (&ended, &saved) {
            progress.note(&format!("the steps after step {} are lost: {fault}", self.saved_step));
        }
        ended.and(saved)?;
        progress.finish();
        if let Some(records) = &self.records {
            self.folder.write_plot(records.logs.metrics.lines())?;
            let folder = self.recipe.output().to_owned();
            // Steps may have raised the peak.
            let card = RunCard { peak: records.watch.peak, ..RunCard::load(&folder)? };
            self.folder.write(RUN_CARD, &card.to_json())?;
            write_report(std::slice::from_ref(&folder), &folder.join("report.html"))?;
        }
        // A rank that ends earlier would have the others ended with it.
        self.ranks.meet("the end")?;
        Ok(self.report())
    }

    fn train_steps(&mut self, progress: &Progress, shutdown: &Shutdown) -> Result<(), TrainError> {
        while !self.is_done() && !self.ranks.any("asking whether to stop", shutdown.requested())? {
            let report = self.train_step()?;
            self.after_step(report, progress, shutdown)?;
        }
        Ok(())
    }

    /// Saves the steps that no checkpoint holds yet, whatever ended them, unless it ended them within an update or showed
    /// that ranks have different weights. After an error without asking the other ranks, which may not have met it.
    fn keep_steps(&mut self, ended: &Result<(), TrainError>) -> Result<(), TrainError> {
        match ended {
            _ if self.saved_step == self.state.step => Ok(()),
            Ok(()) => self.save_checkpoint(None),
            Err(TrainError::Update(_) | TrainError::Drifted { .. }) => Ok(()),
            Err(_) => self.write_checkpoint(None),
        }
    }

    /// Before the first step of this process: what memory it will want, the largest micro-batch, the first answers.
    fn prepare(&mut self, progress: &Progress) -> Result<(), TrainError> {
        let (prefetch, encoded) = (self.recipe.limits().prefetch_bytes as u64, self.stepper.images.is_features());
        let estimate = MemoryEstimate::new(&self.stepper.model, self.largest, prefetch, encoded);
        progress.note(&estimate.describe());
        let Stepper { model, source, schedule, .. } = &self.stepper;
        let steps = (schedule.total_steps(), self.steps_per_epoch);
        if let Some(records) = &self.records {
            let card =
                RunCard::new(steps, source.info(), model, records.watch.peak, &estimate).of_ranks(self.ranks.world());
            self.folder.write(RUN_CARD, &card.to_json())?;
            records.watch.introduce(progress);
        }
        // Weights and moments are there by now, or have been promised.
        let to_come = estimate.beyond(held_memory().unwrap_or(0));
        if let Some(free) = free_memory().filter(|&free| free < to_come) {
            let (free, to_come) = (in_mib(free), in_mib(to_come));
            let remedy = "lower `batch.micro` or `batch.max_length`";
            progress.note(&format!("warning: only {free} of memory are free for the {to_come} to come; {remedy}"));
        }
        if self.recipe.settings().guard.dry_step && !self.is_done() {
            let period = dry_step(&self.stepper.model, self.largest, encoded)?;
            let MicroExtents { rows, columns, images } = self.largest;
            let held = process_memory().map_or(String::new(), |(_, most)| format!(", {} of memory", in_mib(most)));
            let seconds = period.as_secs_f64();
            progress.note(&format!(
                "largest micro-batch tried: {rows} rows of {columns} tokens, {images} images: {seconds:.2} s{held}"
            ));
        }
        if self.state.step == 0 {
            self.answer_samples(progress)?;
        }
        (self.stretch, self.whole) = (Stopwatch::start(), Stopwatch::start());
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.state.step >= self.stepper.schedule.total_steps()
    }

    fn checkpoint_is_due(&self) -> bool {
        self.is_done() || self.state.step.is_multiple_of(self.recipe.settings().checkpoint.every)
    }

    /// Whether something is due that happens every so many steps, and at each checkpoint.
    fn is_due(&self, every: Option<u64>) -> bool {
        self.checkpoint_is_due() || every.is_some_and(|every| self.state.step.is_multiple_of(every))
    }

    /// One optimizer step; the state then points at the next.
    fn train_step(&mut self) -> Result<StepReport, TrainError> {
        let Cursor { epoch, step, .. } = self.state.cursor;
        let position = Position { epoch, step, micro: 0 };
        let report = self.stepper.train_step(self.state.step, position, &mut self.ranks)?;
        self.state.step += 1;
        self.state.cursor = self.cursor_after(self.state.step);
        [&mut self.stretch, &mut self.whole].into_iter().for_each(|watch| watch.count(&report));
        Ok(report)
    }

    /// What is due after a step: validation, answers, a metrics line, a checkpoint.
    fn after_step(&mut self, report: StepReport, progress: &Progress, shutdown: &Shutdown) -> Result<(), TrainError> {
        let started = Instant::now();
        let settings = self.recipe.settings();
        let answers_every = settings.samples.as_ref().and_then(|samples| samples.every);
        let answers_are_due = self.is_due(answers_every);
        let validated = if self.is_due(settings.logging.validate_every) { self.validate(shutdown) } else { Ok(None) };
        let answered = match answers_are_due && !shutdown.requested() {
            true => self.answer_samples(progress),
            false => Ok(()),
        };
        self.pause_since(started);
        // Whatever failed, the step was made: a resumed run does not write its line again.
        let validation = *validated.as_ref().unwrap_or(&None);
        match report.skipped {
            Some(skipped) => self.note_skipped(SkippedStep { validation_loss: validation, ..skipped }, progress)?,
            None => self.log(&report, validation, progress)?,
        }
        progress.inc(1);
        validated.and(answered)?;
        let started = Instant::now();
        if self.checkpoint_is_due() {
            self.save_checkpoint(validation)?;
        }
        self.pause_since(started);
        Ok(())
    }

    fn pause_since(&mut self, started: Instant) {
        [&mut self.stretch, &mut self.whole].into_iter().for_each(|watch| watch.pause(started.elapsed()));
    }

    fn cursor_after(&self, steps: u64) -> Cursor {
        let (epoch, step) = (steps / self.steps_per_epoch, steps % self.steps_per_epoch);
        Cursor { epoch, step, ..self.state.cursor.clone() }
    }

    /// `None` without validation data, and where a stop was asked for.
    fn validate(&mut self, shutdown: &Shutdown) -> Result<Option<f64>, TrainError> {
        let Self { validation, stepper, ranks, .. } = self;
        validation.as_mut().map_or(Ok(None), |validation| validation.measure(&stepper.model, shutdown, ranks))
    }

    fn answer_samples(&mut self, progress: &Progress) -> Result<(), TrainError> {
        let log = self.records.as_mut().and_then(|records| records.logs.answers.as_mut());
        let (Some(samples), Some(log)) = (&self.recipe.settings().samples, log) else { return Ok(()) };
        let answerer = Answerer { processor: &self.processor, model: &self.stepper.model, pixels: &self.pixels };
        let line = answer_samples(samples, &answerer, self.state.step)?;
        for said in &line.answers {
            progress.note(&format!("after step {}: {} -> {}", line.step, said.question, said.answer));
        }
        log.push(line)
    }

    fn note_skipped(&mut self, skipped: SkippedStep, progress: &Progress) -> Result<(), TrainError> {
        let SkippedStep { step, what, value, samples, validation_loss } = &skipped;
        let samples = samples.join(", ");
        let validation = validation_loss.map_or_else(String::new, |loss| format!("; validation loss {loss:.4}"));
        progress.note(&format!("step {step} is left out: {what} is {value}; its samples are {samples}{validation}"));
        self.state.skipped += 1;
        let log = self.records.as_mut().and_then(|records| records.logs.skipped.as_mut());
        log.map_or(Ok(()), |log| log.push(skipped))
    }

    /// Writes a metrics line if one is due: every `logging.every` steps, at the first and last, and with a validation.
    fn log(&mut self, report: &StepReport, validation: Option<f64>, progress: &Progress) -> Result<(), TrainError> {
        self.losses = (self.losses.0 + report.loss, self.losses.1 + 1);
        let step = self.state.step;
        let every = self.recipe.settings().logging.every;
        if !(step == 1 || step.is_multiple_of(every) || self.is_done() || validation.is_some()) {
            return Ok(());
        }
        let speed = std::mem::replace(&mut self.stretch, Stopwatch::start()).speed();
        let Some(Records { logs, watch }) = &mut self.records else { return Ok(()) };
        let rates = self.recipe.groups().rates();
        let memory = process_memory();
        let line = StepMetrics {
            step,
            epoch: step as f64 / self.steps_per_epoch as f64,
            loss: report.loss,
            validation_loss: validation,
            lr: rates.map(|(group, peak)| (group.to_owned(), peak * report.factor)).collect(),
            grad_norm: report.grad_norm,
            samples_per_second: speed.samples,
            tokens_per_second: speed.tokens,
            label_tokens_per_second: speed.label_tokens,
            images_per_second: speed.images,
            data_wait: speed.data_wait,
            mfu: Some(watch.utilisation(&speed)),
            memory_bytes: memory.map(|(now, _)| now),
            peak_memory_bytes: memory.map(|(_, most)| most),
            seconds: self.seconds_before + self.whole.seconds(),
        };
        let told = watch.tell(&line, progress);
        logs.metrics.push(line)?;
        told
    }

    fn save_checkpoint(&mut self, validation: Option<f64>) -> Result<(), TrainError> {
        self.ranks.check_weights(self.state.step, &self.stepper.model)?;
        self.write_checkpoint(validation)
    }

    fn write_checkpoint(&mut self, validation: Option<f64>) -> Result<(), TrainError> {
        let (sum, count) = std::mem::take(&mut self.losses);
        self.state.score = match &self.validation {
            Some(held_out) => validation.map(|value| Score::Validation { value, data: held_out.fingerprint() }),
            None => (count > 0).then(|| Score::Training { value: sum / count as f64 }),
        }
        .filter(|score| score.value().is_finite());
        self.state.seconds = self.seconds_before + self.whole.seconds();
        let Stepper { model, optimizer, .. } = &self.stepper;
        self.saved_step = self.state.step;
        let Some(records) = &self.records else { return Ok(()) };
        self.newest = Some(self.folder.checkpoints.save(&self.state, model, &self.processor, optimizer)?);
        self.folder.write_plot(records.logs.metrics.lines())
    }

    fn start_progress(&self) -> Progress {
        let total = self.stepper.schedule.total_steps();
        let progress = if self.ranks.leads() { Progress::new("step", Some(total)) } else { Progress::hidden() };
        let (all, trained) = self.stepper.model.params().num_values();
        let samples = self.stepper.source.info().num_samples;
        progress.note(&format!("training {trained} of {all} weights for {total} steps on {samples} samples"));
        if self.ranks.world() > 1 {
            progress.note(&format!("{} ranks share each step", self.ranks.world()));
        }
        if let Some(checkpoint) = &self.newest {
            progress.note(&format!("resuming after step {} from `{}`", self.state.step, checkpoint.display()));
        }
        progress.resume_at(self.state.step);
        progress
    }

    fn report(&self) -> TrainReport {
        let lines = self.records.as_ref().map_or(&[][..], |records| records.logs.metrics.lines());
        let speed = self.whole.speed();
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
