//! `trainer export`: a trained folder as `transformers` opens it, or its adapter as PEFT does.

use std::path::PathBuf;

use serde::Serialize;
use vela_models::{Export, VlmConfig, WeightDtype};
use vela_processor::{Processor, ProcessorOptions};
use vela_runtime::Shutdown;

use crate::error::TrainError;
use crate::init::unusable;
use crate::model_folder::{ModelFolder, write_for_transformers};

/// What is exported.
#[derive(Clone, Debug)]
pub struct ExportPlan {
    /// A model folder as Vela saves it.
    pub model: PathBuf,
    /// The folder to make.
    pub output: PathBuf,
    /// Element type of what is written; each tensor's own by default.
    pub dtype: Option<WeightDtype>,
    /// Bytes of a weight file at most; a whole model with more is written as shards with an index.
    pub max_shard_bytes: Option<u64>,
    /// Adapters are merged into the weights they adapt; otherwise they are written alone.
    pub merge: bool,
}

/// What an exported folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportForm {
    /// A whole `LlavaForConditionalGeneration` with its processor.
    Model,
    /// An adapter and the projector in PEFT's layout.
    Adapter,
}

/// What was written; the JSON object of `trainer export`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExportReport {
    /// The folder.
    pub output: PathBuf,
    /// What it holds.
    pub form: ExportForm,
    /// Bytes of its weights.
    pub bytes: u64,
}

/// Makes the folder; it appears whole or not at all. A stop is looked at between tensors.
///
/// # Errors
/// An output folder that is not empty; a model or processor that cannot be read; a model for which the published class
/// has no form, by key.
pub fn export(plan: &ExportPlan, shutdown: &Shutdown) -> Result<ExportReport, TrainError> {
    let unusable = |source| unusable(&plan.model, source);
    let stopped = || shutdown.requested();
    let config = VlmConfig::load(&plan.model).map_err(unusable)?;
    let export = Export { model: &plan.model, dtype: plan.dtype, max_shard_bytes: plan.max_shard_bytes };
    let folder = ModelFolder::begin(&plan.output)?;
    let form = if config.language.lora.is_some() && !plan.merge { ExportForm::Adapter } else { ExportForm::Model };
    match form {
        ExportForm::Adapter => export.write_adapter(folder.path(), &stopped).map_err(unusable)?,
        ExportForm::Model => {
            let processor = Processor::load(&plan.model, &ProcessorOptions::default())
                .map_err(|source| TrainError::Processor { path: plan.model.clone(), source: Box::new(source) })?;
            let written = export.write(folder.path(), &stopped).map_err(unusable)?;
            write_for_transformers(&processor, &written, folder.path())?;
        }
    }
    let bytes = folder.weight_bytes()?;
    folder.finish()?;
    Ok(ExportReport { output: plan.output.clone(), form, bytes })
}
