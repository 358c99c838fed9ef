//! Recipe to trained checkpoint: the data stream, the step, the optimizer and its schedule, checkpoints, metrics and the
//! loss curve, and the answers of a trained folder. The crate owns the run folder and its resume rules; it refuses to
//! read raw data, to know a model's insides, and to go on from a checkpoint, a model or a processor that does not belong
//! to the data.

mod answerer;
mod chart;
mod chat;
mod checkpoint;
mod collective;
mod data;
mod device_batch;
mod dropout;
mod dry_step;
mod encode;
mod error;
mod export;
mod features;
mod flops;
mod gradient_check;
mod groups;
mod guard;
mod init;
mod lock;
mod memory;
mod metrics;
mod model_folder;
mod open;
mod opened;
mod optimizer;
mod parameter_groups;
mod plot;
mod ranks;
mod recipe;
mod report;
mod run_card;
mod run_folder;
mod samples;
mod schedule;
mod step;
mod step_log;
mod stopwatch;
mod tensorboard;
mod trainer;
mod validation;
mod watch;

pub use self::metrics::{StepMetrics, read_metrics};
pub use answerer::{Answer, ProcessedQuestion, Question};
pub use chat::Chat;
pub use collective::{Collective, Launch, OnStall, Single, Watched};
pub use encode::{EncodeOptions, EncodeReport, encode};
pub use error::TrainError;
pub use export::{ExportForm, ExportPlan, ExportReport, export};
pub use features::FeatureType;
pub use groups::{Component, TrainType};
pub use guard::SkippedStep;
pub use init::{InitPlan, InitReport, init};
pub use plot::loss_svg;
pub use recipe::{
    NonFinitePolicy, RawBatch, RawCheckpoint, RawData, RawGroup, RawGuard, RawLogging, RawLora, RawModel, RawOptimizer,
    RawPacking, RawQuestion, RawRanks, RawRecipe, RawRun, RawSamples, RawSchedule, Recipe,
};
pub use report::{ReportFile, write_report};
pub use run_folder::Resume;
pub use samples::{SampleAnswer, SampleAnswers, read_answers};
pub use schedule::{DecayShape, Schedule, ScheduleKind};
pub use trainer::{TrainReport, train, train_together};
