//! What to train, on what, for how long: the checked form of a recipe file.

mod data;
mod raw;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vela_dataset::{BlendPart, DEFAULT_MAX_BATCH_BYTES};
use vela_models::Recompute;
use vela_runtime::{ByteSize, load_config};
use vela_types::{BatchSpec, PackingSpec};

pub use raw::{
    NonFinitePolicy, RawBatch, RawCheckpoint, RawData, RawGroup, RawGuard, RawLogging, RawLora, RawModel, RawOptimizer,
    RawPacking, RawQuestion, RawRanks, RawRecipe, RawRun, RawSamples, RawSchedule,
};

use crate::data::Limits;
use crate::error::TrainError;
use crate::groups::TrainType;
use crate::parameter_groups::ParameterGroups;
use crate::schedule::{Schedule, SchedulePlan};
use data::check_data;

/// Samples that are packed together: fills rows as well as any larger number, and mixes the order little.
const DEFAULT_PACKING_WINDOW: u32 = 4096;
const DEFAULT_PREFETCH: ByteSize = ByteSize(64 << 20);

/// A recipe whose every field has been checked. Made by [`Recipe::load`] or [`Recipe::check`] only.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    raw: RawRecipe,
    output: PathBuf,
    seed: u64,
    length: RunLength,
    data: DataPlace,
    limits: Limits,
    shuffle: bool,
    packing: Option<PackingSpec>,
    weights: WeightOrigin,
    processor: PathBuf,
    micro: u32,
    recompute: Recompute,
    groups: ParameterGroups,
    schedule: SchedulePlan,
}

/// When a run is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunLength {
    Epochs(u64),
    Steps(u64),
}

/// Where batches come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DataPlace {
    /// Shard sets read in this process, blended.
    Shards(Vec<BlendPart>),
    /// A loader.
    Loader(RemotePlace),
}

/// A loader, and what to show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RemotePlace {
    /// Addresses of replicas, with commas between.
    pub(crate) address: String,
    /// The data set's name; empty: the only one, or the default.
    pub(crate) dataset: String,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) authority: Option<PathBuf>,
    /// Certificate and key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// Whether the token may go to another machine without encryption.
    pub(crate) allow_remote_plaintext: bool,
}

/// Where the first weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WeightOrigin {
    Folder { path: PathBuf, fresh_projector: bool },
    Preset(PathBuf),
}

impl WeightOrigin {
    /// The folder or file.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Folder { path, .. } | Self::Preset(path) => path,
        }
    }
}

impl Recipe {
    /// Reads a recipe file; `sets` are `key.path=value` overrides.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self, TrainError> {
        Self::check(load_config(path, sets)?)
    }

    /// Checks every field; the error names the key, what was expected and what was found.
    pub fn check(raw: RawRecipe) -> Result<Self, TrainError> {
        let train_type: TrainType = raw.train_type.parse()?;
        let weights = check_model(&raw.model)?;
        check_numbers(&raw)?;
        check_lora(train_type, raw.lora.as_ref())?;
        check_samples(raw.samples.as_ref())?;
        Ok(Self {
            output: PathBuf::from(&raw.run.output),
            seed: raw.run.seed,
            length: check_length(&raw.run)?,
            data: check_data(&raw.data)?,
            limits: Limits {
                prefetch_bytes: raw.data.prefetch.unwrap_or(DEFAULT_PREFETCH).0 as usize,
                max_batch_bytes: raw.data.max_batch_bytes.map_or(DEFAULT_MAX_BATCH_BYTES, |limit| limit.0),
            },
            shuffle: raw.data.shuffle.unwrap_or(true),
            packing: check_packing(&raw.batch)?,
            processor: check_processor(&raw.model, &weights)?,
            weights,
            micro: check_micro(&raw.batch)?,
            recompute: check_recompute(&raw.batch)?,
            groups: ParameterGroups::check(train_type, &raw.groups, raw.optimizer.weight_decay)?,
            schedule: SchedulePlan::check(&raw.schedule)?,
            raw,
        })
    }

    /// The recipe as a file's fields, defaults filled in; [`Recipe::check`] of it gives an equal recipe.
    pub fn resolved(&self) -> RawRecipe {
        let mut raw = self.raw.clone();
        raw.data.prefetch = Some(ByteSize(self.limits.prefetch_bytes as u64));
        raw.data.max_batch_bytes = Some(ByteSize(self.limits.max_batch_bytes));
        raw.data.shuffle = Some(self.shuffle);
        raw.model.processor = Some(self.processor.display().to_string());
        raw.batch.micro = Some(self.micro);
        raw.batch.packing =
            self.packing.map(|PackingSpec { max_images, window }| RawPacking { max_images, window: Some(window) });
        raw
    }

    /// The run folder.
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// The batches this recipe asks for, given the tokens the model's tower makes of an image.
    pub fn batch_spec(&self, image_tokens: u32) -> BatchSpec {
        BatchSpec {
            global_batch: self.raw.batch.global,
            micro_batch: self.micro,
            seed: self.seed,
            shuffle: self.shuffle,
            image_tokens,
            max_length: self.raw.batch.max_length,
            shuffle_window: self.raw.data.shuffle_window.unwrap_or(0),
            packing: self.packing,
        }
    }

    /// How long a rank waits for the others (`ranks.deadline`).
    pub fn deadline(&self) -> Duration {
        self.raw.ranks.deadline.0
    }

    /// The fields as the file has them: for sections that need no other form.
    pub(crate) fn settings(&self) -> &RawRecipe {
        &self.raw
    }

    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    pub(crate) fn data(&self) -> &DataPlace {
        &self.data
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn weights(&self) -> &WeightOrigin {
        &self.weights
    }

    pub(crate) fn processor(&self) -> &Path {
        &self.processor
    }

    /// What is held of blocks.
    pub(crate) fn recompute(&self) -> Recompute {
        self.recompute
    }

    pub(crate) fn groups(&self) -> &ParameterGroups {
        &self.groups
    }

    /// The schedule of a run of `total` steps.
    pub(crate) fn schedule(&self, total: u64) -> Result<Schedule, TrainError> {
        self.schedule.over(total)
    }

    /// Optimizer steps of the run over data with that many steps per epoch.
    pub(crate) fn total_steps(&self, steps_per_epoch: u64) -> Result<u64, TrainError> {
        match self.length {
            RunLength::Steps(steps) => Ok(steps),
            RunLength::Epochs(epochs) => match epochs.checked_mul(steps_per_epoch) {
                Some(steps) => Ok(steps),
                None => refuse("run.epochs", &format!("at most {}", u64::MAX / steps_per_epoch), epochs),
            },
        }
    }
}

/// The refusal of a key's value.
pub(crate) fn refuse<T>(key: &str, expected: &str, found: impl ToString) -> Result<T, TrainError> {
    Err(TrainError::Recipe { key: key.to_owned(), expected: expected.to_owned(), found: found.to_string() })
}

/// Exactly one of two optional fields.
fn one_of<'a>(key: &str, first: Option<&'a String>, second: Option<&'a String>) -> Result<bool, TrainError> {
    match (first, second) {
        (Some(_), None) => Ok(true),
        (None, Some(_)) => Ok(false),
        (Some(_), Some(_)) => refuse(key, "exactly one of them", "both"),
        (None, None) => refuse(key, "exactly one of them", "neither"),
    }
}

fn check_length(run: &RawRun) -> Result<RunLength, TrainError> {
    if run.output.is_empty() {
        return refuse("run.output", "a folder", "an empty text");
    }
    // TOML integers are signed; a larger seed could not be written back to `recipe.toml`.
    if run.seed > i64::MAX as u64 {
        return refuse("run.seed", "at most 2^63 - 1", run.seed);
    }
    match (run.epochs, run.max_steps) {
        (Some(epochs), None) if epochs > 0 => Ok(RunLength::Epochs(epochs)),
        (None, Some(steps)) if steps > 0 => Ok(RunLength::Steps(steps)),
        (Some(_), Some(_)) => refuse("run.epochs, run.max_steps", "exactly one of them", "both"),
        (None, None) => refuse("run.epochs, run.max_steps", "exactly one of them", "neither"),
        _ => refuse("run.epochs, run.max_steps", "a positive number", 0),
    }
}

fn check_packing(batch: &RawBatch) -> Result<Option<PackingSpec>, TrainError> {
    let Some(RawPacking { max_images, window }) = batch.packing else { return Ok(None) };
    let window = window.unwrap_or(DEFAULT_PACKING_WINDOW);
    match () {
        () if max_images == 0 => refuse("batch.packing.max_images", "at least 1 image", 0),
        () if window == 0 => refuse("batch.packing.window", "at least 1 sample", 0),
        () => Ok(Some(PackingSpec { max_images, window })),
    }
}

fn check_model(model: &RawModel) -> Result<WeightOrigin, TrainError> {
    let from_folder = one_of("model.path, model.init", model.path.as_ref(), model.init.as_ref())?;
    let place = PathBuf::from(if from_folder { model.path.clone() } else { model.init.clone() }.unwrap_or_default());
    match (from_folder, model.fresh_projector) {
        (true, fresh_projector) => Ok(WeightOrigin::Folder { path: place, fresh_projector }),
        (false, false) => Ok(WeightOrigin::Preset(place)),
        (false, true) => refuse("model.fresh_projector", "`model.path`: a preset draws all its weights", true),
    }
}

fn check_processor(model: &RawModel, weights: &WeightOrigin) -> Result<PathBuf, TrainError> {
    match (&model.processor, weights) {
        (Some(processor), _) => Ok(PathBuf::from(processor)),
        (None, WeightOrigin::Folder { path, .. }) => Ok(path.clone()),
        (None, WeightOrigin::Preset(_)) => {
            refuse("model.processor", "a processor's folder, since `model.init` has none", "nothing")
        }
    }
}

fn check_micro(batch: &RawBatch) -> Result<u32, TrainError> {
    let micro = batch.micro.unwrap_or(batch.global);
    match () {
        () if batch.global == 0 => refuse("batch.global", "a positive number of samples", 0),
        () if micro == 0 || micro > batch.global => {
            refuse("batch.micro", &format!("between 1 and `batch.global` = {}", batch.global), micro)
        }
        () if batch.max_length < 2 => refuse("batch.max_length", "at least 2 tokens", batch.max_length),
        () => Ok(micro),
    }
}

fn check_recompute(batch: &RawBatch) -> Result<Recompute, TrainError> {
    let Some(name) = &batch.recompute else { return Ok(Recompute::None) };
    let [none, block] = Recompute::NAMES;
    name.parse().or_else(|()| refuse("batch.recompute", &format!("`{none}` or `{block}`"), name))
}

fn check_lora(train_type: TrainType, lora: Option<&RawLora>) -> Result<(), TrainError> {
    let Some(lora) = lora else {
        return match train_type {
            TrainType::Lora => refuse("lora", "`rank`, `alpha` and `targets`, since `train_type` is `lora`", "nothing"),
            _ => Ok(()),
        };
    };
    match () {
        () if train_type != TrainType::Lora => refuse("lora", &format!("nothing for `{train_type}`"), "a table"),
        () if lora.rank == 0 => refuse("lora.rank", "at least 1", 0),
        () if !lora.alpha.is_finite() || lora.alpha <= 0.0 => refuse("lora.alpha", "a number above 0", lora.alpha),
        () if !(0.0..1.0).contains(&lora.dropout) => refuse("lora.dropout", "a share from 0 to below 1", lora.dropout),
        () if lora.targets.is_empty() => refuse("lora.targets", "names of linear layers such as `q_proj`", "none"),
        () => Ok(()),
    }
}

fn check_samples(samples: Option<&RawSamples>) -> Result<(), TrainError> {
    match samples {
        Some(samples) if samples.every == Some(0) => refuse("samples.every", "at least 1 step", 0),
        Some(samples) if samples.max_new_tokens == 0 => refuse("samples.max_new_tokens", "at least 1 token", 0),
        Some(samples) if samples.questions.is_empty() => refuse("samples.questions", "at least one", "none"),
        _ => Ok(()),
    }
}

fn check_numbers(raw: &RawRecipe) -> Result<(), TrainError> {
    let RawOptimizer { betas, eps, weight_decay, clip_norm } = raw.optimizer;
    let positive = |number: f64| number.is_finite() && number >= 0.0;
    match () {
        () if !betas.iter().all(|beta| (0.0..1.0).contains(beta)) => {
            refuse("optimizer.betas", "two numbers from 0 to below 1", format!("{betas:?}"))
        }
        () if !eps.is_finite() || eps <= 0.0 => refuse("optimizer.eps", "a number above 0", eps),
        () if !positive(weight_decay) => refuse("optimizer.weight_decay", "a number from 0 up", weight_decay),
        () if !positive(clip_norm) => refuse("optimizer.clip_norm", "a number from 0 up (0: no clipping)", clip_norm),
        () if raw.logging.every == 0 => refuse("logging.every", "at least 1 step", 0),
        () if raw.logging.validate_every == Some(0) => refuse("logging.validate_every", "at least 1 step", 0),
        () if raw.logging.validate_every.is_some() && raw.data.validation.is_none() => {
            let expected = "a shard set, since `logging.validate_every` is set";
            refuse("data.validation", expected, "nothing")
        }
        () if raw.logging.peak_tflops.is_some_and(|peak| !peak.is_finite() || peak <= 0.0) => {
            refuse("logging.peak_tflops", "a number above 0", raw.logging.peak_tflops.unwrap_or_default())
        }
        () if raw.logging.metrics.as_ref().is_some_and(|address| address.parse::<SocketAddr>().is_err()) => {
            let found = raw.logging.metrics.clone().unwrap_or_default();
            refuse("logging.metrics", "an address such as `127.0.0.1:9400`", found)
        }
        () if raw.checkpoint.every == 0 => refuse("checkpoint.every", "at least 1 step", 0),
        () if raw.ranks.deadline.0.is_zero() => refuse("ranks.deadline", "a positive time such as `10m`", "0ms"),
        () if raw.checkpoint.keep == 0 => refuse("checkpoint.keep", "at least 1 checkpoint", 0),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests;
