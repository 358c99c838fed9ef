//! Everything that can stop a run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use vela_types::{Position, SourceError};

/// Why a recipe, a run or an answer failed. Every message names the key, file, parameter or sample it is about.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe or preset file cannot be read or parsed.
    #[error("recipe cannot be used")]
    Config(#[from] vela_runtime::ConfigError),
    /// A recipe key has a value that cannot be.
    #[error("recipe key `{key}`: expected {expected}, found `{found}`")]
    Recipe {
        /// The key with its tables.
        key: String,
        /// What would be right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A file or folder cannot be read or written.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Metrics cannot be shown where the recipe says.
    #[error("metrics cannot be shown at `{address}` (`logging.metrics`)")]
    Metrics {
        /// The address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The shard set cannot be opened or read.
    #[error("shards `{place}` cannot be used")]
    Shards {
        /// The shard set.
        place: String,
        /// The dataset's account.
        source: Box<vela_dataset::DatasetError>,
    },
    /// The loader cannot be reached or refuses.
    #[error("loader `{address}` cannot be used; start it with `loader serve`, or set `data.shards`")]
    Loader {
        /// Its address.
        address: String,
        /// The client's account.
        source: Box<vela_client::ClientError>,
    },
    /// The stream of batches broke.
    #[error("no batch for epoch {}, step {}, micro-batch {}", position.epoch, position.step, position.micro)]
    Batches {
        /// Where in the stream, zero-based.
        position: Position,
        /// The source's account.
        source: SourceError,
    },
    /// The data cannot be continued from a checkpoint's cursor.
    #[error("the data cannot be continued from where the checkpoint stopped")]
    Seek(#[source] SourceError),
    /// The processor cannot be loaded.
    #[error("processor `{}` cannot be used", path.display())]
    Processor {
        /// Its folder.
        path: PathBuf,
        /// Its account.
        source: Box<vela_processor::ProcessorError>,
    },
    /// The question or its image cannot be processed.
    #[error("the question cannot be processed")]
    Question(#[source] vela_processor::ProcessorError),
    /// The question is not one.
    #[error("question: expected {expected}, found {found}")]
    Asked {
        /// What would be right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The model cannot be loaded.
    #[error("model `{}` cannot be used", path.display())]
    ModelFolder {
        /// Its folder or preset.
        path: PathBuf,
        /// Its account.
        source: Box<vela_models::ModelError>,
    },
    /// A part of a checkpoint cannot be written.
    #[error("checkpoint `{}` cannot be written", path.display())]
    Save {
        /// Its folder.
        path: PathBuf,
        /// The account of the part's owner.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A forward pass failed.
    #[error("the model's forward pass failed")]
    Forward(#[from] vela_models::ModelError),
    /// A gradient or update could not be computed.
    #[error("the optimizer's arithmetic failed")]
    Kernel(#[from] vela_kernels::KernelError),
    /// An update failed after it had begun: weights and moments are of no step.
    #[error("the update failed half-way; go on from the newest checkpoint with `--resume auto`")]
    Update(#[source] vela_kernels::KernelError),
    /// A tensor operation failed.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// Model, processor and data do not belong together.
    #[error("{what}: the model has {model}, the data has {data}; {remedy}")]
    Mismatch {
        /// What differs.
        what: &'static str,
        /// The model's side.
        model: String,
        /// The data's side.
        data: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The first step's gradients are not those the recipe asks for.
    #[error("gradients of the first step are wrong: {}", faults.join("; "))]
    Gradients {
        /// One entry per kind of fault, with the parameters' names.
        faults: Vec<String>,
    },
    /// A loss or gradient is NaN or infinite.
    #[error("step {step}: {what} is {value}, and {limit}; the step's samples are {}; lower the learning rate or look at \
             them with `pipeline preview`", samples.join(", "))]
    NonFinite {
        /// One-based optimizer step.
        step: u64,
        /// `the loss`, or the gradient of a parameter.
        what: String,
        /// What it is.
        value: String,
        /// Ids of the samples of the step.
        samples: Vec<String>,
        /// Why it is not left out.
        limit: String,
    },
    /// The validation data cannot be opened, or do not belong to the run.
    #[error("validation data `{place}` cannot be used (`data.validation`)")]
    Validation {
        /// The shard set.
        place: String,
        /// Why.
        source: Box<TrainError>,
    },
    /// A stream gave another batch than the one that comes next, or a misshapen one.
    #[error("batch at epoch {}, step {}, micro-batch {}: expected {expected}, found {found}",
            position.epoch, position.step, position.micro)]
    Batch {
        /// Where in the stream, zero-based.
        position: Position,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A checkpoint cannot be read.
    #[error("checkpoint `{}`: {what}: expected {expected}, found {found}", path.display())]
    Checkpoint {
        /// Its folder.
        path: PathBuf,
        /// The part that is wrong.
        what: String,
        /// What this run has.
        expected: String,
        /// What the checkpoint has.
        found: String,
    },
    /// A folder to be made is there already.
    #[error("folder `{}` is not empty; name another `--output`", path.display())]
    OutputTaken {
        /// The folder.
        path: PathBuf,
    },
    /// Another process is at work in a folder.
    #[error("`{}` is in use by another process; wait until it has ended, or name another folder", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A shard set cannot be encoded.
    #[error("shards `{place}` cannot be encoded")]
    Encode {
        /// The shard set that is read, or the one that is written.
        place: String,
        /// The account of the part's owner.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Told to stop before the work was done.
    #[error("stopped: {what}")]
    Stopped {
        /// What is there, and how to go on.
        what: &'static str,
    },
    /// The variables of a launcher make no sense.
    #[error("this process's rank cannot be told: {what}")]
    Launch {
        /// The variables, and what is wrong with them.
        what: String,
    },
    /// Several processes were started together, and this build cannot join them.
    #[error(
        "started as rank {rank} of {world}, and this build joins no ranks; build it with `cargo build -p vela-train \
             --features mpi` (docs/training.md), or start one process"
    )]
    NoBackend {
        /// This process.
        rank: usize,
        /// How many there are.
        world: usize,
    },
    /// An operation of all ranks failed.
    #[error("rank {rank} of {world}: {work}: {fault}")]
    Collective {
        /// This process.
        rank: usize,
        /// How many there are.
        world: usize,
        /// What the operation was for.
        work: String,
        /// What went wrong.
        fault: String,
    },
    /// The other ranks did not come in time.
    #[error(
        "rank {rank} of {world}: {work}: waited {deadline:?} for the other ranks (`ranks.deadline`); one of them hangs or \
             is gone. Start all of them again with `--resume auto`"
    )]
    Stalled {
        /// This process.
        rank: usize,
        /// How many there are.
        world: usize,
        /// What was waited for.
        work: String,
        /// How long.
        deadline: Duration,
    },
    /// Another rank could not start or go on.
    #[error("rank {rank} failed: {fault}")]
    OtherRank {
        /// That rank.
        rank: usize,
        /// Its error with its causes.
        fault: String,
        /// Whether recipe or flags have to change.
        usage: bool,
    },
    /// The ranks do not hold the same.
    #[error(
        "the ranks differ in {what}: rank 0 has `{expected}`, rank {rank} has `{found}`; all of them need the same recipe, \
             files and program"
    )]
    RanksDiffer {
        /// The first rank that differs from rank 0.
        rank: usize,
        /// In what.
        what: String,
        /// What rank 0 has.
        expected: String,
        /// What that rank has.
        found: String,
    },
    /// Weights that were equal no longer are.
    #[error(
        "after step {step} the trained weights of rank {rank} are not those of rank 0; the ranks need processors of one kind \
             (docs/determinism.md), or one of them computes wrongly"
    )]
    Drifted {
        /// One-based optimizer step.
        step: u64,
        /// The first rank that differs from rank 0.
        rank: usize,
    },
    /// A run folder, or a file of one, cannot be read.
    #[error("`{}` is not of a run: {fault}", path.display())]
    RunFile {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
    /// A fresh run would overwrite another.
    #[error("run folder `{}` already holds a run; pass `--resume auto` to continue it or set another `run.output`",
            path.display())]
    RunFolderTaken {
        /// The folder.
        path: PathBuf,
    },
}

impl TrainError {
    /// For `map_err`: the action failed on `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// Whether the person has to change the recipe or the flags (exit code 2).
    pub fn is_usage(&self) -> bool {
        if let Self::Validation { source, .. } = self {
            return source.is_usage();
        }
        matches!(
            self,
            Self::OtherRank { usage: true, .. }
                | Self::Launch { .. }
                | Self::NoBackend { .. }
                | Self::RanksDiffer { .. }
                | Self::Config(_)
                | Self::Recipe { .. }
                | Self::Metrics { .. }
                | Self::Shards { .. }
                | Self::Processor { .. }
                | Self::Question(_)
                | Self::Asked { .. }
                | Self::ModelFolder { .. }
                | Self::Mismatch { .. }
                | Self::Checkpoint { .. }
                | Self::OutputTaken { .. }
                | Self::InUse { .. }
                | Self::RunFile { .. }
                | Self::Encode { .. }
                | Self::RunFolderTaken { .. }
        )
    }
}
