//! What to train, on what, for how long: the checked form of a recipe file.

mod raw;

use std::path::{Path, PathBuf};

use vela_dataset::{BlendPart, DEFAULT_MAX_BATCH_BYTES};
use vela_runtime::{ByteSize, load_config};
use vela_types::{BatchSpec, PackingSpec};

pub use raw::{
    RawBatch, RawCheckpoint, RawData, RawGroup, RawGroups, RawLogging, RawModel, RawOptimizer, RawPacking, RawRecipe,
    RawRun, RawSchedule,
};

use crate::data::Limits;
use crate::error::TrainError;
use crate::groups::{Component, TrainType};
use crate::schedule::Schedule;

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
    learning_rates: LearningRates,
    warmup: Warmup,
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
}

/// Where the first weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WeightOrigin {
    Folder { path: PathBuf, fresh_projector: bool },
    Preset(PathBuf),
}

/// Length of the linear warmup.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Warmup {
    Steps(u64),
    Ratio(f64),
}

/// Peak learning rate of each component; 0 where it is frozen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LearningRates {
    rates: [f64; Component::ALL.len()],
}

impl LearningRates {
    /// In the order of [`Component::ALL`].
    pub(crate) fn new(rates: [f64; Component::ALL.len()]) -> Self {
        Self { rates }
    }

    /// The peak learning rate of `component`.
    pub(crate) fn of(&self, component: Component) -> f64 {
        self.rates[component as usize]
    }

    /// Whether the parameter called `name` is trained.
    pub(crate) fn trains(&self, name: &str) -> bool {
        Component::of(name).is_some_and(|component| self.of(component) > 0.0)
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
            learning_rates: check_groups(train_type, &raw.groups)?,
            warmup: check_warmup(&raw.schedule)?,
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

    pub(crate) fn learning_rates(&self) -> &LearningRates {
        &self.learning_rates
    }

    /// The schedule of a run of `total` steps.
    pub(crate) fn schedule(&self, total: u64) -> Result<Schedule, TrainError> {
        Schedule::new(self.warmup, self.raw.schedule.floor, total)
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

fn refuse<T>(key: &str, expected: &str, found: impl ToString) -> Result<T, TrainError> {
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

fn check_data(data: &RawData) -> Result<DataPlace, TrainError> {
    if data.prefetch.is_some_and(|prefetch| prefetch.0 == 0) {
        return refuse("data.prefetch", "a positive size such as `64MiB`", 0);
    }
    if data.max_batch_bytes.is_some_and(|limit| limit.0 == 0) {
        return refuse("data.max_batch_bytes", "a positive size such as `512MiB`", 0);
    }
    if data.shuffle == Some(false) && data.shuffle_window.is_some_and(|window| window > 0) {
        return refuse(
            "data.shuffle_window",
            "nothing, since `data.shuffle` is false",
            data.shuffle_window.unwrap_or(0),
        );
    }
    match one_of("data.shards, data.loader", data.shards.as_ref(), data.loader.as_ref())? {
        true => check_shards(data),
        false => check_loader(data),
    }
}

fn check_shards(data: &RawData) -> Result<DataPlace, TrainError> {
    let of_loaders = [
        ("data.dataset", &data.dataset),
        ("data.token_file", &data.token_file),
        ("data.authority", &data.authority),
        ("data.certificate", &data.certificate),
        ("data.key", &data.key),
    ];
    if let Some((key, Some(found))) = of_loaders.into_iter().find(|(_, value)| value.is_some()) {
        return refuse(key, "nothing, since `data.shards` are read without a loader", found);
    }
    let shards = data.shards.as_deref().unwrap_or_default();
    let part = |part: &str| part.trim().parse().ok().filter(|part: &BlendPart| !part.shards.is_empty());
    match shards.split(',').map(part).collect() {
        Some(parts) => Ok(DataPlace::Shards(parts)),
        None => refuse("data.shards", "`URL[*WEIGHT][,URL[*WEIGHT]...]`", shards),
    }
}

fn check_loader(data: &RawData) -> Result<DataPlace, TrainError> {
    let address = data.loader.clone().unwrap_or_default();
    let urls = || address.split(',').map(str::trim);
    if !urls().all(|url| url.starts_with("http://") || url.starts_with("https://")) {
        let expected = "addresses such as `http://127.0.0.1:50051`, with commas between";
        return refuse("data.loader", expected, address);
    }
    let is_encrypted = urls().all(|url| url.starts_with("https://"));
    if !is_encrypted && urls().any(|url| url.starts_with("https://")) {
        return refuse("data.loader", "replicas that are all encrypted, or none", address);
    }
    let path = |text: &Option<String>| text.as_ref().map(PathBuf::from);
    let identity = match (path(&data.certificate), path(&data.key)) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return refuse("data.key", "the key of `data.certificate`", "nothing"),
        (None, Some(_)) => return refuse("data.certificate", "the certificate of `data.key`", "nothing"),
    };
    match (is_encrypted, &data.authority) {
        (true, None) => refuse("data.authority", "the authorities of an `https://` loader", "nothing"),
        (false, Some(found)) => refuse("data.authority", "nothing for a loader without encryption", found),
        _ if identity.is_some() && !is_encrypted => {
            refuse("data.certificate", "nothing for a loader without encryption", "a file")
        }
        _ => Ok(DataPlace::Loader(RemotePlace {
            dataset: data.dataset.clone().unwrap_or_default(),
            token_file: path(&data.token_file),
            authority: path(&data.authority),
            identity,
            address,
        })),
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

fn check_groups(train_type: TrainType, groups: &RawGroups) -> Result<LearningRates, TrainError> {
    let given = |component| match component {
        Component::Projector => groups.projector,
        Component::LanguageModel => groups.language_model,
        Component::VisionTower => groups.vision_tower,
    };
    let mut rates = [0.0; Component::ALL.len()];
    for component in Component::ALL {
        let key = format!("groups.{}.lr", component.as_str());
        match (given(component).map(|group| group.lr), train_type.trains(component)) {
            (Some(lr), _) if !lr.is_finite() || lr < 0.0 => return refuse(&key, "a number from 0 up", lr),
            (Some(lr), true) => rates[component as usize] = lr,
            (None, true) => {
                let expected = format!("a learning rate, since `train_type` is `{train_type}` (0 freezes it)");
                return refuse(&key, &expected, "nothing");
            }
            (Some(lr), false) if lr > 0.0 => {
                return refuse(&key, &format!("0, since `train_type` `{train_type}` freezes it"), lr);
            }
            (_, false) => {}
        }
    }
    match rates.iter().any(|&rate| rate > 0.0) {
        true => Ok(LearningRates::new(rates)),
        false => refuse("groups", "at least one learning rate above 0", "everything frozen"),
    }
}

fn check_warmup(schedule: &RawSchedule) -> Result<Warmup, TrainError> {
    match (schedule.warmup_steps, schedule.warmup_ratio) {
        (Some(_), Some(_)) => refuse("schedule.warmup_steps, schedule.warmup_ratio", "at most one of them", "both"),
        (_, Some(ratio)) if !(0.0..1.0).contains(&ratio) => refuse("schedule.warmup_ratio", "from 0 to below 1", ratio),
        (_, Some(ratio)) => Ok(Warmup::Ratio(ratio)),
        (steps, None) => Ok(Warmup::Steps(steps.unwrap_or(0))),
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
        () if !(0.0..=1.0).contains(&raw.schedule.floor) => {
            refuse("schedule.floor", "a share of the peak from 0 to 1", raw.schedule.floor)
        }
        () if raw.logging.every == 0 => refuse("logging.every", "at least 1 step", 0),
        () if raw.checkpoint.every == 0 => refuse("checkpoint.every", "at least 1 step", 0),
        () if raw.checkpoint.keep == 0 => refuse("checkpoint.keep", "at least 1 checkpoint", 0),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests;
