//! Recipe to trained checkpoint: the data stream, the step, the optimizer and its schedule, checkpoints, metrics and the
//! loss curve, and the answers of a trained folder. The crate owns the run folder and its resume rules; it refuses to
//! read raw data, to know a model's insides, and to go on from a checkpoint, a model or a processor that does not belong
//! to the data.

mod chat;
mod checkpoint;
mod data;
mod device_batch;
mod error;
mod export;
mod gradient_check;
mod groups;
mod init;
mod metrics;
mod model_folder;
mod optimizer;
mod plot;
mod recipe;
mod run_folder;
mod schedule;
mod step;
mod stopwatch;
mod trainer;
mod validation;

pub use chat::{Answer, Chat, ProcessedQuestion, Question};
pub use error::TrainError;
pub use export::{ExportForm, ExportPlan, ExportReport, export};
pub use groups::{Component, TrainType};
pub use init::{InitPlan, InitReport, init};
pub use metrics::{Rates, StepMetrics, read_metrics};
pub use plot::loss_svg;
pub use recipe::{
    RawBatch, RawCheckpoint, RawData, RawGroup, RawGroups, RawLogging, RawModel, RawOptimizer, RawPacking, RawRecipe,
    RawRun, RawSchedule, Recipe,
};
pub use run_folder::Resume;
pub use schedule::Schedule;
pub use trainer::{TrainReport, train};
