//! The recipe as its file has it. Every field may be wrong here; [`Recipe::check`](super::Recipe::check) decides.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vela_runtime::{ByteSize, Period};

use crate::schedule::{DecayShape, ScheduleKind};

/// The whole file. Unknown keys are refused; paths are relative to where the process runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRecipe {
    /// `freeze_vision_and_llm`, `freeze_vision`, `lora` or `full`.
    pub train_type: String,
    /// Where and how long.
    pub run: RawRun,
    /// What is learnt from.
    pub data: RawData,
    /// Where the weights start.
    pub model: RawModel,
    /// Samples per step.
    pub batch: RawBatch,
    /// Peak learning rates, by the group's name: `projector`, `language_model`, `vision_tower` and `lora` mean the whole
    /// component, any other name what its patterns match.
    pub groups: BTreeMap<String, RawGroup>,
    /// Low-rank adapters, for `train_type = "lora"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<RawLora>,
    /// AdamW and clipping.
    #[serde(default)]
    pub optimizer: RawOptimizer,
    /// Learning rate over the steps.
    #[serde(default)]
    pub schedule: RawSchedule,
    /// What a run is kept from.
    #[serde(default)]
    pub guard: RawGuard,
    /// How often metrics are written, and where to.
    #[serde(default)]
    pub logging: RawLogging,
    /// Questions that are answered while training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<RawSamples>,
    /// How often the state is saved.
    #[serde(default)]
    pub checkpoint: RawCheckpoint,
    /// What several processes that train together need.
    #[serde(default)]
    pub ranks: RawRanks,
}

/// `[run]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRun {
    /// The run folder.
    pub output: String,
    /// Seed of the epoch orders and of fresh weights.
    #[serde(default)]
    pub seed: u64,
    /// Passes over the data; exactly one of `epochs` and `max_steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
    /// Optimizer steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
}

/// `[data]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawData {
    /// A shard set, read in this process, or several with commas between, each `URL` or `URL*WEIGHT`; exactly one of `shards` and `loader`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<String>,
    /// A loader's address, `http://host:port` or `https://host:port`, or those of replicas with commas between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loader: Option<String>,
    /// Which of the loader's data sets; its only one, or `default`, if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// A file with the token to show the loader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,
    /// Authorities of an `https://` loader, a PEM file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// Our certificate chain for a loader that asks for one, a PEM file; with `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The certificate's key, a PEM file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// True lets the token go to another machine without encryption; false if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_remote_plaintext: Option<bool>,
    /// Batches held ready, in bytes; 64MiB if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefetch: Option<ByteSize>,
    /// Largest micro-batch made in this process, in bytes; 512MiB if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_batch_bytes: Option<ByteSize>,
    /// False reads the data in the manifest's order; true if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shuffle: Option<bool>,
    /// Shards that are mixed at a time; all of them if absent or 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shuffle_window: Option<u32>,
    /// A shard set whose loss is measured at each checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<String>,
}

/// `[model]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawModel {
    /// A Hugging Face model folder, or a run folder, whose newest checkpoint is one; exactly one of `path` and `init`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A model preset (TOML) whose weights are drawn from `run.seed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// Draws the projector of `path` anew: stage 1.
    #[serde(default)]
    pub fresh_projector: bool,
    /// The processor's folder; the model's folder if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processor: Option<String>,
}

/// `[batch]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawBatch {
    /// Samples, or packed rows, of one optimizer step.
    pub global: u32,
    /// Samples, or packed rows, of one forward pass; `global` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro: Option<u32>,
    /// Longest row in tokens, image tokens expanded.
    pub max_length: u32,
    /// `none`, or `block`: holds each block's input alone and computes the rest again on the way back; `none` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recompute: Option<String>,
    /// Puts several samples into a row; `global` and `micro` count rows then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packing: Option<RawPacking>,
}

/// `[batch.packing]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawPacking {
    /// Images of a row at most.
    pub max_images: u32,
    /// Samples that are packed together; 4096 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
}

/// `[groups.NAME]`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawGroup {
    /// Peak learning rate; 0 freezes the group.
    pub lr: f64,
    /// Decoupled weight decay; `optimizer.weight_decay` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Of `language_model` alone: the blocks that learn, counted from 0, or from the end with -1 the last; all of the
    /// component if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<i64>>,
    /// Patterns over parameter names: `*` is any text, `?` one sign. What they match belongs to this group and no longer
    /// to its component's.
    #[serde(rename = "match", default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<String>,
}

impl RawGroup {
    /// A group of that rate and no other setting.
    pub fn with_lr(lr: f64) -> Self {
        Self { lr, ..Self::default() }
    }
}

/// `[lora]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLora {
    /// Width of the adapters.
    pub rank: usize,
    /// Adapters are scaled by `alpha / rank`.
    pub alpha: f64,
    /// Share of an adapter's inputs that is left out in training.
    #[serde(default)]
    pub dropout: f64,
    /// Linear layers that get one, by the last part of their name.
    pub targets: Vec<String>,
}

/// `[optimizer]`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawOptimizer {
    /// Decay of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of tensors with two or more axes; norms and biases have one and are not decayed.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0 turns clipping off.
    pub clip_norm: f64,
}

impl Default for RawOptimizer {
    fn default() -> Self {
        Self { betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0, clip_norm: 1.0 }
    }
}

/// `[schedule]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSchedule {
    /// `cosine`, `linear`, `wsd` or `constant`.
    #[serde(default)]
    pub kind: ScheduleKind,
    /// Steps of linear warmup from 0; at most one of `warmup_steps` and `warmup_ratio`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// Warmup as a share of all steps, rounded up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    /// Of `wsd`: steps of the decay at the end; one of `decay_steps` and `decay_ratio`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<u64>,
    /// Of `wsd`: the decay as a share of all steps, rounded up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_ratio: Option<f64>,
    /// Of `wsd`: `cosine`, `linear` or `1-sqrt`; `cosine` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_shape: Option<DecayShape>,
    /// Learning rate of the last step, as a share of the peak.
    #[serde(default)]
    pub floor: f64,
}

/// What happens at a loss or gradient that is NaN or infinite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NonFinitePolicy {
    /// The run ends and names the step's samples.
    #[default]
    Stop,
    /// The step is left out and its samples go to `skipped.jsonl`.
    Skip,
}

/// `[guard]`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawGuard {
    /// `stop` or `skip`.
    pub non_finite: NonFinitePolicy,
    /// Most steps that a run may leave out.
    pub max_skipped: u64,
    /// Tries the largest micro-batch there can be before the first step, so that too little memory shows at once.
    pub dry_step: bool,
}

impl Default for RawGuard {
    fn default() -> Self {
        Self { non_finite: NonFinitePolicy::Stop, max_skipped: 10, dry_step: true }
    }
}

/// `[logging]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLogging {
    /// Steps between lines of `metrics.jsonl`.
    pub every: u64,
    /// Steps between validations; at each checkpoint there is one anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validate_every: Option<u64>,
    /// Writes event files for TensorBoard into `RUN/tensorboard`.
    pub tensorboard: bool,
    /// Address to show metrics for Prometheus at, `HOST:PORT`; none are shown if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
    /// What the machine can do, in 10^12 f32 operations per second, for the utilisation; measured at the start if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_tflops: Option<f64>,
}

impl Default for RawLogging {
    fn default() -> Self {
        Self { every: 1, validate_every: None, tensorboard: true, metrics: None, peak_tflops: None }
    }
}

/// `[samples]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSamples {
    /// Steps between answers; at each checkpoint there are some anyway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// Longest answer, in tokens.
    #[serde(default = "default_answer_length")]
    pub max_new_tokens: usize,
    /// `[[samples.questions]]`
    pub questions: Vec<RawQuestion>,
}

fn default_answer_length() -> usize {
    64
}

/// One question that is asked again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawQuestion {
    /// Image files, in the order of the question's `<image>` marks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// The question; without marks the images stand in front.
    pub question: String,
}

/// `[checkpoint]`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawCheckpoint {
    /// Steps between checkpoints; the end of the run always has one.
    pub every: u64,
    /// Newest checkpoints kept, besides the best.
    pub keep: usize,
}

impl Default for RawCheckpoint {
    fn default() -> Self {
        Self { every: 500, keep: 2 }
    }
}

/// `[ranks]`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRanks {
    /// How long a rank waits for the others before it leaves with exit code 75. The longest that rank 0 may be busy alone, with
    /// a checkpoint, answers or the start, is part of it.
    pub deadline: Period,
}

impl Default for RawRanks {
    fn default() -> Self {
        Self { deadline: Period(Duration::from_secs(600)) }
    }
}
